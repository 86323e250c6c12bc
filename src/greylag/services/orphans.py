"""Environments without a record ("orphans"): finding them, and, on an explicit wish, removing one
or making its record anew.

Those that belong to another Greylag on the same cluster are shown and never removed; they are made
ours by whoever names that one's id.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta

from greylag.domain.audit import SYSTEM, Actor, AuditAction, name_of
from greylag.domain.errors import (
    ClusterError,
    ConflictError,
    ErrorInfo,
    ProjectExistsError,
    ProjectNotFoundError,
)
from greylag.domain.lifecycle import Act, Forget, Retry, Verb, Wait, plan
from greylag.domain.names import EnvironmentNames, environment_names
from greylag.domain.project import (
    DEFAULT_TEMPLATE,
    TEMPLATE_KEY,
    Desired,
    Lease,
    Orphan,
    Project,
    ProjectRef,
    Status,
    new_record_id,
)
from greylag.ports import Claim, Clock, Cluster, FoundEnvironment, ProjectStore, has_record
from greylag.services.audit import Audit

PAUSE_SECONDS = 1.0
MARGIN = timedelta(seconds=60)
"""More than the longest call of a cluster: one that begins in time ends under the lease."""

_GOING = ErrorInfo(
    "removal_stuck",
    "It is still being removed.",
    "What was asked of the cluster may end by itself; list the environments again later.",
)


@dataclass(frozen=True, slots=True)
class Orphans:
    """What an operator can do about environments that no record tells of.

    ``place`` is what to call the store before people, ``worker`` who holds the lease on what is
    being removed, ``by`` who does it, for the audit trail. A removal that takes ``longest`` seconds
    is given up.
    """

    store: ProjectStore
    cluster: Cluster
    clock: Clock
    _: KW_ONLY
    place: str
    namespace_prefix: str
    worker: str
    longest: float
    by: Actor = SYSTEM

    async def found(self) -> Sequence[Orphan]:
        """Return the orphans there are now, by user and project, with all that another Greylag has.

        A project that is being deleted at this moment may be among them; removing it does no harm.
        """
        found = [
            self._orphan(one)
            for one in await self.cluster.found()
            if one.instance is not None or not await has_record(self.store, one.ref)
        ]
        return sorted(found, key=lambda orphan: (orphan.user_id, orphan.project_id))

    async def adopt(self, orphan: Orphan, instance: str | None = None) -> None:
        """Make the environment's record anew from what its objects say; the environment itself goes
        on as it is, with the same id, so that its token stays good. May be killed and done again.

        What only the record knew is lost: the log, the description, other metadata than the
        template, a name given after the environment was last worked on.

        Args:
            orphan: one of those found.
            instance: the id of the other Greylag whose environments may be taken over.

        Raises:
            ConflictError: it is another Greylag's, or there is a record that is not its own;
                nothing was done.
            ClusterError: it cannot be made ours, or is gone.
            StoreUnavailableError: it may be ours now; its record is not there.
        """
        doing = Audit(self.store, self.clock).doing
        taken = {"instance": instance}
        async with doing(self.by, AuditAction.ENVIRONMENT_ADOPT, name_of(orphan.ref), **taken):
            await self._adopt(orphan, instance)

    async def _adopt(self, orphan: Orphan, instance: str | None) -> None:
        found = await self._there(orphan)
        if found is None:
            raise _gone(orphan)
        if found.instance not in {None, instance}:
            raise ConflictError(
                f"The environment of project {orphan.project_id!r} of user {orphan.user_id!r} "
                f"belongs to another Greylag, {found.instance}.",
                hint=f"--instance {found.instance} takes it over. Do so only if that one's records "
                "are lost: a Greylag that runs loses all that it has of this user.",
            )
        project = self._remade(found)
        try:
            known = await self.store.of_environment(orphan.ref)
        except ProjectNotFoundError:
            known = None
            with suppress(ProjectNotFoundError):  # of a project that was handed to this user
                known = await self.store.get(orphan.user_id, orphan.project_id)
        if known is not None and known.id != project.id:
            raise _has_record(orphan, "Delete that project first, which has no environment yet.")
        # First the environment, then its record: cut off in between, it is an orphan of ours.
        if found.instance is not None:
            await self.cluster.take_over(found)
        if known is None:
            with suppress(ProjectExistsError):
                await self.store.create(project)

    async def remove(self, orphan: Orphan) -> None:
        """Stop the environment, wait until nothing of it runs, delete it with its volume, and
        return when it is gone. One that is partly gone already is removed all the same.

        For as long as that takes the project has a record that wants its deletion, under a lease of
        ours. A process that is killed leaves that record, and a worker brings the removal to its
        end once the lease has run out. A removal that fails takes it away again: the environment is
        an orphan as before, and can be removed by another try.

        One race is left. A verb that is cut off by cancellation (Ctrl-C) may still be at work in
        the cluster as the record goes. A project of the same id that is created and prepared in
        just that moment can lose its volume, new and empty; its environment is made anew.

        Raises:
            ConflictError: there is a record by now, or it is another Greylag's; nothing was done.
            LeaseLostError: this process slept so long that a worker has taken the removal over.
            ClusterError: it cannot be removed, or is not gone in time.
            StoreUnavailableError: nothing was done, or a worker goes on with it.
        """
        doing = Audit(self.store, self.clock).doing
        async with doing(self.by, AuditAction.ENVIRONMENT_DELETE, name_of(orphan.ref)):
            await self._remove(orphan)

    async def _remove(self, orphan: Orphan) -> None:
        there = await self._there(orphan)
        if there is not None and there.instance is not None:
            raise ConflictError(
                f"The environment of project {orphan.project_id!r} of user {orphan.user_id!r} "
                "belongs to another Greylag.",
                hint="It is for that one to delete.",
            )
        claim = await self._claimed(orphan)
        try:
            await self._bring_down(claim.project)
            if orphan.ref in await self.cluster.inventory():
                raise _misplaced(orphan)
        finally:
            await self.store.forget(claim)

    def _orphan(self, found: FoundEnvironment) -> Orphan:
        ref, names = found.ref, self._names(found.ref)
        return Orphan(
            ref.user_id, ref.project_id, names.namespace, names.deployment, found.instance
        )

    async def _there(self, orphan: Orphan) -> FoundEnvironment | None:
        return next((one for one in await self.cluster.found() if one.ref == orphan.ref), None)

    def _remade(self, found: FoundEnvironment) -> Project:
        """Return the record, due at once: a worker finds the environment as it is, and says so."""
        now = self.clock.now()
        template = {} if found.template == DEFAULT_TEMPLATE else {TEMPLATE_KEY: found.template}
        return Project(
            id=found.record_id or new_record_id(now),
            user_id=found.ref.user_id,
            project_id=found.ref.project_id,
            name=found.name or found.ref.project_id,
            names=found.names,
            created_at=now,
            updated_at=now,
            metadata=template,
            desired=Desired.ACTIVE if found.wanted else Desired.INACTIVE,
            due_at=now,
            deadline_at=now + timedelta(milliseconds=round(self.longest * 1000)),
            # It has run out: the next claim has a number that the environment has not seen.
            lease=Lease(self.worker, found.claim, now),
        )

    def _names(self, ref: ProjectRef) -> EnvironmentNames:
        return environment_names(ref.user_id, ref.project_id, prefix=self.namespace_prefix)

    async def _claimed(self, orphan: Orphan) -> Claim:
        """Make the record under which the environment is removed, claimed from its beginning."""
        # It has to be a record, and no lock of another kind: only the uniqueness of records decides
        # in one atomic step that there is none and that none of the same id is created meanwhile.
        # Workers leave it alone for its lease, users see what goes on, and its new id makes a fence
        # that no claim of the lost record can refuse.
        now = self.clock.now()
        deadline = now + timedelta(milliseconds=round(self.longest * 1000))
        project = Project(
            id=new_record_id(now),
            user_id=orphan.user_id,
            project_id=orphan.project_id,
            name="An environment without a record, being removed",
            names=self._names(orphan.ref),
            created_at=now,
            updated_at=now,
            status=Status.DEACTIVATING,
            desired=Desired.DELETED,
            due_at=now,
            deadline_at=deadline,
            lease=Lease(self.worker, 1, deadline + MARGIN),
        )
        try:
            return Claim((await self.store.create(project)).project)
        except ProjectExistsError as error:
            hint = "It was created meanwhile, or another command removes it: list them again."
            raise _has_record(orphan, hint) from error

    async def _bring_down(self, project: Project) -> None:
        """Return when nothing is left of the environment."""
        give_up = self.clock.monotonic() + self.longest
        waits_for: ErrorInfo | None = _GOING
        while waits_for is not None:
            left = give_up - self.clock.monotonic()
            if left <= 0:
                raise ClusterError(waits_for.message, code=waits_for.code, hint=waits_for.hint)
            try:
                # Not cut off when the time is over: what it does must not outlive the record.
                waits_for = await self._step(project, left)
            except ClusterError as error:
                if error.terminal:
                    raise
                waits_for = error.info
                await self.clock.sleep(min(PAUSE_SECONDS, left))

    async def _step(self, project: Project, left: float) -> ErrorInfo | None:
        """Go one step on; return what the environment waits for now, ``None`` when it is gone."""
        seen = await self.cluster.observe(project.environment)
        match plan(project, seen, self.clock.now()):
            case Forget():
                return None
            case Act(Verb.STOP):
                await self.cluster.stop(project.environment)
            case Act(Verb.DELETE):
                await self.cluster.delete(project.environment)
            case Wait():
                await self.cluster.changed(project.environment, left)
            case Retry(error):
                await self.clock.sleep(min(PAUSE_SECONDS, left))
                return error
            case action:
                raise AssertionError(f"{action} is no step of a removal")
        return seen.error or _GOING


def _has_record(orphan: Orphan, hint: str) -> ConflictError:
    return ConflictError(
        f"Project {orphan.project_id!r} of user {orphan.user_id!r} has a record by now.", hint=hint
    )


def _gone(orphan: Orphan) -> ClusterError:
    return ClusterError(
        f"The environment of project {orphan.project_id!r} of user {orphan.user_id!r} is gone.",
        code="environment_gone",
        hint="List the environments again.",
    )


def _misplaced(orphan: Orphan) -> ClusterError:
    return ClusterError(
        f"The environment is not where its names by these settings are "
        f"({orphan.namespace}/{orphan.deployment}).",
        code="environment_misplaced",
        hint="Use the KUBE_NAMESPACE_PREFIX that it was made with.",
    )
