"""A cluster in one SQLite file that many processes share, with a log of every verb.

It does what the port says, slowly; and it writes down who did what under which claim and when, in
the same transaction, so that ``proof.py`` can tell afterwards who was at a project at once.
"""

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TypeVar

from greylag.domain.errors import ClusterError, GreylagError, NotActiveError, OvertakenError
from greylag.domain.lifecycle import Observation, Observed, Verb
from greylag.domain.names import environment_names
from greylag.domain.project import Environment, ProjectRef
from greylag.ports import AgentAddress, FoundEnvironment

T = TypeVar("T")
SLOWEST = 0.4
POLL = 0.1
_TABLES = """
CREATE TABLE IF NOT EXISTS environments (
  user TEXT, project TEXT, state TEXT, since REAL, PRIMARY KEY (user, project));
CREATE TABLE IF NOT EXISTS fences (record TEXT PRIMARY KEY, claim INTEGER);
CREATE TABLE IF NOT EXISTS log (
  n INTEGER PRIMARY KEY, at REAL, what TEXT, verb TEXT, record TEXT, claim INTEGER, until REAL,
  pid INTEGER);
"""


class SharedCluster:
    """Implements ``ports.cluster``; a start and a stop take up to ``SLOWEST`` seconds."""

    kind = "memory"
    notice: str | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = asyncio.Event()
        self._random = random.Random()  # noqa: S311 - spreads times
        with closing(self._connect()) as sql:
            sql.executescript(_TABLES)

    async def observe(self, environment: Environment) -> Observation:
        """Return the state; what was begun long enough ago is done."""

        def look(sql: sqlite3.Connection) -> Observed:
            state, since = _state(sql, environment.ref)
            if state is Observed.STARTING and time.time() - since > SLOWEST:
                return _put(sql, environment.ref, Observed.READY)
            if state is Observed.STOPPING and time.time() - since > SLOWEST:
                return _put(sql, environment.ref, Observed.STOPPED)
            return state

        state = await self._run(look)
        ready = state is Observed.READY
        return Observation(state, endpoint=f"memory://{environment.id}" if ready else None)

    async def prepare(self, environment: Environment) -> None:
        """Make it, stopped."""

        def do(sql: sqlite3.Connection) -> None:
            if _state(sql, environment.ref)[0] is Observed.ABSENT:
                _put(sql, environment.ref, Observed.STOPPED)

        await self._verb(Verb.PREPARE, environment, do)

    async def start(self, environment: Environment) -> None:
        """Make it start."""

        def do(sql: sqlite3.Connection) -> None:
            state = _state(sql, environment.ref)[0]
            if state is Observed.STOPPING:
                raise ClusterError("It is being stopped.", code="environment_stopping")
            if state in {Observed.ABSENT, Observed.STOPPED}:
                _put(sql, environment.ref, Observed.STARTING)

        await self._verb(Verb.START, environment, do)

    async def stop(self, environment: Environment) -> None:
        """Make it stop."""

        def do(sql: sqlite3.Connection) -> None:
            if _state(sql, environment.ref)[0] in {Observed.STARTING, Observed.READY}:
                _put(sql, environment.ref, Observed.STOPPING)

        await self._verb(Verb.STOP, environment, do)

    async def delete(self, environment: Environment) -> None:
        """Remove it."""

        def do(sql: sqlite3.Connection) -> None:
            if _state(sql, environment.ref)[0] not in {Observed.ABSENT, Observed.STOPPED}:
                raise ClusterError("It runs.", code="environment_running")
            sql.execute(
                "DELETE FROM environments WHERE user = ? AND project = ?",
                (environment.ref.user_id, environment.ref.project_id),
            )

        await self._verb(Verb.DELETE, environment, do)

    async def changed(self, environment: Environment, timeout: float) -> None:  # noqa: ASYNC109 - the port's
        """Return after a moment."""
        del environment
        await asyncio.sleep(min(timeout, POLL))

    async def changes(self) -> AsyncIterator[ProjectRef]:
        """Nothing here ever ends unasked."""
        await self._closed.wait()
        for ref in tuple[ProjectRef, ...]():
            yield ref

    async def reach(self, environment: Environment) -> AgentAddress:
        """There is no agent."""
        raise NotActiveError(f"{environment.ref.project_id} has no agent.")

    @asynccontextmanager
    async def logs(
        self, environment: Environment, *, follow: bool, tail: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Nothing is ever said."""

        del environment, follow, tail

        async def lines() -> AsyncIterator[bytes]:
            for line in tuple[bytes, ...]():
                yield line

        yield lines()

    async def inventory(self) -> Sequence[ProjectRef]:
        """Return everything that exists."""
        found = await self._run(
            lambda sql: sql.execute("SELECT user, project FROM environments").fetchall()
        )
        return [ProjectRef(*row) for row in found]

    async def found(self) -> Sequence[FoundEnvironment]:
        """Return what is known of each, which is its names alone."""
        refs = await self.inventory()
        return [
            FoundEnvironment(ref=ref, names=environment_names(ref.user_id, ref.project_id))
            for ref in refs
        ]

    async def take_over(self, found: FoundEnvironment) -> None:
        """Do nothing: all is ours."""

    async def close(self) -> None:
        """Let go of it."""
        self._closed.set()

    async def _verb(
        self, verb: Verb, environment: Environment, do: Callable[[sqlite3.Connection], None]
    ) -> None:
        """Begin and, a moment later, do it; whichever way it ends, the log has a row of that."""
        await self._step(verb, environment, "begin", lambda _: None)
        try:
            await asyncio.sleep(self._random.uniform(0, SLOWEST))
            await self._step(verb, environment, "effect", do)
        except asyncio.CancelledError:
            await asyncio.shield(self._run(lambda sql: _note(sql, "left", verb, environment)))
            raise

    async def _step(
        self,
        verb: Verb,
        environment: Environment,
        what: str,
        do: Callable[[sqlite3.Connection], None],
    ) -> None:
        def step(sql: sqlite3.Connection) -> GreylagError | None:
            try:
                _fence(sql, environment)
                do(sql)
            except GreylagError as error:
                _note(sql, "refused", verb, environment)
                return error
            _note(sql, what, verb, environment)
            return None

        if (error := await self._run(step)) is not None:
            raise error

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with closing(self._connect()) as sql:
                sql.execute("BEGIN IMMEDIATE")
                try:
                    result = work(sql)
                except BaseException:
                    sql.execute("ROLLBACK")
                    raise
                sql.execute("COMMIT")
                return result

        return await asyncio.to_thread(run)

    def _connect(self) -> sqlite3.Connection:
        sql = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        sql.execute("PRAGMA journal_mode=WAL")
        sql.execute("PRAGMA synchronous=OFF")
        return sql


def _state(sql: sqlite3.Connection, ref: ProjectRef) -> tuple[Observed, float]:
    found = sql.execute(
        "SELECT state, since FROM environments WHERE user = ? AND project = ?",
        (ref.user_id, ref.project_id),
    ).fetchone()
    return (Observed.ABSENT, 0.0) if found is None else (Observed(found[0]), found[1])


def _put(sql: sqlite3.Connection, ref: ProjectRef, state: Observed) -> Observed:
    sql.execute(
        "INSERT OR REPLACE INTO environments VALUES (?, ?, ?, ?)",
        (ref.user_id, ref.project_id, state.value, time.time()),
    )
    return state


def _fence(sql: sqlite3.Connection, environment: Environment) -> None:
    fence = environment.fence
    found = sql.execute("SELECT claim FROM fences WHERE record = ?", (fence.record_id,)).fetchone()
    if found is not None and found[0] > fence.number:
        raise OvertakenError(found[0])
    sql.execute("INSERT OR REPLACE INTO fences VALUES (?, ?)", (fence.record_id, fence.number))


def _note(sql: sqlite3.Connection, what: str, verb: Verb, environment: Environment) -> None:
    until = environment.fence.until.timestamp() if environment.fence.until else 0.0
    row = (
        time.time(),
        what,
        verb.value,
        environment.id,
        environment.fence.number,
        until,
        os.getpid(),
    )
    sql.execute(
        "INSERT INTO log (at, what, verb, record, claim, until, pid) VALUES (?, ?, ?, ?, ?, ?, ?)",
        row,
    )
