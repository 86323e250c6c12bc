"""Turns that need an answer, end or fail are told of, though nobody looks: each once, whoever does
it and whatever is started anew.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from tests.harness import Harness, settings

from greylag.common import agent_api
from greylag.common.agent_api import MOST_TITLE, Operation, Question, Session, Turn
from greylag.common.clock import SystemClock
from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import Desired, Project, ProjectRef
from greylag.domain.users import OPERATOR, NotificationTarget, User
from greylag.ports import (
    AgentAddress,
    AnyKept,
    Delivered,
    DeliveryResult,
    Kept,
    PushAddress,
    answer_of_its_form,
)
from greylag.services import activity, notifier
from greylag.services.notifications import Notifications
from greylag.services.notifier import Notifier
from greylag.services.people import UserEdit
from greylag.services.projects import NewProject

REF = ProjectRef("ada", "demo")
SITE = "https://greylag.example"


class Quick(SystemClock):
    """Waits for nothing; what it was asked to wait for is kept."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


class Told(Harness):
    """Ada has a project that is active, and a webhook that is told."""

    def __init__(self) -> None:
        self.quick = Quick()
        given = settings(secret_key="k" * 32, data="/nonexistent", users="ada:Ada,bob:Bob")
        super().__init__(given, clock=self.quick)
        self.address = AgentAddress("", "")

    async def hook(self, user: str = "ada") -> str:
        add = self.use_cases.notifications.add_webhook
        return (await add(OPERATOR, user, "Chat", SITE, "https://hooks.example/"))[1].id

    async def say(self, message: str, message_id: str) -> Turn:
        return await self.gateway.start_turn(self.address, None, message, message_id)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await self.delivery.news.wait()
                self.delivery.news.clear()

    @property
    def told(self) -> list[str]:
        return [told["type"] for _, _, told in self.delivery.posted]

    async def told_all(self, *types: str) -> None:
        """Return when these were told, in this order, and nothing else."""
        await self.until(lambda: len(self.told) >= len(types))
        assert self.told == list(types)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(activity, "_BURST", 0.0)


@asynccontextmanager
async def running(*notifiers: Notifier) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one.run(), name="notifier") for one in notifiers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def house() -> AsyncIterator[Told]:
    of = Told()
    async with of.working():
        projects = of.use_cases.projects
        await projects.create(OPERATOR, "ada", NewProject("Demo", "demo"))
        await projects.settled(await projects.want(OPERATOR, REF, Desired.ACTIVE))
        of.address = await of.use_cases.agents.address(OPERATOR, REF)
        try:
            yield of
        finally:
            await of.use_cases.close()


async def test_what_a_turn_asks_and_how_it_ends_is_told_once_by_one_of_two_workers() -> None:
    async with house() as of:
        await of.hook()
        other = of.build("w2")
        async with running(of.build("w1").notifier, other.notifier):
            turn = await of.say("run: make all", "m1")
            await of.told_all("turn.asks")
            ((to, message_id, told),) = of.delivery.posted
            assert to.url == "https://hooks.example/"
            assert message_id.startswith("msg_")
            data = told["data"]
            assert (data["project"], data["turn"]) == ("demo", turn.turn_id)
            assert data["url"] == f"{SITE}{REF.path}/turns/{turn.turn_id}/answer"
            assert "make all" not in json.dumps(told | {"data": data | {"session_title": ""}})
            await of.gateway.confirm(of.address, turn.turn_id, data["confirmation"], "allow_once")
            await of.told_all("turn.asks", "turn.ended")
            await of.say("fail: badly", "m2")
            await of.told_all("turn.asks", "turn.ended", "turn.failed")
            ended = await of.say("wait: for ever", "m3")
            await of.gateway.cancel_turn(of.address, ended.turn_id)
            await of.say("hello", "m4")
            await of.told_all("turn.asks", "turn.ended", "turn.failed", "turn.ended")
        # Whoever starts anew tells nothing of that, and what has happened meanwhile.
        await of.say("hello again", "m5")
        async with running(of.build("w1").notifier):
            await of.told_all("turn.asks", "turn.ended", "turn.failed", "turn.ended", "turn.ended")
            assert of.delivery.posted[-1][2]["data"]["session_title"] == "hello again"
            await of.say("hello", "m6")
            await of.until(lambda: len(of.told) == 6)
        await other.use_cases.close()


async def test_a_target_of_a_newer_version_holds_back_nobody() -> None:
    async with house() as of:
        await of.hook()
        newer = await of.hook("bob")
        of.store._tables.people[NotificationTarget, newer]["kind"] = "matrix"
        async with running(of.build("w1").notifier):
            await of.say("hello", "m1")
            await of.told_all("turn.ended")


async def test_a_user_who_cannot_be_read_holds_back_nobody_else() -> None:
    async with house() as of:
        await of.hook()
        await of.hook("bob")
        await of.use_cases.people.edit("bob", UserEdit(display_name="Bobby"))
        of.store._tables.people[User, "bob"]["role"] = "auditor"
        with capture_logs() as lines:
            async with running(of.build("w1").notifier):
                await of.say("hello", "m1")
                await of.told_all("turn.ended")
        passed_over = [line["error"] for line in lines if line["event"] == "record_passed_over"]
        assert "'bob' of users cannot be read" in passed_over[0]


async def test_of_too_many_projects_some_of_each_user_are_heard_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house() as of:
        projects = of.use_cases.projects
        await of.use_cases.people.make(User("zoe", "Zoe"))
        for user, name in (("ada", "more"), ("zoe", "last")):
            await of.hook(user)
            await projects.create(OPERATOR, user, NewProject("P", name))
            ref = ProjectRef(user, name)
            await projects.settled(await projects.want(OPERATOR, ref, Desired.ACTIVE))
        monkeypatch.setattr(notifier, "MOST_WATCHED", 2)
        one = of.build("w1").notifier
        with capture_logs() as lines:
            for _ in range(2):
                with one.activities.watch() as watch:
                    await one._follow(watch, anew=True)
        assert sorted(project.user_id for project in one._projects.values()) == ["ada", "zoe"]
        told = [line for line in lines if line["event"] == "notifications_not_of_all"]
        assert [(line["heard"], line["active"]) for line in told] == [(2, 3)]


async def test_nothing_is_told_before_somebody_wants_it_or_of_what_was_before_then() -> None:
    async with house() as of:
        async with running(of.build("w1").notifier):
            await of.say("hello", "m1")
            waiting = await of.say("run: this", "m2")
            await asyncio.sleep(0.1)
            await of.hook("bob")  # whose projects these are not
            await of.hook()
            # What still waits is of use to know.
            await of.told_all("turn.asks")
            assert of.delivery.posted[0][2]["data"]["turn"] == waiting.turn_id
        assert of.told == ["turn.asks"]


async def test_a_target_that_fails_is_tried_again_for_a_while_and_then_left() -> None:
    async with house() as of:
        await of.hook()
        later = Delivered(DeliveryResult.LATER, "answered 503")
        of.delivery.answers += [later, later]
        async with running(of.build("w1").notifier):
            await of.say("hello", "m1")
            await of.told_all("turn.ended", "turn.ended", "turn.ended")
            ids = {message_id for _, message_id, _ in of.delivery.posted}
            assert len(ids) == 1
            of.delivery.answers += [later] * 50
            await of.say("hello", "m2")
            await of.until(lambda: len(of.told) == 3 + notifier.TRIES)
            of.delivery.answers.clear()
            await of.say("hello", "m3")
            await of.until(lambda: len(of.told) == 4 + notifier.TRIES)
        waits = [seconds for seconds in of.quick.slept if seconds != notifier.PAUSE_SECONDS]
        assert notifier.FIRST_WAIT / 2 <= waits[0] <= notifier.FIRST_WAIT
        assert sum(waits[2:]) <= 600


@pytest.mark.parametrize("failing", [1, 2, 3])
async def test_a_store_that_is_away_for_one_question_loses_no_notice_and_repeats_none(
    failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house() as of:
        await of.hook()
        store, asked = of.store, 0
        find, put = store.find, store.put

        def ask(kind: type) -> None:
            nonlocal asked
            asked += kind is NotificationTarget
            if kind is NotificationTarget and asked == failing:
                raise StoreUnavailableError("away")

        async def finding(kind: type[Kept], key: str) -> Kept | None:
            ask(kind)
            return await find(kind, key)

        async def putting(one: AnyKept, *more: Any, **named: Any) -> bool:
            ask(type(one))
            return await put(one, *more, **named)

        monkeypatch.setattr(store, "find", finding)
        monkeypatch.setattr(store, "put", putting)
        async with running(of.build("w1").notifier):
            await of.say("hello", "m1")
            await of.told_all("turn.ended")
            await of.say("run: this", "m2")
            await of.told_all("turn.ended", "turn.asks")
        assert asked > failing


async def test_a_project_that_tells_of_turns_without_end_is_held_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notifier, "MOST_OF_PROJECT", 2)
    async with house() as of:
        await of.hook()
        address = PushAddress("https://push.example/1", "p", "a")
        await of.use_cases.notifications.add_browser(OPERATOR, "ada", "Phone", SITE, address)
        revoke, kept = of.store.revoke, set[str]()

        async def counted(name: str, *asked: Any, **more: Any) -> bool:
            kept.add(name)
            return await revoke(name, *asked, **more)

        monkeypatch.setattr(of.store, "revoke", counted)
        async with running(of.build("w1").notifier):
            for number in range(4):
                await of.say("hello", f"m{number}")
            await of.until(lambda: len(of.told) == 2)
            await asyncio.sleep(0.1)
        assert len(of.told) == len(of.delivery.pushed) == 2
        assert len(kept) == 2  # and none of those that are held back


@pytest.mark.parametrize("limit", ["_MOST_OF_USER_AT_ONCE", "_MOST_TOLD_AT_ONCE"])
async def test_what_would_be_too_many_at_once_is_told_by_the_next_look(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, limit, 0)
    async with house() as of:
        await of.hook()
        paused: list[list[str]] = []

        async def sleep(seconds: float) -> None:
            if seconds != notifier.PAUSE_SECONDS:
                paused.append(of.told)
                monkeypatch.setattr(notifier, limit, 9)
            await asyncio.sleep(0)

        monkeypatch.setattr(of.quick, "sleep", sleep)
        async with running(of.build("w1").notifier):
            await of.say("hello", "m1")
            await of.told_all("turn.ended")
        assert paused == [[]]


def test_the_log_hears_once_in_ten_minutes_that_a_project_is_held_back() -> None:
    heard = notifier._Heard()
    heard.told_at.extend(range(notifier.MOST_OF_PROJECT))
    project = cast("Project", SimpleNamespace(id="p"))
    with capture_logs() as logged:
        held = [notifier._is_held_back(project, heard, moment) for moment in (20, 599, 600)]
        heard.told_at.extend(range(600, 600 + notifier.MOST_OF_PROJECT))
        held += [notifier._is_held_back(project, heard, moment) for moment in (619, 620, 2000)]
    assert held == [True, True, False, True, True, False]
    assert [one["event"] for one in logged] == ["notifications_held_back"] * 2


async def test_an_agent_that_was_lost_with_its_turn_is_told_of_when_it_is_back() -> None:
    async with house() as of:
        await of.hook()
        async with running(of.build("w1").notifier):
            turn = await of.say("run: this", "m1")
            await of.told_all("turn.asks")
            of.gateway.lose(of.address, turn.turn_id)
            await of.told_all("turn.asks", "turn.failed")


async def test_a_session_that_was_deleted_holds_no_other_one_back() -> None:
    async with house() as of:
        await of.hook()
        gone = await of.say("hello", "m1")
        of.gateway.vanish(of.address, gone.session_id)
        async with running(of.build("w1").notifier):
            await of.say("hello", "m2")
            await of.told_all("turn.ended")
        assert not [seconds for seconds in of.quick.slept if seconds != notifier.PAUSE_SECONDS]


@pytest.mark.parametrize(
    "hostile",
    [
        {"turns": None},
        {"turns": [1]},
        {"turns": [{"turn_id": "a/b"}]},
        {"turns": [{"turn_id": 3}]},
    ],
)
async def test_what_is_no_list_of_turns_is_not_told_and_not_fatal(
    hostile: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house() as of:
        await of.hook()
        told = of.build("w1").notifier
        real: Any = told._ask
        asked = asyncio.Event()

        async def ask(
            project: Any,
            operation: Operation[Any],
            read: Callable[[Any], Any],
            *rest: Any,
            **more: str,
        ) -> Any:
            if asked.is_set() or operation is not agent_api.LIST_TURNS:
                return await real(project, operation, read, *rest, **more)
            asked.set()
            with answer_of_its_form():
                return read(hostile)

        monkeypatch.setattr(told, "_ask", ask)
        async with running(told):
            await of.say("hello", "m1")
            await of.told_all("turn.ended")
            assert asked.is_set()


def test_a_turn_or_a_question_that_no_address_can_hold_is_not_told() -> None:
    project, asks = cast("Project", SimpleNamespace(id="p")), partial(Question, arguments="{}")
    session = Session("s1", "", "", 0, "S")
    turn = Turn("t", "s1", "m", "running", "hello", "", question=asks("c", "shell"))
    told = [
        notifier._notice(project, session, one, SystemClock())
        for one in (turn, replace(turn, turn_id="a/b"), replace(turn, question=asks("..", "shell")))
    ]
    assert [notice is not None for notice in told] == [True, False, False]


async def test_a_defect_and_a_row_that_cannot_be_read_end_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house() as of:
        await of.hook()
        told = of.build("w1").notifier
        read, send, listed = Notifications.of, Notifications.send, 0
        met = asyncio.Event()

        async def broken(*_: object) -> Delivered:
            monkeypatch.setattr(Notifications, "send", send)
            met.set()
            raise RuntimeError("a defect")

        async def of_all(notifications: Notifications, user: str | None) -> object:
            nonlocal listed
            listed += user is None
            if listed == 1 and user is None:
                raise ValueError("a row of a later version")
            return await read(notifications, user)

        monkeypatch.setattr(Notifications, "send", broken)
        monkeypatch.setattr(Notifications, "of", of_all)
        async with running(told):
            await of.say("hello", "m1")
            await asyncio.wait_for(met.wait(), 10)
            await of.say("again", "m2")
            await of.told_all("turn.ended")
        assert listed > 1


async def test_patience_with_an_agent_loses_nothing_that_a_slow_store_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notifier, "_PATIENCE_SECONDS", 0.5)
    async with house() as of:
        await of.hook()
        revoke = of.store.revoke

        async def slow(*asked: Any, **more: Any) -> bool:
            kept = await revoke(*asked, **more)
            await asyncio.sleep(0.6)
            return kept

        monkeypatch.setattr(of.store, "revoke", slow)
        async with running(of.build("w1").notifier):
            await of.say("run: make all", "m1")
            await of.told_all("turn.asks")


async def test_what_an_agent_calls_a_session_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house() as of:
        await of.hook()
        told = of.build("w1").notifier
        real: Any = told._ask

        async def ask(project: Any, operation: Operation[Any], *rest: Any, **query: str) -> Any:
            answer: Any = await real(project, operation, *rest, **query)
            if operation is agent_api.SHOW_SESSION:
                answer = replace(answer, title="x" * 1_000_000, session_id="another")
            return answer

        monkeypatch.setattr(told, "_ask", ask)
        async with running(told):
            turn = await of.say("hello", "m1")
            await of.told_all("turn.ended")
        data = of.delivery.posted[-1][2]["data"]
        assert len(data["session_title"]) <= MOST_TITLE
        assert data["session"] == turn.session_id
