"""The agent as the rest of agentd sees it: which program it is, what it is given, what it does."""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from greylag.common.agent_api import Decision
from greylag.common.net import proxy_variables

AgentKind = Literal["goose", "scripted"]
AgentReadiness = Literal["starting", "ready", "failed"]
ExtensionStatus = Literal["starting", "ready", "failed"]
Settlement = Decision | Literal["cancelled"]
"""How a question whether a tool may run is settled: by the user, or with its turn."""

SCRIPTED = "scripted"
_MOST_WORDS = 500
_UNKEPT = re.compile(
    r"error returned from database|transaction depth|Failed to persist|os error (?:5|28|30|122)\)"
)
"""goose (1.52) when its records cannot be written. It never closes the connection that met a full
disk within a transaction, and fails from then on each time that it comes upon it, full or not."""
_INHERITED = frozenset({"PATH", "LANG", "TERM", "TZ"})
_AUTHORITIES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)
METHOD_NOT_FOUND = -32601
SESSION_UNKNOWN = -32002
CANCEL_PATIENCE = 4.0
"""How many seconds the agent has to heed a cancel, before it is ended by force."""
GIT_CONFIG = ".config/greylag/git"
"""Below HOME, our configuration of git, which includes the system's own."""
MODEL_RETRIES = (1.0, 2.0, 4.0)
"""Seconds to hold back the first, second and third failure of a model call that may pass."""
MODEL_TIMEOUT = 600.0
"""Seconds for which the provider may be silent, before an answer and within it."""


class AgentError(Exception):
    """Base of every error that the agent side of agentd raises.

    Attributes:
        unknown_method: whether the agent has no such method; the scripted one lacks goose's own.
    """

    unknown_method: bool = False


class AgentUnavailableError(AgentError):
    """No agent process is ready to take work; the message says why in plain words."""


class SessionStuckError(AgentUnavailableError):
    """A session is not opened, as its extensions do not start; see ``AgentPort.reopen_session``."""


class AgentDiedError(AgentError):
    """The agent process ended (or its pipe broke) while an answer was awaited."""


class AgentStarvedError(AgentDiedError):
    """It ended so for want of memory, as far as can be told."""


class AgentRefusedError(AgentError):
    """The agent answered a request with a JSON-RPC error.

    Attributes:
        code: the JSON-RPC error code.
        message: the agent's own short text.
        data: the error's ``data`` member, whatever the agent put there, or None.
        unkept: whether its disk did not take what it keeps, or it keeps nothing more since then.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message
        self.data = data
        self.unknown_method = code == METHOD_NOT_FOUND
        self.unkept = _UNKEPT.search(self.words) is not None

    @property
    def words(self) -> str:
        """The agent's message with its details, on one line of bounded length."""
        try:
            details = self.data if isinstance(self.data, str) else json.dumps(self.data)
        except RecursionError:
            details = "details that are nested too deep to show"
        whole = self.message if self.data is None else f"{self.message}: {details}"
        line = " ".join(whole.split())
        return "".join(one for one in line if one.isprintable())[:_MOST_WORDS]


@contextmanager
def understood() -> Iterator[None]:
    """Read the agent's answers, which may be anything; to be used where they are taken apart.

    Raises:
        AgentRefusedError: one is not of the form that it must have.
    """
    try:
        yield
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:
        raise AgentRefusedError(0, "the agent's answer is not of the form it must have") from error


class HistoryFixedError(AgentError):
    """The agent's history cannot be cut there; the message says why in one plain sentence."""


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """Which program is the agent, and how it is started.

    Attributes:
        kind: ``goose`` for the real one, ``scripted`` for the built-in stand-in.
        argv: program and arguments; it speaks ACP on its stdin and stdout.
    """

    kind: AgentKind
    argv: tuple[str, ...]


def find_agent(setting: str | None, environ: Mapping[str, str]) -> AgentCommand:
    """Return how the agent is started.

    Args:
        setting: GREYLAG_GOOSE: a path or a program name, or ``scripted``; None to look next to
            this Python first, then on PATH, and to take the scripted agent when there is none.
        environ: the environment variables (PATH counts).

    Raises:
        AgentUnavailableError: ``setting`` names no program that can be run.
    """
    path = environ.get("PATH", "")
    if setting == SCRIPTED:
        return _scripted()
    if setting is not None:
        found = shutil.which(setting, path=path)
        if found is None:
            raise AgentUnavailableError(f"GREYLAG_GOOSE={setting} is no program that can be run.")
        return _goose(found)
    beside = shutil.which("goose", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("goose", path=path)
    return _goose(found) if found is not None else _scripted()


def name_agent(setting: str | None) -> AgentCommand:
    """Return how the agent is started where we cannot look for it: ``goose`` on its PATH.

    Args:
        setting: as for ``find_agent``.
    """
    return (
        _scripted() if setting == SCRIPTED else AgentCommand("goose", (setting or "goose", "acp"))
    )


def _goose(program: str) -> AgentCommand:
    return AgentCommand("goose", (str(Path(program).absolute()), "acp"))


def _scripted() -> AgentCommand:
    # -I: the workspace is the current folder, and must not be searched for modules.
    return AgentCommand("scripted", (sys.executable, "-I", "-m", "greylag.agentd.agent.scripted"))


@dataclass(frozen=True, slots=True)
class ModelProvider:
    """An OpenAI-compatible model provider.

    Attributes:
        url: base URL, as ``https://api.openai.com``; without a path its ``/v1`` is meant.
        key: the provider's key, sent as a bearer token; None for a provider that wants none.
        proxies: the variables that name proxies (``proxy_variables``).
        authorities: certificates (PEM) of whom to trust; "": whom this process trusts.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    authorities: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class AgentSetup:
    """Everything the agent process is given.

    Attributes:
        workspace: the folder that the agent works in (must exist).
        home: its HOME (must exist, writable).
        tmp: its TMPDIR (must exist, writable).
        model: the model's name; None leaves it to the agent's stored settings.
        provider: where model calls go; None means the built-in scripted model.
        model_retries: seconds to hold back the first, second, ... passing failure of a model call.
        model_timeout: seconds for which the provider may be silent.
        settings: further ``GOOSE_*`` settings for its environment, as GOOSE_MODE; they win over
            stored ones.
        defaults: settings that are stored in the agent when it has none of that name stored.
        environment_id: GREYLAG_ENVIRONMENT, inherited by every descendant; None leaves it out.
    """

    workspace: Path
    home: Path
    tmp: Path
    model: str | None = None
    provider: ModelProvider | None = None
    model_retries: tuple[float, ...] = MODEL_RETRIES
    model_timeout: float = MODEL_TIMEOUT
    settings: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(
        default_factory=lambda: {"GOOSE_MODEL": "gpt-4o", "GOOSE_MODE": "smart_approve"}
    )
    environment_id: str | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """To be made before anything is started in them: what runs there can remove them."""
        return self.workspace, self.home, self.tmp


@dataclass(frozen=True, slots=True)
class AgentState:
    """How the agent is doing now.

    Attributes:
        kind: which agent it is.
        status: ``ready`` only after initialize and session/new have worked on this process.
        version: the agent's own version, None until it told.
        detail: one plain sentence for people.
    """

    kind: AgentKind
    status: AgentReadiness
    version: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class ExtensionState:
    """How an extension has fared when it was started last.

    Attributes:
        status: ``starting``, ``ready`` or ``failed``.
        detail: one plain sentence, with the server's last words when it failed.
        hung: whether it runs on without having finished its handshake.
    """

    status: ExtensionStatus
    detail: str
    hung: bool = False


@dataclass(frozen=True, slots=True)
class PermissionRequest:
    """The agent asks whether it may run one tool call, once.

    Attributes:
        tool_call_id: the id of the tool_call update that came before, which has the tool's name.
        title: what the agent calls the call.
        arguments: the call's arguments as the model gave them.
        lasting: whether the agent takes an answer for further calls of the tool, too.
    """

    tool_call_id: str
    title: str
    arguments: dict[str, Any]
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class PromptResult:
    """How a prompt ended.

    Attributes:
        stop_reason: ``end_turn``, ``cancelled``, ``max_tokens``, ...; short.
        usage: token counts as the agent reported them, few; None if it did not.
    """

    stop_reason: str
    usage: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """Why a model call failed, as the provider itself told the relay.

    Attributes:
        status: the provider's HTTP status; None when it could not be reached, fell silent or
            broke its answer off.
        message: what the provider said, or what happened, in plain words.
        final: whether trying again is of no use, or makes it worse.
    """

    status: int | None
    message: str
    final: bool = False


class TurnSink(Protocol):
    """Receives what happens in one turn.

    ``update`` is called strictly in order, one at a time; a slow sink slows the agent down.
    ``permission`` runs in a task of its own, and is cancelled when the turn is to end.
    """

    async def update(self, update: dict[str, Any]) -> None:
        """Take the update of a ``session/update`` or ``_goose/unstable/session/update``."""

    async def permission(self, request: PermissionRequest) -> Settlement:
        """Return what the user decided; may wait as long as it needs."""
        ...


class AgentPort(Protocol):
    """What agentd's server needs of the agent: one process, shared by all sessions (see ``Agent``).

    Every call may raise ``AgentError``: ``AgentUnavailableError`` when no agent is ready,
    ``AgentDiedError`` when it ends meanwhile, ``AgentRefusedError`` when it answers with an error.
    """

    @property
    def state(self) -> AgentState:
        """How the agent is doing now."""
        ...

    async def wait_ready(self, timeout: float) -> None:  # noqa: ASYNC109 - part of the meaning: how long a caller is willing to wait
        """Return when the agent is ready, at once if it is; wait at most ``timeout`` seconds."""

    async def new_session(self, title: str) -> str:
        """Make a session in the agent and return the agent's id for it."""
        ...

    async def configure(self, agent_session_id: str, options: Mapping[str, str]) -> None:
        """Have a session work with these options, ``mode`` and ``model``, from now on.

        May raise ``SessionStuckError``.
        """

    async def reopen_session(self, agent_session_id: str) -> str:
        """Make a session that knows what a stuck one does, and return its id.

        It has the extensions that are enabled now, and waits for none. May raise
        ``HistoryFixedError``.
        """
        ...

    async def prompt(self, agent_session_id: str, text: str, sink: TurnSink) -> PromptResult:
        """Give the agent a message, and the sink all that answers it.

        The session must have no other prompt (``AgentRefusedError``). What the sink raises is
        raised here. Cancelling the calling task cancels the prompt in the agent too.
        """
        ...

    async def cancel(self, agent_session_id: str) -> None:
        """Ask the running prompt of a session to end; returns at once.

        It ends with stop_reason ``cancelled``, whatever the model does.
        """

    def give_up(self, why: str = "did not answer") -> None:
        """End the agent's process, for the reason ``why``; another takes its place."""

    def model_failure(self, agent_session_id: str) -> ModelFailure | None:
        """Return how the last model call of a session's last prompt failed, None if it did not."""
        ...

    async def forget_session(self, agent_session_id: str) -> None:
        """Let the agent put a session away."""

    async def message_count(self, agent_session_id: str) -> int:
        """Return how many messages a session has: where in its history the next turn begins."""
        ...

    async def cut_session(self, agent_session_id: str, kept: int) -> str:
        """Make a session that knows only another's first ``kept`` messages, and return its id.

        It is the same one when that has no more. May raise ``HistoryFixedError``.
        """
        ...

    async def replace_session(self, old: str, new: str) -> None:
        """Put a session away whose place another has taken; what its tools started goes on."""

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Call one of goose's own methods (``_goose/unstable/...``) and return its result.

        What reads and changes its configuration works while no agent is ready, too.
        """

    async def try_extension(self, entry: dict[str, Any]) -> ExtensionState:
        """Start an extension of goose's list once; return how that went after some seconds."""
        ...

    def extension_state(self, key: str) -> ExtensionState | None:
        """Return how an extension has fared, None when it was not started yet."""
        ...

    def forget_extension(self, key: str) -> None:
        """Forget how an extension has fared: it is switched off, or gone."""


def harmless_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return PATH, LANG, LC_*, TERM and TZ of our own environment, which holds secrets too."""
    return {k: v for k, v in environ.items() if k in _INHERITED or k.startswith("LC_")}


def base_environment(setup: AgentSetup, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what all that is run in the workspace has over execd's own variables: its folders, the
    environment's name, git's configuration, over which the user's own wins, and the way out.

    Args:
        setup: the folders and the name.
        environ: our own environment, of which the way out is taken and nothing secret.
    """
    named = {"GREYLAG_ENVIRONMENT": setup.environment_id} if setup.environment_id else {}
    return {
        **named,
        "HOME": str(setup.home),
        "TMPDIR": str(setup.tmp),
        "GIT_CONFIG_SYSTEM": str(setup.home / GIT_CONFIG),
        **_tools_way_out(environ),
    }


def _tools_way_out(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what tools need to reach the world as agentd does: authorities, and proxies.

    A proxy that wants a password is left out: tools would have it too.
    """
    found = proxy_variables(environ)
    excepted = found.pop("NO_PROXY", "")
    proxies = {name: url for name, url in found.items() if "@" not in url}
    if proxies:
        proxies["NO_PROXY"] = ",".join(filter(None, (excepted, "localhost,127.0.0.1,::1")))
    # Some programs know the small names only.
    proxies |= {name.lower(): value for name, value in proxies.items()}
    bundle = environ.get("SSL_CERT_FILE")
    return proxies | (dict.fromkeys(_AUTHORITIES, bundle) if bundle else {})
