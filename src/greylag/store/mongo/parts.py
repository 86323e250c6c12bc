"""What a MongoDB store is made of, all on one connection."""

from dataclasses import dataclass

from greylag.store.mongo import client, indexes
from greylag.store.mongo.claims import Projects
from greylag.store.mongo.client import Client, Documents, Limits
from greylag.store.mongo.echoes import Echoes
from greylag.store.mongo.following import Following
from greylag.store.mongo.keys import Keys
from greylag.store.mongo.log import Log
from greylag.store.mongo.work import Work
from greylag.store.mongo.writes import Writes
from greylag.store.signals import ChangeHub


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts; who has them closes ``client``."""

    client: Client
    database: Documents
    projects: Projects
    hub: ChangeHub
    echoes: Echoes
    follower: Following
    keys: Keys
    log: Log
    writes: Writes
    work: Work


async def assemble(uri: str, name: str, limits: Limits, poll_seconds: float) -> Parts:
    """Return the parts of a store on the database ``name``; nothing is asked of the server yet.

    Raises ``ConfigError`` for a URI or name that cannot be used.
    """
    connected = client.connect(uri, limits)
    try:
        database = client.database(connected, name)
    except BaseException:
        await connected.close()
        raise
    hub = ChangeHub()
    echoes = Echoes(hub)
    follower = Following(
        connected, database, hub, echoes, poll=poll_seconds, timeout=limits.operation
    )
    projects = database[indexes.PROJECTS]
    keys = Keys(database[indexes.KEYS])
    log = Log(database[indexes.EVENTS])
    writes = Writes(projects, echoes, follower, limits.operation)
    work = Work(projects, writes, echoes, keys=keys, log=log, seconds=limits.operation)
    return Parts(connected, database, projects, hub, echoes, follower, keys, log, writes, work)
