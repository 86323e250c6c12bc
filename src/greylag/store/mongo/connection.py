"""The connection to MongoDB: where it leads, how long it waits, how durable its writes are.

And what the driver's errors mean in our words, and what is tried again.
"""

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pymongo
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    DuplicateKeyError,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
)
from pymongo.errors import InvalidName as InvalidDatabaseName
from pymongo.read_concern import ReadConcern

from greylag.common.backoff import Pauses
from greylag.domain.errors import ConfigError, InvalidRequestError, StoreUnavailableError

Database = AsyncDatabase[dict[str, Any]]
Collection = AsyncCollection[dict[str, Any]]
Client = AsyncMongoClient[dict[str, Any]]

_SCHEMES = ("mongodb://", "mongodb+srv://")


@dataclass(frozen=True, slots=True, kw_only=True)
class MongoLimits:
    """How long to wait, in seconds, and for how many connections. What the URI names wins.

    ``operation`` bounds one question with all that it takes: finding a server that can answer it,
    connecting, trying again.
    """

    operation: float = 5.0
    connect: float = 3.0
    socket: float = 20.0
    connections: int = 50


def connect(uri: str, limits: MongoLimits) -> Client:
    """Return a client for ``uri``; it connects when it is first asked something.

    Raises:
        ConfigError: the URI is none. No error shows it: it holds a password.
    """
    given: dict[str, Any] = {
        "appname": "greylag",
        "serverSelectionTimeoutMS": _millis(limits.operation),
        "connectTimeoutMS": _millis(limits.connect),
        "socketTimeoutMS": _millis(limits.socket),
        "waitQueueTimeoutMS": _millis(limits.operation),
        "maxPoolSize": limits.connections,
    }
    named = _named_in(uri)
    ours = {name: value for name, value in given.items() if name.lower() not in named}
    if not uri.startswith(_SCHEMES):
        raise _wrong_uri("it begins with neither mongodb:// nor mongodb+srv://")
    try:
        with warnings.catch_warnings():
            # The driver only warns of options that it does not know or cannot use.
            warnings.simplefilter("error", UserWarning)
            return AsyncMongoClient(uri, retryWrites=True, retryReads=True, **ours)
    except (ConfigurationError, ValueError, TypeError, UserWarning) as error:
        # The cause is left out, because it may quote the URI.
        raise _wrong_uri(type(error).__name__) from None
    except OSError as error:  # as of tlsCAFile
        which = error.filename or "a file with certificates"
        raise _wrong_uri(f"it names {which}, which cannot be used: {error.strerror}") from None


OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    # A date that Python cannot hold makes its own document unreadable, and no other.
    tz_aware=True,
    tzinfo=UTC,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)


def database(client: Client, name: str) -> Database:
    """Return the database with the guarantees that the store builds on, whatever the URI says.

    Raises:
        ConfigError: none can have this name.
    """
    try:
        return client.get_database(
            name,
            codec_options=OPTIONS,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern(w="majority", j=True),
        )
    except InvalidDatabaseName as error:
        raise ConfigError(f"MONGODB_DB: {name!r} cannot be the name of a database.") from error


async def has_change_streams(client: Client) -> bool:
    """Tell whether the server is one of a replica set or a cluster: a single one has none.

    Raises:
        ConfigError: the URI leads to no servers.
    """
    try:
        hello = await client.admin.command("hello")
    except ConfigurationError as error:
        raise _wrong_uri(type(error).__name__) from None
    return "setName" in hello or hello.get("msg") == "isdbgrid"


def _wrong_uri(what: str) -> ConfigError:
    return ConfigError(
        f"MONGODB_URI is not one that can be used ({what}).",
        hint="It looks like mongodb://user:password@host:27017/?replicaSet=name, or "
        "mongodb+srv://...; a password with signs in it must be percent-encoded.",
    )


def _named_in(uri: str) -> set[str]:
    try:
        query = urlsplit(uri).query
    except ValueError:
        return set()
    return {name.lower() for name, _ in parse_qsl(query, keep_blank_values=True)}


def _millis(seconds: float) -> int:
    return max(1, round(seconds * 1000))


# MongoDB's errors in our words, and the time that one question to it may take.

UNAUTHORIZED = 13
_REFUSED = {UNAUTHORIZED, 18}
"""The codes of Unauthorized and AuthenticationFailed."""

_WORDS = (
    (ServerSelectionTimeoutError, "cannot be reached, or has no primary now"),
    (NotPrimaryError, "is handing over to another primary"),
    (NetworkTimeout, "did not answer in time"),
    (ConnectionFailure, "broke off the connection"),
)
"""The first that fits counts: later ones are wider."""


_UNCERTAIN = (
    "What was to be changed may have been: look, and try again shortly; if it lasts, see the "
    "server's log."
)


class RefusedByServerError(StoreUnavailableError):
    """The server answers, but not us: the user name, the password or the rights are wrong."""

    hint = "Nothing was changed. Check user, password and authSource in MONGODB_URI."


@contextmanager
def asking(seconds: float) -> Iterator[None]:
    """Bound all that the ``with`` block asks of the server by ``seconds``, retries included.

    ``DuplicateKeyError`` passes: it is an answer, not a failure.

    Raises:
        StoreUnavailableError: for the driver's errors.
        InvalidRequestError: no document can hold the values.
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
        hint = None if _is_undone(error) else _UNCERTAIN
        raise kind(f"The MongoDB server {reason(error)}.", hint=hint) from error
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


def _is_undone(error: PyMongoError) -> bool:
    """Tell whether no server can have done what was asked, rather than that its answer was lost."""
    if isinstance(error, OperationFailure):
        unknown = error.has_error_label("UnknownTransactionCommitResult")
        in_doubt = isinstance(error, WriteConcernError) or (
            isinstance(error, BulkWriteError) and bool(error.details.get("writeConcernErrors"))
        )
        return not (error.timeout or unknown or in_doubt)
    return isinstance(error, ServerSelectionTimeoutError)


def _refusal(error: OperationFailure) -> str:
    if isinstance(error, WriteConcernError):
        return "could not make the change durable on a majority"
    if error.code in _REFUSED:
        return "refuses our user name, password or rights"
    name = (error.details or {}).get("codeName", "no name")
    return f"refused the command (code {error.code}, {name})"


# Trying again: when another writer was faster, and where the driver itself does not.

T = TypeVar("T")

_TIMES = 5
_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.1


class WriteAttempts:
    """The attempts at one write, over after about ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds
        self._pauses = Pauses(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)

    async def pause(self, failed: PyMongoError | None = None) -> None:
        """Wait a little longer than the last time: another writer's change may be visible only
        when a majority has it.

        Raises:
            StoreUnavailableError: the time is over.
            PyMongoError: so it is, and this has ``failed``, rather than that others were faster.
        """
        if self._loop.time() > self._end:
            if failed is not None:
                raise failed
            raise StoreUnavailableError("Others changed the same project again and again.")
        await self._pauses.pause()


async def repeated(work: Callable[[], Awaitable[T]]) -> T:
    """Return what ``work`` returns: a command to many documents that may be done twice.

    The driver tries other commands again when a connection or a primary is lost, but not these.
    """
    for _ in range(_TIMES - 1):
        try:
            return await work()
        except ServerSelectionTimeoutError:
            raise
        except AutoReconnect:
            await asyncio.sleep(_FIRST_PAUSE_SECONDS)
    return await work()
