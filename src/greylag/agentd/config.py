"""Settings of agentd, read once from environment variables."""

import json
import os
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar, get_type_hints

from yarl import URL

from greylag.agentd.agent.types import MODEL_RETRIES, MODEL_TIMEOUT
from greylag.agentd.settings import GOOSE_SETTINGS, SettingValueError
from greylag.common.net import Proxy, is_loopback, proxy_variables

LogFormat = Literal["json", "console"]

_MIB = 1024 * 1024
_MAX_PORT = 65535
_LONGEST_PAUSE = 30
_LONGEST_SOCKET = 100  # bytes; unix(7)
_PLAIN_EXECD = (sys.executable, "-I", "-m", "greylag.execd")

_T = TypeVar("_T")


class AgentdConfigError(Exception):
    """A setting is missing or wrong; the message says which one, and what it should be."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that must not show in a log, an error or a repr."""

    value: str = field(repr=False)


def _from(name: str, parse: Callable[[str, str], _T]) -> Callable[[Mapping[str, str]], _T | None]:
    """Return what reads a variable, ``None`` for an empty one too, and has its name and value
    parsed.
    """

    def read(environ: Mapping[str, str]) -> _T | None:
        value = environ.get(name, "").strip()
        return parse(name, value) if value else None

    return read


# Each reads one variable's value, which is not empty, or raises what is wrong with it.


def _text(_name: str, value: str) -> str:
    return value


def _listed(_name: str, value: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in value.split(",") if one.strip())


def _command(name: str, value: str) -> tuple[str, ...]:
    try:
        words = json.loads(value)
    except (ValueError, RecursionError):
        words = None
    if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
        return tuple(words)
    raise AgentdConfigError(f"{name} must be a program and its arguments as a JSON list.")


def _socket(name: str, value: str) -> Path:
    path = Path(value)
    if not path.is_absolute() or len(os.fsencode(path)) > _LONGEST_SOCKET:
        raise AgentdConfigError(
            f"{name} must be an absolute path of at most {_LONGEST_SOCKET} bytes."
        )
    return path


def _switch(name: str, value: str) -> bool:
    if value not in {"0", "1"}:
        raise AgentdConfigError(f"{name} must be 1 or 0, not {value!r}.")
    return value == "1"


def _secret(_name: str, value: str) -> Secret:
    return Secret(value)


def _integer(name: str, value: str, *, least: int = 1024, most: int | None = None) -> int:
    if not value.isascii() or not value.isdigit():
        raise AgentdConfigError(f"{name} must be a whole number, not {value!r}.")
    number = int(value)
    if number < least or (most is not None and number > most):
        upper = "" if most is None else f" and at most {most}"
        raise AgentdConfigError(f"{name} must be at least {least}{upper}, not {number}.")
    return number


def _seconds(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise AgentdConfigError(f"{name} must be seconds, not {value!r}.") from error
    if not 0 < number < float("inf"):
        raise AgentdConfigError(f"{name} must be more than 0 seconds, not {value}.")
    return number


def _pauses(name: str, value: str) -> tuple[float, ...]:
    try:
        pauses = tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise AgentdConfigError(f"{name} must be seconds, as 1,2,4, not {value!r}.") from error
    if not all(0 <= pause <= _LONGEST_PAUSE for pause in pauses):
        raise AgentdConfigError(f"{name}: each pause is from 0 to {_LONGEST_PAUSE} seconds.")
    return pauses


def _url(name: str, value: str) -> str:
    try:
        url = URL(value)
    except ValueError:  # a port or a name that cannot be
        url = URL()
    if url.scheme not in {"http", "https"} or not url.host:
        raise AgentdConfigError(
            f"{name} must be an http or https address, as https://api.openai.com."
        )
    if url.user is not None or url.password is not None:
        raise AgentdConfigError(f"{name} must not hold a key; GREYLAG_MODEL_KEY is for that.")
    if url.path.rstrip("/").endswith("/completions"):
        raise AgentdConfigError(f"{name} must be the API's own address, without its calls' paths.")
    return value.rstrip("/")


def _proxies(environ: Mapping[str, str]) -> Mapping[str, str]:
    found = proxy_variables(environ)
    for name, value in found.items():
        if name != "NO_PROXY":
            try:
                Proxy.parse(value)
            except ValueError as error:
                raise AgentdConfigError(f"{name} {error}.") from None
    return MappingProxyType(found)


def _check_authorities(path: str | None) -> None:
    """Refuse a file that holds no certificate; OpenSSL would go on without a word."""
    if path:
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:  # SSLError is one
            raise AgentdConfigError(f"SSL_CERT_FILE: {path} holds no certificates.") from error


def _log_format(name: str, value: str) -> str:
    if value not in {"json", "console"}:
        raise AgentdConfigError(f"{name} must be json or console, not {value!r}.")
    return value


def _goose_setting(name: str, value: str) -> str:
    try:
        GOOSE_SETTINGS[name].parse(value)
    except SettingValueError as error:
        raise AgentdConfigError(f"{name}: {error}") from error
    return value


def _goose_settings(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Collect the contract settings that the environment fixes (the model has its own)."""
    others = (name for name in GOOSE_SETTINGS if name != "GOOSE_MODEL")
    found = {name: _from(name, _goose_setting)(environ) for name in others}
    return MappingProxyType({name: value for name, value in found.items() if value is not None})


@dataclass(frozen=True, slots=True)
class AgentdSettings:
    """Everything agentd is told at start.

    Attributes:
        folder: the volume; agentd makes workspace/, home/, tmp/ and state/ in it.
        host: address to listen on; anything but loopback needs a token.
        port: TCP port to listen on; 0 takes any free one.
        token: what clients send as a bearer token; None: no sign-in (loopback only).
        execd: what runs execd, as a child of ours, with a sandbox around it or without.
        execd_socket: where an execd listens that another runs; None: run our own.
        goose: path of goose, or ``scripted``; None: find it.
        model_url: base URL of an OpenAI-compatible provider; None: the built-in scripted model.
        model_key: the provider's key; it never leaves agentd.
        model_retries: seconds to hold back the first, second, ... passing failure of a model call.
        model_timeout: seconds for which the provider may be silent.
        proxies: the variables that name proxies, by which the provider is reached.
        models: the names of the models that may be chosen, the first one unless another is: one
            alone is fixed; none when the environment does not say.
        goose_settings: contract settings (GOOSE_MODE, ...) that the environment fixes.
        confirmation_timeout: seconds that a tool confirmation waits before it is declined.
        turn_journal_limit: most bytes that one turn may write to its journal.
        journal_limit: most bytes for all journals; the oldest ended turns go first.
        snapshot_limit: most bytes for the workspace's states; the oldest go first.
        message_limit: most bytes (UTF-8) of one message.
        git_hosts: hosts that git may be led to though their addresses are not public.
        environment_id: GREYLAG_ENVIRONMENT, inherited by every descendant.
        path_prefix: what a proxy in front routes by and passes on; None for nothing.
        legacy_api: whether pages of any origin may call, and the token may come as older clients
            can send it; needs a token.
        log_format: ``json`` lines, or ``console`` for people.
    """

    folder: Path
    host: Annotated[str, _from("GOOSE_API_HOST", _text)] = "127.0.0.1"
    port: Annotated[int, _from("GOOSE_API_PORT", partial(_integer, least=0, most=_MAX_PORT))] = 3001
    token: Annotated[Secret | None, _from("GREYLAG_AGENT_TOKEN", _secret)] = None
    execd: Annotated[tuple[str, ...], _from("GREYLAG_EXECD", _command)] = _PLAIN_EXECD
    execd_socket: Annotated[Path | None, _from("GREYLAG_EXECD_SOCKET", _socket)] = None
    goose: Annotated[str | None, _from("GREYLAG_GOOSE", _text)] = None
    model_url: Annotated[str | None, _from("GREYLAG_MODEL_URL", _url)] = None
    model_key: Annotated[Secret | None, _from("GREYLAG_MODEL_KEY", _secret)] = None
    model_retries: Annotated[tuple[float, ...], _from("GREYLAG_MODEL_RETRIES", _pauses)] = (
        MODEL_RETRIES
    )
    model_timeout: Annotated[float, _from("GREYLAG_MODEL_TIMEOUT", _seconds)] = MODEL_TIMEOUT
    proxies: Annotated[Mapping[str, str], _proxies] = field(default_factory=dict, repr=False)
    models: Annotated[tuple[str, ...], _from("GREYLAG_MODEL", _listed)] = ()
    goose_settings: Annotated[Mapping[str, str], _goose_settings] = field(
        default_factory=lambda: MappingProxyType({})
    )
    confirmation_timeout: Annotated[float, _from("GREYLAG_CONFIRMATION_TIMEOUT", _seconds)] = 600.0
    turn_journal_limit: Annotated[int, _from("GREYLAG_TURN_JOURNAL_LIMIT", _integer)] = 64 * _MIB
    journal_limit: Annotated[int, _from("GREYLAG_JOURNAL_LIMIT", _integer)] = 1024 * _MIB
    snapshot_limit: Annotated[int, _from("GREYLAG_SNAPSHOT_LIMIT", _integer)] = 2048 * _MIB
    message_limit: Annotated[int, _from("GREYLAG_MESSAGE_LIMIT", _integer)] = _MIB
    git_hosts: Annotated[tuple[str, ...], _from("GREYLAG_GIT_HOSTS", _listed)] = ()
    environment_id: Annotated[str | None, _from("GREYLAG_ENVIRONMENT", _text)] = None
    path_prefix: Annotated[str | None, _from("GREYLAG_PATH_PREFIX", _text)] = None
    legacy_api: Annotated[bool, _from("GREYLAG_LEGACY_API", _switch)] = False
    log_format: Annotated[LogFormat, _from("GREYLAG_LOG_FORMAT", _log_format)] = "json"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings from ``environ`` (as ``os.environ``).

        Raises:
            AgentdConfigError: a variable is missing or has a value that makes no sense.
        """
        hints = get_type_hints(cls, include_extras=True)
        del hints["folder"]
        given = {name: hint.__metadata__[0](environ) for name, hint in hints.items()}
        folder = _from("GREYLAG_AGENT_FOLDER", _text)(environ)
        if folder is None:
            raise AgentdConfigError(
                "GREYLAG_AGENT_FOLDER is not set: it names the folder of the environment."
            )
        _check_authorities(environ.get("SSL_CERT_FILE"))
        named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        settings = cls(Path(folder).absolute(), **named)
        settings.check()
        return settings

    def check(self) -> None:
        """Refuse settings that would open the agent to others without a token.

        Raises:
            AgentdConfigError: there is none, and the host is not loopback, or any page may call.
        """
        if self.token is None and not is_loopback(self.host):
            raise AgentdConfigError(
                f"GOOSE_API_HOST={self.host} is reachable from other machines: "
                "set GREYLAG_AGENT_TOKEN, or listen on 127.0.0.1."
            )
        if self.token is None and self.legacy_api:
            raise AgentdConfigError(
                "GREYLAG_LEGACY_API lets pages of any origin call: set GREYLAG_AGENT_TOKEN."
            )
