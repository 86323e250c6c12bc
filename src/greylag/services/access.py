"""Who may do what: the one place that decides it, before any use case reads or writes."""

import structlog

from greylag.domain.errors import ForbiddenError
from greylag.domain.users import Action, Principal, User

_log = structlog.get_logger(__name__)


async def is_allowed(principal: Principal, user: User, action: Action) -> bool:
    """Tell whether ``principal`` may do ``action`` with what ``user`` owns."""
    del action  # the rule is the same for all of them
    return principal.may_act_for(user.id)


async def authorize(principal: Principal, user: User, action: Action) -> None:
    """Return when ``principal`` may do ``action`` with what ``user`` owns.

    Raises:
        ForbiddenError: it may not; one log line says who asked for what.
    """
    if not await is_allowed(principal, user, action):
        _log.warning("action_refused", principal=principal.name, action=action, user_id=user.id)
        raise ForbiddenError(f"You may not act for user {user.id}.", hint="Sign in as this user.")
