"""At start: every turn that a crash left open gets its end."""

import asyncio
from collections.abc import Callable

import structlog

from greylag.agentd.journal import recovery as journal_recovery
from greylag.agentd.journal.folder import Journals
from greylag.agentd.journal.journal import JournalError
from greylag.agentd.records.database import TurnRecord
from greylag.agentd.records.turns import TurnRecords
from greylag.agentd.turns.prompting import RESTARTED
from greylag.agentd.turns.run import closing_events, turn_event
from greylag.agentd.turns.summary import TurnSummary

_log = structlog.get_logger()


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
