"""Extensions: the older contract's words for what goose keeps in its configuration."""

import re
from typing import Any

from greylag.agentd.agent.types import AgentError, AgentPort
from greylag.agentd.problems import RequestError, agent_failed, not_found
from greylag.common.agent_api import AgentExtension

_PREFIX = "_goose/unstable/config/extensions"
_NO_EXTENSIONS = "The scripted agent has no extensions; install goose for them."
_DEFAULT_TIMEOUT = 300


class ExtensionService:
    """Lists and changes extensions; a change is seen by sessions that are made after it.

    Every call may raise ``RequestError``: agent_unavailable or agent_refused; with the name of an
    extension that is not there, extension_not_found.
    """

    def __init__(self, agent: AgentPort) -> None:
        self._agent = agent

    async def all(self) -> list[AgentExtension]:
        """Return all extensions, sorted by name; none when the agent has no such thing."""
        return [extension for extension, _ in await self._keyed()]

    async def _keyed(self) -> list[tuple[AgentExtension, str]]:
        """Return all extensions, sorted by name, each with goose's own key for it."""
        try:
            result = await self._agent.call(f"{_PREFIX}/list", {})
        except AgentError as error:
            if error.unknown_method:
                return []
            raise agent_failed(error, _NO_EXTENSIONS) from error
        return sorted(map(_extension, result["extensions"]), key=lambda each: each[0].name)

    async def _find(self, name: str) -> tuple[AgentExtension, str]:
        """Return the extension of that name (or of that key of goose's), and its key."""
        for extension, key in await self._keyed():
            if name in {extension.name, key}:
                return extension, key
        raise not_found("extension", name)

    async def add(self, definition: dict[str, Any]) -> None:
        """Add an extension, or replace the one of the same name, and enable it.

        Args:
            definition: goose's own shape, from ``extension_definition``.
        """
        await self._change("add", {"extension": definition, "enabled": True})

    async def enable(self, name: str, *, enabled: bool) -> str:
        """Switch an extension on or off; return its name."""
        extension, key = await self._find(name)
        await self._change("set-enabled", {"configKey": key, "enabled": enabled})
        return extension.name

    async def remove(self, name: str) -> None:
        """Remove an extension that is switched off.

        Raises:
            RequestError: extension_enabled.
        """
        extension, key = await self._find(name)
        if extension.enabled:
            reason = "Cannot remove enabled extension. Disable it first."
            raise RequestError("extension_enabled", reason, "Extension is enabled")
        await self._change("remove", {"configKey": key})

    async def _change(self, action: str, params: dict[str, Any]) -> None:
        try:
            await self._agent.call(f"{_PREFIX}/{action}", params)
        except AgentError as error:
            raise agent_failed(error, _NO_EXTENSIONS) from error


def _extension(entry: dict[str, Any]) -> tuple[AgentExtension, str]:
    extension: dict[str, Any] = entry["extension"]
    server: dict[str, Any] = extension.get("server") or {}
    kind = str(extension.get("type", ""))
    if kind == "mcp":
        kind = "streamable_http" if server.get("type") == "http" else "stdio"
    name = str(extension.get("name") or server.get("name") or entry["configKey"])
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
        bundled=None,
        description=extension.get("description"),
        env_keys=list(extension.get("envKeys") or []),
    )
    return shown, str(entry.get("configKey") or re.sub(r"\s+", "", name).lower())


def extension_definition(body: dict[str, Any]) -> dict[str, Any]:
    """Return goose's description of the extension that the older contract describes in ``body``.

    Raises:
        RequestError: extension_invalid when something is missing or of the wrong kind.
    """
    name = _needed(body, "name")
    kind = _needed(body, "type")
    common = {"description": _text(body, "description") or name, "timeout": _timeout(body)}
    match kind:
        case "builtin":
            shown = _text(body, "display_name")
            display = {} if shown is None else {"display_name": shown}
            return {"type": "builtin", "name": name, **common, **display}
        case "stdio":
            server: dict[str, Any] = {
                "name": name,
                "command": _needed(body, "cmd"),
                "args": _texts(body, "args"),
                "env": _pairs(body, "envs"),
            }
        case "streamable_http":
            server = {
                "type": "http",
                "name": name,
                "url": _needed(body, "uri"),
                "headers": _pairs(body, "headers"),
            }
        case _:
            former = {"sse", "frontend", "inline_python"}
            reason = "is no longer supported by goose" if kind in former else "is not known"
            advice = "use builtin, stdio or streamable_http"
            raise _wrong(f"The type {kind[:50]!r} {reason}: {advice}.", "Invalid extension type")
    return {"type": "mcp", "server": server, "envKeys": _texts(body, "env_keys"), **common}


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


def _pairs(body: dict[str, Any], name: str) -> list[dict[str, str]]:
    values = body.get(name) or {}
    pairs = isinstance(values, dict) and all(isinstance(value, str) for value in values.values())
    if not pairs:
        raise _wrong(f"{name} must be an object of texts.")
    return [{"name": key, "value": value} for key, value in values.items()]


def _timeout(body: dict[str, Any]) -> int:
    value = body.get("timeout")
    if value is None:
        return _DEFAULT_TIMEOUT
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong("timeout must be a whole number of seconds.")
    return value


def _wrong(message: str, error: str = "Invalid field") -> RequestError:
    return RequestError("extension_invalid", message, error)
