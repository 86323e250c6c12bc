"""WebSockets of the agent's API through the platform: who may, what passes, and how they end."""

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType
from structlog.testing import capture_logs
from tests.agent.raw_agent import said
from tests.harness import BEARER, TOKEN
from tests.services.house import House
from tests.web.server import ADA, Site, served, settings, site
from tests.web.test_relay_api import site_of

from greylag.services.agents import Agents
from greylag.web.app import create_app

SIZE = {"rows": 24, "columns": 80}
UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def terminal(running: Site, project_id: str = "notes") -> str:
    path = await running.project(project_id, active=True)
    status, made = await running.ask("POST", f"{path}/terminals", json=SIZE)
    assert status == 201, made
    return f"{path}/terminals/{made['terminal_id']}"


async def refusal(running: Site, path: str, **headers: str) -> tuple[int, str]:
    """Ask for a WebSocket in vain; return what the problem document says."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with running.http.get(path, headers={**UPGRADE, **named}) as answer:
        assert answer.content_type == "application/problem+json", answer.status
        assert "x-request-id" in answer.headers or answer.status == 431  # the server's own
        found = await answer.json(content_type=None)
        return answer.status, found["code"]


async def test_messages_pass_as_they_are_and_the_log_has_who_and_nothing_of_them(
    running: Site,
) -> None:
    path = await terminal(running)
    with capture_logs() as lines:
        async with running.http.ws_connect(path) as socket:
            assert "attached" in json.loads(await socket.receive_str())
            for message in (b"\x00\xff" * 30_000, b"secret words"):
                await socket.send_bytes(message)
                assert await socket.receive_bytes() == message
            await socket.send_str('{"resize": {"rows": 1, "columns": 2}}')
            assert await socket.receive_str() == '{"resize": {"rows": 1, "columns": 2}}'
            await socket.send_bytes(b"exit")
            assert await socket.receive_bytes() == b"exit"
            assert json.loads(await socket.receive_str()) == {"exit": 0}
            assert (await socket.receive()).type is WSMsgType.CLOSE
            assert socket.close_code == 1000
        while not running.house.gateway.open_streams == 0 or len(lines) < 3:  # noqa: SIM201, ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    told = {line["event"]: line for line in lines}
    assert told["terminal_opened"]["principal"] == "operator"
    assert told["terminal_closed"]["terminal"] == path.rpartition("/")[2]
    assert told["request"]["status"] == 101
    assert "secret" not in str(lines)


async def test_who_leaves_leaves_nothing_open(running: Site) -> None:
    path = await terminal(running)
    async with running.http.ws_connect(path) as socket:
        await socket.receive_str()
        assert running.house.gateway.open_streams == 1
    async with asyncio.timeout(10):
        while running.house.gateway.open_streams:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_the_guard_stands_before_it(running: Site) -> None:
    path = await terminal(running)
    foreign: list[dict[str, str]] = [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "http://localhost"},
        {"host": "evil.example"},
        {"sec_fetch_site": "cross-site"},
    ]
    for headers in foreign:
        assert await refusal(running, path, **headers) == (403, "forbidden"), headers
    assert await refusal(running, path, authorization="Bearer wrong") == (401, "unauthorized")
    assert await refusal(running, path, x="y" * 70_000) == (431, "headers_too_large")
    assert running.house.gateway.open_streams == 0


async def test_a_refusal_is_no_fault_of_ours(
    running: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (f"{ADA}/none/terminals/x", f"{await terminal(running)}x"):
        assert (await refusal(running, path))[0] == 404
    await running.page("/users/ada")
    assert [line for line in caplog.records if line.name == "uvicorn.error"] == []


async def test_what_is_not_there_or_asleep_is_told_as_everywhere(running: Site) -> None:
    path = await terminal(running)
    with capture_logs() as lines:
        assert await refusal(running, f"{path}x") == (404, "not_found")
    assert {line["event"] for line in lines} == {"request"}
    one = path.removeprefix(ADA)
    assert await refusal(running, f"/api/users/Zoë/projects{one}") == (404, "project_not_found")
    assert await refusal(running, f"/api/users/nobody/projects{one}") == (404, "user_not_found")
    asleep = await running.project("asleep")
    for where in ("terminals/x", "commands"):
        found = await refusal(running, f"{asleep}/{where}")
        assert found == (409, "environment_not_active")
    running.house.gateway.unreachable.add("memory://user-ada/notes-api")
    assert await refusal(running, path) == (502, "agent_unreachable")


async def test_a_sign_in_opens_it_for_pages_of_our_own_origin_alone() -> None:
    async with site(signed_in=False) as running:
        own = f"http://127.0.0.1:{running.port}"
        async with aiohttp.ClientSession(own, headers=BEARER) as operator:
            path = await terminal(replace(running, http=operator))
        assert await refusal(running, path, origin=own) == (401, "unauthorized")
        async with running.http.post("/sign-in", data={"token": TOKEN}) as answer:
            assert answer.status == 200
        async with running.http.ws_connect(path, headers={"origin": own}) as socket:
            await socket.receive_str()
        assert (await refusal(running, path, origin="http://127.0.0.1:1"))[0] == 403


async def test_open_sockets_are_bounded_with_the_other_streams() -> None:
    async with site(settings(streams_per_project=1)) as running:
        path = await terminal(running)
        async with running.http.ws_connect(path) as socket:
            await socket.receive_str()
            assert await refusal(running, path) == (429, "limit_exceeded")
        async with asyncio.timeout(10):
            while running.house.gateway.open_streams:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        async with running.http.ws_connect(path) as socket:
            await socket.receive_str()


async def test_switched_off_it_is_one_plain_refusal() -> None:
    house = House()
    agents = Agents(house.use_cases.projects, house.cluster, house.gateway, terminal=False)
    app = create_app(replace(house.use_cases, agents=agents), settings())
    async with (
        house.working(),
        served(app) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=BEARER) as http,
    ):
        running = Site(house, http, port)
        path = await running.project(active=True)
        for method, where in (("GET", ""), ("POST", ""), ("DELETE", "/x")):
            body: dict[str, Any] = {"json": SIZE} if method == "POST" else {}
            status, found = await running.ask(method, f"{path}/terminals{where}", **body)
            assert (status, found["code"]) == (403, "terminal_off")
        for where in ("terminals/x", "commands"):
            assert await refusal(running, f"{path}/{where}") == (403, "terminal_off")


async def test_a_web_that_ends_closes_terminals_and_lets_commands_come_to_their_end() -> None:
    house = House()
    async with house.working(), AsyncExitStack() as serving:
        port = await serving.enter_async_context(served(create_app(house.use_cases, settings())))
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=BEARER) as http:
            path = await terminal(Site(house, http, port))
            command = f"{path.partition('/terminals')[0]}/commands"
            async with http.ws_connect(path) as shell, http.ws_connect(command) as run:
                for socket in (shell, run):
                    await socket.receive_str()
                ending = asyncio.create_task(serving.aclose())
                assert (await shell.receive()).data == 1012
                await run.send_bytes(b"exit")
                assert await run.receive_bytes() == b"exit"
                assert json.loads(await run.receive_str()) == {"exit": 0}
                await run.receive()
                await ending


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (said("302 Found", location="http://127.0.0.1:9/"), 502, "agent_failed"),
        (said("200 OK", b"{}"), 502, "agent_failed"),
        (said("500 No", b"{}"), 502, "agent_failed"),
        (said("429 Many", b"{}"), 429, "limit_exceeded"),
        (said("101 Switching Protocols"), 502, "agent_failed"),
    ],
)
async def test_an_agent_that_opens_none_is_told_so_and_never_followed(
    answer: Any, status: int, code: str
) -> None:
    async with site_of(answer) as (running, agent, path):
        assert await refusal(running, f"{path}/commands") == (status, code)
        assert len(agent.asked) == 1
        assert agent.asked[0].headers["authorization"] == f"Bearer {agent.at.token}"
        assert "cookie" not in agent.asked[0].headers


async def test_a_message_is_bounded_on_its_way_in(running: Site) -> None:
    path = await terminal(running)
    async with running.http.ws_connect(path) as socket:
        await socket.receive_str()
        await socket.send_bytes(b"x" * (64 * 1024 + 1))
        while not socket.closed:
            await socket.receive()
        assert socket.close_code == 1009
