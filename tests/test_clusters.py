"""Where environments run by the settings."""

import asyncio
from pathlib import Path

import pytest
from tests.cluster.environments import kill_all, reaches
from tests.cluster.kubernetes.api_server import Answer, page, says, served, status
from tests.cluster.kubernetes.kubeconfigs import certificate
from tests.contract.store_adapters import make_project
from tests.fakes.store import MemoryStore
from tests.harness import settings

from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.clusters import open_cluster, try_cluster
from greylag.common.concurrent import beside
from greylag.domain.errors import ClusterError, ConfigError
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


VERSION = says({"gitVersion": "v1.35.4"})


def chosen(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str) -> None:
    """Let settings lead to this API server."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KUBE_HOST", url)
    monkeypatch.setenv("KUBE_TOKEN", "t0ken")
    monkeypatch.setenv("ACR_IMAGE", "goose:1")
    monkeypatch.setenv("GREYLAG_ALLOW_PLAIN_HTTP", "true")


async def test_a_cluster_is_opened_for_the_greylag_of_the_store_as_settings_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = MemoryStore()
    async with served(VERSION) as (server, _):
        chosen(monkeypatch, tmp_path, server.url)
        given = settings(namespace_prefix="team-", lease_seconds=4)
        cluster = await open_cluster(given, store)
        assert isinstance(cluster, KubernetesCluster)
        assert cluster.namespace_prefix == "team-"
        assert await cluster._ownership.instance() == await store.instance()
        assert cluster._observer._explaining == 1
        await cluster.close()


async def test_a_cluster_that_does_not_take_us_is_not_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with served(status(401)) as (server, _):
        chosen(monkeypatch, tmp_path, server.url)
        with pytest.raises(ConfigError):
            await open_cluster(settings(), MemoryStore())


@pytest.mark.parametrize(
    ("answer", "works"), [(page(1), True), (status(403), False)], ids=["list", "no right"]
)
async def test_a_cluster_is_tried_by_a_list_of_what_is_ours(
    answer: Answer, *, works: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with served(VERSION, answer) as (server, _):
        chosen(monkeypatch, tmp_path, server.url)
        assert await try_cluster(settings(cluster="local")) is None
        if works:
            named = f"Kubernetes v1.35.4 at {server.url} (by KUBE_HOST)"
            assert await try_cluster(settings()) == named
        else:
            with pytest.raises(ClusterError):
                await try_cluster(settings())
        asked = server.asked[-1].query["labelSelector"]
        assert asked == "app.kubernetes.io/managed-by=greylag"


async def test_a_start_that_is_broken_off_closes_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: asyncio.Queue[KubernetesCluster] = asyncio.Queue()

    async def hangs(cluster: KubernetesCluster) -> None:
        begun.put_nowait(cluster)
        await asyncio.Event().wait()

    monkeypatch.setattr(KubernetesCluster, "check", hangs)
    chosen(monkeypatch, tmp_path, "http://127.0.0.1:9")
    async with beside(open_cluster(settings(), MemoryStore()), "start"):
        cluster = await begun.get()
    assert cluster._api._http.closed
