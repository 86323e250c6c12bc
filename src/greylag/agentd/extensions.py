"""Extensions: the older contract's words for what goose keeps in its configuration."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from greylag.agentd.agent.extensions import CONFIGURED, DEFAULT_SECONDS
from greylag.agentd.agent.types import AgentError, AgentPort, ExtensionState, understood
from greylag.agentd.problems import RequestError, agent_failed, not_found
from greylag.common.agent_api import AgentExtension

_NO_EXTENSIONS = "The scripted agent has no extensions; install goose for them."
_OF_ALL = frozenset({"name", "type", "enabled", "description", "timeout", "bundled"})
_OF_SERVERS = _OF_ALL | {"envs", "env_keys", "available_tools"}
_KEPT = {
    "builtin": _OF_ALL | {"display_name"},
    "stdio": _OF_SERVERS | {"cmd", "args"},
    "streamable_http": _OF_SERVERS | {"uri", "headers"},
}
EXTENSION_MEMBERS = ("python_code", *sorted(frozenset[str]().union(*_KEPT.values())))
"""What the older contract's body may hold; each kind keeps its own part and refuses the rest."""


@dataclass(frozen=True, slots=True)
class ExtensionDefinition:
    """An extension as goose takes it.

    Attributes:
        extension: goose's own shape.
        enabled: whether new sessions are to have it.
        secrets: variables that goose has no place for in it; it finds them among its secrets.
    """

    extension: dict[str, Any]
    enabled: bool
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class ExtensionService:
    """Lists and changes extensions; a change is seen by sessions that are made after it.

    Every call may raise ``RequestError``: agent_unavailable or agent_refused; with the name of an
    extension that is not there, extension_not_found.
    """

    def __init__(self, agent: AgentPort) -> None:
        self._agent = agent

    async def all(self) -> list[AgentExtension]:
        """Return all extensions, sorted by name; none when the agent has no such thing."""
        return [extension for extension, _, _ in await self._keyed()]

    async def _keyed(self) -> list[tuple[AgentExtension, str, dict[str, Any]]]:
        """Return all extensions, sorted by name, each with goose's own key and entry for it."""
        try:
            result = await self._agent.call(f"{CONFIGURED}/list", {})
            with understood():
                found = [self._shown(entry) for entry in result["extensions"]]
                return sorted(found, key=lambda each: each[0].name)
        except AgentError as error:
            if error.unknown_method:
                return []
            raise agent_failed(error, _NO_EXTENSIONS) from error

    def _shown(self, entry: dict[str, Any]) -> tuple[AgentExtension, str, dict[str, Any]]:
        extension: dict[str, Any] = entry["extension"]
        server: dict[str, Any] = extension.get("server") or {}
        kind = str(extension.get("type", ""))
        if kind == "mcp":
            kind = "streamable_http" if server.get("type") == "http" else "stdio"
        name = str(extension.get("name") or server.get("name") or entry["configKey"])
        key = str(entry.get("configKey") or re.sub(r"\s+", "", name).lower())
        state = self._agent.extension_state(key) if entry["enabled"] else None
        shown = AgentExtension(
            name=name,
            display_name=extension.get("display_name"),
            type=kind,
            extension_type=kind,  # the older page reads this name
            enabled=bool(entry["enabled"]),
            timeout=extension.get("timeout"),
            cmd=server.get("command"),
            args=list(server.get("args") or []),
            uri=server.get("url"),
            bundled=extension.get("bundled"),
            description=extension.get("description"),
            env_keys=list(extension.get("envKeys") or []),
            state=None if state is None else state.status,
            state_detail=None if state is None else state.detail,
        )
        return shown, key, entry

    async def _find(self, name: str) -> tuple[AgentExtension, str, dict[str, Any]]:
        """Return the extension of that name (or of that key of goose's), its key and entry."""
        for found in await self._keyed():
            if name in {found[0].name, found[1]}:
                return found
        raise not_found("extension", name)

    async def add(self, definition: ExtensionDefinition) -> ExtensionState | None:
        """Add an extension, or replace the one of the same name; try it if it is enabled.

        Returns:
            How the trial went, or goes so far, None without one; what failed is kept all the same.
        """
        for key, value in definition.secrets.items():
            secret = {"key": key, "value": value, "isSecret": True}
            await self._call("_goose/unstable/config/upsert", secret)
        extension = definition.extension
        await self._change("add", {"extension": extension, "enabled": definition.enabled})
        if not definition.enabled:
            return None
        return await self._try(extension.get("name") or extension["server"]["name"])

    async def _try(self, name: str) -> ExtensionState:
        try:
            _, key, entry = await self._find(name)
            return await self._agent.try_extension({**entry, "configKey": key})
        except (RequestError, AgentError) as error:
            return ExtensionState("starting", f"It will be tried later: {error}")

    async def enable(self, name: str, *, enabled: bool) -> str:
        """Switch an extension on or off; return its name."""
        extension, key, _ = await self._find(name)
        await self._change("set-enabled", {"configKey": key, "enabled": enabled})
        self._agent.forget_extension(key)
        return extension.name

    async def remove(self, name: str) -> None:
        """Remove an extension that is switched off.

        Raises:
            RequestError: extension_enabled.
        """
        extension, key, _ = await self._find(name)
        if extension.enabled:
            reason = "Cannot remove enabled extension. Disable it first."
            raise RequestError("extension_enabled", reason, "Extension is enabled")
        await self._change("remove", {"configKey": key})
        self._agent.forget_extension(key)

    async def _change(self, action: str, params: dict[str, Any]) -> None:
        await self._call(f"{CONFIGURED}/{action}", params)

    async def _call(self, method: str, params: dict[str, Any]) -> None:
        try:
            await self._agent.call(method, params)
        except AgentError as error:
            raise agent_failed(error, _NO_EXTENSIONS) from error


def extension_definition(body: dict[str, Any]) -> ExtensionDefinition:
    """Return goose's description of the extension that the older contract describes in ``body``.

    Raises:
        RequestError: extension_invalid when something is missing, of the wrong kind, or nothing
            that goose keeps for this type.
    """
    name = _needed(body, "name")
    kind = _needed(body, "type")
    common: dict[str, Any] = {
        "description": _text(body, "description") or name,
        "timeout": _timeout(body),
        **({"bundled": True} if _flag(body, "bundled", default=False) else {}),
    }
    lost = [each for each, value in body.items() if value and each not in _KEPT.get(kind, body)]
    if lost:
        raise _wrong(f"goose keeps no {lost[0]} for the type {kind}: leave it out.")
    enabled = _flag(body, "enabled", default=True)
    secrets: dict[str, str] = {}
    match kind:
        case "builtin":
            shown = _text(body, "display_name")
            display = {} if shown is None else {"display_name": shown}
            own: dict[str, Any] = {"type": "builtin", "name": name, **common, **display}
            return ExtensionDefinition(own, enabled)
        case "stdio":
            server: dict[str, Any] = {
                "name": name,
                "command": _needed(body, "cmd"),
                "args": _texts(body, "args"),
                "env": _named(_pairs(body, "envs")),
            }
        case "streamable_http":
            server = {
                "type": "http",
                "name": name,
                "url": _needed(body, "uri"),
                "headers": _named(_pairs(body, "headers")),
            }
            secrets = _pairs(body, "envs")
        case _:
            former = {"sse", "frontend", "inline_python"}
            reason = "is no longer supported by goose" if kind in former else "is not known"
            advice = "use builtin, stdio or streamable_http"
            raise _wrong(f"The type {kind[:50]!r} {reason}: {advice}.", "Invalid extension type")
    keys = list(dict.fromkeys([*_texts(body, "env_keys"), *secrets]))
    if tools := _texts(body, "available_tools"):
        common["available_tools"] = tools
    own = {"type": "mcp", "server": server, "envKeys": keys, **common}
    return ExtensionDefinition(own, enabled, secrets)


def _needed(body: dict[str, Any], name: str) -> str:
    value = _text(body, name)
    if value is None:
        raise _wrong(f"{name} is required.", "Missing required field")
    return value


def _text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _wrong(f"{name} must be text.")
    return value


def _texts(body: dict[str, Any], name: str) -> list[str]:
    values = body.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _wrong(f"{name} must be a list of texts.")
    return values


def _pairs(body: dict[str, Any], name: str) -> dict[str, str]:
    values = body.get(name) or {}
    pairs = isinstance(values, dict) and all(isinstance(value, str) for value in values.values())
    if not pairs:
        raise _wrong(f"{name} must be an object of texts.")
    return values


def _named(pairs: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": key, "value": value} for key, value in pairs.items()]


def _flag(body: dict[str, Any], name: str, *, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(f"{name} must be true or false.")
    return value


def _timeout(body: dict[str, Any]) -> int:
    value = body.get("timeout")
    if value is None:
        return DEFAULT_SECONDS
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong("timeout must be a whole number of seconds.")
    return value


def _wrong(message: str, error: str = "Invalid field") -> RequestError:
    return RequestError("extension_invalid", message, error)
