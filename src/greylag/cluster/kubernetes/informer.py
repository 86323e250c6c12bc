"""What is in the cluster now: for each kind a list, kept current by a watch.

``Informers`` are shared by all projects, and notice an API server that no longer answers. Of each
object they keep what tells how an environment is, and no more (``trim``).
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import structlog

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.failures import ApiError, cluster_error
from greylag.cluster.kubernetes.identity import (
    CHANGED_BY,
    FINGERPRINT,
    SELECTOR,
    Object,
    changed_by,
    fingerprint,
)
from greylag.common.backoff import Pauses, backoff
from greylag.domain.errors import ClusterError, ClusterUnavailableError

if TYPE_CHECKING:
    from greylag.cluster.kubernetes.calls import WatchStream

ObjectKey = tuple[str, str]
"""Namespace ("" for what has none) and name."""

PROBE_SECONDS = 3.0
"""How often, and how long, the API server is asked whether it is up."""

FIRST_PROBE = 0.2
"""After a bad answer it is asked again after so many seconds, then ever later."""

SILENCE = 90.0
"""How many seconds a watch may tell nothing (bookmarks come each minute)."""

LASTS = 300
"""After how many seconds a watch is opened anew."""

STEADY_SECONDS = 1.0
"""A watch that lasted so long was well: the next begins after ``FIRST_PAUSE``."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a watch is opened again, and after many that failed."""

LONGEST_ASKED = 60.0
"""The most seconds that an API server may ask to be left alone: the caches are old for so long."""

_META = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "labels",
    "creationTimestamp",
    "deletionTimestamp",
    "finalizers",
)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

# A kind that is not here keeps all of its spec and status.
_SPEC: Mapping[str, tuple[str, ...]] = {
    "Deployment": ("replicas", "selector"),
    "Ingress": ("ingressClassName", "rules", "tls"),
    "Namespace": (),
    "PersistentVolumeClaim": ("accessModes", "resources", "storageClassName", "volumeName"),
    "Pod": ("nodeName", "imagePullSecrets"),
    "Service": (
        *("type", "clusterIP", "ports", "selector"),
        *("externalTrafficPolicy", "loadBalancerSourceRanges"),
    ),
}
_STATUS: Mapping[str, tuple[str, ...]] = {
    "Pod": (
        *("phase", "reason", "message", "podIP", "podIPs", "conditions"),
        *("initContainerStatuses", "containerStatuses"),
    ),
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """An object that is new, changed or ``gone``. ``thing`` is its last known (trimmed) state,
    ``before`` that which was known until now.
    """

    kind: str
    namespace: str
    name: str
    thing: Object
    gone: bool
    before: Object | None


class Informers:
    """What of these kinds is ours in the cluster. Somebody must await ``run`` all the time.

    Secrets do not belong among the kinds.
    """

    def __init__(self, api: Api, kinds: Iterable[str]) -> None:
        self._api = api
        self._answers = asyncio.Event()
        self._listeners: list[Callable[[Change], None]] = []
        self._by_kind = {kind: Informer(api, kind, self._tell) for kind in kinds}

    def __getitem__(self, kind: str) -> "Informer":
        return self._by_kind[kind]

    @property
    def live(self) -> bool:
        """Whether the caches say what is true now; if not, what they hold or lack is no proof."""
        return self._answers.is_set() and all(one.live.is_set() for one in self._by_kind.values())

    @property
    def problem(self) -> str:
        """Why they are not live, "" while they are."""
        if self.live:
            return ""
        problems = (one.problem for one in self._by_kind.values() if one.problem)
        opening = "A watch has ended, and is not open again yet."
        silent = "The API server does not answer."
        return next(problems, opening if self._answers.is_set() else silent)

    @property
    def trouble(self) -> ClusterError:
        """Why they are not live, as an error to raise."""
        refused = (one.refusal for one in self._by_kind.values() if one.refusal is not None)
        refusal = next(refused, None)
        return ClusterUnavailableError(self.problem) if refusal is None else cluster_error(refusal)

    async def synced(self, within: float) -> None:
        """Return when all kinds are known.

        Raises:
            ClusterUnavailableError: they are not after ``within`` seconds; it is ``trouble``.
        """
        try:
            async with asyncio.timeout(within):
                await self._answers.wait()
                for one in self._by_kind.values():
                    await one.synced.wait()
        except TimeoutError as error:
            raise self.trouble from error

    async def alive(self, within: float) -> bool:
        """Wait until they are live; tell if they are after ``within`` seconds.

        A watch that broke off is open again in a moment, which is no reason to give work up.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not self.live:
                    await self._answers.wait()
                    for one in self._by_kind.values():
                        await one.live.wait()
        return self.live

    def subscribe(self, callback: Callable[[Change], None]) -> None:
        """Call ``callback`` with each change (the first list's too).

        It is called on the loop, after the cache has changed; it must be quick and not raise.
        """
        self._listeners.append(callback)

    async def run(self) -> None:
        """Keep all caches current until cancelled. Ends otherwise only by a fault in Greylag."""
        try:
            async with asyncio.TaskGroup() as group:
                for kind, informer in self._by_kind.items():
                    group.create_task(informer.run(), name=f"kubernetes watch {kind}")
                group.create_task(self._probe(), name="kubernetes probe")
        finally:
            self._answers.clear()

    async def _probe(self) -> None:
        """Ask now and then whether the API server is up: a watch that is quiet cannot tell."""
        pauses = Pauses(FIRST_PROBE, PROBE_SECONDS)
        while True:
            if await self._api.answers(PROBE_SECONDS):
                pauses.worked()
                self._answers.set()
                await asyncio.sleep(PROBE_SECONDS)
                continue
            self._answers.clear()
            if pauses.failed:
                # The second time in a row: its connections may be dead, and would hang.
                for informer in self._by_kind.values():
                    informer.cut()
            await pauses.pause()

    def _tell(self, change: Change) -> None:
        for listener in self._listeners:
            listener(change)


class Informer:
    """All objects of one kind that are ours, in all namespaces.

    Attributes:
        cache: what is known; it says what is true now only while ``live``.
        synced: set once all that was there at the beginning is known, and the watch has begun.
    """

    def __init__(self, api: Api, kind: str, tell: Callable[[Change], None]) -> None:
        self.kind = kind
        self._api = api
        self._tell = tell
        self._cache: dict[ObjectKey, Object] = {}
        self.cache: Mapping[ObjectKey, Object] = MappingProxyType(self._cache)
        self.live = asyncio.Event()
        self.synced = asyncio.Event()
        self.problem = "The watch has not begun."
        self.refusal: ApiError | None = None
        """That the API server does not let us watch, if that is why it is not live."""
        self._version: str | None = None
        self._stream: WatchStream | None = None
        self._moved = asyncio.Event()

    async def reached(self, resource_version: str, within: float) -> bool:
        """Wait until the cache knows a write that returned ``resource_version``; tell if it does.

        Versions grow, and may be compared as numbers (KEP-5504).
        """
        try:
            async with asyncio.timeout(within):
                while int(self._version or 0) < int(resource_version):
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def cut(self) -> None:
        """Break the watch off, so that it is opened anew."""
        if self._stream is not None:
            self._stream.cut()

    async def run(self) -> None:
        """Keep the cache current until cancelled."""
        failed = 0
        loop = asyncio.get_running_loop()
        while True:
            began, asked = loop.time(), 0.0
            try:
                await self._follow()
            except (ApiError, ClusterUnavailableError) as error:
                asked = self._lost(error)
            failed = 0 if loop.time() - began >= STEADY_SECONDS else failed + 1
            await asyncio.sleep(max(asked, backoff(failed, FIRST_PAUSE, LONGEST_PAUSE)))

    async def _follow(self) -> None:
        """List if there is nothing to go on from, then watch till the watch ends."""
        if self._version is None:
            await self._list()
        version = self._version or ""
        async with self._api.watch(
            self.kind,
            selector=SELECTOR,
            resource_version=version,
            seconds=LASTS,
            silence=SILENCE,
        ) as stream:
            self._stream, self.problem, self.refusal = stream, "", None
            self.live.set()
            self.synced.set()
            try:
                async for event, thing in stream:
                    self._take(event, thing)
            finally:
                # Also after an end in good order: the next watch may be long in coming.
                self.live.clear()
                self._stream = None

    async def _list(self) -> None:
        fresh: dict[ObjectKey, dict[str, Any]] = {}
        version = ""
        async for page in self._api.pages(self.kind, selector=SELECTOR):
            version = page.resource_version
            for thing in page.items:
                kept = trim(self.kind, thing)
                fresh[_key(kept)] = kept
        # From here on nothing is awaited, so nobody sees half of it.
        for key in self._cache.keys() - fresh.keys():
            self._note(key, self._cache[key], gone=True)
        for key, thing in fresh.items():
            before = self._cache.get(key)
            if before is None or _version(before) != _version(thing):
                self._note(key, thing, gone=False)
        self._advance(version)

    def _take(self, event: str, thing: Object) -> None:
        if event in {"ADDED", "MODIFIED", "DELETED"}:
            kept = trim(self.kind, thing)
            self._note(_key(kept), kept, gone=event == "DELETED")
        self._advance(_version(thing))

    def _note(self, key: ObjectKey, thing: Object, *, gone: bool) -> None:
        before = self._cache.get(key)
        if gone:
            self._cache.pop(key, None)
        else:
            self._cache[key] = thing
        self._tell(Change(self.kind, *key, thing, gone, before))

    def _advance(self, version: str) -> None:
        self._version = version
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _lost(self, error: ApiError | ClusterUnavailableError) -> float:
        """Note why the cache may be old; return how long the API server asked to be left alone."""
        if not self.problem:
            _log.warning("kubernetes_watch_lost", kind=self.kind, error=str(error))
        gone = isinstance(error, ApiError) and error.is_gone
        self.problem = "The API server has forgotten what was watched." if gone else str(error)
        self.refusal = error if isinstance(error, ApiError) and error.is_refusal else None
        answer = error if isinstance(error, ApiError) else error.__cause__
        if not isinstance(answer, ApiError):
            return 0.0
        if answer.is_gone:
            self._version = None
        return min(answer.retry_after or 0.0, LONGEST_ASKED)


def trim(kind: str, thing: Object) -> dict[str, Any]:
    """Return what is kept of ``thing``; its form stays that of Kubernetes.

    The fingerprint of what is not kept is added to it, and who else changed it last.
    """
    kept = {key: thing[key] for key in ("type", "reason", "message") if key in thing}
    kept["metadata"] = _some(thing["metadata"], _META)
    annotations = thing["metadata"].get("annotations") or {}
    kept["metadata"]["annotations"] = {
        key: value for key, value in annotations.items() if key != _LAST_APPLIED
    }
    spec, status = thing.get("spec") or {}, thing.get("status") or {}
    kept["spec"] = _some(spec, _SPEC[kind]) if kind in _SPEC else spec
    kept["status"] = _some(status, _STATUS[kind]) if kind in _STATUS else status
    if kind == "Pod":
        kept["spec"] |= _containers(spec)
    if kind == "Deployment":
        of_pod = (spec.get("template") or {}).get("spec") or {}
        kept["spec"]["template"] = {"spec": _containers(of_pod)}
    if (mark := fingerprint(kind, thing)) is not None:
        kept[FINGERPRINT] = mark
        kept[CHANGED_BY] = changed_by(thing)
    return kept


def _containers(spec: Object) -> dict[str, Any]:
    kinds = ("containers", "initContainers")
    return {
        kind: [_some(one, ("name", "image")) for one in spec[kind]]
        for kind in kinds
        if spec.get(kind)
    }


def _some(of: Object, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: of[key] for key in keys if key in of}


def _key(thing: Object) -> ObjectKey:
    meta = thing["metadata"]
    return meta.get("namespace") or "", meta["name"]


def _version(thing: Object) -> str:
    return str(thing["metadata"]["resourceVersion"])
