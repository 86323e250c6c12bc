import asyncio
import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from tests.agentd.doubles import READY, AgentDouble, Api, chunk, echo, eventually, serving

from greylag.agentd import sessions
from greylag.agentd.agent.types import (
    AgentDiedError,
    AgentRefusedError,
    AgentStarvedError,
    HistoryFixedError,
    ModelFailure,
    PermissionRequest,
    PromptResult,
    SessionStuckError,
    TurnSink,
)
from greylag.agentd.api.requests import read_object
from greylag.agentd.changes import spans
from greylag.agentd.changes.capture import Capture
from greylag.agentd.changes.states import Snapshot
from greylag.agentd.journal import journal as turn_journal
from greylag.agentd.journal.folder import Reserve
from greylag.agentd.journal.journal import JournalError
from greylag.agentd.problems import RequestError
from greylag.agentd.records import StorageError
from greylag.agentd.turns import engine
from greylag.common.clock import parse_rfc3339

ONCE = ("allow_once", "reject_once")


async def until_cancelled(agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
    await sink.update(chunk("begun "))
    await agent.cancelled.wait()
    return PromptResult("cancelled", None)


async def ask(_agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
    decision = await sink.permission(PermissionRequest("call_1", "shell", {"command": text}))
    await sink.update(chunk(decision))
    return PromptResult("end_turn", None)


async def test_a_turn_has_all_its_events_in_order_with_ids(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        turn = await api.turn("hello")
        events = await api.events(turn)
        assert [event["type"] for event in events] == ["turn", "message", "complete"]
        assert [event["id"] for event in events] == [f"{turn}-{n}" for n in range(3)]
        assert events[0]["content"]["turn_id"] == turn
        assert "GREYLAG_MODEL_URL" in events[0]["content"]["demonstration"]
        assert events[-1]["content"]["stop_reason"] == "end_turn"
        assert events[-1]["content"]["usage"] == {"totalTokens": 3}
        status, record = await api.json("GET", f"/api/v1/turns/{turn}")
        assert status == 200
        assert (record["status"], record["answer"]) == ("completed", "hello")
        assert record["ended_at"] >= record["started_at"]


async def test_resuming_after_each_event_gives_the_rest(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        turn = await api.turn("hello")
        events = await api.events(turn)
        for number, event in enumerate(events):
            assert await api.events(turn, after=event["id"]) == events[number + 1 :]
        path = f"/api/v1/turns/{turn}/events"
        for wrong in ["x", f"{turn}-99", "other-0"]:
            status, body = await api.json("GET", path, headers={"last-event-id": wrong})
            assert (status, body["code"]) == (400, "unknown_event")


async def test_when_complete_is_seen_the_record_says_so_and_the_session_is_free(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        for number in range(20):
            turn = await api.turn(f"message {number}", session)
            await api.until(turn, "complete")
            _, record = await api.json("GET", f"/api/v1/turns/{turn}")
            assert record["status"] == "completed"


async def test_a_busy_session_refuses_and_names_the_turn_that_runs(tmp_path: Path) -> None:
    async with serving(tmp_path, AgentDouble(until_cancelled)) as api:
        session = await api.session()
        turn = await api.turn("one", session)
        body = {"session_id": session, "message": "two"}
        status, refused = await api.json("POST", "/api/v1/turns", body)
        assert (status, refused["code"], refused["turn_id"]) == (409, "session_busy", turn)
        old = f"/api/v1/sessions/{session}"
        for path in [f"{old}/messages", f"{old}/send", f"{old}/stream"]:
            status, refused = await api.json("POST", path, {"message": "two"})
            assert (status, refused["code"]) == (409, "session_busy")


async def test_the_same_message_id_is_one_turn_however_often_it_is_sent(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        body = {"session_id": None, "message": "hello", "message_id": "m1"}
        answers = await asyncio.gather(
            *(api.json("POST", "/api/v1/turns", body) for _ in range(10))
        )
        assert sorted(status for status, _ in answers) == [200] * 9 + [201]
        assert len({turn["turn_id"] for _, turn in answers}) == 1
        assert len({turn["session_id"] for _, turn in answers}) == 1
        _, sessions = await api.json("GET", "/api/v1/sessions")
        assert sessions["total"] == 1
        await api.until(answers[0][1]["turn_id"], "complete")
        assert len(api.agent.prompts) == 1
        session = answers[0][1]["session_id"]
        same = await api.turn("hello", session, message_id="m1")
        assert same == answers[0][1]["turn_id"]


async def test_a_message_id_of_another_session_is_a_conflict(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.turn("hello", message_id="m1")
        other = await api.session()
        body = {"session_id": other, "message": "hello", "message_id": "m1"}
        status, refused = await api.json("POST", "/api/v1/turns", body)
        assert (status, refused["code"]) == (409, "message_id_conflict")


async def test_cancel_ends_the_turn_and_again_changes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, AgentDouble(until_cancelled)) as api:
        turn = await api.turn("hello")
        await api.until(turn, "message")
        status, _ = await api.json("POST", f"/api/v1/turns/{turn}/cancel")
        assert status == 202
        events = await api.events(turn)
        assert events[-1]["content"]["stop_reason"] == "cancelled"
        status, record = await api.json("POST", f"/api/v1/turns/{turn}/cancel")
        assert (status, record["status"], record["answer"]) == (200, "cancelled", "begun ")


class Hanging(AgentDouble):
    """Never answers one of the calls that come before a prompt."""

    def __init__(self, call: str) -> None:
        super().__init__()
        self.hangs = asyncio.Event()
        setattr(self, call, self._hang)

    async def _hang(self, *_: object) -> None:
        self.hangs.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("call", ["new_session", "configure", "message_count"])
async def test_cancel_ends_a_turn_for_which_the_agent_does_not_get_ready_and_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(engine, "CANCEL_PATIENCE", 0.01)
    agent = Hanging(call)
    async with serving(tmp_path, agent) as api:
        turn = await api.turn("hello")
        await agent.hangs.wait()
        assert (await api.json("POST", f"/api/v1/turns/{turn}/cancel"))[0] == 202
        events = await api.events(turn)
        assert events[-1]["content"]["stop_reason"] == "cancelled"
        assert (agent.prompts, agent.given_up) == ([], 1)


async def test_an_agent_that_others_work_with_is_not_ended_for_a_turn_that_it_prepares_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CANCEL_PATIENCE", 0.01)
    agent = AgentDouble(until_cancelled)
    async with serving(tmp_path, agent) as api:
        runs = await api.turn("goes on")
        await api.until(runs, "message")
        slow = Hanging("configure")
        monkeypatch.setattr(agent, "configure", slow._hang)
        turn = await api.turn("hello")
        await slow.hangs.wait()
        assert (await api.json("POST", f"/api/v1/turns/{turn}/cancel"))[0] == 202
        assert (await api.events(turn))[-1]["content"]["stop_reason"] == "cancelled"
        assert agent.given_up == 0
        await api.json("POST", f"/api/v1/turns/{runs}/cancel")
        assert (await api.events(runs))[-1]["content"]["stop_reason"] == "cancelled"


async def test_a_session_is_made_though_the_agent_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_AGENT_WITHIN", 0.01)
    agent = Hanging("new_session")
    async with serving(tmp_path, agent) as api, asyncio.timeout(20):
        session = await api.session()
        assert agent.hangs.is_set()
        assert (await api.json("GET", f"/api/v1/sessions/{session}"))[0] == 200


async def test_cancel_ends_a_turn_at_once_while_the_state_before_it_is_being_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def take(_: Capture, listed: asyncio.Event | None = None) -> Snapshot:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError(listed)

    async with serving(tmp_path) as api:
        with monkeypatch.context() as patched:
            patched.setattr(Capture, "take", take)
            session = await api.session()
            turn = await api.turn("hello", session)
            async with asyncio.timeout(10):  # a third of what a state may take
                await begun.wait()
                assert (await api.json("POST", f"/api/v1/turns/{turn}/cancel"))[0] == 202
                events = await api.events(turn)
        assert events[-1]["content"]["stop_reason"] == "cancelled"
        assert events[-1]["content"]["changes"] is None
        assert api.agent.prompts == []
        changes = api.services.changes
        assert await changes._store.run(spans.left_turns) == []
        await api.events(await api.turn("again", session))
        assert [text for _, text in api.agent.prompts] == ["again"]


async def test_an_agent_that_does_not_count_its_messages_is_asked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_COUNT_WITHIN", 0.01)
    async with serving(tmp_path, Hanging("message_count")) as api:
        events = await api.events(await api.turn("hello"))
        assert events[-1]["content"]["stop_reason"] == "end_turn"
        assert api.agent.given_up == 0


async def test_a_session_can_cancel_what_runs_in_it(tmp_path: Path) -> None:
    async with serving(tmp_path, AgentDouble(until_cancelled)) as api:
        session = await api.session()
        turn = await api.turn("hello", session)
        await api.until(turn, "message")
        path = f"/api/v1/sessions/{session}/cancel"
        assert (await api.json("POST", path))[0] == 202
        await api.events(turn)
        status, body = await api.json("POST", path)
        assert (status, body["cancelled"]) == (200, False)


async def test_a_session_is_gone_once_what_ran_in_it_has_ended(tmp_path: Path) -> None:
    async with serving(tmp_path, AgentDouble(until_cancelled)) as api:
        session = await api.session()
        turn = await api.turn("hello", session)
        await api.until(turn, "message")
        await api.services.sessions.delete(session)
        assert [state for *_, state in api.services.turns.states()] == ["ended"]
        assert not api.services.turns._journals.path(turn).exists()
        assert api.agent.forgotten == ["20261123_1"]


async def test_a_confirmation_is_answered_once(tmp_path: Path) -> None:
    async with serving(tmp_path, AgentDouble(ask)) as api:
        turn = await api.turn("rm x")
        asked = await api.until(turn, "tool_confirmation")
        assert (asked["tool_name"], asked["arguments"]) == ("shell", {"command": "rm x"})
        _, told = await api.json("GET", f"/api/v1/turns/{turn}")
        question = told["question"]
        assert (question["confirmation_id"], question["tool_name"]) == (asked["id"], "shell")
        assert (question["decisions"], asked["decisions"]) == ([*ONCE], [*ONCE])
        assert parse_rfc3339(question["expires_at"]).timestamp() == asked["expires_at"]
        assert asked["expires_at"] >= asked["timestamp"] + 600
        assert (question["arguments"], question["shortened"]) == ('{"command": "rm x"}', False)
        path = f"/api/v1/turns/{turn}/confirmations"
        wrong = await api.json("POST", f"{path}/{asked['id']}", {"decision": "allow_always"})
        assert (wrong[0], wrong[1]["code"]) == (400, "invalid_request")
        allow = {"decision": "allow_once"}
        assert (await api.json("POST", f"{path}/nothing", allow))[0] == 404
        assert (await api.json("POST", f"{path}/{asked['id']}", allow))[0] == 200
        events = await api.events(turn)
        settled = next(event["content"] for event in events if event["type"] == "status")
        assert (settled["confirmation_id"], settled["decision"]) == (asked["id"], "allow_once")
        assert events[-2]["content"]["content"] == "allow_once"
        assert (await api.json("GET", f"/api/v1/turns/{turn}"))[1]["question"] is None
        # The turn has ended by now: what was decided is still known.
        assert (await api.json("POST", f"{path}/{asked['id']}", allow))[0] == 200
        status, refused = await api.json(
            "POST", f"{path}/{asked['id']}", {"decision": "reject_once"}
        )
        assert (status, refused["code"]) == (409, "confirmation_settled")


async def ask_for_all(_agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
    """Ask about several calls, by their tools' names; `!` marks what is to be asked each time."""
    for name in text.split():
        lasting = not name.endswith("!")
        await sink.update(chunk(await sink.permission(PermissionRequest("c", name, {}, lasting))))
    return PromptResult("end_turn", None)


async def answer(api: Api, turn: str, tool: str, decision: str) -> int:
    """Answer what a turn asks about a tool; return the status."""
    asked = await api.until(turn, "tool_confirmation", lambda one: one["tool_name"] == tool)
    path = f"/api/v1/turns/{turn}/confirmations/{asked['id']}"
    return (await api.json("POST", path, {"decision": decision}))[0]


async def asked_about(api: Api, turn: str) -> list[str]:
    """Return the tools that a turn has asked about, once it has ended."""
    events = [one for one in await api.events(turn) if one["type"] == "tool_confirmation"]
    return [one["content"]["tool_name"] for one in events]


async def test_a_tool_that_is_allowed_for_the_session_runs_there_without_a_question(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, AgentDouble(ask_for_all)) as api:
        session = await api.session()
        turn = await api.turn("shell shell edit shell!", session)
        assert await answer(api, turn, "shell", "allow_session") == 200
        assert await answer(api, turn, "shell", "allow_session") == 200
        assert await answer(api, turn, "edit", "reject_once") == 200
        assert await answer(api, turn, "shell!", "allow_session") == 400
        assert await answer(api, turn, "shell!", "allow_once") == 200
        assert await asked_about(api, turn) == ["shell", "edit", "shell!"]
        turn = await api.turn("shell edit", session)
        assert await answer(api, turn, "edit", "allow_once") == 200
        assert await asked_about(api, turn) == ["edit"]
        elsewhere = await api.turn("shell")
        assert await answer(api, elsewhere, "shell", "reject_once") == 200
        assert (await api.http.delete(f"{api.base}/api/v1/sessions/{session}")).status < 300
        assert session not in api.services.turns._allowed


async def test_a_confirmation_that_nobody_answers_is_declined(tmp_path: Path) -> None:
    async with serving(tmp_path, AgentDouble(ask), confirmation_timeout=0.05) as api:
        turn = await api.turn("rm x")
        events = await api.events(turn)
        settled = next(event["content"] for event in events if event["type"] == "status")
        assert settled["decision"] == "reject_once"
        assert settled["message"].startswith("Nobody answered")
        assert events[-2]["content"]["content"] == "reject_once"


async def test_what_goes_wrong_in_the_agent_ends_the_turn_with_a_code(tmp_path: Path) -> None:
    failures = [
        (AgentDiedError("gone"), "agent_restarted"),
        (AgentStarvedError("gone"), "agent_restarted"),
        (AgentRefusedError(-32000, "Authentication required"), "model_unauthorized"),
        (AgentRefusedError(-32603, "boom"), "agent_failed"),
        (RuntimeError("a defect"), "internal"),
    ]
    for number, (failure, code) in enumerate(failures):

        async def fail(
            _agent: AgentDouble, text: str, sink: TurnSink, failure: Exception = failure
        ) -> PromptResult:
            await sink.update(chunk("partial"))
            raise failure

        async with serving(tmp_path / str(number), AgentDouble(fail)) as api:
            turn = await api.turn("hello")
            events = await api.events(turn)
            assert [event["type"] for event in events][-2:] == ["error", "complete"]
            assert events[-2]["content"]["code"] == code
            starved = "memory" in events[-2]["content"]["error"]
            assert starved == isinstance(failure, AgentStarvedError)
            assert events[-2]["content"]["message"] == "Agent processing error"
            _, record = await api.json("GET", f"/api/v1/turns/{turn}")
            assert (record["status"], record["error_code"]) == ("error", code)
            assert record["answer"] == "partial"


@pytest.mark.parametrize(
    "words",
    [
        "error returned from database: (code: 13) database or disk is full",
        "Failed to create session: attempted to call begin_with at non-zero transaction depth",
        "Failed to recreate provider: Failed to persist provider config to session",
        "Failed to write: No space left on device (os error 28)",
    ],
)
async def test_an_agent_whose_disk_took_no_record_is_started_anew_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    async def fail(_agent: AgentDouble, _text: str, _sink: TurnSink) -> PromptResult:
        raise AgentRefusedError(-32603, "Internal error", words)

    def full(_reserve: Reserve) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with serving(tmp_path, AgentDouble(fail)) as api:
        error = (await api.events(await api.turn("hello")))[-2]["content"]
        assert error["code"] == "storage_failed"
        assert words in error["error"]
        assert "delete files" in error["hint"]
        assert api.agent.given_up == 0
        with monkeypatch.context() as patched:
            patched.setattr(Reserve, "hold", full)
            status, refused = await api.json("POST", "/api/v1/turns", {"message": "again"})
            assert (status, refused["code"], api.agent.given_up) == (500, "storage_failed", 0)
        api.agent.script = echo
        reserve, held = api.services.turns._journals.reserve, list[bool]()
        give_up = api.agent.give_up

        def given_up(why: str) -> None:
            held.append(reserve.held)
            give_up(why)

        monkeypatch.setattr(api.agent, "give_up", given_up)
        for _ in range(2):
            assert (await api.events(await api.turn("again")))[-1]["content"]["stop_reason"]
            assert (api.agent.given_up, held, reserve.held) == (1, [False], True)


@pytest.mark.parametrize("takes_events", [True, False])
async def test_a_turn_is_ended_in_the_room_that_is_kept_for_that_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, takes_events: bool
) -> None:
    full, write = False, turn_journal.write_all

    async def answer(_agent: AgentDouble, _text: str, sink: TurnSink) -> PromptResult:
        nonlocal full
        await sink.update(chunk("x" * 100_000))
        await asyncio.sleep(0)  # that is in the file
        full = not takes_events
        await sink.update(chunk("more"))
        return PromptResult("end_turn", None)

    async with serving(tmp_path, AgentDouble(answer)) as api:
        turns = api.services.turns
        reserve, end = turns._journals.reserve, turns.records.end

        def written(fd: int, data: bytes | bytearray) -> None:
            if full and reserve.held:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(fd, data)

        async def ended(*about: Any) -> None:
            if reserve.held or len(about[1].answer) > 70_000:
                raise StorageError("database or disk is full")
            await end(*about)

        monkeypatch.setattr(turn_journal, "write_all", written)
        monkeypatch.setattr(turns.records, "end", ended)
        turn = await api.turn("hello")
        events = await api.events(turn)
        third = "message" if takes_events else "error"
        assert [one["type"] for one in events] == ["turn", "message", third, "complete"]
        code = events[2]["content"].get("code")
        assert (code, reserve.held) == (None if takes_events else "journal_failed", False)
        _, record = await api.json("GET", f"/api/v1/turns/{turn}")
        status = "completed" if takes_events else "error"
        assert (record["status"], record["error_code"]) == (status, code)
        assert record["answer"] == "x" * 64 * 1024


async def test_an_agent_is_started_anew_where_the_disk_took_no_event(tmp_path: Path) -> None:
    async def fail(_agent: AgentDouble, _text: str, _sink: TurnSink) -> PromptResult:
        raise JournalError("The journal cannot be written: No space left on device.")

    async with serving(tmp_path, AgentDouble(fail)) as api:
        error = (await api.events(await api.turn("hello")))[-2]["content"]
        assert error["code"] == "journal_failed"
        api.agent.script = echo
        await api.events(await api.turn("again"))
        assert api.agent.given_up == 1


async def test_an_agent_is_not_started_anew_beside_a_turn_that_runs(tmp_path: Path) -> None:
    async def fail(agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        if text == "fail":
            raise JournalError("The journal cannot be written: No space left on device.")
        return await until_cancelled(agent, text, sink)

    async with serving(tmp_path, AgentDouble(fail)) as api:
        runs = await api.turn("goes on")
        await api.events(await api.turn("fail"))
        api.agent.script = echo
        await api.events(await api.turn("beside"))
        assert api.agent.given_up == 0
        api.agent.cancelled.set()
        await api.events(runs)
        await api.events(await api.turn("alone"))
        assert api.agent.given_up == 1


async def test_an_agent_that_refuses_for_another_reason_goes_on_and_keeps_its_session(
    tmp_path: Path,
) -> None:
    async def fail(_agent: AgentDouble, _text: str, _sink: TurnSink) -> PromptResult:
        raise AgentRefusedError(-32603, "Internal error", "a database of the tool's is down")

    async with serving(tmp_path, AgentDouble(fail)) as api:
        session = await api.session()
        for text in ("hello", "again"):
            _, error, _ = await api.events(await api.turn(text, session))
            assert error["content"]["code"] == "agent_failed"
        assert [used for used, _ in api.agent.prompts] == ["20261123_1"] * 2
        assert api.agent.given_up == 0


async def test_the_provider_s_own_word_decides_the_code(tmp_path: Path) -> None:
    async def fail(agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        agent.failures[agent.prompts[-1][0]] = ModelFailure(429, "slow down")
        await sink.update(chunk("Ran into this error: odd words.", "msg_1"))
        return PromptResult("end_turn", None)

    async with serving(tmp_path, AgentDouble(fail)) as api:
        events = await api.events(await api.turn("hello"))
        assert events[-2]["content"]["code"] == "model_rate_limited"


@pytest.mark.parametrize("reason", ["end_turn", "half \ud83d"])
async def test_half_a_character_in_an_answer_or_an_error_ends_its_turn_as_any_other(
    tmp_path: Path, reason: str
) -> None:
    async def fail(agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        agent.failures[agent.prompts[-1][0]] = ModelFailure(400, "bad \ud83d")
        await sink.update(chunk("half \ud83d"))
        await sink.update(chunk("Ran into this error: odd words.", "msg_1"))
        return PromptResult(reason, None)

    async with serving(tmp_path, AgentDouble(fail)) as api:
        turn = await api.turn("hello")
        assert (await api.events(turn))[-1]["type"] == "complete"
        _, record = await api.json("GET", f"/api/v1/turns/{turn}")
        failed = reason == "end_turn"
        assert record["answer"].startswith("half ?")
        assert record["error"] == ("bad ?" if failed else None)
        assert record["status"] == ("error" if failed else "completed")


async def test_a_session_that_the_agent_lost_starts_afresh_and_says_so(tmp_path: Path) -> None:
    async def forgetful(agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        if len(agent.prompts) == 1:
            raise AgentRefusedError(-32002, "Resource not found")
        await sink.update(chunk(text))
        return PromptResult("end_turn", None)

    async with serving(tmp_path, AgentDouble(forgetful)) as api:
        session = await api.session()
        events = await api.events(await api.turn("hello", session))
        assert [event["type"] for event in events] == ["turn", "status", "message", "complete"]
        assert [used for used, _ in api.agent.prompts] == ["20261123_1", "20261123_2"]
        await api.events(await api.turn("again", session))
        assert api.agent.prompts[-1] == ("20261123_2", "again")


async def test_a_session_whose_extensions_hang_is_opened_without_them_for_good(
    tmp_path: Path,
) -> None:
    stuck = SessionStuckError("Extensions of this session (x) have not all started.")
    async with serving(tmp_path) as api:
        session = await api.session()
        await api.events(await api.turn("hello", session))
        api.agent.refuses = stuck
        events = await api.events(await api.turn("again", session))
        assert [event["type"] for event in events] == ["turn", "status", "message", "complete"]
        assert events[1]["content"]["message"].startswith(str(stuck))
        await api.events(await api.turn("and again", session))
        first, new = "20261123_1", "20261123_1.again"
        assert [used for used, _ in api.agent.prompts] == [first, new, new]
        assert api.agent.replaced == [(first, new)]
        for why in (HistoryFixedError("too long"), AgentRefusedError(-32603, "Internal error")):
            api.agent.refuses, api.agent.uncut = stuck, why
            *_, error, _ = await api.events(await api.turn("hello?", session))
            told = (error["content"]["code"], error["content"]["error"])
            assert told == ("agent_unavailable", str(stuck))


async def test_a_turn_that_says_too_much_is_stopped_with_journal_full(tmp_path: Path) -> None:
    async def endless(_agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        while True:
            await sink.update(chunk("x" * 100))

    async with serving(tmp_path, AgentDouble(endless), turn_journal_limit=20_000) as api:
        events = await api.events(await api.turn("hello"))
        assert [event["type"] for event in events][-2:] == ["error", "complete"]
        assert events[-2]["content"]["code"] == "journal_full"


async def test_old_journals_make_room_and_their_turns_stay_on_record(tmp_path: Path) -> None:
    async with serving(tmp_path, journal_limit=2048) as api:
        first = await api.turn("x" * 900)
        await api.events(first)
        second = await api.turn("y" * 900)
        await api.until(second, "complete")
        await eventually(lambda: not (tmp_path / f"state/turns/{first}.sse").exists())
        status, body = await api.json("GET", f"/api/v1/turns/{first}/events")
        assert (status, body["code"]) == (410, "events_gone")
        assert (await api.json("GET", f"/api/v1/turns/{first}"))[1]["answer"] == "x" * 900


async def test_a_turn_whose_end_was_read_has_nothing_more_to_send(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        turn = await api.turn("hello")
        events = await api.events(turn)
        headers = {"last-event-id": events[-1]["id"]}
        assert (await api.json("GET", f"/api/v1/turns/{turn}/events", headers=headers))[0] == 204
        assert await api.events(turn, events[-2]["id"]) == events[-1:]


async def test_many_readers_of_one_turn_all_get_all_of_it(tmp_path: Path) -> None:
    async def long(_agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        for number in range(500):
            await sink.update(chunk(f"{number} "))
            if number % 10 == 0:
                await asyncio.sleep(0)
        return PromptResult("end_turn", None)

    async with serving(tmp_path, AgentDouble(long)) as api:
        turn = await api.turn("hello")
        answers = await asyncio.gather(*(api.events(turn) for _ in range(20)))
        assert all(answer == answers[0] for answer in answers)
        assert len(answers[0]) == 502


async def test_turns_are_listed_newest_first_and_shortened(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        turns = []
        for number in range(3):
            turns.append(await api.turn(str(number) * 1500, session))
            await api.events(turns[-1])
        _, body = await api.json("GET", f"/api/v1/sessions/{session}/turns?limit=2")
        assert [turn["turn_id"] for turn in body["turns"]] == turns[:0:-1]
        assert {len(turn["message"]) for turn in body["turns"]} == {1000}
        for limit in ["0", "201", "x", "-1"]:
            path = f"/api/v1/sessions/{session}/turns?limit={limit}"
            assert (await api.json("GET", path))[0] == 400


async def test_a_body_is_refused_as_soon_as_it_is_too_large() -> None:
    pieces = iter([{"type": "http.request", "body": b"x" * 100, "more_body": True}] * 3)

    async def receive() -> dict[str, Any]:
        return next(pieces)  # an error after the third

    with pytest.raises(RequestError, match="larger than 250 bytes") as refused:
        await read_object(Request({"type": "http"}, receive), 250)
    assert refused.value.code == "too_large"


async def test_bad_messages_get_clear_errors(tmp_path: Path) -> None:
    async with serving(tmp_path, message_limit=2048) as api:
        for body, status in [
            ({}, 400),
            ({"message": ""}, 400),
            ({"message": 7}, 400),
            ({"message": "a\ud800"}, 400),
            ({"message": "x", "message_id": ""}, 400),
            ({"message": "x", "session_id": 7}, 400),
            ([], 400),
            ({"message": "ä" * 1025}, 413),
            ({"message": "x" * 200_000}, 413),
            ({"message": "x", "session_id": "nothing"}, 404),
        ]:
            answer, error = await api.json("POST", "/api/v1/turns", body)
            assert answer == status, body
            assert {"error", "message", "code"} <= set(error)
        async with api.http.post(api.base + "/api/v1/turns", data=b"{nonsense") as refused:
            assert refused.status == 400
        for path in ["/api/v1/turns/nothing", "/api/v1/turns/nothing/events"]:
            status, error = await api.json("GET", path)
            assert (status, error["code"]) == (404, "turn_not_found")
        assert (await api.json("POST", "/api/v1/turns/nothing/cancel"))[0] == 404


async def test_an_agent_that_is_not_ready_is_503_and_starts_nothing(tmp_path: Path) -> None:
    state = replace(READY, status="failed", detail="goose cannot start.")
    async with serving(tmp_path, AgentDouble(state=state)) as api:
        status, error = await api.json("POST", "/api/v1/turns", {"message": "hello"})
        assert (status, error["message"]) == (503, "goose cannot start.")
        assert (await api.json("GET", "/api/v1/sessions"))[1]["total"] == 0
        api.agent.state = READY
        assert (await api.json("POST", "/api/v1/turns", {"message": "hello"}))[0] == 201


async def test_records_that_cannot_be_written_refuse_the_turn_and_leave_nothing_of_it(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        body = {"session_id": session, "message": "x" * 100_000, "message_id": "m1"}
        records = api.services.sessions._sessions._records

        async def limit(pages: int) -> None:
            await records.run(lambda sql: sql.execute(f"PRAGMA max_page_count = {pages}"))

        await limit(1)  # SQLite then says that the disk is full
        status, refused = await api.json("POST", "/api/v1/turns", body)
        assert (status, refused["code"]) == (500, "storage_failed")
        assert "full" in refused["message"]
        assert api.agent.prompts == []
        await limit(1_000_000)
        status, turn = await api.json("POST", "/api/v1/turns", body)
        assert status == 201
        events = await api.events(turn["turn_id"])
        assert events[-1]["content"]["stop_reason"] == "end_turn"


async def test_a_long_error_of_the_provider_is_shortened(tmp_path: Path) -> None:
    async def fails(_agent: AgentDouble, _text: str, _sink: TurnSink) -> PromptResult:
        raise AgentRefusedError(-32603, "<html>" * 100_000)

    async with serving(tmp_path, AgentDouble(fails), turn_journal_limit=1024) as api:
        events = await api.events(await api.turn("hello", message_id="\U0001f9a2" * 200))
        assert [event["type"] for event in events] == ["turn", "error", "complete"]
        assert len(events[1]["content"]["error"]) == 4000
