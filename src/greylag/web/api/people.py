"""Who asks, users with their sessions, secrets and tokens, whom projects are shared with, and where
users are told of their turns.
"""

from typing import Annotated
from urllib.parse import quote

from fastapi import Query, Response
from starlette.requests import Request

from greylag.domain.names import ID_FORM, MAX_ID_LENGTH
from greylag.ports import DeliveryResult
from greylag.services.secrets import NAME_FORM, NewSecret
from greylag.services.tokens import MOST_TOKENS, PLACE
from greylag.web.addresses import address, site_of
from greylag.web.deps import (
    LOCATION,
    PROJECT,
    CallDep,
    ProjectCallDep,
    UserCallDep,
    api_router,
    path_id,
    problems,
)
from greylag.web.schemas import (
    AccountOut,
    HandOverIn,
    MemberIn,
    MemberOut,
    MembersOut,
    MeOut,
    NewBrowserIn,
    NewTokenIn,
    NewTokenOut,
    NewUserIn,
    NewWebhookIn,
    NewWebhookOut,
    NotificationTargetOut,
    NotificationTargetsOut,
    NotificationTestOut,
    ProjectOut,
    SecretIn,
    SecretOut,
    SecretsOut,
    SessionOut,
    SessionsOut,
    TokenOut,
    TokensOut,
    UserEditIn,
    UserOut,
    UsersOut,
)

USER = "/api/users/{user}"
MEMBERS = f"{PROJECT}/members"
_HEX_ID = r"^[0-9a-f]{16}$"

router = api_router("users")

_MemberId = Annotated[str, path_id("member", "A user's id, percent-encoded.", ID_FORM)]
_SessionId = Annotated[str, path_id("login", "A session's id.", _HEX_ID)]

_SecretName = Annotated[str, path_id("secret", "A secret's name.", NAME_FORM)]
_TokenId = Annotated[str, path_id("token", "A token's id.", _HEX_ID)]


@router.get(
    "/api/me",
    summary="Who asks",
    tags=["platform"],
    responses=problems(),
)
async def show_me(call: CallDep) -> MeOut:
    """The user, and what the request comes by."""
    user = await call.use_cases.accounts.me(call.principal)
    return MeOut(
        id=call.principal.user_id,
        display_name=user.display_name if user else call.principal.name,
        email=user.email if user else None,
        role=call.principal.role,
        groups=list(user.groups) if user else [],
        via=call.principal.via,
    )


@router.get(
    "/api/users",
    summary="List the users",
    responses=problems(),
)
async def list_users(call: CallDep) -> UsersOut:
    """All users whom the caller may act for, in the order they are to be shown."""
    users = await call.use_cases.gate.visible(call.principal)
    return UsersOut(users=[UserOut.model_validate(user) for user in users])


@router.post(
    "/api/users",
    summary="Add a user",
    status_code=201,
    responses={**problems(409, 413), 201: {"description": "Added."}},
)
async def make_user(call: CallDep, body: NewUserIn, response: Response) -> AccountOut:
    """For administrators. With an email address, they are known by it when they first sign in."""
    made = await call.use_cases.accounts.make(call.principal, body.user())
    response.headers["location"] = address(f"/api/users/{quote(made.id, safe='')}")
    return AccountOut.of(made)


@router.get(USER, summary="Read a user", responses=problems(404))
async def show_user(call: UserCallDep) -> AccountOut:
    """For administrators, and for the user."""
    return AccountOut.of(await call.use_cases.accounts.show(call.principal, call.user_id))


@router.patch(
    USER,
    summary="Change, disable or enable a user",
    responses=problems(404, 409, 413),
)
async def edit_user(call: UserCallDep, body: UserEditIn) -> AccountOut:
    """For administrators. One who is disabled comes in by no session and no token, within a second
    everywhere, and what runs of theirs is stopped.
    """
    changed = await call.use_cases.accounts.edit(call.principal, call.user_id, body.edit())
    return AccountOut.of(changed)


@router.delete(
    USER,
    summary="Remove a user who has no projects",
    status_code=204,
    responses={**problems(404, 409), 204: {"description": "Removed, with sessions and tokens."}},
)
async def remove_user(call: UserCallDep) -> None:
    """For administrators."""
    await call.use_cases.accounts.remove(call.principal, call.user_id)


@router.get(
    f"{USER}/logins",
    summary="List the browsers that a user has signed in with",
    responses=problems(404),
)
async def list_logins(call: UserCallDep) -> SessionsOut:
    """For the user, and for administrators."""
    found = await call.use_cases.accounts.sessions(call.principal, call.user_id)
    via = call.principal.via
    return SessionsOut(
        sessions=[SessionOut.of(one, current=via == f"session {one.id}") for one in found]
    )


@router.delete(
    f"{USER}/logins/{{login}}",
    summary="Sign a browser out",
    status_code=204,
    responses={**problems(404), 204: {"description": "It has ended, everywhere."}},
)
async def end_login(call: UserCallDep, login: _SessionId) -> None:
    """For the user, and for administrators."""
    await call.use_cases.accounts.end_session(call.principal, call.user_id, login)


@router.get(
    f"{USER}/secrets",
    summary="List a user's secrets",
    responses=problems(404),
)
async def list_secrets(call: UserCallDep) -> SecretsOut:
    """Names, hosts and times; no value is ever shown. For the user, and for administrators."""
    found = await call.use_cases.secrets.listed(call.principal, call.user_id)
    return SecretsOut(secrets=[SecretOut.of(one) for one in found])


@router.put(
    f"{USER}/secrets/{{secret}}",
    summary="Keep a secret for git",
    responses=problems(404, 409, 413),
)
async def put_secret(call: UserCallDep, secret: _SecretName, body: SecretIn) -> SecretOut:
    """In place of the one of its name. git in the environments of the user's own projects reaches
    its host with it, also for those whom a project is shared with; no tool there can read it. One
    for each host.
    """
    new = NewSecret(secret, body.host, body.value, body.username)
    return SecretOut.of(await call.use_cases.secrets.put(call.principal, call.user_id, new))


@router.delete(
    f"{USER}/secrets/{{secret}}",
    summary="Delete a secret",
    status_code=204,
    responses={**problems(404), 204: {"description": "What runs forgets it within moments."}},
)
async def remove_secret(call: UserCallDep, secret: _SecretName) -> None:
    """For the user, and for administrators."""
    await call.use_cases.secrets.remove(call.principal, call.user_id, secret)


@router.post(
    "/api/tokens",
    summary="Make a token for programs",
    status_code=201,
    responses={**problems(404, 409, 413), 201: {"description": "Made. It is shown this once."}},
)
async def make_token(call: CallDep, body: NewTokenIn) -> NewTokenOut:
    """It may do what its user may and its scopes name, no more; so each program has one of its own.
    Administrators make those of service accounts.
    """
    text, token = await call.use_cases.tokens.make(call.principal, body.token())
    return NewTokenOut.of(token, token=text)


@router.get(
    "/api/tokens",
    summary="List a user's tokens",
    responses=problems(404),
)
async def list_tokens(
    call: CallDep,
    user: Annotated[
        str | None,
        Query(
            min_length=1,
            max_length=MAX_ID_LENGTH,
            description="Whose; left out: your own, and for the operator those of all users.",
        ),
    ] = None,
    limit: Annotated[
        int, Query(ge=1, le=MOST_TOKENS, description="How many at most.")
    ] = MOST_TOKENS,
    cursor: Annotated[
        str | None, Query(pattern=PLACE, description="`next_cursor` of the page before.")
    ] = None,
) -> TokensOut:
    """Those that count, the newest first; no token itself. All of one user's are one page."""
    found, more = await call.use_cases.tokens.page(call.principal, user, limit, cursor)
    return TokensOut(tokens=[TokenOut.of(one) for one in found], next_cursor=more)


@router.delete(
    "/api/tokens/{token}",
    summary="Revoke a token",
    status_code=204,
    responses={**problems(404), 204: {"description": "It counts no more, within a second."}},
)
async def revoke_token(call: CallDep, token: _TokenId) -> None:
    """For its user, for administrators, and for the token itself."""
    await call.use_cases.tokens.revoke(call.principal, token)


@router.get(
    MEMBERS,
    summary="List whom a project is shared with",
    tags=["projects"],
    responses=problems(404),
)
async def list_members(call: ProjectCallDep) -> MembersOut:
    """For all who may see the project."""
    found = await call.use_cases.members.of(*call.at)
    return MembersOut(members=[MemberOut.model_validate(one) for one in found])


@router.put(
    f"{MEMBERS}/{{member}}",
    summary="Share a project with a user",
    tags=["projects"],
    responses=problems(404, 409, 413),
)
async def share_project(call: ProjectCallDep, member: _MemberId, body: MemberIn) -> MemberOut:
    """In this role from now on, effective at once. An `editor` talks to the agent, changes files
    and activates; a `viewer` reads and follows live.
    """
    one = await call.use_cases.members.share(*call.at, member, body.role)
    return MemberOut.model_validate(one)


@router.delete(
    f"{MEMBERS}/{{member}}",
    summary="Take a project back from a user",
    tags=["projects"],
    status_code=204,
    responses={**problems(404), 204: {"description": "They see nothing of it any more."}},
)
async def unshare_project(call: ProjectCallDep, member: _MemberId) -> None:
    """Effective within a second, for streams that run too. Whom it is shared with may leave."""
    await call.use_cases.members.unshare(*call.at, member)


@router.post(
    f"{PROJECT}/hand-over",
    summary="Hand a project over to another user",
    tags=["projects"],
    responses={
        **problems(404, 409, 413),
        200: {"description": "It is theirs.", "headers": {"Location": LOCATION}},
    },
)
async def hand_over_project(
    call: ProjectCallDep, body: HandOverIn, response: Response
) -> ProjectOut:
    """For administrators. The project must be inactive. It keeps its id, files and conversations,
    and the names of its environment; members stay members, links to its previews end.
    """
    given = await call.use_cases.accounts.hand_over(*call.at, body.user)
    response.headers["location"] = address(f"/api{given.ref.path}")
    return ProjectOut.of(given)


# Where users are told of their turns: browsers and webhooks.

NOTIFICATIONS = f"{USER}/notifications"
TARGET = f"{NOTIFICATIONS}/targets/{{target}}"

notifications_router = api_router("notifications")

_TargetId = Annotated[str, path_id("target", "A target's id.", _HEX_ID)]


@notifications_router.get(
    NOTIFICATIONS,
    summary="List where a user is told of their turns",
    responses=problems(404),
)
async def list_notification_targets(call: UserCallDep) -> NotificationTargetsOut:
    """The oldest first; no address is ever shown. For the user, and for administrators."""
    notifications = call.use_cases.notifications
    found = await notifications.listed(call.principal, call.user_id)
    return NotificationTargetsOut(
        public_key=await notifications.public_key(),
        targets=[NotificationTargetOut.of(one) for one in found],
    )


@notifications_router.post(
    f"{NOTIFICATIONS}/browsers",
    summary="Tell a user in a browser",
    status_code=201,
    responses={**problems(404, 409, 413), 201: {"description": "It is told from now on."}},
)
async def add_notification_browser(
    request: Request, call: UserCallDep, body: NewBrowserIn
) -> NotificationTargetOut:
    """By Web Push, when a turn of a project of their own needs an answer, ends or fails. One
    browser tells one user: whoever turned it on last.
    """
    return NotificationTargetOut.of(
        await call.use_cases.notifications.add_browser(
            call.principal, call.user_id, body.name, site_of(request), body.address()
        )
    )


@notifications_router.post(
    f"{NOTIFICATIONS}/webhooks",
    summary="Tell a webhook",
    status_code=201,
    responses={**problems(404, 409, 413), 201: {"description": "Its secret is shown this once."}},
)
async def add_notification_webhook(
    request: Request, call: UserCallDep, body: NewWebhookIn
) -> NewWebhookOut:
    """By a signed POST (Standard Webhooks), of the same as browsers."""
    secret, target = await call.use_cases.notifications.add_webhook(
        call.principal, call.user_id, body.name, site_of(request), body.url
    )
    return NewWebhookOut.of(target, secret=secret)


@notifications_router.post(
    f"{TARGET}/test",
    summary="Tell a target that it is told",
    responses=problems(404),
)
async def test_notification_target(call: UserCallDep, target: _TargetId) -> NotificationTestOut:
    """Once, and at once."""
    _, done = await call.use_cases.notifications.test(call.principal, call.user_id, target)
    return NotificationTestOut(delivered=done.result is DeliveryResult.DONE, result=done.words)


@notifications_router.delete(
    TARGET,
    summary="Tell a target nothing any more",
    status_code=204,
    responses={**problems(404), 204: {"description": "Effective at once."}},
)
async def remove_notification_target(call: UserCallDep, target: _TargetId) -> None:
    """For the user, and for administrators."""
    await call.use_cases.notifications.remove(call.principal, call.user_id, target)
