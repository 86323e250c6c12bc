"""Users' accounts, and for administrators the list of all users.

An account's page says who it is, the browsers they have signed in with, and their tokens; an
administrator sets there what they may have. All users are searched and added in a list, and an
administrator switches to another user by a form. Without a reason they see projects and logs; with
one, which is logged, conversations and files too. A bar on every page says at whose projects they
look, and ends it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlencode

from fastapi import Query
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from greylag.domain.errors import InvalidRequestError
from greylag.domain.names import slug
from greylag.domain.project import ProjectRef
from greylag.domain.users import ApiToken, NotificationTarget, Role, Scope, Session, User
from greylag.ports import PageQuery
from greylag.services.access import MAX_REASON_LENGTH
from greylag.services.tokens import DAYS, MAX_PROJECTS
from greylag.web.addresses import address, user_url
from greylag.web.auth import own_path
from greylag.web.dashboard.pages import (
    FORM_REFUSALS,
    USER_PAGE,
    form_field,
    lead,
    see,
    words_of,
)
from greylag.web.deps import CallDep, RequestContext, UserCallDep, pages_router
from greylag.web.schemas import NewTokenIn, NewUserIn, UserEditIn

ACCOUNT = "/account"
DIRECTORY = "/users"
LOOK = "/look"
USERS_SHOWN = 50
_LONGEST_WORDS = 200
ACCOUNT_PAGE = USER_PAGE + ACCOUNT
TOKENS_SHOWN = 500
_SCOPES = {
    Scope.PROJECTS_READ: "See projects and their logs",
    Scope.PROJECTS_WRITE: "Make, change, activate and delete projects",
    Scope.MESSAGES: "Talk to agents",
    Scope.FILES: "Read and write files, run commands",
    Scope.ADMIN: "See and change this account; of an administrator, all users",
}
_Body = TypeVar("_Body", bound=BaseModel)

router = pages_router()


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountView:
    """An account as its page shows it.

    Attributes:
        user: whose; ``None``: the operator's, who is no user.
        own: whether they look at it themselves.
        manages: whether an administrator does, who may change it.
        makes_tokens: whether they may make tokens of it.
        told: who is told of turns, where that can be said here.
        notifies: whether they may turn notifications on.
        targets: where the user is told; ``public_key`` is what browsers are to let in for that.
        via: what the request comes by.
    """

    user: User | None = None
    own: bool = True
    manages: bool = False
    makes_tokens: bool = False
    via: str
    told: User | None = None
    notifies: bool = False
    public_key: str | None = None
    targets: Sequence[NotificationTarget] = ()
    sessions: Sequence[Session] = ()
    tokens: Sequence[ApiToken]

    @property
    def api(self) -> str:
        """Where a browser says that it is to be told."""
        user_id = self.told.id if self.told else ""
        return address(f"/api/users/{quote(user_id, safe='')}/notifications")

    @property
    def others(self) -> bool:
        """Whether there are sessions beside the one by which the page is seen."""
        return any(not self.is_current(one) for one in self.sessions)

    @property
    def shown(self) -> Sequence[ApiToken]:
        """The tokens that the page has: the newest."""
        return self.tokens[:TOKENS_SHOWN]

    def is_current(self, session: Session) -> bool:
        """Tell whether the page is seen by this session."""
        return self.via == f"session {session.id}"


@router.get(ACCOUNT)
async def own_account(call: CallDep) -> Response:
    """Lead to the account of whoever asks; the operator's shows the tokens of all users."""
    if call.principal.user_id is not None:
        return see(user_url(call.principal.user_id, ACCOUNT))
    tokens = await call.use_cases.tokens.listed(call.principal, None)
    users = await call.use_cases.people.users()
    # On a machine of one's own the operator is the one user too.
    told = await _told(call, users[0]) if len(users) == 1 else {}
    view = AccountView(via=call.principal.via, tokens=tokens, **told)
    return _page(call, view)


@router.get(ACCOUNT_PAGE)
async def show_account(call: UserCallDep) -> Response:
    """Show an account to its user, or to an administrator."""
    return _page(call, await _read(call))


@router.post(ACCOUNT_PAGE)
async def edit_account(request: Request, call: UserCallDep) -> Response:
    """Change a user; the form comes back with what is wrong in it."""
    form = await request.form()
    given = {name: form_field(form, name) or None for name in ("display_name", "role", "email")}
    try:
        edit = parsed(UserEditIn, given | {"limits": limits_of(form)}).edit()
        await call.use_cases.accounts.edit(call.principal, call.user_id, edit)
    except FORM_REFUSALS as error:
        return _page(call, await _read(call), form, words_of(error))
    return see(user_url(call.user_id, ACCOUNT))


@router.post(ACCOUNT_PAGE + "/disable")
async def disable_account(request: Request, call: UserCallDep) -> Response:
    """Let a user in no more, and stop what runs of theirs."""
    return await _enable(request, call, enabled=False)


@router.post(ACCOUNT_PAGE + "/enable")
async def enable_account(request: Request, call: UserCallDep) -> Response:
    """Let a user in again."""
    return await _enable(request, call, enabled=True)


@router.post(ACCOUNT_PAGE + "/remove")
async def remove_account(request: Request, call: UserCallDep) -> Response:
    """Remove a user who has no projects."""
    await call.use_cases.accounts.remove(call.principal, call.user_id)
    return lead(request, address("/users"))


@router.post(ACCOUNT_PAGE + "/sessions/end-others")
async def end_other_sessions(request: Request, call: UserCallDep) -> Response:
    """Sign all browsers out, but the one that asks for it."""
    await call.use_cases.accounts.end_other_sessions(call.principal, call.user_id)
    return lead(request, user_url(call.user_id, ACCOUNT))


@router.post(ACCOUNT_PAGE + "/sessions/{login}/end")
async def end_session(request: Request, call: UserCallDep, login: str) -> Response:
    """Sign a browser out."""
    await call.use_cases.accounts.end_session(call.principal, call.user_id, login)
    return lead(request, user_url(call.user_id, ACCOUNT))


@router.post(ACCOUNT_PAGE + "/tokens/{token}/revoke")
async def revoke_token(request: Request, call: UserCallDep, token: str) -> Response:
    """End a token."""
    await call.use_cases.tokens.revoke(call.principal, token)
    own = call.principal.user_id in {None, call.user_id}
    return lead(request, address(ACCOUNT) if own else user_url(call.user_id, ACCOUNT))


@router.get(ACCOUNT_PAGE + "/new-token")
async def new_token(call: UserCallDep) -> Response:
    """Show the form for a new token."""
    days = min(DAYS, call.use_cases.tokens.longest_days)
    return await _token_form(call, FormData({"expires_in_days": f"{days:g}"}))


@router.post(ACCOUNT_PAGE + "/new-token")
async def make_token(request: Request, call: UserCallDep) -> Response:
    """Make a token and show it, this once; the form comes back with what is wrong in it."""
    form = await request.form()
    # Whoever chose projects and left it at all of them wants no more than those.
    projects = form.getlist("projects") or ([] if form_field(form, "all") == "no" else None)
    given: dict[str, Any] = {
        "name": form_field(form, "name"),
        "scopes": form.getlist("scopes"),
        "projects": projects,
        "expires_in_days": form_field(form, "expires_in_days") or None,
        "user": call.user_id,
    }
    if not given["scopes"]:
        return await _token_form(call, form, "Choose what the token may do.")
    try:
        new = parsed(NewTokenIn, given).token()
        text, token = await call.use_cases.tokens.make(call.principal, new)
    except FORM_REFUSALS as error:
        return await _token_form(call, form, words_of(error))
    page = call.page("token_made.html", user_id=call.user_id, token=token, text=text)
    page.headers["cache-control"] = "no-store"
    return page


def parsed(model: type[_Body], given: dict[str, Any]) -> _Body:
    """Return what a form sent as the API's model of the same request.

    Raises:
        InvalidRequestError: a field is not of the form that it must have.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        words = str(first["msg"]).removeprefix("Value error, ")
        field = " ".join(str(part) for part in first["loc"]).replace("_", " ")
        raise InvalidRequestError(f"{field}: {words[:1].lower()}{words[1:]}.") from error


def limits_of(form: FormData) -> dict[str, int | str | list[str] | None]:
    """Return the limits that a form sent; an empty field is none."""
    given = {name: form_field(form, name).strip() for name in ("projects", "active")}
    names = [one.strip() for one in form_field(form, "templates").split(",")]
    return {
        **{name: int(text) if _is_number(text) else text or None for name, text in given.items()},
        "templates": [name for name in names if name] or None,
    }


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20  # noqa: PLR2004 - of 64 bits


async def _enable(request: Request, call: RequestContext, *, enabled: bool) -> Response:
    edit = UserEditIn(disabled=not enabled).edit()
    await call.use_cases.accounts.edit(call.principal, call.user_id, edit)
    return lead(request, user_url(call.user_id, ACCOUNT))


async def _read(call: RequestContext) -> AccountView:
    principal, user_id = call.principal, call.user_id
    user = await call.use_cases.accounts.show(principal, user_id)
    sessions = await call.use_cases.accounts.sessions(principal, user_id)
    tokens = await call.use_cases.tokens.listed(principal, user_id)
    own = user_id == principal.user_id
    return AccountView(
        user=user,
        own=own,
        manages=principal.is_admin,
        makes_tokens=own or user.service or principal.user_id is None,
        via=principal.via,
        sessions=sessions,
        tokens=tokens,
        **await _told(call, user),
    )


async def _told(call: RequestContext, user: User) -> dict[str, Any]:
    """Return what the page shows of a user's notifications."""
    notifications = call.use_cases.notifications
    return {
        "told": user,
        "notifies": call.principal.user_id in {None, user.id},
        "public_key": await notifications.public_key(),
        "targets": await notifications.listed(call.principal, user.id),
    }


def _page(
    call: RequestContext, view: AccountView, form: FormData | None = None, error: str | None = None
) -> Response:
    service = call.use_cases.sign_in
    provider = service and service.provider.name
    return call.form("account.html", form, error, account=view, user=view.user, provider=provider)


async def _token_form(call: RequestContext, form: FormData, error: str | None = None) -> Response:
    user = await call.use_cases.accounts.show(call.principal, call.user_id)
    asked = PageQuery(limit=MAX_PROJECTS)
    page = await call.use_cases.projects.page(call.principal, call.user_id, asked)
    return call.form(
        "new_token.html",
        form,
        error,
        user=user,
        projects=page.projects,
        scopes=_SCOPES,
        longest=f"{call.use_cases.tokens.longest_days:g}",
    )


@dataclass(frozen=True, slots=True)
class UserList:
    """A page of the users whom a search finds; ``number`` counts from 1."""

    users: Sequence[User]
    total: int
    words: str
    number: int

    @property
    def earlier_url(self) -> str | None:
        """The address of the page before this one."""
        return self._url(self.number - 1) if self.number > 1 else None

    @property
    def later_url(self) -> str | None:
        """The address of the page after this one."""
        return self._url(self.number + 1) if self.number * USERS_SHOWN < self.total else None

    def _url(self, number: int) -> str:
        query = {"q": self.words} if self.words else {}
        return address(f"{DIRECTORY}?{urlencode(query | {'page': str(number)})}")


@router.get(DIRECTORY)
async def list_users(
    call: CallDep,
    q: Annotated[str, Query(max_length=_LONGEST_WORDS)] = "",
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    """Show the users in whose id, name or address every word of ``q`` is found."""
    found = _matching(await call.use_cases.accounts.all(call.principal), q)
    begin = (page - 1) * USERS_SHOWN
    shown = UserList(found[begin : begin + USERS_SHOWN], len(found), q, page)
    return call.page("directory.html", list=shown)


@router.get("/new-user")
async def new_user(call: CallDep) -> Response:
    """Show an empty form."""
    await call.use_cases.accounts.all(call.principal)
    return call.form("new_user.html", FormData(), None)


@router.post("/new-user")
async def make_user(request: Request, call: CallDep) -> Response:
    """Add a user and lead to their account; the form comes back with what is wrong in it."""
    form = await request.form()
    name = form_field(form, "display_name")
    given = {
        "id": form_field(form, "id").strip() or slug(name, 30),
        "display_name": name,
        "role": form_field(form, "role") or Role.USER,
        "email": form_field(form, "email").strip() or None,
        "service": form_field(form, "kind") == "service",
        "limits": limits_of(form),
    }
    try:
        new = parsed(NewUserIn, given).user()
        made = await call.use_cases.accounts.make(call.principal, new)
    except FORM_REFUSALS as error:
        return call.form("new_user.html", form, words_of(error))
    return see(user_url(made.id, ACCOUNT))


def _matching(users: Sequence[User], words: str) -> list[User]:
    wanted = words.casefold().split()
    return [
        user
        for user in users
        if all(
            word in f"{user.id}\n{user.display_name}\n{user.email or ''}".casefold()
            for word in wanted
        )
    ]


# Looking at another's projects.


async def look_needed(
    request: Request, call: RequestContext, what: str | ProjectRef
) -> Response | None:
    """Return what leads an administrator to the form by which they switch to another user, where
    they see ``what`` as such alone and have not switched; ``None``: they may see the page.
    """
    look = call.principal.look
    looks = look is not None and look.user_id == call.user_id
    if looks or not await call.use_cases.gate.is_foreign(call.principal, what):
        return None
    return lead(request, user_url(call.user_id, LOOK, next=call.site.path))


@router.get(USER_PAGE + LOOK)
async def ask_to_look(
    call: UserCallDep, wanted: Annotated[str, Query(alias="next")] = ""
) -> Response:
    """Ask an administrator whether they want to look at a user's projects, and why."""
    return await _look_form(call, wanted)


@router.post(USER_PAGE + LOOK)
async def begin_look(request: Request, call: UserCallDep) -> Response:
    """Switch to a user, and lead to the page that was wanted."""
    form = await request.form()
    wanted = form_field(form, "next")
    try:
        reason = " ".join(form_field(form, "reason").split())
        await call.use_cases.accounts.look_at(call.principal, call.user_id, reason)
    except InvalidRequestError as error:
        return await _look_form(call, wanted, error)
    return see(address(own_path(wanted)) if wanted else user_url(call.user_id))


@router.post(LOOK + "/end")
async def end_look(call: CallDep) -> Response:
    """Switch back."""
    await call.use_cases.accounts.end_look(call.principal)
    return see(address("/"))


async def _look_form(
    call: RequestContext, wanted: str, error: InvalidRequestError | None = None
) -> Response:
    user = await call.use_cases.accounts.show(call.principal, call.user_id)
    return call.page(
        "look.html",
        status=422 if error else 200,
        user=user,
        next=wanted,
        longest=MAX_REASON_LENGTH,
        error=error and error.info,
    )
