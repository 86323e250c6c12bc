"""`greylag serve` and `greylag worker` started before their MongoDB: they wait, and say so."""

import asyncio
from pathlib import Path

import pytest
from tests.e2e.product import PROJECTS, Product, product
from tests.ports import free_port
from tests.store import mongo_servers

pytestmark = pytest.mark.slow

PATIENCE = 60


async def test_programs_that_start_before_mongodb_become_ready_by_themselves(
    tmp_path: Path,
) -> None:
    mongo_servers.skip_without_server()
    port = free_port()
    settings = {
        "MONGODB_URI": f"mongodb://127.0.0.1:{port}/",
        "GREYLAG_MONGODB_TIMEOUT": "1",
        "GREYLAG_STARTUP_RECONCILE_TIMEOUT": "0",
        "GREYLAG_GOOSE": "scripted",
        "GREYLAG_SANDBOX": "none",
    }
    async with product(tmp_path, "serve", "worker", **settings) as started:
        await _say_that_there_is_no_store(started)
        server, _ = await asyncio.to_thread(mongo_servers.start, "--port", str(port))
        try:
            await _ready(started)
            path = await started.project("demo")
            assert await started.status(path) == "active"
            await started.close()
        finally:
            await asyncio.to_thread(mongo_servers.stop, server)


async def _say_that_there_is_no_store(started: Product) -> None:
    assert await started.call("GET", "/healthz") == (200, {"status": "ok"})
    for path in ("/readyz", PROJECTS):
        async with started.http.get(path) as answer:
            problem = await answer.json(content_type=None)
            assert (answer.status, problem["code"]) == (503, "store_unavailable")
            assert "cannot be reached" in problem["detail"]
            assert int(answer.headers["retry-after"]) > 0


async def _ready(started: Product) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            status, _ = await started.call("GET", "/readyz")
            if status == 200:
                return
            await asyncio.sleep(0.1)
