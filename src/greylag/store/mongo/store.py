"""The store in MongoDB: records that any number of processes on any machines share."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime

import structlog

from greylag.domain.errors import StoreUnavailableError
from greylag.domain.events import Event
from greylag.domain.project import Desired, Project, ProjectRef
from greylag.ports.store import (
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
from greylag.store.mongo import claims, indexes, pages
from greylag.store.mongo.client import Limits
from greylag.store.mongo.creation import Creation
from greylag.store.mongo.documents import WITHOUT_TAIL, Document, from_document
from greylag.store.mongo.duties import Duties
from greylag.store.mongo.errors import DocumentError, asking
from greylag.store.mongo.opening import LONG_SECONDS, Gate, Opening
from greylag.store.mongo.parts import Parts, assemble
from greylag.store.records import Record

_log = structlog.get_logger(__name__)

_NO_LIMITS_GIVEN = Limits()


class MongoStore:
    """Implements ``greylag.ports.store.ProjectStore``; ``await MongoStore.open(...)`` makes one.

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
            return await pages.page(self._projects, owner, query)

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
