"""Settings of environments on Kubernetes become options, or a sentence."""

from pathlib import Path

import pytest
from tests.contract.store_adapters import make_project

from greylag.cluster.kubernetes import options
from greylag.cluster.kubernetes.isolation import shared_objects
from greylag.cluster.kubernetes.options import Options, Toleration, load_options
from greylag.domain.errors import ConfigError


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "IN_CLUSTER_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("ACR_IMAGE", "goose-api-server:1")


def test_outside_of_a_cluster_the_defaults_can_be_reached() -> None:
    given = load_options()

    assert given.service_type == "LoadBalancer"
    assert given.platform_cidrs == ("0.0.0.0/0", "::/0")
    assert "10.0.0.0/8" in given.cluster_cidrs


def test_inside_of_a_cluster_only_our_own_namespace_comes_in(tmp_path: Path) -> None:
    (tmp_path / "namespace").write_text("greylag\n")

    given = load_options()

    assert given.service_type == "ClusterIP"
    assert given.platform_namespace == "greylag"
    assert given.platform_cidrs == ()


def test_every_form_of_value_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "GOOSE_API_PORT": "4001",
        "GREYLAG_KUBE_CLUSTER_CIDRS": "10.91.0.0/16, 10.92.0.0/16",
        "GREYLAG_KUBE_NODE_SELECTOR": "pool=agents,zone=",
        "GREYLAG_KUBE_TOLERATIONS": '[{"key": "agents", "tolerationSeconds": 5}]',
        "GREYLAG_KUBE_TEMPLATES": '{"large": {"cpu_limit": "2"}}',
        "GREYLAG_KUBE_QUOTA_VOLUMES": "7",
        "GREYLAG_KUBE_STORAGE_CLASS": "",
    }.items():
        monkeypatch.setenv(name, value)

    given = load_options()

    assert given.agent_port == 4001
    assert given.cluster_cidrs == ("10.91.0.0/16", "10.92.0.0/16")
    assert given.node_selector == {"pool": "agents", "zone": ""}
    assert given.tolerations == (Toleration(key="agents", tolerationSeconds=5),)
    assert given.templates["large"].cpu_limit == "2"
    quota = next(
        each
        for each in shared_objects(make_project().environment, given)
        if each["kind"] == "ResourceQuota"
    )
    assert quota["spec"]["hard"]["persistentvolumeclaims"] == "7"
    assert given.storage_class is None


def test_an_option_that_is_given_counts_whatever_the_environment_says() -> None:
    given = Options(image="another:1", platform_namespace="here")

    assert given.image == "another:1"
    assert given.service_type == "ClusterIP"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GOOSE_API_PORT", "80"),
        ("INGRESS_BASE_DOMAIN", "https://example.org"),
        ("INGRESS_BASE_DOMAIN", "example..org"),
        ("INGRESS_BASE_DOMAIN", f"{'a' * 64}.org"),
        ("INGRESS_BASE_DOMAIN", ".".join(["a" * 38] * 5)),
        ("GREYLAG_KUBE_VOLUME_SIZE", "five"),
        ("GREYLAG_KUBE_EGRESS_CIDRS", "10.0.0.1/8"),
        ("GREYLAG_KUBE_EGRESS_CIDRS", "10.2.0.0/16"),
        ("GREYLAG_KUBE_NODE_SELECTOR", "pool"),
        ("GREYLAG_KUBE_TOLERATIONS", "[{"),
        ("GREYLAG_KUBE_TEMPLATES", '{"large": {"cpu": "2"}}'),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=name):
        load_options()
