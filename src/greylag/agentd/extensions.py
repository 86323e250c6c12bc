"""Extensions: the older contract's words for what goose keeps in its configuration."""

import re
from dataclasses import dataclass, field
from typing import Any

from greylag.agentd.agent.types import AgentError, AgentPort
from greylag.agentd.problems import RequestError, agent_failed

_PREFIX = "_goose/unstable/config/extensions"
_SPACE = re.compile(r"\s+")
_NO_EXTENSIONS = "The scripted agent has no extensions; install goose for them."
_DEFAULT_TIMEOUT = 300
_UNSUPPORTED = frozenset({"sse", "frontend", "inline_python"})


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension as goose has it.

    Attributes:
        name: its name.
        kind: ``builtin``, ``platform``, ``stdio`` or ``streamable_http``.
        enabled: whether new sessions have it.
        config_key: goose's own key for it.
        command: program that is run, for ``stdio``.
        arguments: its arguments.
        uri: address, for ``streamable_http``.
        display_name: name for people, if it has one.
        description: what it does, if it says so.
        timeout: seconds that one call may take, if it says so.
        env_keys: names of its secret variables; the values are never shown.
    """

    name: str
    kind: str
    enabled: bool
    config_key: str
    command: str | None = None
    arguments: list[str] = field(default_factory=list)
    uri: str | None = None
    display_name: str | None = None
    description: str | None = None
    timeout: int | None = None
    env_keys: list[str] = field(default_factory=list)


class ExtensionService:
    """Lists and changes extensions; a change is seen by sessions that are made after it."""

    def __init__(self, agent: AgentPort) -> None:
        self._agent = agent

    async def all(self) -> list[Extension]:
        """Return all extensions, sorted by name; none when the agent has no such thing.

        Raises:
            RequestError: agent_unavailable or agent_refused.
        """
        try:
            result = await self._agent.call(f"{_PREFIX}/list", {})
        except AgentError as error:
            if error.unknown_method:
                return []
            raise agent_failed(error, _NO_EXTENSIONS) from error
        return sorted(map(_extension, result["extensions"]), key=lambda each: each.name)

    async def find(self, name: str) -> Extension:
        """Return the extension of that name (or goose's key for it).

        Raises:
            RequestError: extension_not_found, agent_unavailable or agent_refused.
        """
        for extension in await self.all():
            if name in {extension.name, extension.config_key}:
                return extension
        raise RequestError(
            "extension_not_found", "Extension not found", f"There is no extension {name[:100]!r}."
        )

    async def add(self, definition: dict[str, Any]) -> None:
        """Add an extension, or replace the one of the same name, and enable it.

        Args:
            definition: goose's own shape, from ``extension_definition``.

        Raises:
            RequestError: agent_unavailable or agent_refused.
        """
        await self._change("add", {"extension": definition, "enabled": True})

    async def enable(self, name: str, *, enabled: bool) -> Extension:
        """Switch an extension on or off.

        Raises:
            RequestError: extension_not_found, agent_unavailable or agent_refused.
        """
        extension = await self.find(name)
        params = {"configKey": extension.config_key, "enabled": enabled}
        await self._change("set-enabled", params)
        return extension

    async def remove(self, name: str) -> None:
        """Remove an extension that is switched off.

        Raises:
            RequestError: extension_not_found, extension_enabled, agent_unavailable, agent_refused.
        """
        extension = await self.find(name)
        if extension.enabled:
            raise RequestError(
                "extension_enabled",
                "Extension is enabled",
                "Cannot remove enabled extension. Disable it first.",
            )
        await self._change("remove", {"configKey": extension.config_key})

    async def _change(self, action: str, params: dict[str, Any]) -> None:
        try:
            await self._agent.call(f"{_PREFIX}/{action}", params)
        except AgentError as error:
            raise agent_failed(error, _NO_EXTENSIONS) from error


def _extension(entry: dict[str, Any]) -> Extension:
    extension: dict[str, Any] = entry["extension"]
    server: dict[str, Any] = extension.get("server") or {}
    kind = str(extension.get("type", ""))
    if kind == "mcp":
        kind = "streamable_http" if server.get("type") == "http" else "stdio"
    name = str(extension.get("name") or server.get("name") or entry["configKey"])
    return Extension(
        name=name,
        kind=kind,
        enabled=bool(entry["enabled"]),
        config_key=str(entry.get("configKey") or _SPACE.sub("", name).lower()),
        command=server.get("command"),
        arguments=list(server.get("args") or []),
        uri=server.get("url"),
        display_name=extension.get("display_name"),
        description=extension.get("description"),
        timeout=extension.get("timeout"),
        env_keys=list(extension.get("envKeys") or []),
    )


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
            return {"type": "builtin", "name": name, **common, **_display_name(body)}
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
            reason = "is no longer supported by goose" if kind in _UNSUPPORTED else "is not known"
            raise RequestError(
                "extension_invalid",
                "Invalid extension type",
                f"The type {kind[:50]!r} {reason}: use builtin, stdio or streamable_http.",
            )
    return {"type": "mcp", "server": server, "envKeys": _texts(body, "env_keys"), **common}


def _needed(body: dict[str, Any], name: str) -> str:
    value = _text(body, name)
    if value is None:
        raise RequestError("extension_invalid", "Missing required field", f"{name} is required.")
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
    if not isinstance(values, dict):
        raise _wrong(f"{name} must be an object of texts.")
    if not all(isinstance(value, str) for value in values.values()):
        raise _wrong(f"{name} must be an object of texts.")
    return [{"name": key, "value": value} for key, value in values.items()]


def _timeout(body: dict[str, Any]) -> int:
    value = body.get("timeout")
    if value is None:
        return _DEFAULT_TIMEOUT
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong("timeout must be a whole number of seconds.")
    return value


def _display_name(body: dict[str, Any]) -> dict[str, str]:
    name = _text(body, "display_name")
    return {} if name is None else {"display_name": name}


def _wrong(message: str) -> RequestError:
    return RequestError("extension_invalid", "Invalid field", message)
