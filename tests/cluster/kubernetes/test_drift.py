"""What counts as somebody's change, without a cluster."""

from typing import Any

import pytest

from greylag.cluster.kubernetes import drift
from greylag.cluster.kubernetes.identity import APPLIED_ANNOTATION
from greylag.cluster.kubernetes.trim import trim

PORT = {"name": "http", "port": 3001, "protocol": "TCP", "targetPort": 3001}
SERVICE: dict[str, Any] = {
    "kind": "Service",
    "metadata": {"name": "s", "namespace": "n"},
    "spec": {"type": "LoadBalancer", "selector": {"a": "b"}, "ports": [PORT]},
}
FILLED_IN = {"clusterIP": "10.0.0.1", "ports": [{**PORT, "nodePort": 31000}]}


def kept(thing: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return trim(thing["kind"], {**thing, "spec": {**thing["spec"], **spec}})


def test_what_was_signed_and_filled_in_by_the_api_server_is_not_edited() -> None:
    applied = drift.signed(SERVICE)
    assert not drift.is_edited(kept(applied, **FILLED_IN))
    assert drift.missing_signature("Service", applied) is None
    assert SERVICE["metadata"].get("annotations") is None


@pytest.mark.parametrize(
    "edit",
    [
        {"selector": {"a": "c"}},
        {"type": "ClusterIP"},
        {"ports": [{**PORT, "targetPort": 22}]},
        {"ports": []},
    ],
)
def test_a_changed_selector_type_or_port_is_edited(edit: dict[str, Any]) -> None:
    assert drift.is_edited(kept(drift.signed(SERVICE), **edit))


def test_a_deployment_is_signed_as_it_came_back_and_its_replicas_do_not_count() -> None:
    deployment: dict[str, Any] = {
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "n"},
        "spec": {"replicas": 0, "template": {"image": "one"}},
    }
    assert drift.signed(deployment) == deployment
    mark = drift.missing_signature("Deployment", deployment)
    assert mark is not None
    deployment["metadata"]["annotations"] = {APPLIED_ANNOTATION: mark}
    assert drift.missing_signature("Deployment", deployment) is None
    assert not drift.is_edited(kept(deployment, replicas=1))
    assert drift.is_edited(kept(deployment, template={"image": "two"}))


def test_what_was_never_signed_and_what_has_no_fingerprint_is_not_edited() -> None:
    assert not drift.is_edited(kept(SERVICE))
    assert not drift.is_edited(kept({**drift.signed(SERVICE), "kind": "Pod"}))
