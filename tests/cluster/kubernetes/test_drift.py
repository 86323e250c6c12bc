"""What counts as somebody's change, without a cluster."""

from typing import Any

import pytest

from greylag.cluster.kubernetes import identity
from greylag.cluster.kubernetes.identity import APPLIED_ANNOTATION
from greylag.cluster.kubernetes.informer import trim

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
    applied = identity.signed(SERVICE)
    assert not identity.is_edited(kept(applied, **FILLED_IN))
    assert identity.missing_signature("Service", applied) is None
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
    assert identity.is_edited(kept(identity.signed(SERVICE), **edit))


def test_a_deployment_is_signed_as_it_came_back_and_its_replicas_do_not_count() -> None:
    deployment: dict[str, Any] = {
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "n"},
        "spec": {"replicas": 0, "template": {"image": "one"}},
    }
    assert identity.signed(deployment) == deployment
    mark = identity.missing_signature("Deployment", deployment)
    assert mark is not None
    deployment["metadata"]["annotations"] = {APPLIED_ANNOTATION: mark}
    assert identity.missing_signature("Deployment", deployment) is None
    assert not identity.is_edited(kept(deployment, replicas=1))
    assert identity.is_edited(kept(deployment, template={"image": "two"}))


def test_what_was_never_signed_and_what_has_no_fingerprint_is_not_edited() -> None:
    assert not identity.is_edited(kept(SERVICE))
    assert not identity.is_edited(kept({**identity.signed(SERVICE), "kind": "Pod"}))
