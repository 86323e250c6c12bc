"""What a MongoDB store is made of, all on one connection."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime

import structlog

from greylag.domain.errors import GreylagError, StoreUnavailableError
from greylag.domain.project import Desired, Event, Project, ProjectRef
from greylag.ports import (
    Claim,
    Created,
    Duty,
    Edit,
    IdempotencyKey,
    Outcome,
    Page,
    PageQuery,
    Subscription,
)
from greylag.store import records
from greylag.store.changes import ChangeHub
from greylag.store.mongo import claims, client, indexes, projects
from greylag.store.mongo.changes import Echoes, Following
from greylag.store.mongo.claims import Projects
from greylag.store.mongo.client import (
    Client,
    DocumentError,
    Documents,
    Limits,
    RefusedByServerError,
    asking,
)
from greylag.store.mongo.documents import WITHOUT_TAIL, Document, from_document
from greylag.store.mongo.indexes import adopt
from greylag.store.mongo.projects import Creation, Keys
from greylag.store.mongo.work import Duties, Work
from greylag.store.mongo.writes import Log, Writes
from greylag.store.records import Record


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


# From connected to ready: what must have been done before a store answers its first question.

Gate = Callable[[], Awaitable[None]]
"""Raises why the store must not be worked on."""

LONG_SECONDS = 120.0
"""How long may take what touches many documents: making indexes, adoption, waking all."""

_PAUSE_SECONDS = 1.0
_PAUSE_AFTER_FAULT_SECONDS = 5.0
_CANCEL_AGAIN_SECONDS = 0.1

_log = structlog.get_logger(__name__)


class Opening:
    """Makes a store ready, now or as soon as its server is there, and follows its changes then.

    Args:
        parts: what the store is made of.
        seconds: how long one question may take.
        prepare: make and check indexes and adopt older documents, or leave that to others.
        gate: asked first, each time.
    """

    def __init__(self, parts: Parts, seconds: float, *, prepare: bool, gate: Gate | None) -> None:
        self._parts = parts
        self._seconds = seconds
        self._prepare = prepare
        self._gate = gate
        self._wanting: GreylagError | None = None
        self._task: asyncio.Task[None] | None = None

    async def begin(self, *, patient: bool) -> None:
        """Make the store ready, and follow its changes from now on.

        With ``patient``, a server that cannot be reached is waited for by a task, and ``check``
        raises until it is there. Otherwise that raises ``StoreUnavailableError``; what an operator
        has to mend (``ConfigError``, wrong credentials, what ``gate`` raises) is raised always.
        """
        try:
            await self._make_ready()
        except RefusedByServerError:
            raise
        except StoreUnavailableError as error:
            if not patient:
                raise
            self._wanting = error
            _log.warning("store unavailable; it is waited for", reason=str(error))
        self._task = asyncio.create_task(self._run(), name="store-follower")
        self._task.add_done_callback(self._ended)

    def check(self) -> None:
        """Raise ``StoreUnavailableError`` with what is in the way while the store is not ready."""
        if self._wanting is not None:
            info = self._wanting.info
            raise StoreUnavailableError(info.message, hint=info.hint) from self._wanting

    async def close(self) -> None:
        """Stop trying, and following."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            # Again and again: the driver may lose a cancellation (see ``cancellable``).
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_AGAIN_SECONDS)

    async def _make_ready(self) -> None:
        # A quick question comes first, lest a server that is gone is waited for as long as indexes.
        with asking(self._seconds):
            await self._parts.follower.choose()
        if self._gate is not None:
            await self._gate()
        if self._prepare:
            with asking(LONG_SECONDS):
                await indexes.ensure(self._parts.database)
                await adopt(self._parts.projects)
        with asking(self._seconds):
            await self._parts.follower.start()

    async def _run(self) -> None:
        while self._wanting is not None:
            out_of_reach = isinstance(self._wanting, StoreUnavailableError)
            await asyncio.sleep(_PAUSE_SECONDS if out_of_reach else _PAUSE_AFTER_FAULT_SECONDS)
            await self._try_again(self._wanting)
        await self._parts.follower.run()

    async def _try_again(self, before: GreylagError) -> None:
        try:
            await self._make_ready()
        except GreylagError as error:
            if str(error) != str(before):
                _log.warning("store not ready", reason=str(error))
            self._wanting = error
        else:
            self._wanting = None
            _log.info("store ready")
            # Whoever waits looks now.
            self._parts.hub.signal(None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            _log.error("changes are no longer followed", exc_info=error)
            self._parts.hub.fail(error)


# The store in MongoDB: records that any number of processes on any machines share.

_NO_LIMITS_GIVEN = Limits()


class MongoStore:
    """Implements ``greylag.ports.ProjectStore``; ``await MongoStore.open(...)`` makes one.

    Any number of processes may open the same database. A write reads the record, decides, and
    writes only if the record's ``revision`` is still the same, else begins anew; a claim is one
    atomic step. Nothing needs transactions. Writes wait for a majority and its journals; reads see
    only what a majority has.
    """

    def __init__(self, parts: Parts, limits: Limits, opening: Opening) -> None:
        self._parts = parts
        self._projects = parts.projects
        self._writes = parts.writes
        self._work = parts.work
        self._duties = Duties(parts.database[indexes.DUTIES])
        self._seconds = limits.operation
        self._opening = opening
        self._closed = False

    @classmethod
    async def open(  # noqa: PLR0913 - each is a choice of its own, given by name
        cls,
        uri: str,
        database: str = "goose",
        *,
        limits: Limits = _NO_LIMITS_GIVEN,
        poll_seconds: float = 0.25,
        prepare: bool = True,
        patient: bool = False,
        gate: Gate | None = None,
    ) -> "MongoStore":
        """Open ``database`` of the server that ``uri`` names; the URI may hold a password.

        With ``prepare``, indexes are made and checked and older documents adopted; without, that
        is left to others, for a quick start. ``gate`` is asked before and raises why the store must
        not be worked on. ``poll_seconds`` is for servers without change streams. Raises
        ``StoreUnavailableError`` when the server cannot be reached (with ``patient`` that is waited
        for, and each call raises it until then), and ``ConfigError`` for a URI or name that cannot
        be used, or an index that cannot be had.
        """
        parts = await assemble(uri, database, limits, poll_seconds)
        opening = Opening(parts, limits.operation, prepare=prepare, gate=gate)
        store = cls(parts, limits, opening)
        try:
            await opening.begin(patient=patient)
        except BaseException:
            await store.close()
            raise
        return store

    async def create(self, project: Project, key: IdempotencyKey | None = None) -> Created:
        """Insert a project; see the port. Once a project is forgotten, so is its key."""
        news = self._parts.echoes.name()

        async def work() -> Created:
            creation = Creation(self._projects, self._parts.keys, news, self._seconds)
            created = await creation.run(project, key)
            if created.new:
                await self._writes.tell(news, created.project.id, created.project.ref)
            return created

        with self._asking():
            return await self._writes.to_its_end(work())

    async def get(self, owner: str, project_id: str) -> Project:
        """Return the project as it is now; see the port."""
        ref = ProjectRef(owner, project_id)
        with self._asking():
            raw = await self._projects.find_one(_of(ref), WITHOUT_TAIL)
            if raw is None:
                raise records.not_found(ref)
            return from_document(raw).project

    async def page(self, owner: str, query: PageQuery) -> Page:
        """Return one page; see the port."""
        with self._asking():
            return await projects.page(self._projects, owner, query)

    async def edit(self, owner: str, project_id: str, edit: Edit, now: datetime) -> Project:
        """Change name or metadata; see the port."""
        ref = ProjectRef(owner, project_id)
        with self._asking():
            return await self._writes.change(
                _of(ref), lambda record: records.edited(_there(record, ref), edit, now)
            )

    async def want(
        self, owner: str, project_id: str, desired: Desired, now: datetime, deadline: datetime
    ) -> Project:
        """Write what is wanted; see the port."""
        ref = ProjectRef(owner, project_id)
        with self._asking():
            return await self._writes.change(
                _of(ref), lambda record: records.wanted(_there(record, ref), desired, now, deadline)
            )

    async def events(self, owner: str, project_id: str, after: int, limit: int) -> Sequence[Event]:
        """Return a part of the log; see the port."""
        ref = ProjectRef(owner, project_id)
        with self._asking():
            raw = await self._projects.find_one(_of(ref), {"last_seq": True, "tail": True})
            if raw is None:
                raise records.not_found(ref)
            return await self._parts.log.read(raw, after, limit)

    async def claim_due(self, worker: str, now: datetime, lease_seconds: float) -> Claim | None:
        """Claim the project whose turn it is; see the port."""
        with self._asking():
            while (
                raw := await claims.claim(self._projects, worker, now, lease_seconds)
            ) is not None:
                try:
                    return Claim(from_document(raw).project)
                except DocumentError as error:
                    # Its lease keeps it from being claimed again at once.
                    _log.warning("document passed over", reason=str(error))
            return None

    async def next_due(self) -> datetime | None:
        """Return when the next claim can succeed; see the port."""
        with self._asking():
            return await claims.next_due(self._projects)

    async def renew(self, claim: Claim, now: datetime, lease_seconds: float) -> Claim:
        """Extend a lease; see the port."""
        with self._asking():
            return await self._work.renew(claim, now, lease_seconds)

    async def record(
        self, claim: Claim, outcome: Outcome, now: datetime, *, release: bool
    ) -> Project:
        """Write what is; see the port."""
        with self._asking():
            return await self._work.record(claim, outcome, now, release=release)

    async def forget(self, claim: Claim) -> None:
        """Remove a record and its log; see the port."""
        with self._asking():
            await self._work.forget(claim)

    async def poke(self, ref: ProjectRef, now: datetime) -> None:
        """Make one project due; see the port."""
        with self._asking():
            await self._work.poke(ref, now)

    async def poke_unsettled(self, now: datetime) -> int:
        """Make due all that may need work; see the port."""
        # What may take long begins with what may not, lest a server that is gone is waited for.
        await self.ping()
        with self._asking(LONG_SECONDS):
            return await self._work.poke_unsettled(now)

    async def take_duty(
        self, name: str, worker: str, *, since: datetime, now: datetime, seconds: float
    ) -> Duty:
        """Take a duty on; see the port."""
        with self._asking():
            return await self._duties.take(name, worker, since, now, seconds)

    async def finish_duty(self, name: str, worker: str, now: datetime) -> None:
        """Say that a duty is done; see the port."""
        with self._asking():
            await self._duties.finish(name, worker, now)

    def subscribe(self, ref: ProjectRef | None = None) -> AbstractContextManager[Subscription]:
        """Hear of changes; see the port."""
        return self._parts.hub.subscribe(ref)

    async def ping(self) -> None:
        """Return when a majority of the servers takes writes; see the port."""
        with self._asking():
            await self._parts.database[indexes.PINGS].update_one(
                {"_id": "ping"}, {"$inc": {"count": 1}}, upsert=True
            )

    async def close(self) -> None:
        """Finish what was begun and disconnect; see the port."""
        self._closed = True
        await self._opening.close()
        await self._writes.close()
        await self._parts.client.close()

    @contextmanager
    def _asking(self, seconds: float | None = None) -> Iterator[None]:
        if self._closed:
            raise StoreUnavailableError("The store has been closed.")
        self._opening.check()
        with asking(seconds or self._seconds):
            yield


def _of(ref: ProjectRef) -> Document:
    return {"user_id": ref.user_id, "project_id": ref.project_id}


def _there(record: Record | None, ref: ProjectRef) -> Record:
    if record is None:
        raise records.not_found(ref)
    return record
