"""What an activation asks of the API server: no more than there is to change, under its claim."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr
from tests.cluster.environments import until
from tests.cluster.kubernetes.api_server import PATIENCE
from tests.cluster.kubernetes.stateful_api_server import StatefulServer, stateful
from tests.contract.store_adapters import make_project

from greylag.cluster.kubernetes import observation, writes
from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.cluster import WATCHED, KubernetesCluster
from greylag.cluster.kubernetes.identity import (
    KINDS,
    MANAGED_BY_LABEL,
    START_ANNOTATION,
    Object,
)
from greylag.cluster.kubernetes.manifests import settings_digest
from greylag.cluster.kubernetes.options import Options, Template
from greylag.cluster.kubernetes.writes import is_as_wanted
from greylag.domain.errors import ClusterError, ClusterUnavailableError, LeaseLostError
from greylag.domain.lifecycle import Observation, Observed
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


async def ours() -> str:
    return "instance-1"


@asynccontextmanager
async def opened(
    server: StatefulServer,
    options: Options,
    instance: Callable[[], Awaitable[str]] | None = None,
    lease: float = 30,
) -> AsyncIterator[KubernetesCluster]:
    api, variables = Api(server.connection), {"GREYLAG_MODEL": "gpt"}
    cluster = KubernetesCluster(api, options, variables, instance=instance, lease=lease)
    try:
        yield cluster
    finally:
        await cluster.close()


@asynccontextmanager
async def asleep(
    options: Options = OPTIONS, lease: float = 30
) -> AsyncIterator[tuple[StatefulServer, KubernetesCluster]]:
    """Yield a cluster with ``options`` where the environment sleeps, prepared by a claim."""
    async with stateful() as server:
        async with opened(server, OPTIONS) as first:
            await first.prepare(environment(1))
        async with opened(server, options, lease=lease) as cluster:
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


async def test_a_start_reads_the_secret_while_the_rules_are_applied_and_so_costs_three_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with asleep() as (server, cluster):
        answered, read = server._one, asyncio.Event()

        async def one(request: web.Request, key: tuple[str, str, str]) -> web.StreamResponse:
            if key[0] == "Secret":
                read.set()
            elif key[0] == "ResourceQuota":
                async with asyncio.timeout(PATIENCE):
                    await read.wait()
            return await answered(request, key)

        monkeypatch.setattr(server, "_one", one)
        await cluster.start(environment(2))
        assert sorted(server.asked) == [*UNWATCHED[:2], "PATCH Deployment", *UNWATCHED[2:]]
        assert deployment(server)["spec"]["replicas"] == 1


@pytest.mark.parametrize("watch_first", [True, False])
async def test_a_new_namespace_is_ours_once_it_is_prepared_whether_watch_or_answer_comes_first(
    *, watch_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stateful() as server, opened(server, OPTIONS, ours) as cluster:
        answered = server._one

        async def late(request: web.Request, key: tuple[str, str, str]) -> web.StreamResponse:
            answer = await answered(request, key)
            if key[0] == "Namespace" and request.method == "PATCH":
                namespaces = cluster._informers["Namespace"]
                assert await namespaces.reached(str(server.version), PATIENCE)
            return answer

        if watch_first:
            monkeypatch.setattr(server, "_one", late)
        await cluster.prepare(environment(1))
        (namespace,) = [thing for key, thing in server.things.items() if key[0] == "Namespace"]
        assert namespace["metadata"]["labels"]["greylag.dev/instance"] == "instance-1"


@pytest.mark.parametrize(
    ("options", "lacks"),
    [
        (OPTIONS, False),
        (OPTIONS.model_copy(update={"image": "goose:2"}), True),
        (OPTIONS.model_copy(update={"agent_key": (SecretStr("k" * 32),)}), True),
        (OPTIONS.model_copy(update={"authorities": "PEM"}), True),
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


def test_other_authorities_are_other_settings_though_they_have_the_same_file() -> None:
    first, second, same = (
        settings_digest(environment(1), OPTIONS.model_copy(update={"authorities": pem}), {}, "")
        for pem in ("PEM of now", "PEM of later", "PEM of now")
    )
    assert first == same != second


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


async def annotated(server: StatefulServer, cluster: KubernetesCluster) -> dict[str, Any]:
    """Give the Deployment a generation that no controller has seen, and return it."""
    written = deployment(server)
    written = {**written, "metadata": {**written["metadata"], "generation": 2}}
    server.put("Deployment", environment(2).names.namespace, written)
    async with asyncio.timeout(PATIENCE):
        while (await cluster.observe(environment(2))).state is not Observed.STOPPING:
            await cluster.changed(environment(2), PATIENCE)
    return written


async def test_a_deletion_waits_for_the_controller_to_take_up_the_last_annotation() -> None:
    async with asleep() as (server, cluster):
        written = await annotated(server, cluster)
        waiting = asyncio.create_task(cluster.delete(environment(2)))
        await asyncio.wait([waiting], timeout=0.1)
        assert not any(asked.startswith("DELETE") for asked in server.asked)
        taken_up = {**written, "status": {"observedGeneration": 2}}
        server.put("Deployment", environment(2).names.namespace, taken_up)
        await waiting
        assert "DELETE Deployment" in server.asked


async def test_what_no_controller_takes_up_is_not_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greylag.cluster.kubernetes.cluster.TAKEN_UP_SECONDS", 0.05)
    async with asleep() as (server, cluster):
        await annotated(server, cluster)
        with pytest.raises(ClusterError, match="must be stopped"):
            await cluster.delete(environment(2))
        assert not any(asked.startswith("DELETE") for asked in server.asked)


async def taken_up(server: StatefulServer, cluster: KubernetesCluster) -> None:
    """Let the controller have taken up the Deployment as it is, and the informers know of it."""
    there = {**deployment(server), "status": {"observedGeneration": 1}}
    server.put("Deployment", environment(2).names.namespace, there)
    assert await cluster._informers["Deployment"].reached(str(server.version), PATIENCE)


async def test_of_what_was_deleted_no_object_is_remembered() -> None:
    async with asleep() as (server, cluster):
        await taken_up(server, cluster)
        await cluster.delete(environment(2))
        async with asyncio.timeout(PATIENCE):
            while (await cluster.observe(environment(2))).state is not Observed.ABSENT:
                await cluster.changed(environment(2), PATIENCE)
        await until(lambda: not cluster._cache._projects, "something is left")
        await cluster.observe(environment(2))
        assert cluster._observer._known == {}
        assert cluster._cache._deployments == {}


@pytest.mark.parametrize(
    ("settings", "goes"),
    [
        ({}, True),
        ({"image_pull_secret": "registry"}, False),
        ({"ingress_base_domain": "a.test", "ingress_tls_secret": "wildcard"}, False),
    ],
)
async def test_a_namespace_goes_with_its_last_project_unless_the_operator_has_secrets_there(
    settings: dict[str, Any], *, goes: bool
) -> None:
    async with asleep(OPTIONS.model_copy(update=settings)) as (server, cluster):
        await taken_up(server, cluster)
        await cluster.delete(environment(2))
        assert ("DELETE Namespace" in server.asked) == goes
        assert "DELETE Deployment" in server.asked


@pytest.mark.parametrize("labels", [{}, {"greylag.dev/project": "demo"}])
async def test_a_namespace_stays_with_what_others_have_there(labels: dict[str, str]) -> None:
    async with asleep() as (server, cluster):
        await taken_up(server, cluster)
        theirs = {"metadata": {"name": "theirs", "labels": labels}}
        server.put("Pod", environment(2).names.namespace, theirs)
        await cluster.delete(environment(2))
        assert "DELETE Deployment" in server.asked
        assert "DELETE Namespace" not in server.asked


@pytest.mark.parametrize(
    ("removing", "goes_on"), [(None, False), ("record", True), ("older record", False)]
)
def test_a_removal_goes_on_under_the_record_that_it_was_begun_for_alone(
    removing: str | None, *, goes_on: bool
) -> None:
    annotations = {"greylag.dev/record": "record", "greylag.dev/removing": removing}
    assert writes.is_being_removed({"metadata": {"annotations": annotations}}) == goes_on
    assert not writes.is_being_removed({"metadata": {}})


async def test_a_stop_makes_nothing_but_where_a_pod_runs_that_nothing_owns() -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        server.forget(next(key for key in server.things if key[0] == "Deployment"))
        assert await cluster._informers["Deployment"].reached(str(server.version), PATIENCE)
        await cluster.stop(environment(3))
        assert deployment(server)["spec"]["replicas"] == 0
    async with stateful() as server, opened(server, OPTIONS) as cluster:
        await cluster.stop(environment(1))
        assert server.things == {}


async def test_what_was_deleted_is_not_made_again_under_an_older_claim() -> None:
    async with asleep() as (server, cluster):
        await taken_up(server, cluster)
        await cluster.delete(environment(3))
        with pytest.raises(LeaseLostError):
            await cluster.start(environment(2))


async def test_of_the_newest_deletions_the_claims_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writes, "_REMEMBERED", 2)
    first, second, third = (
        replace(make_project(name).environment, fence=Fence(name, 1)) for name in ("a", "b", "c")
    )
    async with stateful() as server, opened(server, OPTIONS) as cluster:
        for one in (first, second, first, third):
            await cluster.delete(one)
        assert list(cluster._writes._deleted) == [first.ref, third.ref]


async def test_while_its_volume_does_not_go_an_environment_keeps_its_claim_and_its_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writes, "GONE_SECONDS", 0.05)
    async with asleep() as (server, cluster):
        await taken_up(server, cluster)
        kept = server.forget
        monkeypatch.setattr(
            server, "forget", lambda key: key[0] == "PersistentVolumeClaim" or kept(key)
        )
        with pytest.raises(ClusterError, match="PersistentVolumeClaim"):
            await cluster.delete(environment(3))
        assert deployment(server)["metadata"]["annotations"]["greylag.dev/claim"] == "3"
        assert "DELETE Namespace" not in server.asked


@pytest.mark.parametrize(("forbidden", "tries"), [(set(), 5), ({"PATCH Deployment"}, 1)])
async def test_a_step_is_tried_again_where_somebody_was_there_between_and_no_longer_than_that(
    forbidden: set[str], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asleep() as (server, cluster):
        answered = server._one

        async def one(request: web.Request, key: tuple[str, str, str]) -> web.StreamResponse:
            if request.method == "PATCH":
                server.put(key[0], key[1], server.things[key])
            return await answered(request, key)

        monkeypatch.setattr(server, "_one", one)
        server.denied |= dict.fromkeys(forbidden, 403)
        with pytest.raises(ClusterError):
            await cluster.stop(environment(2))
        assert server.asked.count("PATCH Deployment") == tries


@pytest.mark.parametrize(
    ("annotations", "fence"),
    [
        (None, None),
        ({"greylag.dev/record": "r"}, None),
        ({"greylag.dev/claim": "7"}, None),
        ({"greylag.dev/record": "r", "greylag.dev/claim": "-7"}, None),
        ({"greylag.dev/record": "r", "greylag.dev/claim": "7"}, Fence("r", 7)),
    ],
)
def test_a_claim_that_a_deployment_does_not_tell_in_whole_is_none(
    annotations: dict[str, str] | None, fence: Fence | None
) -> None:
    assert writes.fence_of({"metadata": {"annotations": annotations}}) == fence


def test_each_kind_is_watched_or_is_not() -> None:
    assert set(WATCHED).isdisjoint(writes._UNWATCHED)
    assert set(KINDS) - {*WATCHED, *writes._UNWATCHED} == {"Event"}  # read, and never applied


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


@asynccontextmanager
async def one_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[tuple[StatefulServer, KubernetesCluster, KubernetesCluster]]:
    """Yield two workers' clusters; the second one's watches are open, and tell it nothing."""
    monkeypatch.setattr(observation, "BEHIND_SECONDS", 0.05)
    async with stateful() as server, opened(server, OPTIONS) as first:
        await first.observe(environment(1))
        await until(lambda: len(server._watches) == len(WATCHED), "a watch is missing")
        async with opened(server, OPTIONS) as second:
            await second.observe(environment(1))
            await until(lambda: len(server._watches) == 2 * len(WATCHED), "a watch is missing")
            del server._watches[len(WATCHED) :]
            yield server, first, second


async def test_what_a_worker_s_watches_have_not_told_of_is_not_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with one_behind(monkeypatch) as (server, ahead, behind):
        assert (await behind.observe(environment(1))).state is Observed.ABSENT
        await ahead.prepare(environment(1))
        server.asked.clear()
        with pytest.raises(ClusterUnavailableError, match="told of"):
            await behind.observe(environment(2))
        for key in [key for key in server.things if key[0] == "Deployment"]:
            del server.things[key]
        with pytest.raises(ClusterUnavailableError, match="told of"):
            await behind.observe(environment(2))  # the volume counts, too
        server.things.clear()
        assert (await behind.observe(environment(2))).state is Observed.ABSENT


async def test_what_the_watches_tell_of_while_absence_is_made_sure_of_is_observed() -> None:
    async with asleep() as (server, cluster):
        server.put("Deployment", environment(2).names.namespace, deployment(server))
        absent = Observation(Observed.ABSENT)
        seen = await cluster._observer.confirmed(environment(2), absent)
        assert seen.state is Observed.STOPPED
        assert await cluster._informers["Deployment"].reached(str(server.version), 0)


@pytest.mark.parametrize("verb", ["prepare", "start", "delete"])
async def test_a_worker_that_is_behind_does_nothing_under_an_older_claim(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with one_behind(monkeypatch) as (server, ahead, behind):
        await ahead.prepare(environment(3))
        await ahead.start(environment(3))
        server.asked.clear()
        before = deployment(server)
        with pytest.raises(LeaseLostError):
            await getattr(behind, verb)(environment(2))
        assert deployment(server) == before
        assert not any(asked.startswith("DELETE") for asked in server.asked)


async def test_a_worker_that_is_behind_leaves_what_runs_as_it_is_under_a_newer_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with one_behind(monkeypatch) as (server, ahead, behind):
        await ahead.prepare(environment(3))
        await ahead.start(environment(3))
        monkeypatch.setattr(writes, "READ_BACK_SECONDS", 0.05)
        with pytest.raises(ClusterError, match="does not show it yet"):
            await behind.prepare(environment(4))
        assert deployment(server)["spec"]["replicas"] == 1
        assert deployment(server)["metadata"]["annotations"]["greylag.dev/claim"] == "4"


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
        if kind in WATCHED:
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


STORED = {"storageClassName": "fast", "accessModes": ["ReadWriteOnce"], "volumeName": "pv-1"}


@pytest.mark.parametrize(
    ("has", "changed", "grows", "asked", "told"),
    [
        ("5Gi", {"volume_size": "2Gi"}, True, "5Gi", "cannot shrink to 2Gi"),
        ("5Gi", {"volume_size": "9Gi"}, True, "9Gi", ""),
        ("5Gi", {"volume_size": "9Gi"}, False, "5Gi", "is not grown by its class to 9Gi"),
        ("5Gi", {"storage_class": "slow"}, True, "5Gi", "its class fast"),
        ("5Gi", {"storage_class": "fast"}, True, "5Gi", ""),
        ("5368709120", {}, True, "5Gi", ""),
        ("5Gi", {}, True, "5Gi", ""),
    ],
)
async def test_a_volume_stays_what_it_cannot_change_and_that_is_told(
    has: str, changed: dict[str, Any], *, grows: bool, asked: str, told: str
) -> None:
    async with asleep(OPTIONS.model_copy(update=changed)) as (server, cluster):
        key = next(key for key in server.things if key[0] == "PersistentVolumeClaim")
        stored = {**STORED, "resources": {"requests": {"storage": has}}}
        server.put(key[0], key[1], {**server.things[key], "spec": stored})
        assert await cluster._informers[key[0]].reached(str(server.version), 5)
        if not grows:
            server.refuses = {"storage": "9Gi"}

        await cluster.start(environment(2))
        seen = await cluster.observe(environment(2))

        spec = server.things[key]["spec"]
        assert spec == stored | {"resources": {"requests": {"storage": asked}}}
        said = [step.message for step in seen.steps if step.code == "volume_kept"]
        assert told in "".join(said)
        assert bool(said) == bool(told)


async def test_a_selector_of_an_older_version_stays_and_still_chooses_the_pod() -> None:
    async with asleep() as (server, cluster):
        older = {"matchLabels": {"greylag.dev/project": "demo", "older": "label"}}
        made = deployment(server)
        spec = {**made["spec"], "selector": older}
        server.put("Deployment", made["metadata"]["namespace"], {**made, "spec": spec})
        assert await cluster._informers["Deployment"].reached(str(server.version), 5)

        await cluster._writes.do(environment(2), partial(_applied, cluster))

        spec = deployment(server)["spec"]
        assert spec["selector"] == older
        assert spec["template"]["metadata"]["labels"].items() >= older["matchLabels"].items()


async def test_the_ingress_goes_with_the_domain() -> None:
    behind = OPTIONS.model_copy(update={"ingress_base_domain": "a.test"})
    async with asleep(behind) as (server, cluster):
        await cluster.start(environment(2))
        await cluster.stop(environment(3))
        await cluster.start(environment(4))
        assert any(key[0] == "Ingress" for key in server.things)
        async with opened(server, OPTIONS) as without:
            await without.stop(environment(5))
            await without.start(environment(6))
        assert not any(key[0] == "Ingress" for key in server.things)


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


def running(server: StatefulServer, *addresses: str) -> None:
    """Put a pod that is ready beside the Deployment, whose controller has seen its template."""
    made = deployment(server)
    namespace = made["metadata"]["namespace"]
    server.put("Deployment", namespace, {**made, "status": {"observedGeneration": 1}})
    meta = made["spec"]["template"]["metadata"]
    pod = {
        "metadata": {**meta, "name": "demo-api-1", "namespace": namespace},
        "spec": {"containers": [{"name": "agent", "image": "goose:1"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "podIPs": [{"ip": address} for address in addresses],
        },
    }
    server.put("Pod", namespace, pod)


async def test_what_is_labelled_for_another_project_is_of_that_one_alone() -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        key, pod = next((key, thing) for key, thing in server.things.items() if key[0] == "Pod")
        labels = {**pod["metadata"]["labels"], "greylag.dev/project": "other"}
        server.put("Pod", key[1], {**pod, "metadata": {**pod["metadata"], "labels": labels}})
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        assert cluster._cache.pods((key[1], "demo")) == []
        assert len(cluster._cache.pods((key[1], "other"))) == 1


@pytest.mark.parametrize(
    ("kind", "name", "spec", "ends"),
    [
        ("Service", "demo-svc", {"selector": {"a": "b"}}, Observed.READY),
        ("NetworkPolicy", "greylag-agent", {"egress": [{}]}, Observed.FAILED),
    ],
)
async def test_what_is_changed_back_each_time_is_set_right_three_times_and_then_told(
    kind: str, name: str, spec: dict[str, Any], ends: Observed
) -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        key = next(key for key in server.things if key[0] == kind and key[2] == name)
        fields = [{"manager": "greylag"}, {"manager": "policy-engine", "time": "2026-01-01"}]
        for number in range(5):
            edited = {**server.things[key], "spec": {**server.things[key]["spec"], **spec}}
            edited["metadata"] = {**edited["metadata"], "managedFields": fields}
            server.put(kind, key[1], edited)
            assert await cluster._informers[kind].reached(str(server.version), 5)
            seen = await cluster.observe(environment(2))
            assert seen.error is not None
            assert "policy-engine" in seen.error.message
            if number < 3:
                assert (seen.state, seen.error.code) == (Observed.FAILED, "environment_drifted")
                assert not seen.terminal
                await cluster._writes.do(environment(2), partial(_applied, cluster))
                continue
            assert (seen.state, seen.error.code) == (ends, "environment_contested")
            assert seen.terminal == (ends is Observed.FAILED)


@pytest.mark.parametrize(
    ("addresses", "egress", "shut_in"),
    [
        (("fd00::7",), ("0.0.0.0/0",), True),
        (("fd00::7",), ("0.0.0.0/0", "::/0"), False),
        (("10.0.0.7", "fd00::7"), ("0.0.0.0/0",), False),
        (("fd00::7",), (), False),
    ],
)
async def test_an_environment_that_ipv6_leaves_without_a_way_out_says_so(
    addresses: tuple[str, ...], egress: tuple[str, ...], *, shut_in: bool
) -> None:
    async with asleep(OPTIONS.model_copy(update={"egress_cidrs": egress})) as (server, cluster):
        await cluster.start(environment(2))
        running(server, *addresses)
        assert await cluster._informers["Pod"].reached(str(server.version), 5)
        seen = await cluster.observe(environment(2))
        assert seen.state is Observed.READY
        assert (seen.error.code if seen.error else "") == ("egress_closed" if shut_in else "")


@pytest.mark.parametrize("served", [True, False])
async def test_an_ingress_that_no_controller_serves_is_named_where_nothing_answers(
    *, served: bool
) -> None:
    behind = {"ingress_base_domain": "a.invalid", "ingress_class": "nope", "ingress_tls": True}
    options = Options(image="goose:1", platform_namespace=None, probe=True, **behind)
    async with asleep(options) as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        key = next(key for key in server.things if key[0] == "Ingress")
        status = {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}] if served else []}}
        server.put(key[0], key[1], {**server.things[key], "status": status})
        assert await cluster._informers["Ingress"].reached(str(server.version), 5)
        assert await cluster._informers["Pod"].reached(str(server.version - 1), 5)
        seen = await cluster.observe(environment(2))
        assert seen.error is not None
        assert (seen.error.code, seen.unheard) == ("endpoint_unreachable", True)
        assert ("class (nope)" in seen.error.message) != served


@pytest.mark.parametrize(
    ("refusal", "code", "words"),
    [
        ((410, "Expired", "too old resource version"), "cluster_unavailable", "forgotten"),
        ((401, "Unauthorized", ""), "cluster_unauthorized", "credentials"),
        ((429, "TooManyRequests", "try later"), "cluster_unavailable", "429"),
        (
            (403, "Forbidden", 'pods is forbidden: User "w" cannot watch resource "pods"'),
            "cluster_forbidden",
            "cannot watch",
        ),
    ],
)
async def test_what_refuses_everything_at_run_time_is_told_and_nothing_is_lost_by_it(
    refusal: tuple[int, str, str], code: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "ALIVE_SECONDS", 0.3)
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        assert await cluster._informers["Pod"].reached(str(server.version), 5)
        server.refuse(*refusal)
        async with asyncio.timeout(20):
            while cluster._informers.live:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)

        with pytest.raises(ClusterError, match=words) as refused:
            await cluster.observe(environment(2))
        assert refused.value.info.code == code
        server.answers = None
        assert await cluster._informers.alive(20)
        assert (await cluster.observe(environment(2))).state is Observed.READY


KEYED = OPTIONS.model_copy(update={"agent_key": (SecretStr("k" * 32),)})


@pytest.mark.parametrize("options", [OPTIONS, KEYED], ids=["random token", "derived token"])
@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        ("Secret", None),
        ("Secret", {"data": {"GREYLAG_AGENT_TOKEN": "bWluZQ=="}}),
        ("ConfigMap", None),
        ("ConfigMap", {"data": {"GREYLAG_MODEL": "mine"}}),
    ],
)
async def test_what_no_watch_tells_of_is_set_right_while_it_runs(
    kind: str, edit: dict[str, Any] | None, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asleep(options) as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        assert await cluster._informers["Pod"].reached(str(server.version), 5)
        assert (await cluster.observe(environment(2))).state is Observed.READY
        key = next(key for key in server.things if key[0] == kind)
        before = server.things.pop(key)
        if edit is not None:
            server.put(kind, key[1], {**before, **edit})
        monkeypatch.setattr(observation, "REFRESH_SECONDS", 0.0)

        seen = await cluster.observe(environment(2))

        token_lost = kind == "Secret" and options is OPTIONS
        assert seen.state is (Observed.FAILED if token_lost else Observed.READY)
        mark = deployment(server)["metadata"]["annotations"][START_ANNOTATION]
        if token_lost:
            await cluster.start(environment(2))
        again = deployment(server)["metadata"]["annotations"][START_ANNOTATION]
        assert (again != mark) == token_lost, "the pod must be another, as its token is"
        assert server.things[key]["data"].keys() == before["data"].keys()
        assert (server.things[key]["data"] != before["data"]) == token_lost


async def test_what_no_watch_tells_of_stays_ours_when_it_is_seen_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stateful() as server, opened(server, OPTIONS, ours) as cluster:
        await cluster.prepare(environment(1))
        await cluster.start(environment(2))
        running(server)
        assert await cluster._informers["Pod"].reached(str(server.version), 5)
        assert (await cluster.observe(environment(2))).state is Observed.READY
        monkeypatch.setattr(observation, "REFRESH_SECONDS", 0.0)
        apply, applied = cluster._api.apply, []

        async def noted(thing: Object) -> dict[str, Any]:
            applied.append(thing["metadata"]["labels"].get("greylag.dev/instance"))
            return await apply(thing)

        monkeypatch.setattr(cluster._api, "apply", noted)
        assert (await cluster.observe(environment(2))).state is Observed.READY
        assert applied
        assert set(applied) == {"instance-1"}


@pytest.mark.parametrize("refused", ["a right", "the template", "an answer"])
async def test_what_refuses_the_look_at_what_no_watch_tells_of_keeps_nobody_from_stopping_it(
    refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"large": Template()} if refused == "the template" else {}
    async with stateful() as server:
        its = replace(environment(1), template="large" if shape else PROJECT.environment.template)
        async with opened(server, OPTIONS.model_copy(update={"templates": shape})) as first:
            await first.prepare(its)
            await first.start(its)
            running(server)
        async with opened(server, OPTIONS) as cluster:
            assert (await cluster.observe(its)).error is None
            monkeypatch.setattr(observation, "REFRESH_SECONDS", 0.0)
            if refused == "a right":
                server.denied["PATCH ConfigMap"] = 403
            if refused == "an answer":
                monkeypatch.setattr(cluster._observer, "_refreshed", unanswered)
            seen = await cluster.observe(its)
            told = {"a right": "cluster_error", "the template": "template_not_found"}
            assert seen.state is Observed.READY
            assert (seen.error and seen.error.code) == told.get(refused)

            monkeypatch.setattr(observation, "REFRESH_SECONDS", 300.0)
            server.asked.clear()
            assert await cluster.observe(its) == seen, "it is told until the next try"
            assert server.asked == []
            monkeypatch.setattr(observation, "REFRESH_SECONDS", 0.0)
            monkeypatch.setattr(cluster._observer, "_refreshed", whole)
            assert (await cluster.observe(its)).error is None


async def test_a_look_that_is_given_up_for_its_length_does_not_take_the_next_one_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        assert await cluster._informers["Pod"].reached(str(server.version), 5)
        assert (await cluster.observe(environment(2))).state is Observed.READY
        (known,) = cluster._observer._known.values()
        assert known.refresh is not None
        known.refresh.at -= observation.REFRESH_SECONDS
        monkeypatch.setattr(cluster._observer, "_refreshed", endless)
        looking = asyncio.create_task(cluster.observe(environment(2)))
        await asyncio.wait([looking], timeout=0.1)
        looking.cancel()
        await asyncio.wait([looking])
        async with asyncio.timeout(PATIENCE):
            assert (await cluster.observe(environment(2))).state is Observed.READY


async def unanswered(_environment: Environment, _found: Object) -> bool:
    raise ClusterUnavailableError("Nobody answers.")


async def whole(_environment: Environment, _found: Object) -> bool:
    return True


async def endless(_environment: Environment, _found: Object) -> bool:
    await asyncio.Event().wait()
    return True


@pytest.mark.parametrize("verb", ["start", "stop"])
async def test_what_takes_our_label_off_with_each_write_is_told(
    monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    async with asleep() as (server, cluster):
        put = server.put

        def labelled(kind: str, namespace: str, thing: dict[str, Any]) -> dict[str, Any]:
            labels = {**thing["metadata"].get("labels", {}), MANAGED_BY_LABEL: "a-policy"}
            changed = {**thing, "metadata": {**thing["metadata"], "labels": labels}}
            return put(kind, namespace, changed if kind == "Deployment" else thing)

        monkeypatch.setattr(server, "put", labelled)
        with pytest.raises(ClusterError, match="admission webhook") as told:
            await getattr(cluster, verb)(environment(2))
        assert (told.value.info.code, told.value.terminal) == ("environment_contested", True)


async def test_what_the_cluster_changes_with_each_write_counts_as_changed_by_nobody() -> None:
    async with asleep() as (server, cluster):
        put, count = server.put, itertools.count()

        def stamping(kind: str, namespace: str, thing: dict[str, Any]) -> dict[str, Any]:
            if kind == "Deployment":
                thing = {**thing, "spec": {**thing["spec"], "stamp": next(count)}}
            return put(kind, namespace, thing)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server, "put", stamping)
            await cluster.start(environment(2))
        running(server)
        assert server.asked.count("PATCH Deployment") == 3
        assert await cluster._informers["Pod"].reached(str(server.version), 5)
        assert (await cluster.observe(environment(2))).state is Observed.READY


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


async def test_informers_that_died_of_a_fault_keep_no_connection_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def died() -> None:
        raise RuntimeError("a fault")

    async with stateful() as server, opened(server, OPTIONS) as cluster:
        monkeypatch.setattr(cluster._informers, "run", died)
        heard = cluster.changes()
        with pytest.raises(RuntimeError, match="a fault"):
            await anext(heard)
        await cluster.close()
        assert cluster._api._http.closed
