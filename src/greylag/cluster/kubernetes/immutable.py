"""What Kubernetes does not let be changed of an object that exists, though a setting has changed.

Such a field stays as it is there, so that the environment goes on with it: a volume's class and
access modes, a size that would shrink or that its class cannot grow, a Deployment's selector.
``kept_as_it_is`` says of a volume what a setting now asks for in vain. Pure.
"""

from typing import Any

from greylag.cluster.kubernetes.identity import Object
from greylag.cluster.kubernetes.options import quantity

_VOLUME_FIELDS = ("storageClassName", "accessModes")


def fitted(wanted: Object, there: Object | None) -> dict[str, Any]:
    """Return a manifest that the API server takes in place of what is there.

    Args:
        wanted: the manifest as the settings make it.
        there: the object as it is kept by the informers, ``None`` when there is none.
    """
    if there is None:
        return dict(wanted)
    if wanted["kind"] == "PersistentVolumeClaim":
        kept = {name: there["spec"][name] for name in _VOLUME_FIELDS if name in there["spec"]}
        spec = {**wanted["spec"], **kept}
        if _size(wanted) < _size(there):
            spec["resources"] = {
                "requests": {"storage": there["spec"]["resources"]["requests"]["storage"]}
            }
        return {**wanted, "spec": spec}
    if wanted["kind"] == "Deployment" and (selector := there["spec"].get("selector")):
        template = wanted["spec"]["template"]
        chosen = {**template["metadata"]["labels"], **selector["matchLabels"]}
        meta = {**template["metadata"], "labels": chosen}
        changed = {"selector": selector, "template": {**template, "metadata": meta}}
        return {**wanted, "spec": {**wanted["spec"], **changed}}
    return dict(wanted)


def unresized(claim: Object, there: Object) -> dict[str, Any]:
    """Return the manifest of a volume claim with the size that it has."""
    return {**claim, "spec": {**claim["spec"], "resources": there["spec"]["resources"]}}


def kept_as_it_is(there: Object, *, size: str, storage_class: str | None) -> str:
    """Say what of a volume is not as the settings have it, "" where nothing is.

    Args:
        there: the claim.
        size: what the settings say.
        storage_class: the same; ``None``: they say nothing.
    """
    has = there["spec"]["resources"]["requests"]["storage"]
    its_class = there["spec"].get("storageClassName")
    said = []
    if quantity(has) != quantity(size):
        why = "cannot shrink" if quantity(size) < quantity(has) else "is not grown by its class"
        said.append(f"its size {has}, as a volume {why} to {size}")
    if storage_class is not None and its_class not in {None, storage_class}:
        said.append(f"its class {its_class}, as it cannot move to {storage_class}")
    return f"The volume keeps {' and '.join(said)}." if said else ""


def _size(claim: Object) -> Any:
    return quantity(claim["spec"]["resources"]["requests"]["storage"])
