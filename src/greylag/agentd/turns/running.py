"""One turn while it runs: all of its state, and the sink that the agent writes into; and what has
run of late.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from greylag.agentd.agent.types import ModelFailure, PermissionRequest, PromptResult, Settlement
from greylag.agentd.journal.journal import JournalError, JournalFullError, TurnJournal
from greylag.agentd.problems import invalid
from greylag.agentd.records import TurnRecord
from greylag.agentd.turns.errors import TurnError, with_provider_code
from greylag.agentd.turns.events import Translator, TurnEvent, TurnSummary
from greylag.common.agent_api import MOST_ARGUMENTS, Question, TurnChanges
from greylag.common.clock import rfc3339

_ERROR_TEXT = 4000  # a provider may answer with a whole page
_SETTLED: Mapping[Settlement, str] = {
    "allow_once": "The tool call was allowed.",
    "allow_session": "The tool call was allowed, and this tool is in the rest of the session.",
    "reject_once": "The tool call was declined.",
    "cancelled": "The tool call was cancelled with its turn.",
}


@dataclass(frozen=True, slots=True)
class TurnPolicy:
    """What turns are held to.

    Attributes:
        confirmation_timeout: seconds after which an unanswered confirmation is declined.
        demonstration: returns the sentence that says that no real model answers, or None.
        configure: has the agent work in a session, named by our id and the agent's, with the mode
            and the model that hold there; raises ``AgentError`` when it does not.
        now: the clock, Unix seconds.
    """

    confirmation_timeout: float
    demonstration: Callable[[], str | None]
    configure: Callable[[str, str], Awaitable[None]]
    now: Callable[[], float] = time.time


class RunningTurn:
    """A turn from its first event to its last.

    A confirmation is a future in it: open until it has a result, which is how it was settled. Each
    is settled once, and says so in the turn's events.

    Whatever adds an event may raise ``JournalError``: it cannot be kept, so it must not be shown.

    Args:
        record: the turn's record.
        journal: its journal, which nobody else writes.
        policy: what it is held to.
        asked: is called when a question has been asked, or is settled.
        allowed: the tools that run without a question in its session; it adds to them.

    Attributes:
        summary: what its events add up to so far.
        agent_session_id: what the agent calls its session, once the agent has its message.
        cancelled: set when its end is asked for.
        ended: set when its last event is there to be read.
        changes: how much it changed in the workspace; None while that is not known.
    """

    def __init__(
        self,
        record: TurnRecord,
        journal: TurnJournal,
        policy: TurnPolicy,
        asked: Callable[[], None] = lambda: None,
        allowed: set[str] | None = None,
    ) -> None:
        self._asked = asked
        self._allowed = set() if allowed is None else allowed
        self.record = record
        self.journal = journal
        self.summary = TurnSummary()
        self.agent_session_id: str | None = None
        self.cancelled = asyncio.Event()
        self.ended = asyncio.Event()
        self.changes: TurnChanges | None = None
        self._policy = policy
        self._translator = Translator(record.session_id, policy.now)
        self._confirmations: dict[str, asyncio.Future[Settlement]] = {}
        self._questions: dict[str, Question] = {}

    def begin(self, demonstration: str | None) -> None:
        """Add the first event: which turn this is, and whether no real model answers."""
        content = {
            "turn_id": self.record.turn_id,
            "session_id": self.record.session_id,
            "message_id": self.record.message_id,
            "demonstration": demonstration,
            "author": self.record.author,
        }
        self.emit(TurnEvent("turn", content), last_words=True)

    def emit(self, event: TurnEvent, *, last_words: bool = False) -> None:
        """Add an event; ``last_words`` lets it go past the turn's limit."""
        kept = self.journal.append(event.type, event.content, last_words=last_words)
        # Of what was kept alone: so the journal's limit is that of the turn's memory too, and a
        # recovery, which has nothing else, comes to the same outcome.
        self.summary.take(event.type, kept)

    async def update(self, update: dict[str, Any]) -> None:
        """Take an update of the agent (see ``TurnSink``)."""
        for event in self._translator.update(update):
            self.emit(event)

    async def permission(self, request: PermissionRequest) -> Settlement:
        """Ask the user whether a tool call may run; wait for the answer or the timeout."""
        if request.lasting and self._translator.tool_name(request) in self._allowed:
            return "allow_once"
        confirmation_id = uuid.uuid4().hex
        seconds = self._policy.confirmation_timeout
        event = self._translator.confirmation(confirmation_id, request, seconds)
        self.emit(event)
        self._questions[confirmation_id] = _question(confirmation_id, event)
        del request, event  # whose arguments may be large, and an answer may take long
        settled: asyncio.Future[Settlement] = asyncio.get_running_loop().create_future()
        self._confirmations[confirmation_id] = settled
        self._asked()
        await asyncio.wait({settled}, timeout=seconds)
        words = f"Nobody answered within {seconds:g} seconds: the tool call was declined."
        self._settle(confirmation_id, "reject_once", words)
        return settled.result()

    def answer(self, confirmation_id: str, decision: Settlement) -> Settlement | None:
        """Take the user's answer; return how the question is settled, None if there is none.

        Raises:
            RequestError: it may not be answered so.
        """
        question = self._questions.get(confirmation_id)
        if question is not None:
            if decision not in question.decisions:
                raise invalid(f"decision must be one of {', '.join(question.decisions)}.")
            self._settle(confirmation_id, decision, _SETTLED[decision])
        return self.decisions.get(confirmation_id)

    def cancel_confirmations(self) -> None:
        """Settle all that are open as cancelled; the turn is ending."""
        for confirmation_id in self._confirmations:
            self._settle(confirmation_id, "cancelled", _SETTLED["cancelled"])

    @property
    def question(self) -> Question | None:
        """The oldest that waits for its answer."""
        return next(iter(self._questions.values()), None)

    @property
    def decisions(self) -> dict[str, Settlement]:
        """How each settled confirmation was settled."""
        return {
            confirmation_id: "cancelled" if settled.exception() else settled.result()
            for confirmation_id, settled in self._confirmations.items()
            if settled.done()
        }

    def finish(
        self, result: PromptResult | None, error: TurnError | None, failure: ModelFailure | None
    ) -> None:
        """Add the last events: what was held back, the error if there was one, ``complete``.

        Args:
            result: how the agent ended the prompt, None when it did not.
            error: why it did not; only a result tells of another failure.
            failure: what the model provider said about its last failure, None when there was none.
        """
        try:
            self.cancel_confirmations()
            if result is not None:
                late, error = self._translator.finish(result)
                for event in late:
                    self.emit(event)
        except JournalFullError as full:
            error = error or TurnError("journal_full", str(full))
        self.close(result, None if error is None else with_provider_code(error, failure))

    def close(self, result: PromptResult | None, error: TurnError | None) -> None:
        """Add the very last events: the error if there was one, and ``complete``."""
        session_id = self.record.session_id
        if error is not None:
            content = {
                "message": "Agent processing error",
                "error": error.text[:_ERROR_TEXT],
                "code": error.code,
                "hint": error.hint,
                "session_id": session_id,
            }
            self.emit(TurnEvent("error", content), last_words=True)
        complete = {
            "message": "Response complete",
            "session_id": session_id,
            "storage": "file",
            "stop_reason": "error" if result is None else result.stop_reason,
            "usage": None if result is None else result.usage,
            "changes": _told(self.changes),
        }
        self.emit(TurnEvent("complete", complete), last_words=True)

    def _settle(self, confirmation_id: str, decision: Settlement, words: str) -> None:
        settled = self._confirmations[confirmation_id]
        if settled.done():
            return  # of an answer, the timeout and the end the first one counts
        question = self._questions.pop(confirmation_id)
        content = {"message": words, "confirmation_id": confirmation_id, "decision": decision}
        try:
            self.emit(TurnEvent("status", content))
        except JournalError as error:
            # What cannot be told must not be done: the turn ends with this error instead.
            settled.set_exception(error)
        else:
            if decision == "allow_session":
                self._allowed.add(question.tool_name)
            settled.set_result(decision)
            self._asked()


def _question(confirmation_id: str, event: TurnEvent) -> Question:
    told, arguments = event.content, json.dumps(event.content["arguments"])
    cut = arguments[:MOST_ARGUMENTS]
    return Question(
        confirmation_id,
        told["tool_name"],
        cut,
        shortened=cut != arguments,
        decisions=told["decisions"],
        expires_at=rfc3339(told["expires_at"]),
    )


def _told(changes: TurnChanges | None) -> dict[str, int] | None:
    """Return what the last event says of changes: no undo can be known of by then."""
    if changes is None:
        return None
    names = ("files", "added_lines", "deleted_lines")
    return {name: getattr(changes, name) for name in names}


# What turns have run of late, and how those who wait for news of them hear of a change.

EndpointType = Literal["agent-streaming", "sync", "provider-streaming"]
ActivityStatus = Literal["processing", "completed", "error"]

_KEPT_SECONDS = 300.0
_MOST_ENTRIES = 200  # of turns that have ended, beside those that run


@dataclass(slots=True)
class ActivityEntry:
    """One turn of late. Times are Unix seconds."""

    turn: TurnRecord
    endpoint_type: EndpointType
    status: ActivityStatus
    start_time: float
    last_update: float


class TurnActivity:
    """Counts turns since start, and remembers those of the last five minutes. Who waits for news
    of them, or of the sessions, names the revision that they know.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._started_at = now()
        self._entries: list[ActivityEntry] = []
        self._name = uuid.uuid4().hex[:8]
        self._changes = 0
        self._news = asyncio.Event()
        self.total_processed = 0
        self.last_at: float | None = None

    @property
    def revision(self) -> str:
        """What changes with each change, and with each start."""
        return f"{self._name}.{self._changes}"

    def touch(self) -> None:
        """Note that something has changed."""
        self._changes += 1
        self._news.set()
        self._news = asyncio.Event()

    async def changed(self, known: str | None, seconds: float) -> None:
        """Return when the revision is not the one that is known, or after so many seconds."""
        if known != self.revision:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    @property
    def uptime_seconds(self) -> int:
        """Whole seconds since start."""
        return max(0, int(self._now() - self._started_at))

    def begin(self, turn: TurnRecord, endpoint_type: EndpointType) -> ActivityEntry:
        """Note a new turn; hand the entry back to ``end``."""
        self.last_at = now = self._now()
        # Not its words: they may be long.
        entry = ActivityEntry(replace(turn, message=""), endpoint_type, "processing", now, now)
        self._entries.append(entry)
        self._forget_oldest()
        self.touch()
        return entry

    def end(self, entry: ActivityEntry, *, failed: bool) -> None:
        """Note that a turn ended."""
        entry.status = "error" if failed else "completed"
        entry.last_update = self.last_at = self._now()
        self.total_processed += 1
        self.touch()

    def _forget_oldest(self) -> None:
        """Forget the oldest that have ended, where there are too many; none that runs."""
        ended = [entry for entry in self._entries if entry.status != "processing"]
        for entry in ended[:-_MOST_ENTRIES]:
            self._entries.remove(entry)

    def recent(self) -> list[ActivityEntry]:
        """Return the turns that run, and those that ended less than five minutes ago."""
        oldest = self._now() - _KEPT_SECONDS
        return [e for e in self._entries if e.status == "processing" or e.last_update >= oldest]
