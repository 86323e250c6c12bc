"""Read the objects of environments from the real cluster, state by state, for test_trim.py.

Run as ``python -m tests.cluster.kubernetes.capture``; it writes golden/captured.json. Only
managedFields are left out of the objects.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.cluster.environments import reaches
from tests.cluster.kubernetes.test_causes_cluster import STUCK, told
from tests.cluster.real_cluster import open_kubernetes
from tests.contract.cluster_adapters import named_for
from tests.contract.store_adapters import make_project

from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.cluster.kubernetes.identity import annotation_of, project_selector
from greylag.domain.lifecycle import Observed
from greylag.domain.project import Environment

TARGET = Path(__file__).with_name("golden") / "captured.json"
OWN = ("Deployment", "Pod", "PersistentVolumeClaim", "Service", "Ingress")
SHARED = ("NetworkPolicy",)
INGRESS = {"ingress_base_domain": "example.org", "ingress_tls": True, "service_type": "ClusterIP"}
STATES: dict[str, dict[str, Any]] = {
    "ready": {"goose": "scripted", "probe": False, **INGRESS},
    "crash_loop": {"goose": "/no/such/program"},
    **{code: {"goose": "scripted", **options} for code, options in STUCK.items()},
}


def plain(thing: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return an object as it is kept in the file."""
    metadata = {key: value for key, value in thing["metadata"].items() if key != "managedFields"}
    return {**thing, "kind": kind, "metadata": metadata}


async def objects(cluster: KubernetesCluster, environment: Environment) -> dict[str, Any]:
    """Return all objects of an environment by kind."""
    api, namespace = cluster._api, environment.names.namespace
    selector = project_selector(environment)
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in OWN:
        found[kind] = list((await api.list(kind, namespace, selector=selector)).items)
    for kind in SHARED:
        found[kind] = list((await api.list(kind, namespace)).items)
    itself = await api.read("Namespace", None, namespace)
    found["Namespace"] = [itself] if itself else []
    uids = {
        one["metadata"]["uid"] for kind in ("Pod", "PersistentVolumeClaim") for one in found[kind]
    }
    events = (await api.list("Event", namespace)).items
    ours = [one for one in events if one["involvedObject"].get("uid") in uids]
    found["Event"] = sorted(ours, key=lambda one: str(one.get("lastTimestamp") or ""))
    return {kind: [plain(one, kind) for one in things] for kind, things in found.items()}


async def captured(state: str) -> dict[str, Any]:
    """Return the objects of an environment that is in this state."""
    async with open_kubernetes(**STATES[state]) as cluster:
        project = named_for(cluster, make_project())
        await cluster.start(project.environment)
        if state == "ready":
            await reaches(cluster, project, Observed.READY)
        else:
            await told(cluster, project, state)
        found = await objects(cluster, project.environment)
        assert annotation_of(found["Deployment"][0], "greylag.dev/applied")
        await cluster.stop(project.environment)
        return {"objects": found}


async def main() -> None:
    """Capture all states, one after the other, and write the file."""
    everything = {state: await captured(state) for state in STATES}
    TARGET.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
