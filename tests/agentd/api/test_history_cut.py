"""An undo that makes the agent forget: what it does, what it refuses, and what a crash leaves."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from tests.agentd.api.test_file_routes import site, there
from tests.agentd.changes.rig import rig
from tests.agentd.doubles import READY, AgentDouble, Api, chunk, eventually

from greylag.agentd.agent.types import (
    METHOD_NOT_FOUND,
    SESSION_UNKNOWN,
    AgentDiedError,
    AgentRefusedError,
    HistoryFixedError,
    PromptResult,
    TurnSink,
)
from greylag.agentd.changes.states import SnapshotError
from greylag.agentd.problems import RequestError
from greylag.agentd.records import (
    HistoryCut,
    Records,
    StorageError,
    TurnOutcome,
    TurnRecord,
    new_turn,
)

CUT = {"history": "cut"}
SESSIONS = "/api/v1/sessions"


class Writer(AgentDouble):
    """Writes a file that is called as the message's last word."""

    def __init__(self, folder: Path) -> None:
        async def write(_agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
            (there(folder) / text.rsplit(maxsplit=1)[-1]).write_text(text)
            await sink.update(chunk("done"))
            return PromptResult("end_turn", None)

        super().__init__(write)


async def said(api: Api, session: str, *words: str) -> list[str]:
    """Have turns of these messages; return their ids."""
    turns = []
    for word in words:
        turns.append(await api.turn(word, session))
        await api.events(turns[-1])
    return turns


async def undo(api: Api, turn: str, body: object = CUT) -> tuple[int, Any]:
    return await api.json("POST", f"/api/v1/turns/{turn}/undo", body)


async def forgotten(api: Api, session: str) -> dict[str, bool]:
    """Return which messages the agent has forgotten, as every list tells it."""
    _, turns = await api.json("GET", f"{SESSIONS}/{session}/turns")
    told = {one["message"]: one["forgotten"] for one in reversed(turns["turns"])}
    for query in ("", "?limit=100"):
        _, found = await api.json("GET", f"{SESSIONS}/{session}/messages{query}")
        by_turn: dict[str, set[bool]] = {}
        for one in found["messages"]:
            by_turn.setdefault(one["turn_id"], set()).add(one["forgotten"])
        assert list(by_turn.values()) == [{one} for one in told.values()]
    return told


async def test_the_agent_forgets_a_turn_and_those_after_it(tmp_path: Path) -> None:
    agent = Writer(tmp_path)
    async with site(tmp_path, agent) as api:
        session = await api.session()
        other = await api.session()
        first, second, third = await said(api, session, "first", "second", "third")
        await said(api, other, "other")
        _, before = await api.json("GET", f"{SESSIONS}/{session}")
        status, undone = await undo(api, second)
        assert (status, undone["forgotten_turns"], undone["kept"]) == (200, 2, [])
        assert {one.name for one in there(tmp_path).iterdir()} == {"first", "third", "other"}
        assert (agent.cuts, agent.replaced) == (
            [("20261123_1", 2)],
            [("20261123_1", "20261123_1.1")],
        )
        marks = {"first": False, "second": True, "third": True}
        assert await forgotten(api, session) == marks
        assert (await api.json("GET", f"/api/v1/turns/{third}"))[1]["forgotten"] is True
        _, after = await api.json("GET", f"{SESSIONS}/{session}")
        assert after["updated_at"] > before["updated_at"]
        async with api.http.get(f"{api.base}{SESSIONS}/{session}/export") as answer:
            assert "Message 3 - User (forgotten by the agent)\n\nsecond" in await answer.text()

        # What is left of the forgotten turns in the workspace, and what others did, is told once.
        await said(api, session, "fourth", "fifth")
        (where, note), (_, quiet) = agent.prompts[-2:]
        assert where == "20261123_1.1"
        assert re.fullmatch(r"Note .* your last answer, .*: other, third\.\n\nfourth", note)
        assert quiet == "fifth"
        assert await forgotten(api, session) == marks | {"fourth": False, "fifth": False}

        # Once more it forgets nothing more; an undo of the undo brings the files back alone.
        assert (await undo(api, second))[1]["forgotten_turns"] == 0
        status, back = await undo(api, undone["undo_id"], {})
        assert (status, (there(tmp_path) / "second").exists()) == (200, True)
        assert (len(agent.cuts), back["forgotten_turns"]) == (1, 0)
        assert (await forgotten(api, session))["second"] is True

        # From its first turn on: there is no last answer to speak of.
        assert (await undo(api, first))[1]["forgotten_turns"] == 3
        assert agent.cuts[-1] == ("20261123_1.1", 0)
        await said(api, session, "sixth")
        assert agent.prompts[-1] == ("20261123_1.1.2", "sixth")


async def test_what_cannot_be_cut_says_so_and_changes_nothing(tmp_path: Path) -> None:
    agent = Writer(tmp_path)
    async with site(tmp_path, agent) as api:
        session = await api.session()
        first, second = await said(api, session, "first", "second")
        refused = AgentRefusedError(METHOD_NOT_FOUND, "no such method")
        for reason, expected in (
            (HistoryFixedError("It is too long."), (409, "history_not_cut")),
            (refused, (409, "history_not_cut")),
            (AgentRefusedError(-32603, "Internal error"), (500, "agent_refused")),
            (AgentDiedError("the agent process has ended"), (503, "agent_unavailable")),
        ):
            agent.uncut = reason
            status, problem = await undo(api, second)
            assert (status, problem["code"]) == expected
        agent.state = replace(READY, kind="scripted")
        assert (await undo(api, second))[1][
            "message"
        ] == "The agent that runs here cannot cut its history."
        agent.state = READY
        wrongs: list[object] = ["", "Cut", None, True, ["cut"], {}]
        for wrong in wrongs:
            status, problem = await undo(api, second, {"history": wrong})
            assert (status, problem["message"]) == (400, "history must be keep or cut.")
        assert (await undo(api, "nothing"))[0] == 404
        assert (there(tmp_path) / "second").exists()
        assert set((await forgotten(api, session)).values()) == {False}

        _, undone = await undo(api, second, {"history": "keep"})
        status, problem = await undo(api, undone["undo_id"])
        assert (status, problem["code"]) == (409, "history_not_cut")
        assert problem["message"].startswith("Only a turn")
        # What the agent has lost as a whole, it has forgotten.
        agent.uncut = AgentRefusedError(SESSION_UNKNOWN, "Resource not found")
        assert (await undo(api, first))[1]["forgotten_turns"] == 2
        await said(api, session, "third")
        assert agent.prompts[-1] == ("20261123_2", "third")


async def test_of_a_turn_from_before_it_was_kept_it_is_not_known_where_it_begins(
    tmp_path: Path,
) -> None:
    agent = Writer(tmp_path)
    async with site(tmp_path, agent) as api:
        session = await api.session()
        first, second = await said(api, session, "first", "second")
        await api.services.turns.records.place(first, None)
        status, problem = await undo(api, first)
        assert (status, problem["code"]) == (409, "history_not_cut")
        assert "not known where" in problem["message"]
        assert (await undo(api, second))[0] == 200


async def test_no_turn_begins_while_a_history_is_cut_and_none_is_cut_while_one_runs(
    tmp_path: Path,
) -> None:
    agent = Writer(tmp_path)
    go_on = asyncio.Event()
    write, cut_session = agent.script, agent.cut_session

    async def slow(agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        await go_on.wait()
        return await write(agent, text, sink)

    async def slow_cut(agent_session_id: str, kept: int) -> str:
        await go_on.wait()
        return await cut_session(agent_session_id, kept)

    async with site(tmp_path, agent) as api:
        session, other = await api.session(), await api.session()
        first, second = await said(api, session, "first", "second")
        agent.script = slow
        third = await api.turn("third", session)
        status, problem = await undo(api, second)
        assert (status, problem["code"], problem["turn_id"]) == (409, "session_busy", third)
        go_on.set()
        await api.events(third)
        go_on.clear()
        agent.script = write
        agent.cut_session = slow_cut  # type: ignore[method-assign]
        asking = asyncio.create_task(undo(api, second), name="undo")
        engine = api.services.turns
        await eventually(lambda: session in engine._held)
        status, problem = await undo(api, first)
        assert (status, problem["code"]) == (409, "session_busy")
        body = {"session_id": session, "message": "fourth"}
        status, problem = await api.json("POST", "/api/v1/turns", body)
        assert (status, problem["code"]) == (409, "session_busy")
        await said(api, other, "elsewhere")  # another session is not held
        # It goes on when whoever asked has left.
        asking.cancel()
        await asyncio.wait({asking})
        go_on.set()
        await eventually(lambda: not engine._held and len(agent.replaced) == 1)
        assert list((await forgotten(api, session)).values()) == [False, True, True]
        assert not (there(tmp_path) / "second").exists()
        await said(api, session, "fourth")


async def test_an_undo_that_never_begins_leaves_no_session_in_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Writer(tmp_path)
    async with site(tmp_path, agent) as api:
        session = await api.session()
        _, second = await said(api, session, "first", "second")
        lost = AsyncMock(side_effect=SnapshotError("The workspace cannot be read."))
        with monkeypatch.context() as patched:
            patched.setattr(api.services.turns._changes._capture, "take", lost)
            assert (await undo(api, second))[0] == 503
        assert (agent.forgotten, agent.replaced) == (["20261123_1.1"], [])
        assert (await undo(api, second))[1]["forgotten_turns"] == 1
        assert (agent.forgotten, len(agent.replaced)) == (["20261123_1.1"], 1)


async def test_a_turn_begins_in_the_history_that_a_late_cut_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Writer(tmp_path)
    async with site(tmp_path, agent) as api:
        session = await api.session()
        _, second = await said(api, session, "first", "second")
        changes = api.services.turns._changes
        begin, forget = changes.begin, changes._forget

        async def begins(*about: str) -> None:
            monkeypatch.setattr(changes, "_forget", forget)  # the turn has its records by now
            await begin(*about)

        full = AsyncMock(side_effect=StorageError("The disk is full."))
        monkeypatch.setattr(changes, "_forget", full)
        monkeypatch.setattr(changes, "begin", begins)
        status, problem = await undo(api, second)
        assert (status, problem["code"]) == (500, "storage_failed")
        assert "goes on by itself" in problem["message"]
        assert agent.forgotten == []  # it is needed still
        await said(api, session, "third")
        assert agent.prompts[-1][0] == "20261123_1.1"
        assert (await forgotten(api, session))["second"] is True


def cut_of(before: str | None = None) -> HistoryCut:
    return HistoryCut("s", "t2", "t3", 2, before, "old", "new")


class Cutting:
    """Tells what is to be forgotten, as ``SessionService.cutting`` does."""

    def __init__(self, cut: HistoryCut) -> None:
        self._cut = cut

    async def __aenter__(self) -> HistoryCut:
        return self._cut

    async def __aexit__(self, *_: object) -> None:
        """Nothing is held."""


async def test_a_cut_that_an_end_of_agentd_left_is_made_before_a_turn_may_begin(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as made:
        for name in ("t1", "t2", "t3"):
            async with made.turn(name):
                (made.root / name).write_text(name)
        made.failure = StorageError("The disk is full.")
        with pytest.raises(RequestError, match="goes on by itself"):
            await made.undo("t2", cutting=Cutting(cut_of("t1")))
        await made.again()
        await made.service.cut_left()  # a store that fails still lets agentd start
        assert (made.forgotten, (made.root / "t2").exists()) == ([], True)
        made.failure = None
        await made.again()
        await made.service.cut_left()
        assert made.forgotten == [cut_of("t1")]
        await made.service.recover()
        assert not (made.root / "t2").exists()
        await made.again()
        await made.service.cut_left()
        assert len(made.forgotten) == 1
        note, undos = await made.service.notes("s")
        assert note.endswith("so read these again: t3.")
        await made.service.told(undos)
        assert await made.service.notes("s") == ("", [])


async def test_where_the_last_known_state_is_gone_all_is_to_be_read_again(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        async with made.turn("t2"):
            (made.root / "f").write_text("f")
        await made.undo("t2")
        await made.undo("t2", cutting=Cutting(cut_of("pruned")))
        note, undos = await made.service.notes("s")
        assert note.endswith("so read again what you knew of them.")
        assert len(undos) == 1  # the earlier one is told by it


async def test_a_cut_that_is_made_again_spares_what_came_after_it(tmp_path: Path) -> None:
    records = await Records.open(tmp_path / "agentd.db")
    first, *turns = [new_turn("s", str(n), None, float(n)) for n in range(5)]
    await records.turns.start(first, "title")
    await records.sessions.bind("s", "old")

    async def go_on(turn: TurnRecord) -> None:
        for ended in await records.turns.running():
            outcome = TurnOutcome("completed", "yes", 0, None, None, None)
            await records.turns.end(ended.turn_id, outcome, {}, 9.0)
        await records.turns.start(turn)

    for turn in turns[:3]:
        await go_on(turn)
    end, _ = await records.turns.end_from(turns[0], "old")
    ids = (turns[0].turn_id, turns[2].turn_id, 3, first.turn_id)
    assert end == HistoryCut("s", *ids, "old", None)
    cut = replace(end, new="new")
    await records.turns.forget(cut)
    await go_on(turns[3])
    await records.turns.forget(cut)
    found = await records.turns.page("s", 0, 9)
    assert [turn.forgotten for turn in found] == [False, True, True, True, False]
    session = await records.sessions.get("s")
    assert session is not None
    assert session.agent_session_id == "new"
    # Where the agent began afresh, a later turn's place is before an earlier one's.
    for turn, place in zip((first, turns[-1]), (6, 2), strict=True):
        await records.turns.place(turn.turn_id, place)
    assert (await records.turns.end_from(first, "new"))[1] == 0
    end, position = await records.turns.end_from(turns[-1], "new")
    assert (position, end.before) == (2, first.turn_id)
    await records.aclose()
