"""Extensions, as the older contract has them."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from greylag.agentd.api.routes.http import read_object
from greylag.agentd.extension_definition import extension_definition
from greylag.agentd.extensions import Extension, ExtensionService
from greylag.agentd.problems import invalid

_BODY = 256 * 1024


class ExtensionRoutes:
    """Handlers for `/api/v1/extensions`."""

    def __init__(self, extensions: ExtensionService) -> None:
        self._extensions = extensions

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = "/api/v1/extensions/{name}"
        return [
            Route("/api/v1/extensions", self.list, methods=["GET"]),
            Route("/api/v1/extensions", self.add, methods=["POST"]),
            Route(f"{one}/toggle", self.toggle, methods=["PUT"]),
            Route(one, self.remove, methods=["DELETE"]),
        ]

    async def list(self, _request: Request) -> Response:
        """List all extensions."""
        extensions = [_extension(each) for each in await self._extensions.all()]
        return JSONResponse({"extensions": extensions, "total_count": len(extensions)})

    async def add(self, request: Request) -> Response:
        """Add an extension."""
        body = await read_object(request, _BODY)
        await self._extensions.add(extension_definition(body))
        words = "Extension created successfully"
        return JSONResponse(
            {"message": words, "name": body["name"], "enabled": True}, status_code=201
        )

    async def toggle(self, request: Request) -> Response:
        """Switch an extension on or off."""
        enabled = (await read_object(request, _BODY)).get("enabled")
        if not isinstance(enabled, bool):
            raise invalid("enabled must be true or false.")
        extension = await self._extensions.enable(request.path_params["name"], enabled=enabled)
        words = "Extension toggled successfully"
        return JSONResponse({"message": words, "name": extension.name, "enabled": enabled})

    async def remove(self, request: Request) -> Response:
        """Remove an extension that is switched off."""
        await self._extensions.remove(request.path_params["name"])
        return Response(status_code=204)


def _extension(extension: Extension) -> dict[str, Any]:
    return {
        "name": extension.name,
        "display_name": extension.display_name,
        "type": extension.kind,
        "extension_type": extension.kind,  # the older page reads this name
        "enabled": extension.enabled,
        "timeout": extension.timeout,
        "cmd": extension.command,
        "args": extension.arguments,
        "uri": extension.uri,
        "bundled": None,
        "description": extension.description,
        "env_keys": extension.env_keys,
    }
