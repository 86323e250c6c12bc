"""How objects say whose they are: names, labels, annotations.

Ids may be any text, so they stand in annotations; labels carry what Kubernetes takes as a label.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from greylag.domain.project import Environment, ProjectRef

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


def project_slug(environment: Environment) -> str:
    """Return what all names of the project's objects begin with; a DNS label."""
    return environment.names.deployment.removesuffix("-api")


def volume_claim_name(environment: Environment) -> str:
    """Return the PersistentVolumeClaim's name."""
    return f"{project_slug(environment)}-data"


def secret_name(environment: Environment) -> str:
    """Return the name of the Secret with the environment's token."""
    return f"{project_slug(environment)}-secret"


def config_name(environment: Environment) -> str:
    """Return the ConfigMap's name."""
    return f"{project_slug(environment)}-config"


def labels(environment: Environment) -> dict[str, str]:
    """Return the labels of each object, and of the pods, of ``project``."""
    return {MANAGED_BY_LABEL: MANAGED_BY, PROJECT_LABEL: project_slug(environment)}


def ref_of(obj: Mapping[str, Any]) -> ProjectRef | None:
    """Return whose object this is; None for what is not ours, or not one project's alone."""
    metadata = obj.get("metadata") or {}
    if (metadata.get("labels") or {}).get(MANAGED_BY_LABEL) != MANAGED_BY:
        return None
    annotations = metadata.get("annotations") or {}
    user_id = annotations.get(USER_ID_ANNOTATION)
    project_id = annotations.get(PROJECT_ID_ANNOTATION)
    return ProjectRef(user_id, project_id) if user_id and project_id else None


def project_metadata(environment: Environment, name: str) -> dict[str, Any]:
    """Return ``metadata`` of an object that is this project's alone."""
    return {
        "name": name,
        "namespace": environment.names.namespace,
        "labels": labels(environment),
        "annotations": {
            USER_ID_ANNOTATION: environment.ref.user_id,
            PROJECT_ID_ANNOTATION: environment.ref.project_id,
        },
    }


def shared_metadata(environment: Environment, name: str) -> dict[str, Any]:
    """Return ``metadata`` of an object in the user's namespace that all projects share."""
    return {
        "name": name,
        "namespace": environment.names.namespace,
        "labels": {MANAGED_BY_LABEL: MANAGED_BY},
        "annotations": {USER_ID_ANNOTATION: environment.ref.user_id},
    }


# The kinds of objects that Greylag touches, and where the API server keeps them.


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind: its group ("" is the core), version and name in paths."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """Return the path of one object, or of all of ``namespace``, or of all that there are."""
        parts = ["/apis", self.group] if self.group else ["/api"]
        parts.append(self.version)
        if self.namespaced and namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        elif self.namespaced and name is not None:
            raise ValueError(f"one of {self.plural} is found only with its namespace")
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        return "/".join(parts)


KINDS: Mapping[str, Kind] = {
    "ConfigMap": Kind("", "v1", "configmaps"),
    "Deployment": Kind("apps", "v1", "deployments"),
    "Event": Kind("", "v1", "events"),
    "Ingress": Kind("networking.k8s.io", "v1", "ingresses"),
    "LimitRange": Kind("", "v1", "limitranges"),
    "Namespace": Kind("", "v1", "namespaces", namespaced=False),
    "NetworkPolicy": Kind("networking.k8s.io", "v1", "networkpolicies"),
    "PersistentVolumeClaim": Kind("", "v1", "persistentvolumeclaims"),
    "Pod": Kind("", "v1", "pods"),
    "ResourceQuota": Kind("", "v1", "resourcequotas"),
    "Secret": Kind("", "v1", "secrets"),
    "Service": Kind("", "v1", "services"),
    "ServiceAccount": Kind("", "v1", "serviceaccounts"),
}


# Noticing what somebody else changed in an object that Greylag has applied.
#
# Each carries a fingerprint of what was applied; what the watches keep of it has a fingerprint of
# what it is now. Fields that the API server or its controllers fill in by themselves do not count.

KEPT_AS = "fingerprint"
"""Where the watches keep it; no field of Kubernetes has this name there."""

_LENGTH = 16
_KINDS = frozenset({"Deployment", "Ingress", "NetworkPolicy", "Service"})


def fingerprint(kind: str, thing: Mapping[str, Any]) -> str | None:
    """Return a short text that changes with what matters of ``thing``; ``None`` for other kinds."""
    if kind not in _KINDS:
        return None
    spec = dict(thing.get("spec") or {})
    if kind == "Deployment":
        spec.pop("replicas", None)  # a wish of its own, which `stop` writes too
    if kind == "Service":
        spec = {key: spec.get(key) for key in ("selector", "type")} | {"ports": _ports(spec)}
    whole = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return sha256(whole.encode()).hexdigest()[:_LENGTH]


def signed(thing: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the fingerprint that it will most likely have."""
    mark = fingerprint(thing["kind"], thing)
    # What the API server adds to a Deployment cannot be foretold, so that is signed afterwards.
    if mark is None or thing["kind"] == "Deployment":
        return dict(thing)
    metadata = dict(thing["metadata"])
    metadata["annotations"] = {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: mark}
    return {**thing, "metadata": metadata}


def missing_signature(kind: str, applied: Mapping[str, Any]) -> str | None:
    """Return the fingerprint that an applied object lacks, ``None`` when it has the right one."""
    mark = fingerprint(kind, applied)
    return None if mark == _said(applied) else mark


def is_edited(kept: Mapping[str, Any]) -> bool:
    """Tell whether an object, as the watches keep it, is not as it was applied."""
    mark, said = kept.get(KEPT_AS), _said(kept)
    return mark is not None and said is not None and mark != said


def _said(thing: Mapping[str, Any]) -> str | None:
    said = (thing["metadata"].get("annotations") or {}).get(APPLIED_ANNOTATION)
    return None if said is None else str(said)


def _ports(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = ("name", "port", "protocol", "targetPort")
    return [{key: one.get(key) for key in told} for one in spec.get("ports") or ()]
