"""The kinds of objects that Greylag touches, and where the API server keeps them."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote


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
