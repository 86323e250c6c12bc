"""The long-running programs, as whoever starts and stops them sees them."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.program import PATIENCE, environment, finish, start
from tests.harness import settings
from tests.store import mongo_servers

from greylag import programs, worker_program
from greylag.common.server import listen
from greylag.domain.errors import ConfigError, StoreUnavailableError

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


def test_a_worker_at_work_has_loaded_nothing_that_only_the_web_needs(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from unittest.mock import patch\n"
        "from greylag.cli.main import main\n"
        "def told(*_, **__):\n"
        " print(sorted({'fastapi', 'jinja2', 'greylag.web.app'} & set(sys.modules)))\n"
        " os.kill(os.getpid(), signal.SIGTERM)\n"
        "with patch('greylag.cli.programs._announce', told): sys.exit(main(['worker']))"
    )
    settings = {
        "GREYLAG_DATA": str(tmp_path / "data"),
        "GREYLAG_HEALTH_PORT": "0",
        "GREYLAG_METRICS_PORT": "0",
    }
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", code],
        env=environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("given", ["health_port", "metrics_port"])
async def test_a_port_that_is_taken_is_named_by_its_setting_before_anything_starts(
    given: str, tmp_path: Path
) -> None:
    with listen("", 0) as taken:
        ports = {given: taken.getsockname()[1]}
        chosen = settings(data=tmp_path / "data", **ports)
        with pytest.raises(ConfigError, match=f"GREYLAG_{given.upper()}: the port") as told:
            await worker_program.work(chosen, lambda *_, **__: None)
    assert "Choose another" in told.value.info.hint
    assert not chosen.data.exists()


async def test_a_start_that_fails_lets_go_of_the_ports_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    had: list[socket.socket] = []

    def noted(host: str, port: int) -> socket.socket:
        had.append(listen(host, port))
        return had[-1]

    monkeypatch.setattr(worker_program, "listen", noted)
    chosen = settings(
        data=tmp_path / "data",
        port=0,
        metrics_port=0,
        mongodb_uri=mongo_servers.NOBODY,
        mongodb_timeout=0.2,
    )
    with pytest.raises(StoreUnavailableError):
        await programs.up(chosen, lambda *_, **__: None)
    with listen("", 0) as taken:
        ports = {"health_port": 0, "metrics_port": taken.getsockname()[1]}
        chosen = settings(data=tmp_path / "data", **ports)
        with pytest.raises(ConfigError):
            await worker_program.work(chosen, lambda *_, **__: None)
    assert [one.fileno() for one in had] == [-1] * 3
