"""Notices that turns need an answer, end or fail, though nobody looks, and tells those who want it.

Of all workers on a store one at a time hears of the active projects of users who have turned
notifications on. Before anything is told its id is kept in the store, which only one can do: so
whoever takes over, or starts anew, tells nothing again, and what happened meanwhile once. A worker
that dies while it tells leaves it untold.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any, TypeVar

import structlog

from greylag.common import agent_api
from greylag.common.agent_api import Operation, Session, Turn, TurnState
from greylag.common.backoff import Pauses
from greylag.common.clock import parse_rfc3339
from greylag.common.typed import parse_json, shaped
from greylag.domain.errors import (
    GreylagError,
    InvalidRequestError,
    LimitExceededError,
    SessionNotFoundError,
    StoreUnavailableError,
)
from greylag.domain.names import path_segment
from greylag.domain.project import Project, Status
from greylag.domain.users import NotificationTarget
from greylag.ports import (
    AgentGateway,
    AgentRequest,
    Clock,
    DeliveryResult,
    Duty,
    ProjectStore,
)
from greylag.services.activity import MOST_WATCHED, Activities, AgentActivity, Watch
from greylag.services.agents import Agents
from greylag.services.notifications import Notice, Notifications, What, notice_id
from greylag.services.people import People
from greylag.services.projects import projects_of

LOOK_SECONDS = 5.0
PAUSE_SECONDS = 1.0
TRIES = 7
FIRST_WAIT, LONGEST_WAIT = 4.0, 300.0
"""A target that fails is tried again within about four minutes."""
MOST_OF_PROJECT, OF_PROJECT_SECONDS = 20, 600.0
_DUTY = "notifications"
_DUTY_SECONDS = 30.0
_KEPT = timedelta(days=3)
_PATIENCE_SECONDS = 20.0
_LOOKS = 4
_TURNS = 20
_MOST_BYTES = 2 * agent_api.MEBIBYTE
_MOST_TOLD_AT_ONCE = 500
_MOST_OF_USER_AT_ONCE = 40

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Heard:
    """What is known of one project's turns.

    Attributes:
        revision: the activity's that was looked at last.
        running: the sessions of turns that ran then.
        over: turns that have ended, and need no look any more.
        told_at: when its newest notices were told, by this process: what it holds back the next
            one may tell.
        held_back_at: when the log was told that others are held back.
    """

    revision: str = ""
    running: dict[str, str] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    told_at: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_OF_PROJECT))
    held_back_at: float = float("-inf")
    looking: bool = False


@dataclass(eq=False)
class Notifier:
    """Hears of turns and tells of them; ``worker`` is this process's name in the store."""

    notifications: Notifications
    store: ProjectStore
    directory: People
    activities: Activities
    agents: Agents
    gateway: AgentGateway
    clock: Clock
    worker: str
    _users: frozenset[str] = field(init=False, default=frozenset())
    _projects: dict[str, Project] = field(init=False, default_factory=dict)
    _heard: dict[str, _Heard] = field(init=False, default_factory=dict)
    # Deliveries that go on, by user.
    _telling: Counter[str] = field(init=False, default_factory=Counter)
    _renew_at: float = field(init=False, default=float("-inf"))
    _too_many: bool = field(init=False, default=False)

    async def run(self) -> None:
        """Hear and tell until cancelled; a store that cannot be reached is waited for."""
        async with asyncio.TaskGroup() as tasks:
            with self.activities.watch() as watch:
                tasks.create_task(self._keep_following(watch), name="notifications followed")
                while True:
                    await watch.news.wait()
                    watch.news.clear()
                    for project in self._projects.values():
                        heard = self._heard.setdefault(project.id, _Heard())
                        if not heard.looking and _is_new(watch.of(project), heard):
                            heard.looking = True
                            look = self._look(watch, project, heard, tasks)
                            tasks.create_task(look, name=f"notifications {project.id}")

    # Whom to hear of.

    async def _keep_following(self, watch: Watch) -> None:
        with self.store.subscribe() as changes:
            while True:
                try:
                    changed = await changes.changed(LOOK_SECONDS)
                    await self._follow(watch, anew=changed)
                except StoreUnavailableError as error:
                    self._users = frozenset()
                    _log.warning("notifications_wait_for_store", reason=str(error))
                    await self.clock.sleep(LOOK_SECONDS)
                except Exception:  # noqa: BLE001 - a row that cannot be read ends nothing else here
                    self._users = frozenset()
                    _log.exception("notifications_failed")
                    await self.clock.sleep(LOOK_SECONDS)
                # Of many changes that come together one look takes them all.
                await self.clock.sleep(PAUSE_SECONDS)

    async def _follow(self, watch: Watch, *, anew: bool) -> None:
        users = frozenset(one.user_id for one in await self.notifications.of(None))
        if not users or not await self._is_ours():
            self._users, self._projects = frozenset(), {}
            watch.follow(())
            return
        if not anew and users == self._users:
            return
        self._users = frozenset()  # until all is read
        found = await self._active(users)
        self._users = users
        self._projects = {project.id: project for project in found[:MOST_WATCHED]}
        if len(found) > MOST_WATCHED and not self._too_many:
            _log.warning("notifications_not_of_all", heard=MOST_WATCHED, active=len(found))
        self._too_many = len(found) > MOST_WATCHED
        for gone in list(self._heard.keys() - self._projects.keys())[:-MOST_WATCHED]:
            del self._heard[gone]
        watch.follow(self._projects.values())
        # What is known already, as others look at it too, is news to us.
        watch.news.set()

    async def _is_ours(self) -> bool:
        """Tell whether this worker is the one that tells; it says so anew while it is."""
        now, moment = self.clock.now(), self.clock.monotonic()
        if moment >= self._renew_at:
            taken = await self.store.take_duty(
                _DUTY, self.worker, since=now, now=now, seconds=_DUTY_SECONDS
            )
            self._renew_at = moment + (_DUTY_SECONDS / 3 if taken is Duty.MINE else 0)
        return moment < self._renew_at

    async def _active(self, users: Collection[str]) -> Sequence[Project]:
        """Return these users' active projects, the first of each before the second of any: where
        they are too many, no user's keep out all of another's.
        """
        there = sorted(user.id for user in await self.directory.users() if not user.disabled)
        of_each = [
            await projects_of(self.store, user_id, Status.ACTIVE, most=MOST_WATCHED)
            for user_id in there
            if user_id in users
        ]
        return [one for turn in zip_longest(*of_each) for one in turn if one is not None]

    # What has happened.

    async def _look(
        self, watch: Watch, project: Project, heard: _Heard, tasks: asyncio.TaskGroup
    ) -> None:
        pauses = Pauses(FIRST_WAIT, LONGEST_WAIT, self.clock.sleep)
        try:
            while (activity := watch.of(project)) is not None and _is_new(activity, heard):
                if not self._is_still(project):
                    return  # it may be another's now
                heard.revision = activity.revision
                try:
                    await self._take(project, activity, heard, tasks)
                    pauses.worked()
                except (GreylagError, TimeoutError) as error:
                    _log.warning("notification_look_failed", project=project.id, reason=str(error))
                    await pauses.pause()
                    # What is not seen in the end is told with what the agent does next.
                    heard.revision = "" if pauses.failed < _LOOKS else heard.revision
        except Exception:  # noqa: BLE001 - a defect with one project ends no other
            _log.exception("notification_look_failed", project=project.id)
        finally:
            heard.looking = False

    def _is_still(self, project: Project) -> bool:
        known = self._projects.get(project.id)
        return known is not None and known.user_id == project.user_id

    async def _take(
        self, project: Project, activity: AgentActivity, heard: _Heard, tasks: asyncio.TaskGroup
    ) -> None:
        ended, asking = _sorted(activity.turns, heard)
        unknown = {
            turn_id: session_id
            for turn_id, session_id in ended.items()
            if not await self.store.is_revoked(notice_id(project.id, turn_id))
        }
        for session_id in {*unknown.values(), *asking.values()}:
            try:
                # Of the agent alone: an id that was kept as this ran out would never be told.
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    happened = await self._happened(project, session_id, {*unknown, *asking})
            except SessionNotFoundError:
                continue  # it was deleted, and its turns with it
            for notice in happened:
                await self._tell(notice, heard, tasks)
        heard.over = {one.turn_id for one in activity.turns if one.state == "ended"}
        heard.running = {
            one.turn_id: one.session_id for one in activity.turns if one.state != "ended"
        }

    async def _happened(
        self, project: Project, session_id: str, wanted: set[str]
    ) -> Sequence[Notice]:
        parts = {"session": session_id}
        session = await self._ask(project, agent_api.SHOW_SESSION, _session, parts)
        turns = await self._ask(project, agent_api.LIST_TURNS, _turns, parts, limit=str(_TURNS))
        session = replace(
            session, session_id=session_id, title=session.title[: agent_api.MOST_TITLE]
        )
        found = [_notice(project, session, turn, self.clock) for turn in turns]
        return [one for one in found if one is not None and one.turn_id in wanted]

    async def _ask(
        self,
        project: Project,
        operation: Operation[Any],
        read: Callable[[Any], _T],
        parts: dict[str, str],
        **query: str,
    ) -> _T:
        at = await self.agents.reach(project)
        request = AgentRequest(operation, parts, query)
        async with self.gateway.relay(at, request) as answer:
            return await answer.read(_MOST_BYTES, lambda body: read(parse_json(body)))

    # Telling it.

    async def _tell(self, notice: Notice, heard: _Heard, tasks: asyncio.TaskGroup) -> None:
        assert notice.project is not None  # noqa: S101 - tests alone are of none
        now, moment = self.clock.now(), self.clock.monotonic()
        user_id = notice.project.user_id
        if _is_held_back(notice.project, heard, moment):
            return  # before anything is kept of it: its environment may ask without end
        targets = await self.notifications.of(user_id)
        of_user = self._telling[user_id] + len(targets)
        if of_user > _MOST_OF_USER_AT_ONCE or self._telling.total() >= _MOST_TOLD_AT_ONCE:
            raise LimitExceededError("Too many notices are under way.")  # the next look tells it
        if not await self.store.revoke(notice.id, now + _KEPT, now):
            return
        heard.told_at.append(moment)
        for target in targets:
            if notice.what is What.ASKS or target.created_at <= notice.at:
                self._telling[user_id] += 1
                tasks.create_task(self._deliver(target, notice), name=f"notify {target.id}")

    async def _deliver(self, target: NotificationTarget, notice: Notice) -> None:
        pauses = Pauses(FIRST_WAIT, LONGEST_WAIT, self.clock.sleep)
        try:
            for tried in range(1, TRIES + 1):
                if not await self._must_try_again(target, notice):
                    break
                if tried < TRIES:
                    await pauses.pause()
        except GreylagError as error:
            _log.warning("notification_failed", target=target.id, reason=str(error))
        except Exception:  # noqa: BLE001 - as above
            _log.exception("notification_failed", target=target.id)
        finally:
            self._telling[target.user_id] -= 1

    async def _must_try_again(self, target: NotificationTarget, notice: Notice) -> bool:
        """Tell a target, and return whether that is to be done again."""
        try:
            delivered = await self.notifications.send(target, notice)
        except StoreUnavailableError as error:
            # Nothing was sent, and nobody else will: the store keeps that it is told already.
            _log.warning("notification_waits_for_store", target=target.id, reason=str(error))
            return True
        return delivered.result is DeliveryResult.LATER


def _is_new(activity: AgentActivity | None, heard: _Heard) -> bool:
    return activity is not None and activity.revision != heard.revision


def _is_held_back(project: Project, heard: _Heard, moment: float) -> bool:
    """Tell whether a project has told as much as it may for now; the log is told once of it."""
    if len(heard.told_at) < MOST_OF_PROJECT or moment - heard.told_at[0] >= OF_PROJECT_SECONDS:
        return False
    if moment - heard.held_back_at >= OF_PROJECT_SECONDS:
        heard.held_back_at = moment
        _log.warning("notifications_held_back", project=project.id)
    return True


def _sorted(turns: Iterable[TurnState], heard: _Heard) -> tuple[dict[str, str], dict[str, str]]:
    """Return the sessions of turns that have ended since the last look, and of those that ask."""
    asking = {one.turn_id: one.session_id for one in turns if one.state == "asks"}
    known = {one.turn_id for one in turns}
    ended = {one.turn_id: one.session_id for one in turns if one.state == "ended"}
    # An agent that was lost with its turns knows nothing of late when it is back.
    lost = {turn: session for turn, session in heard.running.items() if turn not in known}
    over = heard.over
    return {turn: of for turn, of in (ended | lost).items() if turn not in over}, asking


def _session(told: Any) -> Session:
    return shaped(Session, told)


def _turns(told: Any) -> list[Turn]:
    return [shaped(Turn, one) for one in told["turns"][:_TURNS]]


def _notice(project: Project, session: Session, turn: Turn, clock: Clock) -> Notice | None:
    """Return what is to be told of a turn; ``None``: nothing, as of one that a person ended."""
    question = turn.question
    if question is not None:
        what, about, at = What.ASKS, question.confirmation_id, clock.now()
    elif turn.status in _ENDS:
        what, about, at = _ENDS[turn.status], turn.turn_id, _ended_at(turn, clock.now())
    else:
        return None
    try:
        path_segment(turn.turn_id, "turn")
        path_segment(about, "confirmation")
    except InvalidRequestError:
        return None
    return Notice(
        what,
        notice_id(project.id, about),
        at,
        project,
        session_id=session.session_id,
        session=session.title,
        turn_id=turn.turn_id,
        confirmation_id=None if question is None else about,
    )


_ENDS = {"completed": What.ENDED, "error": What.FAILED}


def _ended_at(turn: Turn, now: datetime) -> datetime:
    try:
        return min(parse_rfc3339(turn.ended_at or ""), now)
    except ValueError:
        return now
