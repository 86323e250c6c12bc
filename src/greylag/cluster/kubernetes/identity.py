"""What an object says of itself: whose it is, and what it was when Greylag applied it.

Ids may be any text, so they stand in annotations; labels carry what Kubernetes takes as a label.
A fingerprint among the annotations tells what was applied. What the informers keep of an object has
a fingerprint of what it is now, so that what somebody else changed is noticed; fields that the API
server or its controllers fill in by themselves do not count. ``KINDS`` says where the API server
keeps each kind.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from greylag.domain.project import Environment, ProjectRef

Object = Mapping[str, Any]
"""An object of Kubernetes, as its JSON has it."""

FIELD_MANAGER = "greylag"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "greylag"
PROJECT_LABEL = "greylag.dev/project"
INSTANCE_LABEL = "greylag.dev/instance"
"""Which Greylag's it is. What a namespace says counts for all that is in it."""
SETTINGS_ANNOTATION = "greylag.dev/settings"
"""A digest of the settings that the Deployment was applied with; see ``settings_digest``."""
NAME_ANNOTATION = "greylag.dev/name"
TEMPLATE_ANNOTATION = "greylag.dev/template"
"""What a record says that is lost, as JSON: for `greylag orphans --adopt`."""
USER_ID_ANNOTATION = "greylag.dev/user-id"
PROJECT_ID_ANNOTATION = "greylag.dev/project-id"
RECORD_ANNOTATION = "greylag.dev/record"
CLAIM_ANNOTATION = "greylag.dev/claim"
GENERATION_ANNOTATION = "greylag.dev/generation"
REMOVING_ANNOTATION = "greylag.dev/removing"
"""The record whose removal has begun; it is in force while the same record's claim is on."""
APPLIED_ANNOTATION = "greylag.dev/applied"
"""The fingerprint of what was applied."""
MANIFEST_ANNOTATION = "greylag.dev/manifest"
"""A digest of the manifest that an object was applied from."""
START_ANNOTATION = "greylag.dev/start"
"""Stands on the Deployment and on its pods: a pod without the newest one is of the past."""
TOKEN_KEY = "GREYLAG_AGENT_TOKEN"  # noqa: S105 - the variable's name
DENY_POLICY, AGENT_POLICY = "greylag-default-deny", "greylag-agent"
SELECTOR = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
"""Selects all that is ours, in a list or a watch."""

FINGERPRINT = "fingerprint"
"""Where the informers keep it; no field of Kubernetes has this name there."""

CHANGED_BY = "changedBy"
"""The same: the name of whoever, beside us, wrote an object's fields last."""
UNSTABLE = "unstable"
"""In place of a fingerprint: the cluster itself changes the object with each write."""

_FINGERPRINT_LENGTH = 16
_FINGERPRINTED = frozenset({"Deployment", "Ingress", "NetworkPolicy", "Secret", "Service"})


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object, of version ``v1``: its group ("" is the core) and name in paths."""

    group: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """What its objects have in ``apiVersion``."""
        return f"{self.group}/v1" if self.group else "v1"

    def path(self, namespace: str | None = None, name: str | None = None) -> str:
        """Return the path of one object, or of all of ``namespace``, or of all that there are."""
        parts = ["/apis" if self.group else "/api", self.api_version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        elif self.namespaced and name is not None:
            raise ValueError(f"one of {self.plural} is found only with its namespace")
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        return "/".join(parts)


KINDS: Mapping[str, Kind] = {
    "ConfigMap": Kind("", "configmaps"),
    "Deployment": Kind("apps", "deployments"),
    "Event": Kind("", "events"),
    "Ingress": Kind("networking.k8s.io", "ingresses"),
    "LimitRange": Kind("", "limitranges"),
    "Namespace": Kind("", "namespaces", namespaced=False),
    "NetworkPolicy": Kind("networking.k8s.io", "networkpolicies"),
    "PersistentVolumeClaim": Kind("", "persistentvolumeclaims"),
    "Pod": Kind("", "pods"),
    "ResourceQuota": Kind("", "resourcequotas"),
    "Secret": Kind("", "secrets"),
    "Service": Kind("", "services"),
    "ServiceAccount": Kind("", "serviceaccounts"),
}


def thing(kind: str, metadata: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """Return an object of one of ``KINDS``, in the order in which manifests have it."""
    return {"apiVersion": KINDS[kind].api_version, "kind": kind, "metadata": metadata, **rest}


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
    """Return the labels of each object of the environment, and of its pods."""
    return {MANAGED_BY_LABEL: MANAGED_BY, PROJECT_LABEL: project_slug(environment)}


def project_selector(environment: Environment) -> str:
    """Return what selects the environment's objects in its namespace."""
    return f"{PROJECT_LABEL}={project_slug(environment)}"


def shared_metadata(environment: Environment, name: str) -> dict[str, Any]:
    """Return ``metadata`` of an object in the user's namespace that all projects share."""
    instance = {INSTANCE_LABEL: environment.instance} if environment.instance else {}
    return {
        "name": name,
        "namespace": environment.names.namespace,
        "labels": {MANAGED_BY_LABEL: MANAGED_BY, **instance},
        "annotations": {USER_ID_ANNOTATION: environment.ref.user_id},
    }


def project_metadata(environment: Environment, name: str) -> dict[str, Any]:
    """Return ``metadata`` of an object that is this project's alone."""
    metadata = shared_metadata(environment, name)
    metadata["labels"] = labels(environment) | metadata["labels"]
    metadata["annotations"][PROJECT_ID_ANNOTATION] = environment.ref.project_id
    return metadata


def label_of(thing: Object | None, name: str) -> str | None:
    """Return a label of an object, None when it has none of this name."""
    return _metadata(thing, "labels").get(name)


def annotation_of(thing: Object | None, name: str) -> str | None:
    """Return an annotation of an object, None when it has none of this name."""
    return _metadata(thing, "annotations").get(name)


def noted(thing: Object | None, name: str) -> object:
    """Return what an annotation says in JSON, None where it is not there or says nothing."""
    try:
        found: object = json.loads(annotation_of(thing, name) or "null")
    except ValueError:
        return None
    return found


def is_ours(thing: Object | None) -> bool:
    """Tell whether Greylag has made an object."""
    return label_of(thing, MANAGED_BY_LABEL) == MANAGED_BY


def ref_of(thing: Object) -> ProjectRef | None:
    """Return whose object this is; None for what is not ours, or not one project's alone."""
    if not is_ours(thing):
        return None
    user_id = annotation_of(thing, USER_ID_ANNOTATION)
    project_id = annotation_of(thing, PROJECT_ID_ANNOTATION)
    return ProjectRef(user_id, project_id) if user_id and project_id else None


def fingerprint(kind: str, thing: Object) -> str | None:
    """Return a short text that changes with what matters of ``thing``; None for other kinds."""
    if kind not in _FINGERPRINTED:
        return None
    spec = dict(thing.get("data" if kind == "Secret" else "spec") or {})
    if kind == "Deployment":
        spec.pop("replicas", None)  # a wish of its own, which `stop` writes too
    if kind == "Service":
        spec = {key: spec.get(key) for key in ("selector", "type")} | {"ports": _ports(spec)}
    whole = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return sha256(whole.encode()).hexdigest()[:_FINGERPRINT_LENGTH]


def signed(thing: Object) -> dict[str, Any]:
    """Return a manifest with the fingerprint that it will most likely have."""
    mark = fingerprint(thing["kind"], thing)
    # What the API server adds to a Deployment cannot be foretold, so that is signed afterwards.
    if mark is None or thing["kind"] == "Deployment":
        return dict(thing)
    metadata = dict(thing["metadata"])
    metadata["annotations"] = {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: mark}
    return {**thing, "metadata": metadata}


def missing_signature(kind: str, applied: Object) -> str | None:
    """Return the fingerprint that an applied object lacks, None when it has the right one."""
    mark = fingerprint(kind, applied)
    return None if mark == annotation_of(applied, APPLIED_ANNOTATION) else mark


def is_edited(kept: Object) -> bool:
    """Tell whether an object, as the informers keep it, is not as it was applied."""
    mark, applied = kept.get(FINGERPRINT), annotation_of(kept, APPLIED_ANNOTATION)
    return mark is not None and applied not in {None, UNSTABLE, mark}


def changed_by(thing: Object) -> str:
    """Return who, beside us, wrote fields of an object last, "" when nobody did."""
    others = [
        one
        for one in thing["metadata"].get("managedFields") or ()
        if one.get("manager") != FIELD_MANAGER and not one.get("subresource")
    ]
    newest: Object = max(others, key=lambda one: one.get("time") or "", default={})
    return str(newest.get("manager", ""))


def _metadata(thing: Object | None, part: str) -> Mapping[str, str]:
    found: Mapping[str, str] | None = ((thing or {}).get("metadata") or {}).get(part)
    return found or {}


def _ports(spec: Object) -> list[dict[str, Any]]:
    compared = ("name", "port", "protocol", "targetPort")
    return [{key: one.get(key) for key in compared} for one in spec.get("ports") or ()]
