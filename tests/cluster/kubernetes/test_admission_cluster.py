"""What a real cluster's admission webhooks make of environments, and what is told of it."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.environments import accepted
from tests.cluster.kubernetes.webhooks import Mutation, Webhooks
from tests.cluster.real_cluster import IMAGE, POD_PATIENCE, is_foreign, open_kubernetes
from tests.contract.cluster_adapters import named_for
from tests.contract.store_adapters import make_project

from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.cluster.kubernetes.options import Template
from greylag.domain.errors import ClusterError
from greylag.domain.lifecycle import Observed

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SMALL = Template(cpu_request="5m", cpu_limit="1", memory_request="16Mi", memory_limit="200Mi")
ROOMY: dict[str, Any] = {
    "templates": {"default": SMALL},
    "quota_cpu_limits": "40",
    "allow_plain_http": True,
    "shared_cpu": False,
}
COUNT = itertools.count()


def _added(image: str, *command: str, first: bool = False) -> Mutation:
    """Add a container to pods, ahead of ours in the order of names."""

    def mutation(pod: dict[str, Any]) -> list[dict[str, Any]]:
        ours = pod["spec"]["containers"][0]
        shape = {name: ours[name] for name in ("securityContext", "resources")}
        added = {**shape, "name": "a-proxy", "image": image, "command": command}
        added["imagePullPolicy"] = "Never"
        if any(one["name"] == "a-proxy" for one in pod["spec"]["containers"]):
            return []
        if first:
            return [{"op": "add", "path": "/spec/initContainers", "value": [added]}]
        return [{"op": "add", "path": "/spec/containers/0", "value": added}]

    return mutation


def _relabelled(_: dict[str, Any]) -> list[dict[str, Any]]:
    image = "/spec/template/spec/containers/0/image"
    return [
        {"op": "add", "path": "/metadata/labels/team", "value": "x"},
        {"op": "replace", "path": image, "value": f"docker.io/library/{IMAGE}"},
    ]


def _stamped(_: dict[str, Any]) -> list[dict[str, Any]]:
    path = "/spec/template/metadata/annotations/stamp"
    return [{"op": "add", "path": path, "value": str(next(COUNT))}]


async def _runs(cluster: KubernetesCluster, name: str) -> None:
    """See that the environment gets ready, and that nothing of it is written again then."""
    project = named_for(cluster, make_project(name))
    await accepted(cluster.start, project)
    give_up = asyncio.get_running_loop().time() + POD_PATIENCE
    while (seen := await cluster.observe(project.environment)).state is not Observed.READY:
        assert seen.state is not Observed.FAILED, seen
        assert asyncio.get_running_loop().time() < give_up, (name, seen)
        await cluster.changed(project.environment, 1)
    assert seen.error is None


async def _is_told(cluster: KubernetesCluster, name: str) -> None:
    """See that the container that was added is named as what keeps the environment."""
    project = named_for(cluster, make_project(name))
    await accepted(cluster.start, project)
    give_up = asyncio.get_running_loop().time() + POD_PATIENCE
    while True:
        error = (await cluster.observe(project.environment)).error
        if error is not None and error.code == "added_container_failing":
            break
        assert asyncio.get_running_loop().time() < give_up, (name, error)
        await cluster.changed(project.environment, 1)
    assert "a-proxy" in error.message


def _refused(code: str) -> Callable[[KubernetesCluster, str], Any]:
    async def refused(cluster: KubernetesCluster, name: str) -> None:
        with pytest.raises(ClusterError) as told:
            await cluster.start(named_for(cluster, make_project(name)).environment)
        assert told.value.info.code == code
        assert not told.value.terminal

    return refused


@pytest.mark.skipif(is_foreign(), reason="the cluster must reach webhooks on the tests' machine")
async def test_webhooks_that_change_delay_or_fail_are_lived_with_or_named(tmp_path: Path) -> None:
    async with open_kubernetes(goose="scripted", **ROOMY) as cluster:
        namespace = named_for(cluster, make_project()).names.namespace
        webhooks = Webhooks(f"{cluster.namespace_prefix}webhooks", namespace)
        webhooks.add("sidecar", "Pod", _added(IMAGE, "sleep", "1000"))
        webhooks.add("no-image", "Pod", _added("no-such-image:1", "sleep", "1000"))
        webhooks.add("crashing", "Pod", _added(IMAGE, "false", first=True))
        webhooks.add("relabelled", "Deployment", _relabelled)
        webhooks.add("stamped", "Deployment", _stamped)
        webhooks.add("slow", "Deployment", slow=13.0)
        webhooks.add("down", "Deployment", down=True)
        scenes = {
            **dict.fromkeys(("sidecar", "relabelled", "stamped"), _runs),
            **dict.fromkeys(("no-image", "crashing"), _is_told),
            "slow": _refused("webhook_slow"),
            "down": _refused("webhook_unavailable"),
        }
        async with webhooks.serve(tmp_path), asyncio.TaskGroup() as group:
            for name, scene in scenes.items():
                group.create_task(scene(cluster, name), name=name)
