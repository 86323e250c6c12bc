"""What probes and Prometheus ask of real programs."""

import asyncio
import json
import signal
from pathlib import Path

import aiohttp
import pytest
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


async def _check_numbers(port: int) -> None:
    """Fail unless the numbers are told at the port, and nothing else is."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        async with http.get("/metrics") as answer:
            told = await answer.text()
        async with http.get("/api/users") as answer:
            assert answer.status == 404
    assert 'greylag_projects{status="active"} 0.0' in told
    assert "process_resident_memory_bytes" in told


async def test_a_worker_tells_probes_its_health_and_nothing_else_and_ends_when_told(
    tmp_path: Path,
) -> None:
    port, metrics_port = free_port(), free_port()
    ports = {"GREYLAG_HEALTH_PORT": str(port), "GREYLAG_METRICS_PORT": str(metrics_port)}
    worker = Product(tmp_path, ports)
    try:
        await worker.start("worker")
        assert await _asked(port, "/healthz") == (200, {"status": "ok"})
        assert await _asked(port, "/readyz") == (200, {"status": "ok"})
        await _check_numbers(metrics_port)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            for path in ("/api/users", "/metrics"):
                async with http.get(path) as answer:
                    assert answer.status == 404
        assert await worker.end("worker", signal.SIGTERM) == 0
    finally:
        await worker.close()


@pytest.mark.parametrize("verb", ["up", "serve"])
async def test_each_program_tells_its_numbers_on_their_port_and_nothing_else(
    tmp_path: Path, verb: str
) -> None:
    port = free_port()
    program = Product(tmp_path, {"GREYLAG_METRICS_PORT": str(port)})
    try:
        await program.start(verb)
        await _check_numbers(port)
        assert await program.end(verb, signal.SIGTERM) == 0
    finally:
        await program.close()


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
