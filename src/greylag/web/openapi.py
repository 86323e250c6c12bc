"""The OpenAPI document: what the framework makes of the routes, and what it cannot know."""

from typing import Any

from fastapi import FastAPI

from greylag.web.schemas import Problem

DESCRIPTION = """\
Isolated environments, each with a Goose agent, one per project.

Every answer carries `x-request-id`. Every error is a problem document (RFC 9457) with a stable
`code`. Ids in paths are percent-encoded. Streams are server-sent events that can be resumed.
"""
TAGS = [
    {"name": "platform", "description": "The installation and its health."},
    {"name": "users", "description": "Who owns projects."},
    {"name": "projects", "description": "Projects and the life of their environments."},
    {"name": "sessions", "description": "The conversations with a project's agent."},
    {"name": "turns", "description": "A message and all that answers it."},
]
_UNUSED = ("HTTPValidationError", "ValidationError")
_OPEN = ("/healthz", "/readyz")


def complete_openapi(app: FastAPI, *, signed_in: bool) -> None:
    """Make ``app.openapi`` tell of problem documents and, with ``signed_in``, of the token."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(make(), signed_in=signed_in)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # the way the framework's docs tell


def _completed(document: dict[str, Any], *, signed_in: bool) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    for name in _UNUSED:
        schemas.pop(name, None)
    if signed_in:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        for path in _OPEN:
            document["paths"][path]["get"]["security"] = []
    return document
