"""A store as one who moves or checks it sees it: everything in it, in pages, without use cases.

Nobody works on a store while it is read or filled this way; whoever finds otherwise says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from greylag.domain.errors import GreylagError
from greylag.domain.events import Event
from greylag.domain.project import Project, ProjectRef


class StoreNotEmptyError(GreylagError):
    """The target of a copy holds something that this copy has not put there."""

    code = "store_not_empty"
    hint = "Copy into an empty store; nothing in this one was changed."


class StoreCopyDiffersError(GreylagError):
    """After a copy the target does not hold what the source holds."""

    code = "store_copy_differs"
    hint = (
        "Stop everything that writes to either store and run the same command again: it mends what "
        "differs."
    )


class StoreInUseError(GreylagError):
    """Somebody works on the store that is to be copied."""

    code = "store_in_use"
    hint = "Stop each `greylag up`, `serve` and `worker` on it, then run the same command again."


class StoreUnreadableError(GreylagError):
    """A record is not of the form that it must have, so it cannot be copied."""

    code = "store_unreadable"
    hint = "`greylag store check` finds and explains such records; mend it, then copy again."


class StoreIncompleteError(GreylagError):
    """The store holds only a part of what is being copied into it."""

    code = "store_incomplete"
    hint = "Run the same `greylag store copy` again: it goes on where it was."


@dataclass(frozen=True, slots=True)
class KeptKey:
    """An idempotency key as it is kept."""

    user_id: str
    key: str
    fingerprint: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """All that a store holds of one project.

    ``claims`` counts the claims so far, ``last_seq`` the events so far, of which the newest 500 are
    kept. ``extra`` is what others keep in the record, in a form that only stores of the same kind
    understand (empty: nothing).
    """

    project: Project
    claims: int = 0
    last_seq: int = 0
    events: Sequence[Event] = ()
    keys: Sequence[KeptKey] = ()
    extra: bytes = b""


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something that breaks a rule: a stable code, where (a record's id, an index), a sentence,
    and what to do.
    """

    code: str
    record: str
    sentence: str
    hint: str


@dataclass(frozen=True, slots=True)
class Sheet:
    """One page of a store. ``after`` asks for the next one (``None``: there is no more)."""

    bundles: Sequence[Bundle]
    unreadable: Sequence[Flaw]
    after: str | None


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that has not run out."""

    ref: ProjectRef
    worker: str
    until: datetime


class Archive(Protocol):
    """A store opened as a whole. Every method may raise ``StoreUnavailableError``.

    Reading changes nothing. Writing is for a store that ``begin`` was called for.
    """

    @property
    def kind(self) -> str:
        """What it is kept in: ``sqlite`` or ``mongodb``."""

    @property
    def place(self) -> str:
        """Where it is, for people; the same for each opening, and without a password."""

    async def sheet(self, after: str | None, limit: int) -> Sheet:
        """Return the records that follow ``after`` (``None``: the first), ``limit`` at most, and
        fewer where their logs are long. The order is the store's own and never changes. A sheet
        may be empty and yet not the last.
        """

    async def find(self, record_ids: Sequence[str]) -> Mapping[str, Bundle]:
        """Return those of these records that are there, by id. One that cannot be read raises
        ``StoreUnreadableError``.
        """

    async def count(self) -> int:
        """Return how many records there are, readable or not."""

    async def held(self, now: datetime) -> Held | None:
        """Return a lease that has not run out at ``now``, if there is one."""

    async def unfinished(self) -> str | None:
        """Return the place that an unfinished copy into this store is from, ``None``: none is."""

    async def begin(self, source: str) -> bool:
        """Mark the store as being filled from the place ``source`` and return ``True``. A second
        call does no harm. ``False``, with nothing changed: it has records, or another source's.
        """

    async def write(self, bundles: Sequence[Bundle]) -> None:
        """Put these records there, each in place of what has its id, with all that belongs to it.
        Durable on return; cut off, it may have been done for some of them.

        Raises ``StoreNotEmptyError`` when another record has the same user and project id.
        """

    async def finish(self) -> None:
        """Take the mark of ``begin`` away: the store is whole."""

    async def flaws(self) -> Sequence[Flaw]:
        """Return what is wrong with the store as such: its indexes, and what belongs to nothing.
        Of each kind some are named, however many there are.
        """

    async def close(self) -> None:
        """Release everything. A second call does nothing."""
