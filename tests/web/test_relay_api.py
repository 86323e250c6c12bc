"""The agent's API through the platform: who may, what passes, and what a hostile agent gets."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import aiohttp
import psutil
import pytest
from tests.agent.raw_agent import Answer, Asked, RawAgent, raw_agent, said
from tests.fakes.cluster import MemoryCluster
from tests.harness import BEARER
from tests.services.house import House
from tests.web.server import ADA, Site, served, settings, site

from greylag.agent.http import HttpAgents
from greylag.common import agent_api
from greylag.config import Settings
from greylag.domain.project import Environment
from greylag.ports import AgentAddress
from greylag.services.agents import Agents
from greylag.web.app import create_app
from greylag.web.request_log import SECURITY_HEADERS


class Elsewhere(MemoryCluster):
    """A cluster whose agents are all at one address."""

    def __init__(self, at: AgentAddress) -> None:
        super().__init__(auto=True)
        self._at = at

    async def reach(self, environment: Environment) -> AgentAddress:
        del environment
        return self._at


HEAD = f"host: 127.0.0.1\r\nauthorization: {BEARER['authorization']}"
"""What a request by hand needs to be let in."""


@asynccontextmanager
async def site_of(
    answer: Answer, chosen: Settings | None = None
) -> AsyncIterator[tuple[Site, RawAgent, str]]:
    """Run the web before an agent that answers so; give it, the agent, and an active project."""
    house = House()
    gateway = HttpAgents()
    async with raw_agent(answer) as agent, house.working():
        agents = Agents(house.use_cases.projects, Elsewhere(agent.at), gateway)
        app = create_app(replace(house.use_cases, agents=agents), chosen or settings())
        async with (
            served(app) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=BEARER) as http,
        ):
            running = Site(house, http, port)
            yield running, agent, await running.project(active=True)
        await gateway.close()


async def problem(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    assert answer.content_type == "application/problem+json"
    found: dict[str, Any] = await answer.json(content_type=None)
    assert found["status"] == answer.status
    return found


def path_of(operation: agent_api.Operation[Any], **parts: str) -> str:
    names = {one.name: parts.get(one.name, "s1") for one in operation.parameters}
    return operation.path.format_map(names)


@pytest.mark.parametrize("operation", agent_api.OPERATIONS, ids=lambda one: one.name)
async def test_who_may_not_and_who_sleeps_is_told_before_the_agent_is_asked(
    running: Site,
    operation: agent_api.Operation[Any],
) -> None:
    path = await running.project()
    tried = (
        (f"{path}{path_of(operation)}", 409, "environment_not_active"),
        (f"{ADA}/none{path_of(operation)}", 404, "project_not_found"),
        (f"/api/users/nobody/projects/notes{path_of(operation)}", 404, "user_not_found"),
        (f"/api/users/Zoë/projects/notes{path_of(operation)}", 404, "project_not_found"),
    )
    for where, status, code in tried:
        async with running.http.request(operation.method, where) as answer:
            assert (answer.status, (await problem(answer))["code"]) == (status, code)
    assert running.house.gateway._environments == {}


async def test_who_has_no_token_is_refused() -> None:
    async with (
        site(signed_in=False) as running,
        running.http.get(f"{ADA}/notes/sessions") as answer,
    ):
        assert (answer.status, (await problem(answer))["code"]) == (401, "unauthorized")


async def test_an_agent_that_is_gone_is_told_so(running: Site) -> None:
    path = await running.project(active=True)
    running.house.gateway.unreachable.add("memory://user-ada/notes-api")
    async with running.http.get(f"{path}/sessions") as answer:
        assert (answer.status, (await problem(answer))["code"]) == (502, "agent_unreachable")


async def test_sessions_and_turns_as_they_have_always_been(running: Site) -> None:
    path = await running.project(active=True)
    async with running.http.post(f"{path}/sessions") as answer:
        assert answer.status == 201
        session = await answer.json()
    assert {"session_id", "created_at", "updated_at", "message_count"} <= set(session)
    one = f"{path}/sessions/{session['session_id']}"
    body = {"message": "hello", "session_id": session["session_id"]}
    async with running.http.post(f"{path}/messages", json=body) as answer:
        await answer.read()
    async with running.http.get(f"{path}/sessions") as answer:
        (listed,) = (await answer.json())["sessions"]
    async with running.http.get(one) as answer:
        assert await answer.json() == listed
    async with running.http.get(f"{one}/messages") as answer:
        (message, reply) = (await answer.json())["messages"]
    assert (message["role"], message["content"], message["message_index"]) == (
        "User",
        "hello",
        0,
    )
    assert "timestamp" in message
    async with running.http.get(f"{one}/turns?limit=1") as answer:
        (turn,) = (await answer.json())["turns"]
    async with running.http.get(f"{path}/turns/{turn['turn_id']}") as answer:
        shown = await answer.json()
    async with running.http.post(f"{path}/turns/{turn['turn_id']}/cancel") as answer:
        assert await answer.json() == shown
    assert {"session_id", "message_id", "status", "message", "started_at", "ended_at"} <= set(shown)
    assert (shown["message"], shown["answer"]) == ("hello", reply["content"])
    async with running.http.get(f"{one}/export") as answer:
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert "hello" in await answer.text()
    async with running.http.delete(one) as answer:
        assert (answer.status, await answer.read()) == (204, b"")
        assert "content-type" not in answer.headers
    async with running.http.delete(one) as answer:
        assert (answer.status, (await problem(answer))["code"]) == (404, "session_not_found")
    async with running.http.get(f"{path}/turns/{turn['turn_id']}") as answer:
        assert (answer.status, (await problem(answer))["code"]) == (404, "turn_not_found")


@pytest.mark.parametrize(
    ("segment", "status", "code"),
    [
        ("%2e%2e", 422, "invalid_request"),
        ("%2E%2e", 422, "invalid_request"),
        (".%2e", 422, "invalid_request"),
        ("%252e%252e", 422, "invalid_request"),
        ("a%5cb", 422, "invalid_request"),
        ("a%00b", 422, "invalid_request"),
        ("a%0d%0ab", 422, "invalid_request"),
        ("x" * 301, 422, "invalid_request"),
        ("..%2fagent%2fstatus", 404, "not_found"),
        ("%2f", 404, "not_found"),
    ],
)
async def test_no_segment_leaves_its_place(segment: str, status: int, code: str) -> None:
    async with site_of(said("200 OK", b"{}")) as (running, agent, path):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        for where in (f"{path}/sessions/{segment}", f"{path}/turns/{segment}"):
            writer.write(f"GET {where} HTTP/1.1\r\n{HEAD}\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert head.startswith(f"http/1.1 {status} ")
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            assert json.loads(await reader.readexactly(length))["code"] == code
        writer.close()
    assert agent.asked == []


async def test_a_hostile_answer_brings_no_header_and_no_page_of_ours() -> None:
    hostile = {
        "set-cookie": "greylag=stolen",
        "location": "http://evil.example/",
        "content-security-policy": "default-src *",
        "x-content-type-options": "sniff",
        "x-request-id": "forged",
        "cache-control": "public, max-age=99999",
        "clear-site-data": '"*"',
        "content-type": "application/json; charset=utf-7",
    }
    async with site_of(said("200 OK", b"<script>", **hostile)) as (running, agent, path):
        sent = {"cookie": "a=b", "x-request-id": "mine", "x-forwarded-for": "1.2.3.4"}
        async with running.http.get(f"{path}/sessions", headers=sent) as answer:
            assert (answer.status, await answer.read()) == (200, b"<script>")
            ours = {name.decode(): value.decode() for name, value in SECURITY_HEADERS}
            ours |= {"x-request-id": "mine", "cache-control": "no-store"}
            ours |= {"content-type": "application/json", "content-length": "8"}
            got = {name.lower(): value for name, value in answer.headers.items()}
            assert len(got) == len(answer.headers)
            assert {name: got[name] for name in got if name not in {"date", "server"}} == ours
        (asked,) = agent.asked
        assert not {"cookie", "x-forwarded-for"} & set(asked.headers)
        assert asked.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    "answer",
    [
        said("200 OK", b"<html>", content_type="text/html"),
        said("200 OK", b" " * 10, content_length=str(10 * agent_api.MEBIBYTE)),
        said("302 Found", location="http://127.0.0.1:9/"),
        said("500 Oops", b"<html>", content_type="text/html"),
    ],
)
async def test_what_an_agent_should_not_answer_is_a_problem_document(answer: Answer) -> None:
    async with (
        site_of(answer) as (running, _, path),
        running.http.get(f"{path}/sessions") as got,
    ):
        assert (got.status, (await problem(got))["code"]) == (502, "agent_failed")


async def test_a_conditional_request_is_the_agent_s_to_answer() -> None:
    unchanged = said("304 Not Modified", etag='"1"')
    async with site_of(unchanged) as (running, agent, path):
        headers = {"if-none-match": '"1"'}
        async with running.http.get(f"{path}/sessions", headers=headers) as answer:
            assert (answer.status, answer.headers["etag"]) == (304, '"1"')
    assert agent.asked[0].headers["if-none-match"] == '"1"'


async def test_a_long_answer_waits_for_a_slow_reader_and_ends_when_it_leaves() -> None:
    held, ended = asyncio.Event(), asyncio.Event()

    async def flood(
        _asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        try:
            for _ in range(3200):  # 200 MiB, within the limit of a history
                writer.write(b" " * 65_536)
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await writer.drain()
                        continue
                held.set()
                await writer.drain()
        finally:
            ended.set()

    async with site_of(flood) as (running, _, path):
        before = psutil.Process().memory_info().rss
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
        where = f"{path}/sessions/s/messages"
        writer.write(f"GET {where} HTTP/1.1\r\n{HEAD}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(30):
            await held.wait()
            assert not ended.is_set()
            assert psutil.Process().memory_info().rss - before < 40_000_000
            writer.transport.abort()
            await ended.wait()


async def receive(
    _asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Take a chunked body to its end, and answer with its length."""
    length = 0
    while (line := await reader.readline()) and (size := int(line, 16)):
        length += size
        await reader.readexactly(size + 2)
    await reader.readline()
    body = b'{"length":%d}' % length
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % len(body) + body)


async def parts(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 1024


@pytest.mark.parametrize("body_limit", [1024, 1_048_576])
async def test_a_body_passes_as_it_comes_until_the_operation_s_limit_or_the_platform_s(
    body_limit: int,
) -> None:
    most = min(body_limit, agent_api.CHANGE_SETTING.body_limit) // 1024
    async with site_of(receive, settings(body_limit=body_limit)) as (running, agent, path):
        where = f"{path}/settings/GOOSE_MODE"
        async with running.http.put(where, data=parts(most)) as answer:
            assert (answer.status, await answer.json()) == (200, {"length": most * 1024})
        async with running.http.put(where, data=parts(most + 1)) as answer:
            assert (answer.status, (await problem(answer))["code"]) == (413, "too_large")
        async with running.http.put(where, data=b"x" * (most * 1024 + 1)) as answer:
            assert (answer.status, (await problem(answer))["code"]) == (413, "too_large")
        assert len(agent.asked) <= 2


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure_of_the_agent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = asyncio.Event()

    async def watch(
        asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await receive(asked, reader, writer)
        finally:
            gone.set()

    async with site_of(watch) as (running, agent, path):
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        head = f"PUT {path}/settings/GOOSE_MODE HTTP/1.1\r\n{HEAD}\r\n"
        writer.write(f"{head}content-length: 100\r\n\r\n{{".encode())
        async with asyncio.timeout(10):
            while not agent.asked:  # noqa: ASYNC110 - the agent has no event for it
                await asyncio.sleep(0.01)
            writer.transport.abort()
            await gone.wait()
    logged = capsys.readouterr().out
    assert "fault" not in logged
    assert "status=422" in logged  # not 502: it is no failure of the agent's


async def test_an_answer_cut_short_is_never_taken_for_the_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def cut(
        _asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        writer.write(head + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n")
        await writer.drain()

    async with site_of(cut) as (running, _, path):
        with pytest.raises(aiohttp.ClientError):
            async with running.http.get(f"{path}/sessions") as answer:
                await answer.read()
    logged = capsys.readouterr().out
    assert "relay_cut" in logged
    assert "fault" not in logged


async def test_every_operation_is_told_of_in_openapi() -> None:
    async with site() as running, running.http.get("/openapi.json") as answer:
        document = await answer.json()
    for operation in agent_api.OPERATIONS:
        told = document["paths"][f"/api/users/{{user}}/projects/{{project}}{operation.path}"]
        one = told[operation.method.lower()]
        assert (one["operationId"], one["summary"]) == (operation.name, operation.summary)
        names = {(each["in"], each["name"]) for each in one["parameters"]}
        assert {("path", each.name) for each in operation.parameters} < names
        assert {("query", each.name) for each in operation.query} <= names
        success = one["responses"][str(operation.status)]
        media = operation.media.partition(";")[0]
        assert ("content" in success) is (operation.status != 204)
        assert operation.status == 204 or success["content"][media]["schema"]
        assert ("requestBody" in one) is (operation.body is not None)
        assert "Problem" in json.dumps(one["responses"]["502"])


async def test_nothing_of_a_request_is_dropped_without_a_word(running: Site) -> None:
    """Each operation refuses by name what it would not look at."""
    async with running.http.get("/openapi.json") as answer:
        document = await answer.json()
    asked = [
        (method.upper(), re.sub(r"{\w+}", "ada", path), operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if path.startswith("/api/")
    ]
    assert len(asked) > 60
    for method, path, operation in asked:
        told = await _refused(running, method, f"{path}?surprise=1")
        assert told.startswith("surprise (query): "), (method, path, told)
        for one in operation.get("parameters", ()):
            if one["in"] == "query":
                twice = urlencode([(one["name"], "a"), (one["name"], "b")])
                told = await _refused(running, method, f"{path}?{twice}")
                assert told.startswith(f"{one['name']} (query): "), (method, path, told)
        if "requestBody" not in operation and method != "GET":
            told = await _refused(running, method, path, json={"surprise": 1})
            assert told.startswith("surprise (body): "), (method, path, told)
            told = await _refused(running, method, path, data=b"no JSON")
            assert "takes no body" in told, (method, path, told)
    path = await running.project()
    for nothing in (b"", b"{}"):
        async with running.http.post(f"{path}/activate", data=nothing) as answer:
            assert answer.status == 200


async def _refused(running: Site, method: str, path: str, **sent: Any) -> str:
    async with running.http.request(method, path, **sent) as answer:
        problem = await answer.json(content_type=None)
        assert (answer.status, problem["code"]) == (422, "invalid_request"), (method, path, problem)
        return str(problem["detail"])


NAMED = {
    "image/png": ["a/picture.PNG"],
    "image/webp": ["photo.webp"],
    "video/mp4": ["film.mp4"],
    "audio/mpeg": ["sound.mp3"],
    "text/plain": ["notes.txt"],
    "text/csv": ["table.csv"],
    "text/markdown": ["README.md"],
    "application/json": ["data.json"],
    agent_api.BYTES: [
        *(f"page.{ending}" for ending in ("html", "HTM", "xhtml", "svg", "xml", "pdf", "swf")),
        *("code.js", "code.mjs", "style.css", "picture.svg.gz", "a.txt.gz", "Makefile"),
        *("data:image/png,.html", "http://x/a.svg", "a.png/", "a.png?.html", "a.html#.png.x"),
    ],
}


async def test_a_file_has_the_type_of_its_name_where_no_browser_runs_or_shows_it_as_a_page() -> (
    None
):
    content = b"<script>alert(1)</script>" * 100
    answer = said("200 OK", content, content_type=agent_api.BYTES, etag='"1"')
    async with site_of(answer) as (running, _, path):
        for media, name in ((media, name) for media, names in NAMED.items() for name in names):
            query = urlencode({"path": name})
            async with running.http.get(f"{path}/files/content?{query}") as file:
                assert await file.read() == content
            assert file.headers["content-type"] == media, name
            assert file.headers["content-disposition"] == "attachment"
            assert file.headers["x-content-type-options"] == "nosniff"
            assert "sandbox" in file.headers["content-security-policy"].split("; ")
            # A range and an ETag are of the bytes themselves: nothing of it comes compressed.
            assert "content-encoding" not in file.headers
            assert file.headers["content-length"] == str(len(content))


async def test_a_file_that_is_known_already_has_no_type() -> None:
    answer = said("304 Not Modified", b"", etag='"1"')
    async with site_of(answer) as (running, _, path):
        asked = {"if-none-match": '"1"'}
        async with running.http.get(f"{path}/files/content?path=a.png", headers=asked) as known:
            assert (known.status, known.headers["etag"]) == (304, '"1"')
        assert "content-type" not in known.headers
