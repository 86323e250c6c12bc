"""What every gateway promises, in memory and over HTTP with agentd and the real goose behind it."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from tests.contract.agent_adapters import ADAPTERS, Agent, open_agent

from greylag.common import agent_api, sse
from greylag.common.agent_api import Operation
from greylag.common.git import GitCredential, GitSetup
from greylag.domain.errors import (
    AgentUnreachableError,
    ConfirmationNotFoundError,
    ConfirmationSettledError,
    ConflictError,
    InvalidRequestError,
    MissingError,
    RefusalError,
    SessionNotFoundError,
    TurnOverError,
)
from greylag.ports import AgentRequest


@pytest.fixture(params=ADAPTERS)
async def agent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Agent]:
    async with open_agent(request.param, tmp_path) as opened:
        yield opened


OF_A_SESSION = (
    agent_api.SHOW_SESSION,
    agent_api.LIST_MESSAGES,
    agent_api.LIST_TURNS,
    agent_api.EXPORT_SESSION,
    agent_api.DELETE_SESSION,
)


async def test_sessions_are_made_listed_newest_first_and_deleted(agent: Agent) -> None:
    first = await _ask(agent, agent_api.CREATE_SESSION)
    second = await _ask(agent, agent_api.CREATE_SESSION)
    listed = await _ask(agent, agent_api.LIST_SESSIONS)
    ids = [second["session_id"], first["session_id"]]
    assert [one["session_id"] for one in listed["sessions"]] == ids
    assert await _ask(agent, agent_api.SHOW_SESSION, session=ids[1]) == first
    assert (first["message_count"], first["title"]) == (0, "")
    for title in ("Search \u2603", ""):
        named = await _ask(agent, agent_api.RENAME_SESSION, body={"title": title}, session=ids[0])
        assert named == second | {"title": title}
        assert (await _ask(agent, agent_api.LIST_SESSIONS))["sessions"][0] == named
    with pytest.raises(InvalidRequestError):
        await _ask(agent, agent_api.RENAME_SESSION, body={"title": "x" * 201}, session=ids[0])
    assert await _ask(agent, agent_api.DELETE_SESSION, session=ids[1]) is None
    for operation in OF_A_SESSION:
        with pytest.raises(SessionNotFoundError):
            await _ask(agent, operation, session=ids[1])
    with pytest.raises(SessionNotFoundError):
        await _ask(agent, agent_api.RENAME_SESSION, body={"title": "x"}, session=ids[1])


async def test_an_id_that_no_path_can_hold_is_refused(agent: Agent) -> None:
    for wrong in ("..", ".", "", "a/b", "%2e%2e", "a\\b", "a\nb", "x" * 301, "\ud800"):
        for operation in OF_A_SESSION:
            with pytest.raises(InvalidRequestError, match="session"):
                await _ask(agent, operation, session=wrong)
        with pytest.raises(InvalidRequestError, match="turn"):
            await agent.gateway.cancel_turn(agent.at, wrong)
        with pytest.raises(InvalidRequestError, match="turn"):
            async with agent.gateway.stream_turn(agent.at, wrong, None):
                pass


async def test_a_list_of_turns_has_as_many_as_are_asked_for(agent: Agent) -> None:
    session = (await _ask(agent, agent_api.CREATE_SESSION))["session_id"]
    for number in range(3):
        turn = await agent.gateway.start_turn(agent.at, session, "hello", f"m{number}")
        await _frames(agent, turn.turn_id)
    listed = await _ask(agent, agent_api.LIST_TURNS, query={"limit": "2"}, session=session)
    assert [one["message_id"] for one in listed["turns"]] == ["m2", "m1"]
    for wrong in ("0", "201", "x", "-1"):
        with pytest.raises(InvalidRequestError, match="limit"):
            await _ask(agent, agent_api.LIST_TURNS, query={"limit": wrong}, session=session)


async def test_a_turn_streams_from_turn_to_complete_with_ids_and_can_be_replayed(
    agent: Agent,
) -> None:
    turn = await agent.gateway.start_turn(agent.at, None, "hello", "m1")
    frames = await _frames(agent, turn.turn_id)
    events = [json.loads(frame.data) for frame in frames]
    assert [frame.id for frame in frames] == [f"{turn.turn_id}-{n}" for n in range(len(frames))]
    assert (events[0]["type"], events[-1]["type"]) == ("turn", "complete")
    assert events[0]["content"]["turn_id"] == turn.turn_id
    assert any(event["type"] == "message" for event in events)
    for after in (0, len(frames) // 2, len(frames) - 2):
        assert await _frames(agent, turn.turn_id, frames[after].id) == frames[after + 1 :]
    with pytest.raises(TurnOverError):
        await _frames(agent, turn.turn_id, frames[-1].id)
    ended = await _ask(agent, agent_api.SHOW_TURN, turn=turn.turn_id)
    assert ended["status"] == "completed"
    assert ended["ended_at"] is not None


async def test_history_has_message_and_answer_in_order_and_whose_it_was(agent: Agent) -> None:
    ann = "Ann \u03a9\r\nx: y " + "a" * agent_api.MOST_AUTHOR
    turn = await agent.gateway.start_turn(agent.at, None, "hello", "m1", ann)
    told = ann[: agent_api.MOST_AUTHOR]
    assert turn.author == told
    events = [json.loads(frame.data) for frame in await _frames(agent, turn.turn_id)]
    answer = "".join(e["content"]["content"] for e in events if e["type"] == "message")
    history = await _ask(agent, agent_api.LIST_MESSAGES, session=turn.session_id)
    assert [(one["role"], one["content"]) for one in history["messages"]] == [
        ("User", "hello"),
        ("Assistant", answer),
    ]
    assert [one["message_index"] for one in history["messages"]] == [0, 1]
    assert {one["turn_id"] for one in history["messages"]} == {turn.turn_id}
    assert [one["author"] for one in history["messages"]] == [told, None]
    assert events[0]["content"]["author"] == told
    turns = await _ask(agent, agent_api.LIST_TURNS, session=turn.session_id)
    assert turns["turns"][0]["author"] == told
    session = await _ask(agent, agent_api.SHOW_SESSION, session=turn.session_id)
    assert session["message_count"] == 2
    exported = await _ask(agent, agent_api.EXPORT_SESSION, session=turn.session_id)
    assert exported.index("hello") < exported.index(answer)


async def test_the_same_message_id_is_the_same_turn_and_never_another_sessions(
    agent: Agent,
) -> None:
    gateway, at = agent.gateway, agent.at
    turn = await gateway.start_turn(at, None, "hello", "m1")
    await _frames(agent, turn.turn_id)
    again = await gateway.start_turn(at, None, "hello", "m1")
    third = await gateway.start_turn(at, turn.session_id, "hello", "m1")
    assert turn.turn_id == again.turn_id == third.turn_id
    assert (await _ask(agent, agent_api.LIST_SESSIONS))["total"] == 1
    other = await _ask(agent, agent_api.CREATE_SESSION)
    with pytest.raises(ConflictError):
        await gateway.start_turn(at, other["session_id"], "hello", "m1")
    listed = await _ask(agent, agent_api.LIST_TURNS, session=turn.session_id)
    assert [one["turn_id"] for one in listed["turns"]] == [turn.turn_id]


async def test_a_busy_session_refuses_until_its_turn_is_cancelled(agent: Agent) -> None:
    gateway, at = agent.gateway, agent.at
    turn = await gateway.start_turn(at, None, agent.waits, "m1")
    with pytest.raises(RefusalError, check=lambda error: error.info.code == "session_busy"):
        await gateway.start_turn(at, turn.session_id, "second", "m2")
    await gateway.cancel_turn(at, turn.turn_id)
    events = [json.loads(frame.data) for frame in await _frames(agent, turn.turn_id)]
    assert events[-1]["type"] == "complete"
    assert (await gateway.cancel_turn(at, turn.turn_id)).status == "cancelled"
    second = await gateway.start_turn(at, turn.session_id, "second", "m2")
    assert second.turn_id != turn.turn_id
    listed = await _ask(agent, agent_api.LIST_TURNS, session=turn.session_id)
    assert [one["message_id"] for one in listed["turns"]] == ["m2", "m1"]
    await _frames(agent, second.turn_id)


@pytest.mark.parametrize("decision", ["allow_once", "reject_once"])
async def test_a_confirmation_is_answered_once_and_may_be_repeated(
    agent: Agent, decision: Any
) -> None:
    gateway, at = agent.gateway, agent.at
    turn = await gateway.start_turn(at, None, agent.asks, "m1")
    before = await _ask(agent, agent_api.SHOW_ACTIVITY)
    asked = await _first(agent, turn.turn_id, "tool_confirmation")
    doing = await _activity(agent, before, "asks")
    (known,) = doing["turns"]
    assert known | {"state": "asks"} == {
        "turn_id": turn.turn_id,
        "session_id": turn.session_id,
        "message_id": "m1",
        "state": "asks",
    }
    again = await _ask(agent, agent_api.SHOW_ACTIVITY, {"since": doing["revision"], "wait": "1"})
    assert again == doing
    news = asyncio.ensure_future(_ask(agent, agent_api.SHOW_ACTIVITY, {"since": doing["revision"]}))
    with pytest.raises(ConfirmationNotFoundError):
        await gateway.confirm(at, turn.turn_id, "nothing", decision)
    await gateway.confirm(at, turn.turn_id, asked["id"], decision)
    await gateway.confirm(at, turn.turn_id, asked["id"], decision)
    other: Any = "reject_once" if decision == "allow_once" else "allow_once"
    with pytest.raises(ConfirmationSettledError):
        await gateway.confirm(at, turn.turn_id, asked["id"], other)
    response = await _first(agent, turn.turn_id, "tool_response")
    assert response["is_error"] is (decision == "reject_once")
    await _frames(agent, turn.turn_id)
    assert (await news)["revision"] != doing["revision"]
    assert (await _activity(agent, doing, "ended"))["last_at"] is not None
    (session,) = (await _ask(agent, agent_api.LIST_SESSIONS))["sessions"]
    assert agent.asks.startswith(session["title"].rstrip("\u2026"))


async def test_what_is_not_there_is_told_apart(agent: Agent) -> None:
    gateway, at = agent.gateway, agent.at
    with pytest.raises(SessionNotFoundError):
        await gateway.start_turn(at, "nobody", "hello", "m1")
    with pytest.raises(RefusalError, check=lambda error: error.info.code == "turn_not_found"):
        await _ask(agent, agent_api.SHOW_TURN, turn="nothing")
    with pytest.raises(RefusalError, check=lambda error: error.info.code == "turn_not_found"):
        await gateway.cancel_turn(at, "nothing")
    with pytest.raises(RefusalError, check=lambda error: error.info.code == "turn_not_found"):
        async with gateway.stream_turn(at, "nothing", None):
            pass
    turn = await gateway.start_turn(at, None, "hello", "m1")
    with pytest.raises(InvalidRequestError):
        async with gateway.stream_turn(at, turn.turn_id, "another-1"):
            pass


async def test_an_agent_that_does_not_answer_is_unreachable(agent: Agent) -> None:
    with pytest.raises(AgentUnreachableError):
        await agent.gateway.status(agent.nobody)
    with pytest.raises(AgentUnreachableError):
        async with agent.gateway.stream_turn(agent.nobody, "turn", None):
            pass
    with pytest.raises(AgentUnreachableError):
        async with agent.gateway.relay(agent.nobody, AgentRequest(agent_api.LIST_SESSIONS)):
            pass


async def test_what_git_is_to_have_is_taken_and_answered_with_how_the_clone_stands(
    agent: Agent,
) -> None:
    secret = GitCredential("hub", "github.com", "someone", "glsecret")
    setup = GitSetup(author=("Ada", "ada@example.org"), credentials=[secret])
    for _ in range(2):
        state = await agent.gateway.set_up_git(agent.at, setup)
        assert (state.status, state.code) == ("none", "")
    unreachable = "http://127.0.0.1:9/a.git"
    states = {(await agent.gateway.set_up_git(agent.at, GitSetup(unreachable))).status}
    assert states <= {"cloning", "done"}
    with pytest.raises(AgentUnreachableError):
        await agent.gateway.set_up_git(agent.nobody, setup)


async def test_status_says_what_answers(agent: Agent) -> None:
    status = await agent.gateway.status(agent.at)
    assert status.agent
    assert status.model
    assert status.idle_seconds is not None
    assert status.idle_seconds >= 0


async def _ask(
    agent: Agent,
    operation: Operation[Any],
    query: dict[str, str] | None = None,
    body: Any = None,
    **parts: str,
) -> Any:
    """Return what an operation answers, once it is proven to be as the table describes it."""
    sent = None if body is None else _once(json.dumps(body).encode())
    request = AgentRequest(operation, parts, query or {}, body=sent)
    async with agent.gateway.relay(agent.at, request) as answer:
        said = b"".join([chunk async for chunk in answer.body])
    assert answer.status == operation.status
    if operation.answer is type(None):
        assert said == b""
        return None
    assert answer.headers["content-type"] == operation.media
    if operation.answer is str:
        return said.decode()
    found = json.loads(said)
    assert asdict(TypeAdapter(operation.answer).validate_json(said, strict=True)) == found
    return found


async def _activity(agent: Agent, known: dict[str, Any], state: str) -> Any:
    """Return what the agent does, once its only turn stands so."""
    while [one["state"] for one in known["turns"]] != [state]:
        known = await _ask(agent, agent_api.SHOW_ACTIVITY, {"since": known["revision"]})
    return known


async def _frames(agent: Agent, turn_id: str, after: str | None = None) -> list[sse.Frame]:
    frames = []
    async with agent.gateway.stream_turn(agent.at, turn_id, after) as runs:
        async for run in runs:
            parsed = [sse.parse(frame) for frame in sse.FrameSplitter().feed(run)]
            frames += [frame for frame in parsed if frame is not None]
    return frames


async def _first(agent: Agent, turn_id: str, kind: str) -> Any:
    async with agent.gateway.stream_turn(agent.at, turn_id, None) as runs:
        async for run in runs:
            for frame in sse.FrameSplitter().feed(run):
                parsed = sse.parse(frame)
                event = json.loads(parsed.data) if parsed else {}
                if event.get("type") == kind:
                    return event["content"]
    raise AssertionError(f"no {kind} came")


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def test_a_terminal_is_started_attached_to_and_ended(agent: Agent) -> None:
    asked = AgentRequest(agent_api.START_TERMINAL, {}, body=_once(b'{"rows": 24, "columns": 80}'))
    async with agent.gateway.relay(agent.at, asked) as answer:
        one = json.loads(b"".join([chunk async for chunk in answer.body]))["terminal_id"]
    listed = await _ask(agent, agent_api.LIST_TERMINALS)
    assert [each["terminal_id"] for each in listed["terminals"]] == [one]
    socket = agent_api.TERMINAL_SOCKET
    async with agent.gateway.socket(agent.at, socket, {"terminal": one}) as opened:
        first = await opened.receive()
        assert isinstance(first, str)
        assert set(json.loads(first)["attached"]) == {"rows", "columns", "replay", "pings"}
        await opened.send('{"ping": true}')
        while isinstance(came := await opened.receive(), bytes):
            pass  # a shell's first words
        assert json.loads(came or "") == {"pong": True}
        await opened.send(b"exit")
        said = b""
        while b"exit" not in said:
            came = await opened.receive()
            assert isinstance(came, bytes)
            said += came
    assert await _ask(agent, agent_api.END_TERMINAL, terminal=one) is None
    for wrong, error in ((one, MissingError), ("..", InvalidRequestError)):
        with pytest.raises(error):
            async with agent.gateway.socket(agent.at, socket, {"terminal": wrong}):
                pass
        with pytest.raises(error):
            await _ask(agent, agent_api.END_TERMINAL, terminal=wrong)
    with pytest.raises(AgentUnreachableError):
        async with agent.gateway.socket(agent.nobody, agent_api.COMMAND_SOCKET, {}):
            pass
