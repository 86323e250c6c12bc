"""The newest state as it was listed, and what is kept on of states though a rule names it now.

The table ``kept`` has the folder and name of each entry that is kept on.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping

from greylag.agentd.changes.states import RULES, FileStatus, Folder, Plan, Seen, split
from greylag.execd.files import entry_path
from greylag.execd.snapshots import MOST_KEPT

_PIECE = 1024 * 1024
_NEVER_HELD = RULES | {"too_deep"}


def seen_in(sql: sqlite3.Connection, path: str) -> dict[str, Seen]:
    """Return the entries of a folder of the newest state by name."""
    (text,) = sql.execute("SELECT entries FROM seen WHERE path = ?", (path,)).fetchone()
    return {
        name: Seen(kind, mode, content, None if status is None else FileStatus(*status), settled)
        for name, kind, mode, content, status, settled in json.loads(text)
    }


def statuses_in(sql: sqlite3.Connection, path: str) -> dict[str, FileStatus]:
    """Return what the status of each file of a folder was when the newest state was taken."""
    if sql.execute("SELECT 1 FROM seen WHERE path = ?", (path,)).fetchone() is None:
        return {}
    seen = seen_in(sql, path)
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


def keep_held(
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
            names = [name for name, seen in seen_in(sql, folder).items() if _is_held(seen)]
            new |= keep_on(sql, [split(folder), *((folder, name) for name in names)])
    return new


def _is_held(seen: Seen) -> bool:
    """Tell whether an entry is in a state, or would be if it could be read."""
    return seen.kind != "x" or seen.content not in _NEVER_HELD


def kept_after(sql: sqlite3.Connection, last: tuple[str, str]) -> tuple[bytes, tuple[str, str]]:
    """Return the next paths that are kept on, NUL after each, and the last one in two."""
    text = bytearray()
    statement = "SELECT * FROM kept WHERE (folder, name) > (?, ?) ORDER BY folder, name"
    for folder, name in sql.execute(statement, last):
        text += f"{entry_path(folder, name)}\0".encode()
        last = folder, name
        if len(text) > _PIECE:
            break
    return bytes(text), last


def let_go(sql: sqlite3.Connection, plan: Plan) -> None:
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
