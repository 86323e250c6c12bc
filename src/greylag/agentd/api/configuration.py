"""What the agent is set up with, as the older contract has it: its extensions and settings."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from greylag.agentd.api.requests import answer, read_object, relayed
from greylag.agentd.extensions import EXTENSION_MEMBERS, ExtensionService, extension_definition
from greylag.agentd.problems import RequestError, invalid
from greylag.agentd.settings import SettingsService
from greylag.agentd.turns.engine import TurnEngine
from greylag.common import agent_api

_EXTENSION_BODY = 256 * 1024
_SETTINGS_BODY = 64 * 1024


class ExtensionRoutes:
    """Handlers for ``/api/v1/extensions``; ``agent_api`` describes those that are relayed."""

    def __init__(self, extensions: ExtensionService) -> None:
        self._extensions = extensions

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            relayed(agent_api.LIST_EXTENSIONS, self._list),
            Route("/api/v1/extensions", self.add, methods=["POST"]),
            relayed(agent_api.SWITCH_EXTENSION, self._switch),
            relayed(agent_api.REMOVE_EXTENSION, self._remove),
        ]

    async def _list(self, _request: Request) -> Response:
        extensions = await self._extensions.all()
        return answer(agent_api.ExtensionList(extensions, len(extensions)))

    async def add(self, request: Request) -> Response:
        """Add an extension, and tell how it fared when it was tried."""
        body = await read_object(request, _EXTENSION_BODY, *EXTENSION_MEMBERS)
        definition = extension_definition(body)
        state = await self._extensions.add(definition)
        words = "Extension created successfully"
        if state is not None and state.status == "failed":
            words = f"Extension created, but it does not work: {state.detail}"
        made = {
            "message": words,
            "name": body["name"],
            "enabled": definition.enabled,
            "state": state and state.status,
            "state_detail": state and state.detail,
        }
        return JSONResponse(made, status_code=201)

    async def _switch(self, request: Request) -> Response:
        enabled = (await read_object(request, _EXTENSION_BODY, "enabled")).get("enabled")
        if not isinstance(enabled, bool):
            raise invalid("enabled must be true or false.")
        name = await self._extensions.enable(request.path_params["extension"], enabled=enabled)
        words = "Extension toggled successfully"
        return answer(agent_api.SwitchedExtension(words, name, enabled))

    async def _remove(self, request: Request) -> Response:
        await self._extensions.remove(request.path_params["extension"])
        return Response(status_code=204)


class SettingRoutes:
    """Handlers for ``/api/v1/settings``; ``agent_api`` describes those that are relayed."""

    def __init__(self, settings: SettingsService, turns: TurnEngine) -> None:
        self._settings = settings
        self._turns = turns

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            relayed(agent_api.LIST_SETTINGS, self._list),
            relayed(agent_api.SHOW_SETTING, self._get),
            relayed(agent_api.CHANGE_SETTING, self._change),
            relayed(agent_api.RESET_SETTING, self._reset),
            relayed(agent_api.CHANGE_SESSION_SETTING, self._choose),
            relayed(agent_api.LIST_MODELS, self._models),
            Route("/api/v1/settings", self.change_many, methods=["PUT"]),
        ]

    async def _list(self, _request: Request) -> Response:
        settings = await self._settings.all()
        return answer(agent_api.SettingList(settings, len(settings)))

    async def _get(self, request: Request) -> Response:
        return answer(await self._settings.get(request.path_params["key"]))

    async def _change(self, request: Request) -> Response:
        changed = await self._changed(request.path_params["key"], await _value(request))
        return answer(agent_api.ChangedSetting("Setting updated successfully", **changed))

    async def _choose(self, request: Request) -> Response:
        session_id, key = request.path_params["session"], request.path_params["key"]
        chosen = await self._settings.choose(session_id, key, await _value(request))
        if key == "GOOSE_MODE":
            self._turns.ask_again(session_id)
        self._turns.activity.touch()
        words = "Setting updated successfully"
        return answer(agent_api.ChangedSetting(words, key, chosen.value, restart_required=False))

    async def _models(self, _request: Request) -> Response:
        return answer(agent_api.ModelList(await self._settings.models()))

    async def change_many(self, request: Request) -> Response:
        """Give several settings values; each one succeeds or fails by itself."""
        values = (await read_object(request, _SETTINGS_BODY, "settings")).get("settings")
        if not isinstance(values, dict):
            raise invalid("settings must be an object of keys and values.")
        results = [await self._result(key, value) for key, value in values.items()]
        good = [result for result in results if result["success"]]
        words = f"Bulk update completed: {len(good)}/{len(results)} settings updated"
        return JSONResponse(
            {
                "message": words,
                "success_count": len(good),
                "total_count": len(results),
                "restart_required": any(result["restart_required"] for result in good),
                "results": results,
            }
        )

    async def _reset(self, request: Request) -> Response:
        setting = await self._settings.reset(request.path_params["key"])
        words = "Setting reset to default successfully"
        return answer(agent_api.ResetSetting(words, setting.key, setting.default_value))

    async def _result(self, key: str, value: object) -> dict[str, Any]:
        try:
            return {"success": True, **await self._changed(key, value)}
        except RequestError as error:
            return {"key": key, "success": False, "error": error.message}

    async def _changed(self, key: str, value: object) -> dict[str, Any]:
        setting = await self._settings.change(key, value)
        restart = setting.restart_required
        return {"key": setting.key, "value": setting.value, "restart_required": restart}


async def _value(request: Request) -> object:
    body = await read_object(request, _SETTINGS_BODY, "value")
    if "value" not in body:
        raise invalid("The body must have a value.")
    return body["value"]
