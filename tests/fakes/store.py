"""The store in memory, for tests: all that the SQLite store does, gone when the process ends."""

import copy
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import takewhile
from typing import Any

from greylag.common.clock import rfc3339
from greylag.domain.audit import AuditBounds, AuditEntry, AuditEvent, Link, chained, to_json
from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import (
    Event,
    Project,
    ProjectRecord,
    ProjectRef,
    Status,
    new_instance_id,
    poked,
    unsettled,
)
from greylag.ports import (
    LONGEST_SIGNED,
    NO_EXPORT,
    TRIMMED_AT_ONCE,
    AnyKept,
    AuditFilter,
    Claim,
    Created,
    Duty,
    Fill,
    Finding,
    IdempotencyKey,
    Kept,
    NumberedEntry,
    Origin,
    Outcome,
    PageQuery,
    ProjectPage,
    ProjectStore,
    Stored,
    StoredEntry,
    StoredKey,
    StoredPerson,
    StoredProject,
    Subscription,
)
from greylag.store import people, records
from greylag.store.changes import ChangeHub
from greylag.store.records import DutyRecord


@dataclass(frozen=True, slots=True)
class _Key:
    """What an idempotency key stands for."""

    fingerprint: str
    ref: ProjectRef
    expires: datetime


@dataclass(slots=True)
class _Tables:
    records: dict[ProjectRef, ProjectRecord] = field(default_factory=dict)
    events: dict[ProjectRef, list[Event]] = field(default_factory=dict)
    keys: dict[tuple[str, str], _Key] = field(default_factory=dict)
    transcripts: dict[ProjectRef, dict[str, bytes]] = field(default_factory=dict)
    duties: dict[str, DutyRecord] = field(default_factory=dict)
    revoked: dict[str, datetime] = field(default_factory=dict)
    people: dict[tuple[type, str], dict[str, Any]] = field(default_factory=dict)
    labels: dict[tuple[type, str], Sequence[str]] = field(default_factory=dict)
    audit: list[dict[str, Any]] = field(default_factory=list)
    audit_bounds: AuditBounds = field(default_factory=AuditBounds)
    instance: str = field(default_factory=new_instance_id)


class MemoryStore(ProjectStore):
    """Implements ``greylag.ports.ProjectStore`` and ``Archive``.

    No method awaits anything, so each is one atomic step on the event loop.
    """

    place = "memory"
    keeps_extra = False

    def __init__(self) -> None:
        self._tables = _Tables()
        self._hub = ChangeHub()
        self._closed = False
        self._audit_told: list[Callable[[AuditEntry], None]] = []

    async def create(
        self,
        project: Project,
        key: IdempotencyKey | None = None,
        *,
        audit: AuditEvent | None = None,
    ) -> Created:
        tables = self._open()
        earlier = await self.created(project.user_id, key, project.created_at) if key else None
        if earlier is not None:
            return Created(earlier, new=False)
        if project.ref in tables.records:
            raise records.exists(project.ref)
        if self._made_for(project.made_for) is not None:
            raise records.environment_taken(project.made_for)
        if key is not None:
            tables.keys[project.user_id, key.key] = _Key(
                key.fingerprint, project.ref, project.created_at + records.KEY_LIFETIME
            )
        tables.events[project.ref] = []
        self._append(audit)
        return Created(self._put(records.new_record(project)), new=True)

    async def created(self, owner: str, key: IdempotencyKey, now: datetime) -> Project | None:
        tables = self._open()
        known = tables.keys.get((owner, key.key))
        if known is None or known.expires <= now:
            return None
        records.check_same(key, known.fingerprint)
        return records.check_still_theirs(_out(tables.records[known.ref]), owner)

    async def get(self, owner: str, project_id: str) -> Project:
        return _out(self._find(owner, project_id))

    async def page(self, owner: str, query: PageQuery) -> ProjectPage:
        before = records.decode(query.cursor) if query.cursor is not None else None
        found = [
            record
            for record in self._open().records.values()
            if record.project.user_id == owner
            and query.status in {None, record.project.status}
            and (before is None or records.position(record.project) < before)
        ]
        found.sort(key=lambda record: records.position(record.project), reverse=True)
        return records.cut([_out(record) for record in found[: query.limit + 1]], query.limit)

    async def has_projects(self, owner: str) -> bool:
        return any(record.project.user_id == owner for record in self._open().records.values())

    async def change(
        self,
        ref: ProjectRef,
        rule: Callable[[ProjectRecord], ProjectRecord],
        audit: AuditEvent | None,
    ) -> Project:
        record, tables = self._find(ref.user_id, ref.project_id), self._tables
        after = rule(record)
        new = after.project.ref
        if new != ref:
            if new in tables.records:
                raise records.exists(new)
            del tables.records[ref]
            tables.events[new] = tables.events.pop(ref)
            for name, key in tables.keys.items():
                if key.ref == ref:
                    tables.keys[name] = replace(key, ref=new)
            self._hub.signal(ref)
        return self._put(after, since=record, audit=audit)

    async def of_environment(self, ref: ProjectRef) -> Project:
        found = self._made_for(ref)
        if found is None:
            raise records.not_found(ref)
        return _out(found)

    async def events(self, owner: str, project_id: str, after: int, limit: int) -> Sequence[Event]:
        ref = self._find(owner, project_id).project.ref
        newer = [event for event in self._open().events[ref] if event.seq > after]
        return newer[:limit]

    async def claim_due(self, worker: str, now: datetime, lease_seconds: float) -> Claim | None:
        due = [(at, record) for at, record in self._claimable() if at <= now]
        if not due:
            return None
        projects = (record.project for record in self._tables.records.values())
        at_work = Counter(p.user_id for p in projects if p.lease and p.lease.until > now)
        _, record = min(
            due, key=lambda it: (at_work[it[1].project.user_id], it[0], it[1].project.id)
        )
        return Claim(self._keep(records.claimed(record, worker, now, lease_seconds)))

    async def next_due(self) -> datetime | None:
        return min((at for at, _ in self._claimable()), default=None)

    async def count_by_status(self) -> Mapping[Status, int]:
        counted = Counter(record.project.status for record in self._tables.records.values())
        return {status: counted[status] for status in Status}

    async def renew(
        self, claim: Claim, now: datetime, lease_seconds: float, *, above: int = 0
    ) -> Claim:
        return Claim(self._keep(records.renewed(self._of(claim), claim, now, lease_seconds, above)))

    async def record(
        self, claim: Claim, outcome: Outcome, now: datetime, *, release: bool
    ) -> Project:
        record, new = records.recorded(self._of(claim), claim, outcome, now, release=release)
        log = self._tables.events[claim.project.ref]
        log += new
        del log[: -records.LOG_LENGTH]
        return self._put(record)

    async def forget(self, claim: Claim) -> None:
        records.held(self._of(claim), claim)
        ref, tables = claim.project.ref, self._tables
        del tables.records[ref], tables.events[ref]
        tables.transcripts.pop(ref, None)
        for place, body in list(tables.people.items()):
            if place[0] in people.OF_PROJECTS and body["record_id"] == claim.project.id:
                del tables.people[place], tables.labels[place]
        tables.keys = {name: key for name, key in tables.keys.items() if key.ref != ref}
        self._hub.signal(ref)

    async def transcript(self, owner: str, project_id: str, part: str) -> bytes | None:
        ref = self._find(owner, project_id).project.ref
        return self._tables.transcripts.get(ref, {}).get(part)

    async def keep_transcript(
        self, claim: Claim, parts: Mapping[str, bytes], *, only: Collection[str] | None = None
    ) -> None:
        records.held(self._of(claim), claim)
        kept = {**self._tables.transcripts.get(claim.project.ref, {}), **parts}
        if only is not None:
            kept = {part: body for part, body in kept.items() if part in only}
        self._tables.transcripts[claim.project.ref] = kept

    async def poke(self, ref: ProjectRef, now: datetime) -> None:
        record = self._made_for(ref)
        if record is not None:
            self._put(poked(record, now))

    async def poke_unsettled(self, now: datetime) -> int:
        found = [r for r in self._open().records.values() if unsettled(r.project)]
        for record in found:
            self._put(poked(record, now))
        return len(found)

    async def instance(self) -> str:
        return self._open().instance

    async def take_duty(
        self, name: str, worker: str, *, since: datetime, now: datetime, seconds: float
    ) -> Duty:
        known = self._open().duties
        before = known.get(name, DutyRecord())
        verdict, known[name] = records.taken(before, worker, since, now, seconds)
        return verdict

    async def finish_duty(self, name: str, worker: str, now: datetime) -> None:
        known = self._open().duties
        known[name] = records.finished(known.get(name, DutyRecord()), worker, now)

    async def revoke(
        self, name: str, until: datetime, now: datetime, *, audit: AuditEvent | None = None
    ) -> bool:
        known = self._open().revoked
        for old in [old for old, its_end in known.items() if its_end < now]:
            del known[old]
        if name in known:
            return False
        known[name] = until
        self._append(audit)
        return True

    async def is_revoked(self, name: str, signed_at: datetime | None = None) -> bool:
        known = self._open().revoked
        imported = known.get(records.IMPORTED)
        before = imported and signed_at and imported > signed_at + LONGEST_SIGNED
        return name in known or bool(before)

    async def find(self, kind: type[Kept], key: str) -> Kept | None:
        body = self._open().people.get((kind, key))
        return None if body is None else people.from_body(kind, key, body)

    async def labelled(
        self, kind: type[Kept], label: str | None = None, *, strict: bool = False
    ) -> Sequence[Kept]:
        tables = self._open()
        found = (
            (key, body)
            for (of, key), body in sorted(tables.people.items(), key=lambda item: item[0][1])
            if of is kind and (label is None or label in tables.labels[of, key])
        )
        return people.readable(kind, label, found, strict=strict)

    async def put(self, one: AnyKept, now: datetime, *, audit: AuditEvent | None = None) -> bool:
        del now
        tables, place = self._open(), (type(one), one.key)
        if tables.people.get(place, {}).get("version", 0) != one.version:
            return False
        tables.people[place] = people.to_body(one)
        tables.labels[place] = list(one.labels)
        self._append(audit)
        return True

    async def remove(
        self,
        kind: type[Kept],
        key: str,
        *,
        only: Mapping[str, str] | None = None,
        audit: AuditEvent | None = None,
    ) -> bool:
        tables, place = self._open(), (kind, key)
        body = tables.people.get(place)
        if body is None or not (only or {}).items() <= body.items():
            return False
        del tables.people[place], tables.labels[place]
        self._append(audit)
        return True

    async def append_audit(self, event: AuditEvent) -> AuditEntry:
        entry = self._append(event)
        assert entry is not None
        return entry

    def _append(self, event: AuditEvent | None) -> AuditEntry | None:
        if event is None:
            return None
        tables = self._open()
        entry = chained(event, tables.audit_bounds.end)
        tables.audit.append(to_json(entry))
        tables.audit_bounds = replace(tables.audit_bounds, end=entry.link)
        for told in self._audit_told:
            told(entry)
        return entry

    async def audit_entries(
        self, asked: AuditFilter, limit: int, *, before: int | None = None, after: int = 0
    ) -> Sequence[NumberedEntry]:
        found = [
            (one["number"], one)
            for one in self._open().audit
            if after < one["number"] and (before is None or one["number"] < before)
            if _matches(one, asked)
        ]
        return found[:limit] if before is None else found[::-1][:limit]

    async def audit_bounds(self) -> AuditBounds:
        return self._open().audit_bounds

    async def trim_audit(self, before: datetime, limit: int = TRIMMED_AT_ONCE) -> int:
        tables = self._open()
        some = tables.audit[:limit]
        old = list(takewhile(lambda one: one["at"] < rfc3339(before), some))
        if old:
            start = Link(old[-1]["number"], old[-1]["hash"])
            tables.audit_bounds = replace(tables.audit_bounds, start=start)
            del tables.audit[: len(old)]
        return len(old)

    def on_audit(self, told: Callable[[AuditEntry], None]) -> None:
        self._audit_told.append(told)

    def subscribe(self, to: ProjectRef | str | None = None) -> AbstractContextManager[Subscription]:
        return self._hub.subscribe(to)

    async def read(self) -> AsyncIterator[Sequence[StoredProject | Finding]]:
        found = sorted(self._open().records.values(), key=lambda record: record.project.id)
        if found:
            yield [self._stored(record) for record in found]

    async def count(self) -> int:
        return len(self._open().records)

    async def people(self) -> AsyncIterator[Sequence[StoredPerson | Finding]]:
        found = [
            people.to_stored(people.NAMES[kind], key, body)
            for (kind, key), body in self._open().people.items()
            if kind in people.EXPORTED.values()
        ]
        if found:
            yield found

    async def count_people(self) -> int:
        return sum(kind in people.EXPORTED.values() for kind, _ in self._open().people)

    async def at_work(self, now: datetime) -> ProjectRef | None:
        projects = (record.project for record in self._open().records.values())
        return next((one.ref for one in projects if one.lease and one.lease.until > now), None)

    async def incomplete(self) -> bool:
        """Return false: what replaces a store does so in one step."""
        return False

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Keep nobody away: what replaces a store does so in one step."""
        yield

    @asynccontextmanager
    async def replacing(
        self, origin: Origin = NO_EXPORT, at: datetime | None = None
    ) -> AsyncIterator[Fill]:
        old = self._open()
        new = _Tables(
            duties=old.duties,
            revoked=dict(old.revoked),
            people={} if origin.people else old.people,
            labels={} if origin.people else old.labels,
            audit=list(old.audit) if origin.trail is None else [],
            audit_bounds=origin.trail or old.audit_bounds,
            instance=origin.instance or old.instance,
        )
        if at is not None:
            new.revoked[records.IMPORTED] = records.import_revokes_until(at)

        async def fill(stored_records: Sequence[Stored | AuditEvent]) -> None:
            for stored in stored_records:
                if isinstance(stored, StoredEntry):
                    new.audit.append(dict(stored.body))
                    continue
                if isinstance(stored, AuditEvent):
                    entry = chained(stored, new.audit_bounds.end)
                    new.audit.append(to_json(entry))
                    new.audit_bounds = replace(new.audit_bounds, end=entry.link)
                    continue
                if isinstance(stored, StoredPerson):
                    _keep_person(new, stored)
                    continue
                ref = stored.project.ref
                if ref in new.records:
                    new.keys = {name: key for name, key in new.keys.items() if key.ref != ref}
                new.records[ref] = ProjectRecord(stored.project, stored.claims)
                new.events[ref] = list(stored.events)
                for key in stored.keys:
                    kept = _Key(key.fingerprint, ref, key.expires_at)
                    new.keys[key.user_id, key.key] = kept

        yield fill
        self._tables = new
        self._hub.signal(None)

    async def findings(self) -> Sequence[Finding]:
        """Return nothing: there is no disk that could be damaged."""
        return []

    async def ping(self) -> None:
        self._open()

    async def close(self) -> None:
        self._closed = True
        self._tables = _Tables()

    def _open(self) -> _Tables:
        if self._closed:
            raise StoreUnavailableError("The store has been closed.")
        return self._tables

    def _find(self, owner: str, project_id: str) -> ProjectRecord:
        ref = ProjectRef(owner, project_id)
        try:
            return self._open().records[ref]
        except KeyError:
            raise records.not_found(ref) from None

    def _made_for(self, ref: ProjectRef) -> ProjectRecord | None:
        found = self._open().records.values()
        return next((one for one in found if one.project.made_for == ref), None)

    def _of(self, claim: Claim) -> ProjectRecord | None:
        record = self._open().records.get(claim.project.ref)
        return record if record and record.project.id == claim.project.id else None

    def _claimable(self) -> list[tuple[datetime, ProjectRecord]]:
        found = ((record.claimable_at, record) for record in self._open().records.values())
        return [(at, record) for at, record in found if at is not None]

    def _stored(self, record: ProjectRecord) -> StoredProject:
        tables, ref = self._tables, record.project.ref
        return StoredProject(
            project=_out(record),
            claims=record.claims,
            events=list(tables.events[ref]),
            keys=[
                StoredKey(user_id, name, key.fingerprint, key.expires)
                for (user_id, name), key in sorted(tables.keys.items())
                if key.ref == ref
            ],
        )

    def _put(
        self,
        record: ProjectRecord,
        *,
        since: ProjectRecord | None = None,
        audit: AuditEvent | None = None,
    ) -> Project:
        """Keep ``record`` and tell of it, unless it is the one that was there (``since``)."""
        if record is since:
            return _out(record)
        self._append(audit)
        project = self._keep(record)
        self._hub.signal(project.ref)
        return project

    def _keep(self, record: ProjectRecord) -> Project:
        """Keep ``record`` without a word: leases are nobody's news."""
        kept = json.loads(json.dumps(dict(record.project.metadata)))
        record = replace(record, project=replace(record.project, metadata=kept))
        self._tables.records[record.project.ref] = record
        return _out(record)


def _keep_person(tables: _Tables, stored: StoredPerson) -> None:
    one = people.from_stored(stored)
    tables.people[type(one), one.key] = people.to_body(one)
    tables.labels[type(one), one.key] = list(one.labels)


def _out(record: ProjectRecord) -> Project:
    """Return the project as a caller may have it: its metadata is a copy."""
    return replace(record.project, metadata=copy.deepcopy(record.project.metadata))


def _matches(one: Mapping[str, Any], asked: AuditFilter) -> bool:
    return (
        (asked.user is None or one.get("actor", {}).get("user") == asked.user)
        and (asked.action is None or one.get("action") == asked.action)
        and (asked.result is None or one.get("result") == asked.result)
        and (asked.object is None or f"{one.get('object')}/".startswith(f"{asked.object}/"))
        and (asked.since is None or one["at"] >= rfc3339(asked.since))
        and (asked.until is None or one["at"] < rfc3339(asked.until))
    )
