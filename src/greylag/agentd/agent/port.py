"""What agentd's server needs of the agent; `greylag.agentd.agent.agent.Agent` has it all."""

from typing import Any, Protocol

from greylag.agentd.agent.types import AgentState, ModelFailure, PromptResult, TurnSink


class AgentPort(Protocol):
    """One agent process, shared by all sessions.

    Every call may raise `AgentError`: `AgentUnavailableError` when no agent is ready,
    `AgentDiedError` when it ends meanwhile, `AgentRefusedError` when it answers with an error.
    """

    @property
    def state(self) -> AgentState:
        """How the agent is doing now."""
        ...

    async def run(self) -> None:
        """Keep the agent running until cancelled; on return all that it started is dead."""

    async def wait_ready(self, timeout: float) -> None:  # noqa: ASYNC109 - part of the meaning: how long a caller is willing to wait
        """Return when the agent is ready, at once if it is; wait at most `timeout` seconds."""

    async def new_session(self, title: str) -> str:
        """Make a session in the agent and return the agent's id for it."""
        ...

    async def prompt(self, agent_session_id: str, text: str, sink: TurnSink) -> PromptResult:
        """Give the agent a message, and the sink all that answers it."""
        ...

    async def cancel(self, agent_session_id: str) -> None:
        """Ask the running prompt of a session to end; returns at once."""

    def model_failure(self, agent_session_id: str) -> ModelFailure | None:
        """Return how the last model call of a session's last prompt failed, None if it did not."""
        ...

    async def forget_session(self, agent_session_id: str) -> None:
        """Let the agent put a session away."""

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Call one of goose's own methods (`_goose/unstable/...`) and return its result."""
