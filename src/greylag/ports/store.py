"""The store of records, as the use cases and the reconciler see it."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from greylag.domain.errors import ErrorInfo
from greylag.domain.events import Event, NewEvent
from greylag.domain.project import Desired, Project, ProjectRef, Status


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's key for a creation, with a digest of what it asked for. Kept for a day."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Created:
    """``new`` is false when the same key had created the project before."""

    project: Project
    new: bool


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which of a user's projects: ``limit`` at most, after ``cursor`` (opaque, from a page)."""

    limit: int = 50
    cursor: str | None = None
    status: Status | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Projects by creation, newest first; ``cursor`` asks for the next page (``None``: no more)."""

    projects: Sequence[Project]
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """What a user may change at any time; ``None`` leaves it as it is."""

    name: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on one project until ``project.lease.until``; fenced by its number."""

    project: Project

    @property
    def number(self) -> int:
        """The claim's fencing number."""
        return self.project.lease.number if self.project.lease else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the reconciler found and did: the whole observed half of the record, and its due time.

    ``events`` are appended to the activation log in the same transaction.
    """

    status: Status
    endpoint: str | None = None
    error: ErrorInfo | None = None
    error_terminal: bool = False
    observed_generation: int = 0
    attempts: int = 0
    last_activated_at: datetime | None = None
    last_deactivated_at: datetime | None = None
    deadline_at: datetime | None = None
    due_at: datetime | None = None
    events: Sequence[NewEvent] = field(default=())


class Duty(StrEnum):
    """What a worker is told that asks for work which one does for all."""

    MINE = "mine"
    HELD = "held"
    DONE = "done"


class Subscription(Protocol):
    """Hears of changes. Level-triggered: one that comes between two waits is not lost."""

    async def changed(self, timeout: float) -> bool:  # noqa: ASYNC109 - a wait for news ends without it
        """Return ``True`` as soon as something has changed, ``False`` after ``timeout`` seconds."""


class ProjectStore(Protocol):
    """The records, their activation logs, and who works on which.

    Every method may raise ``StoreUnavailableError``; then nothing was changed, or, when a server
    was lost as it answered, all of it: each may be called again. What has returned is durable.
    Methods that serve requests take the owner: other users' projects do not exist for them
    (``ProjectNotFoundError``). Reconciler writes take their claim and raise ``LeaseLostError``,
    changing nothing, once another claim was made.
    """

    async def create(self, project: Project, key: IdempotencyKey | None = None) -> Created:
        """Insert ``project``. A second call with the same key and fingerprint returns the first's
        project; with another fingerprint it raises ``IdempotencyConflictError``. An id that exists
        raises ``ProjectExistsError``.
        """

    async def get(self, owner: str, project_id: str) -> Project:
        """Return the project as it is now."""

    async def page(self, owner: str, query: PageQuery) -> Page:
        """Return one page of this owner's projects. A cursor that is not one of ours raises
        ``InvalidRequestError``.
        """

    async def edit(self, owner: str, project_id: str, edit: Edit, now: datetime) -> Project:
        """Change name or metadata and return the project. Idempotent. A project that is being
        deleted raises ``ProjectDeletingError``.
        """

    async def want(
        self, owner: str, project_id: str, desired: Desired, now: datetime, deadline: datetime
    ) -> Project:
        """Write what is wanted and return the project.

        A change: ``generation`` grows, ``due_at`` is now, ``deadline_at`` is ``deadline``,
        ``attempts`` is 0, ``error_terminal`` is false. The same again changes nothing, unless the
        project is in error: then it counts as a change (try once more). ``DELETED`` is final:
        anything else then raises ``ProjectDeletingError``.
        """

    async def events(self, owner: str, project_id: str, after: int, limit: int) -> Sequence[Event]:
        """Return the log's events with ``seq > after``, oldest first, ``limit`` at most. The log
        keeps the newest 500 of a project.
        """

    async def claim_due(self, worker: str, now: datetime, lease_seconds: float) -> Claim | None:
        """Claim, in one atomic step, the project whose turn it is; ``None`` when nothing is due
        that nobody's lease holds. Of two simultaneous calls one gets it.

        It is fair between users: first come the due projects of the users who have the fewest
        others under leases that have not run out; among those, what has been due longest; among
        those, the lowest id. So one user's thousand due projects do not hold back another's one.
        """

    async def next_due(self) -> datetime | None:
        """Return when the next claim can succeed (the past: now), ``None``: not before a change."""

    async def renew(self, claim: Claim, now: datetime, lease_seconds: float) -> Claim:
        """Extend the claim's lease; the claim returned carries the record as it is now, so a
        changed ``desired`` is seen.
        """

    async def record(
        self, claim: Claim, outcome: Outcome, now: datetime, *, release: bool
    ) -> Project:
        """Write what is. With ``release`` the lease ends, and if ``desired`` was changed since the
        claim was read the project is due at once, whatever the outcome says.
        """

    async def forget(self, claim: Claim) -> None:
        """Remove the record and its log for good."""

    async def poke(self, ref: ProjectRef, now: datetime) -> None:
        """Make the project due now. One that does not exist is passed over."""

    async def poke_unsettled(self, now: datetime) -> int:
        """Make due every project that runs, should run, or is not settled; return how many. Leases
        of dead workers are left to run out.
        """

    async def take_duty(
        self, name: str, worker: str, *, since: datetime, now: datetime, seconds: float
    ) -> Duty:
        """Take on, in one atomic step, work that one worker at a time does for all.

        ``MINE``: do it, for ``seconds`` (the holder may take it again, and holds it longer).
        ``HELD``: another is at it. ``DONE``: somebody has finished it at ``since`` or later.
        """

    async def finish_duty(self, name: str, worker: str, now: datetime) -> None:
        """Say that a duty is done. One that another has taken over meanwhile is left as it is."""

    def subscribe(self, ref: ProjectRef | None = None) -> AbstractContextManager[Subscription]:
        """Hear of changes to one project, or to any, from inside the ``with`` block."""

    async def ping(self) -> None:
        """Return when the store can be read and written, else raise ``StoreUnavailableError``."""

    async def close(self) -> None:
        """Release everything; nothing else may be called after. A second call does nothing."""
