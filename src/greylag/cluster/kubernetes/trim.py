"""What of each object the watches keep: enough to tell how an environment is, and no more."""

from collections.abc import Mapping
from typing import Any

from greylag.cluster.kubernetes import drift

_META = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "labels",
    "creationTimestamp",
    "deletionTimestamp",
    "finalizers",
)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

# A kind that is not here keeps all of its spec and status.
_SPEC: Mapping[str, tuple[str, ...]] = {
    "Deployment": ("replicas",),
    "Ingress": ("ingressClassName", "rules", "tls"),
    "Namespace": (),
    "PersistentVolumeClaim": ("storageClassName", "volumeName"),
    "Pod": ("nodeName", "imagePullSecrets"),
    "Service": ("type", "clusterIP", "ports", "selector"),
}
_STATUS: Mapping[str, tuple[str, ...]] = {
    "Pod": ("phase", "reason", "message", "podIP", "conditions", "containerStatuses"),
}


def trim(kind: str, thing: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of ``thing``; its form stays that of Kubernetes.

    The fingerprint of what is not kept is added to it.
    """
    kept = {key: thing[key] for key in ("type", "reason", "message") if key in thing}
    kept["metadata"] = _some(thing["metadata"], _META)
    annotations = thing["metadata"].get("annotations") or {}
    kept["metadata"]["annotations"] = {
        key: value for key, value in annotations.items() if key != _LAST_APPLIED
    }
    spec, status = thing.get("spec") or {}, thing.get("status") or {}
    kept["spec"] = _some(spec, _SPEC[kind]) if kind in _SPEC else spec
    kept["status"] = _some(status, _STATUS[kind]) if kind in _STATUS else status
    if kind == "Pod":
        kept["spec"]["containers"] = [
            _some(one, ("name", "image")) for one in spec.get("containers") or ()
        ]
    if (mark := drift.fingerprint(kind, thing)) is not None:
        kept[drift.KEPT_AS] = mark
    return kept


def _some(of: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: of[key] for key in keys if key in of}
