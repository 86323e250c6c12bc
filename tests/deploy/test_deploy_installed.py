"""Greylag installed into the real cluster, with MongoDB outside of it, and used through its web."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from tests.cluster import real_cluster
from tests.cluster.real_cluster import kubectl
from tests.deploy.manifests import BASE, confined, helm, kustomize, of_kind, overlay
from tests.e2e.product import Product, text_of, types_of
from tests.store import mongo_servers

# Greylag's own image may have to be made, too.
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

HOST = "10.90.0.1"
"""The address under which pods of the test cluster see this machine."""
TEMPLATE = {"cpu_request": "10m", "cpu_limit": "2", "memory_request": "16Mi"}


class Installed(Product):
    """Greylag that runs elsewhere; only its address is known."""

    def __init__(self, folder: Path, address: str, token: str) -> None:
        super().__init__(folder, {})
        self.address = address
        self._token = token

    async def open(self) -> None:
        """Ask at the address, as the operator."""
        await self.http.close()
        headers = {"Authorization": f"Bearer {self._token}"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self.http = aiohttp.ClientSession(self.address, headers=headers, timeout=timeout)


@dataclass(frozen=True)
class Place:
    """A namespace of its own, with the Secret in it, and a MongoDB that pods reach."""

    namespace: str
    prefix: str
    port: int
    token: str

    @property
    def settings(self) -> dict[str, str]:
        """The settings that the test's Greylag needs beside those of the manifests."""
        return {
            "ACR_IMAGE": real_cluster.image(),
            "KUBE_NAMESPACE_PREFIX": self.prefix,
            "MONGODB_DB": self.namespace,
            "GREYLAG_KUBE_TEMPLATES": json.dumps({"default": TEMPLATE}),
            "GREYLAG_KUBE_CLUSTER_CIDRS": ",".join(real_cluster.CLUSTER_RANGES),
            "GOOSE_MODE": "auto",
        }


@pytest.fixture
def place() -> Iterator[Place]:
    """Return a place that is cleared up at the end."""
    if real_cluster.is_foreign():
        pytest.skip("GREYLAG IN THE CLUSTER IS NOT TESTED: its pods may not reach this machine")
    real_cluster.image("greylag")
    name = f"deploy-{secrets.token_hex(3)}"
    server, uri = mongo_servers.start("--host", HOST)
    port = int(uri.partition("/?")[0].rpartition(":")[2])
    one = Place(name, f"{name}-u-", port, secrets.token_urlsafe(24))
    address = f"mongodb://{HOST}:{port}/?directConnection=true&serverMonitoringMode=poll"
    try:
        _must("create", "namespace", name)
        _must("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        values = (
            f"--from-literal=MONGODB_URI={address}",
            f"--from-literal=GREYLAG_TOKEN={one.token}",
            f"--from-literal=GREYLAG_AGENT_KEY={secrets.token_hex(32)}",
        )
        _must("create", "secret", "generic", "greylag-secrets", "-n", name, *values)
        yield one
    finally:
        real_cluster.remove_namespaces(name)
        mongo_servers.stop(server)


def by_kustomize(place: Place, folder: Path) -> list[dict[str, Any]]:
    """Return the objects of an overlay such as an operator writes."""
    ports = [{"protocol": "TCP", "port": port} for port in (443, 6443, place.port)]
    patches = [
        _patch("NetworkPolicy", "greylag-egress", "/spec/egress/2/ports", ports),
        _patch("Service", "greylag-web", "/spec/type", "LoadBalancer", op="add"),
        *confined(f"-{place.namespace}", place.prefix),
    ]
    settings = [f"{key}={value}" for key, value in place.settings.items()]
    generator = [{"name": "greylag-settings", "behavior": "merge", "literals": settings}]
    return kustomize(
        overlay(
            folder,
            BASE,
            namespace=place.namespace,
            nameSuffix=f"-{place.namespace}",
            patches=patches,
            configMapGenerator=generator,
        )
    )


def by_helm(place: Place, folder: Path) -> list[dict[str, Any]]:
    """Return the objects of the chart with such values as an operator gives."""
    values = {
        "settings": {key: text for key, text in place.settings.items() if key != "ACR_IMAGE"},
        "environmentImage": place.settings["ACR_IMAGE"],
        "web": {"service": {"type": "LoadBalancer"}},
        "networkPolicy": {"ports": [443, 6443, place.port]},
    }
    folder.mkdir()
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    words = ("--values", str(folder / "values.yaml"))
    return helm(*words, namespace=place.namespace, release=f"greylag-{place.namespace}")


WAYS = {"kustomize": by_kustomize, "helm": by_helm}


@asynccontextmanager
async def installed(
    place: Place, objects: list[dict[str, Any]], folder: Path
) -> AsyncIterator[Installed]:
    """Install Greylag; at the end remove it and its environments."""
    written = folder / "objects.yaml"
    kept = [thing for thing in objects if thing["kind"] != "Namespace"]
    written.write_text(yaml.safe_dump_all(kept))
    said = await asyncio.to_thread(_must, "apply", "--filename", str(written))
    assert "Warning" not in said
    up = None
    try:
        for thing in of_kind(kept, "Deployment"):
            name = f"deployment/{thing['metadata']['name']}"
            words = ("rollout", "status", name, "-n", place.namespace, "--timeout=120s")
            await asyncio.to_thread(_must, *words)
        (service,) = of_kind(kept, "Service")
        where = (service["metadata"]["name"], "-n", place.namespace)
        path = "jsonpath={.status.loadBalancer.ingress[0].ip}"
        address = await asyncio.to_thread(_must, "get", "service", *where, "-o", path)
        up = Installed(folder, f"http://{address}", place.token)
        await up.open()
        yield up
    except BaseException:
        logs = kubectl(
            "logs", "-n", place.namespace, "-l", "app.kubernetes.io/name=greylag", "--tail=40"
        )
        print(logs.stdout, logs.stderr)  # noqa: T201 - told when the test fails
        raise
    finally:
        if up is not None:
            await up.http.close()
        await asyncio.to_thread(kubectl, "delete", "--wait=false", "--filename", str(written))


@pytest.mark.parametrize("way", WAYS)
async def test_greylag_in_the_cluster_does_the_main_job(
    way: str, place: Place, tmp_path: Path
) -> None:
    objects = WAYS[way](place, tmp_path / "given")
    async with installed(place, objects, tmp_path) as up:
        async with (
            aiohttp.ClientSession(up.address) as stranger,
            stranger.get("/api/users") as refused,
        ):
            assert refused.status == 401
        path = await up.project("demo")
        status, project = await up.call("GET", path)
        assert status == 200
        assert project["endpoint"].endswith(f"-svc.{place.prefix}me.svc:3001")
        events = await up.say(path, "[[tool echo kept > kept.txt]] [[text written]]")
        assert types_of(events)[-1] == "complete"
        # One worker of the two goes: the other does what is asked for next.
        workers = ("-n", place.namespace, "-l", "app.kubernetes.io/component=worker")
        one = (await asyncio.to_thread(_must, "get", "pods", *workers, "-o", "name")).split()[0]
        await asyncio.to_thread(_must, "delete", one, "-n", place.namespace, "--wait=false")
        status, asleep = await up.call("POST", f"{path}/deactivate")
        assert (status, asleep["status"]) == (200, "inactive"), asleep
        woken = await up.say(path, "[[tool cat kept.txt]] [[text still there]]")
        assert "status" in types_of(woken)
        assert types_of(woken)[-1] == "complete"
        result = next(event.content for event in woken if event.type == "tool_response")
        assert "kept" in json.dumps(result)
        assert "still there" in text_of(woken)
        status, _ = await up.call("DELETE", path)
        assert status == 204
        phase = ("get", "namespace", f"{place.prefix}me", "-o", "jsonpath={.status.phase}")
        assert (await asyncio.to_thread(kubectl, *phase)).stdout in {"", "Terminating"}


def _patch(
    kind: str, name: str, path: str, value: object, *, op: str = "replace"
) -> dict[str, Any]:
    steps = [{"op": op, "path": path, "value": value}]
    return {"target": {"kind": kind, "name": name}, "patch": json.dumps(steps)}


def _must(*arguments: str) -> str:
    done = kubectl(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
