"""What all projects of a user share: the namespace, what bounds it, and its NetworkPolicies.

These say who may talk to environments, and whom they may talk to. Pure functions of settings.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from greylag.cluster.kubernetes.identity import (
    AGENT_POLICY,
    DENY_POLICY,
    INSTANCE_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    shared_metadata,
    thing,
)
from greylag.cluster.kubernetes.options import Network, Options, Template, networks, within
from greylag.domain.project import Environment

SERVICE_ACCOUNT = "greylag-environment"
AUTHORITIES = "greylag-authorities"
AUTHORITIES_FILE = "authorities.pem"
EPHEMERAL_REQUEST = "64Mi"
_BOUNDS_NAME = "greylag"

_NAMESPACE_NAME = "kubernetes.io/metadata.name"
_DNS_PORT = 53
_POD_SECURITY = "pod-security.kubernetes.io"


def shared_objects(environment: Environment, options: Options) -> list[dict[str, Any]]:
    """Return what must stand before any project of this user, in the order of applying."""
    return [
        _namespace(environment),
        _quota(environment, options),
        _limits(environment),
        *_network_policies(environment, options),
        thing(
            "ServiceAccount",
            shared_metadata(environment, SERVICE_ACCOUNT),
            automountServiceAccountToken=False,
        ),
        *([_authorities(environment, options)] if options.authorities else []),
    ]


def _authorities(environment: Environment, options: Options) -> dict[str, Any]:
    """Return whom environments trust; a file in them, as it is too long for a variable."""
    return thing(
        "ConfigMap",
        shared_metadata(environment, AUTHORITIES),
        data={AUTHORITIES_FILE: options.authorities},
    )


def _namespace(environment: Environment) -> dict[str, Any]:
    metadata = shared_metadata(environment, environment.names.namespace)
    del metadata["namespace"]
    # Whose it is decides about all that is in it, so that is written on its own: see ``Ownership``.
    metadata["labels"].pop(INSTANCE_LABEL, None)
    for mode in ("enforce", "audit", "warn"):
        metadata["labels"][f"{_POD_SECURITY}/{mode}"] = "restricted"
        metadata["labels"][f"{_POD_SECURITY}/{mode}-version"] = "latest"
    return thing("Namespace", metadata)


def _quota(environment: Environment, options: Options) -> dict[str, Any]:
    hard = {
        "requests.cpu": options.quota_cpu_requests,
        "requests.memory": options.quota_memory_requests,
        "limits.cpu": options.quota_cpu_limits,
        "limits.memory": options.quota_memory_limits,
        "limits.ephemeral-storage": options.most_ephemeral_storage,
        "requests.storage": options.most_storage,
        **_counts(options),
    }
    return thing("ResourceQuota", shared_metadata(environment, _BOUNDS_NAME), spec={"hard": hard})


def _counts(options: Options) -> dict[str, str]:
    """Return how many objects of each kind one user may have."""
    volumes, balancers = options.quota_volumes, options.quota_load_balancers
    if balancers is None:
        balancers = volumes if options.service_type == "LoadBalancer" else 0
    ports, objects = options.quota_node_ports, options.quota_objects
    kinds = ("secrets", "configmaps", "services", "deployments.apps", "ingresses.networking.k8s.io")
    most = str(2 * volumes + 10 if objects is None else objects)
    return {
        "persistentvolumeclaims": str(volumes),
        "services.loadbalancers": str(balancers),
        "services.nodeports": str(balancers if ports is None else ports),
        # Not ``count/pods``, in which those that were evicted stay for good.
        "pods": most,
        **{f"count/{kind}": most for kind in (*kinds, "replicasets.apps")},
    }


def _limits(environment: Environment) -> dict[str, Any]:
    usual = Template()
    bounds = {
        "type": "Container",
        "default": {
            "cpu": usual.cpu_limit,
            "memory": usual.memory_limit,
            "ephemeral-storage": usual.ephemeral_storage,
        },
        "defaultRequest": {
            "cpu": usual.cpu_request,
            "memory": usual.memory_request,
            "ephemeral-storage": EPHEMERAL_REQUEST,
        },
    }
    return thing(
        "LimitRange", shared_metadata(environment, _BOUNDS_NAME), spec={"limits": [bounds]}
    )


def _network_policies(environment: Environment, options: Options) -> list[dict[str, Any]]:
    """Return the policies of the user's namespace: nothing in or out, but for what is named."""
    ours = {"matchLabels": {MANAGED_BY_LABEL: MANAGED_BY}}
    agent = {
        "podSelector": ours,
        "policyTypes": ["Ingress", "Egress"],
        "ingress": _ingress(options),
        "egress": _egress(options),
    }
    nothing = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    return [
        _policy(environment, DENY_POLICY, nothing),
        _policy(environment, AGENT_POLICY, agent),
    ]


def _policy(environment: Environment, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return thing("NetworkPolicy", shared_metadata(environment, name), spec=spec)


def _ingress(options: Options) -> list[dict[str, Any]]:
    """Return the rule for the agent's port. Without a peer there is none: no peers would be all."""
    peers: list[dict[str, Any]] = []
    if options.platform_namespace:
        peers.append(_pods(options.platform_namespace, dict(options.platform_labels)))
    if options.ingress_base_domain and options.ingress_namespace:
        peers.append(_pods(options.ingress_namespace, {}))
    outside = dict.fromkeys((*options.platform_cidrs, *options.balancer_sources))
    peers.extend(_blocks(tuple(outside), networks(options.pod_cidrs)))
    if not peers:
        return []
    return [{"from": peers, "ports": [{"protocol": "TCP", "port": options.agent_port}]}]


def _egress(options: Options) -> list[dict[str, Any]]:
    dns = _pods(options.dns_namespace, dict(options.dns_labels))
    ports = [{"protocol": protocol, "port": _DNS_PORT} for protocol in ("UDP", "TCP")]
    outside = _blocks(options.egress_cidrs, options.closed_networks)
    return [{"to": [dns], "ports": ports}, *([{"to": outside}] if outside else [])]


def _pods(namespace: str, labels: dict[str, str]) -> dict[str, Any]:
    peer: dict[str, Any] = {"namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: namespace}}}
    if labels:
        peer["podSelector"] = {"matchLabels": labels}
    return peer


def _blocks(cidrs: Sequence[str], closed: Iterable[Network]) -> list[dict[str, Any]]:
    """Return a peer per range, each without what is closed of it.

    The API server takes only exceptions that lie in their range, so those elsewhere are left out.
    """
    blocks = []
    shut = sorted(set(closed), key=lambda net: net.prefixlen)
    for allowed in networks(cidrs):
        inner: list[Network] = []
        for net in shut:
            inside = net != allowed and within(net, allowed)
            if inside and not any(within(net, wider) for wider in inner):
                inner.append(net)
        block: dict[str, Any] = {"cidr": str(allowed)}
        if inner:
            block["except"] = sorted(str(net) for net in inner)
        blocks.append({"ipBlock": block})
    return blocks
