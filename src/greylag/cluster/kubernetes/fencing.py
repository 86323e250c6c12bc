"""Claims on environments: the Deployment carries the newest one, and each write compares it.

A write under an older claim is refused here, and one that was overtaken in between is refused by
the API server, for it names the resourceVersion that it was decided on.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.cache import Board, Object
from greylag.cluster.kubernetes.failures import ApiError, cluster_error, told
from greylag.cluster.kubernetes.identity import (
    CLAIM_ANNOTATION,
    RECORD_ANNOTATION,
    REMOVING_ANNOTATION,
)
from greylag.cluster.kubernetes.informer import Watches
from greylag.domain.errors import ClusterError, LeaseLostError
from greylag.domain.project import Environment, Fence, ProjectRef

_REMEMBERED = 10_000


class Fences:
    """The newest claims of environments that this process deleted, as they carry them no more."""

    def __init__(self) -> None:
        self._deleted: OrderedDict[ProjectRef, Fence] = OrderedDict()

    def check(self, environment: Environment, deployment: Object | None) -> None:
        """Raise ``LeaseLostError`` when the environment has seen a newer claim than this one."""
        newest = fence_of(deployment) or self._deleted.get(environment.ref)
        fence = environment.fence
        if newest and newest.record_id == fence.record_id and newest.number > fence.number:
            raise LeaseLostError("Another worker has taken this project over.")

    def deleted(self, environment: Environment) -> None:
        """Remember the claim under which an environment was deleted."""
        self._deleted[environment.ref] = environment.fence
        self._deleted.move_to_end(environment.ref)
        if len(self._deleted) > _REMEMBERED:
            self._deleted.popitem(last=False)


def fence_of(deployment: Object | None) -> Fence | None:
    """Return the newest claim that a Deployment has seen."""
    annotations = {} if deployment is None else deployment["metadata"].get("annotations") or {}
    record, number = annotations.get(RECORD_ANNOTATION), annotations.get(CLAIM_ANNOTATION, "")
    return Fence(record, int(number)) if record and number.isdecimal() else None


def is_under(environment: Environment, deployment: Object) -> bool:
    """Tell whether the Deployment carries the claim of ``project`` already."""
    return fence_of(deployment) == environment.fence


def stamp(environment: Environment, deployment: Object) -> dict[str, Any]:
    """Return the ``metadata`` of a patch that puts the claim on, if nothing changed since."""
    annotations = {
        RECORD_ANNOTATION: environment.fence.record_id,
        CLAIM_ANNOTATION: str(environment.fence.number),
    }
    version = deployment["metadata"]["resourceVersion"]
    return {"resourceVersion": version, "annotations": annotations}


def removal_stamp(environment: Environment, deployment: Object) -> dict[str, Any]:
    """Return what ``stamp`` does, with the mark that the environment is being removed."""
    metadata = stamp(environment, deployment)
    metadata["annotations"][REMOVING_ANNOTATION] = environment.fence.record_id
    return metadata


def is_being_removed(deployment: Object) -> bool:
    """Tell whether the removal of this very environment has begun; there is no way back then."""
    annotations = deployment["metadata"].get("annotations") or {}
    removing = annotations.get(REMOVING_ANNOTATION)
    return removing is not None and removing == annotations.get(RECORD_ANNOTATION)


# Writing to an environment under a claim, so that of two workers the newer one has its way.

READ_BACK_SECONDS = 3.0
_TRIES = 5
_CONFLICT = 409

Step = Callable[[Object | None], Awaitable[dict[str, Any] | None]]


class FencedWrites:
    """Does steps that write an environment's Deployment. The caches must be fresh."""

    def __init__(self, api: Api, watches: Watches, board: Board) -> None:
        self.fences = Fences()
        self._api = api
        self._watches = watches
        self._board = board

    async def do(self, environment: Environment, step: Step) -> None:
        """Do ``step`` with the Deployment as it is now, again when somebody was there between.

        ``step`` returns the Deployment that it wrote, if it wrote one; the caches know it then.
        Raises ``LeaseLostError``, ``ClusterError``.
        """
        names = environment.names
        found = self._board.find("Deployment", names.namespace, names.deployment)
        for tried in range(1, _TRIES + 1):
            self.fences.check(environment, found)
            try:
                written = await step(found)
            except ApiError as error:
                if error.status != _CONFLICT or tried == _TRIES:
                    raise cluster_error(error) from error
                with told():
                    found = await self._api.read("Deployment", names.namespace, names.deployment)
                continue
            if written is not None:
                await self._read_back(written)
            return

    async def stamped(self, environment: Environment, found: Object) -> dict[str, Any]:
        """Put the claim of ``project`` on the Deployment ``found`` and return it."""
        if is_under(environment, found):
            return dict(found)
        return await self.patched(environment, {"metadata": stamp(environment, found)})

    async def patched(self, environment: Environment, patch: dict[str, Any]) -> dict[str, Any]:
        """Patch the environment's Deployment and return it."""
        names = environment.names
        return await self._api.patch_merge("Deployment", names.namespace, names.deployment, patch)

    async def _read_back(self, written: Object) -> None:
        """Wait until the watches know what was written, so that the next look sees it."""
        version = written["metadata"]["resourceVersion"]
        if not await self._watches["Deployment"].reached(version, READ_BACK_SECONDS):
            raise ClusterError(
                "The cluster took a change, but does not show it yet.",
                code="cluster_unavailable",
                hint="Greylag looks again by itself.",
            )
