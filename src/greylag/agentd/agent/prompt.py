"""One prompt on its way: the agent's updates go to a sink, permissions and cancel come back."""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any, TypeVar

import structlog

from greylag.agentd.agent.acp import AcpPeer
from greylag.agentd.agent.types import (
    CANCEL_PATIENCE,
    AgentDiedError,
    AgentError,
    PermissionRequest,
    PromptResult,
    Settlement,
    TurnSink,
)
from greylag.common.concurrent import beside, cancel_all

T = TypeVar("T")

CANCELLED: dict[str, Any] = {"outcome": {"outcome": "cancelled"}}
"""The answer to a permission request whose prompt is over, or ends."""
MOST_QUESTIONS = 64
"""Permission requests of one prompt that may wait for their answer at once."""
_CANCEL_AGAIN = 0.5
_LONGEST_REASON = 100
_LONGEST_NAME = 100
_MOST_COUNTS = 50
_LARGEST = 2**63

_log = structlog.get_logger(__name__)


class AgentTurn:
    """Carries one prompt of one session from its start to its end.

    Args:
        peer: the connection to the agent.
        session: the agent's session id.
        sink: where everything goes.
        stop_model: called once the agent was told to cancel; it must end the session's model calls,
            which the agent itself would wait for.
        give_up: called when the agent does not end a cancelled prompt in CANCEL_PATIENCE seconds;
            it must end the agent process.
    """

    def __init__(
        self,
        peer: AcpPeer,
        session: str,
        sink: TurnSink,
        *,
        stop_model: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        self._peer = peer
        self._session = session
        self._sink = sink
        self._stop_model = stop_model
        self._give_up = give_up
        self._asking: set[asyncio.Task[None]] = set()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: Exception | None = None

    @property
    def cancelled(self) -> bool:
        """Whether the end of the prompt was asked for, by anyone."""
        return self._end.done()

    async def run(self, text: str) -> PromptResult:
        """Send the prompt, and return when it has ended.

        Raises:
            AgentDiedError: the agent process ended meanwhile.
            AgentRefusedError: the agent answered with an error.
            Exception: whatever the sink raised; the prompt has been cancelled then.
        """
        prompt = [{"type": "text", "text": text}]
        request = asyncio.create_task(
            self._peer.request("session/prompt", {"sessionId": self._session, "prompt": prompt}),
            name=f"prompt-{self._session}",
        )
        try:
            await asyncio.wait({request, self._end}, return_when=asyncio.FIRST_COMPLETED)
            await self._see_the_end(request)
            return await self._result(request)
        except asyncio.CancelledError:
            self.cancel()
            await self._see_the_end(request)
            raise
        finally:
            await cancel_all([request, *self._asking])

    async def until_cancelled(self, work: Coroutine[Any, Any, T], name: str) -> T | None:
        """Return what ``work`` returns; None, and it goes on no more, once the end is asked for."""
        doing = asyncio.create_task(work, name=name)
        first: set[asyncio.Future[Any]] = {doing, self._end}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            return None if self.cancelled else doing.result()
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)

    def unsent(self) -> PromptResult:
        """Return how a prompt has ended whose end was asked for before ``run``.

        Raises:
            Exception: whatever the sink raised.
        """
        if self._failure is not None:
            raise self._failure
        return PromptResult("cancelled", None)

    async def deliver(self, update: dict[str, Any]) -> None:
        """Hand one update to the sink."""
        if self._failure is not None:
            return
        try:
            await self._sink.update(update)
        except Exception as error:  # noqa: BLE001 - kept, and raised by ``run`` to whoever prompted
            self._fail(error)

    async def ask(self, request_id: str | int, params: dict[str, Any]) -> None:
        """Put a permission request to the sink, in a task, and answer the agent; at once, and as
        cancelled, where ``MOST_QUESTIONS`` wait already.
        """
        if len(self._asking) >= MOST_QUESTIONS:
            _log.warning("permission_not_asked", agent_session_id=self._session)
            await self._answer(request_id, CANCELLED)
            return
        task = asyncio.create_task(self._ask(request_id, params), name=f"permission-{request_id}")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def cancel(self) -> None:
        """Ask for the end of the prompt; may be called any number of times."""
        if not self._end.done():
            self._end.set_result(None)

    async def _ask(self, request_id: str | int, params: dict[str, Any]) -> None:
        options = _options(params)
        name, decision = f"decision-{request_id}", None
        try:
            permission = self._sink.permission(_question(params))
            del params  # as large as a line of the agent's may be, and an answer may take long
            decision = await self.until_cancelled(permission, name)
        except Exception as error:  # noqa: BLE001 - kept, and raised by ``run`` to whoever prompted
            self._fail(error)
        await self._answer(request_id, _outcome(decision or "cancelled", options))

    async def _answer(self, request_id: str | int, outcome: dict[str, Any]) -> None:
        try:
            await self._peer.respond(request_id, outcome)
        except AgentDiedError:
            _log.info("permission_answer_dropped", agent_session_id=self._session)

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self.cancel()

    async def _see_the_end(self, request: "asyncio.Task[Any]") -> None:
        """Tell the agent to stop until it does; end its process if it will not."""
        if request.done():
            return
        async with beside(self._tell_to_stop(), f"cancel-{self._session}"):
            # From outside: an agent that reads nothing lets nobody finish telling it.
            await asyncio.wait({request}, timeout=CANCEL_PATIENCE)
            if not request.done():
                _log.error("agent_ignores_cancel", agent_session_id=self._session)
                self._give_up()
                await asyncio.wait({request})

    async def _tell_to_stop(self) -> None:
        while True:
            await self._say_cancel()
            self._stop_model()
            await asyncio.sleep(_CANCEL_AGAIN)

    async def _say_cancel(self) -> None:
        """Tell the agent once; said again until it obeys, as a cancel may overtake its prompt."""
        if self._asking:
            # A prompt that waits for a permission ends only when that is answered too.
            await asyncio.wait(self._asking, timeout=_CANCEL_AGAIN)
        try:
            await self._peer.notify("session/cancel", {"sessionId": self._session})
        except AgentDiedError:
            _log.info("cancel_dropped", agent_session_id=self._session)

    async def _result(self, request: "asyncio.Task[Any]") -> PromptResult:
        if self._failure is not None:
            raise self._failure
        try:
            answer = await request
        except AgentError:
            if self.cancelled:
                return PromptResult("cancelled", None)
            raise
        answer = answer if isinstance(answer, dict) else {}
        reason = "cancelled" if self.cancelled else answer.get("stopReason")
        reason = reason[:_LONGEST_REASON] if isinstance(reason, str) else "end_turn"
        return PromptResult(reason, _counts(answer.get("usage")))


def _counts(usage: Any) -> dict[str, Any] | None:
    """Return the numbers among what an agent says that it used: a turn's last event holds them,
    which must find room.
    """
    if not isinstance(usage, dict):
        return None
    numbers = (
        (name, value)
        for name, value in usage.items()
        if type(value) in {int, float} and abs(value) < _LARGEST and len(name) <= _LONGEST_NAME
    )
    return dict(islice(numbers, _MOST_COUNTS))


def _question(params: dict[str, Any]) -> PermissionRequest:
    call = params.get("toolCall")
    call = call if isinstance(call, dict) else {}
    arguments = call.get("rawInput")
    return PermissionRequest(
        tool_call_id=str(call.get("toolCallId", "")),
        title=str(call.get("title") or "tool"),
        arguments=arguments if isinstance(arguments, dict) else {},
        lasting={"allow_once", "allow_always"} <= _options(params).keys(),
    )


def _options(params: dict[str, Any]) -> dict[str, str]:
    """Return the ids of the options that the agent offers, by their kind."""
    offered = params.get("options")
    return {
        option["kind"]: option["optionId"]
        for option in (offered if isinstance(offered, list) else [])
        if isinstance(option, dict)
        and isinstance(option.get("kind"), str)
        and isinstance(option.get("optionId"), str)
    }


def _outcome(decision: Settlement, options: dict[str, str]) -> dict[str, Any]:
    """Return the answer that takes the option of the decision's kind.

    An agent that offers no such option gets ``cancelled``, which runs no tool either.
    """
    # goose keeps its allow_always for all sessions, for good, in a file that tools can write: what
    # holds in a session is kept by agentd, and each call is allowed by itself.
    option = options.get("allow_once" if decision == "allow_session" else decision)
    if option is None:
        return CANCELLED
    return {"outcome": {"outcome": "selected", "optionId": option}}
