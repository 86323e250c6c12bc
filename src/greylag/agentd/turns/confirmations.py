"""Tool calls that wait for the user's word."""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from typing import Literal

from greylag.agentd.agent.types import Decision, PermissionRequest
from greylag.agentd.journal.journal import JournalError
from greylag.agentd.turns.translate import TurnEvent

Answer = Literal["accepted", "settled_otherwise", "unknown"]

_WORDS: Mapping[Decision, str] = {
    "allow_once": "The tool call was allowed.",
    "reject_once": "The tool call was declined.",
    "cancelled": "The tool call was cancelled with its turn.",
}


class Confirmations:
    """The confirmations of one turn. Each is settled once, and says so in the turn's events.

    Args:
        emit: adds an event to the turn.
        timeout: seconds after which an unanswered confirmation is declined.
    """

    def __init__(self, emit: Callable[[TurnEvent], None], timeout: float) -> None:
        self._emit = emit
        self._timeout = timeout
        self._open: dict[str, asyncio.Future[Decision]] = {}
        self._decisions: dict[str, Decision] = {}

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """How each settled confirmation was settled."""
        return self._decisions

    async def ask(
        self, request: PermissionRequest, event: Callable[[str, PermissionRequest], TurnEvent]
    ) -> Decision:
        """Ask the user, and wait for the answer, the timeout or the turn's end.

        Args:
            request: what the agent wants to run.
            event: makes the event that asks, given the confirmation's id.

        Raises:
            JournalError: the question, or what came of it, cannot be kept.
        """
        confirmation_id = uuid.uuid4().hex
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._emit(event(confirmation_id, request))
        self._open[confirmation_id] = answer
        try:
            async with asyncio.timeout(self._timeout):
                return await answer
        except TimeoutError:
            words = f"Nobody answered within {self._timeout:g} seconds: the tool call was declined."
            self._settle(confirmation_id, "reject_once", words)
            return self._decisions[confirmation_id]

    def answer(self, confirmation_id: str, decision: Decision) -> Answer:
        """Take the user's answer. The same answer again is accepted again."""
        if confirmation_id in self._open:
            self._settle(confirmation_id, decision, _WORDS[decision])
        match self._decisions.get(confirmation_id):
            case None:
                return "unknown"
            case made if made == decision:
                return "accepted"
            case _:
                return "settled_otherwise"

    def cancel_all(self) -> None:
        """Settle all that is open as cancelled; the turn is ending."""
        for confirmation_id in list(self._open):
            self._settle(confirmation_id, "cancelled", _WORDS["cancelled"])

    def _settle(self, confirmation_id: str, decision: Decision, words: str) -> None:
        # An answer and the timeout may meet in one round of the event loop: the first one counts.
        answer = self._open.pop(confirmation_id, None)
        if answer is None:
            return
        content = {"message": words, "confirmation_id": confirmation_id, "decision": decision}
        try:
            self._emit(TurnEvent("status", content))
        except JournalError as error:
            # What cannot be told must not be done: the turn ends with this error instead.
            self._decisions[confirmation_id] = "cancelled"
            if not answer.done():
                answer.set_exception(error)
            return
        self._decisions[confirmation_id] = decision
        if not answer.done():
            answer.set_result(decision)
