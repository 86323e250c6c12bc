"""Each reason why an environment is stuck, provoked on the real cluster, told in its own words."""

import asyncio
import json
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.environments import accepted, reaches
from tests.cluster.real_cluster import POD_PATIENCE, kubectl, open_kubernetes
from tests.contract.cluster_adapters import named_for
from tests.contract.store_adapters import make_project

from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.cluster.kubernetes.options import Template
from greylag.domain.errors import ClusterError, ClusterUnavailableError
from greylag.domain.lifecycle import Observation, Observed
from greylag.domain.project import Project

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOMY = {
    "quota_cpu_requests": "2000",
    "quota_memory_requests": "900Gi",
    "quota_cpu_limits": "2000",
    "quota_memory_limits": "900Gi",
}


async def told(cluster: KubernetesCluster, project: Project, code: str) -> Observation:
    """Return the first observation whose error has this code."""
    give_up = asyncio.get_running_loop().time() + POD_PATIENCE
    while True:
        seen = await cluster.observe(project.environment)
        if seen.error is not None and seen.error.code == code:
            return seen
        assert asyncio.get_running_loop().time() < give_up, f"{code} was not told, but {seen}"
        await cluster.changed(project.environment, timeout=1)


async def refusal(cluster: KubernetesCluster, project: Project) -> ClusterError:
    """Return what a start is refused with."""
    with pytest.raises(ClusterError) as refused:
        await cluster.start(project.environment)
    return refused.value


def template(**shape: Any) -> dict[str, Any]:
    """Return the option that makes this the shape of every environment."""
    return {"templates": {"default": Template(**shape)}, **ROOMY}


STUCK: dict[str, dict[str, Any]] = {
    "image_not_found": {"image": "goose-api-server:missing", "image_pull_policy": "Never"},
    "image_pull_failed": {"image": "registry.invalid/goose:1"},
    "pull_secret_missing": {"image": "registry.invalid/goose:1", "image_pull_secret": "absent"},
    "quota_exceeded": {"quota_cpu_requests": "100m"},
    "unschedulable": template(cpu_request="900", cpu_limit="900"),
    "volume_not_bound": {"storage_class": "no-such-class"},
    "probe_failing": {"goose": "/no/such/program"},
}
FINAL = frozenset({"image_not_found", "pull_secret_missing", "quota_exceeded"})


@pytest.mark.parametrize("code", STUCK)
async def test_a_stuck_environment_says_why(code: str) -> None:
    async with open_kubernetes(**{"goose": "scripted", **STUCK[code]}) as cluster:
        project = named_for(cluster, make_project())
        await cluster.start(project.environment)
        seen = await told(cluster, project, code)
        assert seen.state is (Observed.FAILED if code in FINAL else Observed.STARTING)
        assert seen.error is not None
        assert seen.error.hint
        if code == "unschedulable":
            assert "cpu" in seen.error.message
        await cluster.stop(project.environment)
        await reaches(cluster, project, Observed.STOPPED)


async def test_an_environment_that_crashes_tells_its_last_words() -> None:
    wrong = template(environment={"GREYLAG_MODEL_URL": "nowhere"})
    async with open_kubernetes(goose="scripted", **wrong) as cluster:
        project = named_for(cluster, make_project())
        await cluster.start(project.environment)
        seen = await told(cluster, project, "crash_loop")
        assert seen.state is Observed.FAILED
        assert seen.error is not None
        assert "GREYLAG_MODEL_URL" in seen.error.message


async def test_a_failed_environment_starts_anew_when_what_stopped_it_is_mended() -> None:
    async with open_kubernetes(goose="scripted", quota_cpu_requests="100m") as small:
        project = named_for(small, make_project())
        await small.start(project.environment)
        assert (await told(small, project, "quota_exceeded")).terminal
        wanted_again = replace(project, generation=project.generation + 1)
        assert not (await small.observe(wanted_again.environment)).terminal
        prefix = small.namespace_prefix
        async with open_kubernetes(
            goose="scripted", namespace_prefix=prefix, quota_cpu_requests="4"
        ) as mended:
            await mended.start(wanted_again.environment)
            await reaches(mended, wanted_again, Observed.READY)


async def test_a_namespace_that_is_being_removed_is_waited_for() -> None:
    async with open_kubernetes(goose="scripted") as cluster:
        project = named_for(cluster, make_project())
        await cluster.prepare(project.environment)
        namespace = project.names.namespace
        held = ("configmap", "holder", "-n", namespace)
        kubectl("create", *held)
        finalizer = json.dumps({"metadata": {"finalizers": ["example.com/held"]}})
        kubectl("patch", *held, "--type=merge", "-p", finalizer)
        kubectl("delete", "namespace", namespace, "--wait=false")
        await reaches(cluster, project, Observed.ABSENT)
        refused = await refusal(cluster, project)
        assert (refused.info.code, refused.terminal) == ("namespace_terminating", False)
        assert "example.com/held" in refused.info.message
        free = json.dumps({"metadata": {"finalizers": None}})
        kubectl("patch", *held, "--type=merge", "-p", free)
        await accepted(cluster.start, project)
        await reaches(cluster, project, Observed.READY)


async def test_a_namespace_of_others_is_not_touched() -> None:
    async with open_kubernetes(goose="scripted") as cluster:
        project = named_for(cluster, make_project())
        kubectl("create", "namespace", project.names.namespace)
        refused = await refusal(cluster, project)
        assert (refused.info.code, refused.terminal) == ("namespace_foreign", True)


async def test_an_admission_policy_that_refuses_is_quoted() -> None:
    name = f"test-{secrets.token_hex(3)}"
    async with open_kubernetes(goose="scripted") as cluster:
        project = named_for(cluster, make_project())
        rules = {
            "apiGroups": ["apps"],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["deployments"],
        }
        policy = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [rules]},
                "validations": [{"expression": "false", "message": "not on Tuesdays"}],
            },
        }
        binding = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {
                "policyName": name,
                "validationActions": ["Deny"],
                "matchResources": {
                    "namespaceSelector": {
                        "matchLabels": {"kubernetes.io/metadata.name": project.names.namespace}
                    }
                },
            },
        }
        try:
            for thing in (policy, binding):
                assert kubectl("apply", "-f", "-", input=json.dumps(thing)).returncode == 0
            await _is_enforced(cluster, project)
        finally:
            for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
                kubectl("delete", kind, name)


async def _is_enforced(cluster: KubernetesCluster, project: Project) -> None:
    """A policy takes some seconds till it is enforced, so what came through is removed again."""
    give_up = asyncio.get_running_loop().time() + POD_PATIENCE
    while (refused := await _refused_preparation(cluster, project)) is None:
        assert asyncio.get_running_loop().time() < give_up, "the policy is not enforced"
        deployment = ("deployment", project.names.deployment, "-n", project.names.namespace)
        kubectl("delete", *deployment, "--ignore-not-found")
        await asyncio.sleep(0.3)
    assert "not on Tuesdays" in refused.info.message
    assert refused.terminal


async def _refused_preparation(cluster: KubernetesCluster, project: Project) -> ClusterError | None:
    try:
        await cluster.prepare(project.environment)
    except ClusterError as error:
        return error if error.info.code == "webhook_refused" else None
    return None


async def test_an_account_without_rights_is_told_so(tmp_path: Path) -> None:
    account = f"test-{secrets.token_hex(3)}"
    kubectl("create", "serviceaccount", account, "-n", "default")
    try:
        token = kubectl("create", "token", account, "-n", "default").stdout.strip()
        admin = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json").stdout)
        admin["users"][0]["user"] = {"token": token}
        file = tmp_path / "kubeconfig"
        file.write_text(json.dumps(admin))
        async with open_kubernetes(kubeconfig=file) as cluster:
            project = named_for(cluster, make_project())
            with pytest.raises(ClusterError) as refused:
                await cluster.observe(project.environment)
            assert "forbidden" in refused.value.info.message
            assert account in refused.value.info.message
    finally:
        kubectl("delete", "serviceaccount", account, "-n", "default")


async def test_an_api_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    clusters = [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}]
    context = {"cluster": "c", "user": "u"}
    config = {
        "clusters": clusters,
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": context}],
        "current-context": "x",
    }
    file.write_text(json.dumps(config))
    async with open_kubernetes(kubeconfig=file) as cluster:
        with pytest.raises(ClusterUnavailableError) as refused:
            await cluster.observe(make_project().environment)
        assert "127.0.0.1:9" in refused.value.info.message
