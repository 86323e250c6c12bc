"""How a project is reached: its Service and its Ingress."""

from typing import Any

from greylag.cluster.kubernetes.identity import labels, project_metadata, project_slug
from greylag.cluster.kubernetes.options import EVERYWHERE, Options
from greylag.cluster.kubernetes.workload import PORT_NAME
from greylag.domain.names import label
from greylag.domain.project import Project

_NGINX = "nginx.ingress.kubernetes.io"
# A stream is silent while the agent thinks, and lives as long as its turn.
_STREAMING = {
    f"{_NGINX}/proxy-buffering": "off",
    f"{_NGINX}/proxy-request-buffering": "off",
    f"{_NGINX}/proxy-read-timeout": "3600",
    f"{_NGINX}/proxy-send-timeout": "3600",
    f"{_NGINX}/proxy-body-size": "8m",
}


def service(project: Project, options: Options) -> dict[str, Any]:
    """Return the Service: the agent's port under the same number."""
    metadata = project_metadata(project, project.names.service)
    metadata["annotations"] |= dict(options.service_annotations)
    spec: dict[str, Any] = {
        "type": options.service_type,
        "selector": labels(project),
        "ports": [
            {
                "name": PORT_NAME,
                "port": options.agent_port,
                "targetPort": PORT_NAME,
                "protocol": "TCP",
            }
        ],
    }
    narrow = options.platform_cidrs and EVERYWHERE not in options.platform_cidrs
    if options.service_type == "LoadBalancer" and narrow:
        # The policy must see the caller's own address, not that of the node it came in by.
        spec["externalTrafficPolicy"] = "Local"
        spec["loadBalancerSourceRanges"] = list(options.platform_cidrs)
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def ingress(project: Project, options: Options) -> dict[str, Any] | None:
    """Return the Ingress, None when no base domain is set."""
    host = ingress_host(project, options)
    if host is None:
        return None
    metadata = project_metadata(project, project.names.ingress)
    metadata["annotations"] |= _STREAMING
    metadata["annotations"] |= dict(options.ingress_annotations)
    path: dict[str, Any] = {"path": path_prefix(project, options) or "/", "pathType": "Prefix"}
    backend = {"service": {"name": project.names.service, "port": {"name": PORT_NAME}}}
    spec: dict[str, Any] = {"rules": [{"host": host, "http": {"paths": [path]}}]}
    spec["rules"][0]["http"]["paths"][0]["backend"] = backend
    if options.ingress_class:
        spec["ingressClassName"] = options.ingress_class
    if options.ingress_tls:
        certificate = options.ingress_tls_secret
        spec["tls"] = [{"hosts": [host], **({"secretName": certificate} if certificate else {})}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata,
        "spec": spec,
    }


def ingress_host(project: Project, options: Options) -> str | None:
    """Return the host of the project's Ingress, None when it has none.

    With a host per project it is one label before the domain, so that one wildcard certificate
    and one DNS record serve all; the label ends in a hash, so that no two projects share it.
    """
    domain = options.ingress_base_domain
    if domain is None or options.ingress_routing == "path":
        return domain
    return f"{label(f'{project_slug(project)}.{project.names.namespace}')}.{domain}"


def ingress_url(project: Project, options: Options) -> str | None:
    """Return the URL under which the Ingress shows agentd's root, without a slash at its end."""
    host = ingress_host(project, options)
    if host is None:
        return None
    prefix = path_prefix(project, options) or ""
    return f"{'https' if options.ingress_tls else 'http'}://{host}{prefix}"


def path_prefix(project: Project, options: Options) -> str | None:
    """Return the path below which the Ingress shows the project, None when it has its own host.

    agentd takes it off itself: each ingress controller would want it asked for in its own way.
    """
    if options.ingress_base_domain is None or options.ingress_routing != "path":
        return None
    return f"/{project.names.namespace}/{project_slug(project)}"
