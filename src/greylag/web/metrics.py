"""What Prometheus asks for, on a port of its own: whoever reaches it is told, without a token.

The exposition format is Prometheus's own, or OpenMetrics where that is asked for
(https://prometheus.io/docs/instrumenting/exposition_formats/).
"""

import asyncio

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from greylag.common import metrics
from greylag.domain.errors import StoreUnavailableError
from greylag.ports import Clock, ProjectStore

ANSWER_SECONDS = 3.0
"""What the store has to answer. Whoever scrapes waits for ten, or a few, and what came too late is
told to nobody: not even that the store is away.
"""


def create_metrics_app(store: ProjectStore, clock: Clock) -> ASGIApp:
    """Return the application that answers `/metrics`, and nothing else.

    What the process has counted is told though the store is away; how many projects there are is
    asked of it each time, so that all processes on one store tell the same.
    """

    async def tell(request: Request) -> Response:
        await _ask(store, clock)
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(REGISTRY), headers={"content-type": media_type})

    return Starlette(routes=[Route("/metrics", tell)])


async def _ask(store: ProjectStore, clock: Clock) -> None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            counts, due = await store.count_by_status(), await store.next_due()
            # A full disk, or a lock that somebody holds, lets all be read.
            await store.ping()
    except (StoreUnavailableError, TimeoutError):
        metrics.STORE_UP.set(0)
        metrics.PROJECTS.clear()
        return
    metrics.STORE_UP.set(1)
    for status, count in counts.items():
        metrics.PROJECTS.labels(status).set(count)
    late = (clock.now() - due).total_seconds() if due else 0
    metrics.OVERDUE.set(max(0, late))
