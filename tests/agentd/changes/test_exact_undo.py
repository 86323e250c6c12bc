"""An undo brings back every byte and mode, whatever was changed and wherever it was killed."""

import asyncio
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.agentd.changes.rig import closed, look, rig

from greylag.agentd.changes import spans
from greylag.agentd.changes.plan import State
from greylag.agentd.problems import RequestError
from greylag.execd import files, snapshots

PATHS = st.sampled_from(
    [b"a", b"a/b", b"a/b/c", b"a/b/d", b"e", b"e/\xff\\x", b".git/f", "né\n".encode()]
)
CONTENTS = st.sampled_from([b"", b"one\n", b"two\n", b"\0\1", b"z" * 70_000])
MODES = st.sampled_from([0o644, 0o755, 0o600, 0o400, 0o4755])
FOLDER_MODES = st.sampled_from([0o755, 0o700, 0o500, 0o1777])
EDITS = st.one_of(
    st.tuples(st.just("write"), PATHS, st.tuples(CONTENTS, MODES)),
    st.tuples(st.just("folder"), PATHS, FOLDER_MODES),
    st.tuples(st.just("link"), PATHS, st.sampled_from([b"a", b"/etc", b"../x\xfe"])),
    st.tuples(st.just("folder_mode"), PATHS, FOLDER_MODES),
    st.tuples(st.just("delete"), PATHS, st.none()),
    st.tuples(st.just("rename"), PATHS, PATHS),
)
_CHANGES = ("rename", "unlink", "mkdir", "rmdir", "symlink", "chmod", "fchmod", "fsync", "scandir")


class _KilledError(BaseException):
    """The process is dead; nothing of it cleans anything up."""


class _MortalOs:
    """The os module of a process that is killed at its so-manieth step."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in _CHANGES:
            return real

        def mortal(*args: Any, **more: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise _KilledError
            return real(*args, **more)

        return mortal


@contextmanager
def killed_after(steps: int | None) -> Iterator[None]:
    if steps is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patched:
        mortal = _MortalOs(steps)
        for module in (files, snapshots):
            patched.setattr(module, "os", mortal)
        yield


def edit(root: Path, what: str, path: bytes, value: Any) -> None:
    """Change something, where that is possible."""
    where = os.path.join(os.fsencode(root), path)
    with suppress(OSError, shutil.Error):
        match what:
            case "write":
                os.makedirs(os.path.dirname(where), exist_ok=True)
                with open(where, "wb") as file:
                    file.write(value[0])
                os.chmod(where, value[1])
            case "folder":
                os.makedirs(where)
                os.chmod(where, value)
            case "link":
                os.makedirs(os.path.dirname(where), exist_ok=True)
                os.symlink(value, where)
            case "mode":
                os.chmod(where, value, follow_symlinks=False)
            case "folder_mode":
                if not os.path.islink(where) and os.path.isdir(where):
                    os.chmod(where, value)
            case "delete":
                if os.path.isdir(where) and not os.path.islink(where):
                    shutil.rmtree(where)
                else:
                    os.unlink(where)
            case "rename":
                os.rename(where, os.path.join(os.fsencode(root), value))


Edits = list[tuple[str, bytes, Any]]


async def undone(folder: Path, first: Edits, then: Edits, kills: list[int]) -> None:
    async with rig(folder) as made:
        for one in first:
            edit(made.root, *one)
        before = look(made.root)
        async with made.turn("t"):
            for one in then:
                edit(made.root, *one)
        after = look(made.root)
        changed = await made.service.of_turn("t")
        assert (changed.total == 0) == (before == after)

        async def to_its_end(span: str) -> str:
            for steps in [*kills, None]:
                with killed_after(steps), suppress(RequestError):
                    return (await made.undo(span)).undo_id
                await made.again()
            raise AssertionError("it was not undone")

        undo = await to_its_end("t")
        assert look(made.root) == before
        if not kills:  # else the first one may have been begun by one that was killed
            assert look(made.root) == before
            await to_its_end(undo)
            assert look(made.root) == after


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    first=st.lists(EDITS, min_size=6, max_size=12),
    then=st.lists(EDITS, min_size=3, max_size=8),
    kills=st.lists(st.integers(0, 40), max_size=3),
)
def test_an_undo_brings_back_every_byte_and_mode(
    first: Edits, then: Edits, kills: list[int]
) -> None:
    old = os.umask(0o022)
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(undone(Path(folder), first, then, kills))
        finally:
            os.umask(old)


RULED = st.sampled_from([b"a", b"a/b", b"a/b/c", b"e", b"e/g", b"node_modules/x"])
RULES = st.tuples(
    st.just("write"),
    st.sampled_from([b".gitignore", b"a/.gitignore", b"a/pyvenv.cfg", b"a/b/CACHEDIR.TAG"]),
    st.tuples(st.sampled_from([b"*\n", b"a\n", b"b/\n!c\n", b"/e/g\nx"]), st.just(0o644)),
)
RULED_EDITS = st.one_of(
    RULES,
    st.tuples(st.just("write"), RULED, st.tuples(CONTENTS, st.just(0o644))),
    st.tuples(st.just("delete"), st.one_of(RULED, st.just(b".gitignore")), st.none()),
    st.tuples(st.just("rename"), RULED, RULED),
    st.tuples(st.just("mode"), RULED, st.sampled_from([0, 0o700])),
)


async def undone_among_rules(folder: Path, first: Edits, then: Edits) -> None:
    async with rig(folder) as made:
        for one in first:
            edit(made.root, *one)
        before = look(made.root)
        async with made.turn("t"):
            for one in then:
                edit(made.root, *one)
        changes = await made.service.of_turn("t")
        left_out = {one.path for one in changes.left_out}

        def known(sql: sqlite3.Connection) -> set[bytes]:
            state = spans.state(sql, "t", after=False)
            tree = State(sql, "" if state is None else state.root)
            held = {path: tree.kept(path.decode()) for path in before}
            return {path for path, entry in held.items() if entry is not None and entry.kind != "x"}

        held = await made.store.run(known)
        kept = {one.path for one in (await made.undo("t")).kept}
        after = look(made.root)
        for path in {path for path, _ in before.items() ^ after.items()}:
            assert within(path, kept if path in held else kept | left_out), path


def within(path: bytes, paths: set[str]) -> bool:
    """Tell whether a path is one of some, or below one, or of what else is in a folder."""
    parts = path.decode().split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(one in paths or f"{one}/" in paths for one in above)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    first=st.lists(RULED_EDITS, min_size=4, max_size=10),
    then=st.lists(RULED_EDITS, min_size=3, max_size=8),
)
def test_an_undo_among_rules_brings_back_what_was_kept_or_says_what_stays(
    first: Edits, then: Edits
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        closed(patched)
        asyncio.run(undone_among_rules(Path(folder), first, then))


@pytest.mark.parametrize("steps", range(4, 40, 5))
async def test_an_undo_that_was_killed_loses_nothing_to_a_rule(steps: int, tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        for name in ("a", "src/b", "src/deep/c"):
            edit(made.root, "write", name.encode(), (b"before\n", 0o644))
        async with made.turn("rule"):
            (made.root / ".gitignore").write_text("a\nsrc/\n")
        async with made.turn("t"):
            (made.root / "a").unlink()
            shutil.rmtree(made.root / "src")
        with killed_after(steps), suppress(RequestError):
            await made.undo("t")
        await made.again()
        await made.service.recover()
        undo = (await made.service.totals(["t"]))["t"].undo_id
        undo = undo or (await made.undo("t")).undo_id
        told = dict.fromkeys(("a", "src/b", "src/deep/c"), "added")
        assert await made.changed(undo) == told
        assert (await made.undo(undo)).kept == []
        assert [path.name for path in made.root.iterdir()] == [".gitignore"]
