"""What probes ask of a real `greylag worker`."""

import asyncio
import json
import signal
from pathlib import Path

import aiohttp
from tests.e2e.product import PATIENCE, Product
from tests.ports import free_port

DEAD_STORE = "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=200"


async def _asked(port: int, path: str) -> tuple[int, dict[str, object]]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    async with http.get(path) as answer:
                        return answer.status, json.loads(await answer.read() or b"{}")
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.05)  # it is not up yet


async def test_a_worker_tells_probes_its_health_and_nothing_else_and_ends_when_told(
    tmp_path: Path,
) -> None:
    port = free_port()
    worker = Product(tmp_path, {"GREYLAG_HEALTH_PORT": str(port)})
    try:
        await worker.start("worker")
        assert await _asked(port, "/healthz") == (200, {"status": "ok"})
        assert await _asked(port, "/readyz") == (200, {"status": "ok"})
        url = f"http://127.0.0.1:{port}/api/users"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            assert answer.status == 404
        assert await worker.end("worker", signal.SIGTERM) == 0
    finally:
        await worker.close()


async def test_a_worker_whose_store_is_down_is_alive_and_not_ready(tmp_path: Path) -> None:
    port = free_port()
    settings = {
        "GREYLAG_HEALTH_PORT": str(port),
        "MONGODB_URI": DEAD_STORE,
        "GREYLAG_MONGODB_TIMEOUT": "0.5",
        "GREYLAG_STARTUP_RECONCILE_TIMEOUT": "0.1",
    }
    worker = Product(tmp_path, settings)
    starting = asyncio.create_task(worker.start("worker"), name="worker")
    try:
        assert await _asked(port, "/healthz") == (200, {"status": "ok"})
        status, said = await _asked(port, "/readyz")
        assert (status, said["code"]) == (503, "store_unavailable")
    finally:
        await starting
        await worker.end("worker", signal.SIGTERM)
        await worker.close()
