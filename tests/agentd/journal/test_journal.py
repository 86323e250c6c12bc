import asyncio
import json
import os
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greylag.agentd.journal import folder as journal_folder
from greylag.agentd.journal import journal as turn_journal
from greylag.agentd.journal.folder import Journals, Reserve
from greylag.agentd.journal.journal import (
    JournalError,
    JournalFullError,
    JournalGoneError,
    JournalTail,
    TurnJournal,
    UnknownEventError,
)
from greylag.common import sse

BIG = 1 << 20
CONTENTS = st.dictionaries(st.text(max_size=5), st.text(max_size=40), max_size=3)


def journal_at(folder: Path, limit: int = BIG) -> TurnJournal:
    return TurnJournal(folder / "t.sse", "t", limit)


async def read_all(tail: JournalTail) -> bytes:
    try:
        return b"".join([data async for data in tail.chunks()])
    finally:
        tail.close()


def events_of(path: Path) -> list[tuple[str, Any]]:
    """Repair a journal and return its events."""
    found: list[tuple[str, Any]] = []
    count = journal_folder.repair(path, "t", lambda kind, content: found.append((kind, content)))
    assert count == len(found)
    return found


async def ended(journal: TurnJournal) -> None:
    await journal.seal()
    journal.publish_end()


async def test_the_file_holds_exactly_the_frames_as_they_are_sent(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    journal.append("message", {"content": "a\n\nb ä"})
    journal.append("complete", {})
    await ended(journal)
    expected = sse.encode({"type": "message", "content": {"content": "a\n\nb ä"}}, id="t-0")
    expected += sse.encode({"type": "complete", "content": {}}, id="t-1")
    assert (tmp_path / "t.sse").read_bytes() == expected


async def test_nothing_is_readable_before_it_is_in_the_file(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    for _ in range(100):
        journal.append("message", {"content": "x"})
        assert journal.size <= (tmp_path / "t.sse").stat().st_size
    await asyncio.sleep(0)
    assert journal.size == (tmp_path / "t.sse").stat().st_size > 0
    await ended(journal)


async def test_events_of_one_loop_round_become_visible_together(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    changed = journal.changed
    journal.append("message", {"content": "x"})
    journal.append("message", {"content": "y"})
    assert not changed.is_set()
    await changed.wait()
    assert (tmp_path / "t.sse").read_bytes().count(b"\n\n") == 2
    await ended(journal)


async def test_what_seal_writes_is_seen_only_after_publish_end(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    journal.append("complete", {})
    await journal.seal()
    assert journal.size == 0
    assert (tmp_path / "t.sse").stat().st_size > 0
    for _ in range(2):
        with pytest.raises(JournalError, match="has ended"):
            journal.append("message", {})
        journal.publish_end()
    assert journal.size == (tmp_path / "t.sse").stat().st_size


async def test_an_ended_journal_is_on_the_disk_with_its_name_before_its_end_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journal_at(tmp_path)
    journal.append("complete", {})
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append((os.fstat(fd), journal.size)))
    await journal.seal()
    journal.publish_end()
    file = (tmp_path / "t.sse").stat()
    (written, seen), (folder, _) = synced
    assert (written.st_ino, seen) == (file.st_ino, 0)
    assert stat.S_ISDIR(folder.st_mode)
    assert written.st_size == file.st_size > 0


async def test_a_journal_that_ends_unwritten_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []
    monkeypatch.setattr(turn_journal, "write_all", lambda *what: written.append(what))
    journal = journal_at(tmp_path)
    journal.append("message", {"content": "never seen"})
    journal.publish_end()
    await asyncio.sleep(0)
    assert written == []  # the number of its file is another's by now


async def test_of_an_event_that_is_too_large_so_much_is_kept_as_clients_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_journal, "MOST_EVENT", 1000)
    journal = journal_at(tmp_path)
    long = {"name": "shell", "number": 1, "none": None, "lines": ["x" * 100] * 2000}
    plain = journal.append("tool", long)
    monkeypatch.setattr(turn_journal, "MOST_EVENT", 5000)
    cut = journal.append("tool", long)
    await ended(journal)
    assert events_of(tmp_path / "t.sse") == [("tool", plain), ("tool", cut)]
    assert plain == {"name": "shell", "number": 1}
    assert cut == {**long, "lines": ["x" * 100] * 20}


async def test_the_limit_stops_the_turn_but_leaves_room_for_its_end(tmp_path: Path) -> None:
    journal = journal_at(tmp_path, limit=2000)
    for _ in range(9):
        journal.append("message", {"content": "x" * 150})
    with pytest.raises(JournalFullError):
        journal.append("message", {"content": "x" * 1000})
    journal.append("error", {"error": "full" * 200}, last_words=True)
    journal.append("complete", {}, last_words=True)
    await ended(journal)
    kinds = [kind for kind, _ in events_of(tmp_path / "t.sse")]
    assert kinds[-2:] == ["error", "complete"]


async def test_a_failed_write_leaves_only_whole_frames_and_is_told(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    journal.append("message", {"content": "kept"})
    await asyncio.sleep(0)
    kept = (tmp_path / "t.sse").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 10, hard))
    try:
        journal.append("message", {"content": "lost"})
        journal._flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "t.sse").read_bytes() == kept
    with pytest.raises(JournalError, match="cannot be written"):
        journal.append("message", {"content": "more"})
    with pytest.raises(JournalError):
        await journal.seal()
    journal.publish_end()


async def test_a_reader_follows_live_and_ends_with_the_turn(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    reading = asyncio.create_task(read_all(JournalTail(tmp_path / "t.sse", journal)))
    for number in range(300):
        journal.append("message", {"content": str(number)})
        if number % 7 == 0:
            await asyncio.sleep(0)
    await ended(journal)
    assert await reading == (tmp_path / "t.sse").read_bytes()


async def test_the_reader_of_a_journal_that_a_tool_cuts_off_comes_to_an_end(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    journal.append("message", {"content": "gone"})
    await asyncio.sleep(0)
    os.truncate(tmp_path / "t.sse", 0)
    tail = JournalTail(tmp_path / "t.sse", journal)
    assert await anext(tail.chunks(), None) is None
    tail.close()
    journal.publish_end()


async def test_a_heartbeat_comes_only_between_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylag.agentd.journal.journal.HEARTBEAT_SECONDS", 0.01)
    journal = journal_at(tmp_path)
    tail = JournalTail(tmp_path / "t.sse", journal)
    chunks = tail.chunks()
    assert await anext(chunks) == sse.HEARTBEAT
    journal.append("complete", {})
    await ended(journal)
    rest = [data async for data in chunks]
    assert rest[-1] == (tmp_path / "t.sse").read_bytes()
    tail.close()


async def test_a_removed_journal_is_told_apart_from_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(JournalGoneError):
        JournalTail(tmp_path / "nothing.sse", None)


@pytest.mark.parametrize(
    "value", ["", "t", "t-", "t--1", "u-1", "t-x", "t-1-2", "t-\u00b2", "t-\u0661", "t-" + "9" * 40]
)
def test_an_id_of_another_shape_is_refused(value: str) -> None:
    with pytest.raises(UnknownEventError):
        turn_journal.event_number("t", value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples: each example writes its file anew."""
    return tmp_path_factory.mktemp("journals")


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=12), block=st.integers(1, 40))
def test_resuming_after_any_event_gives_exactly_what_follows(
    contents: list[dict[str, str]], block: int, folder: Path
) -> None:
    frames = [
        sse.encode({"type": "message", "content": content}, id=f"t-{number}")
        for number, content in enumerate(contents)
    ]
    path = folder / "t.sse"
    path.write_bytes(b"".join(frames))
    end = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turn_journal, "READ_SIZE", block)
        offsets = [turn_journal._offset_after(fd, number, end) for number in range(len(frames) + 1)]
    os.close(fd)
    assert offsets == [len(b"".join(frames[: n + 1])) for n in range(len(frames))] + [None]


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=12), block=st.integers(1, 200))
def test_each_piece_that_a_reader_gets_is_whole_frames(
    contents: list[dict[str, str]], block: int, folder: Path
) -> None:
    path = folder / "t.sse"
    path.write_bytes(
        b"".join(sse.encode({"type": "m", "content": one}, id="t-0") for one in contents)
    )

    async def pieces() -> list[bytes]:
        tail = JournalTail(path, None)
        try:
            return [data async for data in tail.chunks()]
        finally:
            tail.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turn_journal, "READ_SIZE", block)
        found = asyncio.run(pieces())
    assert b"".join(found) == path.read_bytes()
    assert all(piece.endswith(b"\n\n") for piece in found)


async def test_a_reader_may_begin_after_any_event_and_no_other(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    for number in range(5):
        journal.append("message", {"content": f"{number}\n\n"})
    await ended(journal)
    whole = (tmp_path / "t.sse").read_bytes()
    ends = [at + 2 for at in range(len(whole)) if whole.startswith(b"\n\n", at)]
    for number, end in enumerate(ends):
        tail = JournalTail(tmp_path / "t.sse", None)
        await tail.skip(number)
        assert await read_all(tail) == whole[end:]
    tail = JournalTail(tmp_path / "t.sse", None)
    with pytest.raises(UnknownEventError):
        await tail.skip(5)
    tail.close()


@settings(max_examples=80, deadline=None)
@given(contents=st.lists(CONTENTS, max_size=8), data=st.data(), block=st.integers(1, 40))
def test_a_torn_end_is_cut_at_the_last_whole_frame_wherever_it_tore(
    contents: list[dict[str, str]],
    data: st.DataObject,
    block: int,
    folder: Path,
) -> None:
    path = folder / "torn.sse"
    frames = [
        sse.encode({"type": "message", "content": content}, id=f"t-{number}")
        for number, content in enumerate(contents)
    ]
    whole = b"".join(frames)
    torn_at = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:torn_at])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turn_journal, "READ_SIZE", block)
        events = events_of(path)
    ends = [len(b"".join(frames[: count + 1])) for count in range(len(frames))]
    kept = sum(end <= torn_at for end in ends)
    assert path.read_bytes() == b"".join(frames[:kept])
    assert [content for _, content in events] == contents[:kept]
    assert events_of(path) == events


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_the_oldest_ended_journals_go_first_and_running_ones_stay(tmp_path: Path) -> None:
    for number, name in enumerate(["a", "b", "c", "d"]):
        path = tmp_path / f"{name}.sse"
        path.write_bytes(b"x" * 1000)
        os.utime(path, (number, number))
    (tmp_path / "link.sse").symlink_to("d.sse")  # of a tool that plays tricks
    (tmp_path / "folder.sse").mkdir()
    (tmp_path / "reserve").write_bytes(b"x" * 1000)
    removed = await Journals(tmp_path, 0, 2500).make_room({"a"}.__contains__)
    assert removed == ["b", "c"]
    assert await Journals(tmp_path, 0, 2000).make_room({"a"}.__contains__) == []
    assert names(tmp_path) == ["a.sse", "d.sse", "folder.sse", "link.sse", "reserve"]


async def test_the_journals_are_looked_through_only_when_there_may_be_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0
    scandir = os.scandir

    def counted(folder: Path) -> Any:
        nonlocal looked
        looked += 1
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", counted)
    journals = Journals(tmp_path, 0, 32_000)
    for number in range(100):
        path = tmp_path / f"{number:03}.sse"
        path.write_bytes(b"x" * 1000)
        os.utime(path, (number, number))
        await journals.make_room({"000"}.__contains__, 1000)
        assert len(names(tmp_path)) <= 32
    left = names(tmp_path)
    assert (left[0], left[-1]) == ("000.sse", "099.sse")
    assert len(left) >= 30
    assert looked < 30  # once at first, and then for each two or three that are made room for


async def test_a_journal_that_goes_while_room_is_made_is_no_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.sse").write_bytes(b"x" * 1000)

    def running(turn_id: str) -> bool:
        (tmp_path / f"{turn_id}.sse").unlink()  # its session is deleted at this moment
        return False

    assert sorted(await Journals(tmp_path, 0, 0).make_room(running)) == ["a", "b"]


async def test_a_link_or_a_pipe_in_the_place_of_a_journal_is_neither_read_nor_written(
    tmp_path: Path,
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"kept")
    (tmp_path / "t.sse").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic"):
        journal_at(tmp_path)
    with pytest.raises(OSError, match="symbolic"):
        events_of(tmp_path / "t.sse")
    with pytest.raises(JournalGoneError):
        JournalTail(tmp_path / "t.sse", None)
    assert outside.read_bytes() == b"kept"
    os.mkfifo(tmp_path / "pipe.sse")
    with pytest.raises(OSError, match="seek"):
        journal_folder.repair(tmp_path / "pipe.sse", "pipe", lambda *_: None)
    assert await read_all(JournalTail(tmp_path / "pipe.sse", None)) == b""


async def test_after_a_failed_write_a_turn_can_still_be_ended_without_a_gap(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    journal.append("message", {"content": "kept"})
    await asyncio.sleep(0)
    assert not journal.try_again()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.size + 10, hard))
    try:
        journal.append("message", {"content": "lost"})
        with pytest.raises(JournalError):
            await journal.seal()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.try_again()
    journal.append("complete", {}, last_words=True)
    await ended(journal)
    assert [kind for kind, _ in events_of(tmp_path / "t.sse")] == ["message", "complete"]


@pytest.fixture
def small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_folder, "RESERVE_BYTES", 5000)


@pytest.mark.usefixtures("small_reserve")
def test_the_reserve_takes_up_room_until_it_is_released(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    reserve.release()
    for _ in range(2):
        reserve.hold()
        assert reserve.held
        assert (tmp_path / "reserve").stat().st_size == 5000
    reserve.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_reserve")
def test_a_reserve_without_room_gives_back_what_it_took(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        reserve = Reserve(tmp_path / "reserve")
        with pytest.raises(OSError, match="large"):
            reserve.hold()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not reserve.held
    assert list(tmp_path.iterdir()) == []


def test_a_frame_is_json_on_one_line() -> None:
    frame = sse.encode({"type": "message", "content": {"content": "a\r\nb\u2028c"}}, id="t-0")
    assert frame.count(b"\n") == 3
    assert json.loads(frame.split(b"data: ", 1)[1]) == {
        "type": "message",
        "content": {"content": "a\r\nb\u2028c"},
    }
