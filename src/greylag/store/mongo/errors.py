"""MongoDB's errors in our words, and the time that one question to it may take."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pymongo
from bson.errors import BSONError
from pymongo.errors import (
    ConnectionFailure,
    DuplicateKeyError,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
)

from greylag.domain.errors import InvalidRequestError, StoreUnavailableError

_REFUSED = {13, 18}
"""The codes of Unauthorized and AuthenticationFailed."""

_WORDS = (
    (ServerSelectionTimeoutError, "cannot be reached, or has no primary now"),
    (NotPrimaryError, "is handing over to another primary"),
    (NetworkTimeout, "did not answer in time"),
    (ConnectionFailure, "broke off the connection"),
)
"""The first that fits counts: later ones are wider."""


class DocumentError(StoreUnavailableError):
    """A document that something else wrote is not of the form that a project must have."""

    hint = "Correct the document; `greylag store check` finds and explains such records."


class RefusedByServerError(StoreUnavailableError):
    """The server answers, but not us: the user name, the password or the rights are wrong."""

    hint = "Nothing was changed. Check user, password and authSource in MONGODB_URI."


@contextmanager
def asking(seconds: float) -> Iterator[None]:
    """Bound all that the ``with`` block asks of the server by ``seconds``, retries included.

    Raises ``StoreUnavailableError`` for the driver's errors and ``InvalidRequestError`` for values
    that no document can hold. ``DuplicateKeyError`` passes: it is an answer, not a failure.
    """
    with cancellable(), _translated(), pymongo.timeout(seconds):
        yield


@contextmanager
def cancellable() -> Iterator[None]:
    """Let a task that was cancelled inside the ``with`` block end there.

    The driver sends with ``asyncio.wait_for``, which in Python 3.11 loses a cancellation that comes
    just as the sending ends; the driver then goes on as if nothing had been asked.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DuplicateKeyError:
        raise
    except PyMongoError as error:
        refused = isinstance(error, OperationFailure) and error.code in _REFUSED
        kind = RefusedByServerError if refused else StoreUnavailableError
        raise kind(f"The MongoDB server {reason(error)}.") from error
    except UnicodeEncodeError as error:
        raise InvalidRequestError("Text must not hold unpaired surrogates.") from error
    except (BSONError, OverflowError) as error:
        raise InvalidRequestError("The project is too large, or holds what none may.") from error


def reason(error: PyMongoError) -> str:
    """Return what happened, as the end of a sentence about the server.

    The driver's own text is left to the log: it can hold documents.
    """
    if isinstance(error, OperationFailure) and not error.timeout:
        return _refusal(error)
    for kind, words in _WORDS:
        if isinstance(error, kind):
            return words
    return "did not answer in time" if error.timeout else f"failed ({type(error).__name__})"


def _refusal(error: OperationFailure) -> str:
    if isinstance(error, WriteConcernError):
        return "could not make the change durable on a majority"
    if error.code in _REFUSED:
        return "refuses our user name, password or rights"
    name = (error.details or {}).get("codeName", "no name")
    return f"refused the command (code {error.code}, {name})"
