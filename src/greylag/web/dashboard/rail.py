"""The rail of every page of a user: their projects by last activity, with what goes on in each, and
the sessions of the one that is open; live, in the stream that the page has anyway.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from greylag.common import agent_api, sse
from greylag.common.agent_api import Session
from greylag.common.concurrent import until_one_ends
from greylag.domain.errors import (
    AgentUnreachableError,
    ForbiddenError,
    GreylagError,
    NotActiveError,
)
from greylag.domain.project import Project, Status
from greylag.domain.transcript import last_used
from greylag.domain.users import Action, User
from greylag.ports import PageQuery, Subscription
from greylag.services.activity import AgentActivity, Watch
from greylag.web.api.relay import ask
from greylag.web.dashboard.pages import (
    Moment,
    ProjectView,
    html_frame,
    is_segment,
    moment,
    project_view,
    render,
)
from greylag.web.deps import RequestContext

USERS_OFFERED = 20
MOST_ROWS = 300
MOST_READ = 2000
"""How many projects of a user the rail lists, and how many are looked through for them."""
SESSIONS_SHOWN = 200
GATHER_SECONDS = 0.15
"""Changes come in bursts: one look serves all that come within this time."""
RECHECK_SECONDS = 60.0
PATIENCE_SECONDS = 4.0
"""How long a page waits for an agent."""
AGAIN_SECONDS = 30.0
"""How long an open page asks nothing of an agent that did not tell its sessions, whatever else
there is news of.
"""
_AT_ONCE = 500
_ASLEEP = "asleep"
STATES = {
    "asks": "needs you",
    "working": "working",
    "ready": "active",
    "moving": "changing",
    "asleep": "inactive",
    "failed": "error",
}
"""What a project may be about, with the words for it."""


@dataclass(frozen=True, slots=True)
class ProjectRow:
    """A project as a row of the rail or of the list shows it. Two are equal when they look alike.

    ``state`` is one of ``STATES``; ``asks`` counts the questions that wait for an answer.
    """

    project: ProjectView
    state: str
    words: str
    asks: int
    active_at: Moment


@dataclass(frozen=True, slots=True)
class Rail:
    """All that the rail shows; ``sessions`` are those of the project that is ``open`` which were
    used last, and ``sessions_left`` how many others there are; ``None`` where they cannot be told.
    """

    user: User
    users: Sequence[User]
    rows: tuple[ProjectRow, ...]
    total: int
    open: ProjectView | None = None
    sessions: tuple[Session, ...] | None = None
    sessions_left: int = 0
    selected: str | None = None

    @property
    def digest(self) -> str:
        """What tells this look of the list from another."""
        shown = repr((self.rows, self.total, self.sessions))
        return hashlib.sha256(shown.encode(errors="replace")).hexdigest()[:16]


async def read_projects(call: RequestContext) -> list[Project]:
    """Return the user's projects, the newest ``MOST_READ`` where there are more."""
    found: list[Project] = []
    cursor = None
    while len(found) < MOST_READ:
        asked = PageQuery(limit=_AT_ONCE, cursor=cursor)
        page = await call.use_cases.projects.page(call.principal, call.user_id, asked)
        found += page.projects
        cursor = page.cursor
        if cursor is None:
            break
    return found


def project_rows(projects: Sequence[Project], watch: Watch) -> list[ProjectRow]:
    """Return the projects as rows, the last active first."""
    return _Rows(watch).of(projects)


class _Rows:
    """The rows of a user's projects, look by look; those that are as they were are not made again:
    of a long list with an open page, all but one.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._made: dict[str, tuple[tuple[Project, AgentActivity | None], ProjectRow]] = {}

    def of(self, projects: Sequence[Project]) -> list[ProjectRow]:
        """Return the projects as rows, the last active first."""
        before, self._made = self._made, {}
        for project in projects:
            seen = project, self._watch.of(project)
            made = before.get(project.id)
            self._made[project.id] = (
                made if made is not None and made[0] == seen else (seen, _row(*seen))
            )
        rows = [row for _, row in self._made.values()]
        return sorted(rows, key=lambda row: (row.active_at.at, row.project.key), reverse=True)


def _row(project: Project, activity: AgentActivity | None) -> ProjectRow:
    view = project_view(project)
    state = _state(project, view, activity)
    asks = activity.count("asks") if activity is not None and state == "asks" else 0
    times = [project.created_at, project.last_activated_at, project.last_deactivated_at]
    if activity is not None and activity.last_at is not None:
        times.append(activity.last_at)
    at = moment(max(one for one in times if one is not None))
    words = view.label.lower() if state == "moving" else STATES[state]
    return ProjectRow(view, state, words, asks, at)


def _state(project: Project, view: ProjectView, activity: AgentActivity | None) -> str:
    if project.status is Status.ERROR:
        return "failed"
    if view.moving:
        return "moving"
    if project.status is not Status.ACTIVE:
        return "asleep"
    if activity is None:
        return "ready"
    return next((one for one in ("asks", "working") if activity.count(one)), "ready")


async def read_rows(call: RequestContext) -> list[ProjectRow]:
    """Return the user's projects as rows, as they are now, the last active first."""
    with call.use_cases.activities.watch() as watch:
        return project_rows(await read_projects(call), watch)


async def read_rail(
    call: RequestContext,
    *,
    rows: Sequence[ProjectRow] | None = None,
    shown: ProjectView | None = None,
    sessions: Sequence[Session] | None = None,
    selected: str | None = None,
) -> Rail:
    """Return the rail of a page as it is now.

    Args:
        call: whose page it is.
        rows: the user's projects, where they have been read for the page already.
        shown: the project that is open, if one is.
        sessions: its sessions.
        selected: the session that is open.
    """
    rows = await read_rows(call) if rows is None else rows
    gate = call.use_cases.gate
    here = [row for row in rows[MOST_ROWS:] if shown and row.project.key == shown.key]
    return Rail(
        user=await gate.authorize(call.principal, Action.PROJECTS_LIST, call.user_id),
        users=(await gate.visible(call.principal))[:USERS_OFFERED],
        rows=(*rows[:MOST_ROWS], *here),
        total=len(rows),
        open=shown,
        sessions=None if sessions is None else _shown(sessions),
        sessions_left=max(0, len(sessions or ()) - SESSIONS_SHOWN),
        selected=selected,
    )


def _shown(sessions: Sequence[Session]) -> tuple[Session, ...]:
    return tuple(last_used(sessions, SESSIONS_SHOWN, lambda one: one.updated_at))


async def read_sessions(call: RequestContext) -> list[Session]:
    """Return the sessions of the call's project that can stand in an address, newest first.

    Raises:
        GreylagError: they cannot be told now.
    """
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            listed = (await ask(call, agent_api.LIST_SESSIONS)).sessions
    except TimeoutError:
        raise AgentUnreachableError("The agent did not answer in time.") from None
    return [one for one in listed if is_segment(one.session_id)]


More = Callable[[Sequence[ProjectRow]], Sequence[bytes]]


def _nothing(_rows: Sequence[ProjectRow]) -> Sequence[bytes]:
    return ()


# The live side: what changes in the rail, and which turns of the open project stand how.


async def rail_frames(
    call: RequestContext, known: str, shown: ProjectView | None = None, more: More = _nothing
) -> AsyncGenerator[bytes]:
    """Yield what differs from the rail of the digest ``known``, then what changes, until closed.

    Which turns run, none at first, is in frames of the type ``doing``. Of the project that is
    ``shown`` there are all of its turns too, in frames of the type ``turns``.
    ``more`` returns frames for what else of the page has changed, at each look at the
    projects, which it is given as rows.
    """
    before: Rail | None = None
    doing: dict[str, str] = {}
    turns: list[dict[str, str]] | None = None
    sessions = _OpenSessions(call)
    news_of, looks = call.use_cases.projects.changes, call.use_cases.activities.watch
    with news_of(call.user_id) as news, looks() as watch:
        made = _Rows(watch)
        while True:
            projects = await read_projects(call)
            watch.follow(projects)
            # As the page has them: what agents tell from now on is news, and no whole list again.
            rows = made.of(projects)
            if (now := _doing(projects, watch)) != doing:
                doing = now
                yield sse.encode({"type": "doing", "content": {"turns": doing}})
            here = next((one for one in projects if shown and one.id == shown.key), None)
            runs = here is not None and here.status is Status.ACTIVE
            activity = watch.of(here) if here and runs else None
            await sessions.look(here, activity.revision if activity is not None else "")
            current = turns
            if activity is not None and sessions.known is not None:
                current = [asdict(one) for one in activity.turns]
            elif activity is None and (turns or (here and not runs)):
                current = []  # whatever the page, which may have been here before, shows of them
            if current != turns:
                turns = current
                yield sse.encode({"type": "turns", "content": {"turns": turns}})
            shown = project_view(here) if here else shown
            rail = await read_rail(call, rows=rows, shown=shown, sessions=sessions.known)
            news_of_rail = [] if before is None and rail.digest == known else changed(before, rail)
            for frame in [*news_of_rail, *more(rows)]:
                yield frame
            before = rail
            await _either(news, watch)
            await asyncio.sleep(GATHER_SECONDS)


def _doing(projects: Sequence[Project], watch: Watch) -> dict[str, str]:
    known = [watch.of(one) for one in projects if one.status is Status.ACTIVE]
    turns = [turn for one in known if one is not None for turn in one.turns]
    return {turn.turn_id: turn.state for turn in turns if turn.state != "ended"}


class _OpenSessions:
    """The sessions of the project that is open, asked for when others may be there; ``known`` is
    ``None`` where they cannot be told.
    """

    def __init__(
        self, call: RequestContext, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.known: Sequence[Session] | None = None
        self._call = call
        self._monotonic = monotonic
        self._revision: str | None = None
        self._failed: str | None = None
        self._not_before = 0.0

    async def look(self, project: Project | None, doing: str) -> None:
        """Look at them as the project stands, whose agent is at the revision ``doing`` (empty:
        that is not known). What could not be told is asked for again at the first look after
        ``AGAIN_SECONDS``, or where the agent is at another revision.
        """
        if project is None:
            self.known = self._revision = None
        elif project.status is not Status.ACTIVE:
            # What is kept of them does not change while it sleeps.
            if self._revision != _ASLEEP:
                self.known = None  # where there is no copy
                await self._ask(_ASLEEP)
        elif self._revision in {None, _ASLEEP} or doing not in {"", self._revision}:
            await self._ask(doing)

    async def _ask(self, revision: str) -> None:
        # All else that the page shows waits for this, for long where the agent hangs.
        if revision == self._failed and self._monotonic() < self._not_before:
            return
        self._failed = None
        try:
            self.known = await read_sessions(self._call)
        except (ForbiddenError, NotActiveError):
            pass  # it would be the same again, and each time is audited
        except GreylagError:
            self._revision, self._failed = None, revision
            self._not_before = self._monotonic() + AGAIN_SECONDS
            return
        self._revision = revision


async def _either(news: Subscription, watch: Watch) -> None:
    """Return when there is news of the records or of what agents do, or after a while."""
    await until_one_ends(
        rail_records=news.changed(RECHECK_SECONDS), rail_activity=watch.news.wait()
    )
    watch.news.clear()


def changed(before: Rail | None, now: Rail) -> list[bytes]:
    """Return frames for the pieces that differ: rows, the sessions, or the whole list."""
    if before is None or before.total != now.total or not same_keys(before.rows, now.rows):
        return [html_frame(render("fragments/rail_projects.html", rail=now, oob=True))]
    frames = row_frames(before.rows, now.rows, "rail", "fragments/rail_row.html", rail=now)
    if (before.sessions, _is_awake(before)) != (now.sessions, _is_awake(now)):
        frames.append(html_frame(render("fragments/sessions.html", rail=now, oob=True)))
    return frames


def _is_awake(rail: Rail) -> bool:
    return rail.open is not None and rail.open.is_active


def same_keys(before: Sequence[ProjectRow], now: Sequence[ProjectRow]) -> bool:
    """Tell whether these are rows of the same projects, in whatever order."""
    return {row.project.key for row in before} == {row.project.key for row in now}


def row_frames(
    before: Sequence[ProjectRow], now: Sequence[ProjectRow], name: str, template: str, **more: Any
) -> list[bytes]:
    """Return frames for the rows that differ, and for their order where that does.

    Args:
        before: the rows that the page has.
        now: rows of the same projects.
        name: what the ids of the rows' elements begin with.
        template: a row's.
        more: what it is given besides.
    """
    known = {row.project.key: row for row in before}
    differ = [row for row in now if row != known[row.project.key]]
    html = "".join(render(template, row=row, oob=True, **more) for row in differ)
    frames = [html_frame(html)] if html else []
    order = [f"{name}-{row.project.key}" for row in now]
    if order != [f"{name}-{row.project.key}" for row in before]:
        frames.append(sse.encode({"type": "order", "content": {"ids": order}}))
    return frames
