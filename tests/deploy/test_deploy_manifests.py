"""What Greylag's own manifests say, before they are installed anywhere."""

import json
import os
import re
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from tests.cluster import real_cluster
from tests.deploy.manifests import (
    ACCESS,
    BASE,
    CHART,
    EXAMPLE,
    METRICS,
    Object,
    helm,
    kustomize,
    of_kind,
    overlay,
)

from greylag import __version__
from greylag.cluster.kubernetes.identity import MANAGED_BY, MANAGED_BY_LABEL
from greylag.cluster.kubernetes.options import OptionsSettings
from greylag.common.settings import variable_of
from greylag.config import Settings
from greylag.programs import FINISH_SECONDS

pytestmark = pytest.mark.cluster

HELMS_OWN = {"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart"}
KINDS = {
    *("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "Deployment", "Service"),
    *("PodDisruptionBudget", "NetworkPolicy"),
    *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
}


def _plain(value: Any) -> Any:
    """Return a part of an object without what Helm and Kustomize add in their own ways."""
    if isinstance(value, dict):
        dropped = {key for key in value if key in HELMS_OWN or key.startswith("checksum/")}
        kept = {key: _plain(one) for key, one in value.items() if key not in dropped}
        if kept.get("annotations") == {}:
            del kept["annotations"]
        # Kustomize writes this on a ConfigMap that it has made itself.
        return kept
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        # Only the chart knows the namespace of the accounts.
        value = value.replace("serviceaccount:[^:]+:", "serviceaccount:greylag:")
        return re.sub(r"^greylag-settings-[a-z0-9]{10}$", "greylag-settings", value)
    return value


def _by_name(objects: list[Object]) -> dict[str, Any]:
    for thing in objects:
        if thing["kind"].startswith("ValidatingAdmissionPolicy"):
            # Kustomize takes it for an object in a namespace; the API server does not.
            thing["metadata"].pop("namespace", None)
    return {
        f"{thing['kind']} {_plain(thing['metadata']['name'])}": _plain(thing)
        for thing in objects
        if thing["kind"] != "Namespace"  # Helm leaves that to whoever installs
    }


def test_the_chart_makes_the_same_objects_as_the_kustomization() -> None:
    ours, charts = _by_name(kustomize(BASE)), _by_name(helm())
    assert sorted(charts) == sorted(ours)
    for name, thing in ours.items():
        assert charts[name] == thing, name
    assert {thing["kind"] for thing in ours.values()} == KINDS


def test_both_name_the_version_of_this_greylag() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert {about["version"], about["appVersion"]} == {__version__}
    for objects in (kustomize(BASE), helm()):
        images = {
            container["image"]
            for thing in of_kind(objects, "Deployment")
            for container in thing["spec"]["template"]["spec"]["containers"]
        }
        assert images == {f"greylag:{__version__}"}
        (settings,) = of_kind(objects, "ConfigMap")
        assert settings["data"]["ACR_IMAGE"] == f"goose-api-server:{__version__}"


def test_a_drain_takes_one_pod_at_a_time_where_there_is_but_one_too() -> None:
    for objects in (kustomize(BASE), helm("--set", "web.replicas=1,worker.replicas=1")):
        budgets = [thing["spec"] for thing in of_kind(objects, "PodDisruptionBudget")]
        assert len(budgets) == 2
        for budget in budgets:
            assert budget.keys() == {"maxUnavailable", "selector"}
            assert budget["maxUnavailable"] == 1


def test_the_cluster_ends_no_web_before_it_has_let_uploads_come_to_their_end() -> None:
    for objects in (kustomize(BASE), helm()):
        (web,) = [one for one in of_kind(objects, "Deployment") if "web" in one["metadata"]["name"]]
        pod = web["spec"]["template"]["spec"]
        sleep, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert sleep == "sleep"
        assert pod["terminationGracePeriodSeconds"] >= int(seconds) + FINISH_SECONDS + 5


def test_a_start_on_a_busy_node_has_minutes_before_it_is_taken_for_dead() -> None:
    for objects in (kustomize(BASE), helm()):
        for thing in of_kind(objects, "Deployment"):
            (container,) = thing["spec"]["template"]["spec"]["containers"]
            start, alive = container["startupProbe"], container["livenessProbe"]
            assert start["httpGet"] == alive["httpGet"]
            assert start["periodSeconds"] * start["failureThreshold"] >= 180


def test_a_port_among_the_settings_leads_the_web_away_from_no_probe_or_service(
    tmp_path: Path,
) -> None:
    given = {"name": "greylag-settings", "behavior": "merge", "literals": ["GREYLAG_PORT=9000"]}
    ours = kustomize(overlay(tmp_path / "port", BASE, configMapGenerator=[given]))
    for objects in (ours, helm("--set-string", "settings.GREYLAG_PORT=9000")):
        (settings,) = of_kind(objects, "ConfigMap")
        assert settings["data"]["GREYLAG_PORT"] == "9000"
        (web,) = (
            container
            for thing in of_kind(objects, "Deployment")
            for container in thing["spec"]["template"]["spec"]["containers"]
            if container["args"] == ["serve"]
        )
        told = {one["name"]: one.get("value") for one in web["env"]}
        assert told["GREYLAG_PORT"] == "8700" == str(web["ports"][0]["containerPort"])


def test_each_pod_tells_its_numbers_to_those_that_are_named(tmp_path: Path) -> None:
    folder = overlay(
        tmp_path / "own", BASE, components=[os.path.relpath(METRICS, tmp_path.resolve() / "own")]
    )
    for objects in (kustomize(folder), helm("--set", "metrics.enabled=true")):
        for thing in of_kind(objects, "Deployment"):
            (container,) = thing["spec"]["template"]["spec"]["containers"]
            assert {"name": "metrics", "containerPort": 8702} in container["ports"]
            assert {"name": "GREYLAG_METRICS_PORT", "value": "8702"} in container["env"]
        named = {thing["metadata"]["name"]: thing for thing in of_kind(objects, "NetworkPolicy")}
        policy = named["greylag-metrics"]
        assert policy["metadata"]["namespace"] == "greylag"
        assert policy["spec"]["podSelector"] == named["greylag-default-deny"]["spec"]["podSelector"]
        (ingress,) = policy["spec"]["ingress"]
        assert ingress["ports"] == [{"protocol": "TCP", "port": "metrics"}]
        monitoring = {"kubernetes.io/metadata.name": "monitoring"}
        assert ingress["from"] == [{"namespaceSelector": {"matchLabels": monitoring}}]
    with pytest.raises(AssertionError, match=r"metrics.*from"):  # nobody named would be everybody
        helm("--set", "metrics.enabled=true", "--set-json", "metrics.from=[]")


def test_an_ingress_before_the_web_takes_large_files_and_cuts_no_answer() -> None:
    nginx = "nginx.ingress.kubernetes.io"
    for objects in (kustomize(EXAMPLE), helm("--set", "ingress.enabled=true")):
        (ingress,) = of_kind(objects, "Ingress")
        assert ingress["metadata"]["annotations"] == {
            f"{nginx}/proxy-body-size": "0",
            f"{nginx}/proxy-buffering": "off",
            f"{nginx}/proxy-request-buffering": "off",
            f"{nginx}/proxy-read-timeout": "3600",
            f"{nginx}/proxy-send-timeout": "3600",
        }


@pytest.mark.parametrize("own", ["", "previews-tls"])
def test_the_chart_s_ingress_leads_to_previews_where_they_have_a_domain(own: str) -> None:
    given = "ingress.enabled=true,ingress.host=a.test,ingress.tlsSecret=tls"
    domain = "settings.GREYLAG_PREVIEW_DOMAIN=p.test"
    (plain,) = of_kind(helm("--set", given), "Ingress")
    assert [rule["host"] for rule in plain["spec"]["rules"]] == ["a.test"]
    (ingress,) = of_kind(
        helm("--set", f"{given},{domain},ingress.previewTlsSecret={own}"), "Ingress"
    )
    first, second = ingress["spec"]["rules"]
    assert (first["host"], second["host"]) == ("a.test", "*.p.test")
    assert second["http"] == first["http"]
    assert ingress["spec"]["tls"] == [
        {"hosts": ["a.test"], "secretName": "tls"},
        {"hosts": ["*.p.test"], "secretName": own or "tls"},
    ]


def test_the_chart_takes_an_image_by_its_digest() -> None:
    digest = f"sha256:{'0123456789abcdef' * 4}"
    for thing in of_kind(helm("--set", f"image.digest={digest}"), "Deployment"):
        (container,) = thing["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"greylag@{digest}"


def test_every_setting_that_they_give_is_one_that_greylag_reads() -> None:
    known = {"GREYLAG_HEALTH_PORT", "MONGODB_URI"}
    for model in (Settings, OptionsSettings):
        known |= {variable_of(model, name) for name in model.model_fields}
    for objects in (kustomize(EXAMPLE), helm("--set", "ingress.enabled=true")):
        (settings,) = of_kind(objects, "ConfigMap")
        given = set(settings["data"])
        for thing in of_kind(objects, "Deployment"):
            (container,) = thing["spec"]["template"]["spec"]["containers"]
            given |= {one["name"] for one in container["env"]}
        assert given <= known


def test_no_object_of_greylag_itself_passes_for_one_that_it_manages() -> None:
    for objects in (kustomize(BASE), helm()):
        for thing in objects:
            labels = thing["metadata"].get("labels", {})
            assert labels.get(MANAGED_BY_LABEL) != MANAGED_BY
            assert labels["app.kubernetes.io/name"] == "greylag" or thing["kind"] == "Namespace"


def test_the_chart_refuses_values_that_it_does_not_know_and_secrets_among_settings() -> None:
    with pytest.raises(AssertionError, match="replcas"):
        helm("--set", "web.replcas=3")
    with pytest.raises(AssertionError, match="GREYLAG_TOKEN"):
        helm("--set", "settings.GREYLAG_TOKEN=secret")


def test_an_ingress_of_the_chart_makes_its_host_known_to_the_web() -> None:
    hosts = ("--set", "settings.GREYLAG_ALLOWED_HOSTS=other.example.com")
    objects = helm("--set", "ingress.enabled=true,ingress.host=one.example.com", *hosts)
    (settings,) = of_kind(objects, "ConfigMap")
    assert settings["data"]["GREYLAG_ALLOWED_HOSTS"] == "one.example.com,other.example.com"
    (ingress,) = of_kind(objects, "Ingress")
    assert ingress["spec"]["rules"][0]["host"] == "one.example.com"


def test_the_chart_confines_its_own_accounts_where_the_cluster_can() -> None:
    kind = "ValidatingAdmissionPolicy"
    theirs = ("--set", "settings.KUBE_NAMESPACE_PREFIX=team-")
    (policy,) = of_kind(helm(*theirs, namespace="here", release="one"), kind)
    said = json.dumps(policy)
    assert "^system:serviceaccount:here:one-greylag-(web|worker)$" in said
    assert "'team-'" in said
    assert not list(of_kind(helm("--set", "confinement.enabled=false"), kind))
    assert not list(of_kind(helm("--kube-version", "1.29"), kind))


@pytest.mark.parametrize("way", ["kustomize", "helm"])
def test_the_api_server_takes_all_of_it_without_a_warning(way: str, tmp_path: Path) -> None:
    namespace = f"test-{way}-{tmp_path.parent.name[-6:]}".lower().replace("_", "-")
    objects = kustomize(BASE) if way == "kustomize" else helm()
    for thing in objects:
        if "namespace" in thing["metadata"]:
            thing["metadata"]["namespace"] = namespace
    written = tmp_path / "all.yaml"
    written.write_text(yaml.safe_dump_all([one for one in objects if one["kind"] != "Namespace"]))
    restricted = {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")
    }
    made = tmp_path / "namespace.yaml"
    meta = {"name": namespace, "labels": restricted}
    made.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Namespace", "metadata": meta}))
    _kubectl("apply", "--filename", str(made))
    try:
        said = _kubectl("apply", "--dry-run=server", "--filename", str(written))
        assert "Warning" not in said.stderr, said.stderr
        assert len(said.stdout.splitlines()) == len(_by_name(objects))
    finally:
        real_cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def test_the_access_alone_is_accounts_and_roles() -> None:
    kinds = sorted({thing["kind"] for thing in kustomize(ACCESS)})
    assert kinds == [
        "ClusterRole",
        "ClusterRoleBinding",
        "Namespace",
        "ServiceAccount",
    ]


def _kubectl(*arguments: str) -> CompletedProcess[str]:
    done = real_cluster.kubectl(*arguments)
    assert done.returncode == 0, done.stderr
    return done
