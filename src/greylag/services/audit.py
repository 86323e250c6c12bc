"""What the audit trail is told.

A change of the store is told in the same step as it is made: use cases give the store's method the
event. What is done elsewhere, by an agent, is told before it is done and again when it has ended.
Refusals cost whoever is refused nothing, so they are told in bounds: equal ones of a minute are one
entry, with their number, and so are those beyond what one asker, or all together, may fill.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

import structlog

from greylag.common import logs
from greylag.common.clock import rfc3339
from greylag.domain.audit import Actor, AuditEntry, AuditEvent, Result, to_json
from greylag.domain.errors import GreylagError, StoreUnavailableError
from greylag.domain.users import Principal
from greylag.ports import TRIMMED_AT_ONCE, AuditStore, Clock

WINDOW_SECONDS = 60.0
MOST_OF_ONE = 20
MOST_OF_ALL = 200
TRIM_EVERY = timedelta(hours=1)
_LONGEST = 1000
_LONGEST_LIST = 16_384  # as JSON: an entry with several still fits into a datagram
_EVERYBODY = Actor("", "anonymous")

_log = structlog.get_logger(__name__)


def event_of(  # noqa: PLR0913 - all that an entry says, by name
    who: Principal | Actor,
    at: datetime,
    action: str,
    on: str,
    *,
    result: Result = Result.DONE,
    code: str = "",
    **changed: Any,
) -> AuditEvent:
    """Return what the trail is told of this request: who did what with ``on``, and what changed by
    name and new value; a value that is ``None`` is left out.
    """
    return AuditEvent(
        at=at,
        actor=who if isinstance(who, Actor) else Actor.of(who),
        action=str(action),
        object=_plain(on),
        result=result,
        code=code,
        request_id=logs.request_id.get(),
        changed={name: _plain(value) for name, value in changed.items() if value is not None},
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON and every store can have it, a text and a list cut to what is worth
    keeping.
    """
    match value:
        case Enum():
            plain = value.value
        case str():
            plain = value.encode(errors="replace").decode()[:_LONGEST]
        case datetime():
            plain = rfc3339(value)
        case Mapping():
            plain = {_plain(name): _plain(one) for name, one in value.items()}
        case set() | frozenset():
            plain = _first(sorted(_plain(one) for one in value))
        case Sequence():
            plain = _first([_plain(one) for one in value])
        case _:
            plain = value
    return plain


def _first(found: Sequence[Any]) -> list[Any]:
    """Return the first of these, and how many more there are."""
    room, kept = _LONGEST_LIST, list[Any]()
    for one in found:
        room -= len(json.dumps(one)) + 2
        if room < 0:
            return [*kept, f"and {len(found) - len(kept)} more"]
        kept.append(one)
    return kept


class Repeats:
    """Events of the present minute, of which equal ones are one entry and a number."""

    def __init__(self) -> None:
        self._counted: dict[str, AuditEvent] = {}
        self._of_one: Counter[Actor] = Counter()

    def count(self, event: AuditEvent) -> bool:
        """Count an event that is equal to one that was added; return whether there is one."""
        key = _key(event)
        known = self._counted.get(key)
        if known is not None:
            self._counted[key] = replace(known, count=known.count + 1, request_id="")
        return known is not None

    def add(self, event: AuditEvent) -> None:
        """Add an event that has its entry."""
        self._of_one[event.actor] += 1
        # What was counted while another like it got its entry stays.
        self._counted.setdefault(_key(event), replace(event, count=0))

    def admit(self, event: AuditEvent) -> bool:
        """Add an event that is to have an entry, unless there is one, or no room for it: then count
        it, among those for which there was no room.
        """
        if self.count(event):
            return False
        if len(self._counted) >= MOST_OF_ALL:
            event = _summary(event, _EVERYBODY)
        elif self._of_one[event.actor] >= MOST_OF_ONE:
            event = _summary(event, event.actor)
        else:
            self.add(event)
            return True
        if not self.count(event):
            self._counted[_key(event)] = event
        return False

    def take(self, now: datetime) -> list[AuditEvent]:
        """Return what was counted beside the entries that there are, and begin anew."""
        counted, self._counted, self._of_one = self._counted, {}, Counter()
        return [replace(event, at=now) for event in counted.values() if event.count]

    def put_back(self, event: AuditEvent) -> None:
        """Count what was taken, and not told, once more."""
        since = self._counted.get(_key(event))
        count = event.count + (since.count if since else 0)
        self._counted[_key(event)] = replace(event, count=count)


def _key(event: AuditEvent) -> str:
    """Return what equal events have in common."""
    return repr((event.actor, event.action, event.object, event.result, event.code, event.changed))


def _summary(event: AuditEvent, actor: Actor) -> AuditEvent:
    return replace(event, actor=actor, action="", object="", code="", changed={}, request_id="")


class Audit:
    """Tells the audit trail what happens beside the store's own changes, and keeps it in bounds."""

    def __init__(self, store: AuditStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._refusals = Repeats()
        self._strangers = Repeats()
        self._done = Repeats()
        self._until = 0.0

    def event(self, who: Principal | Actor, action: str, on: str, **changed: Any) -> AuditEvent:
        """Return what the trail is told of a change; see ``event_of``."""
        return event_of(who, self._clock.now(), action, on, **changed)

    async def append(self, event: AuditEvent) -> None:
        """Tell of something.

        Raises:
            StoreUnavailableError: it could not be told, so it must not be done.
        """
        await self._store.append_audit(event)

    @asynccontextmanager
    async def doing(
        self, who: Principal | Actor, action: str, on: str, **changed: Any
    ) -> AsyncIterator[None]:
        """Tell that what the ``with`` block does has begun, then how it ended.

        An end of Greylag's own, or of whoever asked, leaves the beginning alone.

        Raises:
            StoreUnavailableError: it could not be told, so it was not begun.
        """
        event = self.event(who, action, on, **changed)
        await self._store.append_audit(replace(event, result=Result.BEGUN))
        try:
            yield
        except GreylagError as error:
            failed = replace(event, result=Result.FAILED, code=error.info.code)
            await self._tell(replace(failed, at=self._clock.now()))
            raise
        await self._tell(replace(event, at=self._clock.now()))

    @asynccontextmanager
    async def lasting(
        self, who: Principal | Actor, action: str, on: str, **changed: Any
    ) -> AsyncIterator[None]:
        """Tell that the ``with`` block has ended, in whatever way, after how many ``seconds``."""
        event, began = self.event(who, action, on, **changed), self._clock.monotonic()
        try:
            yield
        finally:
            seconds = round(self._clock.monotonic() - began)
            told = {**event.changed, "seconds": seconds}
            await self._tell(replace(event, at=self._clock.now(), changed=told))

    async def refused(
        self, who: Principal | Actor, action: str, on: str, code: str, **changed: Any
    ) -> None:
        """Tell of a refusal, in bounds. The refusal holds whether or not it can be told; where it
        cannot, the log is told.
        """
        refusal = event_of(
            who, self._clock.now(), action, on, result=Result.REFUSED, code=code, **changed
        )
        # Strangers are any number, and may crowd out no one but strangers.
        known = refusal.actor.kind != "anonymous"
        await self._renew()
        if (self._refusals if known else self._strangers).admit(refusal):
            await self._tell(refusal)

    async def repeatedly(self, event: AuditEvent) -> None:
        """Tell of what is done again and again: equal ones of a minute are one entry at once, and
        one with the number of the others.

        Raises:
            StoreUnavailableError: it could not be told, so it must not be done.
        """
        await self._renew()
        if not self._done.count(event):
            await self._store.append_audit(event)
            self._done.add(event)

    async def flush(self) -> None:
        """Tell what was counted until now."""
        self._until = self._clock.monotonic() + WINDOW_SECONDS
        now = self._clock.now()
        kinds = (self._refusals, self._strangers, self._done)
        counted = [(repeats, event) for repeats in kinds for event in repeats.take(now)]
        try:
            while counted and await self._tell(counted[0][1]):
                del counted[0]
        except BaseException:  # cancelled: the next flush tells of them
            for repeats, event in counted:
                repeats.put_back(event)
            raise
        for _, event in counted[1:]:  # each would wait in vain for a store that is away
            _log.error("audit_lost", entry=_unnumbered(event))

    async def _renew(self) -> None:
        """Tell what was counted, where ``run`` does not."""
        if self._clock.monotonic() >= self._until + WINDOW_SECONDS:
            await self.flush()

    async def run(self, keep: timedelta) -> None:
        """Tell each minute what was counted, and remove what is older than ``keep``, each minute
        some where there is much; until cancelled.
        """
        trimmed = datetime.min.replace(tzinfo=UTC)
        while True:
            await self._clock.sleep(WINDOW_SECONDS)
            await self.flush()
            now = self._clock.now()
            if now - trimmed < TRIM_EVERY:
                continue
            try:
                gone = await self._store.trim_audit(now - keep)
            except StoreUnavailableError as error:
                _log.warning("audit_not_trimmed", error=str(error))
                continue
            if gone < TRIMMED_AT_ONCE:
                trimmed = now
            if gone:
                _log.info("audit_trimmed", entries=gone)

    async def _tell(self, event: AuditEvent) -> bool:
        """Tell of what has happened already, the log if the store cannot be told; return which."""
        try:
            await self._store.append_audit(event)
        except StoreUnavailableError as error:
            _log.error("audit_lost", entry=_unnumbered(event), error=str(error))
            return False
        return True


def _unnumbered(event: AuditEvent) -> Mapping[str, Any]:
    """Return what an entry would say, for the log."""
    return to_json(AuditEntry(0, event, "", ""))
