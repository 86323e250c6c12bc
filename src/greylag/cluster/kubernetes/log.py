"""The log of an environment's agentd: its last lines, and what follows, from one pod to the next.

A stream that is followed ends when the container does, but also when the API server or the node
closes it. So it is opened again as long as the container runs. The node tells of each line when it
was written, by which one that has been read is known again.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.diagnosis import container
from greylag.cluster.kubernetes.failures import ApiError, translated
from greylag.cluster.kubernetes.identity import Object, project_selector
from greylag.cluster.kubernetes.manifests import AGENTD
from greylag.domain.project import Environment

POLL_SECONDS = 1.0
"""How often a new pod is looked for, and a stream that has ended is opened again."""

_LONGEST_LINE = 1024 * 1024
_NO_LOG_YET = frozenset({400, 404})
# Nodes pad the nanoseconds, so that these compare as they are.
_BROKEN_STAMP = re.compile(rb"\d[\dT:.Z+-]*")
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)) ")


@dataclass(slots=True)
class _Place:
    """How far a log has been read.

    Attributes:
        run: of which pod, by its uid, after how many restarts of its container.
        begins: whether there was no log yet, so that all that comes is new.
        first: when the line was written that came first.
        stamp: when the last whole line was written.
        rest: the beginning of a line that has no end yet.
        begun: when the line was written of which a part has been given, its end not waited for.
        given: how many bytes of that line.
        within: when the line was written of which this stream has told a part.
        into: how many bytes of that line; 0 where it is at the beginning of one.
    """

    run: tuple[str, int] | None = None
    begins: bool = False
    first: bytes = b""
    stamp: bytes = b""
    rest: bytes = b""
    begun: bytes = b""
    given: int = 0
    within: bytes = b""
    into: int = 0

    def told(self, part: bytes) -> tuple[bytes, bytes]:
        """Return when a line was written, and what of it, or of a part, has not been given yet."""
        if not self.into:
            self.within, part = _parted(part)
            self.first = self.first or self.within
        known = self.given - self.into if self.within and self.within == self.begun else 0
        self.into += len(part)
        return self.within, part[max(known, 0) :]

    def ended(self, stamp: bytes) -> None:
        """Note that a whole line has been read."""
        self.stamp, self.into = max(self.stamp, stamp), 0
        if stamp >= self.begun:
            self.begun, self.given = b"", 0


async def last_lines(api: Api, environment: Environment, tail: int) -> AsyncGenerator[bytes, None]:
    """Yield the last ``tail`` lines of the newest pod, each with its line feed.

    Raises:
        ClusterError: the API server refuses it.
    """
    place = _Place()
    with translated():
        if (pod := await _newest(api, environment)) is None:
            return
        async for line in _lines(api, pod, place, follow=False, tail=tail):
            yield line
    if place.rest:
        yield place.rest


async def followed(api: Api, environment: Environment, tail: int) -> AsyncGenerator[bytes, None]:
    """Yield what ``last_lines`` does, then what comes, of it and of the pods that come after it.

    Raises:
        ClusterError: the API server refuses it.
    """
    place = _Place()
    first: int | None = tail
    while True:
        with translated():
            pod = await _newest(api, environment)
            run = None if pod is None else _run_of(pod)
            first = None if pod is None else first
            # A node that puts no times to lines cannot be asked for what follows.
            again = run == place.run and _runs(pod) and place.first != b""
            if not again and (end := _end(place)):
                yield end
            if pod is not None and (again or run != place.run):
                reading = place if again else _Place(run)
                async for line in _lines(api, pod, reading, follow=True, tail=first):
                    place, first = reading, None
                    yield line
                if reading.rest and not _BROKEN_STAMP.fullmatch(reading.rest):
                    place, first = reading, None
                    place.first = place.first or _parted(place.rest)[0]
                if reading.begins:
                    first = None
        await asyncio.sleep(POLL_SECONDS)


async def _lines(
    api: Api, pod: Object, place: _Place, *, follow: bool, tail: int | None
) -> AsyncIterator[bytes]:
    """Yield the lines after ``place``, which moves on with them; its rest is read again."""
    meta, since = pod["metadata"], place.stamp
    # Of a log that broke off in its first line, nothing before that line was asked for.
    first = place.first
    place.rest, place.into = b"", 0
    opened = api.stream_log(
        meta["namespace"],
        meta["name"],
        container=AGENTD,
        follow=follow,
        tail=tail,
        timestamps=follow,
        since=(since or first).decode(),
    )
    try:
        async with opened as chunks:
            async for chunk in chunks:
                *whole, place.rest = (place.rest + chunk).split(b"\n")
                for line in whole:
                    stamp, text = place.told(line) if follow else (b"", line)
                    # What is asked for begins with a whole second.
                    if not stamp or (stamp > since and stamp >= first):
                        yield text + b"\n"
                    place.ended(stamp)
                long = len(place.rest) > _LONGEST_LINE
                if long and (part := _end(place) if follow else place.rest):
                    yield part
                    place.rest = b""
    except ApiError as error:
        if error.status not in _NO_LOG_YET:
            raise
        place.begins = True


def _end(place: _Place) -> bytes:
    """Return, once, what is new of a line that has no end, or whose end is not waited for."""
    if not place.rest:
        return b""
    stamp, text = place.told(place.rest)
    place.rest = b""
    if stamp and (stamp <= place.stamp or stamp < place.first):
        return b""
    place.given = max(place.into, place.given if stamp == place.begun else 0)
    place.begun = stamp
    return text


def _parted(line: bytes) -> tuple[bytes, bytes]:
    """Return when a line was written, "" where that is not told, and what it says."""
    found = _STAMP.match(line)
    return (b"", line) if found is None else (found[1], line[found.end() :])


async def _newest(api: Api, environment: Environment) -> Object | None:
    ours = project_selector(environment)
    pods = (await api.list("Pod", environment.names.namespace, selector=ours)).items
    return max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)


def _run_of(pod: Object) -> tuple[str, int]:
    return pod["metadata"]["uid"], int(container(pod, AGENTD).get("restartCount", 0))


def _runs(pod: Object | None) -> bool:
    return pod is not None and "running" in container(pod, AGENTD).get("state", {})
