"""What differs between states of the workspace, and what an undo puts back; it changes nothing.

An undo of a span puts the paths back that it changed. A path is kept as it is, with the reason,
when it may be somebody else's work that would be taken away.
"""

import sqlite3
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from greylag.agentd.changes.states import Change, FileStatus, RestoreStep, SnapshotError, TreeEntry
from greylag.agentd.changes.store import read_tree, statuses_in
from greylag.execd.files import entry_path

_OWN = 0o700


class Differences(NamedTuple):
    """What differs between two trees, by path: what was there, and what is.

    Attributes:
        known: what is told in both.
        unknown: what is left out in one and not in the other.
    """

    known: dict[str, Change]
    unknown: dict[str, Change]


def differences(sql: sqlite3.Connection, old: str, new: str) -> Differences:
    """Return what differs between two trees; nothing of what is the same, or new and left out."""
    found = Differences({}, {})
    todo: list[tuple[str, str | None, str | None]] = [("", old, new)]
    while todo:
        path, one, other = todo.pop()
        if one == other:
            continue
        before = {} if one is None else read_tree(sql, one)
        after = {} if other is None else read_tree(sql, other)
        for name in before.keys() | after.keys():
            was, now = before.get(name), after.get(name)
            where = entry_path(path, name)
            if "x" in {_kind(was), _kind(now)}:
                if was is not None and _kind(was) != _kind(now):
                    found.unknown[where] = was, now
                continue
            if (was and was.itself) != (now and now.itself):
                found.known[where] = was, now
            if "d" in {_kind(was), _kind(now)}:
                todo.append((where, _tree_of(was), _tree_of(now)))
    return found


def _kind(entry: TreeEntry | None) -> str:
    return "" if entry is None else entry.kind


def _tree_of(entry: TreeEntry | None) -> str | None:
    return entry.content if entry is not None and entry.kind == "d" else None


class State:
    """A state of the workspace, of which some paths are given otherwise.

    Args:
        sql: where it is kept.
        root: its tree.
    """

    def __init__(self, sql: sqlite3.Connection, root: str) -> None:
        self._sql = sql
        self._root = root
        self._trees: dict[str, Mapping[str, TreeEntry]] = {}
        self.given: dict[str, TreeEntry | None] = {}

    def kept(self, path: str) -> TreeEntry | None:
        """Return what is at a path in the state itself."""
        if not path:
            return TreeEntry("d", _OWN, 0, self._root)
        above, _, name = path.rpartition("/")
        return self._tree(above).get(name)

    def at(self, path: str) -> TreeEntry | None:
        """Return what is at a path."""
        return self.given[path] if path in self.given else self.kept(path)

    def holds(self, path: str) -> bool:
        """Tell whether anything is below a path of the state."""
        inside = (entry_path(path, name) for name in self._tree(path))
        return any(self.at(one) is not None for one in inside)

    def _tree(self, path: str) -> Mapping[str, TreeEntry]:
        if path not in self._trees:
            folder = self.kept(path)
            tree = _tree_of(folder)
            self._trees[path] = {} if tree is None else read_tree(self._sql, tree)
        return self._trees[path]


@dataclass(frozen=True, slots=True)
class Extent:
    """What is to be undone.

    Attributes:
        before, after: the trees around it.
        shared: the paths that somebody else may have changed in between.
        override: whether what others did is taken away too.
        only: the paths that are asked for, with what is below them; ``None``: all.
    """

    before: str
    after: str
    shared: Collection[str]
    override: bool
    only: Collection[str] | None


@dataclass(slots=True)
class Undo:
    """What an undo is to put back, by path, and what it keeps as it is, with the reason."""

    wanted: dict[str, TreeEntry | None] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def asked_of(sql: sqlite3.Connection, extent: Extent) -> Differences:
    """Return what was changed of what is to be undone, whatever the workspace holds now."""
    ordered = sorted(extent.only or ())

    def is_asked(path: str, change: Change) -> bool:
        before, _ = change
        return (
            extent.only is None
            or among(path, extent.only)
            or (_kind(before) == "d" and _is_above(path, ordered))
        )

    found = differences(sql, extent.before, extent.after)
    known, unknown = ({p: c for p, c in one.items() if is_asked(p, c)} for one in found)
    return Differences(known, unknown)


def undo_of(sql: sqlite3.Connection, extent: Extent, asked: Differences, now: str) -> Undo:
    """Decide what an undo puts back of what is ``asked``, when the workspace's tree is ``now``."""
    undo, state = Undo(), State(sql, now)
    since = differences(sql, extent.after, now).known
    for path, (before, _) in (*asked.known.items(), *asked.unknown.items()):
        present = state.kept(path)
        if (present and present.itself) == (before and before.itself):
            continue
        if path in asked.unknown or _kind(present) == "x":
            undo.kept[path] = "left_out"
        elif path in since and not extent.override:
            undo.kept[path] = "changed_since"
        elif path in extent.shared and not extent.override:
            undo.kept[path] = "changed_by_others"
        else:
            undo.wanted[path] = before
    _settle(undo, state)
    return undo


def among(path: str, paths: Collection[str]) -> bool:
    """Tell whether a path is one of some, or below one."""
    parts = path.split("/")
    above = ("/".join(parts[:count]) for count in range(len(parts) + 1))
    return any(one in paths for one in above)


def _is_above(path: str, ordered: Sequence[str]) -> bool:
    """Tell whether one of some paths, in their order, is below a path."""
    below = f"{path}/"
    place = bisect_left(ordered, below)
    return place < len(ordered) and ordered[place].startswith(below)


def _settle(undo: Undo, state: State) -> None:
    """Keep what would be without its folder, or would take the place of what is kept."""
    state.given = undo.wanted
    settled = False
    while not settled:
        settled = True
        for path in sorted(undo.wanted, reverse=True):
            wanted = undo.wanted[path]
            above = state.at(path.rpartition("/")[0])
            if wanted is not None and (above is None or above.kind != "d"):
                reason = "folder_gone"
            elif (wanted is None or wanted.kind != "d") and _kept_below(state, path):
                reason = "not_empty"
            else:
                continue
            undo.kept[path] = reason
            del undo.wanted[path]
            settled = False


def _kept_below(state: State, path: str) -> bool:
    present = state.kept(path)
    return present is not None and present.kind == "d" and state.holds(path)


# From what is wanted to steps.


def steps_of(
    sql: sqlite3.Connection, now: str, wanted: Mapping[str, TreeEntry | None]
) -> list[RestoreStep]:
    """Return what brings the present state, the newest one, to what is wanted of some paths.

    Taken again after a part of them was, they do no harm: a file is replaced at once; what becomes
    of another kind is gone in between; a folder that is worked in is open to its owner until the
    last steps give it the rights that it is to have.
    """
    state = State(sql, now)
    worked_in = {path.rpartition("/")[0] for path in wanted}
    state.given = dict(wanted)
    opened, closed = [], []
    for path in sorted(worked_in | {path for path, entry in wanted.items() if _kind(entry) == "d"}):
        is_now, then = state.kept(path), state.at(path)
        if path and is_now is not None and is_now.kind == "d" and is_now.mode & _OWN != _OWN:
            opened.append(RestoreStep("mode", path, {"mode": is_now.mode | _OWN}))
        is_folder = path and then is not None and then.kind == "d"
        if is_folder and then is not None and (path in wanted or then.mode & _OWN != _OWN):
            closed.append(RestoreStep("mode", path, {"mode": then.mode}))
    removed, made = [], []
    statuses = cache(lambda folder: statuses_in(sql, folder))
    for path in sorted(wanted):
        one, other = state.kept(path), wanted[path]
        replaced = one is not None and other is not None and one.kind == other.kind != "l"
        tag = _tag(path, one, statuses)
        if one is not None and not replaced:
            target = one.content if one.kind == "l" else None
            removed.append(RestoreStep("remove", path, {"tag": tag, "target": target}))
        if other is not None and not (replaced and other.kind == "d"):
            made.append(_making(path, one, other, tag if replaced else ""))
    return [*opened, *reversed(removed), *made, *reversed(closed)]


def _making(
    path: str, present: TreeEntry | None, wanted: TreeEntry, tag: str | None
) -> RestoreStep:
    match wanted.kind:
        case "d":
            return RestoreStep("folder", path, {})
        case "l":
            return RestoreStep("link", path, {"target": wanted.content})
    if present is not None and present.kind == "f" and present.content == wanted.content:
        return RestoreStep("mode", path, {"mode": wanted.mode})
    about: dict[str, Any] = {"tag": tag, "mode": wanted.mode}
    return RestoreStep("file", path, about, wanted.content)


def _tag(
    path: str, present: TreeEntry | None, statuses: Callable[[str], Mapping[str, FileStatus]]
) -> str | None:
    """Return the tag that a file has still when nobody changes it meanwhile."""
    if present is None or present.kind != "f":
        return None
    folder, _, name = path.rpartition("/")
    status = statuses(folder).get(name)
    if status is None:
        raise SnapshotError("The state that was kept last does not tell of a file.")
    return status.tag


def rest_of(
    sql: sqlite3.Connection, began: str, now: str, wanted: Mapping[str, TreeEntry | None]
) -> Undo:
    """Decide what an undo that was cut short has still to put back.

    Args:
        sql: where the states are kept.
        began: the tree as it was when the undo was begun.
        now: the present tree.
        wanted: what it was to put back.
    """
    undo, was, state = Undo(), State(sql, began), State(sql, now)
    opened = {path.rpartition("/")[0] for path in wanted} - wanted.keys() - {""}
    folders = {path: was.kept(path) for path in opened}
    modes = {path: one for path, one in folders.items() if one is not None and one.kind == "d"}
    for path, entry in {**wanted, **modes}.items():
        present, first = state.kept(path), was.kept(path)
        if (present and present.itself) == (entry and entry.itself):
            continue
        if _left_by_undo(present, first, entry):
            undo.wanted[path] = entry
        else:
            undo.kept[path] = "changed_since"
    _settle(undo, state)
    return undo


def _left_by_undo(
    present: TreeEntry | None, first: TreeEntry | None, wanted: TreeEntry | None
) -> bool:
    """Tell whether an undo that was cut short can have left this."""
    if (present and present.itself) == (first and first.itself):
        return True
    if present is None:
        return first is not None and wanted is not None
    if present.kind == "d":
        modes = {one.mode | _OWN for one in (first, wanted) if one is not None and one.kind == "d"}
        return present.mode in modes | {_OWN}
    return wanted is not None and present.kind == wanted.kind and present.content == wanted.content
