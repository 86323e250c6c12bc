"""What the watches know, by project: its objects now, when they changed, and who else changed them.

For one event loop. Nothing here asks the API server.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from greylag.cluster.kubernetes.identity import CLAIM_ANNOTATION, PROJECT_LABEL, is_edited, ref_of
from greylag.cluster.kubernetes.informer import Change, Watches
from greylag.cluster.kubernetes.objects import is_ready
from greylag.cluster.shared import ChangeFeed
from greylag.domain.project import ProjectRef

Slot = tuple[str, str]
"""A project's namespace and what its objects' names begin with."""

Object = Mapping[str, Any]

_OLD_SECONDS = 60.0
_PARTS = frozenset({"Service", "Ingress", "PersistentVolumeClaim"})


class Board:
    """Sorts what ``watches`` tell by project; tells ``unasked`` of what nobody here asked for."""

    def __init__(self, watches: Watches, unasked: ChangeFeed) -> None:
        self._watches = watches
        self._unasked = unasked
        self._pods: defaultdict[Slot, dict[str, Object]] = defaultdict(dict)
        self._deployments: defaultdict[str, dict[str, Object]] = defaultdict(dict)
        self._versions: dict[Slot, int] = {}
        self._changed_at: dict[Slot, float] = {}
        self._waiting: dict[Slot, asyncio.Event] = {}
        watches.subscribe(self._hear)

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return one object that is watched, ``None`` where it is not there."""
        return self._watches[kind].cache.get((namespace, name))

    def pods(self, slot: Slot) -> list[Object]:
        """Return a project's pods."""
        return list(self._pods[slot].values()) if slot in self._pods else []

    def refs(self) -> Iterator[tuple[ProjectRef, str]]:
        """Yield whose Deployments and volume claims there are, with their namespaces, once each."""
        seen: dict[tuple[ProjectRef, str], None] = {}
        for kind in ("Deployment", "PersistentVolumeClaim"):
            for thing in self._watches[kind].cache.values():
                if (ref := ref_of(thing)) is not None:
                    seen[ref, thing["metadata"]["namespace"]] = None
        yield from seen

    def version(self, slot: Slot) -> int:
        """Return a number that grows with each change of the project's objects."""
        return self._versions.get(slot, 0)

    def quiet_for(self, slot: Slot) -> float:
        """Return for how many seconds nothing of the project has changed."""
        now = asyncio.get_running_loop().time()
        return now - self._changed_at.get(slot, now)

    async def changed(self, slot: Slot, since: int, within: float) -> None:
        """Return once the project's version is not ``since``, or after ``within`` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self.version(slot) == since:
                    await self._waiting.setdefault(slot, asyncio.Event()).wait()

    def forget(self, slot: Slot) -> None:
        """Drop what is remembered of a project that is gone."""
        if not self._pods.get(slot):
            self._pods.pop(slot, None)
            self._changed_at.pop(slot, None)

    def wake(self) -> None:
        """Let all who wait look again."""
        for slot in list(self._waiting):
            self._move(slot)

    def _hear(self, change: Change) -> None:
        if change.kind in {"Namespace", "NetworkPolicy"}:
            self._hear_shared(change)
            return
        slug = (change.thing["metadata"].get("labels") or {}).get(PROJECT_LABEL)
        if slug is None:
            return
        slot = (change.namespace, slug)
        self._note_unasked(change, slot)
        if change.kind == "Pod":
            self._keep(self._pods[slot], change)
        elif change.kind == "Deployment" and change.gone:
            self._deployments[change.namespace].pop(slug, None)
        elif change.kind == "Deployment":
            self._deployments[change.namespace][slug] = change.thing
        self._move(slot)

    def _hear_shared(self, change: Change) -> None:
        """A rule that is lost or changed concerns all environments of the namespace that run."""
        namespace = change.namespace or change.name
        for slug, deployment in list(self._deployments.get(namespace, {}).items()):
            self._move((namespace, slug))
            lost = change.gone or is_edited(change.thing)
            if change.kind == "NetworkPolicy" and lost and wants_pod(deployment):
                self._tell(deployment)

    def _note_unasked(self, change: Change, slot: Slot) -> None:
        """Tell of what ends an environment that is to run, though no verb of ours did it."""
        deployment = self._deployments.get(slot[0], {}).get(slot[1])
        if deployment is None or not wants_pod(deployment):
            return
        match change.kind:
            case "Pod":
                before = self._pods[slot].get(change.name)
                lost = _was_ready(before) and (change.gone or not is_ready(change.thing))
                if lost or _late_bloom(before, change):
                    self._tell(deployment)
            case "Deployment":
                by_hand = not wants_pod(change.thing) and claim_of(change.thing) == claim_of(
                    deployment
                )
                if change.gone or by_hand or is_edited(change.thing):
                    self._tell(deployment)
            case kind if kind in _PARTS and (change.gone or is_edited(change.thing)):
                self._tell(deployment)

    def _tell(self, deployment: Object) -> None:
        if (ref := ref_of(deployment)) is not None:
            self._unasked.tell(ref)

    def _keep(self, pods: dict[str, Object], change: Change) -> None:
        if change.gone:
            pods.pop(change.name, None)
        else:
            pods[change.name] = change.thing

    def _move(self, slot: Slot) -> None:
        self._versions[slot] = self._versions.get(slot, 0) + 1
        self._changed_at[slot] = asyncio.get_running_loop().time()
        if (waiting := self._waiting.pop(slot, None)) is not None:
            waiting.set()


def wants_pod(deployment: Object) -> bool:
    """Tell whether a Deployment is to run."""
    return bool(deployment["spec"].get("replicas", 1))


def claim_of(deployment: Object) -> str | None:
    """Return the newest claim that a Deployment has seen, as text."""
    return (deployment["metadata"].get("annotations") or {}).get(CLAIM_ANNOTATION)


def _was_ready(pod: Object | None) -> bool:
    return pod is not None and is_ready(pod)


def _late_bloom(before: Object | None, change: Change) -> bool:
    """Tell whether a pod got ready so late that nobody may be waiting for it any more."""
    if change.gone or _was_ready(before) or not is_ready(change.thing):
        return False
    made = change.thing["metadata"].get("creationTimestamp")
    if not made:
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(made)
    return age.total_seconds() > _OLD_SECONDS
