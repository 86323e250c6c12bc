"""Whether the MongoDB of the settings can be used, for `greylag doctor`."""

from greylag.cli.checks import Check
from greylag.config import Settings

NAME = "mongodb"


def mongo_check(settings: Settings) -> Check | None:
    """Sign in and ask for a sign of life; ``None`` when records are not kept in MongoDB.

    What the driver says is not shown: it may repeat parts of the address, the password among them.
    """
    if settings.mongodb_uri is None:
        return None
    from pymongo import MongoClient
    from pymongo.errors import ConfigurationError, OperationFailure, PyMongoError

    within = settings.mongodb_timeout
    milliseconds = max(1, int(within * 1000))
    try:
        with MongoClient[dict[str, object]](
            settings.mongodb_uri.get_secret_value(),
            serverSelectionTimeoutMS=milliseconds,
            connectTimeoutMS=milliseconds,
        ) as client:
            client[settings.mongodb_db].command("ping")
    except (ConfigurationError, ValueError):
        advice = "It looks like mongodb://user:password@host/; a password in it is percent-encoded."
        return Check(NAME, "fail", "MONGODB_URI is no address of a MongoDB.", advice)
    except OperationFailure:
        advice = "Check the user, the password and the authSource in MONGODB_URI."
        return Check(NAME, "fail", "MongoDB answers, but refuses this user.", advice)
    except PyMongoError:
        advice = "Check MONGODB_URI, and that MongoDB runs and can be reached from here."
        return Check(NAME, "fail", f"MongoDB did not answer within {within:g} s.", advice)
    return Check(
        NAME, "ok", f"MongoDB answers; records are kept in database {settings.mongodb_db}."
    )
