"""What an activation asks of the API server: no more than there is to change, under its claim."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr
from tests.cluster.kubernetes.stateful_api_server import StatefulServer, stateful
from tests.contract.store_adapters import make_project

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.cluster.kubernetes.identity import Object
from greylag.cluster.kubernetes.options import Options
from greylag.cluster.kubernetes.writes import is_as_wanted
from greylag.domain.errors import LeaseLostError
from greylag.domain.lifecycle import Observed
from greylag.domain.project import Environment, Fence

OPTIONS = Options(
    image="goose:1", platform_namespace="greylag", service_type="ClusterIP", probe=False
)
UNWATCHED = [
    "GET Secret",
    "PATCH ConfigMap",
    "PATCH LimitRange",
    "PATCH ResourceQuota",
    "PATCH ServiceAccount",
]
"""What the caches do not know is looked at or applied at each activation."""


PROJECT = make_project()


def environment(number: int) -> Environment:
    """Return the environment under the claim of this number, each for a new wish."""
    fence = Fence(PROJECT.id, number)
    return replace(PROJECT.environment, fence=fence, generation=number)


@asynccontextmanager
async def opened(server: StatefulServer, options: Options) -> AsyncIterator[KubernetesCluster]:
    cluster = KubernetesCluster(Api.open(server.connection), options, {"GREYLAG_MODEL": "gpt"})
    try:
        yield cluster
    finally:
        await cluster.close()


@asynccontextmanager
async def asleep(
    options: Options = OPTIONS,
) -> AsyncIterator[tuple[StatefulServer, KubernetesCluster]]:
    """Yield a cluster with ``options`` where the environment sleeps, prepared by a claim."""
    async with stateful() as server:
        async with opened(server, OPTIONS) as first:
            await first.prepare(environment(1))
        async with opened(server, options) as cluster:
            await cluster.observe(environment(1))
            server.asked.clear()
            yield server, cluster


def deployment(server: StatefulServer) -> dict[str, Any]:
    return next(thing for key, thing in server.things.items() if key[0] == "Deployment")


async def test_an_activation_of_what_is_as_it_was_prepared_writes_the_deployment_once() -> None:
    async with asleep() as (server, cluster):
        seen = environment(2)
        assert (await cluster.observe(seen)).state is Observed.STOPPED
        await cluster.start(seen)

        assert sorted(server.asked) == [*UNWATCHED[:2], "PATCH Deployment", *UNWATCHED[2:]]
        assert deployment(server)["spec"]["replicas"] == 1
        assert deployment(server)["metadata"]["annotations"]["greylag.dev/claim"] == "2"


@pytest.mark.parametrize(
    ("options", "lacks"),
    [
        (OPTIONS, False),
        (OPTIONS.model_copy(update={"image": "goose:2"}), True),
        (OPTIONS.model_copy(update={"agent_key": (SecretStr("k" * 32),)}), True),
        (OPTIONS.model_copy(update={"platform_namespace": "elsewhere"}), False),
    ],
)
async def test_what_only_a_new_start_gives_is_told_from_the_rest(
    options: Options, *, lacks: bool
) -> None:
    async with asleep(options) as (server, cluster):
        lacking = cluster._applier.outdated(environment(2), deployment(server))
        assert (lacking is not None) == lacks
        await cluster.start(environment(2))
        assert cluster._applier.outdated(environment(3), deployment(server)) is None


async def test_starting_again_under_the_same_claim_asks_nothing_and_under_a_newer_one_stamps() -> (
    None
):
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        server.asked.clear()

        await cluster.start(environment(2))
        assert server.asked == []
        await cluster.start(environment(3))
        assert server.asked == ["PATCH Deployment"]
        assert deployment(server)["metadata"]["annotations"]["greylag.dev/claim"] == "3"


async def test_a_start_under_an_older_claim_is_refused_and_writes_nothing() -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(3))
        server.asked.clear()

        with pytest.raises(LeaseLostError):
            await cluster.start(environment(2))
        assert server.asked == []


async def test_a_start_that_was_overtaken_before_its_write_is_refused() -> None:
    async with asleep() as (server, cluster):
        names = environment(2).names
        overtaking = {"metadata": {**deployment(server)["metadata"]}}
        overtaking["metadata"]["annotations"] = {
            **overtaking["metadata"]["annotations"],
            "greylag.dev/claim": "9",
        }
        apply = cluster._applier.apply

        async def late(*given: Any, **named: Any) -> dict[str, Any]:
            server.put("Deployment", names.namespace, {**deployment(server), **overtaking})
            return await apply(*given, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cluster._applier, "apply", late)
            with pytest.raises(LeaseLostError):
                await cluster.start(environment(2))
        assert deployment(server)["spec"]["replicas"] == 0


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Service", ("spec", "type"), "LoadBalancer"),
        ("Service", ("spec", "selector", "more"), "narrower"),
        ("Service", ("metadata", "labels", "greylag.dev/project"), "other"),
        ("NetworkPolicy", ("spec", "policyTypes"), []),
        ("NetworkPolicy", ("spec", "podSelector", "matchLabels"), {"more": "narrower"}),
        ("Secret", ("type",), "Other"),
        ("PersistentVolumeClaim", ("metadata", "deletionTimestamp"), "2026-01-01T00:00:00Z"),
    ],
)
async def test_what_somebody_changed_meanwhile_is_set_right(
    kind: str, path: tuple[str, ...], value: Any
) -> None:
    async with asleep() as (server, cluster):
        key = next(key for key in server.things if key[0] == kind)
        changed = json.loads(json.dumps(server.things[key]))
        inner = changed
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
        server.put(kind, key[1], changed)
        if cluster._cache.watches(kind):
            assert await cluster._informers[kind].reached(str(server.version), 5)
        await cluster._writes.do(environment(2), partial(_applied, cluster))

        assert f"PATCH {kind}" in server.asked


async def _applied(cluster: KubernetesCluster, found: Object | None) -> dict[str, Any]:
    return await cluster._applier.apply(environment(2), found, replicas=1, mark="1")


async def test_a_changed_setting_is_applied_to_what_it_concerns_alone() -> None:
    changed = OPTIONS.model_copy(update={"volume_size": "9Gi"})
    async with asleep(changed) as (server, cluster):
        await cluster.start(environment(2))

        assert "PATCH PersistentVolumeClaim" in server.asked
        assert "PATCH Service" not in server.asked


async def test_a_setting_that_is_no_longer_set_is_taken_back() -> None:
    more = OPTIONS.model_copy(update={"service_annotations": {"example.org/internal": "true"}})
    async with asleep(more) as (server, cluster):
        await cluster.start(environment(2))
        assert server.asked.count("PATCH Service") == 1
        async with opened(server, OPTIONS) as less:
            await less.stop(environment(3))
            server.asked.clear()
            await less.start(environment(4))
        assert server.asked.count("PATCH Service") == 1


@pytest.mark.parametrize(
    ("there", "as_wanted"),
    [
        ({"spec": {"a": [{"b": 1, "more": 2}], "c": {"d": 3}}}, True),
        ({"spec": {"a": [{"b": 1}, {"b": 2}], "c": {"d": 3}}}, False),
        ({"spec": {"a": [{"b": 2}], "c": {"d": 3}}}, False),
        ({"spec": {"a": [{"b": 1}]}}, False),
        ({"spec": {"a": [{"b": 1}], "c": {"d": 3}, "empty": [1]}}, False),
        (None, False),
    ],
)
def test_what_is_there_holds_all_that_is_wanted_or_is_written(
    there: dict[str, Any] | None, *, as_wanted: bool
) -> None:
    wanted = {"kind": "K", "spec": {"a": [{"b": 1}], "c": {"d": 3}, "empty": []}}
    found = None if there is None else {"metadata": {}, **there}
    assert is_as_wanted(wanted, found) is as_wanted


def test_what_is_being_removed_is_not_as_wanted() -> None:
    going = {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    assert not is_as_wanted({"kind": "K"}, going)
