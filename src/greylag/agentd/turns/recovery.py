"""At start: every turn that a crash left open gets its end."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from greylag.agentd.journal import recovery as journal_recovery
from greylag.agentd.journal.folder import Journals
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

    Args:
        turns: the turns' records.
        journals: where events are kept.
        now: the clock, Unix seconds.

    Returns:
        how many turns were ended.
    """
    open_turns = await turns.running()
    for turn in open_turns:
        summary = await _end(turn, journals)
        await turns.end(turn.turn_id, summary.outcome(), {}, now())
        _log.warning("turn_ended_after_restart", session_id=turn.session_id, turn_id=turn.turn_id)
    return len(open_turns)


async def _end(turn: TurnRecord, journals: Journals) -> TurnSummary:
    frames, summary = await asyncio.to_thread(_repair, journals.path(turn.turn_id))
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


def _repair(path: Path) -> tuple[int, TurnSummary]:
    frames = journal_recovery.cut_torn_end(path)
    summary = TurnSummary()
    for kind, content in journal_recovery.events(path):
        summary.take(kind, content)
    return frames, summary
