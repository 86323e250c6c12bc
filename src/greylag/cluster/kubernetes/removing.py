"""Removing an environment: its parts, its volume, its Deployment, and an empty namespace."""

import asyncio
from contextlib import suppress

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.board import Board, Object
from greylag.cluster.kubernetes.causes import stuck_removal
from greylag.cluster.kubernetes.failures import ApiError
from greylag.cluster.kubernetes.fences import is_being_removed
from greylag.cluster.kubernetes.identity import (
    MANAGED_BY,
    MANAGED_BY_LABEL,
    PROJECT_LABEL,
    config_name,
    secret_name,
    volume_claim_name,
)
from greylag.cluster.kubernetes.looking import slot_of
from greylag.cluster.kubernetes.refusals import of_cause
from greylag.domain.project import Project

GONE_SECONDS = 5.0


class Remover:
    """Removes environments that do not run. Raises ``ApiError`` and ``ClusterError``."""

    def __init__(self, api: Api, board: Board) -> None:
        self._api = api
        self._board = board

    async def remove(self, project: Project, deployment: Object | None) -> None:
        """Remove everything of the environment; the Deployment, which carries the claim, last.

        ``deployment`` is that which was looked at, marked as being removed: if it has changed
        since, ``ApiError`` 409. As long as it is there a removal that was cut off is done again, so
        the namespace goes before it.
        """
        await self._remove_parts(project)
        await self._gone(project, "PersistentVolumeClaim", volume_claim_name(project))
        await self._remove_unused_namespace(project.names.namespace)
        if deployment is not None:
            await self._api.delete(
                "Deployment",
                project.names.namespace,
                project.names.deployment,
                uid=deployment["metadata"]["uid"],
                version=deployment["metadata"]["resourceVersion"],
            )
            await self._gone(project, "Deployment", project.names.deployment)

    async def _remove_parts(self, project: Project) -> None:
        names = project.names
        parts = (
            ("Ingress", names.ingress),
            ("Service", names.service),
            ("PersistentVolumeClaim", volume_claim_name(project)),
            ("ConfigMap", config_name(project)),
            ("Secret", secret_name(project)),
        )
        for kind, name in parts:
            # The claim sees to it that nobody makes one of that name anew meanwhile.
            await self._api.delete(kind, names.namespace, name, again=True)

    async def _gone(self, project: Project, kind: str, name: str) -> None:
        """Return when the caches know an object no more; raise what holds it up."""
        slot = slot_of(project)
        with suppress(TimeoutError):
            async with asyncio.timeout(GONE_SECONDS):
                while self._board.find(kind, project.names.namespace, name) is not None:
                    await self._board.changed(slot, self._board.version(slot), GONE_SECONDS)
        left = self._board.find(kind, project.names.namespace, name)
        if left is not None:
            finalizers = list(left["metadata"].get("finalizers") or [])
            raise of_cause(stuck_removal(kind, name, finalizers))

    async def _remove_unused_namespace(self, name: str) -> None:
        """Remove the user's namespace if it is ours and neither we nor others need things there.

        Of several environments that are removed at once each is marked before it looks, so the last
        one sees the marks of all.
        """
        known = self._board.find("Namespace", "", name)
        if known is None or known["metadata"].get("deletionTimestamp"):
            return
        if (known["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL) != MANAGED_BY:
            return
        deployments = (await self._api.list("Deployment", name)).items
        going = {_slug(one) for one in deployments if is_being_removed(one)} - {None}
        volumes = (await self._api.list("PersistentVolumeClaim", name)).items
        pods = (await self._api.list("Pod", name)).items
        if any(_slug(one) not in going for one in (*deployments, *volumes, *pods)):
            return
        with suppress(ApiError):
            # Another worker may be ahead, or the account may not remove namespaces: nothing in it
            # is needed, so that is no harm.
            await self._api.delete("Namespace", None, name, uid=known["metadata"]["uid"])


def _slug(thing: Object) -> str | None:
    """Return which project's an object is, ``None`` for what is not ours."""
    labels = thing["metadata"].get("labels") or {}
    slug = labels.get(PROJECT_LABEL) if labels.get(MANAGED_BY_LABEL) == MANAGED_BY else None
    return None if slug is None else str(slug)
