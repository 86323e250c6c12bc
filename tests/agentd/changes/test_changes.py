"""What turns change: what is told, what is left out, whose work an undo leaves alone."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.agentd.changes.rig import closed, look, rig

from greylag.agentd.changes import plan, report, service, store
from greylag.agentd.changes.capture import Capture
from greylag.agentd.changes.service import ChangeService
from greylag.agentd.changes.states import Change, SnapshotError, TreeEntry, split
from greylag.agentd.problems import RequestError
from greylag.common import sqlite
from greylag.common.agent_api import TurnChanges
from greylag.execd import snapshots

_NO_LOG = "PRAGMA journal_mode = DELETE"


async def _broken(*_: Any) -> Any:
    raise SnapshotError("execd cannot be reached")


async def test_changes_are_told_with_renames_lines_and_what_is_left_out(tmp_path: Path) -> None:
    async with rig(tmp_path, file_limit=10_000) as made:
        root = made.root
        (root / "a.py").write_text("one\ntwo\nthree\n")
        (root / "old.txt").write_text("content\n")
        (root / "gone").write_text("x\ny\n")
        (root / ".gitignore").write_text("*.log\n!kept.log\n/dist/\n")
        (root / "plain").mkdir()
        async with made.turn("t"):
            (root / "a.py").write_text("one\n2\nthree\nfour\n")
            (root / "sub").mkdir()
            (root / "old.txt").rename(root / "sub/new.txt")
            (root / "gone").unlink()
            (root / "pic").write_bytes(b"\0\1")
            (root / "big").write_bytes(b"x" * 10_001)
            (root / "node_modules/x").mkdir(parents=True)
            (root / "a.log").write_text("ignored")
            (root / "kept.log").write_text("kept\n")
            (root / "dist").mkdir()
            (root / "empty").mkdir()
            (root / "plain").chmod(0o700)
            (root / "link").symlink_to("a.py")
        found = await made.service.of_turn("t")
        told = {one.path: (one.change, one.added_lines, one.deleted_lines) for one in found.changes}
        assert told == {
            "a.py": ("modified", 2, 1),
            "empty": ("added", None, None),
            "gone": ("deleted", 0, 2),
            "kept.log": ("added", 1, 0),
            "link": ("added", None, None),
            "pic": ("added", None, None),
            "plain": ("modified", None, None),
            "sub/new.txt": ("renamed", 0, 0),
        }
        assert (found.total, found.added_lines, found.deleted_lines) == (8, 3, 3)
        assert {one.path: one.reason for one in found.left_out} == {
            "a.log": "ignored",
            "big": "too_large",
            "dist": "ignored",
            "node_modules": "build",
        }
        totals = await made.service.totals(["t", "another"])
        assert totals == {"t": TurnChanges(8, 3, 3)}
        states = str(found.from_snapshot), str(found.to_snapshot)
        diff = await made.service.diff("t", "a.py")
        assert diff == await made.service.diff_between(*states, "a.py")
        assert diff.diff == (
            "--- a/a.py\n+++ b/a.py\n@@ -1,3 +1,4 @@\n one\n-two\n+2\n three\n+four\n"
        )
        assert (await made.service.diff("t", "pic")).change.binary
        with pytest.raises(RequestError, match="Nothing changed"):
            await made.service.diff("t", "plain/x")


async def test_what_was_kept_is_undone_though_the_turn_wrote_a_rule_that_names_it(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as made:
        root = made.root
        (root / "src/deep").mkdir(parents=True)
        for name in ("config.env", "src/a.py", "src/deep/b.py", "data.txt", "src2"):
            (root / name).write_text("before\n")
        (root / "link.env").symlink_to("config.env")
        before = look(root)
        async with made.turn("t"):
            (root / ".gitignore").write_text("*.env\n/src/\ndata.txt\n")
            (root / "src/pyvenv.cfg").touch()
            (root / "config.env").write_text("agent\n")
            (root / "src/a.py").write_text("agent\n")
            (root / "src/deep/b.py").unlink()
            (root / "src/new.py").write_text("agent\n")
            (root / "new.env").write_text("agent\n")
        assert await made.changed("t") == {
            ".gitignore": "added",
            "config.env": "modified",
            "src/a.py": "modified",
            "src/deep/b.py": "deleted",
        }
        left_out = (await made.service.of_turn("t")).left_out
        assert {one.path: one.reason for one in left_out} == {
            "new.env": "ignored",
            "src/": "ignored",
        }
        await made.again()
        async with made.turn("next"):
            (root / "data.txt").write_text("later\n")
        assert await made.changed("next") == {"data.txt": "modified"}
        assert (await made.undo("next")).kept == []
        assert (await made.undo("t")).kept == []
        assert set(look(root).items()) - set(before.items()) == {
            (name, look(root)[name]) for name in (b"new.env", b"src/new.py", b"src/pyvenv.cfg")
        }


async def test_a_rule_hides_nothing_however_much_it_names_and_whenever_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as made:
        root = made.root
        (root / "data").mkdir()
        for n in range(9000):
            (root / f"data/a file with a name that is long enough to fill lists {n}").touch()
        (root / "z.py").write_text("before\n")
        (root / "bait").touch()
        listed = Capture._list
        rules = iter(["bait\n", "*\n"])

        async def ruled(capture: Capture) -> Any:
            (root / ".gitignore").write_text(next(rules, "*\n"))
            return await listed(capture)

        async with made.turn("t"):
            (root / "z.py").write_text("agent\n")
            monkeypatch.setattr(Capture, "_list", ruled)
        assert await made.changed("t") == {"z.py": "modified"}
        monkeypatch.setattr(Capture, "_list", listed)
        for n in range(100):
            (root / f"data/new {n}").touch()
        assert (await made.service.between(None, None)).left_out_total < 50
        await made.undo("t")
        assert (root / "z.py").read_text() == "before\n"


async def test_what_comes_and_goes_in_a_folder_that_is_left_out_is_no_change_of_it(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as made:
        root = made.root
        (root / "src").mkdir()
        (root / "src/kept").touch()
        async with made.turn("rule"):
            (root / ".gitignore").write_text("src/\n")
            for number in range(30):
                (root / f"src/{number}").touch()
        async with made.turn("t"):
            (root / "src/-").touch()
            (root / "src/1").unlink()
        found = await made.service.of_turn("t")
        assert (found.changes, [one.path for one in found.left_out]) == ([], ["src/"])
        assert (await made.undo("t")).kept == []
        async with made.turn("delete"):
            shutil.rmtree(root / "src")
        kept = (await made.undo("delete")).kept
        assert {one.path: one.reason for one in kept} == {"src/": "left_out"}
        assert [path.name for path in (root / "src").iterdir()] == ["kept"]


async def test_what_an_undo_brings_back_under_a_rule_can_be_undone_too(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        root = made.root
        (root / "src/deep").mkdir(parents=True)
        for name in ("a", "src/b", "src/deep/c"):
            (root / name).write_text("before\n")
        async with made.turn("rule"):
            (root / ".gitignore").write_text("a\nsrc/\n")
        async with made.turn("t"):
            (root / "a").unlink()
            shutil.rmtree(root / "src")
        undone = await made.undo("t")
        told = dict.fromkeys(("a", "src/b", "src/deep/c"), "added")
        assert {one.path: one.change for one in undone.changes.changes} == told
        await made.again()
        assert (await made.undo(undone.undo_id)).kept == []
        assert [path.name for path in root.iterdir()] == [".gitignore"]


@pytest.mark.parametrize("kept_by", ["undo", "rule"])
async def test_what_came_to_a_folder_that_is_kept_on_is_not_lost_when_a_rule_comes(
    kept_by: str, tmp_path: Path
) -> None:
    async with rig(tmp_path) as made:
        root, rule = made.root, made.root / ".gitignore"
        (root / "src").mkdir()
        (root / "src/a").touch()
        async with made.turn("first"):
            if kept_by == "undo":
                shutil.rmtree(root / "src")
            else:
                rule.write_text("src/\n")
        await made.undo("first")
        (root / "src/sub").mkdir()
        for name in ("new", "old", "sub/x"):
            (root / "src" / name).write_text("before\n")
        before = look(root)
        async with made.turn("t"):
            rule.write_text("src/\n")
            (root / "src/new").write_text("agent\n")
            (root / "src/old").unlink()
            (root / "src/other").touch()
        told = {".gitignore": "added", "src/new": "modified", "src/old": "deleted"}
        assert await made.changed("t") == told
        async with made.turn("later"):
            (root / "src/sub/x").write_text("agent\n")
        assert await made.changed("later") == {"src/sub/x": "modified"}
        assert (await made.undo("later")).kept == []
        await made.undo("t")
        assert {path for path, _ in look(root).items() - before.items()} == {b"src/other"}
        assert before.keys() <= look(root).keys()


async def test_a_rule_hides_nothing_that_could_not_be_read_meanwhile(
    closing: None, tmp_path: Path
) -> None:
    async with rig(tmp_path) as made:
        root = made.root
        (root / "src").mkdir()
        (root / "early").mkdir()
        paths = [root / name for name in ("a", "b", "src/c", "early/d")]
        for path in paths:
            path.write_text("before\n")
        async with made.turn("close"):
            (root / "b").chmod(0)
            (root / "early").chmod(0)
        async with made.turn("rule"):
            (root / ".gitignore").write_text("a\nb\nsrc\nearly\n")
            (root / "a").chmod(0)
            (root / "src").chmod(0)
        left_out = (await made.service.of_turn("rule")).left_out
        assert {one.path: one.reason for one in left_out} == dict.fromkeys(
            ("a", "b", "src", "early"), "unreadable"
        )
        for name in ("a", "b", "src", "early"):
            (root / name).chmod(0o700)
        async with made.turn("t"):
            for path in paths:
                path.write_text("agent\n")
        told = dict.fromkeys(("a", "b", "src/c", "early/d"), "modified")
        assert await made.changed("t") == told
        assert (await made.undo("t")).kept == []
        assert {path.read_text() for path in paths} == {"before\n"}


async def test_what_is_kept_on_in_closed_folders_is_bounded(
    closing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST_KEPT", 60)
    async with rig(tmp_path) as made:
        kept = []
        for number in range(4):
            folder = made.root / f"folder{number}"
            folder.mkdir()
            (folder / "a file").touch()
            await made.service.between(None, None)
            folder.chmod(0)
            await made.service.between(None, None)
            rows = await made.store.run(lambda sql: sql.execute("SELECT * FROM kept").fetchall())
            kept.append(len(rows))
        assert kept == [2, 4, 3, 5]


async def test_what_is_kept_on_costs_one_list_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists: list[frozenset[str]] = []
    listed = snapshots.records

    def counted(files: Any, kept: frozenset[str]) -> Iterator[bytes]:
        lists.append(kept - {""})
        return listed(files, kept)

    monkeypatch.setattr(snapshots, "records", counted)
    async with rig(tmp_path) as made:
        (made.root / "src").mkdir()
        (made.root / "src/a").touch()
        await made.service.between(None, None)
        (made.root / ".gitignore").write_text("src\n")
        await made.service.between(None, None)
        kept = frozenset({"src", "src/a"})
        assert lists == [frozenset(), frozenset(), kept]
        await made.again()
        await made.service.between(None, None)
        assert lists[3:] == [kept]
        shutil.rmtree(made.root / "src")
        await made.service.between(None, None)
        await made.service.between(None, None)
        assert lists[4:] == [kept, frozenset()]


async def test_what_another_session_changed_while_a_state_could_not_be_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as made:
        root, read = made.root, Capture._read
        (root / "a").write_text("before\n")

        async def late(capture: Capture, batch: Any) -> None:
            (root / "a").write_text("another\n")
            await read(capture, batch)

        await made.service.begin("one", "s")
        (root / "a").write_text("one\n")
        monkeypatch.setattr(Capture, "_read", late)
        await made.service.begin("two", "another")
        monkeypatch.setattr(Capture, "_read", read)
        (root / "a").write_text("two\n")
        await made.service.end("two")
        await made.service.end("one")
        kept = {one.path: one.reason for one in (await made.undo("one")).kept}
        assert kept == {"a": "changed_by_others"}
        assert (root / "a").read_text() == "two\n"


@pytest.mark.parametrize("hostile", [b'"build"', b"{}"])
async def test_a_workspace_that_is_no_folder_is_no_state(
    hostile: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(*_: Any) -> Any:
        yield snapshots.RECORD.pack(0, len(hostile)) + hostile

    async with rig(tmp_path) as made:
        monkeypatch.setattr(snapshots, "records", lying)
        async with made.turn("t"):
            pass
        with pytest.raises(RequestError, match="could not be kept"):
            await made.changed("t")


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> None:
    """See ``closed``."""
    closed(monkeypatch)


async def test_an_undo_that_meets_a_full_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_back = ChangeService._bring_back

    async def full(service: ChangeService, *about: Any) -> Any:
        await made.store.run(lambda sql: sql.execute("PRAGMA max_page_count = 1"))
        (made.root / "b").write_bytes(os.urandom(500_000))
        return await bring_back(service, *about)

    async with rig(tmp_path) as made:
        async with made.turn("t"):
            (made.root / "a").write_bytes(os.urandom(500_000))
        monkeypatch.setattr(ChangeService, "_bring_back", full)
        with pytest.raises(RequestError, match=r"full.* goes on by itself") as refused:
            await made.undo("t")
        assert refused.value.code == "storage_failed"


async def test_states_for_which_the_disk_has_no_room_are_told_as_that(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        (made.root / "a").write_text("a")
        await made.service.begin("t1", "s")
        await made.service.end("t1")
        await made.store.run(lambda sql: sql.execute("PRAGMA max_page_count = 1"))
        (made.root / "b").write_bytes(os.urandom(500_000))
        with pytest.raises(RequestError, match="full") as refused:
            await made.service.between(None, None)
        assert refused.value.code == "storage_failed"


@pytest.mark.parametrize(("part", "names"), [("a" * 125, 5000), ("a" * 250, 1), ("a", 600_000)])
async def test_a_list_that_would_take_more_memory_than_its_length_is_no_state(
    part: str, names: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(*_: Any) -> Iterator[bytes]:
        for depth in range(126):
            path = "/".join([part] * depth)
            yield snapshots._record(path, [[part, "d", 0o755]])
        entries = [[str(number), "l", ""] for number in range(names)]
        yield snapshots._record("/".join([part] * 126), entries)

    async with rig(tmp_path) as made:
        monkeypatch.setattr(snapshots, "records", listed)
        with pytest.raises(RequestError) as refused:
            await made.service.between(None, None)
        assert refused.value.code == "agent_unavailable"


async def test_an_undo_says_what_stays_because_it_was_left_out_before_or_after(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, file_limit=100) as made:
        root = made.root
        (root / ".gitignore").write_text("secret\n")
        for name in ("secret", "grows", "closed"):
            (root / name).write_text("before\n")
        async with made.turn("t"):
            (root / ".gitignore").unlink()
            (root / "secret").write_text("agent\n")
            (root / "grows").write_text("agent\n" * 100)
            (root / "closed").unlink()
            os.mkfifo(root / "closed")
        assert await made.changed("t") == {".gitignore": "deleted"}
        left_out = (await made.service.of_turn("t")).left_out
        assert {one.path: one.reason for one in left_out} == {
            "secret": "ignored",
            "grows": "too_large",
            "closed": "special",
        }
        undone = await made.undo("t")
        assert {one.path: one.reason for one in undone.kept} == dict.fromkeys(
            ("secret", "grows", "closed"), "left_out"
        )
        assert (root / "secret").read_text() == "agent\n"


async def test_any_time_of_a_file_and_any_depth_of_a_folder_can_be_kept(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        async with made.turn("t"):
            (made.root / "old").write_text("of 1960\n")
            os.utime(made.root / "old", (-315_619_200, -315_619_200))
            deep = os.open(made.root, os.O_RDONLY)
            name = b"\xff" * 255
            for _ in range(16):
                os.mkdir(name, dir_fd=deep)
                os.mkdir(name[:-1], dir_fd=deep)
                above, deep = deep, os.open(name, os.O_RDONLY, dir_fd=deep)
                os.close(above)
            os.mkdir(name, dir_fd=deep)
        found = await made.service.of_turn("t")
        assert "old" in {one.path for one in found.changes}
        (deepest,) = found.left_out
        assert deepest.reason == "too_deep"
        for turn in ("beside", "later"):  # what is too deep is not kept on
            async with made.turn(turn):
                os.symlink("old", turn, dir_fd=deep)
            assert list((await made.changed(turn)).values()) == ["added"]
        os.close(deep)
        # A file of this path may be, before it makes room for the folder.
        await made.store.run(lambda sql: store.keep_on(sql, [split(deepest.path)]))
        assert (await made.service.between(None, None)).left_out_total == 1
        await made.undo("t")
        assert not (made.root / "old").exists()


async def test_an_undo_leaves_what_others_did_and_says_so(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        root = made.root
        for name in ("mine", "theirs", "person", "uploaded"):
            (root / name).write_text("before\n")
        await made.service.begin("a", "one")
        (root / "mine").write_text("a\n")
        (root / "made").mkdir()
        (root / "made/by-a").write_text("a\n")
        await made.service.begin("b", "two")  # both sessions are at work now
        (root / "theirs").write_text("b\n")
        await made.service.end("a")
        await made.service.touched("uploaded")
        (root / "uploaded").write_text("by hand\n")
        (root / "person").write_text("b\n")
        await made.service.end("b")
        (root / "person").write_text("by hand\n")
        (root / "made/by-hand").write_text("by hand\n")
        shared = {one.path for one in (await made.service.of_turn("a")).changes if one.shared}
        assert shared == {"theirs"}

        undone = await made.undo("a")
        assert {one.path: one.reason for one in undone.kept} == {
            "theirs": "changed_by_others",
            "made": "not_empty",
        }
        assert (root / "mine").read_text() == "before\n"
        assert [path.name for path in (root / "made").iterdir()] == ["by-hand"]
        assert (root / "theirs").read_text() == "b\n"

        undone = await made.undo("b")
        assert {one.path: one.reason for one in undone.kept} == {
            "theirs": "changed_by_others",
            "uploaded": "changed_by_others",
            "person": "changed_since",
        }
        present = look(root)
        forced = await made.undo("b", override=True, paths=["person", "theirs"])
        assert forced.kept == []
        assert (root / "person").read_text() == (root / "theirs").read_text() == "before\n"
        assert (root / "uploaded").read_text() == "by hand\n"
        again = await made.undo(forced.undo_id)
        assert look(root) == present
        assert (await made.service.totals(["b"]))["b"].undo_id is None
        last = await made.undo(again.undo_id)
        told = (await made.service.totals(["b"]))["b"]
        assert (told.undo_id, told.undone_files) == (last.undo_id, 2)


class Gate(asyncio.Event):
    """Holds up every list of the workspace while it is not set; only then waiting is given up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._monkeypatch = monkeypatch

    def set(self) -> None:
        super().set()
        self._waits_for(60.0)

    def clear(self) -> None:
        super().clear()
        self._waits_for(0.5)

    def _waits_for(self, seconds: float) -> None:
        for name in ("_LISTED_WITHIN", "_READ_WITHIN", "_END_WITHIN"):
            self._monkeypatch.setattr(service, name, seconds)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    opened = Gate(monkeypatch)
    opened.set()
    listing = Capture._list

    async def held_up(capture: Capture) -> Any:
        await opened.wait()
        return await listing(capture)

    monkeypatch.setattr(Capture, "_list", held_up)
    return opened


async def test_a_state_that_comes_too_late_is_none_and_says_so(gate: Gate, tmp_path: Path) -> None:
    async with rig(tmp_path) as found:
        file = found.root / "file"
        file.write_text("original")
        await found.service.totals([])  # the store is open: waiting for that takes no time below
        gate.clear()
        await found.service.begin("t1", "s")
        file.write_text("by the agent")
        gate.set()
        (found.root / "later").touch()
        await found.service.end("t1")
        for asked in (found.changed("t1"), found.undo("t1")):
            with pytest.raises(RequestError, match="could not be kept"):
                await asked
        assert file.read_text() == "by the agent"


async def test_what_another_turn_did_while_a_state_was_awaited_is_not_undone_with_this_one(
    gate: Gate, tmp_path: Path
) -> None:
    async with rig(tmp_path) as found:
        await found.service.begin("t1", "s")
        (found.root / "one").touch()
        gate.clear()
        await found.service.end("t1")
        await found.service.begin("t2", "another")
        (found.root / "two").touch()
        gate.set()
        await found.service.end("t2")
        undone = await found.undo("t1")
        assert {kept.path: kept.reason for kept in undone.kept} == dict.fromkeys(
            ("one", "two"), "changed_by_others"
        )
        with pytest.raises(RequestError, match="could not be kept"):
            await found.changed("t2")


async def test_who_waits_for_an_undo_that_the_stop_cuts_short_is_told(
    gate: Gate, tmp_path: Path
) -> None:
    async with rig(tmp_path) as found:
        await found.service.begin("t1", "s")
        (found.root / "one").touch()
        await found.service.end("t1")
        gate.clear()
        undoing = asyncio.create_task(found.undo("t1"))
        await asyncio.sleep(0.1)  # the gate tells nobody who waits at it
        await found.service.stop()
        with pytest.raises(RequestError, match="agentd is stopping"):
            await undoing


async def test_nested_repositories_come_back_with_branches_and_index(tmp_path: Path) -> None:
    program = shutil.which("git")
    if program is None:
        pytest.skip("GIT IS NOT INSTALLED")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def git(*words: str) -> str:
        at = str(tmp_path / "workspace/lib/inner")
        who = ("-c", "user.name=a", "-c", "user.email=a@b.test", "-c", "core.hooksPath=")
        done = subprocess.run(  # noqa: S603 - git, on the test's own words
            [program or "git", "-C", at, *who, *words], check=True, capture_output=True, env=env
        )
        return done.stdout.decode()

    async with rig(tmp_path) as made:
        inner = made.root / "lib/inner"
        inner.mkdir(parents=True)
        (made.root / ".gitignore").write_text("*.txt\nbuild\n")
        git("init", "-q", "-b", "main")
        (inner / "f.txt").write_text("one\n")
        git("add", "f.txt")
        git("commit", "-qm", "one")
        (inner / "f.txt").write_text("staged\n")
        git("add", "f.txt")
        before, status = look(made.root), git("status", "--porcelain=v2", "--branch")
        async with made.turn("t"):
            git("commit", "-qm", "two")
            git("checkout", "-qb", "build")
            (inner / "f.txt").unlink()
        assert (await made.undo("t")).kept == []
        assert look(made.root) == before
        assert git("status", "--porcelain=v2", "--branch") == status


async def test_the_oldest_states_go_first_and_say_so(tmp_path: Path) -> None:
    async with rig(tmp_path, limit=600_000) as made:
        for number in range(8):
            async with made.turn(f"t{number}"):
                (made.root / "f").write_bytes(os.urandom(200_000))
        with pytest.raises(RequestError) as gone:
            await made.service.of_turn("t0")
        assert gone.value.code == "snapshot_gone"
        assert await made.changed("t7") == {"f": "modified"}
        assert (tmp_path / "snapshots.db").stat().st_size < 2_000_000
        async with made.turn("large"):
            (made.root / "g").write_bytes(os.urandom(200_000))
        told = (await made.service.of_turn("large")).left_out
        assert [(one.path, one.reason) for one in told] == [("g", "no_room")]


async def test_a_turn_that_was_cut_ends_with_the_next_start(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.service.begin("t", "s")
        with pytest.raises(RequestError) as running:
            await made.service.of_turn("t")
        assert running.value.code == "turn_running"
        (made.root / "f").write_text("x")
        await made.again()
        await made.service.recover()
        assert await made.changed("t") == {"f": "added"}
        undone = await made.undo("t")
        note, undos = await made.service.notes("s")
        assert ("f" in note, [one.span_id for one in undos]) == (True, [undone.undo_id])
        await made.service.told(undos)
        assert await made.service.notes("s") == ("", [])
        assert (await made.service.between("t", "t")).total == 1
        assert (await made.service.between(None, None)).total == 0


async def test_a_turn_whose_end_could_not_be_kept_ends_with_the_next_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as made:
        root = made.root
        async with made.turn("whole"):
            (root / "first").touch()
        with monkeypatch.context() as patched:
            await made.service.begin("t", "s")
            (root / "one").touch()
            patched.setattr(Capture, "take", _broken)
            assert await made.service.end("t") is None
            with pytest.raises(RequestError, match="execd cannot be reached"):
                await made.changed("t")
            assert await made.changed("whole") == {"first": "added"}
        await made.service.touched("by-hand")
        (root / "by-hand").write_text("a person's, before the end is known")
        async with made.turn("later"):
            (root / "two").touch()
        await made.again()
        assert await made.changed("later") == {"two": "added"}
        assert (await made.undo("later")).kept == []
        assert [one.path for one in (await made.undo("t")).kept] == ["by-hand"]
        assert sorted(path.name for path in root.iterdir()) == ["by-hand", "first"]


async def test_a_turn_whose_end_could_not_be_kept_ends_with_the_end_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as made, asyncio.timeout(30):
        await made.service.begin("other", "another")
        await made.service.begin("going-on", "a third")
        await made.service.begin("t", "s")
        (made.root / "by-t").touch()
        with monkeypatch.context() as patched:
            patched.setattr(Capture, "take", _broken)
            await made.service.end("t")
        await made.service.end("other")
        (made.root / "terminal").write_text("a person's, once the end is known")
        assert await made.changed("t") == {"by-t": "added"}
        assert [one.path for one in (await made.undo("t")).kept] == ["by-t"]
        assert {path.name for path in made.root.iterdir()} == {"by-t", "terminal"}
        with pytest.raises(RequestError, match="not ended yet"):
            await made.changed("going-on")
        while not await made.service.totals(["t"]):
            pass  # they are counted beside all else


async def test_who_looks_at_turns_lists_the_workspace_only_for_one_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, recovery = Capture.take, ChangeService._recovery
    taken: list[Capture] = []
    looking: list[ChangeService] = []
    all_look = asyncio.Event()
    all_look.set()

    async def looks(service: ChangeService) -> None:
        looking.append(service)
        if len(looking) % 5 == 0:
            all_look.set()
        await recovery(service)

    async def counted(capture: Capture, *asked: Any) -> Any:
        taken.append(capture)
        await all_look.wait()
        if broken:
            raise SnapshotError("execd cannot be reached")
        return await take(capture, *asked)

    monkeypatch.setattr(ChangeService, "_recovery", looks)
    async with rig(tmp_path) as made:
        async with made.turn("whole"):
            (made.root / "first").touch()
        await made.service.begin("t", "s")
        (made.root / "second").touch()
        broken = True
        monkeypatch.setattr(Capture, "take", counted)
        await made.service.end("t")
        taken.clear()
        assert await made.changed("whole") == {"first": "added"}
        with pytest.raises(RequestError, match="not kept any longer"):
            await made.changed("unknown")
        assert taken == []
        looking.clear()
        all_look.clear()
        asked = [made.changed("t") for _ in range(5)]
        for failed in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(failed, RequestError)
            assert failed.code == "agent_unavailable"
        assert len(taken) == 1
        broken = False
        all_look.clear()
        asked = [made.changed("t") for _ in range(5)]
        assert await asyncio.gather(*asked) == [{"second": "added"}] * 5
        assert len(taken) == 2


async def test_what_an_undo_refuses_is_no_work_of_a_turn_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: Any) -> dict[str, str]:
        return {"file": "permission_denied"}

    async with rig(tmp_path) as made:
        async with made.turn("t"):
            (made.root / "file").write_text("by t")
        async with made.turn("running", "another"):
            with monkeypatch.context() as patched:
                patched.setattr(Capture, "restore", refused)
                kept = (await made.undo("t")).kept
            assert [(one.path, one.reason) for one in kept] == [("file", "permission_denied")]
            (made.root / "file").write_text("by the one that runs")
        assert not any(one.shared for one in (await made.service.of_turn("running")).changes)
        assert (await made.undo("running")).kept == []
        assert (made.root / "file").read_text() == "by t"


async def test_what_persons_change_is_noted_for_no_turn_that_has_ended_without_any_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(sql: sqlite3.Connection) -> list[tuple[str, str]]:
        return [tuple(row) for row in sql.execute("SELECT * FROM touched ORDER BY 1")]

    async with rig(tmp_path) as made:
        await made.service.begin("left", "s")
        monkeypatch.setattr(Capture, "take", _broken)
        await made.service.end("left")
        async with made.turn("unknown"):
            await made.service.touched("during")
        await made.service.touched("after")
        assert await made.store.run(noted) == [
            ("left", "after"),
            ("left", "during"),
            ("unknown", "during"),
        ]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\0\0\0\0\0\0\2{}",
        b"\0\0\0\0\0\0\0\x09[[1,2,3]]",
        b'\0\0\0\0\0\0\0\x0f[["..","d",1]] ',
        b'\0\0\0\0\0\0\0\x0f[["a/b","d",1]]',
        b'\0\0\0\0\0\0\0\x18[["a","f",1,1,true,1,1]]',
        b"\0\0\0\xff\xff\xff\xff\xff",
    ],
)
async def test_a_list_that_is_none_is_refused(answer: bytes, tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(snapshots, "records", lambda *_: iter([answer]))
            with pytest.raises(RequestError) as refused:
                await made.service.between(None, None)
        assert refused.value.code == "agent_unavailable"
        async with asyncio.timeout(20):
            assert (await made.service.between(None, None)).total == 0


async def test_an_undo_of_a_folder_reads_what_was_seen_of_it_once(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        for text in ("one", "two"):
            async with made.turn(text):
                for number in range(50):
                    (made.root / str(number)).write_text(text)
        asked: list[str] = []
        await made.store.run(lambda sql: sql.set_trace_callback(asked.append))
        undone = await made.undo("two")
        assert len(undone.changes.changes) == 50
        reads = [one for one in asked if one.startswith("SELECT entries FROM seen")]
        assert len(reads) < 10, reads


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
@pytest.mark.parametrize("later", ["file", "link"])
async def test_what_a_person_puts_in_the_place_of_what_an_undo_takes_away_stays(
    kind: str, later: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore = Capture.restore
    async with rig(tmp_path) as made:
        new = made.root / "new"

        async def replaced(capture: Capture, steps: Any) -> Any:
            shutil.rmtree(new) if kind == "folder" else new.unlink()
            new.write_text("a person's") if later == "file" else new.symlink_to("a-person-s")
            return await restore(capture, steps)

        async with made.turn("t"):
            match kind:
                case "file":
                    new.write_text("by the turn")
                case "link":
                    new.symlink_to("by-the-turn")
                case "folder":
                    new.mkdir()
        with monkeypatch.context() as patched:
            patched.setattr(Capture, "restore", replaced)
            undone = await made.undo("t")
        assert [(one.path, one.reason) for one in undone.kept] == [("new", "file_changed")]
        again = await made.undo(undone.undo_id)
        assert [(one.path, one.reason) for one in again.kept] == [("new", "changed_by_others")]
        kinds = {one.name: one.is_symlink() for one in made.root.iterdir()}
        assert kinds == {"new": later == "link"}


class _Counted(str):
    """A text that counts how often it is looked at."""

    __slots__ = ()
    looks = 0

    def startswith(self, *asked: Any) -> bool:
        _Counted.looks += 1
        return super().startswith(*asked)

    def rpartition(self, *asked: Any) -> tuple[str, str, str]:
        _Counted.looks += 1
        return super().rpartition(*asked)


async def test_an_undo_of_many_paths_looks_at_few_of_them_for_each_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Counted, "looks", 0)
    async with rig(tmp_path) as made:
        folders = [made.root / f"z{n}" for n in range(20)]
        for folder in folders:
            folder.mkdir()
        (made.root / "z7/deep").mkdir()
        (made.root / "z7/deep/file").write_text("before\n")
        async with made.turn("t"):
            (made.root / "z7/deep/file").unlink()
            (made.root / "z7/deep").rmdir()
            for folder in folders:
                folder.rmdir()
        asked = [*(_Counted(f"a/{n}") for n in range(1000)), _Counted("z7/deep/file")]
        undone = await made.undo("t", paths=asked)
        assert [one.path for one in undone.changes.changes] == ["z7/deep/file"]
        assert sorted(path.name for path in made.root.iterdir()) == ["z7"]
        assert _Counted.looks < 1000


async def test_equal_files_that_moved_are_told_as_renamed_by_one_look_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Counted, "looks", 0)
    file, other = (TreeEntry("f", 0o644, 1, [digest]) for digest in ("aa", "bb"))
    changes: dict[str, Change] = {}
    for n in range(500):
        changes[_Counted(f"from/{n:03}")] = file, None
        changes[_Counted(f"to/{n + 10:03}")] = None, file
    changes["from/other"], changes["to/015"] = (other, None), (None, other)
    renamed = report._renames(changes)
    # Those of the same name first; the others in their order.
    expected = {f"to/{n:03}": f"from/{n:03}" for n in range(10, 500)} | {"to/015": "from/other"}
    assert renamed == expected | {f"to/{n + 500}": f"from/{n:03}" for n in range(10)}
    assert _Counted.looks <= 2 * len(changes)


async def test_where_no_write_ahead_log_can_be_kept_states_are_compared_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a file system without shared memory: who reads beside would keep others from writing.
    monkeypatch.setattr(sqlite, "_set_wal", lambda sql: sql.execute(_NO_LOG).fetchone()[0])
    async with rig(tmp_path) as made:
        async with made.turn("t"):
            (made.root / "file").touch()
        assert await made.changed("t") == {"file": "added"}
        assert not (tmp_path / "snapshots.db-wal").exists()
        assert (await made.undo("t")).kept == []


async def test_who_asks_for_now_shares_a_state_that_is_begun_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = Capture._list
    lists: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def held_up(capture: Capture) -> Any:
        go_on = asyncio.Event()
        lists.put_nowait(go_on)
        await go_on.wait()
        return await listing(capture)

    async def ask() -> set[str]:
        return {one.path for one in (await made.service.between(None, None)).changes}

    async with rig(tmp_path) as made, asyncio.timeout(30):
        async with made.turn("t"):
            pass
        monkeypatch.setattr(Capture, "_list", held_up)
        first = asyncio.create_task(ask())
        begun = await lists.get()
        later = [asyncio.create_task(ask()) for _ in range(20)]
        await asyncio.sleep(0)
        beginning = asyncio.create_task(made.service.begin("next", "s"))
        (made.root / "new").touch()
        begun.set()
        for _ in range(2):  # one for all who asked later, and the turn's
            (await lists.get()).set()
        await beginning
        assert await asyncio.gather(*later) == [{"new"}] * 20
        await first
        assert lists.empty()


def _slow_report(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold up what compares states; return what tells that it began, and what lets it go on."""
    compared, done = threading.Event(), threading.Event()

    def slow(*asked: Any) -> Any:
        compared.set()
        done.wait()
        return report.report(*asked)

    monkeypatch.setattr(service, "report", slow)
    return compared, done


async def test_a_turn_and_its_notes_wait_for_no_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as made, asyncio.timeout(30):
        async with made.turn("t"):
            (made.root / "file").touch()
        compared, done = _slow_report(monkeypatch)
        asked = asyncio.create_task(made.service.of_turn("t"))
        try:
            await asyncio.to_thread(compared.wait)
            assert await made.service.notes("s") == ("", [])
            await made.service.begin("next", "s")
        finally:
            done.set()
        assert [one.path for one in (await asked).changes] == ["file"]


async def test_a_turn_waits_for_no_counting_of_what_a_start_found_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as made, asyncio.timeout(30):
        await made.service.begin("left", "s")
        (made.root / "file").touch()
        await made.again()
        compared, done = _slow_report(monkeypatch)
        try:
            await made.service.begin("next", "s")
            await made.service.recover()
            await asyncio.to_thread(compared.wait)
            assert await made.service.totals(["left"]) == {}
        finally:
            done.set()
        while not (found := await made.service.totals(["left"])):
            pass  # it is counted beside all else
        assert found["left"].files == 1


async def test_a_turn_waits_for_no_comparison_of_an_undo_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as made, asyncio.timeout(30):
        async with made.turn("t"):
            (made.root / "file").touch()
        compared, done = _slow_report(monkeypatch)
        undoing = asyncio.create_task(made.undo("t"))
        try:
            await asyncio.to_thread(compared.wait)
            assert not (made.root / "file").exists()
            await made.service.begin("next", "s")
            await made.service.notes("s")
            told = (await made.service.totals(["t"]))["t"]
            assert (told.undo_id is None, told.undone_files) == (False, 1)
        finally:
            done.set()
        assert (await undoing).undo_id == told.undo_id


async def test_what_was_changed_is_compared_before_others_wait_for_an_undo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, done = threading.Event(), threading.Event()

    def slow(*asked: Any) -> Any:
        compared.set()
        done.wait()
        return plan.asked_of(*asked)

    async with rig(tmp_path) as made, asyncio.timeout(30):
        async with made.turn("t"):
            (made.root / "one").touch()
            (made.root / "two").touch()
        monkeypatch.setattr(service, "asked_of", slow)
        undoing = asyncio.create_task(made.undo("t"))
        try:
            await asyncio.to_thread(compared.wait)
            async with made.turn("next"):
                (made.root / "one").write_text("again")
        finally:
            done.set()
        undone = await undoing
        assert {one.path: one.reason for one in undone.kept} == {"one": "changed_since"}
        assert [path.name for path in made.root.iterdir()] == ["one"]


async def test_an_undo_whose_states_have_made_room_by_then_is_told_without_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> Any:
        raise SnapshotError("A kept content is not what it was.")

    async with rig(tmp_path) as made:
        async with made.turn("t"):
            (made.root / "file").touch()
        monkeypatch.setattr(service, "report", gone)
        undone = await made.undo("t")
        assert (undone.changes.changes, undone.changes.total) == ([], 1)
        assert not (made.root / "file").exists()
        assert (await made.service.totals(["t"]))["t"].undo_id == undone.undo_id
