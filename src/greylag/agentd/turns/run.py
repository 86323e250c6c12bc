"""A turn while it runs: where the agent's updates become events in the journal."""

import asyncio
from collections.abc import Callable
from typing import Any

from greylag.agentd.agent.types import Decision, ModelFailure, PermissionRequest, PromptResult
from greylag.agentd.journal.journal import JournalFullError, TurnJournal
from greylag.agentd.records.database import TurnRecord
from greylag.agentd.turns.confirmations import Confirmations
from greylag.agentd.turns.errors import TurnError
from greylag.agentd.turns.provider_errors import told_by_provider
from greylag.agentd.turns.summary import TurnSummary
from greylag.agentd.turns.translate import Translator, TurnEvent

_ERROR_TEXT = 4000  # a provider may answer with a whole page


class TurnRun:
    """One running turn; it is the sink that the agent writes into.

    Args:
        turn: the turn's record.
        journal: its journal, which this run alone writes.
        now: the clock, Unix seconds.
        confirmation_timeout: seconds after which an unanswered confirmation is declined.
    """

    def __init__(
        self,
        turn: TurnRecord,
        journal: TurnJournal,
        now: Callable[[], float],
        confirmation_timeout: float,
    ) -> None:
        self.turn = turn
        self.journal = journal
        self.summary = TurnSummary()
        self.confirmations = Confirmations(self.emit, confirmation_timeout)
        self.ended = asyncio.Event()
        self.cancelled = False
        self.agent_session_id: str | None = None
        self._translator = Translator(turn.session_id, now)

    def emit(self, event: TurnEvent) -> None:
        """Add an event to the turn.

        Raises:
            JournalError: it cannot be kept (limit reached, disk full), so it must not be shown.
        """
        self.journal.append(event.type, event.content)
        self.summary.take(event.type, event.content)

    async def update(self, update: dict[str, Any]) -> None:
        """Take `params.update` of one `session/update`."""
        for event in self._translator.update(update):
            self.emit(event)

    async def goose_update(self, update: dict[str, Any]) -> None:
        """Take `params.update` of one `_goose/unstable/session/update`."""
        for event in self._translator.goose_update(update):
            self.emit(event)

    async def permission(self, request: PermissionRequest) -> Decision:
        """Ask the user whether a tool call may run, and wait for the answer."""
        return await self.confirmations.ask(request, self._translator.confirmation)

    def begin(self, demonstration: str | None) -> None:
        """Add the first event: which turn this is."""
        event = turn_event(self.turn, demonstration)
        self.journal.append(event.type, event.content, last_words=True)

    def finish(
        self,
        result: PromptResult | None,
        error: TurnError | None,
        failure: ModelFailure | None = None,
    ) -> None:
        """Add the last events: what was held back, the error if there was one, `complete`.

        Args:
            result: how the agent ended the prompt, None when it did not.
            error: why the turn failed, None when it did not.
            failure: what the model provider said about its last failure, None when there was none.

        Raises:
            JournalError: the journal cannot be written any more.
        """
        try:
            self.confirmations.cancel_all()
            if result is not None:
                late, found = self._translator.finish(result)
                error = error or found
                for event in late:
                    self.emit(event)
        except JournalFullError as full:
            error = error or TurnError("journal_full", str(full))
        if error is not None:
            error = told_by_provider(error, failure)
        self.close(result, error)

    def close(self, result: PromptResult | None, error: TurnError | None) -> None:
        """Add the very last events: the error if there was one, and `complete`.

        Raises:
            JournalError: the journal cannot be written any more.
        """
        for event in closing_events(self.turn.session_id, result, error):
            self.journal.append(event.type, event.content, last_words=True)
            self.summary.take(event.type, event.content)


def turn_event(turn: TurnRecord, demonstration: str | None) -> TurnEvent:
    """Return the event that begins a turn; `demonstration` says that no real model answers."""
    content = {
        "turn_id": turn.turn_id,
        "session_id": turn.session_id,
        "message_id": turn.message_id,
        "demonstration": demonstration,
    }
    return TurnEvent("turn", content)


def closing_events(
    session_id: str, result: PromptResult | None, error: TurnError | None
) -> list[TurnEvent]:
    """Return the events that end a turn: maybe an `error`, and always one `complete`."""
    events: list[TurnEvent] = []
    if error is not None:
        content = {
            "message": "Agent processing error",
            "error": error.text[:_ERROR_TEXT],
            "code": error.code,
            "hint": error.hint,
            "session_id": session_id,
        }
        events.append(TurnEvent("error", content))
    complete = {
        "message": "Response complete",
        "session_id": session_id,
        "storage": "file",
        "stop_reason": "error" if result is None else result.stop_reason,
        "usage": None if result is None else result.usage,
    }
    events.append(TurnEvent("complete", complete))
    return events
