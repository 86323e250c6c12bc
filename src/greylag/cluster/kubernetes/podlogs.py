"""What an environment says: the log of its pod, and with ``follow`` of those that come after it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.failures import ApiError
from greylag.cluster.kubernetes.identity import PROJECT_LABEL, project_slug
from greylag.cluster.kubernetes.workload import CONTAINER
from greylag.domain.project import Project

_POLL_SECONDS = 1.0
_LONGEST_LINE = 1024 * 1024
_NO_LOG_YET = frozenset({400, 404})


async def read_lines(
    api: Api, project: Project, *, follow: bool, tail: int
) -> AsyncGenerator[bytes, None]:
    """Yield the last ``tail`` lines, then, with ``follow``, what comes, through restarts.

    Each line ends in a line feed. Raises ``ApiError``.
    """
    read: tuple[str, int] | None = None
    first: int | None = tail
    while True:
        pod = await _newest(api, project)
        run = None if pod is None else _run_of(pod)
        if pod is not None and run != read:
            found = False
            async for line in _of_pod(api, pod, follow=follow, tail=first):
                found = True
                yield line
            read = run if found or not follow else read
            first = None if found else first
        if not follow:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _of_pod(
    api: Api, pod: dict[str, Any], *, follow: bool, tail: int | None
) -> AsyncIterator[bytes]:
    meta = pod["metadata"]
    rest = b""
    try:
        async with api.stream_log(
            meta["namespace"], meta["name"], container=CONTAINER, follow=follow, tail=tail
        ) as chunks:
            async for chunk in chunks:
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line + b"\n"
                if len(rest) > _LONGEST_LINE:
                    yield rest
                    rest = b""
    except ApiError as error:
        if error.status not in _NO_LOG_YET:
            raise
    if rest:
        yield rest


async def _newest(api: Api, project: Project) -> dict[str, Any] | None:
    selector = f"{PROJECT_LABEL}={project_slug(project)}"
    pods = (await api.list("Pod", project.names.namespace, selector=selector)).items
    return max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)


def _run_of(pod: dict[str, Any]) -> tuple[str, int]:
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    return pod["metadata"]["uid"], int(statuses[0].get("restartCount", 0))
