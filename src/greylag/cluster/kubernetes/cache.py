"""What the informers know, by project: its objects, when they changed, and who else changed them.

For one event loop. Nothing here asks the API server.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

from greylag.cluster.kubernetes.diagnosis import (
    is_ready,
    is_removed,
    lives,
    wants_pod,
    why_lost,
    why_not_alive,
)
from greylag.cluster.kubernetes.failures import Cause
from greylag.cluster.kubernetes.identity import (
    CLAIM_ANNOTATION,
    PROJECT_LABEL,
    START_ANNOTATION,
    Object,
    annotation_of,
    is_edited,
    label_of,
    project_slug,
    ref_of,
)
from greylag.cluster.kubernetes.informer import Change, Informers
from greylag.cluster.shared import ChangeFeed
from greylag.common.clock import parse_rfc3339
from greylag.domain.project import Environment, ProjectRef

ProjectKey = tuple[str, str]
"""A project's namespace and what its objects' names begin with."""

_OLD_SECONDS = 60.0
_PARTS = frozenset({"Service", "Ingress", "PersistentVolumeClaim"})


class ProjectCache:
    """Sorts what the informers tell by project; tells ``unasked`` of what nobody here asked for."""

    def __init__(self, informers: Informers, unasked: ChangeFeed) -> None:
        self._informers = informers
        self._unasked = unasked
        self._pods: defaultdict[ProjectKey, dict[str, Object]] = defaultdict(dict)
        self._deployments: defaultdict[str, dict[str, Object]] = defaultdict(dict)
        self._versions: dict[ProjectKey, int] = {}
        self._changed_at: dict[ProjectKey, float] = {}
        self._waiting: dict[ProjectKey, asyncio.Event] = {}
        self._ended: dict[ProjectKey, Cause] = {}
        informers.subscribe(self._hear)

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return one object of a kind that is watched, ``None`` where it is not there."""
        return self._informers[kind].cache.get((namespace, name))

    def watches(self, kind: str) -> bool:
        """Tell whether the objects of this kind are known."""
        return kind in self._informers

    def pods(self, key: ProjectKey) -> list[Object]:
        """Return a project's pods."""
        return list(self._pods[key].values()) if key in self._pods else []

    def ended(self, key: ProjectKey) -> Cause | None:
        """Return why a project's pod ended unasked, until another is ready or none is wanted."""
        return self._ended.get(key)

    def refs(self) -> Iterator[tuple[ProjectRef, str]]:
        """Yield whose Deployments and volume claims there are, with their namespaces, once each."""
        seen: dict[tuple[ProjectRef, str], None] = {}
        for kind in ("Deployment", "PersistentVolumeClaim"):
            for thing in self._informers[kind].cache.values():
                if (ref := ref_of(thing)) is not None:
                    seen[ref, thing["metadata"]["namespace"]] = None
        yield from seen

    def version(self, key: ProjectKey) -> int:
        """Return a number that grows with each change of the project's objects."""
        return self._versions.get(key, 0)

    def quiet_for(self, key: ProjectKey) -> float:
        """Return for how many seconds nothing of the project has changed."""
        now = asyncio.get_running_loop().time()
        return now - self._changed_at.get(key, now)

    async def changed(self, key: ProjectKey, since: int, within: float) -> None:
        """Return once the project's version is not ``since``, or after ``within`` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self.version(key) == since:
                    await self._waiting.setdefault(key, asyncio.Event()).wait()

    def forget(self, key: ProjectKey) -> None:
        """Drop what is remembered of a project that is gone."""
        if not self._pods.get(key):
            self._pods.pop(key, None)
            self._ended.pop(key, None)
            self._changed_at.pop(key, None)

    def wake(self) -> None:
        """Let all who wait look again."""
        for key in list(self._waiting):
            self._move(key)

    def _hear(self, change: Change) -> None:
        if change.kind in {"Namespace", "NetworkPolicy"}:
            self._hear_shared(change)
            return
        slug = label_of(change.thing, PROJECT_LABEL)
        if slug is None:
            return
        key = (change.namespace, slug)
        self._note_unasked(change, key)
        if change.kind == "Pod":
            self._keep(self._pods[key], change)
        elif change.kind == "Deployment" and change.gone:
            self._deployments[change.namespace].pop(slug, None)
        elif change.kind == "Deployment":
            self._deployments[change.namespace][slug] = change.thing
        self._move(key)

    def _hear_shared(self, change: Change) -> None:
        """A rule that is lost or changed concerns all environments of the namespace that run."""
        namespace = change.namespace or change.name
        for slug, deployment in list(self._deployments.get(namespace, {}).items()):
            self._move((namespace, slug))
            lost = change.gone or is_edited(change.thing)
            if change.kind == "NetworkPolicy" and lost and wants_pod(deployment):
                self._tell(deployment)

    def _note_unasked(self, change: Change, key: ProjectKey) -> None:
        """Tell of what ends an environment that is to run, though no verb of ours did it."""
        deployment = self._deployments.get(key[0], {}).get(key[1])
        if deployment is None or not wants_pod(deployment):
            self._ended.pop(key, None)
            return
        match change.kind:
            case "Pod":
                before = self._pods[key].get(change.name)
                lost = _was_ready(before) and (change.gone or not is_ready(change.thing))
                if annotation_of(change.thing, START_ANNOTATION) == annotation_of(
                    deployment, START_ANNOTATION
                ):
                    self._note_end(before, change, key)
                if lost or _ready_late(before, change):
                    self._tell(deployment)
            case "Deployment":
                claims = [
                    annotation_of(one, CLAIM_ANNOTATION) for one in (change.thing, deployment)
                ]
                by_hand = not wants_pod(change.thing) and claims[0] == claims[1]
                if change.gone or by_hand or is_edited(change.thing):
                    self._tell(deployment)
            case kind if kind in _PARTS and _is_lost(change):
                self._tell(deployment)

    def _note_end(self, before: Object | None, change: Change, key: ProjectKey) -> None:
        """Remember why a pod that was ready ends; it may be gone before anybody looks."""
        if not change.gone and is_ready(change.thing) and lives(change.thing):
            self._ended.pop(key, None)
        elif _was_ready(before) and before is not None and lives(before):
            ends = change.gone or not lives(change.thing)
            if ends or why_not_alive(change.thing) is not None:
                self._ended[key] = why_lost(change.thing)

    def _tell(self, deployment: Object) -> None:
        if (ref := ref_of(deployment)) is not None:
            self._unasked.tell(ref)

    def _keep(self, pods: dict[str, Object], change: Change) -> None:
        if change.gone:
            pods.pop(change.name, None)
        else:
            pods[change.name] = change.thing

    def _move(self, key: ProjectKey) -> None:
        self._versions[key] = self._versions.get(key, 0) + 1
        self._changed_at[key] = asyncio.get_running_loop().time()
        if (waiting := self._waiting.pop(key, None)) is not None:
            waiting.set()


def key_of(environment: Environment) -> ProjectKey:
    """Return what the cache knows an environment by."""
    return environment.names.namespace, project_slug(environment)


def _is_lost(change: Change) -> bool:
    return change.gone or is_removed(change.thing) or is_edited(change.thing)


def _was_ready(pod: Object | None) -> bool:
    return pod is not None and is_ready(pod)


def _ready_late(before: Object | None, change: Change) -> bool:
    """Tell whether a pod got ready so late that nobody may be waiting for it any more."""
    if change.gone or _was_ready(before) or not is_ready(change.thing):
        return False
    made = change.thing["metadata"].get("creationTimestamp")
    if not made:
        return False
    age = datetime.now(UTC) - parse_rfc3339(made)
    return age.total_seconds() > _OLD_SECONDS
