"""The long-running programs, as whoever starts and stops them sees them."""

import asyncio
import json
import signal
from pathlib import Path

from tests.cli.program import PATIENCE, finish, start

DEAD_STORE = "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=200"


async def test_a_worker_told_to_end_while_it_waits_for_its_store_ends(tmp_path: Path) -> None:
    settings = {
        "GREYLAG_DATA": str(tmp_path / "data"),
        "GREYLAG_LOG_FORMAT": "json",
        "MONGODB_URI": DEAD_STORE,
        "GREYLAG_MONGODB_TIMEOUT": "0.2",
        "GREYLAG_STARTUP_RECONCILE_TIMEOUT": "600",
    }
    process = await start("worker", env=settings)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            # Once its reconciler has something to say it is at work, and listens to signals.
            line = {"logger": ""}
            while not line["logger"].startswith("greylag.reconcile"):
                line = json.loads(await process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        assert (await finish(process)).code == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
