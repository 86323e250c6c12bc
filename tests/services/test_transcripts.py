"""What is told from the copy of conversations while nobody can be asked."""

import pytest
from tests.services.house import REF, House

from greylag.common import agent_api
from greylag.domain.errors import InvalidRequestError, TurnOverError
from greylag.domain.lifecycle import Verb
from greylag.domain.project import Desired, Status
from greylag.domain.users import OPERATOR
from greylag.services.agents import NewMessage
from greylag.services.projects import NewProject


async def asleep(house: House) -> tuple[str, bytes]:
    """Return a turn of a project that sleeps, and its events as they were."""
    projects, agents = house.use_cases.projects, house.use_cases.agents
    await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
    await projects.want(OPERATOR, REF, Desired.ACTIVE)
    async with agents.send(OPERATOR, REF, NewMessage("hello")) as runs:
        async for _ in runs:
            pass
    at = await agents.address(OPERATOR, REF)
    (run,) = house.gateway._at(at).runs.values()
    await reached(house, Desired.INACTIVE, Status.INACTIVE)
    return run.turn.turn_id, b"".join(run.frames)


async def reached(house: House, desired: Desired, status: Status) -> None:
    with house.store.subscribe(REF) as news:
        await house.use_cases.projects.want(OPERATOR, REF, desired)
        while (await house.store.get("ada", "demo")).status is not status:
            await news.changed(5)


async def told(house: House, turn: str, after: str | None = None) -> bytes:
    opening, kept_at = await house.use_cases.agents.stream_turn(OPERATOR, REF, turn, after)
    async with opening as runs:
        assert kept_at is not None
        return b"".join([run async for run in runs])


async def test_a_turns_events_are_told_from_any_on_in_whole_frames() -> None:
    house = House()
    async with house.working():
        turn, whole = await asleep(house)
        assert await told(house, turn) == whole
        frames = [frame + b"\n\n" for frame in whole.split(b"\n\n")[:-1]]
        for number in range(len(frames) - 1):
            rest = await told(house, turn, f"{turn}-{number}")
            assert rest == b"".join(frames[number + 1 :])
        with pytest.raises(TurnOverError):
            await told(house, turn, f"{turn}-{len(frames) - 1}")
        for wrong in (f"{turn}-99", f"{turn}-", "x-0", turn):
            with pytest.raises(InvalidRequestError):
                await told(house, turn, wrong)


async def test_they_are_told_at_once_while_the_environment_is_started() -> None:
    house = House()
    async with house.working():
        turn, whole = await asleep(house)
        started = house.cluster.hang(REF, Verb.START)
        await reached(house, Desired.ACTIVE, Status.ACTIVATING)
        assert await told(house, turn) == whole
        assert (await house.ask(agent_api.LIST_SESSIONS))["total"] == 1
        started.set()
