"""The connection to MongoDB: where it leads, how long it waits, how durable its writes are."""

import warnings
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from bson.codec_options import CodecOptions
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConfigurationError
from pymongo.errors import InvalidName as InvalidDatabaseName
from pymongo.read_concern import ReadConcern

from greylag.domain.errors import ConfigError

Documents = AsyncDatabase[dict[str, Any]]
Client = AsyncMongoClient[dict[str, Any]]


_SCHEMES = ("mongodb://", "mongodb+srv://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long to wait, in seconds, and for how many connections. What the URI names wins.

    ``operation`` bounds one question with all that it takes: finding a server that can answer it,
    connecting, trying again.
    """

    operation: float = 5.0
    connect: float = 3.0
    socket: float = 20.0
    connections: int = 50


def connect(uri: str, limits: Limits) -> Client:
    """Return a client for ``uri``; it connects when it is first asked something.

    Raises ``ConfigError`` for a URI that is none. No error shows the URI: it holds a password.
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


def database(client: Client, name: str) -> Documents:
    """Return the database with the guarantees that the store builds on, whatever the URI says.

    Raises ``ConfigError`` for a name that none can have.
    """
    options: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True, tzinfo=UTC)
    try:
        return client.get_database(
            name,
            codec_options=options,
            read_preference=ReadPreference.PRIMARY,
            read_concern=ReadConcern("majority"),
            write_concern=WriteConcern(w="majority", j=True),
        )
    except InvalidDatabaseName as error:
        raise ConfigError(f"MONGODB_DB: {name!r} cannot be the name of a database.") from error


async def has_change_streams(client: Client) -> bool:
    """Tell whether the server is one of a replica set or a cluster: a single one has none.

    Raises ``ConfigError`` for a URI that leads to no servers.
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
