"""A project: its record, its environment, its log, and the repository that it starts from.

What requests make of a record is pure, so that every store changes it alike. Nothing of a
repository is ever fetched by the platform: git runs in the environment.
"""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from urllib.parse import quote

from greylag.common.git import MAX_REF_LENGTH, is_ref
from greylag.domain.errors import (
    ConflictError,
    ErrorInfo,
    InvalidRequestError,
    ProjectDeletingError,
)
from greylag.domain.names import EnvironmentNames

DEFAULT_TEMPLATE = "default"
TEMPLATE_KEY = "template"
"""The member of a project's metadata that names the shape of its environment."""
MAX_URL_LENGTH = 1000
MOST_COMMITS = 1_000_000
MAX_HOST_LENGTH = 255

_HIGH = r"6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_PORT = rf"(?::(?:[1-9][0-9]{{0,3}}|[1-5][0-9]{{4}}|{_HIGH}))?"
_NAME = r"[a-z0-9](?:[a-z0-9.-]{0,238}[a-z0-9])?"
_PART = r"/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&()*+,;=:@%-]+"
HOST_FORM = rf"^{_NAME}{_PORT}$"
URL_FORM = rf"^https?://{_NAME.replace('a-z', 'A-Za-z')}{_PORT}(?:{_PART})+/?$"
"""What is taken for a host, and for the address of a repository."""

_HOST = re.compile(HOST_FORM)
_URL = re.compile(URL_FORM)


class Status(StrEnum):
    """What is; only the reconciler writes it."""

    INACTIVE = "inactive"
    ACTIVATING = "activating"
    ACTIVE = "active"
    DEACTIVATING = "deactivating"
    ERROR = "error"


class Desired(StrEnum):
    """What is wanted; only requests write it."""

    INACTIVE = "inactive"
    ACTIVE = "active"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class ProjectRef:
    """Names one project of one user, everywhere."""

    user_id: str
    project_id: str

    @property
    def path(self) -> str:
        """What the paths of the project's page and of its API end in."""
        return f"/users/{quote(self.user_id, safe='')}/projects/{quote(self.project_id, safe='')}"


@dataclass(frozen=True, slots=True)
class Lease:
    """Who works on a project now. ``number`` grows with each claim and fences each write."""

    worker: str
    number: int
    until: datetime


MOST_AHEAD = timedelta(minutes=15)
"""How far ahead of now a lease can run out: five minutes at most, on a clock that is ten ahead. One
that is to last longer was given by a clock that was ahead and has been set right since.
"""


@dataclass(frozen=True, slots=True)
class Fence:
    """What a cluster knows a claim by: of two on one record, the lower number is the older.

    ``until`` is when the claim's lease ends, as far as its holder knows; it is no part of which
    claim it is.
    """

    record_id: str
    number: int
    until: datetime | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Environment:
    """What runs for a project, as the cluster is told of it.

    Attributes:
        id: the record's id, by which an environment is told from an earlier one of the same name.
        ref: the user and the project that it was made for, by which a cluster knows it.
        names: what its objects are called.
        fence: the claim that it is worked on under.
        generation: of what is wanted.
        template: the name of the shape that the project asks for, as the user gave it.
        name: the project's, for whoever finds the environment without its record.
        instance: the id of the Greylag whose it is; a cluster that others share fills it in.
    """

    id: str
    ref: ProjectRef
    names: EnvironmentNames
    fence: Fence
    generation: int = 1
    template: object = DEFAULT_TEMPLATE
    name: str = ""
    instance: str = ""


@dataclass(frozen=True, slots=True)
class GitSource:
    """The repository that a project starts from.

    Attributes:
        url: http or https, without a user or password.
        ref: a branch, a tag, or a whole commit id; ``None``: the repository's own branch.
        depth: how many commits of its history; ``None``: all.
    """

    url: str
    ref: str | None = None
    depth: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """One project as its record holds it. Times are aware, in UTC, to the millisecond.

    ``generation`` grows with each change of ``desired``; ``observed_generation`` is the newest one
    that the reconciler has brought to its end. ``due_at`` is when it wants to look again (``None``:
    not before something changes), ``deadline_at`` when the present change counts as failed.
    ``error_terminal`` says that no retry of this generation can help. ``last_seq`` is the number of
    its newest event, 0 before there is one. ``outdated`` names the settings that the running
    environment should have and has not (observed); ``refresh`` those with which it is to be started
    anew (desired). So a wish is for the settings that were seen, once.
    ``source`` is what its workspace starts from; it never changes. ``environment_user`` is the user
    whose environment it was made as, where that is not the owner: one that was handed over goes on
    under the names that it has.
    """

    id: str
    user_id: str
    project_id: str
    name: str
    names: EnvironmentNames
    created_at: datetime
    updated_at: datetime
    metadata: Mapping[str, Any] = field(default_factory=dict)
    status: Status = Status.INACTIVE
    endpoint: str | None = None
    error: ErrorInfo | None = None
    error_terminal: bool = False
    last_activated_at: datetime | None = None
    last_deactivated_at: datetime | None = None
    desired: Desired = Desired.INACTIVE
    generation: int = 1
    observed_generation: int = 0
    attempts: int = 0
    due_at: datetime | None = None
    deadline_at: datetime | None = None
    last_seq: int = 0
    outdated: str | None = None
    refresh: str | None = None
    source: GitSource | None = None
    environment_user: str | None = None
    lease: Lease | None = None

    @property
    def fence(self) -> Fence:
        """The claim that this copy of the record was read under, for the cluster to compare."""
        if self.lease is None:
            return Fence(self.id, 0)
        return Fence(self.id, self.lease.number, self.lease.until)

    @property
    def claimable_at(self) -> datetime | None:
        """When it can be claimed: a lease holds until it runs out, and then it is due."""
        return self.due_at if self.lease is None else self.lease.until

    def waits_longer(self, than: timedelta, now: datetime) -> bool:
        """Tell whether it could be claimed for longer than that, and no worker has."""
        since = self.claimable_at
        return since is not None and now - since > than

    @property
    def ref(self) -> ProjectRef:
        """The project's name everywhere."""
        return ProjectRef(self.user_id, self.project_id)

    @property
    def made_for(self) -> ProjectRef:
        """What the cluster knows its environment by; no two projects have the same."""
        return ProjectRef(self.environment_user or self.user_id, self.project_id)

    @property
    def environment(self) -> Environment:
        """What the cluster is told of this copy of the record."""
        template = self.metadata.get(TEMPLATE_KEY, DEFAULT_TEMPLATE)
        return Environment(
            self.id, self.made_for, self.names, self.fence, self.generation, template, self.name
        )

    @property
    def sleeps_unasked(self) -> bool:
        """Whether it is to sleep by nobody's wish and has not been set about; so it has no deadline
        yet, which who asks sets.
        """
        awake = self.status is Status.ACTIVE and self.generation > self.observed_generation
        return awake and self.desired is Desired.INACTIVE and self.deadline_at is None

    @property
    def starts_anew(self) -> bool:
        """Whether it is on its way to its end only to be started anew: nobody wants it asleep."""
        return self.status is Status.DEACTIVATING and self.observed_generation >= self.generation

    @property
    def has_come_up(self) -> bool:
        """Whether its environment was ready as it is wanted: it is, or is to be started anew."""
        return self.status is Status.ACTIVE or self.starts_anew

    @property
    def settled(self) -> bool:
        """Whether the reconciler has brought what is wanted now to its end, good or bad.

        An active environment that died and is being started again is not settled.
        """
        resting = self.status not in {Status.ACTIVATING, Status.DEACTIVATING}
        return resting and self.observed_generation >= self.generation


MOMENTS = (
    *("created_at", "updated_at", "last_activated_at", "last_deactivated_at"),
    *("due_at", "deadline_at"),
)


def project_of(kept: Mapping[str, Any], moment: Callable[[Any], datetime]) -> Project:
    """Return the project of which ``kept`` holds all members in JSON's terms, its lease aside.

    ``moment`` reads the times. What is missing is as in a project that has no such thing.
    """
    error, source = kept["error"], kept.get("source")
    read: dict[str, Any] = {
        "names": EnvironmentNames(**kept["names"]),
        "status": Status(kept["status"]),
        "desired": Desired(kept["desired"]),
        "error": None if error is None else ErrorInfo(**error),
        "source": None if source is None else GitSource(**source),
        **{name: None if (at := kept[name]) is None else moment(at) for name in MOMENTS},
    }
    return Project(**{**kept, **read})


def new_record_id(now: datetime) -> str:
    """Return 24 hexadecimal digits: seconds, then random bits (the form of a BSON ObjectId)."""
    return f"{int(now.timestamp()):08x}{secrets.token_hex(8)}"


def new_instance_id() -> str:
    """Return a new id by which one Greylag is told from another on the same cluster."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a project's activation log: what the platform did, in words, as it happened.

    ``seq`` counts from 1 within the project and never repeats; ``code`` is stable and for programs,
    ``message`` one plain sentence for people, ``hint`` what to do when it tells of a failure.
    """

    seq: int
    at: datetime
    code: str
    message: str
    status: Status
    generation: int
    hint: str = ""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event before the store has given it its number."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Orphan:
    """An environment without a record: whose it says it is, and where it is by these settings.

    ``instance`` is the id of the other Greylag that it belongs to, ``None`` where it is ours.
    """

    user_id: str
    project_id: str
    namespace: str
    deployment: str
    instance: str | None = None

    @property
    def ref(self) -> ProjectRef:
        """The project that it was made for."""
        return ProjectRef(self.user_id, self.project_id)


@dataclass(frozen=True, slots=True)
class ProjectRecord:
    """A project and what only its store knows of it.

    ``claims`` counts the claims so far; ``woken`` says that it was poked after the present claim,
    so that it is due again when the claim ends.
    """

    project: Project
    claims: int = 0
    woken: bool = False

    @property
    def claimable_at(self) -> datetime | None:
        """When it can be claimed."""
        return self.project.claimable_at


def edited(
    record: ProjectRecord, name: str | None, metadata: Mapping[str, Any] | None, now: datetime
) -> ProjectRecord:
    """Return the record with the edit in it (``None`` leaves name or metadata as it is); the same
    record when that changes nothing.

    Raises:
        ProjectDeletingError: it is being deleted.
    """
    project = record.project
    if project.desired is Desired.DELETED:
        raise ProjectDeletingError(f"Project {project.project_id!r} is being deleted.")
    name = project.name if name is None else name
    metadata = project.metadata if metadata is None else metadata
    if (name, metadata) == (project.name, project.metadata):
        return record
    return replace(record, project=replace(project, name=name, metadata=metadata, updated_at=now))


def wanted(
    record: ProjectRecord,
    desired: Desired,
    now: datetime,
    deadline: datetime | None,
    *,
    again: bool,
) -> ProjectRecord:
    """Return the record with the wish in it; the same record when it changes nothing, or is to be
    made ``again`` and was not made.

    The same wish again changes nothing, unless the project is in error: then it is tried once more;
    or nobody had asked for it. ``DELETED`` is final. ``deadline``: ``None`` for a sleep that nobody
    asks for.

    Raises:
        ProjectDeletingError: it is being deleted, and something else is wanted.
    """
    project = record.project
    if project.desired is Desired.DELETED and desired is not Desired.DELETED:
        raise ProjectDeletingError(f"Project {project.project_id!r} is being deleted.")
    same = desired is project.desired
    more = project.status is Status.ERROR or project.sleeps_unasked
    if (again and not same) or (same and not more):
        return record
    changed = replace(
        project,
        desired=desired,
        generation=project.generation + 1,
        due_at=now,
        deadline_at=deadline,
        attempts=0,
        error_terminal=False,
        updated_at=now,
    )
    return replace(record, project=changed)


def refreshed(record: ProjectRecord, now: datetime) -> ProjectRecord:
    """Return the record with the wish that what runs gets the settings which it lacks, due now; the
    same record when it lacks none or has the wish.
    """
    project = record.project
    if project.outdated is None or project.refresh == project.outdated:
        return record
    return poked(replace(record, project=replace(project, refresh=project.outdated)), now)


def handed_over(record: ProjectRecord, new_owner: str, now: datetime) -> ProjectRecord:
    """Return the record as another user's; the same record when it is theirs already. Its
    environment stays what it is.

    Raises:
        ProjectDeletingError: it is being deleted.
        ConflictError: it does not rest, asleep.
    """
    project = record.project
    if project.desired is Desired.DELETED:
        raise ProjectDeletingError(f"Project {project.project_id!r} is being deleted.")
    if project.user_id == new_owner:
        return record
    if unsettled(project) or project.lease is not None:
        raise ConflictError(
            f"Project {project.project_id!r} is not inactive, or is being worked on.",
            hint="Deactivate it, wait until it is inactive, and try again.",
        )
    made_for = project.made_for.user_id
    changed = replace(
        project,
        user_id=new_owner,
        environment_user=None if made_for == new_owner else made_for,
        updated_at=now,
    )
    return replace(record, project=changed)


def poked(record: ProjectRecord, now: datetime) -> ProjectRecord:
    """Return the record due now; one that is due already keeps its place in the queue. A lease that
    a clock gave which was ahead runs out.
    """
    due_at, lease = record.project.due_at, record.project.lease
    due_at = now if due_at is None else min(due_at, now)
    if lease is not None and lease.until > now + MOST_AHEAD:
        lease = replace(lease, until=now)
    return replace(record, project=replace(record.project, due_at=due_at, lease=lease), woken=True)


def unsettled(project: Project) -> bool:
    """Tell whether it runs, should run, or is on its way."""
    return (
        project.status is not Status.INACTIVE
        or project.desired is not Desired.INACTIVE
        or not project.settled
    )


def check_source(source: GitSource) -> GitSource:
    """Return ``source``, its host in small letters, as secrets name hosts.

    Raises:
        InvalidRequestError: git could not clone it, or would take it for something else.
    """
    url = _checked_url(source.url)
    if source.ref is not None and not is_ref(source.ref):
        raise InvalidRequestError(
            "source.git.ref must be a branch, tag or commit id of 1 to "
            f"{MAX_REF_LENGTH} characters."
        )
    if source.depth is not None and not 1 <= source.depth <= MOST_COMMITS:
        raise InvalidRequestError(f"source.git.depth must be 1 to {MOST_COMMITS}.")
    return replace(source, url=url)


def _checked_url(url: str) -> str:
    """Return ``url``, its host in small letters."""
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise InvalidRequestError(
            "source.git.url must not hold a user or password.",
            hint="Keep a token as a secret of yours for that host: docs/git.md tells how.",
        )
    if len(url) > MAX_URL_LENGTH or not _URL.fullmatch(url):
        raise InvalidRequestError(
            "source.git.url must be the address of a repository of at most "
            f"{MAX_URL_LENGTH} characters, as https://github.com/octocat/hello-world.git, "
            "without a query."
        )
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host.lower()}/{path}"


def check_host(host: str) -> str:
    """Return ``host``: a name or an IPv4 address in small letters, with a port where it is not the
    usual one.

    Raises:
        InvalidRequestError: it is none.
    """
    if not _HOST.fullmatch(host):
        raise InvalidRequestError(
            "host must be a host's name in small letters, as github.com, with its port if need be."
        )
    return host
