"""The engine of turns: it starts, runs, cancels and ends them, and ends what a crash left open.

A turn belongs to agentd, not to a connection: it is a task of the engine's, from its first event to
its last, and a client that leaves changes nothing.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import structlog

from greylag.agentd.agent.types import (
    CANCEL_PATIENCE,
    SESSION_UNKNOWN,
    AgentError,
    AgentPort,
    AgentRefusedError,
    AgentUnavailableError,
    HistoryFixedError,
    PromptResult,
    SessionStuckError,
    Settlement,
)
from greylag.agentd.changes.service import ChangeService
from greylag.agentd.journal.folder import Journals, repair
from greylag.agentd.journal.journal import JournalError, JournalTail
from greylag.agentd.problems import RequestError, not_found, storage_failed
from greylag.agentd.records import (
    HistoryCut,
    Records,
    StartedTurn,
    StorageError,
    TurnOutcome,
    TurnRecord,
    new_turn,
    session_title,
)
from greylag.agentd.turns.errors import RESTARTED, UNWRITTEN, TurnError, failure_of
from greylag.agentd.turns.events import TurnEvent, TurnSummary
from greylag.agentd.turns.running import (
    ActivityEntry,
    EndpointType,
    RunningTurn,
    TurnActivity,
    TurnPolicy,
)
from greylag.common.agent_api import Question, TurnChanges
from greylag.common.concurrent import beside, until_one_ends

T = TypeVar("T")
Acceptance = Literal["accepted", "settled_otherwise", "unknown"]

_READY_WITHIN = 5.0
_COUNT_WITHIN = 5.0
_ANSWER_ON_FULL_DISK = 64 * 1024  # characters; well within the room that is kept
_MOST_ENDED = 20

_log = structlog.get_logger(__name__)


class TurnEngine:
    """Owns the turns that run, and knows those that ran; one that is not there is turn_not_found.

    Args:
        agent: who answers.
        records: where turns and sessions are kept.
        journals: where events are kept.
        tasks: owner of the turns' tasks; when one dies of a defect, agentd dies with it.
        policy: what turns are held to.
        changes: keeps the workspace's state before and after each turn.

    Attributes:
        records: the turns that there were.
        stopping: whether agentd is on its way out and takes no more turns.
        activity: what ran of late.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - all that a turn touches
        self,
        agent: AgentPort,
        records: Records,
        journals: Journals,
        tasks: asyncio.TaskGroup,
        policy: TurnPolicy,
        changes: ChangeService,
    ) -> None:
        self._agent = agent
        self._changes = changes
        self._sessions = records.sessions
        self.records = records.turns
        self._journals = journals
        self._tasks = tasks
        self._policy = policy
        self._running: dict[str, RunningTurn] = {}
        self._allowed: dict[str, set[str]] = {}
        self._held: set[str] = set()
        self._worn = False  # whether the agent's records met a disk that took nothing
        self.stopping = False
        self.activity = TurnActivity(policy.now)

    async def start(
        self,
        session_id: str | None,
        message: str,
        message_id: str | None = None,
        endpoint: EndpointType = "agent-streaming",
        author: str | None = None,
    ) -> StartedTurn:
        """Start a turn, or return the one that this message already has.

        Args:
            session_id: our id of the session; None makes one for this turn.
            message: the user's words.
            message_id: the client's own id of the message; the same id again is the same turn.
            endpoint: by which kind of route it came, for ``agent/status``.
            author: the name of whoever sent it, where it is known.

        Returns:
            the turn's record; outcome ``new`` or ``known``.

        Raises:
            RequestError: session_not_found, session_busy, message_id_conflict,
                agent_unavailable, storage_failed.
            StorageError: the records cannot be written.
        """
        if message_id is not None:
            known = await self.records.with_message(message_id)
            if known is not None:
                return _accepted(StartedTurn("known", known), session_id)
        if session_id is not None and await self._sessions.get(session_id) is None:
            raise not_found("session", session_id)
        try:
            await self._renew_agent()
            await self._require_ready()
            await self._journals.hold_reserve()
        except OSError as error:
            raise storage_failed("The environment's disk has no room for a turn", error) from error
        now = self._policy.now()
        turn = new_turn(session_id or str(uuid.uuid4()), message, message_id, now, author)
        title = session_title(turn.session_id) if session_id is None else None
        if session_id in self._held:  # no await follows before the records take the turn up
            raise _held()
        started = _accepted(await self.records.start(turn, title), session_id)
        if started.outcome == "new":
            await self._launch(started.turn, endpoint)
        return started

    @asynccontextmanager
    async def held(self, session_id: str) -> AsyncIterator[None]:
        """Let no turn of a session begin in the ``with`` block; session_busy while one runs."""
        if session_id in self._held:
            raise _held()
        self._held.add(session_id)
        try:
            for newest in await self.records.newest(session_id, 1):
                if newest.status == "running":
                    _accepted(StartedTurn("busy", newest), session_id)
            yield
        finally:
            self._held.discard(session_id)

    async def is_cut_left(self, cut: HistoryCut) -> bool:
        """Tell whether a history is to be cut still, or whether that is not known."""
        return await self._changes.is_cut_left(cut)

    async def get(self, turn_id: str) -> TurnRecord:
        """Return a turn's record."""
        turn = await self.records.get(turn_id)
        if turn is None:
            raise not_found("turn", turn_id)
        return turn

    def question(self, turn_id: str) -> Question | None:
        """Return the oldest of a turn's questions that waits for its answer."""
        turn = self._running.get(turn_id)
        return None if turn is None else turn.question

    async def changes(self, *turn_ids: str) -> Mapping[str, TurnChanges]:
        """Return how much turns changed in the workspace, of those of which that is known."""
        return await self._changes.totals(turn_ids)

    def tail(self, turn_id: str) -> JournalTail:
        """Open a turn's events for one reader, who must close it.

        Raises:
            JournalGoneError: they are no longer kept.
        """
        turn = self._running.get(turn_id)
        return self._journals.read(turn_id, None if turn is None else turn.journal)

    async def wait_ended(self, turn_id: str) -> TurnRecord:
        """Return the turn's record when it has ended."""
        turn = self._running.get(turn_id)
        if turn is not None:
            await turn.ended.wait()
        return await self.get(turn_id)

    async def cancel(self, turn_id: str) -> TurnRecord:
        """Ask a turn to end; it does so a moment later. One that has ended stays as it is.

        Returns:
            the turn's record as it was when asked.
        """
        record = await self.get(turn_id)
        turn = self._running.get(turn_id)
        if turn is not None:
            await self._cancel(turn)
        return record

    async def answer(self, turn_id: str, confirmation_id: str, decision: Settlement) -> Acceptance:
        """Take the user's answer to a confirmation of a turn."""
        made: str | None
        if (turn := self._running.get(turn_id)) is not None:
            made = turn.answer(confirmation_id, decision)
        else:
            await self.get(turn_id)
            made = await self.records.decision(confirmation_id, turn_id)
        if made is None:
            return "unknown"
        return "accepted" if made == decision else "settled_otherwise"

    def ask_again(self, session_id: str) -> None:
        """Let no tool run in a session any more because an answer was for all of its calls."""
        self._allowed.get(session_id, set()).clear()

    async def forget(self, session_id: str, turn_ids: list[str]) -> None:
        """Remove the events of a deleted session's turns, and what was allowed in it; those that
        run end first.
        """
        for turn_id in turn_ids:
            turn = self._running.get(turn_id)
            if turn is not None:
                await turn.ended.wait()
            self._journals.remove(turn_id)
        self._allowed.pop(session_id, None)

    def states(self) -> list[tuple[str, str, str, str]]:
        """Return turn, session, message and state of the turns of late, oldest first."""
        entries = self.activity.recent()
        ended = [one for one in entries if one.turn.turn_id not in self._running][-_MOST_ENDED:]
        return [
            (one.turn.turn_id, one.turn.session_id, one.turn.message_id, self._state(one.turn))
            for one in entries
            if one.turn.turn_id in self._running or one in ended
        ]

    def _state(self, turn: TurnRecord) -> str:
        running = self._running.get(turn.turn_id)
        if running is None:
            return "ended"
        return "working" if running.question is None else "asks"

    async def stop(self) -> None:
        """Take no more turns, and ask those that run to end."""
        self.stopping = True
        self.activity.touch()
        for turn in list(self._running.values()):
            await self._cancel(turn)

    async def wait_all_ended(self, seconds: float) -> None:
        """Wait until no turn runs, at most ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                for turn in list(self._running.values()):
                    await turn.ended.wait()
        except TimeoutError:
            _log.warning("turns_do_not_end", turns=len(self._running))

    async def recover(self) -> int:
        """End every turn that its record calls running; to be called before any may start.

        What its journal holds whole is kept. If ``complete`` was written, the turn ended as its
        events say; if not, it ends with an error that tells of the restart. Running it again does
        no harm. Events of turns that were deleted go, where a crash kept them.

        Returns:
            how many turns were ended.

        Raises:
            StorageError: the records cannot be written.
        """
        left = await self.records.running()
        for record in left:
            outcome = (await self._recovered(record)).outcome()
            await self.records.end(record.turn_id, outcome, {}, self._policy.now())
            about = {"session_id": record.session_id, "turn_id": record.turn_id}
            _log.warning("turn_ended_after_restart", **about)
        await self._journals.remove_unknown(await self.records.ids())
        return len(left)

    async def _renew_agent(self) -> None:
        """Have an agent that met a full disk started anew, now that there is room for that.

        Before, it would not start, and who wants to make room by its environment could not.

        Raises:
            OSError: there is none yet.
        """
        if not self._may_renew():
            return
        self._journals.reserve.release()
        await self._journals.hold_reserve()  # this tells
        self._journals.reserve.release()  # it is what the start needs
        if self._may_renew():
            self._worn = False
            self._agent.give_up("could not keep its records")

    def _may_renew(self) -> bool:
        return self._worn and not self._running

    async def _require_ready(self) -> None:
        try:
            await self._agent.wait_ready(_READY_WITHIN)
        except AgentUnavailableError as error:
            raise RequestError("agent_unavailable", str(error)) from error
        if self.stopping:
            reason = "agentd is stopping; try again when it is back."
            raise RequestError("agent_unavailable", reason)

    async def _launch(self, record: TurnRecord, endpoint: EndpointType) -> None:
        try:
            journal = self._journals.write(record.turn_id)
        except OSError as error:
            self._journals.reserve.release()
            await self.records.abandon(record.turn_id)
            raise storage_failed("The turn's journal cannot be made", error) from error
        allowed = self._allowed.setdefault(record.session_id, set())
        turn = RunningTurn(record, journal, self._policy, self.activity.touch, allowed)
        turn.begin(self._policy.demonstration())
        self._running[record.turn_id] = turn
        entry = self.activity.begin(record, endpoint)
        self._tasks.create_task(self._run(turn, entry), name=f"turn {record.turn_id}")

    async def _run(self, turn: RunningTurn, entry: ActivityEntry) -> None:
        structlog.contextvars.bind_contextvars(
            session_id=turn.record.session_id, turn_id=turn.record.turn_id
        )
        _log.info("turn_started")
        result: PromptResult | None = None
        error: TurnError | None = None
        try:
            result = await self._answered(turn)
        except (AgentError, JournalError, StorageError) as failure:
            error = failure_of(failure)
            self._worn = self._worn or error.code in UNWRITTEN
        except Exception:  # noqa: BLE001 - a defect of ours: the log has it whole, the user is told, other turns go on
            _log.exception("turn_failed")
            error = TurnError("internal", "agentd failed while it handled the answer.")
        turn.changes = await self._changes.end(turn.record.turn_id)
        await self._end(turn, result, error)
        outcome = turn.summary.outcome()
        self.activity.end(entry, failed=outcome.status == "error")
        _log.info("turn_ended", status=outcome.status, code=outcome.error_code)
        await self._make_room(turn.journal.size)

    async def _answered(self, turn: RunningTurn) -> PromptResult:
        """Keep the state before the turn, and have the agent answer; a cancel waits for neither."""
        keeping = self._changes.begin(turn.record.turn_id, turn.record.session_id)
        await until_one_ends(state=keeping, cancelled=turn.cancelled.wait())
        # Not before: a history that was left uncut has been cut by now.
        session = await self._sessions.get(turn.record.session_id)
        if session is None or turn.cancelled.is_set():  # it was deleted, or cancelled meanwhile
            return PromptResult("cancelled", None)
        return await self._ask(turn, session.agent_session_id)

    async def _ask(self, turn: RunningTurn, agent_session_id: str | None) -> PromptResult:
        """Give the agent the turn's message, in the agent's own session, made if need be."""
        session_id = turn.record.session_id
        making: Callable[[], Coroutine[Any, Any, str]]
        making, left = partial(self._agent.new_session, session_title(session_id)), None
        if agent_session_id is not None:
            try:
                return await self._prompt(turn, agent_session_id)
            except SessionStuckError as stuck:
                left, making = agent_session_id, partial(self._reopened, agent_session_id, stuck)
                words = f"{stuck} The session goes on without those that do not start."
            except AgentRefusedError as error:
                if error.code != SESSION_UNKNOWN:
                    raise
                words = "The agent has lost what was said in this session before; it starts afresh."
            _log.warning("agent_session_left", agent_session_id=agent_session_id, reason=words)
            turn.emit(TurnEvent("status", {"message": words, "session_id": session_id}))
        made = await self._until_cancelled(turn, making())
        if made is None:
            return PromptResult("cancelled", None)
        await self._sessions.bind(session_id, made)
        if left is not None:
            await self._leave(left, made)
        return await self._prompt(turn, made)

    async def _reopened(self, old: str, stuck: SessionStuckError) -> str:
        """Return the session that takes the place of one that is stuck."""
        try:
            return await self._agent.reopen_session(old)
        except (AgentRefusedError, HistoryFixedError) as error:
            raise stuck from error

    async def _leave(self, old: str, new: str) -> None:
        try:
            await self._agent.replace_session(old, new)
        except AgentError as error:
            _log.warning("agent_session_stays", agent_session_id=old, error=str(error))

    async def _prompt(self, turn: RunningTurn, agent_session_id: str) -> PromptResult:
        position = await self._until_cancelled(turn, self._prepared(turn, agent_session_id))
        await self.records.place(turn.record.turn_id, position)
        note, undos = await self._changes.notes(turn.record.session_id)
        # No await between the two: a cancel either finds the session's id, or is seen here.
        if turn.cancelled.is_set():
            return PromptResult("cancelled", None)
        turn.agent_session_id = agent_session_id
        message = f"{note}\n\n{turn.record.message}" if note else turn.record.message
        result = await self._agent.prompt(agent_session_id, message, turn)
        await self._changes.told(undos)
        return result

    async def _prepared(self, turn: RunningTurn, agent_session_id: str) -> int | None:
        """Have the agent's session ready; return how many messages it has, where that is known."""
        await self._policy.configure(turn.record.session_id, agent_session_id)
        try:
            async with asyncio.timeout(_COUNT_WITHIN):
                return await self._agent.message_count(agent_session_id)
        except (AgentError, TimeoutError):
            return None  # what is wrong the prompt tells; an agent may not know this call

    async def _until_cancelled(self, turn: RunningTurn, work: Coroutine[Any, Any, T]) -> T | None:
        """Return what the agent answers, ``None`` if the turn's end is asked for before that.

        An agent that does not answer then either is replaced, as one that ignores a cancel is;
        unless other turns go on: it may be starting the extensions of this session alone.
        """
        async with (
            beside(work, f"preparing {turn.record.turn_id}") as asking,
            beside(turn.cancelled.wait(), "cancelled") as cancelled,
        ):
            await asyncio.wait({asking, cancelled}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                await asyncio.wait({asking}, timeout=CANCEL_PATIENCE)
            if asking.done():
                return asking.result()
            others = [one for one in self._running.values() if not one.cancelled.is_set()]
            _log.error("agent_does_not_answer", others=len(others))
            if not others:
                self._agent.give_up()
            return None

    async def _cancel(self, turn: RunningTurn) -> None:
        turn.cancelled.set()
        if turn.agent_session_id is not None:
            await self._agent.cancel(turn.agent_session_id)
        # After the agent knows: a declined tool call alone would make it ask the model again.
        turn.cancel_confirmations()

    # Ending: the last events, then the record, then the readers see that it is over.

    async def _end(
        self, turn: RunningTurn, result: PromptResult | None, error: TurnError | None
    ) -> None:
        try:
            failure = self._agent.model_failure(turn.agent_session_id or "")
            turn.finish(result, error, failure)
            await turn.journal.seal()
        except JournalError as unwritten:
            _log.error("journal_failed", error=str(unwritten))
            await self._write_end_again(turn, error or failure_of(unwritten))
        try:
            await self._record_end(turn)
        finally:
            turn.journal.publish_end()
            del self._running[turn.record.turn_id]
            turn.ended.set()

    async def _write_end_again(self, turn: RunningTurn, error: TurnError) -> None:
        """Write a turn's end with the room that is kept for it on a full disk."""
        self._journals.reserve.release()
        try:
            if turn.journal.try_again():
                turn.close(None, error)
                await turn.journal.seal()
                return
        except JournalError as failure:
            _log.error("journal_failed", error=str(failure))
        turn.summary.fail(error)

    async def _record_end(self, turn: RunningTurn) -> None:
        outcome = turn.summary.outcome()
        try:
            await self._record(turn, outcome)
        except StorageError as error:
            _log.error("records_failed", error=str(error))
            self._journals.reserve.release()
            # The whole answer is in the journal; of it the record takes no more than there is room.
            await self._record(turn, replace(outcome, answer=outcome.answer[:_ANSWER_ON_FULL_DISK]))

    async def _record(self, turn: RunningTurn, outcome: TurnOutcome) -> None:
        turn_id, now = turn.record.turn_id, self._policy.now()
        await self.records.end(turn_id, outcome, turn.decisions, now)

    async def _make_room(self, written: int) -> None:
        try:
            await self._journals.make_room(self._running.__contains__, written)
        except OSError as error:
            _log.error("journals_not_removed", error=str(error))

    async def _recovered(self, record: TurnRecord) -> TurnSummary:
        """Return what the turn's events add up to, with its end among them."""
        try:
            return await self._end_left(record)
        except (OSError, JournalError) as error:
            # Its record can still say that it ended, so that its session is free.
            _log.error("journal_failed", turn_id=record.turn_id, error=str(error))
            summary = TurnSummary()
            summary.fail(RESTARTED)
            return summary

    async def _end_left(self, record: TurnRecord) -> TurnSummary:
        summary = TurnSummary()
        path = self._journals.path(record.turn_id)
        frames = await asyncio.to_thread(repair, path, record.turn_id, summary.take)
        if summary.complete:
            return summary
        journal = self._journals.write(record.turn_id, next_number=frames)
        turn = RunningTurn(record, journal, self._policy)
        turn.summary = summary
        try:
            if frames == 0:
                turn.begin(None)
            turn.close(None, RESTARTED)
            await journal.seal()
        finally:
            journal.publish_end()
        return summary


def _held() -> RequestError:
    reason = "The agent's history of this session is being cut; try again in a moment."
    return RequestError("session_busy", reason)


def _accepted(started: StartedTurn, session_id: str | None) -> StartedTurn:
    """Return a turn that may go on (new or known); raise for one that was refused."""
    turn = started.turn
    match started.outcome:
        case "no_session":
            raise not_found("session", turn.session_id)
        case "busy":
            reason = "The agent is still answering in this session: wait for it, or cancel it."
            raise RequestError("session_busy", reason, turn_id=turn.turn_id)
        case "known" if session_id not in {None, turn.session_id}:
            reason = "This message_id was used in another session."
            raise RequestError("message_id_conflict", reason, turn_id=turn.turn_id)
    return started
