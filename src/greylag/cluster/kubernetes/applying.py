"""Making an environment's objects what they are to be, by server-side apply."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from greylag.cluster.kubernetes import drift
from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.board import Board, Object
from greylag.cluster.kubernetes.identity import (
    APPLIED_ANNOTATION,
    GENERATION_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    START_ANNOTATION,
    secret_name,
)
from greylag.cluster.kubernetes.manifests import project_objects, shared_objects
from greylag.cluster.kubernetes.options import Options
from greylag.cluster.kubernetes.reaching import token_of
from greylag.domain.errors import ClusterError
from greylag.domain.project import Project

NAMESPACE_GONE_SECONDS = 5.0
_POLL_SECONDS = 0.25
_TOKEN_BYTES = 32


class Applier:
    """Applies all objects of environments. Raises ``ApiError`` and ``ClusterError``."""

    def __init__(self, api: Api, board: Board, options: Options) -> None:
        self._api = api
        self._board = board
        self._options = options

    async def apply(
        self, project: Project, found: Object | None, *, replicas: int, mark: str
    ) -> dict[str, Any]:
        """Apply everything, the Deployment last, and return that.

        Args:
            project: whose environment.
            found: the Deployment as it was read; if it has changed since, ``ApiError`` 409.
            replicas: 0 or 1.
            mark: as long as it stays the same, the pod does.
        """
        secret = await self._ready_namespace(project)
        token = token_of(secret) if secret else secrets.token_urlsafe(_TOKEN_BYTES)
        things = project_objects(project, self._options, token=token, replicas=replicas)
        deployment = next(thing for thing in things if thing["kind"] == "Deployment")
        await self._all([thing for thing in things if thing is not deployment])
        _mark(deployment, project, mark)
        if found is not None:
            deployment["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        return await self._applied(deployment)

    async def _ready_namespace(self, project: Project) -> Object | None:
        """See to the namespace and its rules; return the environment's Secret, if it has one.

        The rules stand before anything can run there.
        """
        namespace, *rules = shared_objects(project, self._options)
        await self._not_terminating(project.names.namespace)
        await self._api.apply(namespace)
        await self._all(rules)
        return await self._api.read("Secret", project.names.namespace, secret_name(project))

    async def _not_terminating(self, name: str) -> None:
        """Wait a little for a namespace that is being removed; ``ClusterError`` if it lasts."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + NAMESPACE_GONE_SECONDS
        while (known := self._board.find("Namespace", "", name)) is not None:
            if not known["metadata"].get("deletionTimestamp"):
                return
            if loop.time() >= give_up:
                raise ClusterError(
                    "The user's namespace is being removed; it is made anew when it is gone.",
                    code="namespace_terminating",
                    hint="Greylag tries again by itself.",
                )
            await asyncio.sleep(_POLL_SECONDS)
        other = await self._api.read("Namespace", None, name)
        labels = {} if other is None else other["metadata"].get("labels") or {}
        if other is not None and labels.get(MANAGED_BY_LABEL) != MANAGED_BY:
            raise ClusterError(
                f"The namespace {name} exists and is not Greylag's.",
                code="namespace_foreign",
                hint="Choose another KUBE_NAMESPACE_PREFIX, or label the namespace "
                f"{MANAGED_BY_LABEL}={MANAGED_BY} to hand it over.",
                terminal=True,
            )

    async def _all(self, things: Sequence[Object]) -> None:
        """Apply what may be applied in any order, all at once; raise the first refusal."""
        done = await asyncio.gather(
            *(self._applied(thing) for thing in things), return_exceptions=True
        )
        for one in done:
            if isinstance(one, BaseException):
                raise one

    async def _applied(self, thing: Object) -> dict[str, Any]:
        """Apply one object and return it; it carries the fingerprint of what it is then."""
        applied = await self._api.apply(drift.signed(thing))
        kind, meta = thing["kind"], thing["metadata"]
        if (mark := drift.missing_signature(kind, applied)) is None:
            return applied
        # Its status may have changed meanwhile, which is no reason to begin anew.
        patch = {"metadata": {"annotations": {APPLIED_ANNOTATION: mark}}}
        return await self._api.patch_merge(kind, meta.get("namespace"), meta["name"], patch)


def mark_of(deployment: Object | None) -> str:
    """Return the mark under which a Deployment makes its pod."""
    annotations = {} if deployment is None else deployment["metadata"].get("annotations") or {}
    return str(annotations.get(START_ANNOTATION, "1"))


def _mark(deployment: dict[str, Any], project: Project, mark: str) -> None:
    deployment["metadata"]["annotations"] |= {
        START_ANNOTATION: mark,
        GENERATION_ANNOTATION: str(project.generation),
    }
    deployment["spec"]["template"]["metadata"]["annotations"][START_ANNOTATION] = mark
