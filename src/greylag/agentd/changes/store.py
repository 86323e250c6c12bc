"""States of the workspace, kept in one SQLite file: contents once each, a tree for each folder.

A content is kept in pieces of ``PIECE`` bytes, each by its digest (BLAKE2b) and compressed where
that helps. A tree is a folder's list of entries, kept the same way, so that two states share all
that is the same in them and are compared without reading it. ``seen`` is the newest state once more
with what each file's status was: a file whose size, times, inode and mode are the same is not read
again. One that changed shortly before the list was begun is: it could have changed again without a
sign. ``kept`` names what a state has held and is there still, though a rule may leave it out.

All calls run in the file's own thread, one transaction each; comparisons of states, which may last,
in another that only reads, so that nobody who writes waits for them. What is written is durable.
Every call may raise ``SnapshotError``.
"""

import asyncio
import json
import sqlite3
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from greylag.agentd.changes.states import (
    RULES,
    FileStatus,
    Folder,
    Plan,
    Seen,
    Snapshot,
    SnapshotError,
    StatesFileError,
    TreeEntry,
    split,
)
from greylag.common.sqlite import SqlThread, migrate, transaction
from greylag.execd.files import entry_path
from greylag.execd.snapshots import MOST_KEPT

PIECE = 1024 * 1024
MOST_FILE = 64 * PIECE
MOST_NAMED = 100
_NEVER_HELD = RULES | {"too_deep"}
_SAMPLE = 16 * 1024
_WORTHWHILE = 0.9
_FULL = 0.9
_FIRST = """
    CREATE TABLE objects (
        number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, packed INTEGER NOT NULL,
        content BLOB NOT NULL
    ) STRICT;
    CREATE TABLE snapshots (
        number INTEGER PRIMARY KEY AUTOINCREMENT, taken_at REAL NOT NULL, root TEXT NOT NULL,
        left_out TEXT NOT NULL, left_out_count INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE seen (
        path TEXT PRIMARY KEY, digest BLOB NOT NULL, tree TEXT NOT NULL, size INTEGER NOT NULL,
        entries TEXT NOT NULL, left_out TEXT NOT NULL
    ) STRICT;
    CREATE TABLE spans (
        span_id TEXT PRIMARY KEY, session_id TEXT NOT NULL, began INTEGER NOT NULL,
        before INTEGER, after INTEGER, undoes TEXT, paths TEXT, told INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE touched (
        span_id TEXT NOT NULL, path TEXT NOT NULL, PRIMARY KEY (span_id, path)
    ) STRICT
"""
_MIGRATIONS = (
    _FIRST.split(";"),
    ("ALTER TABLE spans ADD COLUMN totals TEXT",),
    (
        "ALTER TABLE spans ADD COLUMN cut TEXT",
        "ALTER TABLE spans ADD COLUMN uncut INTEGER NOT NULL DEFAULT 0",
    ),
    (
        """CREATE TABLE kept (
            folder TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (folder, name)
        ) STRICT, WITHOUT ROWID""",
    ),
)

T = TypeVar("T")


def digest_of(content: bytes) -> bytes:
    """Return the digest by which a content is kept."""
    return blake2b(content, digest_size=32).digest()


class SnapshotStore:
    """The file; it is opened, or made, when it is first used.

    Args:
        path: the file.
        limit: about how many bytes it may have; the oldest states go first. The newest one alone
            has at most half of that: files that would be more are left out.
        file_limit: the most bytes of one file.
    """

    def __init__(self, path: Path, limit: int, file_limit: int = MOST_FILE) -> None:
        self._thread = SqlThread(path, "snapshots", _translated, need_wal=False)
        self._reading = SqlThread(path, "snapshots-reading", _translated, read_only=True)
        self._opening = asyncio.Lock()
        self._open = False
        self._limit = limit
        self._file_limit = file_limit

    async def run(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = True) -> T:
        """Run ``work`` in the file's thread, inside one transaction, and return its result.

        What is not ``durable`` may be lost with the machine until something is that comes later.
        """

        def transacted(sql: sqlite3.Connection) -> T:
            sql.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with transaction(sql, "BEGIN"):
                return work(sql)

        await self._opened()
        return await self._thread.run(transacted)

    async def compare(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` that only reads, and may take its time, in one transaction beside ``run``.

        It finds all that ``run`` has written before the call.
        """
        await self._opened()
        return await self._reading.transact(work)

    async def _opened(self) -> None:
        async with self._opening:
            if self._open:
                return
            await self._thread.open()
            if await self._thread.run(_prepare):
                await self._reading.open()
            else:
                # Without a write-ahead log who reads keeps others from writing: one at a time then.
                self._reading = self._thread
            self._open = True

    async def aclose(self) -> None:
        """Close the file; no call may follow."""
        await self._reading.close()
        await self._thread.close()

    # Keeping a state: plan, keep what is wanted, commit.

    async def plan(self, records: Mapping[str, bytes], read: Callable[[bytes], Folder]) -> Plan:
        """Compare a list of the workspace with the newest state.

        Args:
            records: a record for each folder, those above first.
            read: returns what a record says, or raises.
        """
        return await self.run(lambda sql: self._plan(sql, records, read))

    async def keep(self, pieces: Sequence[bytes]) -> list[str]:
        """Keep contents; return their digests."""
        return await self.run(lambda sql: [_keep(sql, piece) for piece in pieces], durable=False)

    async def read(self, digest: str) -> bytes:
        """Return a content that is kept."""
        return await self.run(lambda sql: read_object(sql, digest))

    async def kept(self) -> AsyncIterator[bytes]:
        """Yield the paths that are to be told whatever rules say, NUL after each."""
        text, last = await self.run(lambda sql: _kept_after(sql, ("", "")))
        while text:
            yield text
            text, last = await self.run(partial(_kept_after, last=last))

    async def commit(self, plan: Plan, now: float) -> Snapshot:
        """Keep the state of a plan whose wanted files are known; the newest, if it is the same."""
        made = await self.run(lambda sql: _commit(sql, plan, now))
        await self._thread.run(self._make_room)
        return made

    def _plan(
        self, sql: sqlite3.Connection, records: Mapping[str, bytes], read: Callable[[bytes], Folder]
    ) -> Plan:
        plan = Plan()
        known = {row["path"]: row for row in sql.execute("SELECT path, digest, size FROM seen")}
        room = self._limit // 2
        for path, record in records.items():
            plan.digests[path] = digest_of(record)
            if path in known and known[path]["digest"] == plan.digests[path]:
                room -= known[path]["size"]
        for path, record in records.items():
            if path in known and known[path]["digest"] == plan.digests[path]:
                continue
            before = _seen_in(sql, path) if path in known else {}
            folder = read(record)
            plan.folders[path] = folder
            plan.ruled_out |= _keep_held(sql, path, folder, before)
            for name, seen in folder.items() if isinstance(folder, dict) else ():
                if not self._settled(seen, before.get(name), room):
                    plan.wanted.append((path, name, seen))
                if seen.kind == "f" and seen.status is not None:
                    room -= seen.status.size
        return plan

    def _settled(self, seen: Seen, before: Seen | None, room: int) -> bool:
        """Find a file's content, or tell that it must be read."""
        if seen.kind != "f" or seen.status is None:
            return True
        size = seen.status.size
        if size > min(self._file_limit, room):
            seen.kind, seen.settled = "x", size > self._file_limit
            seen.content = "too_large" if seen.settled else "no_room"
            return True
        known = before if before is not None and before.kind == "f" and before.settled else None
        if known is None or known.status != seen.status:
            return False
        seen.content = known.content
        return True

    def _make_room(self, sql: sqlite3.Connection) -> None:
        """Let the oldest states go until the file is small enough or only the newest is left."""
        if _used(sql) <= self._limit:
            return
        while _used(sql) > self._limit * _FULL:
            with transaction(sql):
                if not _drop_oldest(sql):
                    _sweep(sql)
                    break
                _sweep(sql)
            sql.execute("PRAGMA incremental_vacuum").fetchall()
        sql.execute("PRAGMA incremental_vacuum").fetchall()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StatesFileError(f"The workspace's states cannot be used: {error}.") from error


def _prepare(sql: sqlite3.Connection) -> bool:
    """Bring the file to its newest tables; tell whether it has a write-ahead log."""
    sql.execute("PRAGMA auto_vacuum = INCREMENTAL")
    migrate(sql, _MIGRATIONS)
    return bool(sql.execute("PRAGMA journal_mode").fetchone()[0] == "wal")


def _used(sql: sqlite3.Connection) -> int:
    """Return how many bytes the file holds, without those that are free again."""
    pages, free, size = (
        sql.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _drop_oldest(sql: sqlite3.Connection) -> bool:
    """Delete the older half of the states but the newest; those of an undo that goes on stay."""
    needed = "SELECT min(before) FROM spans WHERE undoes IS NOT NULL AND after IS NULL"
    (newest,) = sql.execute("SELECT max(number) FROM snapshots").fetchone()
    (going_on,) = sql.execute(needed).fetchone()
    undone = (
        "SELECT min(one.before) FROM spans AS one JOIN spans AS undo ON undo.undoes = one.span_id "
        "WHERE undo.after IS NULL"
    )
    (target,) = sql.execute(undone).fetchone()
    last = min(number for number in (newest, going_on, target) if number is not None)
    old = [
        row[0]
        for row in sql.execute("SELECT number FROM snapshots WHERE number < ? ORDER BY 1", (last,))
    ]
    if not old:
        return False
    border = old[(len(old) - 1) // 2]
    sql.execute("DELETE FROM snapshots WHERE number <= ?", (border,))
    sql.execute("DELETE FROM spans WHERE after <= ? AND told = 1", (border,))
    sql.execute("DELETE FROM touched WHERE span_id NOT IN (SELECT span_id FROM spans)")
    return True


def _sweep(sql: sqlite3.Connection) -> None:
    """Delete what no state refers to."""
    sql.execute("CREATE TEMP TABLE IF NOT EXISTS live (digest BLOB PRIMARY KEY) WITHOUT ROWID")
    sql.execute("DELETE FROM live")
    todo = [row[0] for row in sql.execute("SELECT DISTINCT root FROM snapshots")]
    found: set[str] = set()
    while todo:
        tree = todo.pop()
        if tree in found:
            continue
        found.add(tree)
        for entry in read_tree(sql, tree).values():
            if entry.kind == "d":
                todo.append(entry.content)
            elif entry.kind == "f":
                found.update(entry.content)
    rows = ((bytes.fromhex(digest),) for digest in found)
    sql.executemany("INSERT OR IGNORE INTO live VALUES (?)", rows)
    sql.execute("DELETE FROM objects WHERE digest NOT IN (SELECT digest FROM live)")


# Objects.


def _keep(sql: sqlite3.Connection, content: bytes) -> str:
    digest = digest_of(content)
    if sql.execute("SELECT 1 FROM objects WHERE digest = ?", (digest,)).fetchone() is None:
        packed = content
        sample = content[:_SAMPLE]
        if len(zlib.compress(sample, 1)) < len(sample) * _WORTHWHILE:
            packed = zlib.compress(content, 1)
        row = (digest, int(packed is not content), packed)
        sql.execute("INSERT INTO objects (digest, packed, content) VALUES (?, ?, ?)", row)
    return digest.hex()


def read_object(sql: sqlite3.Connection, digest: str) -> bytes:
    """Return a content that is kept.

    Raises:
        SnapshotError: it is not there, or not what it was.
    """
    statement = "SELECT packed, content FROM objects WHERE digest = ?"
    row = sql.execute(statement, (bytes.fromhex(digest),)).fetchone()
    content = b"" if row is None else row["content"]
    if row is not None and row["packed"]:
        content = zlib.decompress(content)
    if row is None or digest_of(content).hex() != digest:
        raise SnapshotError("A kept content is not what it was.")
    return bytes(content)


def read_tree(sql: sqlite3.Connection, digest: str) -> dict[str, TreeEntry]:
    """Return what a folder held, by name."""
    rows = json.loads(read_object(sql, digest))
    return {name: TreeEntry(kind, mode, size, content) for name, kind, mode, size, content in rows}


# Committing.


class _Commit:
    """Makes trees of a plan, from the deepest folder up."""

    def __init__(self, sql: sqlite3.Connection, plan: Plan) -> None:
        self._sql = sql
        self._plan = plan
        rows = sql.execute("SELECT path, tree FROM seen")
        self._known: dict[str, str] = {row["path"]: row["tree"] for row in rows}
        self._trees: dict[str, str] = {}
        gone = self._known.keys() - plan.digests.keys()
        self._touched = {split(path)[0] for path in gone}
        sql.executemany("DELETE FROM seen WHERE path = ?", [(path,) for path in gone])

    def root(self) -> str:
        """Return the digest of the workspace's tree."""
        for path in reversed(self._plan.digests):
            if path in self._plan.folders or path in self._touched:
                self._trees[path] = self._made(path)
                if self._trees[path] != self._known.get(path):
                    self._touched.add(split(path)[0])
            else:
                self._trees[path] = self._known[path]
        return self._trees[""]

    def _made(self, path: str) -> str:
        """Write what was seen of a folder; return its tree, or ``x`` and why it is left out."""
        known = path not in self._plan.folders
        folder = _seen_in(self._sql, path) if known else self._plan.folders[path]
        if isinstance(folder, str):
            self._remember(path, f"x{folder}", {}, [])
            return f"x{folder}"
        rows = self._rows(path, folder)
        tree = _keep(self._sql, json.dumps(rows, separators=(",", ":")).encode())
        left_out = [(name, content) for name, kind, _, _, content in rows if kind == "x"]
        self._remember(path, tree, folder, left_out)
        return tree

    def _remember(
        self, path: str, tree: str, folder: Mapping[str, Seen], left_out: list[tuple[str, str]]
    ) -> None:
        entries = [
            (name, one.kind, one.mode, one.content, one.status, one.settled)
            for name, one in folder.items()
        ]
        size = sum(one.status.size for one in folder.values() if one.kind == "f" and one.status)
        settled = all(one.settled for one in folder.values())
        digest = self._plan.digests[path] if settled else b""
        row = (path, digest, tree, size, json.dumps(entries), json.dumps(left_out))
        self._sql.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?)", row)

    def _rows(self, path: str, folder: Mapping[str, Seen]) -> list[tuple[str, str, int, int, Any]]:
        rows = []
        for name, one in sorted(folder.items()):
            kind, content = one.kind, one.content
            size = one.status.size if one.kind == "f" and one.status else 0
            if kind == "d":
                content = self._trees.get(entry_path(path, name), "xchanged")
                if content.startswith("x"):
                    kind, content = "x", content[1:]
            rows.append((name, kind, 0 if kind == "x" else one.mode, size, content))
        return rows


def _commit(sql: sqlite3.Connection, plan: Plan, now: float) -> Snapshot:
    root = _Commit(sql, plan).root()
    _let_go(sql, plan)
    newest = snapshot_at(sql, "ORDER BY number DESC")
    if newest is not None and newest.root == root:
        return newest
    left_out, count = _left_out(sql)
    made = sql.execute(
        "INSERT INTO snapshots (taken_at, root, left_out, left_out_count) VALUES (?, ?, ?, ?) "
        "RETURNING *",
        (now, root, json.dumps(left_out), count),
    )
    return _snapshot(made.fetchone())


def _left_out(sql: sqlite3.Connection) -> tuple[list[tuple[str, str]], int]:
    """Return the first things that the newest state lacks, with the reasons, and their number."""
    named: list[tuple[str, str]] = []
    count = 0
    for row in sql.execute("SELECT path, left_out FROM seen WHERE left_out <> '[]' ORDER BY path"):
        found = json.loads(row["left_out"])
        count += len(found)
        room = MOST_NAMED - len(named)
        named += [(entry_path(row["path"], name), reason) for name, reason in found[:room]]
    return named, count


def snapshot_at(sql: sqlite3.Connection, rest: str, *values: int) -> Snapshot | None:
    """Return the first state that ``rest``, always written in our code, of a query finds."""
    row = sql.execute(f"SELECT * FROM snapshots {rest} LIMIT 1", values).fetchone()  # noqa: S608 - see above
    return None if row is None else _snapshot(row)


def _snapshot(row: sqlite3.Row) -> Snapshot:
    left_out = [(path, reason) for path, reason in json.loads(row["left_out"])]
    return Snapshot(row["number"], row["root"], left_out, row["left_out_count"])


def _seen_in(sql: sqlite3.Connection, path: str) -> dict[str, Seen]:
    """Return the entries of a folder of the newest state by name: none of one it lacks."""
    row = sql.execute("SELECT entries FROM seen WHERE path = ?", (path,)).fetchone()
    entries = json.loads(row["entries"]) if row else []
    return {
        name: Seen(kind, mode, content, None if status is None else FileStatus(*status), settled)
        for name, kind, mode, content, status, settled in entries
    }


def statuses_in(sql: sqlite3.Connection, path: str) -> dict[str, FileStatus]:
    """Return what the status of each file of a folder was when the newest state was taken."""
    seen = _seen_in(sql, path)
    return {name: one.status for name, one in seen.items() if one.status is not None}


# What is kept though a rule may name it.


def keep_on(sql: sqlite3.Connection, entries: Iterable[tuple[str, str]]) -> bool:
    """Have entries told from now on, while they are there; tell whether some were not before.

    Args:
        sql: where it is kept.
        entries: the folder and name of each.
    """
    before = sql.total_changes
    sql.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", entries)
    return sql.total_changes > before


def _keep_held(
    sql: sqlite3.Connection, path: str, folder: Folder, before: Mapping[str, Seen]
) -> bool:
    """Keep on what the newest state holds of a folder and is not told now.

    It tells whether a rule has left out some of it for the first time.
    """
    if isinstance(folder, str):
        return _keep_below(sql, path) and folder in RULES
    ruled_out = False
    others = folder.get("")  # may stand for names that came while no rule left them out
    for name, held in before.items():
        now = folder.get(name, others)
        if now is not None and now.kind == "x" and _is_held(held):
            where = entry_path(path, name)
            new = _keep_below(sql, where) if held.kind == "d" else keep_on(sql, [(path, name)])
            ruled_out |= new and now.content in RULES
    return ruled_out


def _keep_below(sql: sqlite3.Connection, path: str) -> bool:
    """Keep on a folder and all that is below it in the newest state."""
    new = False
    rows = sql.execute(
        "SELECT path, tree FROM seen WHERE path = ? OR path > ? AND path < ?",
        (path, f"{path}/", f"{path}0"),
    )
    for folder, tree in rows.fetchall():
        if tree[:1] != "x" or tree[1:] not in RULES:
            names = [name for name, seen in _seen_in(sql, folder).items() if _is_held(seen)]
            new |= keep_on(sql, [split(folder), *((folder, name) for name in names)])
    return new


def _is_held(seen: Seen) -> bool:
    """Tell whether an entry is in a state, or would be if it could be read."""
    return seen.kind != "x" or seen.content not in _NEVER_HELD


def _kept_after(sql: sqlite3.Connection, last: tuple[str, str]) -> tuple[bytes, tuple[str, str]]:
    """Return the next paths that are kept on, NUL after each, and the last one in two."""
    text = bytearray()
    statement = "SELECT * FROM kept WHERE (folder, name) > (?, ?) ORDER BY folder, name"
    for folder, name in sql.execute(statement, last):
        text += f"{entry_path(folder, name)}\0".encode()
        last = folder, name
        if len(text) > PIECE:
            break
    return bytes(text), last


def _let_go(sql: sqlite3.Connection, plan: Plan) -> None:
    """Keep no longer what is not there any more.

    Below what could not be opened it may be, and stays, as long as all of it is no more than execd
    takes.
    """
    for (path,) in sql.execute("SELECT DISTINCT folder FROM kept").fetchall():
        folder, name = path, ""
        while folder not in plan.digests:
            folder, name = split(folder)
        now = plan.folders.get(folder)
        if name and not _may_hold(now, name):
            sql.execute("DELETE FROM kept WHERE folder = ?", (path,))
        elif not name and isinstance(now, dict):
            rows = sql.execute("SELECT * FROM kept WHERE folder = ?", (path,)).fetchall()
            gone = [row for row in rows if row["name"] not in now]
            sql.executemany("DELETE FROM kept WHERE folder = ? AND name = ?", gone)
    size = "SELECT sum(length(CAST(folder AS BLOB)) + length(CAST(name AS BLOB)) + 2) FROM kept"
    if (sql.execute(size).fetchone()[0] or 0) > MOST_KEPT:
        sql.execute(
            "DELETE FROM kept WHERE folder NOT IN (SELECT path FROM seen WHERE tree NOT LIKE 'x%')"
        )


def _may_hold(folder: Folder | None, name: str) -> bool:
    """Tell whether there may be something below a name of a folder, which is not told."""
    if not isinstance(folder, dict):
        return True
    return name in folder and folder[name].kind in {"d", "x"}
