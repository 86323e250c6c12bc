"""Running turns: each is a task of agentd's own, from its first event to its last."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from greylag.agentd.agent.errors import AgentError
from greylag.agentd.agent.port import AgentPort
from greylag.agentd.agent.types import PromptResult
from greylag.agentd.journal.folder import Journals
from greylag.agentd.journal.journal import JournalError
from greylag.agentd.records.database import StorageError, TurnOutcome, TurnRecord
from greylag.agentd.records.sessions import SessionRecords
from greylag.agentd.records.turns import TurnRecords
from greylag.agentd.turns.activity import Activity, ActivityEntry, EndpointType
from greylag.agentd.turns.errors import TurnError
from greylag.agentd.turns.prompting import Prompting, failure_of
from greylag.agentd.turns.run import TurnRun

_ANSWER_ON_FULL_DISK = 64 * 1024  # characters; well within the room that is kept

_log = structlog.get_logger()


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
