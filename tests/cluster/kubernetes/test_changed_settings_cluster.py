"""Settings that changed since an environment was made, on a real API server, which forbids some."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.cluster.environments import accepted, reaches
from tests.cluster.kubernetes.test_causes_cluster import told
from tests.cluster.real_cluster import kubectl, open_kubernetes
from tests.contract.cluster_adapters import named_for
from tests.contract.store_adapters import make_project

from greylag.cluster.kubernetes import identity, manifests
from greylag.cluster.kubernetes.identity import labels as own_labels
from greylag.domain.lifecycle import Observed
from greylag.domain.project import Environment

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

BALANCER = {"service_type": "LoadBalancer", "loadbalancer_source_ranges": ("10.90.0.0/16",)}
INSIDE = {"service_type": "ClusterIP", "reach": "proxy"}
DOMAIN = {"ingress_base_domain": "agents.test"}
VOLUME = "pvc/demo-data={.spec.resources.requests.storage} {.spec.storageClassName}"
SERVICE = "service/demo-svc={.spec.type}"
CHANGES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], str, str]] = {
    "smaller": ({"volume_size": "2Gi"}, {"volume_size": "1Gi"}, VOLUME, "2Gi standard"),
    "larger": ({"volume_size": "1Gi"}, {"volume_size": "2Gi"}, VOLUME, "1Gi standard"),
    "other class": ({}, {"storage_class": "other"}, VOLUME, "5Gi standard"),
    "no class": ({"storage_class": "standard"}, {}, VOLUME, "5Gi standard"),
    "inside": (BALANCER, INSIDE, SERVICE, "ClusterIP"),
    "balancer": (INSIDE, BALANCER, SERVICE, "LoadBalancer"),
    "no domain": ({**DOMAIN, **BALANCER}, BALANCER, "ingress/demo-ingress={.kind}", ""),
    "selector": ({}, {}, "deploy/demo-api={.spec.selector.matchLabels.older}", "label"),
}
TOLD = frozenset({"smaller", "larger", "other class"})


def _older_at_first(environment: Environment) -> dict[str, str]:
    own = own_labels(environment)
    return own if environment.generation > 1 else {**own, "older": "label"}


async def _goes_on(change: str) -> None:
    """Make an environment with some settings, and start it with others, by another prefix too."""
    before, after, asked, becomes = CHANGES[change]
    async with open_kubernetes(goose="scripted", **before) as first:
        project = named_for(first, make_project())
        await accepted(first.prepare, project)
        again = replace(project, generation=2)
        async with open_kubernetes(goose="scripted", **after) as second:
            await accepted(second.start, again)
            seen = await second.observe(again.environment)
            said = [step.message for step in seen.steps if step.code == "volume_kept"]
            assert bool(said) == (change in TOLD), (change, seen)
            what, _, path = asked.partition("=")
            where = ("-n", project.names.namespace, "--ignore-not-found")
            found = await asyncio.to_thread(
                kubectl, "get", what, *where, "-o", f"jsonpath={path or '{.metadata.name}'}"
            )
            assert found.stdout == becomes, (change, found)
            await accepted(second.stop, again)
            await reaches(second, again, Observed.STOPPED)


async def test_environments_go_on_with_what_cannot_be_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (manifests, identity):
        monkeypatch.setattr(module, "labels", _older_at_first)
    async with asyncio.TaskGroup() as group:
        for change in CHANGES:
            group.create_task(_goes_on(change), name=change)


async def test_what_never_had_its_image_gets_the_one_of_now_once_it_is_wanted_anew() -> None:
    async with open_kubernetes(goose="scripted", image="registry.invalid/goose:1") as first:
        project = named_for(first, make_project())
        await accepted(first.start, project)
        await told(first, project, "image_pull_failed")
        prefix = first.namespace_prefix
        async with open_kubernetes(goose="scripted", namespace_prefix=prefix) as second:
            assert (await second.observe(project.environment)).state is Observed.STARTING
            again = replace(project, generation=2)
            assert (await second.observe(again.environment)).state is Observed.FAILED
            await accepted(second.start, again)
            await reaches(second, again, Observed.READY)
