"""A message to an agent: waking, answering, repeating, refusing."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.services.house import REF, House

from greylag.common import agent_api, sse
from greylag.common.agent_api import Turn
from greylag.domain.errors import (
    AgentUnreachableError,
    ClusterError,
    ErrorInfo,
    ForbiddenError,
    GreylagError,
    InvalidRequestError,
    NotActiveError,
    ProjectDeletingError,
    RefusalError,
    SessionNotFoundError,
    UnauthorizedError,
    UserNotFoundError,
)
from greylag.domain.lifecycle import Verb
from greylag.domain.project import Desired, Status
from greylag.domain.users import OPERATOR, MemberRole, Principal
from greylag.services.agents import NewMessage
from greylag.services.projects import NewProject


async def test_a_sleeping_project_is_woken_in_the_same_stream_which_then_answers() -> None:
    house = House()
    async with house.working():
        await _create(house)
        events = await _send(house, NewMessage("hello"))
        kinds = [event["type"] for event in events]
        assert kinds[0] == "status"
        assert kinds[-1] == "complete"
        assert kinds.index("turn") > 0
        assert "status" not in kinds[kinds.index("turn") :]
        assert _text(events) == "You said: hello"
        said = [event["content"]["message"] for event in events if event["type"] == "status"]
        assert said[-1] == "The environment is active."
        assert len(said) == len(set(said))


async def test_an_active_project_answers_without_status_events() -> None:
    house = House()
    async with house.working():
        await _create(house, active=True)
        events = await _send(house, NewMessage("hello"))
        assert events[0]["type"] == "turn"


async def test_who_resumes_a_turn_whose_environment_was_lost_is_told_why() -> None:
    house = House()
    async with house.working():
        await _create(house, active=True)
        house.cluster.auto = False
        house.cluster.stumble(REF, ErrorInfo("drained", "It was evicted."))
        with house.store.subscribe(REF) as news:
            while (project := await house.store.get("ada", "demo")).status is Status.ACTIVE:
                await news.changed(5)
        with pytest.raises(NotActiveError, match=r"is activating, not active\. It was evicted\."):
            await house.ask(agent_api.LIST_SESSIONS)
        opening, _ = await house.use_cases.agents.stream_turn(OPERATOR, REF, "a-turn", None)
        async with opening as frames:
            assert b"It was evicted." in await anext(frames)
        assert project.error is not None
        assert project.error.code == "drained"


async def test_the_same_message_id_is_one_turn_also_without_a_session() -> None:
    house = House()
    async with house.working():
        await _create(house)
        first = await _send(house, NewMessage("hello", message_id="m1"))
        again = await _send(house, NewMessage("hello", message_id="m1"))
        assert first[-len(again) :] == again
        assert (await house.ask(agent_api.LIST_SESSIONS))["total"] == 1


async def test_what_can_be_told_before_the_first_byte_is_raised() -> None:
    house = House()
    async with house.working():
        await _create(house, active=True)
        session = (await house.ask(agent_api.CREATE_SESSION))["session_id"]
        with pytest.raises(SessionNotFoundError):
            await _send(house, NewMessage("hello", session_id="nobody"))
        with pytest.raises(InvalidRequestError):
            await _send(house, NewMessage("   "))
        with pytest.raises(InvalidRequestError):
            await _send(house, NewMessage("hello", message_id="x" * 129))
        waiting = house.use_cases.agents.send(OPERATOR, REF, NewMessage("wait: here", session))
        async with waiting:
            with pytest.raises(RefusalError, check=lambda error: error.info.code == "session_busy"):
                await _send(house, NewMessage("second", session))
        await house.use_cases.projects.want(OPERATOR, REF, Desired.DELETED)
        with pytest.raises(ProjectDeletingError):
            await _send(house, NewMessage("hello"))


async def test_a_waking_that_fails_is_told_with_the_causes_code() -> None:
    house = House()
    async with house.working():
        await _create(house)
        cause = ClusterError("No image.", code="image_not_found", terminal=True)
        house.cluster.fail_next(REF, Verb.START, cause)
        with pytest.raises(ClusterError) as caught:
            await _send(house, NewMessage("hello"))
        assert caught.value.info.code == "image_not_found"


@pytest.mark.parametrize(
    ("end", "error"),
    [("share", ForbiddenError), ("unshare", UserNotFoundError), ("sign out", UnauthorizedError)],
)
async def test_whoever_may_not_any_more_once_it_is_awake_gives_the_agent_no_message(
    end: str, error: type[GreylagError]
) -> None:
    house = House()
    members, now = house.use_cases.members, house.clock.now()
    who = Principal("zoe", "Zoë")
    if end == "sign out":
        who = replace(OPERATOR, sign_in=f"cookie c {int(now.timestamp())}")
    async with house.working():
        await _create(house)
        await members.share(OPERATOR, REF, "Zoë", MemberRole.EDITOR)
        async with house.use_cases.agents.send(who, REF, NewMessage("hello")) as frames:
            assert b'"status"' in await anext(frames)
            match end:
                case "share":
                    await members.share(OPERATOR, REF, "Zoë", MemberRole.VIEWER)
                case "unshare":
                    await members.unshare(OPERATOR, REF, "Zoë")
                case _:
                    await house.store.revoke("cookie c", now + timedelta(days=30), now)
            with pytest.raises(error):
                await _rest(frames)
        assert (await house.ask(agent_api.LIST_SESSIONS))["total"] == 0


async def _rest(frames: AsyncIterator[bytes]) -> bytes:
    return b"".join([frame async for frame in frames])


async def test_a_project_deactivated_while_it_wakes_ends_the_stream_with_a_reason() -> None:
    house = House(auto=False)
    async with house.working():
        await _create(house)
        sending = asyncio.create_task(_send(house, NewMessage("hello")))
        with house.store.subscribe(REF) as news:
            while (
                not house.cluster.calls[REF] or house.cluster.calls[REF][-1].verb is not Verb.START
            ):
                await news.changed(5)
        await house.use_cases.projects.want(OPERATOR, REF, Desired.INACTIVE)
        while not sending.done():
            house.cluster.advance(REF)
            await asyncio.sleep(0.001)
        with pytest.raises(ClusterError, match="stopped before"):
            await sending


async def test_a_turn_waits_for_an_environment_that_is_started_again() -> None:
    house = House()
    async with house.working():
        await _create(house, active=True)
        turn = (await _send(house, NewMessage("hello")))[0]["content"]["turn_id"]
        started_again = house.cluster.hang(REF, Verb.START)
        with house.store.subscribe(REF) as news:
            house.cluster.vanish(REF)
            while (await house.use_cases.projects.get(OPERATOR, REF)).settled:
                await news.changed(5)
        with pytest.raises(NotActiveError) as refused:
            await house.ask(agent_api.LIST_SESSIONS)
        assert refused.value.info.hint == "It is being started: ask again in a moment."
        opening, _ = await house.use_cases.agents.stream_turn(OPERATOR, REF, turn, None)
        async with opening as frames:
            first = await anext(frames)
            assert b'"type":"status"' in first
            started_again.set()
            rest = b"".join([frame async for frame in frames])
        assert rest.index(b'"type":"status"') < rest.index(b'"type":"turn"')
        assert b'"type":"complete"' in rest


@pytest.mark.parametrize("taken", [False, True])
async def test_a_message_that_meets_the_end_of_an_environment_that_is_started_anew_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, *, taken: bool
) -> None:
    house = House()
    start_turn = house.gateway.start_turn
    ids = []

    async def ended(*asked: Any) -> Turn:
        if taken:
            await start_turn(*asked)
        with house.store.subscribe(REF) as news:
            house.cluster.vanish(REF)
            while (await house.use_cases.projects.get(OPERATOR, REF)).settled:
                await news.changed(5)
        ids.append(asked[3])
        monkeypatch.setattr(house.gateway, "start_turn", again)
        raise AgentUnreachableError("agentd is stopping.")

    async def again(*asked: Any) -> Turn:
        ids.append(asked[3])
        return await start_turn(*asked)

    async with house.working():
        await _create(house, active=True)
        monkeypatch.setattr(house.gateway, "start_turn", ended)
        started_again = house.cluster.hang(REF, Verb.START)
        async with house.use_cases.agents.send(OPERATOR, REF, NewMessage("hello")) as frames:
            assert b'"status"' in await anext(frames)
            started_again.set()
            assert b'"complete"' in await _rest(frames)
        assert len(ids) == 2  # tried again, as the same turn
        assert len(set(ids)) == 1
        project = await house.use_cases.projects.get(OPERATOR, REF)
        house.gateway.unreachable.add((await house.cluster.reach(project.environment)).url)
        with pytest.raises(AgentUnreachableError):
            await _send(house, NewMessage("hello"))


async def test_leaving_the_stream_closes_upstream_and_the_turn_goes_on() -> None:
    house = House()
    async with house.working():
        await _create(house, active=True)
        agents = house.use_cases.agents
        async with agents.send(OPERATOR, REF, NewMessage("wait: here")) as frames:
            first = sse.parse(await anext(frames))
            assert house.gateway.open_streams == 1
        assert house.gateway.open_streams == 0
        assert first is not None
        turn_id = json.loads(first.data)["content"]["turn_id"]
        assert (await house.ask(agent_api.SHOW_TURN, turn=turn_id))["status"] == "running"


async def _create(house: House, *, active: bool = False) -> None:
    projects = house.use_cases.projects
    await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
    if active:
        wanted = await projects.want(OPERATOR, REF, Desired.ACTIVE)
        await projects.settled(wanted)


async def _send(house: House, new: NewMessage) -> list[Any]:
    events = []
    async with house.use_cases.agents.send(OPERATOR, REF, new) as frames:
        async for run in frames:
            for frame in sse.FrameSplitter().feed(run):
                parsed = sse.parse(frame)
                assert parsed is not None
                events.append(json.loads(parsed.data))
    return events


def _text(events: list[Any]) -> str:
    return "".join(e["content"]["content"] for e in events if e["type"] == "message")
