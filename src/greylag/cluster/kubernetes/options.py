"""Templates: named shapes of environment that an operator offers and a project picks from."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from greylag.domain.errors import ClusterError, ConfigError
from greylag.domain.project import DEFAULT_TEMPLATE, Environment

"""What a project without a choice gets; settings may say what it is."""

"""The key of a project's metadata that names its template."""


@dataclass(frozen=True, slots=True)
class Template:
    """One shape. Quantities are as Kubernetes writes them (``250m``, ``1Gi``).

    ``image`` and ``volume_size`` are ``None`` where those of the options hold; ``environment`` are
    further environment variables of agentd.
    """

    image: str | None = None
    cpu_request: str = "250m"
    memory_request: str = "512Mi"
    cpu_limit: str = "500m"
    memory_limit: str = "1Gi"
    volume_size: str | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def chosen(environment: Environment, templates: Mapping[str, Template]) -> Template:
    """Return the template that ``project`` picked by ``metadata.template``.

    Raises:
        ClusterError: there is none of this name (``template_not_found``, terminal).
    """
    name = environment.template
    if isinstance(name, str) and name in templates:
        return templates[name]
    if name == DEFAULT_TEMPLATE:
        return Template()
    known = ", ".join(sorted({DEFAULT_TEMPLATE, *templates}))
    raise ClusterError(
        f"The project asks for the template {name!r}, which does not exist.",
        code="template_not_found",
        hint=f"Set metadata.template to one of: {known}.",
        terminal=True,
    )


# Everything about environments on Kubernetes that settings decide.

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
PullPolicy = Literal["Always", "IfNotPresent", "Never"]
ServiceType = Literal["LoadBalancer", "ClusterIP"]
Routing = Literal["host", "path"]
Reach = Literal["auto", "service", "loadbalancer", "ingress", "proxy"]

EVERYWHERE = "0.0.0.0/0"
NEVER_ALLOWED = ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128")
"""Link-local addresses, where clouds answer with credentials; no setting opens them."""

QUOTA = MappingProxyType(
    {
        "requests.cpu": "2",
        "requests.memory": "4Gi",
        "limits.cpu": "4",
        "limits.memory": "8Gi",
        "persistentvolumeclaims": "20",
    }
)


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the manifests are made from, beside the project.

    Attributes:
        image: of an environment, unless its template names another.
        image_pull_policy: as Kubernetes has it.
        agent_port: TCP port of agentd, and of the Service.
        storage_class: of the volumes; None: the cluster's default.
        volume_size: of the workspace, unless the template says otherwise.
        service_type: of the Service of each project.
        service_annotations: for the controller that makes load balancers.
        ingress_base_domain: domain under which projects get an Ingress; None: no Ingress.
        ingress_class: None: the cluster's default.
        ingress_routing: a host per project, or a path per project on the domain itself.
        ingress_tls: whether the Ingress speaks https.
        ingress_tls_secret: its certificate; None: the controller's own.
        ingress_annotations: further ones.
        ingress_namespace: where the ingress controller's pods run.
        platform_namespace: where Greylag's pods run; None: it is outside of the cluster.
        platform_labels: which pods there; empty: all.
        platform_cidrs: addresses outside of pods that may reach the agent's port.
        reach: by what the platform itself reaches agents; auto: by the Service where it runs in the
            cluster, else by what users are shown.
        probe: whether an environment is asked at its address before it counts as ready.
        egress_cidrs: where environments may connect to.
        cluster_cidrs: where they may not, whatever is allowed: pods, Services, nodes.
        pod_cidrs: pods' addresses, as far as they are known: never the platform's, never a target.
        dns_namespace: where the cluster's DNS runs.
        dns_labels: which pods there.
        quota: hard limits of a user's namespace.
        limit_defaults: limits of a container that names none.
        request_defaults: requests of a container that names none.
        runtime_class: None: the cluster's default.
        node_selector: labels of nodes that may run environments.
        tolerations: as Kubernetes has them.
        image_pull_secret: name of a Secret in the user's namespace.
        priority_class: None: the cluster's default.
        templates: shapes by name.
        model_environment: what agentd is told of the model, but for the key.
        model_key: the provider's key.
    """

    image: str
    image_pull_policy: PullPolicy = "IfNotPresent"
    agent_port: int = 3001
    storage_class: str | None = None
    volume_size: str = "5Gi"
    service_type: ServiceType = "LoadBalancer"
    service_annotations: Mapping[str, str] = field(default_factory=_nothing)
    ingress_base_domain: str | None = None
    ingress_class: str | None = None
    ingress_routing: Routing = "host"
    ingress_tls: bool = False
    ingress_tls_secret: str | None = None
    ingress_annotations: Mapping[str, str] = field(default_factory=_nothing)
    ingress_namespace: str | None = None
    platform_namespace: str | None = None
    platform_labels: Mapping[str, str] = field(default_factory=_nothing)
    platform_cidrs: tuple[str, ...] = ()
    reach: Reach = "auto"
    probe: bool = True
    egress_cidrs: tuple[str, ...] = (EVERYWHERE,)
    cluster_cidrs: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    dns_namespace: str = "kube-system"
    dns_labels: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"k8s-app": "kube-dns"})
    )
    quota: Mapping[str, str] = field(default_factory=lambda: QUOTA)
    limit_defaults: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"cpu": "500m", "memory": "1Gi"})
    )
    request_defaults: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"cpu": "250m", "memory": "512Mi"})
    )
    runtime_class: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=_nothing)
    tolerations: Sequence[Mapping[str, Any]] = ()
    image_pull_secret: str | None = None
    priority_class: str | None = None
    templates: Mapping[str, Template] = field(default_factory=lambda: MappingProxyType({}))
    model_environment: Mapping[str, str] = field(default_factory=_nothing)
    model_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse what can only be a mistake.

        Raises:
            ConfigError: an allowed range lies wholly in one that is never allowed.
        """
        for allowed in networks(self.egress_cidrs):
            for closed in self.closed_networks:
                if within(allowed, closed):
                    raise ConfigError(
                        f"GREYLAG_KUBE_EGRESS_CIDRS: {allowed} lies in {closed}, which "
                        "environments may never reach (GREYLAG_KUBE_CLUSTER_CIDRS, "
                        "GREYLAG_KUBE_POD_CIDRS, and link-local addresses)."
                    )

    @property
    def closed_networks(self) -> tuple[Network, ...]:
        """Return where environments may never connect to."""
        return networks((*self.cluster_cidrs, *self.pod_cidrs, *NEVER_ALLOWED))


def networks(cidrs: Sequence[str]) -> tuple[Network, ...]:
    """Parse address ranges (``10.0.0.0/8``).

    Raises:
        ConfigError: one is none.
    """
    try:
        return tuple(ipaddress.ip_network(cidr) for cidr in cidrs)
    except ValueError as error:
        raise ConfigError(f"A range of addresses is wrong: {error}.") from error


def within(inner: Network, outer: Network) -> bool:
    """Tell whether all of ``inner`` lies in ``outer``."""
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)
