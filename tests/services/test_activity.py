"""What agents do, heard once for all who look, from agents that may tell anything."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.services.house import House

from greylag.domain.project import Desired, Project, ProjectRef
from greylag.domain.users import OPERATOR
from greylag.ports import AgentAddress, AgentAnswer, AgentRequest
from greylag.services import activity
from greylag.services.activity import Activities, Watch
from greylag.services.projects import NewProject

REF = ProjectRef("ada", "demo")
TURN = {"turn_id": "t", "session_id": "s", "message_id": "m", "state": "asks"}


async def _active(house: House) -> Project:
    projects = house.use_cases.projects
    await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
    wanted = await projects.want(OPERATOR, REF, Desired.ACTIVE)
    awake = await projects.settled(wanted)
    assert awake is not None
    return awake


async def _until(watch: Watch, project: Project, state: str, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while (known := watch.of(project)) is None or known.count(state) != count:
            await watch.news.wait()
            watch.news.clear()


async def test_all_who_look_hear_of_turns_by_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "LINGER_SECONDS", 0.0)
    house = House()
    async with house.working():
        project = await _active(house)
        at = await house.use_cases.agents.address(OPERATOR, REF)
        activities = house.use_cases.activities
        with activities.watch() as one, activities.watch() as other:
            one.follow([project])
            other.follow([project])
            turn = await house.gateway.start_turn(at, None, "wait: for ever", "m1")
            await _until(one, project, "working")
            await _until(other, project, "working")
            one.follow([])
            await house.gateway.cancel_turn(at, turn.turn_id)
            await _until(other, project, "ended")
            assert len([task for task in asyncio.all_tasks() if "activity" in task.get_name()]) == 1
        await asyncio.sleep(0)
        await activities.close()
        assert activities.known(project) is None


async def test_an_end_that_was_due_for_an_earlier_look_ends_no_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House()
    async with house.working():
        project = await _active(house)
        at = await house.use_cases.agents.address(OPERATOR, REF)
        activities, loop, due = house.use_cases.activities, asyncio.get_running_loop(), 0.05
        with activities.watch() as watch:
            for seconds in (0.0, due):  # left twice: the first end comes before the second is due
                monkeypatch.setattr(activity, "LINGER_SECONDS", seconds)
                watch.follow([project])
                watch.follow([])
            over = asyncio.Event()
            loop.call_later(2 * due, over.set)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            watch.follow([project])
            await over.wait()
            await house.gateway.start_turn(at, None, "wait: for ever", "m1")
            await _until(watch, project, "working")


class _Teller:
    """An agent that tells what it likes, at once."""

    def __init__(self, *told: bytes) -> None:
        self.told = list(told)
        self.asked: list[Mapping[str, str]] = []
        self.silent = asyncio.Event()

    def relay(
        self, _at: AgentAddress, request: AgentRequest
    ) -> AbstractAsyncContextManager[AgentAnswer]:
        return self._relay(request)

    @asynccontextmanager
    async def _relay(self, request: AgentRequest) -> AsyncIterator[AgentAnswer]:
        self.asked.append(request.query)
        if not self.told:
            self.silent.set()
            await asyncio.Event().wait()
        yield AgentAnswer(200, {}, _body(self.told.pop(0)))


async def _body(told: bytes) -> AsyncIterator[bytes]:
    yield told


def _told(**more: Any) -> bytes:
    return json.dumps({"revision": "r", "turns": [], "last_at": None} | more).encode()


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        _told(turns=None),
        _told(turns=[1]),
        _told(turns=[TURN | {"state": 1}]),
        _told(last_at="yesterday"),
        _told(last_at="0001-01-01T00:00:00+14:00"),
        _told(revision=None),
    ],
)
async def test_what_is_no_activity_is_not_known_and_not_fatal(
    hostile: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "_FIRST_PAUSE", 0.0)
    teller: Any = _Teller(hostile, _told(turns=[TURN] * 3, last_at="9999-12-31T23:59:59Z"))
    house = House()
    async with house.working():
        project = await _active(house)
        activities = Activities(house.use_cases.agents, teller)
        with activities.watch() as watch:
            watch.follow([project])
            await _until(watch, project, "asks", 3)
            known = watch.of(project)
            assert known is not None
            assert known.last_at is not None
            assert known.last_at.year < 9999
            await teller.silent.wait()
        assert teller.asked == [{}, {}, {"since": "r"}]
        await activities.close()


async def test_what_is_told_can_be_asked_with_again() -> None:
    teller: Any = _Teller(_told(revision="half \ud800"))
    house = House()
    async with house.working():
        project = await _active(house)
        activities = Activities(house.use_cases.agents, teller)
        with activities.watch() as watch:
            watch.follow([project])
            await teller.silent.wait()
        assert teller.asked == [{}, {"since": "half ?"}]
        await activities.close()


async def test_what_is_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "MOST_WATCHED", 1)
    long = [TURN | {name: "m" * 100_000} for name in ("message_id", "state")]
    teller: Any = _Teller(_told(turns=[*[TURN] * 500, *long, *[TURN] * 98], revision="r" * 100_000))
    house = House()
    async with house.working():
        project = await _active(house)
        activities = Activities(house.use_cases.agents, teller)
        with activities.watch() as watch:
            other = replace(project, id="0" * 24)
            watch.follow([project, other])
            await _until(watch, project, "asks", 98)
            assert watch.of(other) is None
            known = watch.of(project)
            assert known is not None
            assert len(known.turns) == 98  # none of those that say too much
            assert len(known.revision) < 1000
        await activities.close()
