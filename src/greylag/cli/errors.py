"""What can go wrong for a command: errors with their exit codes, and which pass by themselves."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import ClassVar

from greylag.common.backoff import Pauses
from greylag.domain.errors import GreylagError, InvalidRequestError, NotActiveError


class Exit(IntEnum):
    """The exit codes of `greylag`; `docs/cli.md` promises them to scripts."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    TIMEOUT = 4
    UNAUTHORIZED = 5
    INTERRUPTED = 130
    CLOSED_PIPE = 141


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal as the API sends it (RFC 9457), as far as people need it."""

    status: int
    code: str
    detail: str
    hint: str = ""
    request_id: str = ""


class CliError(Exception):
    """The base: one plain sentence, a hint what to do, and the exit code."""

    exit_code: ClassVar[Exit] = Exit.REFUSED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def lines(self) -> list[str]:
        """What to print, line by line."""
        return [f"error: {self.message}", *([f"hint: {self.hint}"] if self.hint else [])]


class StartError(CliError):
    """A setting is wrong, or what the program needs cannot be had."""

    exit_code = Exit.USAGE


@contextmanager
def starting() -> Iterator[None]:
    """Turn what keeps a program from its settings, or from what they name, into such an error."""
    try:
        yield
    except GreylagError as error:
        raise StartError(error.info.message, error.info.hint) from error


class CodedError(CliError):
    """A refusal with a stable code, which scripts look for."""

    def __init__(self, message: str, hint: str, code: str) -> None:
        super().__init__(message, hint)
        self.code = code

    @property
    def lines(self) -> list[str]:
        """The sentence with its code, and the hint."""
        first, *others = super().lines
        return [f"{first} [{self.code}]", *others]


class BackendUnreachableError(CodedError):
    """The store or the cluster of the settings does not answer."""

    exit_code = Exit.UNREACHABLE


class ServerRefusedError(CodedError):
    """The server said no, with a problem document."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail, problem.hint, problem.code)
        self.problem = problem

    @property
    def lines(self) -> list[str]:
        """The sentence with its code, the hint, and for a fault the id to look for in the log."""
        fault = self.problem.status >= 500 and self.problem.request_id  # noqa: PLR2004 - HTTP: server error
        return [*super().lines, *([f"request id: {self.problem.request_id}"] if fault else [])]


class StillGoingOnError(ServerRefusedError):
    """The wait ended first; what was asked for goes on."""

    exit_code = Exit.TIMEOUT


class TokenRefusedError(ServerRefusedError):
    """The server wants another token, or one at all."""

    exit_code = Exit.UNAUTHORIZED


class DeclinedError(CliError):
    """The person was asked, and did not agree."""

    @property
    def lines(self) -> list[str]:
        """What it means; it is not an error."""
        return [self.message]


class OutputLostError(CliError):
    """Standard output does not take what is written: the disk is full, or fails."""


class ServerUnreachableError(CliError):
    """The server does not answer, or not as Greylag does.

    ``connected`` tells whether there was a connection at all, so that a request may have arrived;
    ``passes``: whether it may do so a little later by itself.
    """

    exit_code = Exit.UNREACHABLE

    def __init__(
        self, message: str, hint: str = "", *, connected: bool, passes: bool = True
    ) -> None:
        super().__init__(message, hint)
        self.connected = connected
        self.passes = passes


class SilentError(CliError):
    """An end that needs no words."""

    @property
    def lines(self) -> list[str]:
        """Return nothing: whoever caused it knows."""
        return []


class InterruptedByUserError(SilentError):
    """Ctrl-C, where it ends the program."""

    exit_code = Exit.INTERRUPTED


class ClosedPipeError(SilentError):
    """The reader of our output has gone."""

    exit_code = Exit.CLOSED_PIPE


# The server's own hints speak of requests, headers and fields, which nobody sees here.
_HINTS = {
    "idempotency_conflict": "Use another --idempotency-key for a different request.",
    "project_exists": "Choose another --id, or leave it out to get a new one.",
    "project_not_found": "`greylag projects list` lists this user's projects.",
    "session_not_found": "`greylag sessions PROJECT` lists them; `chat` alone begins a new one.",
    "unauthorized": (
        "Sign in by `greylag login`, name the server's data folder with --data, or set "
        "GREYLAG_TOKEN."
    ),
    "user_not_found": "`greylag users` lists the users.",
    "wait_timeout": "It goes on in the background: `greylag events PROJECT --follow` shows it.",
}


# In place of what is said of all refusals of a kind, or to whoever asks for a path that is none; a
# hint of its own stays.
_GENERAL = {
    InvalidRequestError.hint: "Correct what the sentence names; the command's --help tells more.",
    NotActiveError.hint: "`greylag activate PROJECT` starts it; so does a message.",
    "Name a user in `user`.": "Name one with --user.",
    "Nothing is at this path.": "Check the path of --server; or it is of an earlier version.",
}


def error_of_settings(error: GreylagError) -> CliError:
    """Return the error of a command that works on the store or the cluster of the settings."""
    message, hint, code = error.info.message, error.info.hint, error.info.code
    if code == "config_error":
        return StartError(message, hint)
    if code in {"store_unavailable", "cluster_unavailable"}:
        return BackendUnreachableError(message, hint, code)
    return CodedError(message, hint, code)


def refusal(given: Problem) -> ServerRefusedError:
    """Return the error of the kind that this problem document stands for."""
    hint = _HINTS.get(given.code) or _GENERAL.get(given.hint) or _GENERAL.get(given.detail)
    problem = replace(given, hint=hint or given.hint)
    if problem.code == "wait_timeout":
        return StillGoingOnError(problem)
    if problem.status == 401:  # noqa: PLR2004 - HTTP: Unauthorized
        return TokenRefusedError(problem)
    return ServerRefusedError(problem)


FIRST_PAUSE = 0.25
LONGEST_PAUSE = 5.0
GIVE_UP_AFTER = 60.0
# A server may end a stream that has lasted long (GREYLAG_STREAM_SECONDS), events or not; one that
# ends every stream at once is out of order.
STEADY = 0.2
# A busy or restarting server; 429 too, while the dropped stream's place is not free yet.
PASSING = {429, 502, 503, 504}


class Patience:
    """Pauses between tries that grow, until nothing has worked for ``limit`` seconds.

    ``pause``, ``clock`` (seconds that never go back) and ``spread`` are for tests.
    """

    def __init__(
        self,
        limit: float = GIVE_UP_AFTER,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._limit = limit
        self._pauses = Pauses(FIRST_PAUSE, LONGEST_PAUSE, pause, spread)
        self._clock = clock
        self._opened: float | None = None
        self.worked()

    def opened(self) -> None:
        """A stream was opened: if it lasts, it has worked, although nothing may have come."""
        self._opened = self._clock()

    def worked(self) -> None:
        """Something came: begin anew with the next failure."""
        self._since: float | None = None
        self._pauses.worked()

    async def pause_after(self, error: CliError) -> bool:
        """Wait a little; False at once when it will not pass or has lasted too long."""
        now = self._clock()
        if self._opened is not None and now - self._opened >= STEADY:
            self.worked()
        self._opened = None
        self._since = now if self._since is None else self._since
        if not may_pass(error) or now - self._since > self._limit:
            return False
        await self._pauses.pause()
        return True


def may_pass(error: CliError) -> bool:
    """Tell whether the same request may work a little later."""
    if isinstance(error, ServerRefusedError):
        return error.problem.status in PASSING
    return isinstance(error, ServerUnreachableError) and error.passes
