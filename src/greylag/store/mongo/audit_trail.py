"""The audit trail in MongoDB: a document for each entry, whose ``_id`` is its number.

Where the server has transactions, a change and its entry are one. A server without a replica set
has none: there an entry that says ``begun`` comes before the change, and another after it. Of two
processes that take the same number at once, one begins anew.

Each entry holds the hash of the one before, so a process writes one step after another. What comes
while a step is on its way is taken into the next one together, where the server has transactions:
else all who ask at once would wait for as many answers of a server that is far.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import pymongo
from pymongo import DESCENDING, WriteConcern
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import BulkWriteError, ConnectionFailure, DuplicateKeyError, PyMongoError
from pymongo.read_concern import ReadConcern

from greylag.common.clock import rfc3339
from greylag.common.concurrent import both
from greylag.domain.audit import (
    START,
    AuditBounds,
    AuditEntry,
    AuditEvent,
    Link,
    Result,
    chained,
    to_json,
)
from greylag.ports import AuditFilter, NumberedEntry
from greylag.store.mongo import indexes
from greylag.store.mongo.connection import (
    Client,
    Database,
    WriteAttempts,
    has_change_streams,
    repeated,
)

Write = Callable[[AsyncClientSession | None], Awaitable[bool]]
"""A write, in a transaction if there is one; it tells whether anything was written. It may be done
again: what it did before is undone then."""

_SNAPSHOT = ReadConcern("snapshot")
_DURABLE = WriteConcern(w="majority", j=True)
_DUPLICATE = 11000
_TOGETHER = 8
"""How many are written in one step at most: each change in it is one more answer to wait for, and
holds up whoever else writes the same record.
"""
_FRESH_SECONDS = 1.0
"""How long the end of the chain is taken to be where we have seen it: whoever is wrong begins anew,
as the number is taken. Nothing that was written meanwhile can have been trimmed."""


class _OvertakenError(Exception):
    """Another process has taken the number."""


@dataclass(frozen=True, slots=True)
class _InLine:
    """Who waits for their entry: of what, with which write, and where they hear of it."""

    event: AuditEvent
    write: Write | None
    entry: asyncio.Future[AuditEntry | None]


class AuditTrail:
    """The entries of one database. Its methods are bounded by whoever calls them."""

    def __init__(self, client: Client, database: Database, seconds: float) -> None:
        self._client = client
        self._entries = database[indexes.AUDIT]
        self._bounds = database[indexes.AUDIT_BOUNDS]
        self._seconds = seconds
        self._line: list[_InLine] = []
        self._writer: asyncio.Task[None] | None = None
        self._last: tuple[float, Link] | None = None
        self._transactions: bool | None = None
        self.told: list[Callable[[AuditEntry], None]] = []

    async def recorded(self, event: AuditEvent | None, write: Write) -> bool:
        """Do ``write``, with the entry of ``event`` if it changes something; return whether so."""
        if event is None:
            return await write(None)
        if await self._has_transactions():
            return await self._in_turn(event, write) is not None
        await self.append(replace(event, result=Result.BEGUN))
        wrote = False
        try:
            wrote = await write(None)
        except DuplicateKeyError:
            await self.append(replace(event, result=Result.UNCHANGED))
            raise
        await self.append(event if wrote else replace(event, result=Result.UNCHANGED))
        return wrote

    async def append(self, event: AuditEvent) -> AuditEntry:
        """Append an entry; see the port."""
        await self._has_transactions()
        entry = await self._in_turn(event, None)
        assert entry is not None  # noqa: S101 - only a write may change nothing
        return entry

    async def finish(self) -> None:
        """Return when nothing is on its way any more."""
        while self._writer is not None and not self._writer.done():
            await asyncio.wait([self._writer])

    async def read(
        self, asked: AuditFilter, limit: int, before: int | None, after: int
    ) -> Sequence[NumberedEntry]:
        """Return entries; see the port."""
        numbers = {"$gt": after} | ({} if before is None else {"$lt": before})
        terms: list[dict[str, Any]] = [{"_id": numbers}]
        for name, value in (
            ("actor.user", asked.user),
            ("action", asked.action),
            ("result", asked.result),
            ("at", asked.since and {"$gte": rfc3339(asked.since)}),
            ("at", asked.until and {"$lt": rfc3339(asked.until)}),
        ):
            terms += [{name: value}] if value is not None else []
        if asked.object is not None:
            # What is below it has a slash next, and "0" is what follows "/".
            below = {"$gt": f"{asked.object}/", "$lt": f"{asked.object}0"}
            terms.append({"$or": [{"object": asked.object}, {"object": below}]})
        order = 1 if before is None else DESCENDING
        found = self._entries.find({"$and": terms}, sort=[("_id", order)], limit=limit)
        return [_told(raw) for raw in await found.to_list()]

    async def bounds(self) -> AuditBounds:
        """Return where the chain begins and ends; see the port.

        What is kept of the end comes after the entry itself.
        """
        kept, last = await asyncio.gather(
            self._bounds.find({}).to_list(),
            self._entries.find_one(sort=[("_id", DESCENDING)]),
        )
        places = {raw["_id"]: Link(raw["number"], raw["hash"]) for raw in kept}
        start, end = places.get("start", START), places.get("end", START)
        if last is not None and last["_id"] > end.number:
            end = Link(last["_id"], str(last.get("hash")))
        if end.number < start.number:
            end = start  # what was kept of it is older than what was trimmed
        return AuditBounds(start, end)

    async def trim(self, before: datetime, limit: int) -> int:
        """Remove the oldest entries; see the port."""
        oldest = await self._entries.find_one(sort=[("_id", 1)])
        if oldest is None:
            return 0
        end = oldest["_id"] + limit
        kept = {"_id": {"$lt": end}, "at": {"$gte": rfc3339(before)}}
        first = await self._entries.find_one(kept, sort=[("_id", 1)])
        older = {"_id": {"$lt": end if first is None else first["_id"]}}
        last = await self._entries.find_one(older, sort=[("_id", DESCENDING)])
        if last is None:
            return 0
        await self._keep("start", Link(last["_id"], str(last.get("hash"))))
        trimmed = {"_id": {"$lte": last["_id"]}}
        return (await repeated(lambda: self._entries.delete_many(trimmed))).deleted_count

    async def clear(self, kept: AuditBounds) -> None:
        """Remove all entries; those that come have these bounds."""
        self._last = None
        for collection in (self._entries, self._bounds):
            await repeated(partial(collection.delete_many, {}))
        for place, link in (("start", kept.start), ("end", kept.end)):
            await self._keep(place, link)

    async def _has_transactions(self) -> bool:
        if self._transactions is None:
            self._transactions = await has_change_streams(self._client)
        return self._transactions

    async def _in_turn(self, event: AuditEvent, write: Write | None) -> AuditEntry | None:
        """Return the entry, once it is written; ``None`` when ``write`` has changed nothing.

        Who is cancelled meanwhile leaves it to its end.
        """
        one = _InLine(event, write, asyncio.get_running_loop().create_future())
        self._line.append(one)
        if self._writer is None or self._writer.done():
            # In no context: the time of whoever comes first is not that of those behind.
            self._writer = asyncio.create_task(
                self._write_line(), name="audit-trail", context=Context()
            )
        return await asyncio.shield(one.entry)

    async def _write_line(self) -> None:
        while self._line:
            together = _TOGETHER if self._transactions else 1
            group, self._line = self._line[:together], self._line[together:]
            await self._settle(group)
            if self._line or self._last is None:
                continue
            # Nobody waits for it, and what fails now the next entry sets right.
            with suppress(PyMongoError), pymongo.timeout(self._seconds):
                await self._keep("end", self._last[1])

    async def _settle(self, group: Sequence[_InLine]) -> None:
        """Write the entries of all in ``group``, and tell each of them how that went."""
        try:
            with pymongo.timeout(self._seconds):
                entries = await self._attempt(group)
        except Exception as error:  # noqa: BLE001 - whoever waits has it
            self._last = None
            if len(group) > 1 and not (_is_away(error) or _may_be_done(error)):
                half = len(group) // 2
                await self._settle(group[:half])
                await self._settle(group[half:])
                return
            failed = list(group)
            if _is_away(error):
                # Nobody behind waits for as many time limits as there are steps before theirs.
                failed += self._line
                self._line = []
            for one in failed:
                one.entry.set_exception(error)
                one.entry.exception()  # nobody may be left who takes it
            return
        for one, entry in zip(group, entries, strict=True):
            one.entry.set_result(entry)

    async def _attempt(self, group: Sequence[_InLine]) -> Sequence[AuditEntry | None]:
        attempts = WriteAttempts(self._seconds)
        while True:
            failed: PyMongoError | None = None
            try:
                return await self._try(group)
            except _OvertakenError:
                pass
            except PyMongoError as error:
                may_pass = error.has_error_label("TransientTransactionError")
                if not may_pass or (len(group) > 1 and not _is_away(error)):
                    raise
                failed = error
            self._last = None
            await attempts.pause(failed)

    async def _try(self, group: Sequence[_InLine]) -> Sequence[AuditEntry | None]:
        if len(group) == 1 and group[0].write is None:
            entries = await self._insert([group[0].event], await self._end(), None)
            return self._tell(entries)
        async with (
            self._client.start_session() as session,
            await session.start_transaction(_SNAPSHOT, _DURABLE),
        ):
            wrote, end = await both(_written(group, session), self._end())
            events = [one.event for one, wrote_it in zip(group, wrote, strict=True) if wrote_it]
            written = await self._insert(events, end, session) if events else []
        told = iter(self._tell(written))
        return [next(told) if wrote_it else None for wrote_it in wrote]

    async def _end(self) -> Link:
        """Return where the chain ends, as far as we know."""
        now = asyncio.get_running_loop().time()
        if self._last is None or now >= self._last[0] + _FRESH_SECONDS:
            self._last = now, (await self.bounds()).end
        return self._last[1]

    async def _insert(
        self, events: Sequence[AuditEvent], end: Link, session: AsyncClientSession | None
    ) -> Sequence[AuditEntry]:
        entries = list[AuditEntry]()
        for event in events:
            entries.append(chained(event, entries[-1].link if entries else end))
        documents = [{"_id": entry.number, **to_json(entry)} for entry in entries]
        try:
            await self._entries.insert_many(documents, session=session)
        except BulkWriteError as error:
            refused = error.details["writeErrors"]
            if not refused or refused[0]["code"] != _DUPLICATE:
                raise  # none is refused where it could not be made durable
            raise _OvertakenError from error
        return entries

    async def _keep(self, place: str, link: Link) -> None:
        """Keep a place of the chain, unless a later one is kept."""
        earlier = {"_id": place, "number": {"$lt": link.number}}
        kept = {"number": link.number, "hash": link.hash}
        with suppress(DuplicateKeyError):
            await self._bounds.update_one(earlier, {"$set": kept}, upsert=True)

    def _tell(self, entries: Sequence[AuditEntry]) -> Sequence[AuditEntry]:
        if entries:
            self._last = asyncio.get_running_loop().time(), entries[-1].link
        for entry in entries:
            for told in self.told:
                told(entry)
        return entries


async def _written(group: Sequence[_InLine], session: AsyncClientSession) -> Sequence[bool]:
    return [one.write is None or await one.write(session) for one in group]


def _is_away(error: Exception) -> bool:
    """Tell whether the server is at fault; else one write of several may be, and no other: of what
    no document can hold, say, or where others write the same. Time that is over is no outage: a
    server that hangs ends the connection.
    """
    return isinstance(error, ConnectionFailure)


def _may_be_done(error: Exception) -> bool:
    """Tell whether a commit was sent whose end is not known: it is not to be repeated."""
    return isinstance(error, PyMongoError) and error.has_error_label(
        "UnknownTransactionCommitResult"
    )


def _told(raw: dict[str, Any]) -> NumberedEntry:
    return raw.pop("_id"), raw
