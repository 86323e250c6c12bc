"""The extensions of a project's agent: how each stands, switched on and off, and removed."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from greylag.common import agent_api
from greylag.common.agent_api import AgentExtension
from greylag.domain.errors import ErrorInfo, GreylagError
from greylag.web.api.relay import ask
from greylag.web.dashboard.pages import (
    PROJECT_PAGE,
    is_fragment_request,
    is_segment,
    piece,
    project_view,
    see,
)
from greylag.web.dashboard.rail import read_rail
from greylag.web.deps import ProjectCallDep, RequestContext, pages_router

_EXTENSIONS = PROJECT_PAGE + "/extensions"
_MOST_WORDS = 600
_MOST_SHOWN = 200
_SERVERS = frozenset({"stdio", "streamable_http"})
_STATES = {
    "ready": ("active", "Ready"),
    "starting": ("activating", "Starting"),
    "failed": ("error", "Failed"),
}

router = pages_router()


class ExtensionChange(StrEnum):
    """What the page does with an extension."""

    ENABLE = "enable"
    DISABLE = "disable"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class ExtensionView:
    """An extension as the page shows it; ``url`` is ``None`` where no address can name it.

    A part of goose can only be switched off, a server of its own be removed, too.
    """

    name: str
    display_name: str | None
    enabled: bool
    badge: str
    words: str
    detail: str
    url: str | None
    removable: bool


def extension_view(one: AgentExtension, page: str) -> ExtensionView:
    """Return how an extension looks; ``page`` is the address of all of them."""
    badge, words = _STATES.get(one.state or "", ("inactive", "Not started"))
    if not one.enabled:
        badge, words = "inactive", "Disabled"
    return ExtensionView(
        name=one.name,
        display_name=one.display_name,
        enabled=one.enabled,
        badge=badge,
        words=words,
        detail=((one.state_detail if one.state == "failed" else one.description) or "")[
            :_MOST_WORDS
        ],
        url=f"{page}/{quote(one.name, safe='')}" if is_segment(one.name) else None,
        removable=one.type in _SERVERS,
    )


@router.get(_EXTENSIONS)
async def show_extensions(request: Request, call: ProjectCallDep) -> Response:
    """Show all extensions, those that fail with their last words first."""
    return await _shown(request, call)


@router.post(_EXTENSIONS + "/{extension}/{change}")
async def change_extension(
    request: Request, call: ProjectCallDep, extension: str, change: ExtensionChange
) -> Response:
    """Switch an extension on or off, or remove it, which switches it off first."""
    try:
        switch = {"enabled": change is ExtensionChange.ENABLE}
        await ask(call, agent_api.SWITCH_EXTENSION, sent=switch, extension=extension)
        if change is ExtensionChange.REMOVE:
            await ask(call, agent_api.REMOVE_EXTENSION, extension=extension)
    except GreylagError as error:
        return await _shown(request, call, error.info)
    if not is_fragment_request(request):
        return see(project_view(await call.use_cases.projects.get(*call.at)).url + "/extensions")
    return await _shown(request, call)


async def _shown(
    request: Request, call: RequestContext, error: ErrorInfo | None = None
) -> Response:
    view = project_view(await call.use_cases.projects.get(*call.at))
    found: list[AgentExtension] = []
    try:
        found = (await ask(call, agent_api.LIST_EXTENSIONS)).extensions[:_MOST_SHOWN]
    except GreylagError as problem:
        error = error or problem.info
    shown = [extension_view(one, f"{view.url}/extensions") for one in found]
    values: dict[str, Any] = {"site": call.site, "rail": await read_rail(call), "project": view}
    return piece(
        request,
        "fragments/extensions.html",
        extensions=sorted(shown, key=lambda one: (one.badge != "error", not one.enabled)),
        error=error,
        **values,
    )
