"""What passes between a client and an agent that may be hostile, and what does not."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from types import NoneType
from typing import Any

import pytest
from tests.agent.raw_agent import Answer, Asked, RawAgent, raw_agent, said
from websockets.utils import accept_key

from greylag.agent import answers, http
from greylag.agent.answers import refusal
from greylag.agent.http import HttpAgents
from greylag.common import agent_api, logs
from greylag.common.agent_api import ForwardedRequest, Operation
from greylag.common.git import CloneState, GitSetup
from greylag.domain.errors import (
    AgentFailedError,
    AgentUnreachableError,
    ConflictError,
    GreylagError,
    InvalidRequestError,
    NotActiveError,
    RefusalError,
    SessionNotFoundError,
    TooLargeError,
)
from greylag.ports import AgentAddress, AgentRequest

LIST = AgentRequest(agent_api.LIST_SESSIONS)
UPLOAD: Operation[None] = Operation(
    name="upload",
    request="PUT /upload",
    summary="",
    text="",
    tag="",
    answer=NoneType,
    status=204,
    body=dict,
    body_limit=100_000,
)


@asynccontextmanager
async def gateway() -> AsyncIterator[HttpAgents]:
    opened = HttpAgents()
    try:
        yield opened
    finally:
        await opened.close()


async def ask(agent: RawAgent, request: AgentRequest = LIST) -> tuple[int, dict[str, str], bytes]:
    async with gateway() as agents, agents.relay(agent.at, request) as answer:
        body = b"".join([chunk async for chunk in answer.body])
        return answer.status, dict(answer.headers), body


async def count(body: AsyncIterator[bytes]) -> int:
    return sum([len(chunk) async for chunk in body])


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_of_a_request_only_headers_about_content_pass() -> None:
    headers = {
        "authorization": "Bearer the client's own",
        "cookie": "session=secret",
        "host": "greylag.example",
        "x-forwarded-for": "10.0.0.1",
        "x-greylag-agent-token": "forged",
        "transfer-encoding": "chunked",
        "accept": "application/json",
        "if-none-match": '"1"',
        "range": "bytes=0-1",
        "last-event-id": "t-1",
    }
    logs.request_id.set("request-1")
    async with raw_agent(said("200 OK", b"{}")) as agent:
        await ask(agent, replace(LIST, headers=headers, query={"limit": "1", "more": "x"}))
    (asked,) = agent.asked
    assert asked.line == "GET /api/v1/sessions HTTP/1.1"
    expected = {name: headers[name] for name in ("accept", "if-none-match", "range")}
    expected |= {"last-event-id": "t-1", "x-request-id": "request-1"}
    expected |= {"authorization": "Bearer the agent's token", "accept-encoding": "identity"}
    got = {name: value for name, value in asked.headers.items() if name != "user-agent"}
    assert got.pop("host").startswith("localhost:")
    assert got == expected


async def test_only_the_operation_s_own_query_passes() -> None:
    query = {"limit": "7&x=y", "token": "forged"}
    request = AgentRequest(agent_api.LIST_TURNS, {"session": "a b/é".replace("/", "")}, query)
    async with raw_agent(said("200 OK", b"{}")) as agent:
        await ask(agent, request)
    line = "GET /api/v1/sessions/a%20b%C3%A9/turns?limit=7%26x%3Dy HTTP/1.1"
    assert [one.line for one in agent.asked] == [line]


async def test_of_an_answer_only_headers_about_content_pass_and_the_type_is_ours() -> None:
    headers = {
        "set-cookie": "session=stolen",
        "location": "http://evil.example",
        "content-security-policy": "default-src *",
        "access-control-allow-origin": "*",
        "content-disposition": "inline",
        "content-type": "application/json; charset=utf-7",
        "etag": '"1"',
        "last-modified": "böse",
    }
    async with raw_agent(said("200 OK", b"{}", **headers)) as agent:
        _, got, body = await ask(agent)
    assert got == {"content-length": "2", "etag": '"1"', "content-type": "application/json"}
    assert body == b"{}"


async def test_what_a_browser_might_show_is_to_be_saved() -> None:
    png = replace(agent_api.EXPORT_SESSION, media="image/svg+xml")
    request = AgentRequest(png, {"session": "s"})
    async with raw_agent(said("200 OK", b"<svg/>", content_type="image/svg+xml")) as agent:
        _, got, _ = await ask(agent, request)
    assert got["content-disposition"] == "attachment"


@pytest.mark.parametrize("status", ["200 OK", "206 Partial Content"])
async def test_a_page_in_place_of_json_is_the_agent_s_failure(status: str) -> None:
    page = said(status, b"<script>alert(1)</script>", content_type="text/html")
    async with raw_agent(page) as agent:
        with pytest.raises(AgentFailedError, match="not application/json"):
            await ask(agent)


@pytest.mark.parametrize("status", ["201 Created", "202 Accepted", "299 Odd"])
async def test_a_success_that_the_operation_does_not_have_is_the_agent_s_failure(
    status: str,
) -> None:
    async with raw_agent(said(status, b"{}")) as agent:
        with pytest.raises(AgentFailedError, match=status[:3]):
            await ask(agent)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed_by_nobody(status: int) -> None:
    async with raw_agent(said("200 OK", b"{}")) as other:
        away = said(f"{status} Away", location=f"{other.at.url}/api/v1/sessions")
        async with raw_agent(away) as agent, gateway() as agents:
            for call in (
                ask(agent),
                agents.status(agent.at),
                agents.start_turn(agent.at, None, "hello", "m1"),
                agents.cancel_turn(agent.at, "t"),
                agents.confirm(agent.at, "t", "c", "allow_once"),
            ):
                with pytest.raises(AgentFailedError, match="redirect"):
                    await call
            with pytest.raises(AgentFailedError, match="redirect"):
                async with agents.stream_turn(agent.at, "t", None):
                    pass
    assert other.asked == []


async def test_no_cookie_is_kept_for_any_agent() -> None:
    async with raw_agent(said("200 OK", b"{}", set_cookie="a=b")) as agent, gateway() as agents:
        for _ in range(2):
            async with agents.relay(agent.at, LIST) as answer:
                assert [chunk async for chunk in answer.body] == [b"{}"]
    assert ["cookie" in asked.headers for asked in agent.asked] == [False, False]


async def test_an_answer_that_has_not_changed_passes_without_a_body() -> None:
    headers = {"content-type": "text/html", "content-length": "9", "etag": '"1"'}
    async with raw_agent(said("304 Not Modified", b"", **headers)) as agent:
        assert await ask(agent) == (304, {"etag": '"1"'}, b"")


async def test_an_answer_past_its_limit_is_refused_before_or_cut() -> None:
    small = AgentRequest(replace(agent_api.LIST_SESSIONS, answer_limit=1000))
    async with raw_agent(said("200 OK", b" " * 1000)) as agent:
        assert len((await ask(agent, small))[2]) == 1000
    async with raw_agent(said("200 OK", b" " * 1001)) as agent, gateway() as agents:
        with pytest.raises(AgentFailedError, match="larger than 1000 bytes"):
            async with agents.relay(agent.at, small):
                raise AssertionError("it was opened")

    async def endless(
        _asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
        while True:
            writer.write(b" " * 400)
            await writer.drain()

    async with (
        raw_agent(endless) as agent,
        gateway() as agents,
        agents.relay(agent.at, small) as answer,
    ):
        with pytest.raises(AgentFailedError, match="larger than 1000 bytes"):
            await count(answer.body)


async def test_a_typed_answer_and_a_refusal_have_an_end_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_TYPED_LIMIT", 1000)
    monkeypatch.setattr(answers, "_REFUSAL_LIMIT", 1000)
    async with raw_agent(said("200 OK", b" " * 1001)) as agent, gateway() as agents:
        with pytest.raises(AgentFailedError, match="larger than 1000 bytes"):
            await agents.status(agent.at)
    long = json.dumps({"code": "too_large", "message": "x" * 1001}).encode()
    async with raw_agent(said("413 Too Large", long)) as agent:
        with pytest.raises(TooLargeError, match="The agent answered 413"):
            await ask(agent)


async def test_an_answer_that_breaks_off_is_told() -> None:
    seen = asyncio.Event()
    begun = said("200 OK", b"{", content_length="100")

    async def cut(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await begun(asked, reader, writer)
        await seen.wait()

    async with (
        raw_agent(cut) as agent,
        gateway() as agents,
        agents.relay(agent.at, LIST) as answer,
    ):
        assert await anext(answer.body) == b"{"
        seen.set()
        with pytest.raises(AgentUnreachableError, match="broke"):
            await anext(answer.body)


async def test_an_agent_that_falls_silent_is_given_up() -> None:
    quick = replace(agent_api.LIST_SESSIONS, silence=0.05)
    over = asyncio.Event()

    async def silent(
        _asked: Asked, _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter
    ) -> None:
        await over.wait()

    async with raw_agent(silent) as agent:
        with pytest.raises(AgentUnreachableError):
            await ask(agent, AgentRequest(quick))
        over.set()


async def receive(
    _asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Take a chunked body to its end, and answer 204."""
    while (line := await reader.readline()) and (size := int(line, 16)):
        await reader.readexactly(size + 2)
    await reader.readline()
    writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")


async def test_a_body_passes_up_to_its_limit_and_is_refused_past_it() -> None:
    fits = AgentRequest(UPLOAD, body=chunks(b"x" * 60_000, b"x" * 40_000))
    async with raw_agent(receive) as agent:
        assert await ask(agent, fits) == (204, {}, b"")
        declared = AgentRequest(UPLOAD, headers={"content-length": "100001"}, body=chunks())
        with pytest.raises(TooLargeError, match="100000 bytes"):
            await ask(agent, declared)
        assert len(agent.asked) == 1
        past = AgentRequest(UPLOAD, body=chunks(b"x" * 60_000, b"x" * 40_001))
        with pytest.raises(TooLargeError, match="100000 bytes"):
            await ask(agent, past)


async def test_a_body_that_breaks_off_is_told_as_what_it_is() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise InvalidRequestError("The request's body broke off.")

    async with raw_agent(receive) as agent:
        with pytest.raises(InvalidRequestError, match="broke off"):
            await ask(agent, AgentRequest(UPLOAD, body=broken()))


async def test_a_body_of_an_operation_without_one_is_not_sent() -> None:
    async with raw_agent(said("200 OK", b"{}")) as agent:
        await ask(agent, replace(LIST, body=chunks(b"x")))
    assert "transfer-encoding" not in agent.asked[0].headers


async def test_leaving_an_answer_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def endless(
        _asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{")
        with suppress(ConnectionError):
            await reader.read()
        gone.set()

    async with raw_agent(endless) as agent, gateway() as agents:
        async with agents.relay(agent.at, LIST) as answer:
            assert await anext(answer.body) == b"{"
        async with asyncio.timeout(10):
            await gone.wait()


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (404, {"code": "session_not_found", "message": "No."}, "session_not_found"),
        (404, {"session_id": "not_found"}, "turn_not_found"),
        (404, {"code": "setting_not_found", "message": "No."}, "not_found"),
        (404, {"code": 404, "kind": "Status"}, "turn_not_found"),
        (404, {"code": "not_found", "message": "Not Found."}, "agent_failed"),
        (405, {"code": "method_not_allowed"}, "agent_failed"),
        (400, {"code": "setting_invalid", "message": "No."}, "invalid_request"),
        (401, {"code": "unauthorized"}, "agent_failed"),
        (409, {"code": "session_busy"}, "session_busy"),
        (409, {"code": "anything"}, "conflict"),
        (410, {"code": "events_gone"}, "turn_not_found"),
        (412, {}, "precondition_failed"),
        (413, {}, "too_large"),
        (416, {}, "range_not_satisfiable"),
        (429, {}, "limit_exceeded"),
        (500, {"code": "internal"}, "agent_failed"),
        (503, {"code": "agent_unavailable"}, "agent_unreachable"),
    ],
)
def test_a_refusal_is_told_with_our_code(status: int, body: dict[str, Any], code: str) -> None:
    missing = http._no_turn("t")
    assert refusal(status, body, missing).info.code == code


def test_another_version_s_agent_is_told_with_what_to_do() -> None:
    error = refusal(404, {"code": "not_found"}, None)
    assert "another version" in error.info.message
    assert "Deactivate" in error.info.hint


def test_a_token_that_is_not_taken_is_told_as_what_it_is() -> None:
    said = {"error": "Unauthorized", "message": "Send the token as: Authorization: Bearer <token>."}
    error = refusal(401, said, None)
    assert "changed or deleted its Secret" in error.info.message
    assert "Bearer" not in str(error.info)


@pytest.mark.parametrize(
    "code", ["file_exists", "folder_not_empty", "not_a_file", "outside_workspace", "no_space"]
)
def test_what_a_workspace_refuses_is_a_conflict_with_what_to_do_about_files(code: str) -> None:
    info = refusal(409, {"message": "It is so.", "code": code}, None).info
    assert info.code == "conflict"
    assert "project" not in info.hint.lower()


def test_a_disk_that_takes_nothing_is_told_with_what_to_do_about_it() -> None:
    info = refusal(500, {"message": "It is full.", "code": "storage_failed"}, None).info
    assert info.code == "agent_failed"
    assert "delete files" in info.hint
    assert "activate" not in info.hint


def test_a_refusal_s_words_have_an_end_and_none_are_no_fault() -> None:
    assert len(refusal(400, {"message": "x" * 10_000}, None).info.message) == 1000
    for odd in ("", None, 1, ["x"]):
        assert refusal(400, {"message": odd}, None).info.message == "The agent answered 400."


async def test_a_404_without_a_code_names_what_the_path_names() -> None:
    request = AgentRequest(agent_api.SHOW_SESSION, {"session": "s1"})
    async with raw_agent(said("404 Not Found")) as agent:
        with pytest.raises(SessionNotFoundError, match=r"There is no session s1\."):
            await ask(agent, request)
        with pytest.raises(GreylagError) as caught:
            await ask(agent)
    assert caught.value.info.code == "agent_failed"


@pytest.mark.parametrize(
    "changed",
    [
        {"turn_id": "../../elsewhere"},
        {"turn_id": "a%2fb"},
        {"session_id": "."},
        {"session_id": "a\nb"},
        {"turn_id": 7},
        {"status": ["running"]},
    ],
)
async def test_a_turn_whose_ids_could_lead_elsewhere_is_the_agent_s_failure(
    changed: dict[str, Any],
) -> None:
    turn = {"turn_id": "t", "session_id": "s", "message_id": "m", "status": "running"}
    turn |= {"message": "hello", "started_at": "2026-11-24T12:00:00.000Z"}
    for told, fails in ((turn, False), (turn | changed, True)):
        answer = said("200 OK", json.dumps(told).encode())
        async with raw_agent(answer) as agent, gateway() as agents:
            if not fails:
                assert (await agents.cancel_turn(agent.at, "t")).turn_id == "t"
                continue
            with pytest.raises(AgentFailedError, match="form"):
                await agents.cancel_turn(agent.at, "t")


@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
async def test_an_answer_nested_deeper_than_can_be_read_is_the_agent_s_failure(status: str) -> None:
    async with raw_agent(said(status, b"[" * 60_000)) as agent, gateway() as agents:
        with pytest.raises(AgentFailedError):
            await agents.cancel_turn(agent.at, "t")


async def test_what_an_agent_says_of_its_refusal_can_be_passed_on() -> None:
    body = b'{"message": "half \\ud800 of it", "code": "git_failed"}'
    async with raw_agent(said("409 Conflict", body)) as agent, gateway() as agents:
        with pytest.raises(RefusalError, match=r"^half \? of it$"):
            await agents.cancel_turn(agent.at, "t")


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({}, (False, None)),
        ({"active_sessions": 1, "idle_seconds": 3}, (True, 3.0)),
        ({"watched_terminals": 1, "idle_seconds": -1}, (True, None)),
        ({"cloning": True, "idle_seconds": "3"}, (True, None)),
    ],
)
async def test_an_agent_is_busy_while_anybody_is_at_work_there(
    told: dict[str, Any], found: tuple[bool, float | None]
) -> None:
    about = {"agent": {"kind": "goose", "version": None}, "active_sessions": 0, **told}
    about["model"] = {"kind": "provider", "demonstration": False}
    answer = said("200 OK", json.dumps(about).encode())
    async with raw_agent(answer) as agent, gateway() as agents:
        status = await agents.status(agent.at)
    assert (status.busy, status.idle_seconds) == found


async def test_of_why_git_failed_only_known_causes_and_so_many_words_are_taken() -> None:
    told = {"status": "failed", "detail": "x" * 5000, "code": "made-up", "hint": "Click here."}
    answer = said("200 OK", json.dumps(told).encode())
    async with raw_agent(answer) as agent, gateway() as agents:
        state = await agents.set_up_git(agent.at, GitSetup())
    assert state == CloneState("failed", "x" * answers.LONGEST_WORDS)


@asynccontextmanager
async def started_anew(answer: Answer) -> AsyncIterator[tuple[RawAgent, list[str]]]:
    """Yield an agent that takes its new token alone, and is known by its old one; and how its
    address was found anew: each time with ``found`` for a token, or not at all without one.
    """
    found: list[str] = ["new"]

    async def demanding(asked: Asked, *way: Any) -> None:
        known = asked.headers["authorization"] == "Bearer new"
        of_agentd = {"x_greylag_not_forwarded": "unauthorized"}
        refused = said("401 Unauthorized", b'{"code": "unauthorized"}', **of_agentd)
        await (answer if known else refused)(asked, *way)

    async with raw_agent(demanding) as agent:

        async def anew() -> AgentAddress:
            if not found:
                raise NotActiveError("The environment does not run.")
            return replace(agent.at, token=found.pop())

        agent.at = replace(agent.at, token="old", anew=anew)
        yield agent, found


async def test_an_agent_that_refuses_the_token_is_asked_once_more_with_that_of_now() -> None:
    async with started_anew(said("200 OK", b"{}")) as (agent, _):
        assert (await ask(agent))[0] == 200
        assert [one.headers["authorization"] for one in agent.asked] == ["Bearer old", "Bearer new"]


@pytest.mark.parametrize("found", ["old", "another", ""])
async def test_an_agent_that_refuses_the_token_of_now_too_is_asked_no_more(found: str) -> None:
    async with started_anew(said("200 OK", b"{}")) as (agent, tokens):
        tokens[:] = [found] if found else []
        with pytest.raises(AgentFailedError, match="refuses Greylag's token"):
            await ask(agent)
        assert len(agent.asked) == (2 if found == "another" else 1)


async def test_a_body_on_its_way_to_an_agent_that_refuses_the_token_is_to_be_sent_again() -> None:
    async with started_anew(said("204 No Content")) as (agent, tokens):
        with pytest.raises(AgentUnreachableError, match="started anew"):
            await ask(agent, AgentRequest(UPLOAD, body=chunks(b"x")))
        assert (len(agent.asked), tokens) == (1, [])
        tokens[:] = ["old"]
        with pytest.raises(AgentFailedError, match="refuses Greylag's token"):
            await ask(agent, AgentRequest(UPLOAD, body=chunks(b"x")))


async def test_a_socket_to_an_agent_that_refuses_the_token_is_opened_with_that_of_now() -> None:
    async with started_anew(said("409 Conflict")) as (agent, _), gateway() as agents:
        with pytest.raises(ConflictError):
            async with agents.socket(agent.at, agent_api.TERMINAL_SOCKET, {"terminal": "t"}):
                pass
        assert [one.headers["authorization"] for one in agent.asked] == ["Bearer old", "Bearer new"]


@pytest.mark.parametrize("body", [None, b"x"])
async def test_a_preview_is_handed_on_with_the_token_of_now_where_agentd_refuses_the_old_one(
    body: bytes | None,
) -> None:
    sent = None if body is None else chunks(body)
    request = ForwardedRequest("POST", "/", [(b"host", b"p.example")], sent)
    async with started_anew(said("200 OK", b"seen")) as (agent, tokens), gateway() as agents:
        if body is None:
            async with agents.forward(agent.at, 8000, request) as answer:
                assert b"".join([chunk async for chunk in answer.body]) == b"seen"
        else:
            with pytest.raises(AgentUnreachableError, match="started anew"):
                async with agents.forward(agent.at, 8000, request):
                    pass
        assert tokens == [], "it is found anew in any case"
        assert len(agent.asked) == (2 if body is None else 1)


async def _shaken(asked: Asked, *way: Any) -> None:
    accepted = accept_key(asked.headers["sec-websocket-key"])
    told = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-accept": accepted}
    await said("101 Switching Protocols", b"seen", **told)(asked, *way)


async def test_a_preview_s_socket_is_opened_with_the_token_of_now_where_that_was_refused() -> None:
    request = ForwardedRequest("GET", "/", [(b"host", b"p.example")], None)
    async with started_anew(_shaken) as (agent, tokens), gateway() as agents:
        async with agents.forward_socket(agent.at, 8000, request, ()) as opened:
            assert await opened.reader.read() == b"seen"
        given = [one.headers["authorization"] for one in agent.asked]
        assert given == ["Bearer old", "Bearer new"]
        with pytest.raises(AgentFailedError, match="refuses Greylag's token"):
            async with agents.forward_socket(agent.at, 8000, request, ()):
                pass
        assert (tokens, len(agent.asked)) == ([], 3)


@pytest.mark.parametrize("status", ["401 Unauthorized", "502 Bad Gateway", "200 OK"])
async def test_a_preview_s_socket_that_the_application_refuses_is_asked_for_once(
    status: str,
) -> None:
    request = ForwardedRequest("GET", "/", [(b"host", b"p.example")], None)
    async with raw_agent(said(status, b"who?")) as agent, gateway() as agents:
        at = replace(agent.at, anew=unasked)
        with pytest.raises(RefusalError, match="does not answer"):
            async with agents.forward_socket(at, 8000, request, ()):
                pass
        assert len(agent.asked) == 1


async def test_what_the_application_of_a_preview_refuses_is_its_own_answer() -> None:
    request = ForwardedRequest("GET", "/", [(b"host", b"p.example")], None)
    async with raw_agent(said("401 Unauthorized", b"who?")) as agent, gateway() as agents:
        at = replace(agent.at, anew=unasked)
        async with agents.forward(at, 8000, request) as answer:
            assert (answer.status, len(agent.asked)) == (401, 1)


async def unasked() -> AgentAddress:
    raise AssertionError("The token was taken.")
