"""The live side of a page: one stream per page that carries the pieces that have changed.

A frame's data is ``{"type": "html", "content": {"html": ...}}``: elements with ids, each of which
takes the place of the one that the page has, or ``{"type": "gone"}``, after which nothing comes.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from greylag.common import sse
from greylag.domain.errors import ProjectNotFoundError
from greylag.domain.project import Event, Project
from greylag.web.api.deps import Call, ProjectCall
from greylag.web.dashboard.lists import ProjectList, Window, read_list
from greylag.web.dashboard.pages import render
from greylag.web.dashboard.views import ProjectView, event_view, project_view

GATHER_SECONDS = 0.15
"""Changes come in bursts: one look serves all that come within this time."""
RECHECK_SECONDS = 60.0


async def list_frames(call: Call, user_id: str, window: Window) -> AsyncIterator[bytes]:
    """Yield the list as it is now, then what changes in it, until closed.

    Raises what ``Projects.page`` raises.
    """
    with call.use_cases.store.subscribe() as news:
        shown: ProjectList | None = None
        while True:
            current = await read_list(call, user_id, window)
            html = _list_changes(shown, current)
            if html:
                yield _html_frame(html)
            shown = current
            if await news.changed(RECHECK_SECONDS):
                await asyncio.sleep(GATHER_SECONDS)


def _list_changes(shown: ProjectList | None, current: ProjectList) -> str:
    """Return the cards that differ; the whole list when it is not made of the same projects."""
    if shown is None or _frame_of(shown) != _frame_of(current):
        return render("fragments/list.html", list=current, oob=True)
    pairs = zip(shown.projects, current.projects, strict=True)
    changed = [after for before, after in pairs if before != after]
    return "".join(render("fragments/card.html", project=one, oob=True) for one in changed)


def _frame_of(shown: ProjectList) -> tuple[object, ...]:
    keys = tuple(project.key for project in shown.projects)
    return keys, shown.more_url, shown.older_url


async def project_frames(call: ProjectCall, project: Project, after: int) -> AsyncIterator[bytes]:
    """Yield the header as it is now and the log's events after number ``after``, then what changes.

    Ends once the project is gone.
    """
    shown: ProjectView | None = None
    with call.use_cases.store.subscribe(project.ref) as news:
        while True:
            try:
                current, events = await _look(call, after)
            except ProjectNotFoundError:
                break
            if current.id != project.id:
                break
            view = project_view(current, datetime.now(UTC))
            if events or view != shown:
                after = events[-1].seq if events else after
                yield _html_frame(_project_changes(view, events), after)
                shown = view
            if not events:
                await news.changed(RECHECK_SECONDS)
    yield sse.encode({"type": "gone", "content": {}})


async def _look(call: ProjectCall, after: int) -> tuple[Project, Sequence[Event]]:
    # The events are read last: those that led to this record are among them.
    current = await call.use_cases.projects.get(*call.at)
    return current, await call.use_cases.projects.event_page(*call.at, after)


def _project_changes(view: ProjectView, events: Sequence[Event]) -> str:
    now = datetime.now(UTC)
    lines = [event_view(event, now) for event in events]
    return render("fragments/project_changes.html", project=view, events=lines)


def _html_frame(html: str, seq: int | None = None) -> bytes:
    number = None if seq is None else str(seq)
    return sse.encode({"type": "html", "content": {"html": html}}, id=number)
