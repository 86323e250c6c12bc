"""What the informers know, by project: its objects, when they changed, and who else changed them.

For one event loop. Nothing here asks the API server.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

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
from greylag.domain.project import Environment, ProjectRef

ProjectKey = tuple[str, str]
"""A project's namespace and what its objects' names begin with."""

_Key = TypeVar("_Key")
_PARTS = frozenset({"Service", "Ingress", "PersistentVolumeClaim"})


@dataclass(slots=True)
class _Project:
    """A project that has objects.

    Attributes:
        things: its objects, by kind and name.
        version: grows with each change of them.
        changed_at: when the last one was.
        ended: why its pod ended unasked.
    """

    things: dict[tuple[str, str], Object] = field(default_factory=dict)
    version: int = 0
    changed_at: float = 0.0
    ended: Cause | None = None


class ProjectCache:
    """Sorts what the informers tell by project; tells ``unasked`` of what nobody here asked for, or
    waits for.

    Of a project whose last object is gone nothing is kept.

    Attributes:
        gone: is called with each project that has gone.
    """

    def __init__(self, informers: Informers, unasked: ChangeFeed) -> None:
        self._informers = informers
        self._unasked = unasked
        self.gone: Callable[[ProjectKey], object] = lambda _key: None
        self._projects: dict[ProjectKey, _Project] = {}
        self._deployments: defaultdict[str, dict[str, Object]] = defaultdict(dict)
        # Of all projects, so that one that comes back has none of before.
        self._last_version = 0
        self._waiting: dict[ProjectKey, set[asyncio.Event]] = {}
        informers.subscribe(self._hear)

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return one object of a kind that is watched, ``None`` where it is not there."""
        return self._informers[kind].cache.get((namespace, name))

    def pods(self, key: ProjectKey) -> list[Object]:
        """Return a project's pods."""
        things = self._projects[key].things if key in self._projects else {}
        return [thing for (kind, _), thing in things.items() if kind == "Pod"]

    def ended(self, key: ProjectKey) -> Cause | None:
        """Return why a project's pod ended unasked, until another is ready or none is wanted."""
        return self._projects[key].ended if key in self._projects else None

    def refs(self) -> Sequence[tuple[ProjectRef, str]]:
        """Return whose Deployments and volume claims there are, and in which namespaces."""
        seen: dict[tuple[ProjectRef, str], None] = {}
        for kind in ("Deployment", "PersistentVolumeClaim"):
            for thing in self._informers[kind].cache.values():
                if (ref := ref_of(thing)) is not None:
                    seen[ref, thing["metadata"]["namespace"]] = None
        return list(seen)

    def version(self, key: ProjectKey) -> int:
        """Return a number that grows with each change of the project's objects, 0 without any."""
        return self._projects[key].version if key in self._projects else 0

    def quiet_for(self, key: ProjectKey) -> float:
        """Return for how many seconds nothing of the project has changed."""
        now = asyncio.get_running_loop().time()
        return now - self._projects[key].changed_at if key in self._projects else 0.0

    async def changed(self, key: ProjectKey, since: int, within: float) -> None:
        """Return once the project's version is not ``since``, or after ``within`` seconds."""
        if self.version(key) != since:
            return
        moved, waiting = asyncio.Event(), self._waiting.setdefault(key, set())
        waiting.add(moved)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await moved.wait()
        finally:
            waiting.discard(moved)
            if not waiting:
                del self._waiting[key]

    def wake(self) -> None:
        """Let all who wait look again."""
        for key in list(self._waiting):
            self._wake(key)

    def _hear(self, change: Change) -> None:
        if change.kind in {"Namespace", "NetworkPolicy"}:
            self._hear_shared(change)
            return
        before = label_of(change.before, PROJECT_LABEL)
        now = None if change.gone else label_of(change.thing, PROJECT_LABEL)
        if before is not None and before != now:
            # Its label may have been taken off or changed: for the project that is the same.
            self._hear_of((change.namespace, before), replace(change, gone=True))
        if now is not None:
            self._hear_of((change.namespace, now), change)

    def _hear_of(self, key: ProjectKey, change: Change) -> None:
        project = self._projects.setdefault(key, _Project())
        self._note_unasked(change, key, project)
        _keep(project.things, (change.kind, change.name), change)
        if change.kind == "Deployment":
            _keep(self._deployments[change.namespace], key[1], change)
            if not self._deployments[change.namespace]:
                del self._deployments[change.namespace]
        self._move(key)
        if not project.things:
            del self._projects[key]
            self.gone(key)

    def _hear_shared(self, change: Change) -> None:
        """A rule that is lost or changed concerns all environments of the namespace that run."""
        namespace = change.namespace or change.name
        for slug, deployment in list(self._deployments.get(namespace, {}).items()):
            self._move((namespace, slug))
            lost = change.gone or is_edited(change.thing)
            if change.kind == "NetworkPolicy" and lost and wants_pod(deployment):
                self._tell(deployment)

    def _note_unasked(self, change: Change, key: ProjectKey, project: _Project) -> None:
        """Tell of what ends an environment that is to run, though no verb of ours did it."""
        deployment = self._deployments.get(key[0], {}).get(key[1])
        if deployment is None or not wants_pod(deployment):
            project.ended = None
            return
        match change.kind:
            case "Pod":
                before = project.things.get(("Pod", change.name))
                was, now = _was_ready(before), not change.gone and is_ready(change.thing)
                if annotation_of(change.thing, START_ANNOTATION) == annotation_of(
                    deployment, START_ANNOTATION
                ):
                    _note_end(before, change, project)
                # Who waits here for its start sees by itself that it is ready.
                if (was and not now) or (now and not was and key not in self._waiting):
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

    def _tell(self, deployment: Object) -> None:
        if (ref := ref_of(deployment)) is not None:
            self._unasked.tell(ref)

    def _move(self, key: ProjectKey) -> None:
        project = self._projects[key]
        project.version = self._last_version = self._last_version + 1
        project.changed_at = asyncio.get_running_loop().time()
        self._wake(key)

    def _wake(self, key: ProjectKey) -> None:
        for moved in self._waiting.get(key, ()):
            moved.set()


def key_of(environment: Environment) -> ProjectKey:
    """Return what the cache knows an environment by."""
    return environment.names.namespace, project_slug(environment)


def _keep(known: dict[_Key, Object], key: _Key, change: Change) -> None:
    if change.gone:
        known.pop(key, None)
    else:
        known[key] = change.thing


def _note_end(before: Object | None, change: Change, project: _Project) -> None:
    """Remember why a pod that was ready ends; it may be gone before anybody looks."""
    if not change.gone and is_ready(change.thing) and lives(change.thing):
        project.ended = None
    elif _was_ready(before) and before is not None and lives(before):
        ends = change.gone or not lives(change.thing)
        if ends or why_not_alive(change.thing) is not None:
            project.ended = why_lost(change.thing)


def _is_lost(change: Change) -> bool:
    return change.gone or is_removed(change.thing) or is_edited(change.thing)


def _was_ready(pod: Object | None) -> bool:
    return pod is not None and is_ready(pod)
