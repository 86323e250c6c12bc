"""Writing to an environment under a claim, so that of two workers the newer one has its way."""

from collections.abc import Awaitable, Callable
from typing import Any

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.board import Board, Object
from greylag.cluster.kubernetes.failures import ApiError
from greylag.cluster.kubernetes.fences import Fences, is_under, stamp
from greylag.cluster.kubernetes.refusals import cluster_error, told
from greylag.cluster.kubernetes.watches import Watches
from greylag.domain.errors import ClusterError
from greylag.domain.project import Project

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

    async def do(self, project: Project, step: Step) -> None:
        """Do ``step`` with the Deployment as it is now, again when somebody was there between.

        ``step`` returns the Deployment that it wrote, if it wrote one; the caches know it then.
        Raises ``LeaseLostError``, ``ClusterError``.
        """
        names = project.names
        found = self._board.find("Deployment", names.namespace, names.deployment)
        for tried in range(1, _TRIES + 1):
            self.fences.check(project, found)
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

    async def stamped(self, project: Project, found: Object) -> dict[str, Any]:
        """Put the claim of ``project`` on the Deployment ``found`` and return it."""
        if is_under(project, found):
            return dict(found)
        return await self.patched(project, {"metadata": stamp(project, found)})

    async def patched(self, project: Project, patch: dict[str, Any]) -> dict[str, Any]:
        """Patch the environment's Deployment and return it."""
        names = project.names
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
