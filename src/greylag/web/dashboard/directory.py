"""All users, for administrators: searched, added, and looked at.

An administrator switches to another user by a form. Without a reason they see projects and logs;
with one, which is logged, conversations and files too. A bar on every page says at whose projects
they look, and ends it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from greylag.domain.errors import InvalidRequestError
from greylag.domain.names import slug
from greylag.domain.project import ProjectRef
from greylag.domain.users import Role, User
from greylag.services.access import MAX_REASON_LENGTH
from greylag.web.addresses import address, user_url
from greylag.web.auth import own_path
from greylag.web.dashboard.accounts import ACCOUNT, limits_of, parsed
from greylag.web.dashboard.pages import (
    FORM_REFUSALS,
    USER_PAGE,
    form_field,
    lead,
    respond,
    see,
    words_of,
)
from greylag.web.deps import CallDep, RequestContext, UserCallDep
from greylag.web.schemas import NewUserIn

DIRECTORY = "/users"
LOOK = "/look"
USERS_SHOWN = 50
_LONGEST_WORDS = 200

router = APIRouter(include_in_schema=False)


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
    return respond("directory.html", site=call.site, list=shown)


@router.get("/new-user")
async def new_user(call: CallDep) -> Response:
    """Show an empty form."""
    await call.use_cases.accounts.all(call.principal)
    return _user_form(call, FormData())


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
        return _user_form(call, form, words_of(error))
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


def _user_form(call: RequestContext, form: FormData, error: str | None = None) -> Response:
    return respond(
        "new_user.html",
        status=422 if error else 200,
        site=call.site,
        roles=tuple(Role),
        form=form,
        error=error,
    )


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
    return respond(
        "look.html",
        status=422 if error else 200,
        site=call.site,
        user=user,
        next=wanted,
        longest=MAX_REASON_LENGTH,
        error=error and error.info,
    )
