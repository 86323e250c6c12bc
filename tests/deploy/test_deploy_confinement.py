"""The policy that confines Greylag's accounts, against a real API server.

Both accounts are given every right of the cluster here, so that what is refused is refused by the
policy alone; the same is taken from somebody else, so that it is not refused for another reason.
"""

import json
import secrets
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from tests.cluster import real_cluster
from tests.cluster.real_cluster import kubectl
from tests.contract.store_adapters import make_project
from tests.deploy.manifests import ACCESS, CONFINEMENT, Object, confined, kustomize, overlay

from greylag.cluster.kubernetes.isolation import shared_objects
from greylag.cluster.kubernetes.manifests import project_objects
from greylag.cluster.kubernetes.options import Options
from greylag.domain.names import environment_names
from greylag.domain.project import Environment

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

WEB, WORKER = "web", "worker"
DENIED = "denied request"


@dataclass
class Confined:
    """Accounts with every right, under the policy, and a namespace of Greylag's."""

    name: str
    own: list[Object]
    """What the worker makes of one project, its namespace first."""

    @property
    def namespace(self) -> str:
        """The user's namespace."""
        return str(self.own[0]["metadata"]["name"])

    def does(self, who: str | None, thing: Object, verb: str = "create") -> str:
        """Return what the API server says to a dry run; ``who``: an account, None: the operator."""
        account = f"system:serviceaccount:{self.name}:greylag-{who}-{self.name}"
        words = ["--as", account] if who else []
        dry = [] if verb == "delete" and who else ["--dry-run=server"]
        done = kubectl(verb, *words, *dry, "--filename", "-", input=json.dumps(thing))
        return done.stderr if done.returncode else ""

    def of_kind(self, kind: str) -> Object:
        """Return a copy of the project's object of this kind, under a name of its own."""
        found = deepcopy(next(thing for thing in self.own if thing["kind"] == kind))
        if kind != "Namespace":
            found["metadata"]["name"] = f"x-{secrets.token_hex(3)}"
        return found


@pytest.fixture(scope="module")
def confinement(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confined]:
    name = f"confined-{secrets.token_hex(3)}"
    folder = tmp_path_factory.mktemp(name)
    prefix = f"test-{name}-u-"
    policy = overlay(
        folder / "policy", CONFINEMENT, nameSuffix=f"-{name}", patches=confined(f"-{name}", prefix)
    )
    access = overlay(folder / "access", ACCESS, namespace=name, nameSuffix=f"-{name}")
    objects = [*kustomize(access), *kustomize(policy), _every_right(name)]
    written = folder / "objects.yaml"
    written.write_text(yaml.safe_dump_all([one for one in objects if one["kind"] != "Namespace"]))
    one = Confined(name, _project(prefix))
    foreign = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"{prefix}foreign"}}
    try:
        _must("create", "namespace", name)
        _must("apply", "--filename", str(written))
        _must("create", "--filename", "-", input=json.dumps(one.own[0]))
        _must("create", "--filename", "-", input=json.dumps(foreign))
        _in_force(one)
        yield one
    finally:
        kubectl("delete", "--wait=false", "--filename", str(written))
        real_cluster.remove_namespaces(prefix)
        kubectl("delete", "namespace", name, "--wait=false")


def _project(prefix: str) -> list[Object]:
    project = make_project()
    names = environment_names(project.user_id, project.project_id, prefix=prefix)
    usual = project.environment
    environment = Environment(usual.id, usual.ref, names, usual.fence)
    options = Options(image="goose:1", platform_namespace="greylag", ingress_base_domain="x.test")
    own = project_objects(environment, options, {}, token="a-token", replicas=1)
    return [*shared_objects(environment, options), *own]


def _every_right(name: str) -> Object:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"every-right-{name}"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "cluster-admin",
        },
        "subjects": [
            {"kind": "ServiceAccount", "name": f"greylag-{who}-{name}", "namespace": name}
            for who in (WEB, WORKER)
        ],
    }


def _in_force(one: Confined) -> None:
    """Wait until the API server knows the policy, which takes it a moment."""
    probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"}}
    probe["metadata"] = {"name": "probe", "namespace": "kube-system"}
    for _ in range(300):
        if DENIED in one.does(WORKER, probe):
            return
    pytest.fail("the policy does not come into force")


def _elsewhere(kind: str, namespace: str) -> Callable[[Confined], Object]:
    def make(one: Confined) -> Object:
        thing = one.of_kind(kind)
        thing["metadata"]["namespace"] = namespace.format(one.namespace.rpartition("-u-")[0] + "-u")
        return thing

    return make


def _changed(kind: str, change: Callable[[Any], object]) -> Callable[[Confined], Object]:
    def make(one: Confined) -> Object:
        thing = one.of_kind(kind)
        change(thing)
        return thing

    return make


def _of_pod(change: Callable[[Any], object]) -> Callable[[Confined], Object]:
    def on_pod(thing: Any) -> None:
        change(thing["spec"]["template"]["spec"])

    return _changed("Deployment", on_pod)


def _other(version: str, kind: str, *, inside: bool = True, **fields: Any) -> Any:
    def make(one: Confined) -> Object:
        metadata = {"name": f"x-{secrets.token_hex(3)}"}
        if inside:
            metadata["namespace"] = one.namespace
        return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}

    return make


def _a_pod(one: Confined) -> Object:
    thing = one.of_kind("Deployment")
    spec = {**thing["spec"]["template"]["spec"], "serviceAccountName": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": thing["metadata"], "spec": spec}


RBAC = "rbac.authorization.k8s.io"
ADMIN = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"}
SOMEBODY = [{"apiGroup": RBAC, "kind": "User", "name": "mallory"}]
ROOT = {"hostPath": {"path": "/"}, "name": "root"}
OWN = "Greylag keeps to its own namespaces"
LABELLED = "labelled as its own, and enforces Pod Security restricted"
NOWHERE = "leads nowhere but to its environment"
NODE = "no account, and nothing of its node"
PRIVILEGES = "A container of Greylag has no privileges"
ESCAPES: dict[tuple[str, str], Callable[[Confined], Object]] = {
    (OWN, "a Deployment in kube-system"): _elsewhere("Deployment", "kube-system"),
    (OWN, "a Deployment in default"): _elsewhere("Deployment", "default"),
    (OWN, "a Secret in kube-system"): _elsewhere("Secret", "kube-system"),
    (OWN, "a ConfigMap in kube-system"): _elsewhere("ConfigMap", "kube-system"),
    (OWN, "a Secret in a namespace without our label"): _elsewhere("Secret", "{}-foreign"),
    (OWN, "a Deployment in a namespace without our label"): _elsewhere("Deployment", "{}-foreign"),
    ("Greylag makes no rolebindings", "a RoleBinding"): _other(
        f"{RBAC}/v1", "RoleBinding", roleRef=ADMIN, subjects=SOMEBODY
    ),
    ("Greylag makes no clusterrolebindings", "a ClusterRoleBinding"): _other(
        f"{RBAC}/v1", "ClusterRoleBinding", inside=False, roleRef=ADMIN, subjects=SOMEBODY
    ),
    ("Greylag makes no pods", "a Pod"): _a_pod,
    (OWN, "a namespace of another name"): _changed(
        "Namespace", lambda thing: thing["metadata"].update(name="another-name")
    ),
    (LABELLED, "a namespace without our label"): _changed(
        "Namespace",
        lambda thing: thing["metadata"].update(name=f"{thing['metadata']['name']}-2", labels={}),
    ),
    (LABELLED, "a privileged namespace"): _changed(
        "Namespace",
        lambda thing: (
            thing["metadata"].update(name=f"{thing['metadata']['name']}-2"),
            thing["metadata"]["labels"].update(
                {"pod-security.kubernetes.io/enforce": "privileged"}
            ),
        ),
    ),
    (LABELLED, "a namespace of Pod Security as it once was"): _changed(
        "Namespace",
        lambda thing: (
            thing["metadata"].update(name=f"{thing['metadata']['name']}-2"),
            thing["metadata"]["labels"].update(
                {"pod-security.kubernetes.io/enforce-version": "v1.0"}
            ),
        ),
    ),
    ("no tokens of accounts", "a token of an account"): _changed(
        "Secret",
        lambda thing: (
            thing.update(type="kubernetes.io/service-account-token"),
            thing["metadata"]["annotations"].update(
                {"kubernetes.io/service-account.name": "greylag-environment"}
            ),
        ),
    ),
    (NOWHERE, "a Service with an outer address"): _changed(
        "Service", lambda thing: thing["spec"].update(externalIPs=["203.0.113.9"])
    ),
    (NOWHERE, "a Service by another name"): _changed(
        "Service",
        lambda thing: thing["spec"].update(type="ExternalName", externalName="example.org"),
    ),
    (NODE, "a pod on the host's network"): _of_pod(lambda pod: pod.update(hostNetwork=True)),
    (NODE, "a pod among the host's processes"): _of_pod(lambda pod: pod.update(hostPID=True)),
    (NODE, "a pod whose containers see each other"): _of_pod(
        lambda pod: pod.update(shareProcessNamespace=True)
    ),
    (NODE, "a pod with the host's files"): _of_pod(lambda pod: pod["volumes"].append(ROOT)),
    (NODE, "a pod with an account's token"): _of_pod(
        lambda pod: pod.update(automountServiceAccountToken=True)
    ),
    (NODE, "a pod of another account"): _of_pod(
        lambda pod: pod.update(serviceAccountName="default")
    ),
    (NODE, "a pod on a chosen node"): _of_pod(lambda pod: pod.update(nodeName="node-1")),
    (PRIVILEGES, "a privileged container"): _of_pod(
        lambda pod: pod["containers"][0].update(securityContext={"privileged": True})
    ),
    (PRIVILEGES, "a privileged init container"): _of_pod(
        lambda pod: pod.update(
            initContainers=[
                {"name": "x", "image": "x", "securityContext": {"privileged": True}},
            ]
        )
    ),
    (PRIVILEGES, "a container with capabilities"): _of_pod(
        lambda pod: pod["containers"][0]["securityContext"]["capabilities"].update(
            add=["SYS_ADMIN"]
        )
    ),
    (PRIVILEGES, "a container as root"): _of_pod(
        lambda pod: pod["containers"][0]["securityContext"].update(runAsNonRoot=False)
    ),
    (PRIVILEGES, "a port of the node"): _of_pod(
        lambda pod: pod["containers"][0]["ports"][0].update(hostPort=3001)
    ),
}


@pytest.mark.parametrize(("words", "escape"), ESCAPES)
def test_an_escape_is_refused_to_both_accounts_and_to_them_alone(
    confinement: Confined, words: str, escape: str
) -> None:
    thing = ESCAPES[words, escape](confinement)

    assert words in confinement.does(WORKER, thing)
    assert "Greylag's web changes nothing" in confinement.does(WEB, thing)
    assert confinement.does(None, thing) == ""


def test_the_worker_makes_all_that_an_environment_is_made_of_and_the_web_nothing(
    confinement: Confined,
) -> None:
    for thing in confinement.own[1:]:
        assert confinement.does(WORKER, thing) == "", thing["kind"]
        assert "Greylag's web changes nothing" in confinement.does(WEB, thing), thing["kind"]


def test_a_foreign_namespace_is_neither_taken_over_nor_removed(confinement: Confined) -> None:
    foreign = confinement.of_kind("Namespace")
    foreign["metadata"]["name"] = confinement.namespace.rpartition("-u-")[0] + "-u-foreign"

    assert "takes no namespace over" in confinement.does(WORKER, foreign, "apply")
    assert "takes no namespace over" in confinement.does(WORKER, foreign, "delete")
    foreign["metadata"]["name"] = confinement.name
    assert OWN in confinement.does(WORKER, foreign, "delete")


def test_its_own_namespace_stays_restricted_and_ours(confinement: Confined) -> None:
    for label in ("pod-security.kubernetes.io/enforce", "app.kubernetes.io/managed-by"):
        thing = confinement.of_kind("Namespace")
        thing["metadata"]["labels"][label] = "baseline"
        assert LABELLED in confinement.does(WORKER, thing, "apply")
        assert confinement.does(None, thing, "apply") == ""


def _must(*arguments: str, **options: Any) -> str:
    done = kubectl(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout
