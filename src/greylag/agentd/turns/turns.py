"""What agentd is busy with, as `agent/status` shows it."""

import asyncio
import uuid
from collections.abc import Callable

import structlog

from greylag.agentd.agent.acp import AgentUnavailableError
from greylag.agentd.agent.types import AgentPort, Decision
from greylag.agentd.journal import folder as journal_recovery
from greylag.agentd.journal.folder import Journals
from greylag.agentd.journal.journal import JournalError
from greylag.agentd.journal.tail import JournalTail
from greylag.agentd.problems import (
    RefusedError,
    agent_unavailable,
    session_not_found,
    turn_not_found,
)
from greylag.agentd.records import StartedTurn, TurnRecord, TurnRecords, new_turn, session_title
from greylag.agentd.turns.run import (
    RESTARTED,
    Answer,
    EndpointType,
    Records,
    TurnPolicy,
    TurnRunner,
    TurnSummary,
    closing_events,
    turn_event,
)

# What clients can do with turns: start, cancel, answer, follow, wait.

_READY_WITHIN = 5.0
_log = structlog.get_logger()


class TurnService:
    """Turns belong to agentd, not to a connection: a client that leaves changes nothing.

    Args:
        agent: who answers.
        records: where turns and sessions are kept.
        journals: where events are kept.
        tasks: owner of the turns' tasks.
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
        self._sessions = records.sessions
        self._turns = records.turns
        self._journals = journals
        self._now = policy.now
        self._runner = TurnRunner(agent, records, journals, tasks, policy)
        self._stopping = False
        self.activity = self._runner.activity

    @property
    def stopping(self) -> bool:
        """Whether agentd is on its way out and takes no more turns."""
        return self._stopping

    async def start(
        self,
        session_id: str | None,
        message: str,
        message_id: str | None = None,
        endpoint: EndpointType = "agent-streaming",
    ) -> StartedTurn:
        """Start a turn, or return the one that this message already has.

        Args:
            session_id: our id of the session; None makes one for this turn.
            message: the user's words.
            message_id: the client's own id of the message; the same id again is the same turn.
            endpoint: by which kind of route it came, for `agent/status`.

        Returns:
            the turn's record; outcome `new` or `known`.

        Raises:
            RefusedError: session_not_found, session_busy, message_id_conflict, agent_unavailable,
                storage_failed.
            StorageError: the records cannot be written.
        """
        if message_id is not None:
            known = await self._turns.with_message(message_id)
            if known is not None:
                return _settled(StartedTurn("known", known), session_id)
        if session_id is not None and await self._sessions.get(session_id) is None:
            raise session_not_found(session_id)
        await self._require_ready()
        await self._require_room()
        turn = new_turn(session_id or str(uuid.uuid4()), message, message_id, self._now())
        title = session_title(turn.session_id) if session_id is None else None
        started = _settled(await self._turns.start(turn, title), session_id)
        if started.outcome == "new":
            await self._launch(started, endpoint)
        return started

    async def get(self, turn_id: str) -> TurnRecord:
        """Return a turn's record.

        Raises:
            RefusedError: turn_not_found.
        """
        turn = await self._turns.get(turn_id)
        if turn is None:
            raise turn_not_found(turn_id)
        return turn

    async def newest(self, session_id: str, limit: int) -> list[TurnRecord]:
        """Return the last `limit` turns of a session, newest first."""
        return await self._turns.newest(session_id, limit)

    async def page(self, session_id: str, offset: int, limit: int) -> list[TurnRecord]:
        """Return `limit` turns of a session from `offset` on, oldest first."""
        return await self._turns.page(session_id, offset, limit)

    async def cancel(self, turn_id: str) -> TurnRecord:
        """Ask a turn to end. One that has ended stays as it is.

        Returns:
            the turn's record as it was when asked.

        Raises:
            RefusedError: turn_not_found.
        """
        turn = await self.get(turn_id)
        run = self._runner.get(turn_id)
        if run is not None:
            await self._runner.cancel(run)
        return turn

    async def answer(self, turn_id: str, confirmation_id: str, decision: Decision) -> Answer:
        """Take the user's answer to a confirmation of a turn.

        Raises:
            RefusedError: turn_not_found.
        """
        run = self._runner.get(turn_id)
        if run is not None:
            return run.confirmations.answer(confirmation_id, decision)
        await self.get(turn_id)
        made = await self._turns.decision(confirmation_id, turn_id)
        if made is None:
            return "unknown"
        return "accepted" if made == decision else "settled_otherwise"

    def tail(self, turn_id: str) -> JournalTail:
        """Open a turn's events for one reader, who must close it.

        Raises:
            JournalGoneError: they are no longer kept.
        """
        run = self._runner.get(turn_id)
        return self._journals.read(turn_id, None if run is None else run.journal)

    async def wait_ended(self, turn_id: str) -> TurnRecord:
        """Return the turn's record when it has ended.

        Raises:
            RefusedError: turn_not_found.
        """
        run = self._runner.get(turn_id)
        if run is not None:
            await run.ended.wait()
        return await self.get(turn_id)

    async def forget(self, turn_ids: list[str]) -> None:
        """Remove the events of turns whose session was deleted; those that run end first."""
        for turn_id in turn_ids:
            run = self._runner.get(turn_id)
            if run is not None:
                await run.ended.wait()
            self._journals.remove(turn_id)

    async def stop(self) -> None:
        """Take no more turns, and ask those that run to end."""
        self._stopping = True
        for run in self._runner.all():
            await self._runner.cancel(run)

    async def wait_all_ended(self, seconds: float) -> bool:
        """Wait until no turn runs, at most `seconds`; tell whether that is so."""
        try:
            async with asyncio.timeout(seconds):
                for run in self._runner.all():
                    await run.ended.wait()
        except TimeoutError:
            _log.warning("turns_do_not_end", turns=len(self._runner.all()))
            return False
        return True

    async def _launch(self, started: StartedTurn, endpoint: EndpointType) -> None:
        try:
            self._runner.launch(started.turn, started.agent_session_id, endpoint)
        except OSError as error:
            self._journals.release_reserve()
            await self._turns.abandon(started.turn.turn_id)
            problem = f"The turn's journal cannot be made: {error.strerror or error}."
            raise RefusedError("storage_failed", "Storage failed", problem) from error

    async def _require_ready(self) -> None:
        try:
            await self._agent.wait_ready(_READY_WITHIN)
        except AgentUnavailableError as error:
            raise agent_unavailable(str(error)) from error
        if self._stopping:
            raise agent_unavailable("agentd is stopping; try again when it is back.")

    async def _require_room(self) -> None:
        try:
            await self._journals.hold_reserve()
        except OSError as error:
            problem = f"The environment's disk has no room for a turn: {error.strerror or error}."
            raise RefusedError("storage_failed", "Storage failed", problem) from error


def _settled(started: StartedTurn, session_id: str | None) -> StartedTurn:
    """Return a turn that may go on (new or known); raise for one that was refused."""
    turn = started.turn
    match started.outcome:
        case "no_session":
            raise session_not_found(turn.session_id)
        case "busy":
            raise RefusedError(
                "session_busy",
                "Session busy",
                "The agent is still answering in this session: wait for it, or cancel it.",
                turn_id=turn.turn_id,
            )
        case "known" if session_id not in {None, turn.session_id}:
            raise RefusedError(
                "message_id_conflict",
                "Message id conflict",
                "This message_id was used in another session.",
                turn_id=turn.turn_id,
            )
    return started


# At start: every turn that a crash left open gets its end.


async def end_open_turns(turns: TurnRecords, journals: Journals, now: Callable[[], float]) -> int:
    """End every turn that its record calls running; nothing may run yet.

    What its journal holds whole is kept. If `complete` was written, the turn ended as its events
    say; if not, it ends with an error that tells of the restart. Running it again does no harm.
    Events of turns that were deleted go, where a crash kept them.

    Args:
        turns: the turns' records.
        journals: where events are kept.
        now: the clock, Unix seconds.

    Returns:
        how many turns were ended.

    Raises:
        StorageError: the records cannot be written.
    """
    open_turns = await turns.running()
    for turn in open_turns:
        summary = await _end(turn, journals)
        await turns.end(turn.turn_id, summary.outcome(), {}, now())
        _log.warning("turn_ended_after_restart", session_id=turn.session_id, turn_id=turn.turn_id)
    removed = await journals.remove_unknown(await turns.ids())
    if removed:
        _log.info("journals_removed", count=removed)
    return len(open_turns)


async def _end(turn: TurnRecord, journals: Journals) -> TurnSummary:
    try:
        return await _write_end(turn, journals)
    except (OSError, JournalError) as error:
        # Its record can still say that it ended, so that its session is free.
        _log.error("journal_failed", turn_id=turn.turn_id, reason=str(error))
        summary = TurnSummary()
        summary.fail(RESTARTED)
        return summary


async def _write_end(turn: TurnRecord, journals: Journals) -> TurnSummary:
    summary = TurnSummary()
    path = journals.path(turn.turn_id)
    frames = await asyncio.to_thread(journal_recovery.repair, path, turn.turn_id, summary.take)
    if summary.complete:
        return summary
    journal = journals.write(turn.turn_id, next_number=frames)
    try:
        events = closing_events(turn.session_id, None, RESTARTED)
        if frames == 0:
            events.insert(0, turn_event(turn, demonstration=None))
        for event in events:
            journal.append(event.type, event.content, last_words=True)
            summary.take(event.type, event.content)
        await journal.seal()
    finally:
        journal.publish_end()
    return summary
