"""What is told of an environment's objects, for each way in which they can stand."""

import asyncio
import json
import sys
from typing import Any

import pytest
from aiohttp import web
from tests.cluster.environments import until
from tests.cluster.kubernetes.api_server import PATIENCE
from tests.cluster.kubernetes.stateful_api_server import StatefulServer
from tests.cluster.kubernetes.test_writes import OPTIONS, asleep, environment, opened, running
from tests.cluster.kubernetes.test_writes import deployment as server_deployment

from greylag.cluster.kubernetes import observation
from greylag.cluster.kubernetes.api import TRY_SECONDS
from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.cluster.kubernetes.diagnosis import EnvironmentObjects, why_lost
from greylag.cluster.kubernetes.observation import observed
from greylag.domain.lifecycle import Observed
from greylag.reconcile.reconciler import Pace

IMAGE = "registry.test/goose:1"


CLAIM = {"metadata": {"name": "demo-data", "uid": "c"}}

OURS = {
    "containers": [{"name": "agentd", "image": IMAGE}, {"name": "execd", "image": "of-the-user:1"}]
}


def deployment(replicas: int = 1, *, seen: int = 1, failure: str | None = None) -> dict[str, Any]:
    conditions = []
    if failure is not None:
        conditions = [
            {
                "type": "ReplicaFailure",
                "status": "True",
                "reason": "FailedCreate",
                "message": failure,
            }
        ]
    return {
        "metadata": {"name": "demo-api", "generation": 1},
        "spec": {
            "replicas": replicas,
            "template": {"spec": OURS},
        },
        "status": {"observedGeneration": seen, "conditions": conditions},
    }


def pod(
    *,
    waiting: tuple[str, str] | None = None,
    running: bool = False,
    ready: bool = False,
    restarts: int = 0,
    last: dict[str, Any] | None = None,
    node: str | None = "node-1",
    unscheduled: str | None = None,
    going: bool = False,
    finalizers: tuple[str, ...] = (),
) -> dict[str, Any]:
    state: dict[str, Any] = {}
    if waiting is not None:
        state = {"waiting": {"reason": waiting[0], "message": waiting[1]}}
    if running or ready:
        state = {"running": {}}
    scheduled = {"type": "PodScheduled", "status": "True"}
    if unscheduled is not None:
        scheduled = {"type": "PodScheduled", "status": "False", "message": unscheduled}
    metadata: dict[str, Any] = {"name": "demo-api-1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    if going:
        metadata |= {"deletionTimestamp": "2026-01-01T00:01:00Z", "finalizers": list(finalizers)}
    return {
        "metadata": metadata,
        "spec": {
            **OURS,
            "nodeName": None if unscheduled else node,
        },
        "status": {
            "phase": "Running" if running or ready else "Pending",
            "conditions": [scheduled, {"type": "Ready", "status": str(ready)}],
            "containerStatuses": [
                {
                    "name": "agentd",
                    "ready": ready,
                    "state": state,
                    "restartCount": restarts,
                    "lastState": {"terminated": last} if last else {},
                }
            ],
        },
    }


def beside(added: dict[str, Any], *, before: bool = False) -> dict[str, Any]:
    """Return a pod to which the cluster added a container, ahead of ours; ours is well."""
    made = pod(running=True)
    kind = "initContainerStatuses" if before else "containerStatuses"
    status = {"name": "a-proxy", **added}
    made["status"][kind] = [status, *made["status"].get(kind, [])]
    return made


def lost(reason: str = "", message: str = "", *, disrupted: str = "") -> dict[str, Any]:
    """Return a pod that ended, or is about to, by the cluster's will."""
    made = pod(going=True)
    made["status"] |= {"reason": reason, "message": message, "containerStatuses": []}
    if disrupted:
        condition = {"type": "DisruptionTarget", "status": "True", "reason": disrupted}
        made["status"]["conditions"].append({**condition, "message": message})
    return made


def event(reason: str, message: str = "") -> dict[str, Any]:
    return {"reason": reason, "message": message}


def test_nothing_is_absent() -> None:
    assert observed(EnvironmentObjects()).state is Observed.ABSENT


@pytest.mark.parametrize("part", ["claim", "service"])
def test_a_part_that_is_left_is_not_absent(part: str) -> None:
    left = {"metadata": {"name": "left"}}
    seen = observed(EnvironmentObjects(claim=left if part == "claim" else None, service=left))
    assert seen.state is Observed.STOPPED


def test_a_deployment_of_no_replicas_is_stopped() -> None:
    seen = observed(EnvironmentObjects(deployment(0), claim=CLAIM))
    assert (seen.state, seen.error) == (Observed.STOPPED, None)


def test_a_sleeping_environment_whose_volume_somebody_deleted_says_so() -> None:
    seen = observed(EnvironmentObjects(deployment(0)))
    assert seen.state is Observed.STOPPED
    assert seen.error is not None
    assert seen.error.code == "volume_deleted"


@pytest.mark.parametrize("left", [pod(ready=True), pod(going=True)])
def test_it_is_stopping_until_no_pod_is_left(left: dict[str, Any]) -> None:
    assert observed(EnvironmentObjects(deployment(0), [left])).state is Observed.STOPPING


def test_a_pod_that_nobody_ends_is_named() -> None:
    seen = observed(EnvironmentObjects(deployment(0), [pod(ready=True)]))
    assert seen.error is not None
    assert seen.error.code == "environment_stopping"
    assert pod()["metadata"]["name"] in seen.error.message


def test_an_ended_pod_holds_up_no_stop() -> None:
    ended = pod()
    ended["status"]["phase"] = "Failed"
    assert observed(EnvironmentObjects(deployment(0), [ended])).state is Observed.STOPPED


def test_a_removal_that_waits_names_what_it_waits_for() -> None:
    seen = observed(
        EnvironmentObjects(deployment(0), [pod(going=True, finalizers=("a.test/hold",))])
    )
    assert seen.error is not None
    assert seen.error.code == "removal_stuck"
    assert "a.test/hold" in seen.error.message


def test_a_volume_that_is_being_removed_keeps_it_from_being_absent() -> None:
    claim = {"metadata": {"name": "demo-data", "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    seen = observed(EnvironmentObjects(claim=claim))
    assert seen.state is Observed.STOPPING
    assert seen.error is not None
    assert "demo-data" in seen.error.message


def test_a_start_waits_for_the_old_pod_to_be_gone() -> None:
    assert observed(EnvironmentObjects(deployment(1), [pod(going=True)])).state is Observed.STOPPING


def test_a_ready_pod_with_an_address_is_ready_and_tells_its_way() -> None:
    seen = observed(
        EnvironmentObjects(deployment(), [pod(ready=True)], endpoint="http://10.0.0.1:3001")
    )
    assert (seen.state, seen.endpoint) == (Observed.READY, "http://10.0.0.1:3001")
    assert [step.code for step in seen.steps] == [
        "namespace_ready",
        "quota_checked",
        "scheduled",
        "process_started",
        "agent_ready",
        "address_assigned",
    ]
    assert f"have started, of {IMAGE} and of-the-user:1." in seen.steps[3].message


def test_a_pod_has_not_started_while_one_of_its_images_is_pulled() -> None:
    made = pod(running=True)
    waiting = {"name": "execd", "state": {"waiting": {"reason": "ContainerCreating"}}}
    made["status"]["containerStatuses"].append(waiting)
    seen = observed(EnvironmentObjects(deployment(), [made]))
    assert "process_started" not in [step.code for step in seen.steps]


def test_a_ready_pod_without_an_address_is_not_ready_and_says_why() -> None:
    seen = observed(EnvironmentObjects(deployment(), [pod(ready=True)]))
    assert seen.state is Observed.STARTING
    assert seen.error is not None
    assert seen.error.code == "no_address"


def test_a_ready_pod_of_an_older_template_does_not_count() -> None:
    seen = observed(
        EnvironmentObjects(deployment(seen=0), [pod(ready=True)], endpoint="http://10.0.0.1")
    )
    assert seen.state is Observed.STARTING


def test_an_image_that_is_being_pulled_is_told() -> None:
    found = EnvironmentObjects(
        deployment(), [pod(waiting=("ContainerCreating", ""))], events=[event("Pulling", "Pulling")]
    )
    assert found.needs_events
    assert [step.code for step in observed(found).steps][-1] == "pulling_image"


FINAL = [
    ("quota_exceeded", deployment(failure="pods forbidden: exceeded quota: q, requested: pods=1")),
    ("pod_security_refused", deployment(failure='violates PodSecurity "restricted:latest"')),
    ("webhook_refused", deployment(failure='admission webhook "a.test" denied the request: no')),
    ("cluster_forbidden", deployment(failure="pods is forbidden: User x cannot create")),
    (
        "admission_refused",
        deployment(failure='pods "p" is forbidden: maximum cpu usage per Container is 100m'),
    ),
    (
        "admission_refused",
        deployment(failure='pods "p" is forbidden: failed quota: q: must specify limits.x for: a'),
    ),
    (
        "admission_refused",
        deployment(failure='pods "p" is forbidden: no PriorityClass with name p was found'),
    ),
]


@pytest.mark.parametrize(("code", "refused"), FINAL, ids=[code for code, _ in FINAL])
def test_a_refusal_is_final_and_told_at_once(code: str, refused: dict[str, Any]) -> None:
    seen = observed(EnvironmentObjects(refused))
    assert (seen.state, seen.terminal) == (Observed.FAILED, True)
    assert seen.error is not None
    assert seen.error.code == code
    assert seen.error.hint


PASSING = [
    (
        "pod_cpu_exceeded",
        deployment(failure="must be greater than or equal to aggregate container requests of 6m"),
    ),
    ("webhook_unavailable", deployment(failure="failed calling webhook a.test: timeout")),
    ("namespace_terminating", deployment(failure="namespace x is being terminated")),
    ("container_not_created", deployment(failure="something else")),
]


@pytest.mark.parametrize(("code", "refused"), PASSING, ids=[code for code, _ in PASSING])
def test_what_may_pass_is_waited_for(code: str, refused: dict[str, Any]) -> None:
    seen = observed(EnvironmentObjects(refused))
    assert seen.state is Observed.STARTING
    assert seen.error is not None
    assert seen.error.code == code


PODS = [
    ("image_not_found", True, pod(waiting=("ErrImagePull", "x: not found")), []),
    ("image_not_found", True, pod(waiting=("InvalidImageName", "bad")), []),
    ("image_not_allowed", True, pod(waiting=("ErrImagePull", "401 Unauthorized")), []),
    ("image_pull_failed", False, pod(waiting=("ErrImagePull", "i/o timeout")), []),
    (
        "image_not_found",
        True,
        pod(waiting=("ImagePullBackOff", "Back-off")),
        [event("Failed", "Failed to pull image: not found")],
    ),
    (
        "pull_secret_missing",
        True,
        pod(waiting=("ErrImagePull", "401 Unauthorized")),
        [event("FailedToRetrieveImagePullSecret", "unable")],
    ),
    ("unschedulable", False, pod(unscheduled="0/1 nodes: 1 Insufficient cpu."), []),
    (
        "volume_not_bound",
        False,
        pod(unscheduled="pod has unbound immediate PersistentVolumeClaims"),
        [],
    ),
    (
        "volume_not_mounted",
        False,
        pod(waiting=("ContainerCreating", "")),
        [event("FailedMount", "timed out")],
    ),
    ("container_not_created", False, pod(waiting=("CreateContainerConfigError", "secret")), []),
    (
        "crash_loop",
        True,
        pod(waiting=("CrashLoopBackOff", ""), restarts=3, last={"exitCode": 3}),
        [],
    ),
    ("out_of_memory", False, pod(running=True, last={"reason": "OOMKilled", "exitCode": 137}), []),
    (
        "out_of_memory",
        True,
        pod(waiting=("CrashLoopBackOff", ""), restarts=3, last={"reason": "OOMKilled"}),
        [],
    ),
    ("container_ended", False, pod(running=True, last={"reason": "Error", "exitCode": 1}), []),
    ("node_not_ready", False, pod(running=True), [event("NodeNotReady")]),
    (
        "volume_held",
        False,
        pod(waiting=("ContainerCreating", "")),
        [event("FailedAttachVolume", "Multi-Attach error for volume x")],
    ),
    (
        "volume_elsewhere",
        False,
        pod(unscheduled="1 node(s) had volume node affinity conflict."),
        [],
    ),
    (
        "volume_not_bound",
        False,
        pod(unscheduled="pod has unbound immediate PersistentVolumeClaims"),
        [event("FailedBinding", "no storage class is set")],
    ),
    (
        "added_container_failing",
        False,
        beside({"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}),
        [],
    ),
    (
        "added_container_failing",
        False,
        beside({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 1}),
        [],
    ),
    (
        "added_container_failing",
        True,
        beside(
            {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 3}, before=True
        ),
        [],
    ),
    ("probe_failing", False, pod(running=True), [event("Unhealthy", "HTTP 503")]),
]


@pytest.mark.parametrize(("code", "final", "stuck", "events"), PODS)
def test_a_stuck_pod_says_why(
    code: str, *, final: bool, stuck: dict[str, Any], events: list[dict[str, Any]]
) -> None:
    seen = observed(EnvironmentObjects(deployment(), [stuck], claim=CLAIM, events=events))
    assert seen.error is not None
    assert (seen.error.code, seen.terminal) == (code, final)
    assert seen.state is (Observed.FAILED if final else Observed.STARTING)
    if code == "added_container_failing":
        assert "a-proxy" in seen.error.message
        assert "(exit code None)" not in seen.error.message


PARTS = [
    (
        "part_deleted",
        deployment(failure='error looking up service account n/s: serviceaccount "s"'),
    ),
    ("part_deleted", pod(waiting=("CreateContainerConfigError", 'secret "demo-secret" not found'))),
    ("part_deleted", pod(waiting=("CreateContainerConfigError", 'configmap "c" not found'))),
    ("volume_deleted", pod(unscheduled='persistentvolumeclaim "demo-data" not found')),
]


@pytest.mark.parametrize(("code", "thing"), PARTS)
def test_what_somebody_deleted_of_what_starts_is_told_and_applied_anew(
    code: str, thing: dict[str, Any]
) -> None:
    of_pod = "nodeName" in thing["spec"]
    found = EnvironmentObjects(*((deployment(), [thing]) if of_pod else (thing,)))
    seen = observed(found)
    assert seen.error is not None
    assert (seen.state, seen.terminal, seen.error.code) == (Observed.FAILED, False, code)


def test_a_volume_that_somebody_deletes_while_it_is_in_use_is_told_while_it_runs() -> None:
    going = {"metadata": {"name": "demo-data", "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    seen = observed(EnvironmentObjects(deployment(), [pod(ready=True)], going, endpoint="http://a"))
    assert seen.error is not None
    assert (seen.state, seen.error.code) == (Observed.READY, "volume_being_deleted")


LOST = [
    ("evicted", lost("Evicted", "The node was low on resource: memory.")),
    (
        "disk_limit_exceeded",
        lost("Evicted", "Pod ephemeral local storage usage exceeds the total limit of containers"),
    ),
    ("disk_limit_exceeded", lost("Evicted", 'Usage of EmptyDir volume "tmp" exceeds the limit')),
    ("preempted", lost(disrupted="PreemptionByScheduler")),
    ("drained", lost(disrupted="EvictionByEvictionAPI")),
    ("node_lost", lost(disrupted="DeletionByTaintManager")),
    ("node_lost", lost(disrupted="DeletionByPodGC")),
    ("evicted", lost(disrupted="TerminationByKubelet", message="node shutdown")),
    ("pod_failed", lost("OutOfcpu", "Node didn't have enough resource")),
    ("out_of_memory", pod(running=True, last={"reason": "OOMKilled", "exitCode": 137})),
    ("pod_deleted", pod(ready=True, going=True)),
]


@pytest.mark.parametrize(("code", "ended"), LOST)
def test_why_a_pod_was_lost_is_told_while_another_starts(code: str, ended: dict[str, Any]) -> None:
    why = why_lost(ended)
    assert why.error.code == code
    assert not why.final
    for pods in ([pod(waiting=("ContainerCreating", ""))], [pod(going=True)], []):
        seen = observed(EnvironmentObjects(deployment(), pods, claim=CLAIM, ended=why))
        assert seen.error == why.error


def test_a_crash_loop_tells_the_last_words() -> None:
    stuck = pod(waiting=("CrashLoopBackOff", ""), restarts=4, last={"exitCode": 3})
    found = EnvironmentObjects(
        deployment(), [stuck], last_words="GREYLAG_MODEL_URL must be an address."
    )
    assert found.crashed == ("demo-api-1", "agentd")
    error = observed(found).error
    assert error is not None
    assert "exit code 3" in error.message
    assert error.message.endswith("GREYLAG_MODEL_URL must be an address.")


def test_what_the_scheduler_says_of_each_pod_is_not_repeated() -> None:
    words = (
        "0/2 nodes are available: 2 node(s) had untolerated taint(s). no new claims to deallocate, "
        "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    )
    error = observed(EnvironmentObjects(deployment(), [pod(unscheduled=words)])).error
    assert error is not None
    assert error.message.endswith("2 node(s) had untolerated taint(s).")


@pytest.mark.parametrize("kind", ["initContainerStatuses", "containerStatuses"])
def test_a_container_that_holds_the_others_up_is_told_of(kind: str) -> None:
    held = pod(running=True)
    held["status"]["containerStatuses"][0]["name"] = "agentd"
    waiting = {"reason": "ImagePullBackOff", "message": "not found"}
    other = {"name": "execd", "image": "of-the-user:1", "state": {"waiting": waiting}}
    held["status"].setdefault(kind, []).append(other)
    error = observed(EnvironmentObjects(deployment(), [held])).error
    assert error is not None
    assert (error.code, "of-the-user:1" in error.message) == ("image_not_found", True)


def test_the_side_of_the_tools_may_run_out_of_memory() -> None:
    held = pod(running=True)
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    other = {"name": "execd", "state": {"running": {}}, "lastState": ended}
    held["status"]["containerStatuses"].append(other)
    error = observed(EnvironmentObjects(deployment(), [held])).error
    assert error is not None
    assert error.code == "out_of_memory"


def test_what_lacks_is_named_once_each() -> None:
    words = "0/2 nodes: 1 Insufficient cpu, 2 Insufficient memory, 1 Insufficient cpu."
    error = observed(EnvironmentObjects(deployment(), [pod(unscheduled=words)])).error
    assert error is not None
    assert "cpu and memory" in error.message


async def removed(server: StatefulServer, cluster: KubernetesCluster) -> None:
    """Remove every object of the project, and return once the caches have none of it."""
    for kind, namespace, name in list(server.things):
        await cluster._api.delete(kind, namespace, name)
    await until(lambda: not cluster._cache._projects, "something is left")


async def test_the_last_object_that_goes_between_a_look_and_the_wait_ends_the_wait() -> None:
    async with asleep() as (server, cluster):
        await cluster.observe(environment(2))
        await removed(server, cluster)
        async with asyncio.timeout(PATIENCE):
            await cluster.changed(environment(2), 10 * PATIENCE)


async def test_what_goes_during_a_look_ends_the_wait_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with asleep(OPTIONS.model_copy(update={"probe": True})) as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)

        async def unanswered(_url: str, _failed: int) -> bool:
            await removed(server, cluster)
            return False

        monkeypatch.setattr(cluster._probe, "_ask", unanswered)
        await cluster.observe(environment(2))
        async with asyncio.timeout(PATIENCE):
            await cluster.changed(environment(2), 10 * PATIENCE)
        assert cluster._observer._known == {}


async def test_of_an_edited_policy_nothing_is_kept_once_its_projects_are_gone() -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        key = next(one for one in server.things if one[::2] == ("NetworkPolicy", "greylag-agent"))
        edited = json.loads(json.dumps(server.things[key]))
        edited["spec"]["egress"] = [{}]
        server.put(key[0], key[1], edited)
        assert await cluster._informers["NetworkPolicy"].reached(str(server.version), PATIENCE)
        seen = await cluster.observe(environment(2))
        assert seen.error is not None
        assert seen.error.code == "environment_drifted"
        await removed(server, cluster)
        assert cluster._observer._known == {}


def stuck(
    server: StatefulServer, made: dict[str, Any] | None = None, name: str = "demo-api-1"
) -> None:
    """Put a pod beside the Deployment; one that none is given is of an agentd that ends again and
    again.
    """
    of = server_deployment(server)
    namespace = of["metadata"]["namespace"]
    server.put("Deployment", namespace, {**of, "status": {"observedGeneration": 1}})
    made = made or pod(waiting=("CrashLoopBackOff", ""), restarts=4, last={"exitCode": 3})
    meta = {**of["spec"]["template"]["metadata"], "name": name, "namespace": namespace}
    server.put("Pod", namespace, {**made, "metadata": meta})


NO_IMAGE = pod(waiting=("ImagePullBackOff", "i/o timeout"))
BESIDE_ONE_THAT_RAN = beside({"state": {"waiting": {"reason": "ErrImagePull", "message": "EOF"}}})
NO_NODE = pod(unscheduled="0/1 nodes are available: 1 Insufficient cpu.")
NO_NODE["status"]["containerStatuses"] = []


@pytest.mark.parametrize("kept", [NO_IMAGE, BESIDE_ONE_THAT_RAN, NO_NODE])
async def test_what_was_kept_from_its_start_is_started_anew_once_for_each_new_wish(
    kept: dict[str, Any],
) -> None:
    async with asleep() as (server, before):
        await before.start(environment(2))
        stuck(server, kept)
        mended = OPTIONS.model_copy(update={"image": "goose:mended"})
        async with opened(server, mended) as after:
            await after.observe(environment(2))
            for cluster in (before, after):
                assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
                seen = await cluster.observe(environment(2))
                assert (seen.state, seen.error is None) == (Observed.STARTING, False)
            seen = await after.observe(environment(3))
            assert (seen.state, seen.terminal) == (Observed.FAILED, False)
            await after.start(environment(3))
            template = server_deployment(server)["spec"]["template"]
            assert {one["image"] for one in template["spec"]["containers"]} == {"goose:mended"}
            stuck(server, kept)
            # Whoever has other settings leaves it as the wish has found it.
            version = str(server.version)
            for cluster in (before, after):
                assert await cluster._informers["Pod"].reached(version, PATIENCE)
                assert (await cluster.observe(environment(3))).state is Observed.STARTING


@pytest.mark.parametrize(
    "begun",
    [
        pod(running=True),
        pod(waiting=("ImagePullBackOff", "EOF"), restarts=1),
        pod(waiting=("ContainerCreating", "")),
        pod(waiting=("ImagePullBackOff", "EOF"), last={"exitCode": 0}),
    ],
)
async def test_what_has_run_or_is_on_its_way_is_not_started_anew_for_a_new_wish(
    begun: dict[str, Any],
) -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        stuck(server, begun)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        assert (await cluster.observe(environment(3))).state is Observed.STARTING


async def test_what_takes_the_place_of_a_lost_pod_is_not_started_anew_for_why_that_was_lost() -> (
    None
):
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        pods = cluster._informers["Pod"]
        assert await pods.reached(str(server.version), PATIENCE)
        assert (await cluster.observe(environment(3))).state is Observed.READY
        drained = lost(disrupted="EvictionByEvictionAPI")
        (key,) = [key for key in server.things if key[0] == "Pod"]
        drained["metadata"] = {**server.things[key]["metadata"], **drained["metadata"]}
        server.put("Pod", key[1], drained)
        assert await pods.reached(str(server.version), PATIENCE)
        await cluster.observe(environment(3))
        stuck(server, pod(waiting=("ContainerCreating", "")), "demo-api-2")
        assert await pods.reached(str(server.version), PATIENCE)
        seen = await cluster.observe(environment(3))
        assert seen.error is not None
        assert (seen.state, seen.error.code) == (Observed.STARTING, "drained")


@pytest.mark.parametrize("refusal", [(403, "Forbidden"), (503, "Busy")])
async def test_events_and_logs_that_are_refused_cost_their_words_and_not_the_observation(
    refusal: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "EXPLAINING_SECONDS", 0.1)
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        stuck(server)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        server.refuse(*refusal, watches=False)
        seen = await cluster.observe(environment(2))
        assert seen.error is not None
        assert (seen.state, seen.error.code) == (Observed.FAILED, "crash_loop")


@pytest.mark.parametrize("begins", [False, True])
async def test_a_log_that_does_not_come_costs_what_lacks_of_it_and_not_the_observation(
    monkeypatch: pytest.MonkeyPatch, *, begins: bool
) -> None:
    monkeypatch.setattr(observation, "EXPLAINING_SECONDS", 1.0 if begins else 0.1)

    async def hang(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if begins:
            await response.prepare(request)
            await response.write(b"Its beginning.\n")
        await asyncio.sleep(PATIENCE)
        return response

    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        stuck(server)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        server.log = hang
        async with asyncio.timeout(TRY_SECONDS / 2):
            seen = await cluster.observe(environment(2))
        assert seen.error is not None
        assert (seen.state, seen.error.code) == (Observed.FAILED, "crash_loop")
        assert ("Its beginning." in seen.error.message) == begins


READY_ALONE = pod(ready=True)


@pytest.mark.parametrize(
    ("kept", "bound", "read"),
    [
        (NO_IMAGE, True, ["Pod"]),
        (NO_NODE, True, []),
        (NO_NODE, False, ["PersistentVolumeClaim"]),
        (READY_ALONE, True, ["Service"]),
    ],
)
async def test_of_what_waits_the_events_are_read_that_may_say_why_and_no_others(
    kept: dict[str, Any], read: list[str], monkeypatch: pytest.MonkeyPatch, *, bound: bool
) -> None:
    monkeypatch.setattr(observation, "QUIET_SECONDS", 0)
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        key = next(one for one in server.things if one[0] == "PersistentVolumeClaim")
        claim = server.things[key]
        volume = {"volumeName": "pv-1"} if bound else {}
        server.put(key[0], key[1], {**claim, "spec": {**claim["spec"], **volume}})
        assert await cluster._informers[key[0]].reached(str(server.version), PATIENCE)
        stuck(server, kept)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        monkeypatch.setattr(observation, "endpoint_of", lambda *_: None)
        listed, asked = cluster._api.list, list[str]()

        async def list_(kind: str, *of: Any, **more: Any) -> Any:
            if kind == "Event":
                asked.append(more["fields"].partition("=")[2].partition("/")[0])
            return await listed(kind, *of, **more)

        monkeypatch.setattr(cluster._api, "list", list_)
        assert (await cluster.observe(environment(2))).state is Observed.STARTING
        assert asked == read


async def test_events_that_do_not_come_leave_a_log_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observation, "EXPLAINING_SECONDS", 1.0)

    async def words(_request: web.Request) -> web.StreamResponse:
        return web.Response(text="Its words.\n")

    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        stuck(server)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        server.log, listed = words, cluster._api.list

        async def hang(kind: str, *of: Any, **more: Any) -> Any:
            if kind == "Event":
                await asyncio.sleep(PATIENCE)
            return await listed(kind, *of, **more)

        monkeypatch.setattr(cluster._api, "list", hang)
        seen = await cluster.observe(environment(2))
        assert seen.error is not None
        assert "Its words." in seen.error.message


async def test_a_long_record_of_nested_errors_is_told_in_words() -> None:
    script = """
import asyncio, structlog
from greylag.common.logs import configure_logging

async def fail(depth: int) -> None:
    if not depth:
        raise OSError("no room")
    async with asyncio.TaskGroup() as group:
        group.create_task(fail(depth - 1))

configure_logging("json", "info")
try:
    asyncio.run(fail(8))
except* OSError:
    structlog.get_logger("greylag.agentd").exception("crashed")
"""
    ran = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stderr=asyncio.subprocess.PIPE
    )
    _, record = await ran.communicate()
    assert record.startswith(b"{")
    assert len(record) > 4 * observation._LONGEST_WORDS

    async def crashed(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=record)

    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        stuck(server)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        server.log = crashed
        seen = await cluster.observe(environment(2))
        assert seen.error is not None
        assert seen.error.message.endswith("crashed: OSError: no room")


@pytest.mark.parametrize("late", [False, True])
async def test_what_explains_takes_half_of_a_worker_s_step_whatever_its_lease(
    monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    pace = Pace(lease=4, resync=60, activation_timeout=60)

    async def hang(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(PATIENCE)
        return web.Response()

    async with asleep(lease=pace.lease) as (server, cluster):
        await cluster.start(environment(2))
        stuck(server)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        server.log, synced = hang, cluster._informers.synced

        async def slowly(seconds: float) -> None:
            await asyncio.sleep(pace.step / 4)
            await synced(seconds)

        if late:
            monkeypatch.setattr(cluster._informers, "synced", slowly)
        began = asyncio.get_running_loop().time()
        seen = await cluster.observe(environment(2))
        took = asyncio.get_running_loop().time() - began
        assert pace.step / 2 <= took < pace.step
        assert seen.error is not None
        assert (seen.state, seen.error.code) == (Observed.FAILED, "crash_loop")


LABEL = "greylag.dev/project"


async def labelled(
    server: StatefulServer, cluster: KubernetesCluster, kind: str, project: str | None
) -> None:
    """Give an object another project's label, or none, and return once the caches know."""
    key = next(one for one in server.things if one[0] == kind)
    meta = server.things[key]["metadata"]
    labels = {name: value for name, value in meta["labels"].items() if name != LABEL}
    labels |= {} if project is None else {LABEL: project}
    server.put(kind, key[1], {**server.things[key], "metadata": {**meta, "labels": labels}})
    assert await cluster._informers[kind].reached(str(server.version), PATIENCE)


@pytest.mark.parametrize("project", [None, "other"])
async def test_a_pod_whose_label_somebody_takes_off_or_changes_is_not_the_project_s_any_more(
    project: str | None,
) -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        assert (await cluster.observe(environment(2))).state is Observed.READY
        heard = cluster.changes()
        hearing = asyncio.ensure_future(anext(heard))
        await labelled(server, cluster, "Pod", project)
        async with asyncio.timeout(PATIENCE):
            assert await hearing == environment(2).ref
        assert (await cluster.observe(environment(2))).state is Observed.STARTING
        assert cluster._cache.pods((environment(2).names.namespace, "demo")) == []


@pytest.mark.parametrize("waited_for", [True, False])
async def test_a_pod_that_gets_ready_is_told_of_unless_somebody_here_waits_for_it(
    *, waited_for: bool
) -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        key, ready = next(one for one in server.things.items() if one[0][0] == "Pod")
        server.put(*key[:2], {**ready, "status": {"phase": "Running"}})
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        assert (await cluster.observe(environment(2))).state is Observed.STARTING
        hearing = asyncio.ensure_future(anext(cluster.changes()))
        waiting = asyncio.ensure_future(cluster.changed(environment(2), PATIENCE))
        await asyncio.sleep(0)
        if not waited_for:
            waiting.cancel()
            await asyncio.wait([waiting])
        server.put(*key[:2], ready)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        await asyncio.sleep(0)
        assert hearing.done() is not waited_for
        hearing.cancel()
        await asyncio.wait([hearing, waiting])


@pytest.mark.parametrize("relabelled", [True, False])
@pytest.mark.parametrize("starts", [True, False])
async def test_a_pod_that_runs_on_without_its_deployment_is_told_of_and_taken_over(
    monkeypatch: pytest.MonkeyPatch, *, relabelled: bool, starts: bool
) -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        key, made = next(one for one in server.things.items() if one[0][0] == "Deployment")
        if relabelled:
            gone = {**made, "metadata": {**made["metadata"], "labels": {}}}
            server.forget(key, gone)
        else:
            await cluster._api.delete(*key)
        assert await cluster._informers["Deployment"].reached(str(server.version), PATIENCE)
        assert (await cluster.observe(environment(2))).state is Observed.STOPPING
        monkeypatch.setattr(observation, "OWNERLESS_SECONDS", 0)
        monkeypatch.setattr(observation, "QUIET_SECONDS", 0)
        seen = await cluster.observe(environment(2))
        assert seen.error is not None
        assert (seen.state, seen.error.code) == (Observed.FAILED, "environment_drifted")
        await (cluster.start if starts else cluster.stop)(environment(2))
        now = server_deployment(server)
        assert now["spec"]["replicas"] == int(starts)
        assert now["metadata"]["labels"][LABEL] == "demo"
        assert (await cluster.observe(environment(2))).state is not Observed.FAILED


@pytest.mark.parametrize("pod_is_gone", [True, False])
async def test_what_ends_with_its_namespace_says_that(*, pod_is_gone: bool) -> None:
    async with asleep() as (server, cluster):
        await cluster.start(environment(2))
        running(server)
        assert await cluster._informers["Pod"].reached(str(server.version), PATIENCE)
        assert (await cluster.observe(environment(2))).error is None
        if pod_is_gone:
            server.forget(next(key for key in server.things if key[0] == "Pod"))
        key, there = next(one for one in server.things.items() if one[0][0] == "Namespace")
        going = {**there["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
        server.put(*key[:2], {**there, "metadata": going})
        assert await cluster._informers["Namespace"].reached(str(server.version), PATIENCE)
        seen = await cluster.observe(environment(2))
        assert seen.state is (Observed.STARTING if pod_is_gone else Observed.READY)
        assert seen.error is not None
        assert seen.error.code == "namespace_terminating"


@pytest.mark.parametrize("project", [None, "other"])
async def test_nothing_is_kept_of_a_project_whose_objects_lost_their_labels_and_went(
    project: str | None,
) -> None:
    async with asleep() as (server, cluster):
        await cluster.observe(environment(2))
        for kind in ("Deployment", "PersistentVolumeClaim", "Service"):
            await labelled(server, cluster, kind, project)
        assert set(cluster._cache._projects) == (
            {(environment(2).names.namespace, project)} if project else set()
        )
        assert cluster._observer._known == {}
        await labelled(server, cluster, "Deployment", "demo")
        assert list(cluster._cache._deployments[environment(2).names.namespace]) == ["demo"]
        await removed(server, cluster)
        assert cluster._cache._deployments == {}


async def test_a_look_at_objects_without_their_labels_is_not_repeated_at_once() -> None:
    async with asleep() as (server, cluster):
        for kind in ("Deployment", "PersistentVolumeClaim", "Service"):
            await labelled(server, cluster, kind, None)
        for key in [key for key in server.things if key[0] in {"Deployment", "Service"}]:
            await cluster._api.delete(*key)
            assert await cluster._informers[key[0]].reached(str(server.version), PATIENCE)
        await cluster.observe(environment(2))
        waiting = asyncio.ensure_future(cluster.changed(environment(2), 10 * PATIENCE))
        await asyncio.wait([waiting], timeout=0.05)
        assert not waiting.done()
        waiting.cancel()
