"""Manifests as pure functions: golden files, names, labels, isolation."""

import base64
import ipaddress
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greylag.cluster.kubernetes.identity import TOKEN_KEY, ref_of
from greylag.cluster.kubernetes.isolation import shared_objects
from greylag.cluster.kubernetes.manifests import has_pod_limits, ingress_url, project_objects
from greylag.cluster.kubernetes.options import Options, Template, Toleration, halves, within
from greylag.domain.errors import ClusterError, ConfigError, InvalidRequestError
from greylag.domain.names import check_id, environment_names
from greylag.domain.project import Lease, Project, ProjectRef

GOLDEN = Path(__file__).with_name("golden")
TOKEN = "a-token-of-the-environment"
NOW = datetime(2026, 1, 2, tzinfo=UTC)
DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")

PLAIN = Options(
    image="goose-api-server:1",
    platform_namespace="greylag",
    service_type="LoadBalancer",
    cluster_cidrs=(),
)
FULL = Options(
    image="registry.example/goose-api-server:1",
    image_pull_policy="Always",
    agent_port=4001,
    storage_class="fast",
    volume_size="20Gi",
    service_type="LoadBalancer",
    service_annotations={"example.org/internal": "true"},
    ingress_base_domain="agents.example.org",
    ingress_class="nginx",
    ingress_tls=True,
    ingress_tls_secret="wildcard",
    ingress_annotations={"example.org/issuer": "ours"},
    ingress_namespace="ingress",
    platform_namespace="greylag",
    platform_labels={"app.kubernetes.io/name": "greylag"},
    platform_cidrs=("203.0.113.0/24",),
    egress_cidrs=("0.0.0.0/0", "::/0"),
    cluster_cidrs=("10.91.0.0/16", "10.92.0.0/16", "10.90.0.2/32"),
    pod_cidrs=("10.91.0.0/16",),
    shared_cpu=True,
    runtime_class="gvisor",
    node_selector={"pool": "agents"},
    tolerations=(Toleration(key="agents", operator="Exists", effect="NoSchedule"),),
    image_pull_secret="registry",
    priority_class="low",
    templates={
        "large": Template(
            image="registry.example/large:2",
            cpu_limit="2",
            memory_limit="4Gi",
            volume_size="50Gi",
            environment={"GOOSE_MODE": "auto", "GREYLAG_AGENT_FOLDER": "/elsewhere"},
        )
    },
)
ON_PATHS = Options(
    image="goose-api-server:1",
    ingress_base_domain="example.org",
    ingress_routing="path",
    service_type="LoadBalancer",
    platform_cidrs=(),
    cluster_cidrs=(),
)
VARIABLES = {
    "GREYLAG_MODEL_URL": "https://model.example",
    "GOOSE_MODE": "approve",
    "GREYLAG_MODEL_KEY": "the-providers-key",
}


def made(user_id: str = "alice", project_id: str = "search", **changed: Any) -> Project:
    usual: dict[str, Any] = {
        "id": "0123456789abcdef01234567",
        "name": "A name",
        "names": environment_names(user_id, project_id),
        "created_at": NOW,
        "updated_at": NOW,
        "lease": Lease("worker", 7, NOW),
    }
    return Project(user_id=user_id, project_id=project_id, **(usual | changed))


def objects(project: Project, options: Options, replicas: int = 1) -> list[dict[str, Any]]:
    variables = VARIABLES if options is FULL else {}
    own = project_objects(project.environment, options, variables, token=TOKEN, replicas=replicas)
    return [*shared_objects(project.environment, options), *own]


def one(kind: str, among: list[dict[str, Any]]) -> dict[str, Any]:
    return next(each for each in among if each["kind"] == kind)


def agent_policy(options: Options) -> dict[str, Any]:
    named = {each["metadata"]["name"]: each for each in shared_objects(made().environment, options)}
    spec: dict[str, Any] = named["greylag-agent"]["spec"]
    return spec


def is_id(text: str) -> bool:
    try:
        check_id(text, "id")
    except InvalidRequestError:
        return False
    return True


ids = st.one_of(
    st.from_regex(r"[a-z]([a-z0-9-]{0,60}[a-z0-9])?", fullmatch=True), st.text(min_size=1)
).filter(is_id)


@pytest.mark.parametrize(
    ("name", "project", "options", "replicas"),
    [
        ("plain", made(), PLAIN, 1),
        ("full", made(metadata={"template": "large"}), FULL, 1),
        ("paths-asleep", made("Jürg Ä", "Größe"), ON_PATHS, 0),
    ],
)
def test_objects_are_those_of_the_golden_file(
    name: str, project: Project, options: Options, replicas: int
) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))

    assert objects(project, options, replicas) == golden


def test_a_proxy_with_a_password_is_in_the_secret_and_authorities_are_a_file() -> None:
    variables = {"HTTPS_PROXY": "http://ann:hunter2@p.test", "NO_PROXY": ".test"}
    options = PLAIN.model_copy(update={"authorities": "PEM"})
    environment = made().environment
    own = project_objects(environment, options, variables, token=TOKEN, replicas=1)

    secret = one("Secret", own)["data"]
    assert base64.b64decode(secret["HTTPS_PROXY"]).decode() == variables["HTTPS_PROXY"]
    config = one("ConfigMap", own)["data"]
    assert config["NO_PROXY"] == ".test"
    assert "hunter2" not in json.dumps(own)
    pod = one("Deployment", own)["spec"]["template"]["spec"]
    name = next(v["configMap"]["name"] for v in pod["volumes"] if v["name"] == "authorities")
    assert one("ConfigMap", shared_objects(environment, options))["metadata"]["name"] == name
    for container in pod["containers"]:
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert config["SSL_CERT_FILE"] == f"{mounts['authorities']}/authorities.pem"


@given(ids, ids)
def test_names_labels_and_annotations_are_valid_for_any_ids(user_id: str, project_id: str) -> None:
    project = made(user_id, project_id)
    for each in objects(project, FULL):
        metadata = each["metadata"]
        assert DNS_LABEL.fullmatch(metadata["name"])
        for key, value in metadata["labels"].items():
            assert LABEL_KEY.fullmatch(key)
            assert LABEL_VALUE.fullmatch(value)
        assert all(LABEL_KEY.fullmatch(key) for key in metadata["annotations"])
        assert json.loads(json.dumps(each)) == each


@given(ids, ids, ids, ids)
def test_no_two_projects_share_an_object_of_their_own(
    user: str, project: str, other_user: str, other_project: str
) -> None:
    def own(user_id: str, project_id: str) -> set[tuple[str, str, str]]:
        found = project_objects(
            made(user_id, project_id).environment, FULL, VARIABLES, token=TOKEN, replicas=1
        )
        return {
            (each["kind"], each["metadata"]["namespace"], each["metadata"]["name"])
            for each in found
        }

    if (user, project) != (other_user, other_project):
        assert own(user, project).isdisjoint(own(other_user, other_project))
        assert ingress_url(made(user, project).environment, FULL) != ingress_url(
            made(other_user, other_project).environment, FULL
        )


@given(ids, ids)
def test_own_objects_tell_their_project_and_shared_ones_do_not(
    user_id: str, project_id: str
) -> None:
    project = made(user_id, project_id)

    own = project_objects(project.environment, FULL, VARIABLES, token=TOKEN, replicas=1)
    shared = shared_objects(project.environment, FULL)

    assert {ref_of(each) for each in own} == {ProjectRef(user_id, project_id)}
    assert {ref_of(each) for each in shared} == {None}


def test_an_object_of_somebody_else_has_no_project() -> None:
    ours = one("Service", objects(made(), PLAIN))
    foreign = {**ours, "metadata": {**ours["metadata"], "labels": {}}}

    assert ref_of(foreign) is None
    assert ref_of({"kind": "Pod"}) is None


def test_objects_of_one_user_s_projects_share_only_the_shared_ones() -> None:
    assert shared_objects(made(project_id="one").environment, FULL) == shared_objects(
        made(project_id="two").environment, FULL
    )


def test_secrets_stand_in_the_secret_alone() -> None:
    own = objects(made(), FULL)
    secret = one("Secret", own)
    rest = json.dumps([each for each in own if each["kind"] != "Secret"])

    assert base64.b64decode(secret["data"][TOKEN_KEY]).decode() == TOKEN
    for value in (TOKEN, "the-providers-key"):
        assert value not in rest
        assert base64.b64encode(value.encode()).decode() not in rest
        assert value not in repr(FULL)


def test_a_template_changes_settings_but_not_what_keeps_the_environment_ours() -> None:
    config = one("ConfigMap", objects(made(metadata={"template": "large"}), FULL))["data"]

    assert config["GOOSE_MODE"] == "auto"
    assert config["GREYLAG_AGENT_FOLDER"] == "/environment"


@pytest.mark.parametrize("name", ["none-such", 7, None, ["large"]])
def test_an_unknown_template_is_refused_for_good(name: object) -> None:
    with pytest.raises(ClusterError, match="does not exist") as caught:
        objects(made(metadata={"template": name}), FULL)

    assert caught.value.terminal
    assert caught.value.info.code == "template_not_found"
    assert "default, large" in caught.value.info.hint


def test_the_claim_of_the_worker_stands_on_the_deployment() -> None:
    annotations = one("Deployment", objects(made(), PLAIN))["metadata"]["annotations"]

    assert annotations["greylag.dev/record"] == "0123456789abcdef01234567"
    assert annotations["greylag.dev/claim"] == "7"


def test_without_anybody_to_let_in_nothing_comes_in() -> None:
    assert agent_policy(Options(image="x", platform_cidrs=()))["ingress"] == []


def test_only_the_agent_s_port_is_open() -> None:
    (rule,) = agent_policy(FULL)["ingress"]

    assert rule["ports"] == [{"protocol": "TCP", "port": 4001}]
    assert len(rule["from"]) == 3


def test_the_platform_from_anywhere_still_shuts_out_known_pods() -> None:
    options = Options(image="x", platform_cidrs=("0.0.0.0/0",), pod_cidrs=("10.91.0.0/16",))

    (rule,) = agent_policy(options)["ingress"]

    assert rule["from"] == [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.91.0.0/16"]}}]


@given(st.ip_addresses(v=4))
def test_every_address_is_allowed_but_the_cluster_s_and_the_clouds_own(
    address: ipaddress.IPv4Address,
) -> None:
    blocks = agent_policy(FULL)["egress"][1]["to"]
    allowed = any(
        address in ipaddress.ip_network(block["ipBlock"]["cidr"])
        and not any(address in ipaddress.ip_network(net) for net in block["ipBlock"]["except"])
        for block in blocks
    )

    closed = [*FULL.cluster_cidrs, "169.254.0.0/16", "168.63.129.16/32"]
    closed += ["192.0.0.192/32", "100.100.100.200/32"]
    assert allowed != any(address in ipaddress.ip_network(net) for net in closed)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        *((one, False) for one in ("10.1.2.3", "100.64.1.2", "172.20.1.2", "192.168.1.2")),
        ("198.19.1.2", False),  # pods on EKS
        ("240.10.1.2", False),  # pods on GKE
        *((one, True) for one in ("1.1.1.1", "198.17.1.2", "198.20.1.2", "223.255.1.2")),
    ],
)
def test_without_a_setting_no_range_that_clouds_give_to_pods_is_open(
    address: str, *, allowed: bool
) -> None:
    (block,) = agent_policy(Options(image="goose:1"))["egress"][1]["to"]
    shut = (ipaddress.ip_network(net) for net in block["ipBlock"]["except"])
    assert any(ipaddress.ip_address(address) in net for net in shut) is not allowed


def mapped(address: str) -> list[str]:
    """Return an IPv4 address and the IPv6 ones that lead to it."""
    number = int(ipaddress.IPv4Address(address))
    return [address, *(str(ipaddress.IPv6Address((high << 32) + number)) for high in _IPV4_IN_IPV6)]


_IPV4_IN_IPV6 = (0xFFFF, 0x64FF9B << 64)
"""::ffff:0:0/96, and 64:ff9b::/96 of translators."""
OF_CLOUDS = [
    *mapped("169.254.169.254"),  # AWS, Azure, Google Cloud, Oracle, OpenStack and others
    *mapped("169.254.170.2"),  # AWS, of containers
    *mapped("169.254.42.42"),  # Scaleway
    *mapped("168.63.129.16"),  # Azure
    *mapped("192.0.0.192"),  # Oracle
    *mapped("100.100.100.200"),  # Alibaba
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42"),
    *("fd00:a9fe:a9fe::1", "fe80::a9fe:a9fe", "::1"),
]


@given(
    st.lists(st.ip_addresses(network="0.0.0.0/0") | st.ip_addresses(network="::/0"), max_size=6),
    st.lists(st.integers(0, 128), min_size=6, max_size=6),
    st.lists(st.sampled_from([*OF_CLOUDS, "10.91.2.3"]), min_size=1, max_size=6),
    st.lists(st.integers(0, 128), min_size=6, max_size=6),
)
def test_whatever_an_operator_allows_no_cloud_s_own_address_is_reached(
    anywhere: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
    widths: list[int],
    near: list[str],
    near_widths: list[int],
) -> None:
    pairs = [*zip(anywhere, widths, strict=False), *zip(near, near_widths, strict=False)]
    given_cidrs = []
    for address, width in pairs:
        longest = ipaddress.ip_address(address).max_prefixlen
        net = ipaddress.ip_network((str(address), min(width, longest)), strict=False)
        given_cidrs.append(str(net))

    try:
        options = Options(image="x", egress_cidrs=given_cidrs, cluster_cidrs=("10.91.0.0/16",))
    except ConfigError as error:
        assert "GREYLAG_KUBE_EGRESS_CIDRS" in str(error)  # all of one range is closed  # noqa: PT017
        return

    blocks = [peer["ipBlock"] for peer in agent_policy(options)["egress"][1]["to"]]
    for block in blocks:
        allowed = ipaddress.ip_network(block["cidr"])
        shut = [ipaddress.ip_network(net) for net in block.get("except", ())]
        # What the API server demands of an exception.
        assert all(net != allowed and within(net, allowed) for net in shut)
        assert all(
            net.network_address.version == 4 or not net.network_address.ipv4_mapped for net in shut
        )
        for text in (*OF_CLOUDS, *mapped("10.91.2.3")):
            address = ipaddress.ip_address(text)
            assert address not in allowed or any(address in net for net in shut), block


@pytest.mark.parametrize(
    "cidr",
    [
        *("10.91.3.0/24", "169.254.169.254/32", "fe80::/64", "168.63.129.16/32"),
        *("::ffff:168.63.129.16/128", "::ffff:0:0/96", "64:ff9b::a83f:8110/128"),
        *("fd00:ec2::254/128", "100.100.100.200/32", "192.0.0.192/32"),
    ],
)
def test_allowing_what_is_never_allowed_is_refused(cidr: str) -> None:
    with pytest.raises(ConfigError, match="GREYLAG_KUBE_EGRESS_CIDRS"):
        Options(image="x", egress_cidrs=(cidr,), cluster_cidrs=("10.91.0.0/16",))


def test_without_allowed_addresses_only_dns_is_left() -> None:
    assert len(agent_policy(Options(image="x", egress_cidrs=()))["egress"]) == 1


def test_the_quota_counts_whatever_one_user_could_take_from_others() -> None:
    outside = Options(image="x", platform_namespace=None, quota_volumes=3)
    inside = Options(image="x", platform_namespace="greylag", quota_storage="9Gi", quota_objects=7)
    hard = one("ResourceQuota", objects(made(), outside))["spec"]["hard"]

    assert (hard["services.loadbalancers"], hard["services.nodeports"]) == ("3", "3")
    assert hard["requests.storage"] == str(3 * 5 * 1024**3)
    assert hard["limits.ephemeral-storage"] == str(3 * 2 * 1024**3)
    assert hard["count/secrets"] == "16"
    hard = one("ResourceQuota", objects(made(), inside))["spec"]["hard"]
    assert (hard["services.loadbalancers"], hard["services.nodeports"]) == ("0", "0")
    assert (hard["requests.storage"], hard["pods"]) == ("9Gi", "7")


def test_ingress_controllers_are_let_in_only_where_there_is_an_ingress() -> None:
    for domain in (None, "agents.example.org"):
        options = Options(
            image="x",
            platform_namespace="greylag",
            ingress_namespace="ingress",
            ingress_base_domain=domain,
        )
        let_in = [
            peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for rule in agent_policy(options)["ingress"]
            for peer in rule["from"]
        ]
        assert let_in == (["greylag", "ingress"] if domain else ["greylag"])


def test_what_the_quota_is_set_to_counts_whatever_the_service_is() -> None:
    options = Options(
        image="x",
        platform_namespace=None,
        service_type="LoadBalancer",
        quota_load_balancers=2,
        quota_node_ports=4,
    )
    hard = one("ResourceQuota", objects(made(), options))["spec"]["hard"]
    assert (hard["services.loadbalancers"], hard["services.nodeports"]) == ("2", "4")


def test_the_quota_counts_pods_that_live_alone() -> None:
    hard = one("ResourceQuota", objects(made(), PLAIN))["spec"]["hard"]
    assert hard["pods"] == "50"
    assert "count/pods" not in hard  # which counts those that were evicted, for ever


def test_the_quota_has_room_for_the_largest_template() -> None:
    large = {"large": Template(volume_size="1.5T", ephemeral_storage="3Gi")}
    options = Options(image="x", quota_volumes=2, templates=large)
    hard = one("ResourceQuota", objects(made(), options))["spec"]["hard"]

    assert hard["requests.storage"] == str(3 * 10**12)
    assert hard["limits.ephemeral-storage"] == str(6 * 1024**3)


def test_what_is_written_outside_of_the_volume_is_bounded() -> None:
    pod = one("Deployment", objects(made(), PLAIN))["spec"]["template"]["spec"]

    both = [each["resources"] for each in pod["containers"]]
    assert [each["requests"]["ephemeral-storage"] for each in both] == ["32Mi", "32Mi"]
    assert [each["limits"]["ephemeral-storage"] for each in both] == ["256Mi", "1792Mi"]
    folders = [one["emptyDir"] for one in pod["volumes"] if "emptyDir" in one]
    assert all("sizeLimit" in one for one in folders)


def test_a_tool_can_write_nothing_to_the_node_s_disk() -> None:
    pod = one("Deployment", objects(made(metadata={"template": "large"}), FULL))["spec"]["template"]
    _, execd = pod["spec"]["containers"]
    on_disk = {
        volume["name"]
        for volume in pod["spec"]["volumes"]
        if volume.get("emptyDir", {}).get("medium") != "Memory" and volume["name"] != "data"
    }
    written = {each["name"] for each in execd["volumeMounts"] if not each.get("readOnly")}
    assert written == {"data", "socket"}
    assert not written & on_disk
    # The node makes a file there that anybody may write to, and bounds it nowhere.
    assert execd["terminationMessagePath"].startswith("/root/")


@pytest.mark.parametrize(
    ("quantity", "most", "parts"),
    [
        ("1Gi", "256Mi", ("256Mi", "768Mi")),
        ("300Mi", "256Mi", ("150Mi", "150Mi")),
        ("1G", "128Mi", ("128Mi", "825Mi")),
        ("0.5", "500m", ("250m", "250m")),
        ("4", "500m", ("500m", "3500m")),
    ],
)
def test_two_containers_have_no_more_than_the_template_says(
    quantity: str, most: str, parts: tuple[str, str]
) -> None:
    assert halves(quantity, most) == parts


def test_what_is_secret_is_in_agentd_s_container_alone() -> None:
    pod = one("Deployment", objects(made(metadata={"template": "large"}), FULL))["spec"]["template"]
    agentd, execd = pod["spec"]["containers"]
    (tools,) = pod["spec"]["initContainers"]
    assert (agentd["name"], execd["name"]) == ("agentd", "execd")
    assert all("secretRef" not in str(each) and "envFrom" not in each for each in (execd, tools))
    assert (agentd["image"], execd["image"], tools["image"]) == (
        *("registry.example/goose-api-server:1", "registry.example/large:2"),
        "registry.example/goose-api-server:1",
    )
    users = {each["securityContext"]["runAsUser"] for each in (agentd, execd)}
    assert users == {10001, 10002}
    mounts = {
        each["name"]: {one.get("subPath") for one in each["volumeMounts"] if one["name"] == "data"}
        for each in (agentd, execd, tools)
    }
    theirs = {"workspace", "home", "tmp", "scratch"}
    assert mounts == {"agentd": {"state"}, "execd": theirs, "tools": set()}
    assert "shareProcessNamespace" not in pod["spec"]


@pytest.mark.parametrize(
    ("version", "expected"),
    [("v1.35.4", True), ("v1.34.0-gke.12", True), ("v1.33.9", False), ("unknown", False)],
)
def test_limits_of_whole_pods_are_asked_for_where_they_are(version: str, *, expected: bool) -> None:
    assert has_pod_limits(version) is expected


def test_user_namespaces_are_asked_for_by_a_setting() -> None:
    apart = Options(image="x", host_users=False)

    for options, told in ((PLAIN, None), (apart, False)):
        pod = one("Deployment", objects(made(), options))["spec"]["template"]["spec"]
        assert pod.get("hostUsers") is told
        # Where the system counts processes for each pod by itself, there is a most of them.
        assert ("--processes" in pod["containers"][1]["command"]) is (told is False)


def test_urls_follow_the_routing() -> None:
    host = one("Ingress", objects(made(), FULL))["spec"]["rules"][0]["host"]

    assert ingress_url(made().environment, FULL) == f"https://{host}"
    assert host.endswith(".agents.example.org")
    assert ingress_url(made().environment, ON_PATHS) == "http://example.org/user-alice/search"
    assert ingress_url(made().environment, PLAIN) is None
