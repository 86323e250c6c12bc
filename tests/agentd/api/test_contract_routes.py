"""The older contract: the shapes that existing clients read."""

import asyncio
import json
import uuid
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import pytest
from structlog.testing import capture_logs
from tests.agentd.doubles import READY, AgentDouble, Api, chunk, eventually, serving

from greylag.agentd.agent.types import (
    AgentDiedError,
    AgentRefusedError,
    AgentUnavailableError,
    PromptResult,
    TurnSink,
)
from greylag.agentd.config import Secret
from greylag.common import agent_api

EXTENSIONS = "_goose/unstable/config/extensions"
STDIO = {
    "extension": {
        "type": "mcp",
        "server": {"name": "My Tool", "command": "npx", "args": ["-y", "x"], "env": []},
        "envKeys": ["TOKEN"],
        "description": "d",
        "timeout": 10,
    },
    "enabled": True,
    "configKey": "mytool",
}
BUILTIN = {
    "extension": {"type": "platform", "name": "developer"},
    "enabled": True,
    "configKey": "developer",
}


async def failing(_agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
    await sink.update(chunk("partial"))
    raise AgentDiedError("gone")


async def events_of(api: Api, path: str, message: str) -> list[dict[str, Any]]:
    frames = api.frames("POST", path, {"message": message})
    return [json.loads(frame.data) async for frame in frames]


async def test_health_is_200_only_when_the_agent_is_ready(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        status, body = await api.json("GET", "/api/v1/health")
        assert status == 200
        assert body["status"] == "ok"
        assert int(body["timestamp"]) > 0
        assert body["database_connected"] is True
        assert body["streaming_modes"] == ["agent-events", "provider-tokens"]
        assert body["agent"]["kind"] == "goose"
        assert body["model"]["kind"] == "scripted"
        assert not {"mongodb_url", "mongodb_database"} & set(body)
        api.agent.state = replace(READY, status="starting", detail="The agent is starting.")
        status, body = await api.json("GET", "/api/v1/health")
        assert (status, body["status"], body["detail"]) == (503, "error", "The agent is starting.")


async def test_a_session_s_life(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        assert str(uuid.UUID(session)) == session
        assert api.agent.titles == [f"Session {session[:8]}"]
        one = f"/api/v1/sessions/{session}"
        status, shown = await api.json("GET", one)
        assert status == 200
        assert set(shown) == {field.name for field in fields(agent_api.Session)}
        assert datetime.fromisoformat(shown["created_at"]).tzinfo is not None
        await api.events(await api.turn("hello", session))
        second = await api.session()
        _, listed = await api.json("GET", "/api/v1/sessions")
        assert [each["session_id"] for each in listed["sessions"]] == [second, session]
        assert [each["message_count"] for each in listed["sessions"]] == [0, 2]
        assert [each["title"] for each in listed["sessions"]] == ["", "hello"]
        named = await api.json("PUT", one, {"title": " The\n first "})
        assert (named[0], named[1]["title"]) == (200, "The first")
        for wrong in ({"title": "x" * 201}, {"title": 1}, {}, {"title": "\u202e"}):
            assert (await api.json("PUT", one, wrong))[0] == 400
        assert listed["total"] == 2
        assert (await api.json("DELETE", one)) == (204, None)
        assert api.agent.forgotten == ["20261123_1"]
        assert (await api.json("DELETE", one))[0] == 404
        not_found = {
            "session_id": "not_found",
            "created_at": "",
            "updated_at": "",
            "message_count": 0,
        }
        assert (await api.json("GET", one)) == (404, not_found)
        assert (await api.json("GET", f"{one}/messages"))[0] == 404
        assert list((tmp_path / "state/turns").glob("*.sse")) == []


async def test_deleting_a_session_ends_the_turn_that_runs_in_it(tmp_path: Path) -> None:
    async def waiting(agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        await agent.cancelled.wait()
        return PromptResult("cancelled", None)

    async with serving(tmp_path, AgentDouble(waiting)) as api:
        session = await api.session()
        turn = await api.turn("hello", session)
        await eventually(lambda: bool(api.agent.prompts))
        assert (await api.json("DELETE", f"/api/v1/sessions/{session}"))[0] == 204
        assert (await api.json("GET", f"/api/v1/turns/{turn}"))[0] == 404


async def test_messages_are_streamed_in_the_older_shape(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        events = await events_of(api, f"/api/v1/sessions/{session}/messages", "hello")
        assert [event["type"] for event in events] == ["turn", "message", "complete"]
        message = events[1]["content"]
        assert (message["role"], message["content"]) == ("Assistant", "hello")
        assert (message["content_type"], message["session_id"]) == ("text", session)
        assert isinstance(message["timestamp"], int)
        complete = events[2]["content"]
        assert (complete["message"], complete["storage"]) == ("Response complete", "file")


async def test_a_message_to_an_unknown_session_is_one_error_event_in_a_200(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as api:
        (event,) = await events_of(api, "/api/v1/sessions/nothing/messages", "hello")
        assert event["type"] == "error"
        assert event["content"]["error"] == "Session not found"
        assert "nothing" in event["content"]["message"]


async def test_an_agent_that_cannot_start_is_one_error_event_in_a_200(tmp_path: Path) -> None:
    state = replace(READY, status="failed", detail="goose cannot start.")
    async with serving(tmp_path, AgentDouble(state=state)) as api:
        session = await api.session()
        (event,) = await events_of(api, f"/api/v1/sessions/{session}/messages", "hello")
        assert event["content"]["message"] == "Failed to start agent processing"
        assert event["content"]["error"] == "goose cannot start."


async def test_a_client_that_leaves_loses_nothing_and_stops_nothing(tmp_path: Path) -> None:
    async def slow(agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        await sink.update(chunk("one "))
        await agent.cancelled.wait()
        await sink.update(chunk("two"))
        return PromptResult("end_turn", None)

    async with serving(tmp_path, AgentDouble(slow)) as api:
        session = await api.session()
        path = f"/api/v1/sessions/{session}/messages"
        frames = api.frames("POST", path, {"message": "hello"})
        first = await anext(frames)
        assert first.id is not None
        await frames.aclose()  # type: ignore[attr-defined]  # it is an async generator
        api.agent.cancelled.set()
        events = await api.events(first.id.rpartition("-")[0], after=first.id)
        assert [event["type"] for event in events] == ["message", "message", "complete"]


async def test_send_waits_for_the_whole_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        path = f"/api/v1/sessions/{session}/send"
        status, body = await api.json("POST", path, {"message": "hello"})
        assert status == 200
        assert body["assistant_response"] == "hello"
        assert body["message"] == "Message processed successfully"
        assert body["tool_calls_count"] == 0
        status, body = await api.json("POST", "/api/v1/sessions/x/send", {"message": "hello"})
        assert (status, body["session_id"]) == (404, "x")
        api.agent.script = failing
        status, body = await api.json("POST", path, {"message": "hello"})
        assert (status, body["error"]) == (500, "Agent processing error")
        assert body["code"] == "agent_restarted"


async def test_the_token_stream_carries_the_text_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        tokens = await events_of(api, f"/api/v1/sessions/{session}/stream", "hello")
        assert [token["type"] for token in tokens] == ["token", "complete"]
        assert tokens[0]["content"] == "hello"
        assert tokens[1]["accumulated"] == "hello"


async def test_a_history_is_read_page_by_page(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        for number in range(5):
            await api.events(await api.turn(f"message {number}", session))
        path = f"/api/v1/sessions/{session}/messages"
        _, whole = await api.json("GET", path)
        seen: list[Any] = []
        before = whole["total_count"] + 1
        while before:
            _, page = await api.json("GET", f"{path}?limit=3&before={before}")
            assert page["total_count"] == 10
            assert len(page["messages"]) <= 3
            seen = [*page["messages"], *seen]
            before = page["messages"][0]["message_index"]
        assert seen == whole["messages"]
        for wrong in ("limit=0", "limit=401", "limit=x", "limit=3&before=0"):
            assert (await api.json("GET", f"{path}?{wrong}"))[0] == 400


async def test_a_page_of_long_texts_has_an_end(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        for length in (10, 200_000, 100_000, 300_000):
            # The answer repeats the message.
            await api.events(await api.turn("y" * length, session))
        path = f"/api/v1/sessions/{session}/messages?limit=400"
        _, page = await api.json("GET", path)
        assert [len(one["content"]) for one in page["messages"]] == [agent_api.PAGE_CHARACTERS]
        assert page["messages"][0]["shortened"]
        before = page["messages"][0]["message_index"] - 1
        _, page = await api.json("GET", f"{path}&before={before}")
        assert [len(one["content"]) for one in page["messages"]] == [100_000, 100_000]
        assert not page["messages"][0]["shortened"]


async def test_history_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        for number in range(45):
            await api.events(await api.turn(f"message {number}", session))
        page = AsyncMock(wraps=api.services.turns.records.page)
        monkeypatch.setattr(api.services.turns.records, "page", page)
        _, body = await api.json("GET", f"/api/v1/sessions/{session}/messages")
        assert {limit for _, _, limit in (call.args for call in page.call_args_list)} == {1}
        assert body["total_count"] == 90
        assert [each["message_index"] for each in body["messages"]] == list(range(90))
        assert {each["role"] for each in body["messages"][::2]} == {"User"}
        assert body["messages"][89]["content"] == "message 44"
        assert isinstance(body["messages"][89]["timestamp"], int)
        async with api.http.get(f"{api.base}/api/v1/sessions/{session}/export") as answer:
            text = await answer.text()
        assert text.startswith(f"# Session Export: {session}")
        assert "## Message 1 - User\n\nmessage 0" in text
        assert (await api.json("GET", "/api/v1/sessions/nothing/export"))[0] == 404


async def test_status_tells_what_is_going_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        _, body = await api.json("GET", "/api/v1/agent/status")
        assert (body["overall_status"], body["active_sessions"]) == ("idle", 0)
        session = await api.session()
        await api.json("POST", f"/api/v1/sessions/{session}/send", {"message": "hello"})
        await api.events(await api.turn("hello", session))
        _, body = await api.json("GET", "/api/v1/agent/status")
        assert body["total_processed"] == 2
        assert [each["endpoint_type"] for each in body["sessions"]] == ["sync", "agent-streaming"]
        assert {each["status"] for each in body["sessions"]} == {"completed"}
        assert set(body["sessions"][0]["start_time"]) == {"secs_since_epoch", "nanos_since_epoch"}
        assert body["uptime_seconds"] >= 0


async def test_extensions_are_listed_in_both_spellings(tmp_path: Path) -> None:
    agent = AgentDouble(answers={f"{EXTENSIONS}/list": {"extensions": [STDIO, BUILTIN]}})
    async with serving(tmp_path, agent) as api:
        _, body = await api.json("GET", "/api/v1/extensions")
        assert body["total_count"] == 2
        assert [each["name"] for each in body["extensions"]] == ["My Tool", "developer"]
        tool = body["extensions"][0]
        assert tool["type"] == tool["extension_type"] == "stdio"
        assert (tool["cmd"], tool["args"], tool["enabled"]) == ("npx", ["-y", "x"], True)


@pytest.mark.parametrize(
    "told", [None, {}, {"extensions": [{}]}, {"extensions": [{"extension": 1}]}]
)
async def test_an_agent_that_lists_nonsense_is_told_of(tmp_path: Path, told: object) -> None:
    agent = AgentDouble(answers={f"{EXTENSIONS}/list": told})
    async with serving(tmp_path, agent) as api:
        status, body = await api.json("GET", "/api/v1/extensions")
        assert (status, body["code"]) == (500, "agent_refused")


async def test_a_setting_for_which_the_disk_has_no_room_is_told_as_that(tmp_path: Path) -> None:
    full = AgentRefusedError(-32603, "Internal error", "No space left on device (os error 28)")
    agent = AgentDouble(answers={"_goose/unstable/config/upsert": full})
    async with serving(tmp_path, agent) as api:
        changed = {"value": 0.5}
        status, body = await api.json("PUT", "/api/v1/settings/GOOSE_TEMPERATURE", changed)
        assert (status, body["code"]) == (500, "storage_failed")


async def test_extensions_are_added_switched_and_removed(tmp_path: Path) -> None:
    agent = AgentDouble(answers={f"{EXTENSIONS}/list": {"extensions": [STDIO]}})
    async with serving(tmp_path, agent) as api:
        body = {"name": "My Tool", "type": "stdio", "cmd": "npx", "args": ["-y", "x"]}
        status, _ = await api.json("POST", "/api/v1/extensions", {**body, "envs": {"A": "b"}})
        assert status == 201
        method, params = agent.calls[-2]
        assert method == f"{EXTENSIONS}/add"
        assert params["extension"]["server"]["env"] == [{"name": "A", "value": "b"}]
        one = "/api/v1/extensions/My%20Tool"
        assert (await api.json("DELETE", one))[1]["error"] == "Extension is enabled"
        assert (await api.json("PUT", f"{one}/toggle", {"enabled": False}))[0] == 200
        assert agent.calls[-1] == (
            f"{EXTENSIONS}/set-enabled",
            {"configKey": "mytool", "enabled": False},
        )
        agent.answers[f"{EXTENSIONS}/list"] = {"extensions": [{**STDIO, "enabled": False}]}
        assert (await api.json("DELETE", one))[0] == 204
        assert (await api.json("DELETE", "/api/v1/extensions/none"))[0] == 404
        for wrong in [
            {"name": "x"},
            {"name": "x", "type": "sse", "uri": "u"},
            {"name": "x", "type": "stdio"},
            {"name": "x", "type": "stdio", "cmd": "a", "args": [1]},
            {"name": "x", "type": "streamable_http"},
            {"name": "x", "type": "builtin", "timeout": "soon"},
            {"name": "x", "type": "builtin", "bundled": "yes"},
        ]:
            assert (await api.json("POST", "/api/v1/extensions", wrong))[0] == 400, wrong
        body = {"name": "h", "type": "streamable_http", "uri": "u", "display_name": "", "args": []}
        assert (await api.json("POST", "/api/v1/extensions", body | {"envs": {"T": "v"}}))[0] == 201
        (_, secret), (_, added), _ = agent.calls[-3:]
        assert secret == {"key": "T", "value": "v", "isSecret": True}
        assert added["extension"]["envKeys"] == ["T"]
        _, off = await api.json("POST", "/api/v1/extensions", {**body, "enabled": False})
        assert (off["enabled"], off["state"]) == (False, None)
        assert agent.calls[-1][1]["enabled"] is False


TURN_BODIES = ("sessions/s/messages", "sessions/s/send", "sessions/s/stream", "turns")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        *[("POST", path, {"message": "m"}) for path in TURN_BODIES],
        *[("POST", path, {}) for path in ("sessions", "sessions/s/cancel", "turns/t/cancel")],
        ("POST", "turns/t/confirmations/c", {"decision": "allow_once"}),
        ("POST", "extensions", {"name": "x", "type": "builtin"}),
        ("PUT", "extensions/x/toggle", {"enabled": True}),
        ("PUT", "settings/GOOSE_MODE", {"value": "auto"}),
        ("PUT", "settings", {"settings": {}}),
        ("POST", "files/folder", {"path": "a"}),
        ("POST", "files/move", {"source": "a", "target": "b"}),
    ],
)
async def test_no_member_of_a_body_is_dropped_without_a_word(
    method: str, path: str, body: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(tmp_path) as api:
        status, error = await api.json(method, f"/api/v1/{path}", {**body, "surprise": None})
        assert (status, error["code"]) == (400, "invalid_request")
        assert "'surprise'" in error["message"]


@pytest.mark.parametrize(
    "lost",
    [
        {"type": "stdio", "cmd": "c", "display_name": "Shown"},
        {"type": "stdio", "cmd": "c", "uri": "u"},
        {"type": "streamable_http", "uri": "u", "python_code": "1"},
        {"type": "builtin", "envs": {"A": "b"}},
    ],
)
async def test_what_goose_cannot_keep_of_an_extension_is_refused_by_name(
    lost: dict[str, Any], tmp_path: Path
) -> None:
    async with serving(tmp_path) as api:
        status, error = await api.json("POST", "/api/v1/extensions", {"name": "x", **lost})
        assert (status, error["code"]) == (400, "extension_invalid")
        assert f"no {list(lost)[-1]} " in error["message"]


async def test_extensions_without_goose_say_so(tmp_path: Path) -> None:
    unknown = AgentRefusedError(-32601, "Method not found")
    agent = AgentDouble(answers={f"{EXTENSIONS}/list": unknown, f"{EXTENSIONS}/add": unknown})
    async with serving(tmp_path, agent) as api:
        assert (await api.json("GET", "/api/v1/extensions"))[1]["extensions"] == []
        body = {"name": "x", "type": "builtin"}
        assert (await api.json("POST", "/api/v1/extensions", body))[0] == 503
        agent.answers[f"{EXTENSIONS}/list"] = AgentUnavailableError("The agent is starting.")
        status, error = await api.json("GET", "/api/v1/extensions")
        assert (status, error["message"]) == (503, "The agent is starting.")


async def test_settings_are_shown_changed_and_reset(tmp_path: Path) -> None:
    async with serving(tmp_path, goose_settings={"GOOSE_MAX_TURNS": "5"}) as api:
        _, body = await api.json("GET", "/api/v1/settings")
        assert body["total_count"] == 7
        mode = "/api/v1/settings/GOOSE_MODE"
        _, shown = await api.json("GET", mode)
        assert shown["value"] == shown["default_value"] == "smart_approve"
        assert shown["env_override"] is None
        status, changed = await api.json("PUT", mode, {"value": "auto"})
        assert (status, changed["value"], changed["restart_required"]) == (200, "auto", False)
        upsert = ("_goose/unstable/config/upsert", {"key": "GOOSE_MODE", "value": "auto"})
        assert api.agent.calls[-1] == upsert
        assert (await api.json("GET", mode))[1]["value"] == "auto"
        assert (await api.json("DELETE", mode))[1]["default_value"] == "smart_approve"
        assert (await api.json("GET", mode))[1]["value"] == "smart_approve"
        assert (await api.json("PUT", mode, {"value": "yolo"}))[1]["error"] == "Validation failed"
        assert (await api.json("PUT", mode, {}))[0] == 400
        fixed = "/api/v1/settings/GOOSE_MAX_TURNS"
        assert (await api.json("GET", fixed))[1]["env_override"] == "5"
        status, error = await api.json("PUT", fixed, {"value": 7})
        assert (status, error["error"]) == (400, "Setting overridden")
        assert (await api.json("GET", "/api/v1/settings/NOTHING"))[0] == 404


async def test_a_session_has_a_mode_and_a_model_of_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        session, agent = await api.session(), api.agent
        known = "20261123_1"
        own = f"/api/v1/sessions/{session}/settings"
        await api.events(await api.turn("hello", session))
        assert agent.options[known] == {"mode": "smart_approve", "model": "gpt-4o"}
        await api.json("PUT", "/api/v1/settings/GOOSE_MODEL", {"value": "m"})
        await api.events(await api.turn("hello", session))
        assert agent.options[known]["model"] == "m"
        status, chosen = await api.json("PUT", f"{own}/GOOSE_MODE", {"value": "auto"})
        assert (status, chosen["value"]) == (200, "auto")
        await api.events(await api.turn("hello", session))
        assert agent.options[known] == {"mode": "auto", "model": "m"}
        assert (await api.json("GET", f"/api/v1/sessions/{session}"))[1]["mode"] == "auto"
        other = await api.turn("hello")
        await api.events(other)
        assert agent.options["20261123_2"]["mode"] == "smart_approve"

        agent.refuses = AgentRefusedError(-32602, "Invalid params")
        assert (await api.json("PUT", f"{own}/GOOSE_MODEL", {"value": "x"}))[0] == 200
        failed = (await api.events(await api.turn("hello", session)))[-2]
        assert (failed["type"], failed["content"]["code"]) == ("error", "agent_failed")
        assert len(agent.prompts) == 4
        agent.refuses = None
        assert (await api.json("PUT", f"{own}/GOOSE_MODE", {"value": ""}))[1]["value"] == (
            "smart_approve"
        )
        await api.events(await api.turn("hello", session))
        assert agent.options[known] == {"mode": "smart_approve", "model": "x"}


async def test_a_mode_and_a_model_that_are_chosen_at_once_are_both_kept(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        choose = api.services.settings.choose
        await asyncio.gather(
            choose(session, "GOOSE_MODE", "auto"), choose(session, "GOOSE_MODEL", "m")
        )
        await api.events(await api.turn("hello", session))
        assert api.agent.options["20261123_1"] == {"mode": "auto", "model": "m"}


@pytest.mark.parametrize(
    ("session", "key", "value", "refusal"),
    [
        ("nobody", "GOOSE_MODE", "auto", (404, "session_not_found")),
        (None, "GOOSE_MAX_TURNS", 5, (404, "setting_not_found")),
        (None, "GOOSE_MODE", "yolo", (400, "setting_invalid")),
        (None, "GOOSE_MODE", None, (400, "setting_invalid")),
        (None, "GOOSE_MODEL", "other", (400, "setting_overridden")),
    ],
)
async def test_what_a_session_may_not_have_is_refused(
    tmp_path: Path, session: str | None, key: str, value: object, refusal: tuple[int, str]
) -> None:
    async with serving(tmp_path, models=("fixed",)) as api:
        name = session or await api.session()
        path = f"/api/v1/sessions/{name}/settings/{key}"
        found, refused = await api.json("PUT", path, {"value": value})
        assert (found, refused["code"]) == refusal


async def test_what_the_environment_fixes_holds_in_every_session(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        session = await api.session()
        path = f"/api/v1/sessions/{session}/settings/GOOSE_MODE"
        await api.json("PUT", path, {"value": "auto"})
    async with serving(tmp_path, goose_settings={"GOOSE_MODE": "approve"}, models=("m",)) as api:
        await api.events(await api.turn("hello", session))
        assert api.agent.options["20261123_1"] == {"mode": "approve", "model": "m"}


async def test_of_several_models_one_is_chosen_and_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path, models=("a", "b", "c")) as api:
        session, known = await api.session(), "20261123_1"
        path = f"/api/v1/sessions/{session}/settings/GOOSE_MODEL"
        assert (await api.json("GET", "/api/v1/models"))[1] == {"models": ["a", "b", "c"]}
        await api.events(await api.turn("hello", session))
        assert api.agent.options[known]["model"] == "a"
        assert (await api.json("PUT", path, {"value": "d"}))[1]["code"] == "setting_invalid"
        assert (await api.json("PUT", path, {"value": "b"}))[0] == 200
        await api.json("PUT", "/api/v1/settings/GOOSE_MODEL", {"value": "c"})
        await api.events(await api.turn("hello", session))
        assert api.agent.options[known]["model"] == "b"
    async with serving(tmp_path, models=("a", "d")) as api:  # what was chosen is not there now
        await api.events(await api.turn("hello", session))
        assert api.agent.options[known]["model"] == "a"
        assert (await api.json("GET", "/api/v1/settings/GOOSE_MODEL"))[1]["value"] == "a"


async def test_several_settings_each_succeed_or_fail_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        values = {"GOOSE_MODEL": "m", "GOOSE_TEMPERATURE": 3, "NOTHING": 1}
        status, body = await api.json("PUT", "/api/v1/settings", {"settings": values})
        assert status == 200
        assert body["message"] == "Bulk update completed: 1/3 settings updated"
        assert (body["success_count"], body["restart_required"]) == (1, True)
        assert [result["success"] for result in body["results"]] == [True, False, False]
        api.agent.answers["_goose/unstable/config/upsert"] = AgentUnavailableError("gone")
        status, _ = await api.json("PUT", "/api/v1/settings/GOOSE_MODE", {"value": "auto"})
        assert status == 503
        _, shown = await api.json("GET", "/api/v1/settings/GOOSE_MODE")
        assert shown["value"] == "smart_approve"


async def test_every_route_but_health_wants_the_token(tmp_path: Path) -> None:
    async with serving(tmp_path, token=Secret("s3cret")) as api:
        assert (await api.json("GET", "/api/v1/sessions"))[0] == 200
        async with aiohttp.ClientSession() as stranger:
            for path, status in [
                ("/", 200),
                ("/api/v1/health", 200),
                ("/api/v1/sessions", 401),
                ("/api/v1/turns/x", 401),
                ("/nothing", 401),
            ]:
                async with stranger.get(api.base + path) as answer:
                    assert answer.status == status, path
            for wrong in ["Bearer nope", "Bearer ", "Basic s3cret", "s3cret", "Bearer s3cret2"]:
                headers = {"authorization": wrong}
                async with stranger.get(f"{api.base}/api/v1/sessions", headers=headers) as answer:
                    assert answer.status == 401
                    assert answer.headers["x-greylag-not-forwarded"] == "unauthorized"
                    assert {"error", "message"} <= set(await answer.json())


@pytest.mark.parametrize("legacy", [False, True])
async def test_older_clients_get_in_where_it_is_allowed_and_their_token_is_never_logged(
    tmp_path: Path, *, legacy: bool
) -> None:
    page = {"origin": "https://pages.example"}
    asked = {"access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "content-type"
    with capture_logs() as logged:
        async with (
            serving(tmp_path, token=Secret("s3cret"), legacy_api=legacy) as api,
            aiohttp.ClientSession(headers=page) as client,
        ):
            address = f"{api.base}/api/v1/sessions"
            for query, password, allowed in [
                ("?token=s3cret", None, legacy),
                ("?x=1&token=s3cret&y=%26", None, legacy),
                ("", "s3cret", legacy),
                ("?token=nope", None, False),
                ("?token=", None, False),
                ("", "nope", False),
            ]:
                basic = aiohttp.encode_basic_auth("goose", password or "")
                headers = {"authorization": basic} if password else {}
                async with client.get(address + query, headers=headers) as answer:
                    assert answer.status == (200 if allowed else 401), (query, password)
                    shared = answer.headers.get("access-control-allow-origin")
                    assert shared == ("*" if legacy else None)
            for wrong in ("Basic \u00e9", "Basic a", "Basic"):
                async with client.get(address, headers={"authorization": wrong}) as answer:
                    assert answer.status == 401
            async with client.options(address, headers=asked) as answer:
                assert answer.status == (200 if legacy else 401)
    assert len(logged) >= 7
    assert "s3cret" not in str(logged)


async def test_without_a_token_only_this_machine_s_programs_may_connect(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        for headers, status in [
            ({"host": "localhost:1"}, 200),
            ({"host": "[::1]:1"}, 200),
            ({"host": "evil.example"}, 403),
            ({"host": "127.0.0.1.evil.example"}, 403),
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"origin": "http://localhost:3000"}, 200),
        ]:
            answer, _ = await api.json("GET", "/api/v1/health", headers=headers)
            assert answer == status, headers


async def test_request_ids_are_echoed_or_made(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        for sent, kept in [("abc-123", True), ("x" * 200, False), ("a b", False)]:
            headers = {"x-request-id": sent}
            async with api.http.get(f"{api.base}/api/v1/sessions", headers=headers) as answer:
                assert (answer.headers["x-request-id"] == sent) is kept
        async with api.http.get(f"{api.base}/nothing") as answer:
            assert answer.status == 404
            assert len(answer.headers["x-request-id"]) == 32
            assert (await answer.json())["code"] == "not_found"


async def test_stopping_takes_no_more_turns_and_ends_those_that_run(tmp_path: Path) -> None:
    async def waiting(agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        await sink.update(chunk("begun"))
        await agent.cancelled.wait()
        return PromptResult("cancelled", None)

    async with serving(tmp_path, AgentDouble(waiting)) as api:
        turn = await api.turn("hello")
        await api.until(turn, "message")
        await api.services.turns.stop()
        events = await api.events(turn)
        assert events[-1]["content"]["stop_reason"] == "cancelled"
        status, refused = await api.json("POST", "/api/v1/turns", {"message": "more"})
        assert (status, refused["code"]) == (503, "agent_unavailable")
        assert (await api.json("GET", "/api/v1/health"))[0] == 503
