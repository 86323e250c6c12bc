"""What a MongoDB store is made of, all on one connection."""

from dataclasses import dataclass

from greylag.store.mongo import client, indexes
from greylag.store.mongo.changes import Follower, PollingFollower, StreamFollower
from greylag.store.mongo.claims import Projects
from greylag.store.mongo.client import Client, Documents, Limits
from greylag.store.mongo.echoes import Echoes
from greylag.store.mongo.errors import asking
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
    follower: Follower
    keys: Keys
    log: Log
    writes: Writes
    work: Work


async def assemble(uri: str, name: str, limits: Limits, poll_seconds: float) -> Parts:
    """Connect, and return the parts of a store on the database ``name``.

    Raises what ``MongoStore.open`` raises; then the connection is closed.
    """
    connected = client.connect(uri, limits)
    try:
        with asking(limits.operation):
            streams = await client.has_change_streams(connected)
        database = client.database(connected, name)
    except BaseException:
        await connected.close()
        raise
    hub = ChangeHub()
    echoes = Echoes(hub)
    follower: Follower
    if streams:
        follower = StreamFollower(database, hub, echoes)
    else:
        follower = PollingFollower(
            database, hub, echoes, poll=poll_seconds, timeout=limits.operation
        )
    projects = database[indexes.PROJECTS]
    keys = Keys(database[indexes.KEYS])
    log = Log(database[indexes.EVENTS])
    writes = Writes(projects, echoes, follower, limits.operation)
    work = Work(projects, writes, echoes, keys=keys, log=log, seconds=limits.operation)
    return Parts(connected, database, projects, hub, echoes, follower, keys, log, writes, work)
