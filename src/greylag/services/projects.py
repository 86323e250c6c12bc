"""Projects: list, create, edit, activate, deactivate, delete, follow."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import KW_ONLY, asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from greylag.domain.audit import SYSTEM, Actor, AuditAction, name_of
from greylag.domain.errors import (
    ClusterError,
    ConflictError,
    InvalidRequestError,
    LimitExceededError,
    ProjectDeletingError,
    ProjectExistsError,
    ProjectNotFoundError,
    StoreUnavailableError,
    UserNotFoundError,
    WaitTimeoutError,
)
from greylag.domain.names import check_id, check_name, environment_names, new_project_id
from greylag.domain.project import (
    DEFAULT_TEMPLATE,
    TEMPLATE_KEY,
    Desired,
    Event,
    GitSource,
    Project,
    ProjectRecord,
    ProjectRef,
    Status,
    check_source,
    edited,
    handed_over,
    new_record_id,
    refreshed,
    wanted,
)
from greylag.domain.users import Action, DefaultLimits, Principal, User
from greylag.ports import (
    Clock,
    Created,
    IdempotencyKey,
    PageQuery,
    ProjectPage,
    ProjectStore,
    Subscription,
)
from greylag.services.access import Gate
from greylag.services.sharing import Members

MAX_METADATA_BYTES = 16_384
MAX_KEY_LENGTH = 255
KEY_FORM = r"^[!-~]([ -~]*[!-~])?$"
"""What an Idempotency-Key is like: printable ASCII, as headers carry it."""
EVENTS_AT_ONCE = 100
_AT_ONCE = 200
_TAKEN_ON_WITHIN = timedelta(seconds=5)
_LOOK_SECONDS = 60.0  # changes are told; this is for one that was missed
FOLLOW_RECHECK_SECONDS = 300.0

_ACTIONS = {
    Desired.ACTIVE: Action.ENVIRONMENT_ACTIVATE,
    Desired.INACTIVE: Action.ENVIRONMENT_DEACTIVATE,
    Desired.DELETED: Action.PROJECTS_DELETE,
}


@dataclass(frozen=True, slots=True)
class NewProject:
    """What a client asks to create; without ``project_id`` one is made from the name. ``source`` is
    the repository that it starts from.
    """

    name: str
    project_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    source: GitSource | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """What a user may change at any time; ``None`` leaves it as it is."""

    name: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Projects:
    """The use cases of projects. Each takes the principal who asks, and authorizes first.

    Each raises ``UserNotFoundError`` for a user who does not exist or is a stranger's,
    ``ForbiddenError`` for what the principal may not do there, ``ProjectNotFoundError`` for a
    project that this user does not have, and ``StoreUnavailableError``.
    """

    store: ProjectStore
    gate: Gate
    members: Members
    clock: Clock
    _: KW_ONLY
    namespace_prefix: str
    activation_timeout: float
    limits: DefaultLimits

    async def page(self, principal: Principal, user_id: str, query: PageQuery) -> ProjectPage:
        """Return one page of what the principal may see of a user's projects, newest first."""
        owner = await self.gate.authorize(principal, Action.PROJECTS_LIST, user_id)
        only = await self.gate.only(principal, owner.id)
        if only is None:
            return await self.store.page(owner.id, query)
        refs = [ProjectRef(owner.id, each) for each in sorted(only)]
        found = await asyncio.gather(*(self._found(principal, ref) for ref in refs))
        shown = [one for one in found if one and query.status in {None, one.status}]
        # There are as many as were shared or named one by one: they fit on one page.
        return ProjectPage(sorted(shown, key=lambda one: (one.created_at, one.id), reverse=True))

    async def _found(self, principal: Principal, ref: ProjectRef) -> Project | None:
        try:
            return await self.get(principal, ref)
        except (ProjectNotFoundError, UserNotFoundError):
            return None

    async def get(
        self, principal: Principal, ref: ProjectRef, action: Action = Action.PROJECTS_READ
    ) -> Project:
        """Return one project, with which the principal may do ``action``."""
        return await self.gate.project(principal, ref, action)

    async def create(
        self, principal: Principal, user_id: str, new: NewProject, key: str | None = None
    ) -> Created:
        """Create a project, inactive; its environment is prepared in the background.

        The same ``key`` (a client's Idempotency-Key) with the same content returns the first
        call's project, which no limit refuses any more.

        Raises:
            InvalidRequestError: it cannot be an id, a name, metadata, a source or a key.
            ProjectExistsError: the user has a project of this id.
            LimitExceededError: the user may have no more, or none of this template.
            IdempotencyConflictError: the key came with something else before.
        """
        user = await self.gate.authorize(principal, Action.PROJECTS_WRITE, user_id)
        project = self._new(user.id, new)
        asked = idempotency_key(key, new)
        most = self.limits.of(user).projects
        counted = None if most is None else user.id
        right = Action.PROJECTS_WRITE
        async with self.gate.limited(principal, right, user.id, right=right, counted=counted):
            try:
                self._check_template(user, project.metadata)
                await self._check_projects(user, most)
            except LimitExceededError:
                at = project.created_at
                if asked and (earlier := await self.store.created(user.id, asked, at)):
                    return Created(earlier, new=False)
                raise
            event = self.gate.audit.event(
                principal, AuditAction.PROJECT_CREATE, name_of(project.ref), name=project.name
            )
            return await self.store.create(project, asked, audit=event)

    def _new(self, owner: str, new: NewProject) -> Project:
        name = check_name(new.name)
        metadata = check_metadata(new.metadata or {})
        source = None if new.source is None else check_source(new.source)
        project_id = check_id(new.project_id or new_project_id(name), "project_id")
        now = self.clock.now()
        return Project(
            id=new_record_id(now),
            user_id=owner,
            project_id=project_id,
            name=name,
            metadata=metadata,
            names=environment_names(owner, project_id, prefix=self.namespace_prefix),
            created_at=now,
            updated_at=now,
            due_at=now,
            source=source,
        )

    async def give(self, principal: Principal, ref: ProjectRef, user: User) -> Project:
        """Give a project that sleeps to a user. The caller has asked whether it may."""
        project = await self.store.get(ref.user_id, ref.project_id)
        most = self.limits.of(user).projects
        on = Action.PROJECTS_HAND_OVER
        # One after another, limit or not: one that came late would take the members for left over.
        async with self.gate.limited(principal, on, ref, right=on, counted=user.id):
            await self.gate.check_receives(user.id)
            await self._check_projects(user, most)
            self._check_template(user, project.metadata)
            return await self._give(principal, project, user)

    async def _give(self, principal: Principal, project: Project, user: User) -> Project:
        ref = project.ref
        event = self.gate.audit.event(
            principal, Action.PROJECTS_HAND_OVER, name_of(ref), owner=user.id
        )
        there = ProjectRef(user.id, ref.project_id)
        hint = "Hand over or delete that one first, or choose another user."
        if await self._find(there) is not None:
            taken = f"The user {user.id!r} has a project {ref.project_id!r}."
            raise ConflictError(taken, hint=hint)
        carried = await self.members.carry(principal, ref, user.id)
        try:
            over = partial(handed_over, new_owner=user.id, now=self.clock.now())
            given = await self.store.change(ref, over, event)
        except ProjectExistsError as error:
            raise ConflictError(error.info.message, hint=hint) from error
        except ConflictError:
            await self.members.drop(principal, there, project.id)
            raise
        await self.members.settle(principal, ref, given, carried)
        return given

    async def _check_projects(self, user: User, most: int | None) -> None:
        if most is not None:
            _check_room(user, len(await projects_of(self.store, user.id)), most, "projects")

    async def edit(self, principal: Principal, ref: ProjectRef, edit: Edit) -> Project:
        """Rename a project or replace its metadata.

        Raises:
            InvalidRequestError: it cannot be a name, or metadata.
        """
        owner = await self.gate.authorize(principal, Action.PROJECTS_WRITE, ref)
        if edit.name is not None:
            check_name(edit.name)
        if edit.metadata is not None:
            check_metadata(edit.metadata)
            async with self.gate.limited(principal, Action.PROJECTS_WRITE, ref):
                self._check_template(owner, edit.metadata)
        event = self.gate.audit.event(
            principal,
            AuditAction.PROJECT_EDIT,
            name_of(ref),
            name=edit.name,
            metadata=None if edit.metadata is None else sorted(edit.metadata),
        )
        rule = partial(edited, name=edit.name, metadata=edit.metadata, now=self.clock.now())
        return await self.store.change(ref, rule, event)

    async def want(
        self,
        principal: Principal,
        ref: ProjectRef,
        desired: Desired,
        action: Action | None = None,
    ) -> Project:
        """Write what is wanted and return at once.

        ``action`` is what the principal does by it, when that is not just to want it.

        Raises:
            ProjectDeletingError: it is being deleted, and something else is wanted.
            LimitExceededError: it is to be active, which it may not, or one more of its owner's.
        """
        on = action or _ACTIONS[desired]
        owner = await self.gate.authorize(principal, on, ref)
        if desired is Desired.ACTIVE:
            return await self._activate(principal, ref, owner, on)
        return await self._want(principal, ref, desired)

    async def _activate(
        self, principal: Principal, ref: ProjectRef, owner: User, on: Action
    ) -> Project:
        limits = self.limits.of(owner)
        if limits.templates is not None:
            project = await self.store.get(ref.user_id, ref.project_id)
            async with self.gate.limited(principal, on, ref):
                self._check_template(owner, project.metadata)
        if limits.active is None:
            return await self._want(principal, ref, Desired.ACTIVE)
        # What is to run already, as for most messages, is counted. Whether it is, the write itself
        # decides: it may be stopped after any look.
        project = await self._want(principal, ref, Desired.ACTIVE, again=True)
        if project.desired is Desired.ACTIVE:
            return project
        async with self.gate.limited(principal, on, ref, right=on, counted=owner.id):
            await self._check_active(owner, ref, limits.active)
            return await self._want(principal, ref, Desired.ACTIVE)

    async def refresh(self, principal: Principal, ref: ProjectRef) -> Project:
        """Have a running environment that is outdated started anew once nobody is answered, and
        return at once. One that is not outdated is left alone.
        """
        await self.gate.authorize(principal, _ACTIONS[Desired.ACTIVE], ref)
        event = self.gate.audit.event(principal, AuditAction.ENVIRONMENT_REFRESH, name_of(ref))
        return await self.store.change(ref, partial(refreshed, now=self.clock.now()), event)

    async def _want(  # noqa: PLR0913 - who, what, and what has to be so
        self,
        who: Principal | Actor,
        ref: ProjectRef,
        desired: Desired,
        *,
        again: bool = False,
        since: int | None = None,
        asked: bool = True,
    ) -> Project:
        now = self.clock.now()
        deadline = now + timedelta(seconds=self.activation_timeout) if asked else None

        def rule(record: ProjectRecord) -> ProjectRecord:
            if since not in {None, record.project.generation}:
                return record
            return wanted(record, desired, now, deadline, again=again)

        event = self.gate.audit.event(who, _ACTIONS[desired], name_of(ref))
        return await self.store.change(ref, rule, event)

    async def settled(self, project: Project, within: float | None = None) -> Project | None:
        """Wait until what ``project`` wants is so; ``None`` means that the project is gone.

        ``within`` is in seconds (by default the activation timeout).

        Raises:
            ClusterError: it ended in error; with the record's own code and hint.
            WaitTimeoutError: it goes on.
        """
        current: Project | None = None
        async for current in self._looks(project, within):  # noqa: B007 - only the last one counts
            pass
        return _without_error(current) if current is not None else None

    async def progress(self, project: Project) -> AsyncIterator[Event]:
        """Yield the log's events that ``project`` does not know of, until what it wants is so.

        How it ended, ``settled`` tells.

        Raises:
            WaitTimeoutError: it goes on after the activation timeout.
        """
        after = project.last_seq
        async for current in self._looks(project, None):
            if current is None:
                return
            # The record was read first: its transaction wrote the events that led to it.
            while events := await self.events(current, after):
                for event in events:
                    after = event.seq
                    yield event

    async def _looks(self, project: Project, within: float | None) -> AsyncIterator[Project | None]:
        end = self.clock.monotonic() + (self.activation_timeout if within is None else within)
        with self.store.subscribe(project.ref) as news:
            while True:
                current = await self._same(project)
                yield current
                if current is None or current.settled:
                    return
                left = end - self.clock.monotonic()
                if left <= 0:
                    raise WaitTimeoutError(_still(current, self.clock.now()))
                await news.changed(left)

    async def is_another_s(self, project: Project) -> None:
        """Return once the project is gone, or its owner has another in its place or has it no
        more.
        """
        with self.store.subscribe(project.ref) as news:
            while True:
                with suppress(StoreUnavailableError):
                    if await self._same(project) is None:
                        return
                await news.changed(_LOOK_SECONDS)

    async def _same(self, project: Project) -> Project | None:
        current = await self._find(project.ref)
        return current if current is not None and current.id == project.id else None

    async def _is_replaced(self, project: Project) -> bool:
        current = await self._find(project.ref)
        return current is not None and current.id != project.id

    async def _find(self, ref: ProjectRef) -> Project | None:
        try:
            return await self.store.get(ref.user_id, ref.project_id)
        except ProjectNotFoundError:
            return None

    async def events(self, project: Project, after: int | None = None) -> Sequence[Event]:
        """Return the log's events after number ``after``, oldest first, 100 at most; by default the
        newest that ``project`` knows of.
        """
        after = max(0, project.last_seq - EVENTS_AT_ONCE) if after is None else after
        return await self._events(project.ref, after)

    async def _events(self, ref: ProjectRef, after: int) -> Sequence[Event]:
        return await self.store.events(ref.user_id, ref.project_id, after, EVENTS_AT_ONCE)

    def changes(self, to: ProjectRef | str) -> AbstractContextManager[Subscription]:
        """Hear that one project, or any, may have changed; what changed, the other methods tell."""
        return self.store.subscribe(to)

    async def follow(
        self, principal: Principal, ref: ProjectRef, after: int, *, live: bool = True
    ) -> AsyncIterator[Event]:
        """Yield the log's events after number ``after``, then, if ``live``, each as it comes, until
        the project is gone. The first look raises what is wrong with the request.
        """
        project = await self.get(principal, ref)
        return self._following(project, await self._events(ref, after), after, live=live)

    async def sleep(self, project: Project) -> None:
        """Want a project inactive, by nobody's wish; one that is gone or going is left alone."""
        with suppress(ProjectNotFoundError, ProjectDeletingError):
            await self._want(SYSTEM, project.ref, Desired.INACTIVE)

    async def sleep_unused(self, project: Project) -> bool:
        """Want a project inactive that nobody uses, unasked, and tell so; not if more was wanted
        than ``project`` knows of, or it is going.
        """
        with suppress(ProjectNotFoundError, ProjectDeletingError):
            now = project.generation
            slept = await self._want(SYSTEM, project.ref, Desired.INACTIVE, since=now, asked=False)
            return slept.generation == now + 1
        return False

    async def wake(self, project: Project) -> None:
        """Want a project active that ``sleeps_unasked``, unless more was wanted since."""
        with suppress(ProjectNotFoundError, ProjectDeletingError):
            await self._want(SYSTEM, project.ref, Desired.ACTIVE, since=project.generation)

    async def sleep_all(self, principal: Principal, user_id: str) -> None:
        """Want every environment of a user inactive. The caller has asked whether it may."""
        for project in await projects_of(self.store, user_id):
            if project.desired is Desired.ACTIVE:
                await self._want(principal, project.ref, Desired.INACTIVE)

    async def look_again(self, user_id: str) -> None:
        """Have what runs of a user's looked at again. The caller has asked whether it may."""
        for project in await projects_of(self.store, user_id):
            if project.desired is Desired.ACTIVE:
                await self.store.poke(project.made_for, self.clock.now())

    async def has_any(self, user_id: str) -> bool:
        """Tell whether a user has a project, readable or not."""
        return await self.store.has_projects(user_id)

    async def _check_active(self, owner: User, ref: ProjectRef, most: int) -> None:
        active = [
            one for one in await projects_of(self.store, owner.id) if one.desired is Desired.ACTIVE
        ]
        if all(one.ref != ref for one in active):
            _check_room(owner, len(active), most, "active environments")

    def _check_template(self, owner: User, metadata: Mapping[str, Any]) -> None:
        """Raise ``LimitExceededError`` when a user's project may not have this template."""
        allowed = self.limits.of(owner).templates
        template = metadata.get(TEMPLATE_KEY, DEFAULT_TEMPLATE)
        if allowed is None or template in (DEFAULT_TEMPLATE, *allowed):  # it may be any JSON
            return
        named = ", ".join(sorted({DEFAULT_TEMPLATE, *allowed}))
        raise LimitExceededError(
            f"The user {owner.id} may not use the template {template!r}.",
            hint=f"Set metadata.template to one of: {named}; or ask an administrator for more.",
        )

    async def _following(
        self, project: Project, events: Sequence[Event], after: int, *, live: bool
    ) -> AsyncIterator[Event]:
        with self.store.subscribe(project.ref) as news:
            # Asked after they were read: as long as there is no other, they are of this one.
            while not await self._is_replaced(project):
                for event in events:
                    after = event.seq
                    yield event
                if not events and not live:
                    return
                if not events:
                    await news.changed(FOLLOW_RECHECK_SECONDS)
                try:
                    events = await self._events(project.ref, after)
                except ProjectNotFoundError:
                    return


async def projects_of(
    store: ProjectStore, user_id: str, status: Status | None = None, *, most: int | None = None
) -> list[Project]:
    """Return all of a user's projects, or those of a status: whole pages, until there are ``most``.

    Whoever asks has asked whether it may.
    """
    found: list[Project] = []
    cursor = None
    while most is None or len(found) < most:
        page = await store.page(user_id, PageQuery(_AT_ONCE, cursor, status))
        found += page.projects
        cursor = page.cursor
        if cursor is None:
            break
    return found


def _check_room(owner: User, there: int, limit: int, what: str) -> None:
    if there >= limit:
        raise LimitExceededError(
            f"The user {owner.id} may have {limit} {what}, and has {there}.",
            hint="Take one away first, or ask an administrator for more.",
        )


def check_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``metadata``.

    Raises:
        InvalidRequestError: it is too big or no plain JSON.
    """
    try:
        size = len(json.dumps(metadata, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError("metadata must be an object of plain JSON.") from error
    if size > MAX_METADATA_BYTES:
        raise InvalidRequestError(f"metadata must be at most {MAX_METADATA_BYTES} bytes of JSON.")
    return metadata


def idempotency_key(key: str | None, new: NewProject) -> IdempotencyKey | None:
    """Return the key with the digest of what was asked.

    Raises:
        InvalidRequestError: it cannot be a key.
    """
    if key is None:
        return None
    if len(key) > MAX_KEY_LENGTH or not re.fullmatch(KEY_FORM, key):
        raise InvalidRequestError(
            f"Idempotency-Key must be 1 to {MAX_KEY_LENGTH} printable characters of ASCII."
        )
    asked: list[Any] = [new.name, new.project_id, new.metadata or {}]
    asked += [asdict(new.source)] if new.source else []
    content = json.dumps(asked, sort_keys=True)
    return IdempotencyKey(key, hashlib.sha256(content.encode()).hexdigest())


def _without_error(project: Project) -> Project:
    if project.status is not Status.ERROR or project.error is None:
        return project
    error = project.error
    raise ClusterError(error.message, code=error.code, hint=error.hint)


def _still(project: Project, now: datetime) -> str:
    doing = {
        Desired.ACTIVE: "becoming active",
        Desired.INACTIVE: "becoming inactive",
        Desired.DELETED: "being deleted",
    }[project.desired]
    cause = f" {project.error.message}" if project.error else ""
    if project.waits_longer(_TAKEN_ON_WITHIN, now):
        cause = " No worker has taken it on yet: none is running, or all are busy."
    return f"The project is still {doing}.{cause}"
