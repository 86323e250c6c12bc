"""What a real cluster takes from running environments is told in its own words, and comes back.

One Greylag, and all of it at once: each project loses something else.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
from tests.cluster import real_cluster
from tests.e2e.on_cluster import greylag
from tests.e2e.product import PATIENCE, PROJECTS, Product

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SMALL = {
    "cpu_request": "5m",
    "cpu_limit": "1",
    "memory_request": "16Mi",
    "memory_limit": "200Mi",
    "environment": {"GREYLAG_GOOSE": "scripted"},
}
KILL_ALL = """
import os, signal
for one in filter(str.isdigit, os.listdir("/proc")):
    if one not in {"1", str(os.getpid())}:
        try: os.kill(int(one), signal.SIGKILL)
        except OSError: pass
"""
Harm = Callable[[str, str, str], Awaitable[None]]


async def kubectl(*arguments: str, given: object = None) -> str:
    text = None if given is None else json.dumps(given)
    done = await asyncio.to_thread(real_cluster.kubectl, *arguments, input=text)
    return str(done.stdout)


async def evicted(namespace: str, _project: str, pod: str) -> None:
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    await kubectl("create", "--raw", path, "-f", "-", given=eviction)


async def deleted_pod(namespace: str, _project: str, pod: str) -> None:
    await kubectl("delete", "pod", "-n", namespace, pod, "--wait=false")


async def killed(namespace: str, _project: str, pod: str) -> None:
    await kubectl("exec", "-n", namespace, pod, "--", "python3", "-c", KILL_ALL)


async def deleted_secret(namespace: str, project: str, pod: str) -> None:
    await kubectl("delete", "secret", "-n", namespace, f"{project}-secret")
    await deleted_pod(namespace, project, pod)


async def deleted_volume(namespace: str, project: str, pod: str) -> None:
    await kubectl("delete", "pvc", "-n", namespace, f"{project}-data", "--wait=false")
    await deleted_pod(namespace, project, pod)


LOSSES: Mapping[str, tuple[Harm, tuple[str, ...]]] = {
    "evicted": (evicted, ("drained",)),
    "killed": (killed, ("container_ended",)),
    "secret": (deleted_secret, ("part_deleted",)),
    "volume": (deleted_volume, ("volume_being_deleted", "volume_deleted")),
}


async def _told(up: Product, path: str) -> list[str]:
    """Return the log's codes from the one on at which the environment was active first."""
    codes: list[str] = []
    async with asyncio.timeout(PATIENCE):
        async for event in up.stream("GET", f"{path}/events"):
            codes.append(event.content["code"])
            if codes.count("active") > 1:
                return codes[codes.index("active") :]
    raise AssertionError(codes)


async def _is_lost_and_comes_back(up: Product, namespace: str, project: str) -> None:
    harm, codes = LOSSES[project]
    path = f"{PROJECTS}/{project}"
    ours = ("pods", "-n", namespace, "-l", f"greylag.dev/project={project}")
    pod = await kubectl("get", *ours, "-o", "jsonpath={.items[0].metadata.name}")
    await harm(namespace, project, pod)
    told = await _told(up, path)
    assert set(codes) <= {*told}, told
    assert await up.settled(path) == "active"
    assert (await up.call("GET", path))[1]["error"] is None
    events = await up.say(path, "Are you there?")
    assert events[-1].type == "complete"


async def test_each_loss_is_told_as_what_it_is_and_mended(tmp_path: Path) -> None:
    shapes = json.dumps({"default": SMALL})
    limits = {"GREYLAG_KUBE_TEMPLATES": shapes, "GREYLAG_KUBE_QUOTA_CPU_LIMITS": "16"}
    async with greylag(tmp_path, **limits) as (up, prefix):
        await asyncio.gather(*(up.project(project) for project in LOSSES))
        async with asyncio.TaskGroup() as group:
            for project in LOSSES:
                lost = _is_lost_and_comes_back(up, f"{prefix}me", project)
                group.create_task(lost, name=project)
