"""The pages of a user: the list of projects, searched, ordered and live, and a new one."""

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from greylag.domain.errors import ConfigError, InvalidRequestError, ProjectExistsError
from greylag.domain.project import ProjectRef
from greylag.domain.users import Action, User
from greylag.services.projects import NewProject
from greylag.web.addresses import project_url, root_path, user_url
from greylag.web.dashboard.accounts import look_needed
from greylag.web.dashboard.conversations import sent_message, start_turn
from greylag.web.dashboard.pages import (
    FORM_REFUSALS,
    USER_PAGE,
    ProjectForm,
    form_field,
    form_page,
    html_frame,
    lead,
    render,
    respond_to,
    see,
    words_of,
)
from greylag.web.dashboard.rail import (
    MOST_READ,
    STATES,
    ProjectRow,
    rail_frames,
    read_rail,
    read_rows,
    row_frames,
)
from greylag.web.deps import CallDep, RequestContext, UserCallDep, pages_router
from greylag.web.stream import closing

STEP = 50
USER_COOKIE = "greylag_user"
ORDERS = {"active": "Last active", "name": "Name", "created": "Newest"}
_MOST_WORDS = 200
_MOST_NAME = 48
_YEAR_SECONDS = 365 * 24 * 3600

router = pages_router()


@router.get("/")
async def home(request: Request, call: CallDep) -> Response:
    """Lead to the user whose projects were looked at last, or to the first."""
    known = [user.id for user in await call.use_cases.gate.visible(call.principal)]
    if not known:
        raise ConfigError("There are no users.")
    last = unquote(request.cookies.get(USER_COOKIE, ""))
    look, own = call.principal.look, call.principal.user_id
    if look is not None:
        last = look.user_id
    elif call.principal.is_admin and own is not None:
        last = own
    return see(user_url(last if last in known else known[0]))


@router.get(USER_PAGE)
async def list_projects(request: Request, call: UserCallDep) -> Response:
    """Show a user's projects; htmx gets the list alone."""
    if (asked := await look_needed(request, call, call.user_id)) is not None:
        return asked
    gate, rows = call.use_cases.gate, await read_rows(call)
    page = respond_to(
        request,
        "users.html",
        "fragments/list.html",
        oob=False,
        site=call.site,
        rail=await read_rail(call, rows=rows),
        list=make_list(call.user_id, parse_window(request.query_params), rows),
        key=secrets.token_hex(16),
        user=await gate.authorize(call.principal, Action.PROJECTS_LIST, call.user_id),
    )
    page.set_cookie(
        USER_COOKIE,
        quote(call.user_id, safe=""),
        max_age=_YEAR_SECONDS,
        path=root_path() or "/",
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return page


@router.get(USER_PAGE + "/live")
async def follow_list(request: Request, call: UserCallDep, rail: str = "") -> Response:
    """Stream what changes in the list that the address asks for, and in the rail beside it."""
    await call.use_cases.gate.authorize(call.principal, Action.PROJECTS_LIST, call.user_id)
    news = _ListChanges(call.user_id, parse_window(request.query_params))
    return call.streams.events(*call.at, closing(rail_frames(call, rail, more=news.look)))


@router.get(USER_PAGE + "/new-project")
async def new_project(request: Request, call: UserCallDep) -> Response:
    """Show an empty form."""
    owner = await _owner(call)
    return await _form_page(request, call, owner, ProjectForm(key=secrets.token_hex(16)))


@router.post(USER_PAGE + "/new-project")
async def create_project(request: Request, call: UserCallDep) -> Response:
    """Create a project and lead to it; the form comes back with what is wrong in it."""
    owner = await _owner(call)
    form = ProjectForm.read(await request.form())
    try:
        new = NewProject(form.name, form.project_id or None, form.metadata_object(), form.source())
        made = await call.use_cases.projects.create(call.principal, owner.id, new, form.key or None)
    except (*FORM_REFUSALS, ProjectExistsError) as error:
        return await _form_page(request, call, owner, form, words_of(error))
    return lead(request, _with_first(made.project.ref, form.key))


@router.post(USER_PAGE + "/start")
async def start_project(request: Request, call: UserCallDep) -> Response:
    """Create a project for a first message, or of a git address, named by it, and lead there.

    A page with scripts keeps the message and sends it from there (``first`` is then set).
    """
    owner = await _owner(call)
    sent = await request.form()
    message, form = form_field(sent, "message"), ProjectForm.read(sent)
    try:
        form = replace(form, name=first_name(message, form.git_url))
        new = NewProject(form.name, source=form.source())
        made = await call.use_cases.projects.create(call.principal, owner.id, new, form.key or None)
    except FORM_REFUSALS as error:
        return await _form_page(request, call, owner, form, words_of(error))
    ref, session = made.project.ref, None
    if form_field(sent, "first"):
        return see(_with_first(ref, form.key))
    if message.strip():
        session = await start_turn(call, ref, sent_message(sent))
    return see(project_url(ref, session))


def _with_first(ref: ProjectRef, key: str) -> str:
    """Return the address of a new project's page, which sends the first message that the browser
    has kept under this key, if there is one.
    """
    return f"{project_url(ref)}?{urlencode({'first': key})}" if key else project_url(ref)


def first_name(message: str, git_url: str) -> str:
    """Return a project's name: the beginning of its first message, else its repository's name.

    Raises:
        InvalidRequestError: there is neither.
    """
    words = " ".join(message.split())
    if not words:
        words = git_url.strip().rstrip("/").rpartition("/")[2].removesuffix(".git")
    if not words:
        raise InvalidRequestError("Say what the agent shall do, or name a Git repository.")
    if len(words) <= _MOST_NAME:
        return words
    whole, _, _ = words[: _MOST_NAME + 1].rpartition(" ")
    return whole or words[:_MOST_NAME]


async def _owner(call: RequestContext) -> User:
    gate = call.use_cases.gate
    return await gate.authorize(call.principal, Action.PROJECTS_WRITE, call.user_id)


async def _form_page(
    request: Request, call: RequestContext, owner: User, form: ProjectForm, error: str | None = None
) -> Response:
    rail = await read_rail(call)
    values = {"site": call.site, "rail": rail, "user": owner, "project": None, "back": "list"}
    return form_page(request, form, error, **values)


# Which projects a page shows, and how it goes on.


@dataclass(frozen=True, slots=True)
class Window:
    """What an address asks to see: the first ``show`` of the projects in a state, of which name
    or id hold all ``words``, in an order.
    """

    state: str | None = None
    words: str = ""
    order: str = "active"
    show: int = STEP

    def url(self, user_id: str, path: str = "", **more: str) -> str:
        """Return the address that asks for this window."""
        query = {
            "state": self.state,
            "q": self.words or None,
            "order": self.order if self.order != "active" else None,
            "show": self.show if self.show != STEP else None,
        }
        return user_url(user_id, path, **query, **more)

    def holds(self, row: ProjectRow) -> bool:
        """Tell whether a project is among what is searched for, in whatever state."""
        text = f"{row.project.name}\n{row.project.project_id}".casefold()
        return all(word in text for word in self.words.casefold().split())

    def ordered(self, rows: Sequence[ProjectRow]) -> list[ProjectRow]:
        """Return rows, which come last active first, as they are to stand."""
        if self.order == "name":
            return sorted(rows, key=lambda row: (row.project.name.casefold(), row.project.key))
        if self.order == "created":
            return sorted(rows, key=lambda row: row.project.created.at, reverse=True)
        return list(rows)


@dataclass(frozen=True, slots=True)
class Choice:
    """A link that chooses among the projects: by state, with how many there are, or their order."""

    label: str
    url: str
    chosen: bool
    count: int = 0


@dataclass(frozen=True, slots=True)
class ProjectList:
    """The projects of a window, and the addresses of others."""

    user_id: str
    window: Window
    rows: tuple[ProjectRow, ...]
    total: int
    states: tuple[Choice, ...]
    orders: tuple[Choice, ...]
    more_url: str | None
    newest: int | None
    """Of how many, the newest, these are, where the user may have more."""

    def live_url(self, digest: str) -> str:
        """Where the changes of exactly these projects stream from, and of a rail of this look."""
        return self.window.url(self.user_id, "/live", rail=digest)


def parse_window(query: Mapping[str, str]) -> Window:
    """Read a window from an address.

    Raises:
        InvalidRequestError: it asks for what cannot be.
    """
    state, order = query.get("state") or None, query.get("order") or "active"
    if state not in {None, *STATES}:
        raise InvalidRequestError(f"state must be one of {', '.join(STATES)}.")
    if order not in ORDERS:
        raise InvalidRequestError(f"order must be one of {', '.join(ORDERS)}.")
    shown = query.get("show", str(STEP))
    digits = shown.isascii() and shown.isdecimal() and len(shown) < 10  # noqa: PLR2004 - no more are needed
    if not digits or not 1 <= int(shown) <= MOST_READ:
        raise InvalidRequestError(f"show must be a number from 1 to {MOST_READ}.")
    return Window(state, query.get("q", "").strip()[:_MOST_WORDS], order, int(shown))


def make_list(user_id: str, window: Window, rows: Sequence[ProjectRow]) -> ProjectList:
    """Return what a window shows of a user's projects, which come last active first."""
    found = [row for row in rows if window.holds(row)]
    there = Counter(row.state for row in found)
    fitting = window.ordered([row for row in found if window.state in {None, row.state}])
    left = len(fitting) > window.show
    more = replace(window, show=min(window.show + STEP, MOST_READ))
    states = [_by_state(user_id, window, None, "All", len(found))]
    for state, words in STATES.items():
        if there[state] or state == window.state:
            states.append(_by_state(user_id, window, state, words.capitalize(), there[state]))
    return ProjectList(
        user_id=user_id,
        window=window,
        rows=tuple(fitting[: window.show]),
        total=len(fitting),
        states=tuple(states),
        orders=tuple(
            Choice(label, replace(window, order=order).url(user_id), order == window.order)
            for order, label in ORDERS.items()
        ),
        more_url=more.url(user_id) if left else None,
        newest=MOST_READ if len(rows) >= MOST_READ else None,
    )


def _by_state(user_id: str, window: Window, state: str | None, label: str, count: int) -> Choice:
    url = replace(window, state=state, show=STEP).url(user_id)
    return Choice(label, url, state == window.state, count)


# The live side of the list: the pieces of it that have changed.


class _ListChanges:
    """What of an open list is to be replaced, look by look."""

    def __init__(self, user_id: str, window: Window) -> None:
        self._user_id = user_id
        self._window = window
        self._shown: ProjectList | None = None

    def look(self, rows: Sequence[ProjectRow]) -> list[bytes]:
        """Return frames for the rows that differ; for the whole list where it is made of others."""
        before = self._shown
        now = make_list(self._user_id, self._window, rows)
        self._shown = now
        if before is None or _frame_of(before) != _frame_of(now):
            key = secrets.token_hex(16)
            return [html_frame(render("fragments/list.html", list=now, oob=True, key=key))]
        frames = row_frames(before.rows, now.rows, "row", "fragments/project_row.html")
        if before.states != now.states:
            frames.append(html_frame(render("fragments/states.html", list=now, oob=True)))
        return frames


def _frame_of(shown: ProjectList) -> tuple[object, ...]:
    keys = frozenset(row.project.key for row in shown.rows)
    return keys, shown.total, shown.more_url
