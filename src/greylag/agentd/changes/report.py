"""Differences between two states as clients are told of them: renames, lines, diffs, in bounds."""

import sqlite3
import time
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from greylag.agentd.changes.lines import counts, is_binary, unified
from greylag.agentd.changes.plan import differences
from greylag.agentd.changes.spans import Ends, Span, unknown
from greylag.agentd.changes.states import Change, TreeEntry, split
from greylag.agentd.changes.store import MOST_NAMED, PIECE, read_object, read_tree
from greylag.common.agent_api import Changes, FileChange, FileDiff, LeftOut, TurnChanges

_MOST_CHANGES = 2000
_MOST_LIST_TEXT = 2 * PIECE
_MOST_COUNTED = PIECE
_MOST_NAMED = 20
_MOST_DIFF = PIECE
_COUNTING_SECONDS = 2.0
TOTALS_SECONDS = 0.5
"""How long lines are counted where only their number is told."""
_KINDS = {"f": "file", "d": "folder", "l": "link"}


def report(
    sql: sqlite3.Connection, ends: Ends, counting_seconds: float = _COUNTING_SECONDS
) -> Changes:
    """Return what differs between two states, lines counted as far as the time suffices."""
    differs = differences(sql, ends.before.root, ends.after.root)
    found = _told(sql, differs.known)
    changes: list[FileChange] = []
    room, until = _MOST_LIST_TEXT, time.monotonic() + counting_seconds
    for path, (old_path, old, new) in sorted(found.items()):
        room -= 6 * (len(path) + len(old_path or "")) + 300
        if len(changes) == _MOST_CHANGES or room < 0:
            break
        change = _change(path, old_path, old, new, shared=path in ends.shared)
        if time.monotonic() < until:
            change = _counted(sql, change, old, new)
        changes.append(change)
    once = [
        LeftOut(path, str(was.content))
        for path, (was, _) in sorted(differs.unknown.items())
        if was is not None and was.kind == "x"
    ]
    left_out = [*(LeftOut(path, reason) for path, reason in ends.after.left_out), *once]
    return Changes(
        from_snapshot=ends.before.number,
        to_snapshot=ends.after.number,
        changes=changes,
        total=len(found),
        added_lines=sum(one.added_lines or 0 for one in changes),
        deleted_lines=sum(one.deleted_lines or 0 for one in changes),
        left_out=left_out[:MOST_NAMED],
        left_out_total=ends.after.left_out_count + len(once),
    )


def notes_of(sql: sqlite3.Connection, undos: Sequence[Span]) -> str:
    """Return what the agent is to know of undos; "": nothing."""
    notes = [_cut_note(unknown(sql, undo)) for undo in undos]
    paths = list(dict.fromkeys(path for one in undos if one.cut is None for path in one.paths))
    if paths:
        notes.append(
            "Note from the platform: the user has undone changes that were made to the workspace. "
            f"These are as they were before, so read them again: {_named(paths)}."
        )
    return "\n\n".join(filter(None, notes))


def _cut_note(paths: Sequence[str] | None) -> str:
    note = "Note from the platform: files have changed in the workspace since your last answer, so"
    if paths is None:
        return f"{note} read again what you knew of them."
    return f"{note} read these again: {_named(paths)}." if paths else ""


def _named(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    return ", ".join(paths[:_MOST_NAMED]) + more


def totals(found: Changes) -> TurnChanges:
    """Return how much a report tells of."""
    return TurnChanges(found.total, found.added_lines, found.deleted_lines)


def diff_of(sql: sqlite3.Connection, ends: Ends, path: str) -> FileDiff | None:
    """Return what differs in one file, ``None`` when nothing does."""
    found = _told(sql, differences(sql, ends.before.root, ends.after.root).known).get(path)
    if found is None:
        return None
    old_path, old, new = found
    change = _change(path, old_path, old, new, shared=path in ends.shared)
    change = _counted(sql, change, old, new)
    texts = _texts(sql, old, new)
    if texts is None or change.binary:
        return FileDiff(change, "", whole=change.binary or change.kind != "file")
    names = (f"a/{old_path or path}" if old else "/dev/null", f"b/{path}" if new else "/dev/null")
    said: list[str] = []
    room = _MOST_DIFF
    for line in unified(*texts, *names):
        room -= len(line)
        if room < 0:
            return FileDiff(change, "".join(said), whole=False)
        said.append(line)
    return FileDiff(change, "".join(said), whole=True)


_Told = dict[str, tuple[str | None, TreeEntry | None, TreeEntry | None]]


def _told(sql: sqlite3.Connection, found: Mapping[str, Change]) -> _Told:
    """Return the changes that are told: path, path before a rename, what was and what is."""
    changes = {path: change for path, change in found.items() if _is_told(sql, change)}
    told: _Told = {path: (None, *change) for path, change in changes.items()}
    for path, old_path in _renames(changes).items():
        told[path] = old_path, changes[old_path][0], changes[path][1]
        del told[old_path]
    return told


def _is_told(sql: sqlite3.Connection, change: Change) -> bool:
    """Tell whether a change is told by itself: a folder that came with what it holds is not."""
    old, new = change
    if old is not None and new is not None:
        return old.kind != "d" or new.kind == "d" or not read_tree(sql, old.content)
    entry = old or new
    return entry is not None and (entry.kind != "d" or not read_tree(sql, entry.content))


def _renames(changes: Mapping[str, Change]) -> dict[str, str]:
    """Return which new files are old ones of the same content; of the same name, where it is so."""
    gone: defaultdict[_Key, deque[str]] = defaultdict(deque)
    for path, (old, new) in sorted(changes.items()):
        if old is not None and new is None and old.kind == "f" and old.size:
            for key in _keys(path, old):
                gone[key].append(path)
    found: dict[str, str] = {}
    taken: set[str] = set()
    for path, (old, new) in sorted(changes.items()):
        if old is None and new is not None and new.kind == "f" and new.size:
            queues = (gone[key] for key in _keys(path, new))
            source = next(filter(None, (_first(queue, taken) for queue in queues)), None)
            if source is not None:
                found[path] = source
                taken.add(source)
    return found


_Key = tuple[tuple[str, ...], str]


def _keys(path: str, entry: TreeEntry) -> tuple[_Key, _Key]:
    """Return by what a file is looked for: its content and name, then its content alone."""
    content = tuple(entry.content)
    return (content, split(path)[1]), (content, "")


def _first(queue: deque[str], taken: Collection[str]) -> str | None:
    """Return the first of a queue that is not taken, without those before it."""
    while queue and queue[0] in taken:
        queue.popleft()
    return queue[0] if queue else None


def _change(
    path: str, old_path: str | None, old: TreeEntry | None, new: TreeEntry | None, *, shared: bool
) -> FileChange:
    what = "added" if old is None else "deleted" if new is None else "modified"
    entry = new or old
    return FileChange(
        path=path,
        change="renamed" if old_path is not None else what,
        kind=_KINDS["f" if entry is None else entry.kind],
        old_path=old_path,
        old_mode=_mode(old),
        mode=_mode(new),
        shared=shared,
    )


def _mode(entry: TreeEntry | None) -> str | None:
    return None if entry is None or entry.kind == "l" else f"{entry.mode:03o}"


def _counted(
    sql: sqlite3.Connection, change: FileChange, old: TreeEntry | None, new: TreeEntry | None
) -> FileChange:
    """Return a change with its lines counted, or marked as no text, where it is not too large."""
    if any(one is not None and one.kind == "f" and _begins_binary(sql, one) for one in (old, new)):
        return replace(change, binary=True)
    texts = _texts(sql, old, new)
    if texts is None:
        return change
    came, went = counts(*texts)
    return replace(change, added_lines=came, deleted_lines=went)


def _begins_binary(sql: sqlite3.Connection, entry: TreeEntry) -> bool:
    return bool(entry.content) and is_binary(read_object(sql, entry.content[0]))


def _texts(
    sql: sqlite3.Connection, old: TreeEntry | None, new: TreeEntry | None
) -> tuple[bytes, bytes] | None:
    """Return the contents of files that are not too large to be compared."""
    files = [one if one is not None and one.kind == "f" else None for one in (old, new)]
    if files == [None, None] or any(one is not None and one.size > _MOST_COUNTED for one in files):
        return None
    one, other = (
        b"" if file is None else b"".join(read_object(sql, piece) for piece in file.content)
        for file in files
    )
    return one, other
