"""Noticing what somebody else changed in an object that Greylag has applied.

Each carries a fingerprint of what was applied; what the watches keep of it has a fingerprint of
what it is now. Fields that the API server or its controllers fill in by themselves do not count.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from greylag.cluster.kubernetes.identity import APPLIED_ANNOTATION

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
