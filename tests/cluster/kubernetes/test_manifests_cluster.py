"""The real API server takes every object as it stands."""

import json
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from subprocess import CompletedProcess
from typing import Any

import pytest

from greylag.cluster.kubernetes.identity import FIELD_MANAGER
from greylag.cluster.kubernetes.isolation import shared_objects
from greylag.cluster.kubernetes.manifests import project_objects
from greylag.cluster.kubernetes.options import Options, Template, Toleration
from greylag.domain.names import environment_names
from greylag.domain.project import Project

Kubectl = Callable[..., CompletedProcess[str]]
pytestmark = pytest.mark.cluster

VARIABLES = {"GREYLAG_MODEL_KEY": "a-key"}
NOW = datetime(2026, 1, 2, tzinfo=UTC)
SHAPES = {
    "plain": Options(
        image="goose-api-server:1",
        platform_namespace="greylag",
        service_type="LoadBalancer",
        shared_cpu=True,
    ),
    "hosts": Options(
        image="goose-api-server:1",
        service_type="ClusterIP",
        ingress_base_domain="agents.example.org",
        ingress_tls=True,
        ingress_namespace="ingress",
        platform_namespace="greylag",
        platform_labels={"app.kubernetes.io/name": "greylag"},
        egress_cidrs=("0.0.0.0/0", "::/0"),
        cluster_cidrs=("10.91.0.0/16", "fd00::/8"),
        storage_class="standard",
        node_selector={"pool": "agents"},
        tolerations=(Toleration(key="agents", operator="Exists", effect="NoSchedule"),),
        image_pull_secret="registry",
        templates={"default": Template(image="theirs:1")},
    ),
    "paths": Options(
        image="goose-api-server:1",
        platform_cidrs=("203.0.113.0/24",),
        ingress_base_domain="example.org",
        ingress_routing="path",
        service_type="LoadBalancer",
    ),
}


@pytest.fixture(scope="module")
def project(kubectl: Kubectl) -> Iterator[Project]:
    """A project whose user's namespace really stands, as the rest of a dry run needs it."""
    user = f"Jürg {secrets.token_hex(4)}"
    project = Project(
        id="0123456789abcdef01234567",
        user_id=user,
        project_id="Größe",
        name="A name",
        names=environment_names(user, "Größe", prefix="test-manifests-"),
        created_at=NOW,
        updated_at=NOW,
    )
    namespace = shared_objects(project.environment, SHAPES["plain"])[0]
    try:
        done = apply(kubectl, [namespace])
        assert done.returncode == 0, done.stderr
        yield project
    finally:
        kubectl("delete", "namespace", project.names.namespace, "--wait=false")


def apply(kubectl: Kubectl, objects: list[dict[str, Any]], *options: str) -> CompletedProcess[str]:
    together = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    command = ("apply", "--server-side", f"--field-manager={FIELD_MANAGER}", *options, "-f", "-")
    return kubectl(*command, input=together)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_server_side_dry_run_takes_all_without_a_warning(
    kubectl: Kubectl, project: Project, shape: str
) -> None:
    options = SHAPES[shape]
    own = project_objects(project.environment, options, VARIABLES, token="a-token", replicas=1)
    objects = [*shared_objects(project.environment, options), *own]

    done = apply(kubectl, objects, "--dry-run=server", "--validate=strict")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == len(objects)


def test_the_namespace_would_warn_of_a_pod_that_is_not_restricted(
    kubectl: Kubectl, project: Project
) -> None:
    own = project_objects(project.environment, SHAPES["plain"], {}, token="a-token", replicas=1)
    deployment = next(each for each in own if each["kind"] == "Deployment")
    del deployment["spec"]["template"]["spec"]["containers"][1]["securityContext"]

    done = apply(kubectl, [deployment], "--dry-run=server")

    assert "would violate PodSecurity" in done.stderr


def test_a_pod_that_has_ended_takes_no_room_in_the_quota(
    kubectl: Kubectl, project: Project
) -> None:
    options = SHAPES["plain"].model_copy(update={"quota_objects": 1})
    shared = shared_objects(project.environment, options)
    (quota,) = (each for each in shared if each["kind"] == "ResourceQuota")
    space = ("-n", project.names.namespace)
    name = f"resourcequota/{quota['metadata']['name']}"

    def used(pods: int) -> bool:
        state = f"--for=jsonpath={{.status.used.pods}}={pods}"
        return kubectl(*space, "wait", name, state, "--timeout=30s").returncode == 0

    assert apply(kubectl, [quota]).returncode == 0
    try:
        assert used(0)
        assert apply(kubectl, [pod(project, "first")]).returncode == 0
        assert "exceeded quota" in apply(kubectl, [pod(project, "second")]).stderr
        evicted = json.dumps({"status": {"phase": "Failed", "reason": "Evicted"}})
        kubectl(*space, "patch", "pod/first", "--subresource=status", "--type=merge", "-p", evicted)
        assert used(0)
        assert apply(kubectl, [pod(project, "second")]).returncode == 0
    finally:
        kubectl(*space, "delete", name, "pod/first", "pod/second", "--wait=false")


def pod(project: Project, name: str) -> dict[str, Any]:
    """Return a pod like an environment's, which no node takes."""
    own = project_objects(project.environment, SHAPES["plain"], {}, token="a-token", replicas=1)
    (deployment,) = (each for each in own if each["kind"] == "Deployment")
    spec = {**deployment["spec"]["template"]["spec"], "nodeSelector": {"no": "node"}}
    del spec["serviceAccountName"]
    metadata = {"namespace": project.names.namespace, "name": name}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
