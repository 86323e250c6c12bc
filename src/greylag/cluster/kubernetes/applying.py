"""Making an environment's objects what they are to be, by server-side apply."""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from greylag.cluster.kubernetes import identity
from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.cache import Board, Object
from greylag.cluster.kubernetes.failures import ApiError, of_cause, stuck_removal
from greylag.cluster.kubernetes.fencing import is_being_removed
from greylag.cluster.kubernetes.identity import (
    APPLIED_ANNOTATION,
    GENERATION_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    PROJECT_LABEL,
    START_ANNOTATION,
    config_name,
    secret_name,
    volume_claim_name,
)
from greylag.cluster.kubernetes.locator import token_of
from greylag.cluster.kubernetes.manifests import project_objects, shared_objects
from greylag.cluster.kubernetes.observation import slot_of
from greylag.cluster.kubernetes.options import Options
from greylag.domain.errors import ClusterError
from greylag.domain.project import Environment

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
        self, environment: Environment, found: Object | None, *, replicas: int, mark: str
    ) -> dict[str, Any]:
        """Apply everything, the Deployment last, and return that.

        Args:
            environment: which environment.
            found: the Deployment as it was read; if it has changed since, ``ApiError`` 409.
            replicas: 0 or 1.
            mark: as long as it stays the same, the pod does.
        """
        secret = await self._ready_namespace(environment)
        token = token_of(secret) if secret else secrets.token_urlsafe(_TOKEN_BYTES)
        things = project_objects(environment, self._options, token=token, replicas=replicas)
        deployment = next(thing for thing in things if thing["kind"] == "Deployment")
        await self._all([thing for thing in things if thing is not deployment])
        _mark(deployment, environment, mark)
        if found is not None:
            deployment["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        return await self._applied(deployment)

    async def _ready_namespace(self, environment: Environment) -> Object | None:
        """See to the namespace and its rules; return the environment's Secret, if it has one.

        The rules stand before anything can run there.
        """
        namespace, *rules = shared_objects(environment, self._options)
        await self._not_terminating(environment.names.namespace)
        await self._api.apply(namespace)
        await self._all(rules)
        return await self._api.read("Secret", environment.names.namespace, secret_name(environment))

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
        applied = await self._api.apply(identity.signed(thing))
        kind, meta = thing["kind"], thing["metadata"]
        if (mark := identity.missing_signature(kind, applied)) is None:
            return applied
        # Its status may have changed meanwhile, which is no reason to begin anew.
        patch = {"metadata": {"annotations": {APPLIED_ANNOTATION: mark}}}
        return await self._api.patch_merge(kind, meta.get("namespace"), meta["name"], patch)


def mark_of(deployment: Object | None) -> str:
    """Return the mark under which a Deployment makes its pod."""
    annotations = {} if deployment is None else deployment["metadata"].get("annotations") or {}
    return str(annotations.get(START_ANNOTATION, "1"))


def _mark(deployment: dict[str, Any], environment: Environment, mark: str) -> None:
    deployment["metadata"]["annotations"] |= {
        START_ANNOTATION: mark,
        GENERATION_ANNOTATION: str(environment.generation),
    }
    deployment["spec"]["template"]["metadata"]["annotations"][START_ANNOTATION] = mark


# Removing an environment: its parts, its volume, its Deployment, and an empty namespace.

GONE_SECONDS = 5.0


class Remover:
    """Removes environments that do not run. Raises ``ApiError`` and ``ClusterError``."""

    def __init__(self, api: Api, board: Board) -> None:
        self._api = api
        self._board = board

    async def remove(self, environment: Environment, deployment: Object | None) -> None:
        """Remove everything of the environment; the Deployment, which carries the claim, last.

        ``deployment`` is that which was looked at, marked as being removed: if it has changed
        since, ``ApiError`` 409. As long as it is there a removal that was cut off is done again, so
        the namespace goes before it.
        """
        await self._remove_parts(environment)
        await self._gone(environment, "PersistentVolumeClaim", volume_claim_name(environment))
        await self._remove_unused_namespace(environment.names.namespace)
        if deployment is not None:
            await self._api.delete(
                "Deployment",
                environment.names.namespace,
                environment.names.deployment,
                uid=deployment["metadata"]["uid"],
                version=deployment["metadata"]["resourceVersion"],
            )
            await self._gone(environment, "Deployment", environment.names.deployment)

    async def _remove_parts(self, environment: Environment) -> None:
        names = environment.names
        parts = (
            ("Ingress", names.ingress),
            ("Service", names.service),
            ("PersistentVolumeClaim", volume_claim_name(environment)),
            ("ConfigMap", config_name(environment)),
            ("Secret", secret_name(environment)),
        )
        for kind, name in parts:
            # The claim sees to it that nobody makes one of that name anew meanwhile.
            await self._api.delete(kind, names.namespace, name, again=True)

    async def _gone(self, environment: Environment, kind: str, name: str) -> None:
        """Return when the caches know an object no more; raise what holds it up."""
        slot = slot_of(environment)
        with suppress(TimeoutError):
            async with asyncio.timeout(GONE_SECONDS):
                while self._board.find(kind, environment.names.namespace, name) is not None:
                    await self._board.changed(slot, self._board.version(slot), GONE_SECONDS)
        left = self._board.find(kind, environment.names.namespace, name)
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
