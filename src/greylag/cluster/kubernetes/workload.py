"""The Deployment of a project, and the pod in it."""

from typing import Any

from greylag.cluster.kubernetes.identity import (
    CLAIM_ANNOTATION,
    RECORD_ANNOTATION,
    config_name,
    labels,
    project_metadata,
    secret_name,
    volume_claim_name,
)
from greylag.cluster.kubernetes.namespace import SERVICE_ACCOUNT
from greylag.cluster.kubernetes.options import Options
from greylag.cluster.kubernetes.templates import Template
from greylag.domain.project import Project

CONTAINER = "agent"
PORT_NAME = "http"
FOLDER = "/environment"
"""Where the volume is mounted; the image names the same folder."""

HEALTH_PATH = "/api/v1/health"
"""Answers 200 without a token once a message would be answered, else 503."""

ALIVE_PATH = "/"
"""Answers 200 without a token as long as agentd runs."""

_USER = 1000
_GRACE_SECONDS = 20
_TEMPORARY_SIZE = "1Gi"


def deployment(
    project: Project, options: Options, template: Template, replicas: int
) -> dict[str, Any]:
    """Return the Deployment with 0 or 1 ``replicas``."""
    metadata = project_metadata(project, project.names.deployment)
    metadata["annotations"] |= {
        RECORD_ANNOTATION: project.fence.record_id,
        CLAIM_ANNOTATION: str(project.fence.number),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            # Two pods must never write to one volume.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels(project)},
            "template": {
                "metadata": {
                    "labels": labels(project),
                    "annotations": project_metadata(project, "")["annotations"],
                },
                "spec": _pod(project, options, template),
            },
        },
    }


def _pod(project: Project, options: Options, template: Template) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        "runtimeClassName": options.runtime_class,
        "priorityClassName": options.priority_class,
        "nodeSelector": dict(options.node_selector),
        "tolerations": [dict(toleration) for toleration in options.tolerations],
    }
    if options.image_pull_secret:
        chosen["imagePullSecrets"] = [{"name": options.image_pull_secret}]
    return {
        "serviceAccountName": SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **{name: value for name, value in chosen.items() if value},
        "containers": [_container(project, options, template)],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": volume_claim_name(project)}},
            # agentd has its own folder for temporary files; scripts that tools run name /tmp.
            {"name": "tmp", "emptyDir": {"sizeLimit": _TEMPORARY_SIZE}},
        ],
    }


def _container(project: Project, options: Options, template: Template) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": template.image or options.image,
        "imagePullPolicy": options.image_pull_policy,
        "envFrom": [
            {"configMapRef": {"name": config_name(project)}},
            {"secretRef": {"name": secret_name(project)}},
        ],
        "ports": [{"name": PORT_NAME, "containerPort": options.agent_port, "protocol": "TCP"}],
        "resources": {
            "requests": {"cpu": template.cpu_request, "memory": template.memory_request},
            "limits": {"cpu": template.cpu_limit, "memory": template.memory_limit},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # A period of a second, as activation waits for it. No startup probe: readiness would be
        # asked only after it, and agentd itself answers within a second, whatever goose does.
        "readinessProbe": _probe(HEALTH_PATH, period=1, failures=3),
        # Health fails too while agentd starts a dead goose again; a kill then would end the turns
        # that it is about to save, so only an agentd that does not answer at all is restarted.
        "livenessProbe": _probe(ALIVE_PATH, period=10, failures=6),
        "volumeMounts": [
            {"name": "data", "mountPath": FOLDER},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
        ],
    }


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": PORT_NAME},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
