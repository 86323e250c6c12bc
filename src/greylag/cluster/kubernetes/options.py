"""What settings decide of Kubernetes: which cluster it is, and what environments are like there.

Each setting is declared once, here; ``docs/kubernetes.md`` lists them for operators. The models are
plain values, which tests and tools make as they like; ``load_options`` and
``load_connection_options`` read them from the environment.
"""

import ipaddress
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from greylag.common.public_hosts import NAT64
from greylag.common.settings import read_settings
from greylag.domain.errors import ClusterError, ConfigError
from greylag.domain.project import DEFAULT_TEMPLATE, Environment

IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
USUAL_KUBECONFIG = Path("~/.kube/config")
EVERYWHERE = "0.0.0.0/0"
_ANYBODY = (EVERYWHERE, "::/0")
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_LONGEST_DOMAIN = 189
"""A project's host is a label of 63 characters before it, and 253 are all there may be."""
PRIVATE_RANGES = (
    *("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
    # Of no network of the internet either; EKS and GKE offer them for pods.
    *("198.18.0.0/15", "240.0.0.0/4"),
)
NEVER_ALLOWED = (
    "169.254.0.0/16",  # link-local, with the metadata service of nearly every cloud
    "168.63.129.16/32",  # Azure's platform
    "192.0.0.192/32",  # Oracle Cloud's older metadata service
    "100.100.100.200/32",  # Alibaba Cloud's metadata service
    "fe80::/10",  # link-local
    "fd00:ec2::/32",  # AWS: metadata, time, DNS, pod identity
    "fd20:ce::/32",  # Google Cloud
    "fd00:c1::/32",  # Oracle Cloud
    "fd00:42::/32",  # Scaleway
    "fd00:a9fe:a9fe::/48",  # Akamai (Linode)
    # Loopback, and all of IPv4 written as IPv6 (::ffff:0:0/96). The API server takes no exception
    # that begins with a mapped address, but it takes this, and nothing else lives here.
    "::/64",
)
"""Where clouds answer with credentials, or to their own platform; no setting opens them."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
ServiceType = Literal["LoadBalancer", "ClusterIP"]

_SHORTEST_KEY = 32
_UNITS = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    "k": Fraction(1000),
    "Ki": Fraction(1024),
    **{name: Fraction(1000**power) for power, name in enumerate("MGTPE", 2)},
    **{f"{name}i": Fraction(1024**power) for power, name in enumerate("MGTPE", 2)},
}
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[KMGTPE]i|[MGTPE])?")


def _items(value: object) -> object:
    """Split ``a,b``."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _pairs(value: object) -> object:
    """Split ``key=value,key=value``."""
    if not isinstance(value, str):
        return value
    parts = [part.strip().partition("=") for part in value.split(",") if part.strip()]
    if not all(key and equals for key, equals, _ in parts):
        raise ValueError("must be key=value,key=value")
    return {key.strip(): text.strip() for key, _, text in parts}


def _json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or "null")
    except ValueError as error:
        raise ValueError(f"must be JSON: {error}") from error


def _range(value: str) -> str:
    return str(ipaddress.ip_network(value))


def quantity(text: str) -> Fraction:
    """Return the number that a quantity of Kubernetes says (``500m``, ``2Gi``, ``5e9``)."""
    number = text.rstrip("".join(_UNITS))
    return Fraction(number) * _UNITS[text.removeprefix(number)]


def _quantity(value: str) -> str:
    if not _QUANTITY.fullmatch(value):
        raise ValueError(f"must be a quantity, as 500m or 2Gi, not {value!r}")
    return value


Quantity = Annotated[str, AfterValidator(_quantity)]
Pairs = Annotated[Mapping[str, str], NoDecode, BeforeValidator(_pairs)]
Ranges = Annotated[
    tuple[Annotated[str, AfterValidator(_range)], ...], NoDecode, BeforeValidator(_items)
]


class Template(BaseModel):
    """A named shape of environment that an operator offers and a project picks from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = None
    """Where the agent and its tools run, without Greylag's secrets; None: that of the options."""
    cpu_request: Quantity = "250m"
    memory_request: Quantity = "512Mi"
    cpu_limit: Quantity = "500m"
    memory_limit: Quantity = "1Gi"
    ephemeral_storage: Quantity = "2Gi"
    """Most that is written outside of its volume: logs, tools beside an image. This and the four
    before are for agentd and execd together."""
    volume_size: Quantity | None = None
    """None: that of the options."""
    environment: Mapping[str, str] = Field(default_factory=dict)
    """Further environment variables of agentd."""


class Toleration(BaseModel):
    """One toleration of a pod, as Kubernetes has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str | None = None
    operator: Literal["Equal", "Exists"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = None  # noqa: N815 - the name that Kubernetes gives it


def own_namespace() -> str | None:
    """Return the namespace that Greylag itself runs in, None outside of a cluster."""
    try:
        return IN_CLUSTER_NAMESPACE.read_text("utf-8").strip() or None
    except OSError:
        return None


def _service_type(given: Mapping[str, Any]) -> ServiceType:
    reached_inside = given["ingress_base_domain"] or given["platform_namespace"]
    return "ClusterIP" if reached_inside else "LoadBalancer"


def _platform_cidrs(given: Mapping[str, Any]) -> tuple[str, ...]:
    # Outside of the cluster our own address is not known: there the token alone tells who it is.
    return () if given["platform_namespace"] else given["loadbalancer_source_ranges"] or _ANYBODY


class Options(BaseModel):
    """What environments on Kubernetes are like. Each is set by ``GREYLAG_KUBE_<NAME>``.

    Raises:
        ConfigError: an allowed range lies wholly in one that is never allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    image: str = Field("", validation_alias="ACR_IMAGE")
    """Of environments; the side of the agent may have another, by its template."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secret: str | None = None
    """Name of a Secret in the user's namespace."""
    agent_port: int = Field(3001, ge=1024, le=65535, validation_alias="GOOSE_API_PORT")
    """TCP port of agentd, and of the Service."""
    agent_key: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_items)] = Field(
        (), validation_alias="GREYLAG_AGENT_KEY"
    )
    """What environments' tokens are derived from; the first for new starts, others for those that
    were started with them; empty: each token is random, and Secrets are read."""
    storage_class: str | None = None
    """Of the volumes; None: the cluster's default."""
    volume_size: Quantity = "5Gi"
    """Of the workspace, unless the template says otherwise."""
    ingress_base_domain: str | None = Field(
        None,
        pattern=rf"^{_LABEL}(\.{_LABEL})*$",
        max_length=_LONGEST_DOMAIN,
        validation_alias="INGRESS_BASE_DOMAIN",
        description="must be a domain in small letters, such as agents.example.org",
    )
    """Domain under which projects get an Ingress; None: no Ingress."""
    ingress_class: str | None = None
    """None: the cluster's default."""
    ingress_routing: Literal["host", "path"] = "host"
    """A host per project, or a path per project on the domain itself."""
    ingress_tls: bool = False
    """Whether the Ingress speaks https."""
    ingress_tls_secret: str | None = None
    """Its certificate; None: the controller's own."""
    ingress_annotations: Pairs = Field(default_factory=dict)
    """Further ones."""
    ingress_namespace: str | None = None
    """Where the ingress controller's pods run."""
    platform_namespace: str | None = Field(default_factory=own_namespace)
    """Where Greylag's pods run; None: it is outside of the cluster."""
    platform_labels: Pairs = Field(default_factory=dict)
    """Which pods there; empty: all."""
    loadbalancer_source_ranges: Ranges = ()
    """Addresses that may call load balancers; empty: ``platform_cidrs``."""
    platform_cidrs: Ranges = Field(default_factory=_platform_cidrs)
    """Addresses outside of pods that may reach the agent's port."""
    service_type: ServiceType = Field(default_factory=_service_type)
    """Of the Service of each project."""
    service_annotations: Pairs = Field(default_factory=dict)
    """For the controller that makes load balancers."""
    reach: Literal["auto", "service", "loadbalancer", "ingress", "proxy"] = "auto"
    """By what the platform itself reaches agents; ``auto``: by the Service where it runs in the
    cluster, else by what users are shown if that is https, else by the API server."""
    allow_plain_http: bool = Field(default=False, validation_alias="GREYLAG_ALLOW_PLAIN_HTTP")
    """Whether tokens may go over plain http beyond the cluster."""
    probe: bool = True
    """Whether an environment is asked at its address before it counts as ready."""
    authorities: str = ""
    """PEM of whom environments trust; empty: what the platform's own settings say of it."""
    egress_cidrs: Ranges = (EVERYWHERE,)
    """Where environments may connect to."""
    cluster_cidrs: Ranges = PRIVATE_RANGES
    """Where they may not, whatever is allowed: pods, Services, nodes."""
    pod_cidrs: Ranges = ()
    """Pods' addresses, as far as they are known: never the platform's, never a target."""
    dns_namespace: str = "kube-system"
    """Where the cluster's DNS runs."""
    dns_labels: Pairs = Field(default_factory=lambda: {"k8s-app": "kube-dns"})
    """Which pods there."""
    quota_cpu_requests: Quantity = "2"
    """This and the next nine: hard limits of a user's namespace."""
    quota_memory_requests: Quantity = "4Gi"
    quota_cpu_limits: Quantity = "4"
    quota_memory_limits: Quantity = "8Gi"
    quota_volumes: int = Field(20, ge=1)
    quota_storage: Quantity | None = None
    """Of all volumes; None: as many as there may be, of the largest template."""
    quota_ephemeral_storage: Quantity | None = None
    """Of all that run at once; None: as many as volumes, of the largest template."""
    quota_load_balancers: int | None = Field(None, ge=0)
    """None: one for each volume, where Services are load balancers."""
    quota_node_ports: int | None = Field(None, ge=0)
    """None: as many as load balancers, whose Services take one each."""
    quota_objects: int | None = Field(None, ge=1)
    """Of Secrets, of ConfigMaps, of Services and so on; None: two for each volume, and ten more."""
    user: int = Field(10001, ge=1, le=2**31 - 2)
    """Uid of the agent and its tools; the next one is agentd's, and the group of all files."""
    shared_cpu: bool | None = None
    """Whether the CPU limit is one of the whole pod; else each of its containers has a half. None:
    where the cluster has such limits, from Kubernetes 1.34 on."""
    host_users: bool = True
    """False: root in a pod would be nobody on its node, where the cluster has user namespaces."""
    runtime_class: str | None = None
    """None: the cluster's default."""
    priority_class: str | None = None
    """None: the cluster's default."""
    node_selector: Pairs = Field(default_factory=dict)
    """Labels of nodes that may run environments."""
    tolerations: Annotated[tuple[Toleration, ...], NoDecode, BeforeValidator(_json)] = ()
    templates: Annotated[Mapping[str, Template], NoDecode, BeforeValidator(_json)] = Field(
        default_factory=dict
    )
    """Shapes by name."""

    @field_validator("agent_key")
    @classmethod
    def _keys_are_long(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < _SHORTEST_KEY for key in keys):
            raise ValueError(f"each key must have at least {_SHORTEST_KEY} characters")
        return keys

    @model_validator(mode="after")
    def _egress_is_possible(self) -> Self:
        for allowed in networks(self.egress_cidrs):
            for closed in self.closed_networks:
                if within(allowed, closed):
                    raise ConfigError(
                        f"GREYLAG_KUBE_EGRESS_CIDRS: {allowed} lies in {closed}, which "
                        "environments may never reach (GREYLAG_KUBE_CLUSTER_CIDRS, "
                        "GREYLAG_KUBE_POD_CIDRS, and the metadata services of clouds)."
                    )
        return self

    @model_validator(mode="after")
    def _no_token_in_clear(self) -> Self:
        in_clear = (
            self.reach == "loadbalancer"
            or (self.reach == "ingress" and not self._ingress_is_https)
            or (self.reach == "service" and not self.platform_namespace)
        )
        if in_clear and not self.allow_plain_http:
            raise ConfigError(
                f"GREYLAG_KUBE_REACH: by {self.reach} agents' tokens would go over plain http "
                "beyond the cluster.",
                hint="Leave it at auto, which goes by the API server, or set "
                "GREYLAG_ALLOW_PLAIN_HTTP=1 where nobody else is on that network.",
            )
        return self

    @property
    def reached_by_proxy(self) -> bool:
        """Whether the platform reaches agents by the API server's proxy."""
        if self.reach != "auto" or self.platform_namespace:
            return self.reach == "proxy"
        shown = self.ingress_base_domain or self.service_type == "LoadBalancer"
        return not (shown and (self._ingress_is_https or self.allow_plain_http))

    @property
    def _ingress_is_https(self) -> bool:
        return self.ingress_base_domain is not None and self.ingress_tls

    @property
    def balancer_sources(self) -> tuple[str, ...]:
        """Who may call load balancers; empty: anybody, or there are none."""
        sources = self.loadbalancer_source_ranges or self.platform_cidrs
        has_any = self.service_type == "LoadBalancer"
        return () if not has_any or {*sources} & {*_ANYBODY} else sources

    @property
    def keeps_namespaces(self) -> bool:
        """Whether a user's namespace stays when it is empty, for the operator's Secrets in it."""
        return bool(self.image_pull_secret or self.ingress_tls_secret)

    @property
    def open_to_all(self) -> str | None:
        """Say that anybody may call the load balancers, ``None`` where that is not so."""
        narrow = self.balancer_sources or not self.platform_cidrs
        if self.service_type != "LoadBalancer" or narrow:
            return None
        return (
            "Each environment has a load balancer that any address may call, in plain http: only "
            "its token protects it. Name those who may in GREYLAG_KUBE_LOADBALANCER_SOURCE_RANGES."
        )

    @property
    def most_storage(self) -> str:
        """Return what all volumes of a user may take together."""
        sizes = [self.volume_size, *(one.volume_size for one in self.templates.values())]
        return self.quota_storage or self._of_all(size for size in sizes if size)

    @property
    def most_ephemeral_storage(self) -> str:
        """Return what all environments of a user may write outside of their volumes."""
        shapes = (Template(), *self.templates.values())
        return self.quota_ephemeral_storage or self._of_all(one.ephemeral_storage for one in shapes)

    def _of_all(self, sizes: Iterable[str]) -> str:
        return str(self.quota_volumes * math.ceil(max(quantity(size) for size in sizes)))

    @property
    def closed_networks(self) -> tuple[Network, ...]:
        """Where environments may never connect to, IPv4 behind a translator too."""
        closed = networks((*self.cluster_cidrs, *self.pod_cidrs, *NEVER_ALLOWED))
        return (*closed, *(_translated(net) for net in closed if net.version == 4))  # noqa: PLR2004 - IPv4

    def template_of(self, environment: Environment) -> Template:
        """Return the template that the project picked by ``metadata.template``.

        Raises:
            ClusterError: there is none of this name (``template_not_found``, terminal).
        """
        name = environment.template
        if isinstance(name, str) and name in self.templates:
            return self.templates[name]
        if name == DEFAULT_TEMPLATE:
            return Template()
        known = ", ".join(sorted({DEFAULT_TEMPLATE, *self.templates}))
        raise ClusterError(
            f"The project asks for the template {name!r}, which does not exist.",
            code="template_not_found",
            hint=f"Set metadata.template to one of: {known}.",
            terminal=True,
        )


class ConnectionOptions(BaseModel):
    """What may name a cluster; the first that is given is taken, in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    kubeconfig_base64: str = Field("", repr=False, validation_alias="KUBE_CONFIG_BASE64")
    """A kubeconfig."""
    host: str = ""
    token: str = Field("", repr=False)
    ca: str = Field("", repr=False)
    """PEM, PEM in base64, or a file's path; empty: the system's authorities."""
    kubeconfig: str = Field("", validation_alias="KUBECONFIG")
    """One path, or several with colons between."""
    context: str = ""
    """The kubeconfig's, instead of its current one."""


class OptionsSettings(Options, BaseSettings):
    """The options as the environment gives them."""

    model_config = SettingsConfigDict(
        env_prefix="GREYLAG_KUBE_", env_file=".env", env_ignore_empty=True, extra="ignore"
    )


class ConnectionSettings(ConnectionOptions, BaseSettings):
    """The connection's options as the environment gives them."""

    model_config = SettingsConfigDict(
        env_prefix="KUBE_", env_file=".env", env_ignore_empty=True, extra="ignore"
    )


def load_options() -> Options:
    """Parse the options.

    Raises:
        ConfigError: one is wrong; the sentence names its variable.
    """
    return read_settings(OptionsSettings)


def load_connection_options() -> ConnectionOptions:
    """Parse the connection's options; without any kubeconfig kubectl's own file is taken."""
    given = read_settings(ConnectionSettings)
    usual = USUAL_KUBECONFIG.expanduser()
    if given.kubeconfig or not usual.is_file():
        return given
    return given.model_copy(update={"kubeconfig": str(usual)})


def halves(text: str, most: str) -> tuple[str, str]:
    """Split a quantity, in the unit of ``most``: a half, but at most that, and the rest."""
    unit = most.lstrip("0123456789")
    whole = int(quantity(text) / _UNITS[unit])
    part = min(whole // 2, int(most.removesuffix(unit)))
    return f"{part}{unit}", f"{whole - part}{unit}"


def networks(cidrs: Sequence[str]) -> tuple[Network, ...]:
    """Parse address ranges (``10.0.0.0/8``)."""
    return tuple(ipaddress.ip_network(cidr) for cidr in cidrs)


def _translated(net: Network) -> Network:
    start = int(NAT64.network_address) + int(net.network_address)
    return ipaddress.IPv6Network((start, NAT64.prefixlen + net.prefixlen))


def within(inner: Network, outer: Network) -> bool:
    """Tell whether all of ``inner`` lies in ``outer``."""
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)
