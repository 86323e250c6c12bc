"""What all projects of a user share: the namespace and what bounds it."""

from typing import Any

from greylag.cluster.kubernetes.identity import shared_metadata
from greylag.cluster.kubernetes.network import network_policies
from greylag.cluster.kubernetes.options import Options
from greylag.domain.project import Project

SERVICE_ACCOUNT = "greylag-environment"
QUOTA_NAME = "greylag"

_POD_SECURITY = "pod-security.kubernetes.io"


def shared_objects(project: Project, options: Options) -> list[dict[str, Any]]:
    """Return what must stand before any project of this user, in the order of applying."""
    return [
        _namespace(project),
        _quota(project, options),
        _limits(project, options),
        *network_policies(project, options),
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": shared_metadata(project, SERVICE_ACCOUNT),
            "automountServiceAccountToken": False,
        },
    ]


def _namespace(project: Project) -> dict[str, Any]:
    metadata = shared_metadata(project, project.names.namespace)
    del metadata["namespace"]
    for mode in ("enforce", "audit", "warn"):
        metadata["labels"][f"{_POD_SECURITY}/{mode}"] = "restricted"
        metadata["labels"][f"{_POD_SECURITY}/{mode}-version"] = "latest"
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _quota(project: Project, options: Options) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": shared_metadata(project, QUOTA_NAME),
        "spec": {"hard": dict(options.quota)},
    }


def _limits(project: Project, options: Options) -> dict[str, Any]:
    bounds = {
        "type": "Container",
        "default": dict(options.limit_defaults),
        "defaultRequest": dict(options.request_defaults),
    }
    return {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": shared_metadata(project, "greylag"),
        "spec": {"limits": [bounds]},
    }
