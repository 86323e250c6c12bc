"""Every error that Greylag shows to anyone: a stable code, one plain sentence, a hint what to do.

The HTTP status of a code is decided once, in ``web/errors.py``. Adapters translate their vendor's
errors into these, with the cause chained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from greylag.common.git import CAUSES


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as a record or an event keeps it: what, in words, and what to do."""

    code: str
    message: str
    hint: str = ""


class GreylagError(Exception):
    """The base of all errors that are meant to be read.

    ``message`` is one plain sentence; ``hint`` says what to do and replaces the class's own.
    """

    code: ClassVar[str] = "internal_error"
    hint: ClassVar[str] = "This is a fault in Greylag; its log has the details."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.info = ErrorInfo(self.code, message, self.hint if hint is None else hint)


HINTS: Mapping[str, str] = {
    "history_not_cut": (
        "Undo without cutting it: the agent is told of the undo with the next message."
    ),
    "port_silent": "List the project's ports; what serves there may be starting, or has ended.",
    "precondition_failed": "Read it again: it has changed since.",
    "preview_off": (
        "Open the site at localhost, or set GREYLAG_PREVIEW_DOMAIN to a wildcard domain."
    ),
    "range_not_satisfiable": "Ask for a range within the length, or for all of it.",
    "secrets_off": "Whoever runs this Greylag can set GREYLAG_SECRET_KEY: docs/git.md tells how.",
    "session_busy": "Wait for its answer, cancel it, or use another session.",
    "snapshot_gone": (
        "The oldest go first when GREYLAG_SNAPSHOT_LIMIT is reached; a larger one keeps more."
    ),
    "terminal_off": "Whoever runs this Greylag can turn them on: GREYLAG_TERMINAL=on.",
    "turn_not_found": (
        "List the session's turns; the journals of old turns are removed when space runs short."
    ),
    "turn_running": "Wait for the turn's end, or cancel it.",
}
"""What to do about each ``RefusalError``, by its code; git's are ``CAUSES``."""


class RefusalError(GreylagError):
    """A refusal that nothing of ours treats apart from others: ``code`` says why."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.info = ErrorInfo(code, message, (CAUSES if code in CAUSES else HINTS)[code])


class InvalidRequestError(GreylagError):
    """Something in a request is not of the form it must have."""

    code = "invalid_request"
    hint = "Correct the field that the sentence names and send the request again."


class UserNotFoundError(GreylagError):
    """No user has this id."""

    code = "user_not_found"
    hint = "GET /api/users lists the users; GREYLAG_USERS or GREYLAG_USERS_FILE defines them."


class ProjectNotFoundError(GreylagError):
    """This user has no project with this id."""

    code = "project_not_found"
    hint = "GET /api/users/{user}/projects lists this user's projects."


class ProjectExistsError(GreylagError):
    """This user already has a project with this id."""

    code = "project_exists"
    hint = "Choose another project_id, or leave it out to get a new one."


class ProjectDeletingError(GreylagError):
    """The project is being deleted, so it can no longer be changed."""

    code = "project_deleting"
    hint = "Wait until it is gone; then a project with the same id can be created."


class IdempotencyConflictError(GreylagError):
    """The same Idempotency-Key came with a different request."""

    code = "idempotency_conflict"
    hint = "Use a new Idempotency-Key for a different request."


class ConflictError(GreylagError):
    """Something changed between reading and writing."""

    code = "conflict"
    hint = "Read the project again and repeat the change."


class NotActiveError(GreylagError):
    """The project's environment does not run, so its agent cannot be asked."""

    code = "environment_not_active"
    hint = "Activate the project first, or send a message, which activates it."


class WaitTimeoutError(GreylagError):
    """What was asked for goes on, but was not reached within the time given."""

    code = "wait_timeout"
    hint = "It goes on in the background: read the project again, or follow its events."


class StoreUnavailableError(GreylagError):
    """The store of records cannot be reached or written."""

    code = "store_unavailable"
    hint = "Nothing was changed. Try again shortly; if it lasts, see the server's log."


class LeaseLostError(GreylagError):
    """This worker's claim on a project has passed to another; nothing was written."""

    code = "lease_lost"
    hint = "Another worker goes on with the project; nothing needs to be done."


class OvertakenError(LeaseLostError):
    """The environment has seen a newer claim, ``number``, than the one that a step came under."""

    code = "claim_overtaken"

    def __init__(self, number: int) -> None:
        super().__init__("Another worker has taken this project over.")
        self.number = number


class ClusterError(GreylagError):
    """The cluster refused or failed a step. ``terminal`` means that a retry cannot help.

    ``code`` names the cause (``image_not_found``, ``quota_exceeded``, ...): it is given per error.
    """

    code = "cluster_error"
    hint = "See the project's events and `greylag logs` for the details."

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        terminal: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.terminal = terminal
        if code is not None:
            self.info = ErrorInfo(code, self.info.message, self.info.hint)


class ClusterUnavailableError(ClusterError):
    """The cluster did not answer, so nothing is known about the environment now."""

    code = "cluster_unavailable"
    hint = "Greylag tries again by itself; check that the cluster is up and reachable."


class AgentTokenLostError(ClusterError):
    """Nobody can reach an environment that runs: what its agent demands is known no more."""

    code = "environment_drifted"
    hint = "Deactivate and activate the project, which makes it anew."


class AgentUnreachableError(GreylagError):
    """The environment runs but its agent's API did not answer."""

    code = "agent_unreachable"
    hint = "It may be restarting: try again shortly; `greylag logs` shows what it says."


class StreamCutError(AgentUnreachableError):
    """The stream of a turn broke off before its end. The turn goes on: resume it."""

    code = "stream_cut"
    hint = "Ask for the turn's events again with the Last-Event-ID of the last event that came."


class AgentFailedError(GreylagError):
    """The agent's API answered something that it should not."""

    code = "agent_failed"
    hint = (
        "`greylag logs` shows what the agent says; deactivate and activate the project to"
        " restart it."
    )


class MissingError(GreylagError):
    """The agent has nothing of the name that the path gives."""

    code = "not_found"
    hint = "List what there is, and take a name from the list."


class SessionNotFoundError(GreylagError):
    """The agent has no session with this id."""

    code = "session_not_found"
    hint = "List the project's sessions, or leave session_id out to start a new one."


class TurnOverError(GreylagError):
    """All of the turn's events have been read: no failure, and nothing more to come."""

    code = "turn_over"
    hint = "Read the turn, or its session's history."


class ConfirmationNotFoundError(GreylagError):
    """The turn asks for no confirmation with this id."""

    code = "confirmation_not_found"
    hint = "Answer with the id of the turn's tool_confirmation event."


class ConfirmationSettledError(GreylagError):
    """The confirmation has been answered otherwise, or its turn has ended."""

    code = "confirmation_settled"
    hint = "Nothing needs to be done; the turn's events show how it was answered."


class LimitExceededError(GreylagError):
    """A limit that protects everyone is reached."""

    code = "limit_exceeded"
    hint = "Close what is no longer needed, or raise the limit in the settings."


class TooLargeError(GreylagError):
    """The request is larger than is taken."""

    code = "too_large"
    hint = "Send less at once, or raise the limit in the settings."


class UnauthorizedError(GreylagError):
    """The request does not say who it comes from, or says it wrongly."""

    code = "unauthorized"
    hint = (
        "Send `Authorization: Bearer TOKEN`, or sign in at /sign-in. The token is GREYLAG_TOKEN, "
        "else what the file `token` in the server's data folder holds."
    )


class ForbiddenError(GreylagError):
    """The request is understood and refused."""

    code = "forbidden"
    hint = "Open the address that `greylag up` printed, or name this host in GREYLAG_ALLOWED_HOSTS."


class SignInFailedError(GreylagError):
    """A sign-in at the identity provider came to nothing, or its answer is not to be believed."""

    code = "sign_in_failed"
    hint = "Begin again from the sign-in page."


class SignInRefusedError(GreylagError):
    """Who has signed in at the identity provider may not come in here."""

    code = "sign_in_refused"
    hint = "Ask whoever runs this Greylag to let you in; docs/sign-in.md tells how."


class IdentityProviderUnavailableError(GreylagError):
    """The identity provider did not answer as it must, so nobody can sign in there now.

    ``reason`` is for whoever runs Greylag: it names addresses, and may repeat what was answered.
    """

    code = "identity_provider_unavailable"
    hint = "Try again shortly. Tokens, and whoever has signed in, go on working meanwhile."

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class NotificationsOffError(GreylagError):
    """Nothing is there that the addresses of notifications could be sealed with."""

    code = "notifications_off"
    hint = "Whoever runs this Greylag can set GREYLAG_SECRET_KEY: docs/notifications.md tells how."


class ConfigError(GreylagError):
    """A setting is missing or wrong; the sentence says which."""

    code = "config_error"
    hint = "Correct the setting and start again; docs/settings.md lists them all."
