"""What users see when the provider, goose or agentd itself fails."""

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.agentd.conftest import serve
from tests.e2e.agentd_process import Agentd, agentd

from greylag.agentd.agent.types import find_agent

pytestmark = [
    pytest.mark.goose,
    pytest.mark.skipif(
        find_agent(None, os.environ).kind != "goose", reason="goose is not installed"
    ),
]


async def failure(api: Agentd, message: str) -> tuple[str, str]:
    """Ask in a session of its own; return the error's code and the text before it."""
    events = await api.events(await api.turn(message))
    assert [event["type"] for event in events[-2:]] == ["error", "complete"], events
    text = "".join(e["content"]["content"] for e in events if e["type"] == "message")
    return events[-2]["content"]["code"], text


async def test_every_failure_of_the_provider_has_its_code(tmp_path: Path) -> None:
    expected = {
        "[[status 401]]": ("model_unauthorized", ""),
        "[[status 403]]": ("model_unauthorized", ""),
        "[[status 429]]": ("model_rate_limited", ""),
        "[[status 500]]": ("model_unavailable", ""),
        "[[status 400]]": ("model_failed", ""),
        "[[text one two three]] [[cut after=2]]": ("model_unavailable", "one two "),
        "[[empty]]": ("model_empty_response", ""),
    }
    async with agentd(tmp_path) as api:
        answers = await asyncio.gather(*(failure(api, message) for message in expected))
        assert dict(zip(expected, answers, strict=True)) == expected
        assert (await api.json("GET", "/api/v1/health"))[0] == 200


async def test_a_provider_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        settings = {"GREYLAG_MODEL_KEY": "sk-x", "GREYLAG_MODEL_RETRIES": "0.1,0.1,0.1"}
        async with agentd(tmp_path, GREYLAG_MODEL_URL=url, **settings) as api:
            code, _ = await failure(api, "hello")
            assert code == "model_unavailable"


async def test_goose_killed_in_a_turn_ends_it_and_the_next_message_is_answered(
    tmp_path: Path,
) -> None:
    async with agentd(tmp_path) as api:
        session = await api.session()
        turn = await api.turn("[[text one two]] [[stall after=1]]", session)
        await api.until(turn, "message")
        api.goose().kill()
        events = await api.events(turn)
        assert [event["type"] for event in events[-3:]] == ["message", "error", "complete"]
        assert events[-2]["content"]["code"] == "agent_restarted"
        events = await api.events(await api.turn("[[text again]]", session))
        assert events[-1]["content"]["stop_reason"] == "end_turn"


async def test_goose_killed_in_a_tool_leaves_no_orphan(tmp_path: Path) -> None:
    async with agentd(tmp_path) as api:
        turn = await api.turn("[[tool sleep 986]]")
        await sleeping(api)
        api.goose().kill()
        events = await api.events(turn)
        assert events[-2]["content"]["code"] == "agent_restarted"
        async with asyncio.timeout(5):
            while any("986" in process.cmdline() for process in api.others()):  # noqa: ASYNC110 - waits for another process
                await asyncio.sleep(0.05)


async def test_agentd_killed_in_a_turn_ends_it_when_it_is_back(tmp_path: Path) -> None:
    async with agentd(tmp_path) as api:
        session = await api.session()
        turn = await api.turn("[[text one two]] [[stall after=1]]", session)
        seen = [await api.until(turn, "turn"), await api.until(turn, "message")]
        await api.kill_all()
    async with agentd(tmp_path) as api:
        events = await api.events(turn)
        assert [event["type"] for event in events] == ["turn", "message", "error", "complete"]
        assert [event["content"] for event in events[:2]] == seen
        assert events[2]["content"]["code"] == "agent_restarted"
        again = await api.events(await api.turn("[[text again]]", session))
        assert again[-1]["content"]["stop_reason"] == "end_turn"
        _, history = await api.json("GET", f"/api/v1/sessions/{session}/messages")
        assert [each["role"] for each in history["messages"]] == ["User", "Assistant"] * 2


async def test_agentd_killed_between_turns_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    async with agentd(tmp_path) as api:
        turn = await api.turn("[[text hello]]", message_id="m1")
        events = await api.events(turn)
        await api.kill_all()
    async with agentd(tmp_path) as api:
        assert await api.events(turn) == events
        assert await api.turn("[[text hello]]", message_id="m1") == turn


@pytest.mark.parametrize("message", ["[[text one two]] [[stall after=1]]", "[[tool sleep 985]]"])
async def test_sigterm_in_a_turn_ends_it_and_agentd_in_seconds(
    tmp_path: Path, message: str
) -> None:
    async with agentd(tmp_path) as api:
        turn = await api.turn(message)
        await api.until(turn, "tool_request" if "sleep" in message else "message")
        reading = asyncio.create_task(api.events(turn))
        async with asyncio.timeout(5):
            assert await api.stop() == 0
        events = await reading
        assert events[-1]["content"]["stop_reason"] == "cancelled"
        assert api.others() == []
        assert not (tmp_path / "state/listening.json").exists()


async def test_a_second_agentd_in_the_same_folder_refuses_to_start(tmp_path: Path) -> None:
    async with agentd(tmp_path) as api:
        with pytest.raises(AssertionError, match="ended at once"):
            async with agentd(tmp_path):
                pass
        assert (await api.json("GET", "/api/v1/health"))[0] == 200


async def test_the_scripted_agent_says_what_it_is(tmp_path: Path) -> None:
    async with agentd(tmp_path, GREYLAG_GOOSE="scripted") as api:
        events = await api.events(await api.turn("hello"))
        assert "goose is not installed" in events[0]["content"]["demonstration"]
        assert events[-1]["content"]["stop_reason"] == "end_turn"
        _, health = await api.json("GET", "/api/v1/health")
        assert (health["agent"]["kind"], health["model"]["kind"]) == ("scripted", "scripted")


async def test_extensions_and_settings_reach_the_real_goose(tmp_path: Path) -> None:
    async with agentd(tmp_path) as api:
        body = {"name": "My Tool", "type": "stdio", "cmd": "true", "args": ["-y"], "envs": {}}
        assert (await api.json("POST", "/api/v1/extensions", body))[0] == 201
        assert (await extension(api, "My Tool"))["enabled"] is True
        path = "/api/v1/extensions/My%20Tool"
        assert (await api.json("PUT", f"{path}/toggle", {"enabled": False}))[0] == 200
        assert (await extension(api, "My Tool"))["enabled"] is False
        assert (await api.json("DELETE", path))[0] == 204
        assert (await api.json("DELETE", path))[0] == 404
        changed = await api.json("PUT", "/api/v1/settings/GOOSE_MAX_TURNS", {"value": 7})
        assert changed[0] == 200
        config = (tmp_path / "home/.config/goose/config.yaml").read_text()
        assert "GOOSE_MAX_TURNS: 7" in config


HUNG: dict[str, Any] = {
    "cmd": sys.executable,
    "args": ["-c", "import time; time.sleep(9999)"],
    "timeout": 1,
}
CRASHED: dict[str, Any] = {"cmd": "sh", "args": ["-c", "echo missing API key >&2; exit 1"]}
MISSING: dict[str, Any] = {"cmd": "no-such-program"}
BROKEN = {
    "hung": (HUNG, "did not finish its handshake within 1 seconds"),
    "crashed": (CRASHED, "missing API key"),
    "missing": (MISSING, "No such file or directory"),
}


async def test_a_broken_extension_is_named_and_holds_back_nobody(tmp_path: Path) -> None:
    async with agentd(tmp_path, GREYLAG_MODEL="m", GOOSE_MODE="auto") as api:
        for name, (server, words) in BROKEN.items():
            body = {"name": name, "type": "stdio", **server}
            status, made = await api.json("POST", "/api/v1/extensions", body)
            assert (status, made["state"]) == (201, "failed")
            assert words in made["state_detail"]
            assert words in made["message"]
            assert (await extension(api, name))["state_detail"] == made["state_detail"]
        events = await api.events(await api.turn("[[text all the same]]"))
        told = [one["content"]["message"] for one in events if one["type"] == "status"]
        for name, (_, words) in BROKEN.items():
            assert any(f"'{name}'" in one and words in one for one in told), told
        assert events[-1]["content"]["stop_reason"] == "end_turn"
    async with agentd(tmp_path, GREYLAG_MODEL="m", GOOSE_MODE="auto") as api:
        events = await api.events(await api.turn("[[text and after a start]]"))
        assert events[-1]["content"]["stop_reason"] == "end_turn"
        for name in BROKEN:
            path = f"/api/v1/extensions/{name}"
            assert (await api.json("PUT", f"{path}/toggle", {"enabled": False}))[0] == 200
            assert (await extension(api, name))["state"] is None
            assert (await api.json("DELETE", path))[0] == 204


async def _mcp(request: web.Request) -> web.Response:
    """Answer as an MCP server over streamable HTTP with one tool; at `/hung` never."""
    if request.path == "/hung":
        await asyncio.Event().wait()
    asked = await request.json() if request.method == "POST" else {}
    results: dict[str, dict[str, Any]] = {
        "initialize": {
            "protocolVersion": asked.get("params", {}).get("protocolVersion"),
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "live", "version": "1"},
        },
        "tools/list": {"tools": [{"name": "ping", "inputSchema": {"type": "object"}}]},
        "tools/call": {"content": [{"type": "text", "text": f"pong {request.headers['x-key']}"}]},
    }
    result = results.get(asked.get("method", ""))
    if result is None:
        return web.Response(status=202 if asked else 405)
    return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": result})


async def test_an_extension_over_http_is_called_and_one_that_hangs_is_named(tmp_path: Path) -> None:
    app = web.Application()
    app.router.add_route("*", "/{any}", _mcp)
    async with serve(app) as address, agentd(tmp_path, GOOSE_MODE="auto") as api:
        for name, timeout, state in (("live", 20, "ready"), ("hung", 1, "failed")):
            body = {
                "name": name,
                "type": "streamable_http",
                "uri": f"{address}/{name}",
                "headers": {"x-key": "of-mine"},
                "timeout": timeout,
            }
            status, made = await api.json("POST", "/api/v1/extensions", body)
            assert (status, made["state"]) == (201, state), made
        events = await api.events(await api.turn("[[call live__ping {}]] [[text done]]"))
        (told,) = [one["content"]["result"] for one in events if one["type"] == "tool_response"]
        assert told["Ok"][0]["text"] == "pong of-mine"
        assert any("'hung'" in str(one) for one in events if one["type"] == "status")
        assert events[-1]["content"]["stop_reason"] == "end_turn"


async def test_a_removed_workspace_is_there_again_for_the_next_message(tmp_path: Path) -> None:
    async with agentd(tmp_path, GOOSE_MODE="auto") as api:
        session = await api.session()
        for message in ('[[tool rm -rf "$PWD" "$TMPDIR"]]', "[[tool pwd > here]]"):
            for one in (session, None):
                events = await api.events(await api.turn(message, one))
                assert events[-1]["content"]["stop_reason"] == "end_turn", events
        assert (tmp_path / "workspace/here").read_text().strip() == str(tmp_path / "workspace")
        assert (await api.json("POST", "/api/v1/sessions"))[0] == 201


async def test_no_secret_is_in_any_file_of_the_environment(tmp_path: Path) -> None:
    async with agentd(
        tmp_path, GREYLAG_MODEL_URL="http://127.0.0.1:9", GREYLAG_MODEL_KEY="sk-very-secret"
    ) as api:
        session = await api.session()
        assert session
    for path in tmp_path.rglob("*"):  # noqa: ASYNC240 - a small file of the test
        if path.is_file():
            content = path.read_bytes()
            assert b"sk-very-secret" not in content, path
            assert b"test-token" not in content, path


async def extension(api: Agentd, name: str) -> dict[str, Any]:
    _, body = await api.json("GET", "/api/v1/extensions")
    (found,) = [each for each in body["extensions"] if each["name"] == name]
    return dict(json.loads(json.dumps(found)))


async def sleeping(api: Agentd) -> None:
    async with asyncio.timeout(10):
        while not any("986" in process.cmdline() for process in api.others()):  # noqa: ASYNC110 - waits for another process
            await asyncio.sleep(0.05)
