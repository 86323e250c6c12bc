"""Settings of environments on Kubernetes, parsed once; `docs/kubernetes.md` lists them."""

import ipaddress
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from greylag.cluster.kubernetes.connection import ConnectionOptions
from greylag.cluster.kubernetes.options import EVERYWHERE, Options, Reach, Template
from greylag.config import MODEL_KEY
from greylag.domain.errors import ConfigError

IN_CLUSTER_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
PRIVATE_RANGES = ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")

_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[KMGTPE]i|[MGTPE])?")


def _items(value: object) -> object:
    """Split ``a,b``."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _pairs(value: object) -> object:
    """Split ``key=value,key=value``."""
    if not isinstance(value, str):
        return value
    parts = [part.strip().partition("=") for part in value.split(",") if part.strip()]
    if not all(key and equals for key, equals, _ in parts):
        raise ValueError("must be key=value,key=value")
    return {key.strip(): text.strip() for key, _, text in parts}


def _json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value or "null")
    except ValueError as error:
        raise ValueError(f"must be JSON: {error}") from error


def _range(value: str) -> str:
    return str(ipaddress.ip_network(value))


def _quantity(value: str) -> str:
    if not _QUANTITY.fullmatch(value):
        raise ValueError(f"must be a quantity, as 500m or 2Gi, not {value!r}")
    return value


Quantity = Annotated[str, AfterValidator(_quantity)]
Pairs = Annotated[Mapping[str, str], NoDecode, BeforeValidator(_pairs)]
Ranges = Annotated[
    tuple[Annotated[str, AfterValidator(_range)], ...], NoDecode, BeforeValidator(_items)
]


class TemplateSettings(BaseModel):
    """One template as JSON has it; what is left out is as in the template ``default``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = None
    cpu_request: Quantity = "250m"
    memory_request: Quantity = "512Mi"
    cpu_limit: Quantity = "500m"
    memory_limit: Quantity = "1Gi"
    volume_size: Quantity | None = None
    environment: Mapping[str, str] = Field(default_factory=dict)


class Toleration(BaseModel):
    """One toleration of a pod, as Kubernetes has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str | None = None
    operator: Literal["Equal", "Exists"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = None  # noqa: N815 - the name that Kubernetes gives it


class KubernetesSettings(BaseSettings):
    """What environments on Kubernetes are like. Each is read as ``GREYLAG_KUBE_<NAME>``."""

    model_config = SettingsConfigDict(
        env_prefix="GREYLAG_KUBE_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    image: str | None = Field(None, validation_alias=AliasChoices("image", "ACR_IMAGE"))
    agent_port: int = Field(
        3001, ge=1024, le=65535, validation_alias=AliasChoices("agent_port", "GOOSE_API_PORT")
    )
    ingress_base_domain: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
        validation_alias=AliasChoices("ingress_base_domain", "INGRESS_BASE_DOMAIN"),
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secret: str | None = None
    storage_class: str | None = None
    volume_size: Quantity = "5Gi"
    service_type: Literal["LoadBalancer", "ClusterIP"] | None = None
    service_annotations: Pairs = Field(default_factory=dict)
    ingress_class: str | None = None
    ingress_routing: Literal["host", "path"] = "host"
    ingress_tls: bool = False
    ingress_tls_secret: str | None = None
    ingress_annotations: Pairs = Field(default_factory=dict)
    ingress_namespace: str | None = None
    platform_namespace: str | None = None
    platform_labels: Pairs = Field(default_factory=dict)
    platform_cidrs: Ranges = ()
    reach: Reach = "auto"
    probe: bool = True
    egress_cidrs: Ranges = (EVERYWHERE,)
    cluster_cidrs: Ranges = PRIVATE_RANGES
    pod_cidrs: Ranges = ()
    dns_namespace: str = "kube-system"
    dns_labels: Pairs = Field(default_factory=lambda: {"k8s-app": "kube-dns"})
    quota_cpu_requests: Quantity = "2"
    quota_memory_requests: Quantity = "4Gi"
    quota_cpu_limits: Quantity = "4"
    quota_memory_limits: Quantity = "8Gi"
    quota_volumes: int = Field(20, ge=1)
    runtime_class: str | None = None
    priority_class: str | None = None
    node_selector: Pairs = Field(default_factory=dict)
    tolerations: Annotated[tuple[Toleration, ...], NoDecode, BeforeValidator(_json)] = ()
    templates: Annotated[Mapping[str, TemplateSettings], NoDecode, BeforeValidator(_json)] = Field(
        default_factory=dict
    )


class ConnectionSettings(BaseSettings):
    """Which cluster it is; read as ``KUBE_<NAME>``, and ``KUBECONFIG`` as everywhere."""

    model_config = SettingsConfigDict(
        env_prefix="KUBE_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    config_base64: SecretStr = SecretStr("")
    host: str = ""
    token: SecretStr = SecretStr("")
    ca: SecretStr = SecretStr("")
    context: str = ""
    kubeconfig: str = Field("", validation_alias="KUBECONFIG")

    def options(self) -> ConnectionOptions:
        """Return them as the adapter takes them; without any, kubectl's own file."""
        usual = Path("~/.kube/config").expanduser()
        return ConnectionOptions(
            kubeconfig_base64=self.config_base64.get_secret_value(),
            host=self.host,
            token=self.token.get_secret_value(),
            ca=self.ca.get_secret_value(),
            kubeconfig=self.kubeconfig or (str(usual) if usual.is_file() else ""),
            context=self.context,
        )


def load_kubernetes_settings() -> KubernetesSettings:
    """Parse the settings.

    Raises:
        ConfigError: one is wrong; the sentence names it.
    """
    try:
        return KubernetesSettings()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name, *inside = (str(part) for part in first["loc"])
        where = f" ({'.'.join(inside)})" if inside else ""
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{_variable(name)}{where}: {reason}.") from None


def kubernetes_options(given: KubernetesSettings, environment: Mapping[str, str]) -> Options:
    """Return the adapter's options.

    Args:
        given: the settings.
        environment: agentd's variables (`agent_environment`), with or without the model's key.

    Raises:
        ConfigError: there is no image, or the ranges of addresses contradict each other.
    """
    if given.image is None:
        raise ConfigError("ACR_IMAGE is not set: it names the image of the environments.")
    platform = given.platform_namespace or _own_namespace()
    service_type = given.service_type
    if service_type is None:
        reached_inside = given.ingress_base_domain or platform
        service_type = "ClusterIP" if reached_inside else "LoadBalancer"
    # Outside of the cluster our own address is not known: there the token alone tells who it is.
    anywhere = () if platform else (EVERYWHERE,)
    told = {name: value for name, value in environment.items() if name != MODEL_KEY}
    return Options(
        **_as_they_are(given),
        image=given.image,
        service_type=service_type,
        platform_namespace=platform,
        platform_cidrs=given.platform_cidrs or anywhere,
        quota=_quota(given),
        tolerations=tuple(entry.model_dump(exclude_none=True) for entry in given.tolerations),
        templates={name: Template(**shape.model_dump()) for name, shape in given.templates.items()},
        model_environment=told,
        model_key=environment.get(MODEL_KEY),
    )


def _as_they_are(given: KubernetesSettings) -> dict[str, Any]:
    """Return the settings that are options of the same name and need no change."""
    changed = {"image", "service_type", "platform_namespace", "platform_cidrs"}
    return {
        name: getattr(given, name)
        for name in KubernetesSettings.model_fields
        if name not in changed | {"tolerations", "templates"} and not name.startswith("quota_")
    }


def _quota(given: KubernetesSettings) -> dict[str, str]:
    return {
        "requests.cpu": given.quota_cpu_requests,
        "requests.memory": given.quota_memory_requests,
        "limits.cpu": given.quota_cpu_limits,
        "limits.memory": given.quota_memory_limits,
        "persistentvolumeclaims": str(given.quota_volumes),
    }


def _own_namespace() -> str | None:
    """Return the namespace that we run in ourselves, None outside of a cluster."""
    try:
        return IN_CLUSTER_NAMESPACE.read_text("utf-8").strip() or None
    except OSError:
        return None


def _variable(field: str) -> str:
    alias = getattr(KubernetesSettings.model_fields.get(field), "validation_alias", None)
    if isinstance(alias, AliasChoices):
        return str(alias.choices[-1])
    return field if field.isupper() else f"GREYLAG_KUBE_{field}".upper()
