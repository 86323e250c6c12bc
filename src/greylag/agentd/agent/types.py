"""What passes between a turn and the agent: values and the protocol of a turn's sink."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

AgentKind = Literal["goose", "scripted"]
AgentStatus = Literal["starting", "ready", "failed"]
Decision = Literal["allow_once", "reject_once", "cancelled"]

MODEL_RETRIES = (1.0, 2.0, 4.0)
"""Seconds to hold back the first, second and third failure of a model call that may pass."""


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """Which program is the agent, and how it is started.

    Attributes:
        kind: `goose` for the real one, `scripted` for the built-in stand-in.
        argv: program and arguments; it speaks ACP on its stdin and stdout.
    """

    kind: AgentKind
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelProvider:
    """An OpenAI-compatible model provider.

    Attributes:
        url: base URL, as `https://api.openai.com`; `/v1/...` is appended by the agent.
        key: the provider's key, sent as a bearer token; None for a provider that wants none.
    """

    url: str
    key: str | None = field(default=None, repr=False)


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
        settings: further `GOOSE_*` settings for its environment, as GOOSE_MODE; they win over
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
    settings: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(
        default_factory=lambda: {"GOOSE_MODEL": "gpt-4o", "GOOSE_MODE": "smart_approve"}
    )
    environment_id: str | None = None


@dataclass(frozen=True, slots=True)
class AgentState:
    """How the agent is doing now.

    Attributes:
        kind: which agent it is.
        status: `ready` only after initialize and session/new have worked on this process.
        version: the agent's own version, None until it told.
        detail: one plain sentence for people.
    """

    kind: AgentKind
    status: AgentStatus
    version: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class PermissionRequest:
    """The agent asks whether it may run one tool call, once.

    Attributes:
        tool_call_id: the id of the tool_call update that came before.
        tool_name: the tool's name, or its title when the agent gave no name.
        arguments: the call's arguments as the model gave them.
    """

    tool_call_id: str
    tool_name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PromptResult:
    """How a prompt ended.

    Attributes:
        stop_reason: `end_turn`, `cancelled`, `max_tokens`, ...
        usage: token counts as the agent reported them, None if it did not.
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
    """

    status: int | None
    message: str


class TurnSink(Protocol):
    """Receives what happens in one turn.

    `update` and `goose_update` are called strictly in order, one at a time; a slow sink slows the
    agent down. `permission` runs in a task of its own, and is cancelled when the turn ends.
    """

    async def update(self, update: dict[str, Any]) -> None:
        """Take `params.update` of one `session/update`."""

    async def goose_update(self, update: dict[str, Any]) -> None:
        """Take `params.update` of one `_goose/unstable/session/update`."""

    async def permission(self, request: PermissionRequest) -> Decision:
        """Return what the user decided; may wait as long as it needs."""
        ...
