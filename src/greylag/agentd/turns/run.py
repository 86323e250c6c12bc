"""What a turn's events add up to: its answer, its tool calls, how it ended."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import structlog

from greylag.agentd.agent.acp import (
    AgentDiedError,
    AgentError,
    AgentRefusedError,
    AgentUnavailableError,
)
from greylag.agentd.agent.types import (
    AgentPort,
    Decision,
    ModelFailure,
    PermissionRequest,
    PromptResult,
)
from greylag.agentd.journal.folder import Journals
from greylag.agentd.journal.journal import JournalError, JournalFullError, TurnJournal
from greylag.agentd.records import (
    SessionRecords,
    StorageError,
    TurnOutcome,
    TurnRecord,
    TurnRecords,
    TurnStatus,
    session_title,
)
from greylag.agentd.turns.errors import SESSION_UNKNOWN, TurnError, refusal, told_by_provider
from greylag.agentd.turns.translate import Translator, TurnEvent

EndpointType = Literal["agent-streaming", "sync", "provider-streaming"]


ActivityStatus = Literal["processing", "completed", "error"]


_KEPT_SECONDS = 300.0


_MOST_ENTRIES = 200


@dataclass(slots=True)
class ActivityEntry:
    """One turn of late. Times are Unix seconds."""

    session_id: str
    endpoint_type: EndpointType
    status: ActivityStatus
    start_time: float
    last_update: float


class Activity:
    """Counts turns since start, and remembers those of the last five minutes."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._started_at = now()
        self._entries: deque[ActivityEntry] = deque(maxlen=_MOST_ENTRIES)
        self.total_processed = 0

    @property
    def uptime_seconds(self) -> int:
        """Whole seconds since start."""
        return max(0, int(self._now() - self._started_at))

    def begin(self, session_id: str, endpoint_type: EndpointType) -> ActivityEntry:
        """Note a new turn; hand the entry back to `end`."""
        now = self._now()
        entry = ActivityEntry(session_id, endpoint_type, "processing", now, now)
        self._entries.append(entry)
        return entry

    def end(self, entry: ActivityEntry, *, failed: bool) -> None:
        """Note that a turn ended."""
        entry.status = "error" if failed else "completed"
        entry.last_update = self._now()
        self.total_processed += 1

    def recent(self) -> list[ActivityEntry]:
        """Return the turns that run, and those that ended less than five minutes ago."""
        oldest = self._now() - _KEPT_SECONDS
        return [e for e in self._entries if e.status == "processing" or e.last_update >= oldest]


class TurnSummary:
    """Adds up events, live or from a journal; the same events give the same outcome."""

    def __init__(self) -> None:
        self._answer: list[str] = []
        self._tool_calls = 0
        self._error: TurnError | None = None
        self._stop_reason: str | None = None
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether the last event of the turn was among them."""
        return self._complete

    def take(self, kind: str, content: dict[str, Any]) -> None:
        """Add one event.

        Raises:
            KeyError: it is none of ours; nothing was added.
        """
        match kind:
            case "message":
                self._answer.append(str(content["content"]))
            case "tool_request":
                self._tool_calls += 1
            case "error":
                self._error = TurnError(str(content["code"]), str(content["error"]))
            case "complete":
                self._stop_reason = str(content["stop_reason"])
                self._complete = True

    def fail(self, error: TurnError) -> None:
        """Add a failure that no event tells of, because it could not be written."""
        self._error = error

    def outcome(self) -> TurnOutcome:
        """Return what the turn's record says from now on."""
        return TurnOutcome(
            status=self._status(),
            answer="".join(self._answer),
            tool_calls_count=self._tool_calls,
            error=None if self._error is None else self._error.text,
            error_code=None if self._error is None else self._error.code,
            stop_reason=self._stop_reason,
        )

    def _status(self) -> TurnStatus:
        if self._error is not None:
            return "error"
        return "cancelled" if self._stop_reason == "cancelled" else "completed"


# Tool calls that wait for the user's word.

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


# A turn while it runs: where the agent's updates become events in the journal.

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


# Giving a turn's message to the agent, in the agent's own session.

RESTARTED = TurnError(
    "agent_restarted", "The agent restarted while it answered. Send the message again."
)

_log = structlog.get_logger()


class Prompting:
    """Finds or makes the agent's session for ours, and asks."""

    def __init__(self, agent: AgentPort, sessions: SessionRecords) -> None:
        self._agent = agent
        self._sessions = sessions

    async def ask(self, run: TurnRun, agent_session_id: str | None) -> PromptResult:
        """Give the agent the turn's message and return how the answer ended.

        Args:
            run: the turn.
            agent_session_id: what the agent calls the turn's session; None if it has none yet.

        Raises:
            AgentError: the agent did not answer.
            JournalError: the answer could not be kept.
            StorageError: the records could not be written.
        """
        if agent_session_id is None:
            return await self._prompt(run, await self._new_session(run.turn.session_id))
        try:
            return await self._prompt(run, agent_session_id)
        except AgentRefusedError as error:
            if error.code != SESSION_UNKNOWN:
                raise
            _log.warning("agent_session_lost")
        words = "The agent has lost what was said in this session before; it starts afresh."
        run.emit(TurnEvent("status", {"message": words, "session_id": run.turn.session_id}))
        return await self._prompt(run, await self._new_session(run.turn.session_id))

    async def _new_session(self, session_id: str) -> str:
        agent_session_id = await self._agent.new_session(session_title(session_id))
        await self._sessions.bind(session_id, agent_session_id)
        return agent_session_id

    async def _prompt(self, run: TurnRun, agent_session_id: str) -> PromptResult:
        # No await between the two: a cancel either finds the session's id, or is seen here.
        if run.cancelled:
            return PromptResult("cancelled", None)
        run.agent_session_id = agent_session_id
        return await self._agent.prompt(agent_session_id, run.turn.message, run)


def failure_of(error: AgentError | JournalError | StorageError) -> TurnError:
    """Return what an error means for the turn, in the words that its user gets."""
    match error:
        case AgentRefusedError():
            return refusal(error)
        case AgentDiedError():
            return RESTARTED
        case AgentUnavailableError():
            return TurnError("agent_unavailable", str(error))
        case JournalError():
            full = isinstance(error, JournalFullError)
            return TurnError("journal_full" if full else "journal_failed", str(error))
        case StorageError():
            return TurnError("storage_failed", str(error))
        case _:
            return TurnError("agent_failed", str(error))


# Running turns: each is a task of agentd's own, from its first event to its last.

_ANSWER_ON_FULL_DISK = 64 * 1024  # characters; well within the room that is kept


@dataclass(frozen=True, slots=True)
class Records:
    """Everything that agentd keeps in its database."""

    sessions: SessionRecords
    turns: TurnRecords


@dataclass(frozen=True, slots=True)
class TurnPolicy:
    """What turns are held to.

    Attributes:
        confirmation_timeout: seconds after which an unanswered confirmation is declined.
        demonstration: returns the sentence that says that no real model answers, or None.
        now: the clock, Unix seconds.
    """

    confirmation_timeout: float
    demonstration: Callable[[], str | None]
    now: Callable[[], float] = time.time


class TurnRunner:
    """Owns the turns that run.

    Args:
        agent: who answers.
        records: where turns and sessions are kept.
        journals: where events are kept.
        tasks: owner of the turns' tasks; when one dies of a defect, agentd dies with it.
        policy: what turns are held to.
    """

    def __init__(
        self,
        agent: AgentPort,
        records: Records,
        journals: Journals,
        tasks: asyncio.TaskGroup,
        policy: TurnPolicy,
    ) -> None:
        self._agent = agent
        self._turns = records.turns
        self._journals = journals
        self._tasks = tasks
        self._policy = policy
        self._prompting = Prompting(agent, records.sessions)
        self._runs: dict[str, TurnRun] = {}
        self.activity = Activity(policy.now)

    def get(self, turn_id: str) -> TurnRun | None:
        """Return a turn that runs, None for one that does not."""
        return self._runs.get(turn_id)

    def all(self) -> list[TurnRun]:
        """Return all turns that run."""
        return list(self._runs.values())

    def launch(
        self, turn: TurnRecord, agent_session_id: str | None, endpoint: EndpointType
    ) -> None:
        """Begin a turn whose record has just been written.

        Args:
            turn: the record.
            agent_session_id: what the agent calls the turn's session, None if not known to it.
            endpoint: by which kind of route it came.

        Raises:
            OSError: its journal cannot be made; nothing has begun.
        """
        journal = self._journals.write(turn.turn_id)
        run = TurnRun(turn, journal, self._policy.now, self._policy.confirmation_timeout)
        run.begin(self._policy.demonstration())
        self._runs[turn.turn_id] = run
        entry = self.activity.begin(turn.session_id, endpoint)
        self._tasks.create_task(
            self._run(run, agent_session_id, entry), name=f"turn {turn.turn_id}"
        )

    async def cancel(self, run: TurnRun) -> None:
        """Ask a turn to end; it does so a moment later, in its own task."""
        run.cancelled = True
        if run.agent_session_id is not None:
            await self._agent.cancel(run.agent_session_id)
        # After the agent knows: a declined tool call alone would make it ask the model again.
        run.confirmations.cancel_all()

    async def _run(self, run: TurnRun, agent_session_id: str | None, entry: ActivityEntry) -> None:
        structlog.contextvars.bind_contextvars(
            session_id=run.turn.session_id, turn_id=run.turn.turn_id
        )
        _log.info("turn_started")
        result: PromptResult | None = None
        error: TurnError | None = None
        try:
            result = await self._prompting.ask(run, agent_session_id)
        except (AgentError, JournalError, StorageError) as failure:
            error = failure_of(failure)
        except Exception:  # noqa: BLE001 - a defect of ours: the log has it whole, the user is told, other turns go on
            _log.exception("turn_failed")
            error = TurnError("internal", "agentd failed while it handled the answer.")
        await self._end(run, result, error)
        outcome = run.summary.outcome()
        self.activity.end(entry, failed=outcome.status == "error")
        _log.info("turn_ended", status=outcome.status, code=outcome.error_code)
        await self._make_room()

    async def _end(
        self, run: TurnRun, result: PromptResult | None, error: TurnError | None
    ) -> None:
        try:
            await self._write_end(run, result, error)
        except JournalError as failure:
            _log.error("journal_failed", reason=str(failure))
            await self._write_end_again(run, error or failure_of(failure))
        try:
            await self._record_end(run)
        finally:
            run.journal.publish_end()
            del self._runs[run.turn.turn_id]
            run.ended.set()

    async def _write_end(
        self, run: TurnRun, result: PromptResult | None, error: TurnError | None
    ) -> None:
        failure = self._agent.model_failure(run.agent_session_id or "")
        run.finish(result, error, failure)
        await run.journal.seal()

    async def _write_end_again(self, run: TurnRun, error: TurnError) -> None:
        """Write a turn's end with the room that is kept for it on a full disk."""
        self._journals.release_reserve()
        try:
            if run.journal.try_again():
                run.close(None, error)
                await run.journal.seal()
                return
        except JournalError as failure:
            _log.error("journal_failed", reason=str(failure))
        run.summary.fail(error)

    async def _record_end(self, run: TurnRun) -> None:
        outcome = run.summary.outcome()
        try:
            await self._record(run, outcome)
        except StorageError as error:
            _log.error("records_failed", reason=str(error))
            self._journals.release_reserve()
            # The whole answer is in the journal; of it the record takes no more than there is room.
            shortened = replace(outcome, answer=outcome.answer[:_ANSWER_ON_FULL_DISK])
            await self._record(run, shortened)

    async def _record(self, run: TurnRun, outcome: TurnOutcome) -> None:
        decisions = run.confirmations.decisions
        await self._turns.end(run.turn.turn_id, outcome, decisions, self._policy.now())

    async def _make_room(self) -> None:
        try:
            removed = await self._journals.make_room(self._runs.__contains__)
        except OSError as error:
            _log.error("journals_not_removed", reason=str(error))
            return
        if removed:
            _log.info("journals_removed", count=removed)
