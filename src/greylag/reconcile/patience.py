"""Waiting that a pass of the reconciler does: for news, and for a write that must not be cut."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from greylag.domain.errors import ClusterError
from greylag.domain.project import Project
from greylag.ports.cluster import Cluster
from greylag.ports.store import Subscription

log = structlog.get_logger(__name__)


async def first_change(
    cluster: Cluster, project: Project, news: Subscription, longest: float
) -> None:
    """Return when the environment or the record may have changed, after ``longest`` seconds at
    the latest. A cluster that cannot tell (``ClusterError``) ends the waiting too.
    """
    waits = [
        asyncio.create_task(cluster.changed(project, longest), name="cluster changed"),
        asyncio.create_task(news.changed(longest), name="record changed"),
    ]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        results = await asyncio.gather(*waits, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(
            result, (asyncio.CancelledError, ClusterError)
        ):
            raise result


async def finish(write: Coroutine[Any, Any, Any]) -> None:
    """Await ``write`` to its end even if this task is cancelled meanwhile; then be cancelled."""
    task = asyncio.ensure_future(write)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("last write failed", error=str(error))
        raise
