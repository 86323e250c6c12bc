"""Where environments run by the settings."""

import asyncio
import gc
import warnings
from pathlib import Path

import pytest
from aiohttp import web
from tests.cluster.environments import kill_all, reaches
from tests.cluster.kubernetes.api_server import served, silent
from tests.cluster.kubernetes.kubeconfigs import certificate
from tests.contract.store_adapters import make_project
from tests.fakes.store import MemoryStore
from tests.harness import settings

from greylag.clusters import open_cluster
from greylag.common.concurrent import beside
from greylag.domain.lifecycle import Observed

PROJECT = make_project()


async def test_a_local_environment_that_runs_with_other_authorities_is_outdated(
    tmp_path: Path,
) -> None:
    trusted = tmp_path / "trusted.pem"
    trusted.write_text(certificate(tmp_path)[0])
    given = settings(
        data=tmp_path, cluster="local", goose="scripted", sandbox="none", ssl_cert_file=trusted
    )
    try:
        first = await open_cluster(given, MemoryStore())
        await first.start(PROJECT.environment)
        assert (await reaches(first, PROJECT, Observed.READY)).outdated is None
        await first.close()
        trusted.write_text(certificate(tmp_path)[0])
        second = await open_cluster(given, MemoryStore())
        assert (await second.observe(PROJECT.environment)).outdated is not None
        await second.stop(PROJECT.environment)
        await reaches(second, PROJECT, Observed.STOPPED)
        await second.start(PROJECT.environment)
        assert (await reaches(second, PROJECT, Observed.READY)).outdated is None
        await second.close()
    finally:
        kill_all(tmp_path / "environments")


async def test_a_start_that_is_broken_off_leaves_no_connection_to_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def hangs(request: web.Request) -> web.StreamResponse:
        asked.set()
        return await silent(request)

    async with served(hangs) as (server, _):
        for name, value in {"KUBE_HOST": server.url, "KUBE_TOKEN": "t", "ACR_IMAGE": "i"}.items():
            monkeypatch.setenv(name, value)
        given = settings(data=tmp_path, cluster="kubernetes")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            async with beside(open_cluster(given, MemoryStore()), "start"):
                await asked.wait()
            gc.collect()
        assert not told
