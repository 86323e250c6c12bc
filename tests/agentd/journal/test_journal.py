import asyncio
import json
import os
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greylag import sse
from greylag.agentd.journal import recovery as journal_recovery
from greylag.agentd.journal import tail as journal_tail
from greylag.agentd.journal.journal import JournalError, JournalFullError, TurnJournal
from greylag.agentd.journal.tail import JournalGoneError, JournalTail, UnknownEventError

BIG = 1 << 20
CONTENTS = st.dictionaries(st.text(max_size=5), st.text(max_size=40), max_size=3)


def journal_at(folder: Path, limit: int = BIG) -> TurnJournal:
    return TurnJournal(folder / "t.sse", "t", limit)


async def read_all(tail: JournalTail) -> bytes:
    try:
        return b"".join([data async for data in tail.chunks()])
    finally:
        tail.close()


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
    journal.publish_end()
    assert journal.size == (tmp_path / "t.sse").stat().st_size
    with pytest.raises(JournalError):
        journal.append("message", {})


async def test_the_limit_stops_the_turn_but_leaves_room_for_its_end(tmp_path: Path) -> None:
    journal = journal_at(tmp_path, limit=2000)
    for _ in range(9):
        journal.append("message", {"content": "x" * 150})
    with pytest.raises(JournalFullError):
        journal.append("message", {"content": "x" * 1000})
    journal.append("error", {"error": "full"}, last_words=True)
    journal.append("complete", {}, last_words=True)
    await ended(journal)
    kinds = [kind for kind, _ in journal_recovery.events(tmp_path / "t.sse")]
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


async def test_a_heartbeat_comes_only_between_frames(tmp_path: Path) -> None:
    journal = journal_at(tmp_path)
    tail = JournalTail(tmp_path / "t.sse", journal, heartbeat=0.01)
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


@pytest.mark.parametrize("value", ["", "t", "t-", "t--1", "u-1", "t-x", "t-1-2", "t-" + "9" * 40])
def test_an_id_of_another_shape_is_refused(value: str) -> None:
    with pytest.raises(UnknownEventError):
        journal_tail.event_number("t", value)


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=12), block=st.integers(1, 40))
def test_resuming_after_any_event_gives_exactly_what_follows(
    contents: list[dict[str, str]], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("resume")

    async def check() -> None:
        journal = journal_at(folder)
        for content in contents:
            journal.append("message", content)
        await ended(journal)
        frames = [
            sse.encode({"type": "message", "content": content}, id=f"t-{number}")
            for number, content in enumerate(contents)
        ]
        for number in range(len(contents)):
            tail = JournalTail(folder / "t.sse", None)
            await tail.skip(number)
            assert await read_all(tail) == b"".join(frames[number + 1 :])
        tail = JournalTail(folder / "t.sse", None)
        with pytest.raises(UnknownEventError):
            await tail.skip(len(contents))
        tail.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_tail, "READ_SIZE", block)
        asyncio.run(check())


@settings(max_examples=80, deadline=None)
@given(contents=st.lists(CONTENTS, max_size=8), data=st.data(), block=st.integers(1, 40))
def test_a_torn_end_is_cut_at_the_last_whole_frame_wherever_it_tore(
    contents: list[dict[str, str]],
    data: st.DataObject,
    block: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("torn") / "t.sse"
    frames = [
        sse.encode({"type": "message", "content": content}, id=f"t-{number}")
        for number, content in enumerate(contents)
    ]
    whole = b"".join(frames)
    torn_at = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:torn_at])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_recovery, "_BLOCK", block)
        kept = journal_recovery.cut_torn_end(path)
    ends = [len(b"".join(frames[: count + 1])) for count in range(len(frames))]
    assert kept == sum(end <= torn_at for end in ends)
    assert path.read_bytes() == b"".join(frames[:kept])
    assert [content for _, content in journal_recovery.events(path)] == contents[:kept]
    assert journal_recovery.cut_torn_end(path) == kept


def test_the_oldest_ended_journals_go_first_and_running_ones_stay(tmp_path: Path) -> None:
    for number, name in enumerate(["a", "b", "c", "d"]):
        path = tmp_path / f"{name}.sse"
        path.write_bytes(b"x" * 1000)
        os.utime(path, (number, number))
    removed = journal_recovery.remove_oldest(tmp_path, 2500, frozenset({"a"}))
    assert removed == ["b", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.sse", "d.sse"]


def test_a_frame_is_json_on_one_line() -> None:
    frame = sse.encode({"type": "message", "content": {"content": "a\r\nb\u2028c"}}, id="t-0")
    assert frame.count(b"\n") == 3
    assert json.loads(frame.split(b"data: ", 1)[1]) == {
        "type": "message",
        "content": {"content": "a\r\nb\u2028c"},
    }
