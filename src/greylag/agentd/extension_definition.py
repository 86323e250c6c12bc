"""From an extension as the older contract describes it to goose's own description."""

from typing import Any

from greylag.agentd.problems import RefusedError

_DEFAULT_TIMEOUT = 300
_UNSUPPORTED = frozenset({"sse", "frontend", "inline_python"})


def extension_definition(body: dict[str, Any]) -> dict[str, Any]:
    """Return goose's description of the extension in the body of a request.

    Raises:
        RefusedError: extension_invalid when something is missing or of the wrong kind.
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
            raise RefusedError(
                "extension_invalid",
                "Invalid extension type",
                f"The type {kind[:50]!r} {reason}: use builtin, stdio or streamable_http.",
            )
    return {"type": "mcp", "server": server, "envKeys": _texts(body, "env_keys"), **common}


def _needed(body: dict[str, Any], name: str) -> str:
    value = _text(body, name)
    if value is None:
        raise RefusedError("extension_invalid", "Missing required field", f"{name} is required.")
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


def _wrong(message: str) -> RefusedError:
    return RefusedError("extension_invalid", "Invalid field", message)
