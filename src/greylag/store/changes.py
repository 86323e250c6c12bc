"""How processes that share one SQLite file hear of each other's writes.

Each write leaves a row in ``changes`` with the project it was about. ``PRAGMA data_version`` tells,
for a few microseconds, whether anybody has written at all; only then are the rows read.
"""

import asyncio
import sqlite3
from collections.abc import Iterable

import structlog

from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import ProjectRef
from greylag.store.signals import ChangeHub
from greylag.store.threads import SqlThread

_KEPT = 10_000
_SECONDS_AFTER_FAILURE = 1.0

_log = structlog.get_logger(__name__)


def note(sql: sqlite3.Connection, source: str, refs: Iterable[ProjectRef | None]) -> None:
    """Add rows for changed projects (``None``: maybe any), inside the transaction of the change."""
    for ref in refs:
        added = sql.execute(
            "INSERT INTO changes (source, user_id, project_id) VALUES (?, ?, ?)",
            (source, *((None, None) if ref is None else (ref.user_id, ref.project_id))),
        )
        sql.execute("DELETE FROM changes WHERE n <= ?", ((added.lastrowid or 0) - _KEPT,))


class Follower:
    """Tells ``hub`` what other processes write, while anybody listens.

    ``source`` is the name under which this process writes; its own rows are passed over, because
    the hub has heard of them already.
    """

    def __init__(self, thread: SqlThread, hub: ChangeHub, source: str, poll_seconds: float) -> None:
        self._thread = thread
        self._hub = hub
        self._source = source
        self._poll_seconds = poll_seconds
        self._version = -1
        self._last = 0
        self._failing = False

    async def start(self) -> None:
        """Take note of where the table ends now: what comes after will be told."""
        self._last = await self._thread.run(_newest)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._hub.wanted.wait()
            await asyncio.sleep(await self._look())

    async def _look(self) -> float:
        """Tell the hub what is new; return how many seconds to wait before the next look."""
        try:
            changed = await self._thread.run(self._read)
        except StoreUnavailableError as error:
            # Listeners look for themselves and meet the error where it can be answered.
            if not self._failing:
                _log.warning("changes_unreadable", reason=str(error))
            self._failing = True
            self._hub.signal(None)
            return _SECONDS_AFTER_FAILURE
        self._failing = False
        for ref in changed:
            self._hub.signal(ref)
        return self._poll_seconds

    def _read(self, sql: sqlite3.Connection) -> set[ProjectRef | None]:
        version = sql.execute("PRAGMA data_version").fetchone()[0]
        if version == self._version:
            return set()
        found = sql.execute(
            "SELECT n, source, user_id, project_id FROM changes WHERE n > ? ORDER BY n",
            (self._last,),
        ).fetchall()
        changed: set[ProjectRef | None] = {
            None if row["user_id"] is None else ProjectRef(row["user_id"], row["project_id"])
            for row in found
            if row["source"] != self._source
        }
        # Rows that are gone before they were read may have been about any project.
        if found and found[0]["n"] != self._last + 1:
            changed = {None}
        # The version was read first: a write in between is found again by the next look.
        self._version = version
        self._last = found[-1]["n"] if found else self._last
        return changed


def _newest(sql: sqlite3.Connection) -> int:
    newest: int = sql.execute("SELECT coalesce(max(n), 0) FROM changes").fetchone()[0]
    return newest
