"""How objects say whose they are: names, labels, annotations.

Ids may be any text, so they stand in annotations; labels carry what Kubernetes takes as a label.
"""

from collections.abc import Mapping
from typing import Any

from greylag.domain.project import Project, ProjectRef

FIELD_MANAGER = "greylag"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "greylag"
PROJECT_LABEL = "greylag.dev/project"
USER_ID_ANNOTATION = "greylag.dev/user-id"
PROJECT_ID_ANNOTATION = "greylag.dev/project-id"
RECORD_ANNOTATION = "greylag.dev/record"
CLAIM_ANNOTATION = "greylag.dev/claim"
GENERATION_ANNOTATION = "greylag.dev/generation"
REMOVING_ANNOTATION = "greylag.dev/removing"
"""The record whose removal has begun; it is in force while the same record's claim is on."""
APPLIED_ANNOTATION = "greylag.dev/applied"
"""A fingerprint of what was applied: see ``drift``."""
START_ANNOTATION = "greylag.dev/start"
"""Stands on the Deployment and on its pods: a pod without the newest one is of the past."""
SELECTOR = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
"""Selects all that is ours, in a list or a watch."""


def project_slug(project: Project) -> str:
    """Return what all names of the project's objects begin with; a DNS label."""
    return project.names.deployment.removesuffix("-api")


def volume_claim_name(project: Project) -> str:
    """Return the PersistentVolumeClaim's name."""
    return f"{project_slug(project)}-data"


def secret_name(project: Project) -> str:
    """Return the name of the Secret with the environment's token."""
    return f"{project_slug(project)}-secret"


def config_name(project: Project) -> str:
    """Return the ConfigMap's name."""
    return f"{project_slug(project)}-config"


def labels(project: Project) -> dict[str, str]:
    """Return the labels of each object, and of the pods, of ``project``."""
    return {MANAGED_BY_LABEL: MANAGED_BY, PROJECT_LABEL: project_slug(project)}


def ref_of(obj: Mapping[str, Any]) -> ProjectRef | None:
    """Return whose object this is; None for what is not ours, or not one project's alone."""
    metadata = obj.get("metadata") or {}
    if (metadata.get("labels") or {}).get(MANAGED_BY_LABEL) != MANAGED_BY:
        return None
    annotations = metadata.get("annotations") or {}
    user_id = annotations.get(USER_ID_ANNOTATION)
    project_id = annotations.get(PROJECT_ID_ANNOTATION)
    return ProjectRef(user_id, project_id) if user_id and project_id else None


def project_metadata(project: Project, name: str) -> dict[str, Any]:
    """Return ``metadata`` of an object that is this project's alone."""
    return {
        "name": name,
        "namespace": project.names.namespace,
        "labels": labels(project),
        "annotations": {
            USER_ID_ANNOTATION: project.user_id,
            PROJECT_ID_ANNOTATION: project.project_id,
        },
    }


def shared_metadata(project: Project, name: str) -> dict[str, Any]:
    """Return ``metadata`` of an object in the user's namespace that all projects share."""
    return {
        "name": name,
        "namespace": project.names.namespace,
        "labels": {MANAGED_BY_LABEL: MANAGED_BY},
        "annotations": {USER_ID_ANNOTATION: project.user_id},
    }
