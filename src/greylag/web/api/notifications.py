"""Where users are told of their turns: browsers and webhooks."""

from typing import Annotated

from starlette.requests import Request

from greylag.ports import DeliveryResult
from greylag.web.addresses import site_of
from greylag.web.deps import UserCallDep, api_router, path_id, problems
from greylag.web.schemas import (
    NewBrowserIn,
    NewWebhookIn,
    NewWebhookOut,
    NotificationTargetOut,
    NotificationTargetsOut,
    NotificationTestOut,
)

NOTIFICATIONS = "/api/users/{user}/notifications"
TARGET = f"{NOTIFICATIONS}/targets/{{target}}"

router = api_router("notifications")

_TargetId = Annotated[str, path_id("target", "A target's id.", r"^[0-9a-f]{16}$")]


@router.get(
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


@router.post(
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


@router.post(
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


@router.post(
    f"{TARGET}/test",
    summary="Tell a target that it is told",
    responses=problems(404),
)
async def test_notification_target(call: UserCallDep, target: _TargetId) -> NotificationTestOut:
    """Once, and at once."""
    _, done = await call.use_cases.notifications.test(call.principal, call.user_id, target)
    return NotificationTestOut(delivered=done.result is DeliveryResult.DONE, result=done.words)


@router.delete(
    TARGET,
    summary="Tell a target nothing any more",
    status_code=204,
    responses={**problems(404), 204: {"description": "Effective at once."}},
)
async def remove_notification_target(call: UserCallDep, target: _TargetId) -> None:
    """For the user, and for administrators."""
    await call.use_cases.notifications.remove(call.principal, call.user_id, target)
