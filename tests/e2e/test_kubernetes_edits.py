"""What somebody changes by hand in a running environment, on a real cluster, is set right."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import real_cluster
from tests.cluster.real_cluster import kubectl
from tests.e2e.product import PATIENCE, product

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SMALL = {
    "cpu_request": "10m",
    "cpu_limit": "2000m",  # not as the API server writes it
    "memory_request": "16Mi",
    "environment": {"GREYLAG_GOOSE": "scripted"},
}
OPEN: dict[str, Any] = {"spec": {"egress": [{}], "ingress": [{}]}}
AWAY = {"spec": {"selector": {"app": "another"}}}


async def _object(namespace: str, name: str) -> dict[str, Any]:
    done = await asyncio.to_thread(kubectl, "get", "-n", namespace, name, "-o", "json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


async def _spec(namespace: str, name: str) -> str:
    return json.dumps((await _object(namespace, name))["spec"], sort_keys=True)


async def _pod(namespace: str) -> str:
    said = await asyncio.to_thread(kubectl, "get", "pods", "-n", namespace, "-o", "name")
    return said.stdout.strip()


async def test_what_is_edited_by_hand_is_set_right_and_costs_no_pod(tmp_path: Path) -> None:
    templates = json.dumps({"default": SMALL})
    settings = real_cluster.settings(GREYLAG_KUBE_TEMPLATES=templates)
    namespace = f"{settings['KUBE_NAMESPACE_PREFIX']}me"
    try:
        async with product(tmp_path, **settings) as up:
            path = await up.project("demo")
            pod = await _pod(namespace)
            events = len(await up.log(path, "active"))
            for name, edit in (("networkpolicy/greylag-agent", OPEN), ("service/demo-svc", AWAY)):
                whole = await _spec(namespace, name)
                patch = ("patch", "-n", namespace, name, "--type=merge", "-p", json.dumps(edit))
                edited = await asyncio.to_thread(kubectl, *patch)
                assert edited.returncode == 0, edited.stderr
                async with asyncio.timeout(PATIENCE):
                    while await _spec(namespace, name) != whole:  # noqa: ASYNC110 - asks anew
                        await asyncio.sleep(0.1)
                assert await up.settled(path) == "active"
            assert await _pod(namespace) == pod
            # Nobody's own additions are taken away, and they start nothing.
            note = ("annotate", "-n", namespace, "service/demo-svc", "example.com/note=mine")
            assert (await asyncio.to_thread(kubectl, *note)).returncode == 0
            where = (await _object(namespace, "deployment/demo-api"))["metadata"]["generation"]
            image = ("set", "image", "-n", namespace, "deployment/demo-api", "agentd=other:1")
            assert (await asyncio.to_thread(kubectl, *image)).returncode == 0
            async with asyncio.timeout(PATIENCE):
                while True:
                    now = await _object(namespace, "deployment/demo-api")
                    container, _ = now["spec"]["template"]["spec"]["containers"]
                    moved = now["metadata"]["generation"] > where
                    if moved and container["image"] == settings["ACR_IMAGE"]:
                        break
                    await asyncio.sleep(0.1)
            assert await up.settled(path) == "active"
            service = await _object(namespace, "service/demo-svc")
            assert service["metadata"]["annotations"]["example.com/note"] == "mine"
            assert len(await up.log(path, "active")) <= events
    finally:
        real_cluster.remove_namespaces(settings["KUBE_NAMESPACE_PREFIX"])
