"""The objects of an environment as plain dicts: pure functions of project and options.

`shared_objects` are what all projects of a user share, `project_objects` what one has for itself.
Both come in the order of applying, ready for server-side apply by `FIELD_MANAGER`.
"""

import base64
from typing import Any

from greylag.cluster.kubernetes.exposure import (
    ingress,
    ingress_host,
    ingress_url,
    path_prefix,
    service,
)
from greylag.cluster.kubernetes.identity import (
    CLAIM_ANNOTATION,
    FIELD_MANAGER,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    PROJECT_ID_ANNOTATION,
    PROJECT_LABEL,
    RECORD_ANNOTATION,
    SELECTOR,
    USER_ID_ANNOTATION,
    config_name,
    labels,
    project_metadata,
    project_slug,
    ref_of,
    secret_name,
    volume_claim_name,
)
from greylag.cluster.kubernetes.namespace import QUOTA_NAME, SERVICE_ACCOUNT, shared_objects
from greylag.cluster.kubernetes.options import Options
from greylag.cluster.kubernetes.templates import Template, chosen
from greylag.cluster.kubernetes.workload import CONTAINER, FOLDER, deployment
from greylag.domain.project import Project

__all__ = [
    "CLAIM_ANNOTATION",
    "CONTAINER",
    "FIELD_MANAGER",
    "MANAGED_BY",
    "MANAGED_BY_LABEL",
    "MODEL_KEY",
    "PROJECT_ID_ANNOTATION",
    "PROJECT_LABEL",
    "QUOTA_NAME",
    "RECORD_ANNOTATION",
    "SELECTOR",
    "SERVICE_ACCOUNT",
    "TOKEN_KEY",
    "USER_ID_ANNOTATION",
    "config_name",
    "ingress_host",
    "ingress_url",
    "labels",
    "project_objects",
    "project_slug",
    "ref_of",
    "secret_name",
    "shared_objects",
    "volume_claim_name",
]

TOKEN_KEY = "GREYLAG_AGENT_TOKEN"  # noqa: S105 - the variable's name
MODEL_KEY = "GREYLAG_MODEL_KEY"


def project_objects(
    project: Project, options: Options, *, token: str, replicas: int
) -> list[dict[str, Any]]:
    """Return Secret, ConfigMap, PersistentVolumeClaim, Service, Deployment and, maybe, Ingress.

    Args:
        project: whose environment it is.
        options: what the settings say.
        token: what the environment's agentd will demand.
        replicas: 0 to sleep, 1 to run.

    Raises:
        ClusterError: the project's template does not exist (terminal).
    """
    template = chosen(project, options.templates)
    door = ingress(project, options)
    return [
        _secret(project, options, token),
        _config(project, options, template),
        _volume_claim(project, options, template),
        service(project, options),
        deployment(project, options, template, replicas),
        *([door] if door else []),
    ]


def _secret(project: Project, options: Options, token: str) -> dict[str, Any]:
    values = {TOKEN_KEY: token}
    if options.model_key:
        values[MODEL_KEY] = options.model_key
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": project_metadata(project, secret_name(project)),
        "type": "Opaque",
        # Not stringData: server-side apply cannot own what the server does not keep.
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in values.items()},
    }


def _config(project: Project, options: Options, template: Template) -> dict[str, Any]:
    fixed = {
        "GOOSE_API_HOST": "0.0.0.0",  # noqa: S104 - the pod's own address, behind policy and token
        "GOOSE_API_PORT": str(options.agent_port),
        "GREYLAG_AGENT_FOLDER": FOLDER,
        "GREYLAG_ENVIRONMENT": f"{project.names.namespace}/{project_slug(project)}",
        "GREYLAG_LOG_FORMAT": "json",
    }
    if prefix := path_prefix(project, options):
        fixed["GREYLAG_PATH_PREFIX"] = prefix
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": project_metadata(project, config_name(project)),
        "data": {**options.model_environment, **template.environment, **fixed},
    }


def _volume_claim(project: Project, options: Options, template: Template) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": template.volume_size or options.volume_size}},
    }
    if options.storage_class:
        spec["storageClassName"] = options.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": project_metadata(project, volume_claim_name(project)),
        "spec": spec,
    }
