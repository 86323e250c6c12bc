"""The objects that one environment has for itself, as plain dicts: pure functions of settings.

What all projects of a user share is in ``isolation``.
"""

import base64
import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import yaml

from greylag.cluster.kubernetes.identity import (
    CLAIM_ANNOTATION,
    NAME_ANNOTATION,
    RECORD_ANNOTATION,
    TEMPLATE_ANNOTATION,
    TOKEN_KEY,
    config_name,
    labels,
    project_metadata,
    project_slug,
    secret_name,
    thing,
    volume_claim_name,
)
from greylag.cluster.kubernetes.isolation import (
    AUTHORITIES,
    AUTHORITIES_FILE,
    EPHEMERAL_REQUEST,
    SERVICE_ACCOUNT,
    shared_objects,
)
from greylag.cluster.kubernetes.options import Options, Template, halves
from greylag.domain.names import label
from greylag.domain.project import Environment

MODEL_KEY = "GREYLAG_MODEL_KEY"
_SECRET = (MODEL_KEY, "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")

AGENTD, EXECD = "agentd", "execd"
PORT_NAME = "http"
FOLDER = "/environment"
"""Where the parts of the volume are mounted; the image names the same folder."""

HEALTH_PATH = "/api/v1/health"
"""Answers 200 without a token once a message would be answered, else 503."""

ALIVE_PATH = "/"
"""Answers 200 without a token as long as agentd runs."""

_GRACE_SECONDS = 20
_AUTHORITIES_FOLDER = "/etc/greylag"
_AUTHORITIES_VOLUME = {"name": "authorities", "configMap": {"name": AUTHORITIES}}
_AUTHORITIES_MOUNT = {"name": "authorities", "mountPath": _AUTHORITIES_FOLDER, "readOnly": True}
_DIGEST_LENGTH = 16
_SOCKET_FOLDER = "/run/greylag"
_SOCKET = f"{_SOCKET_FOLDER}/execd"
_SOCKET_SIZE = "1Mi"
_TOOLS = "/opt/greylag"  # execd and goose, where the image has them
_TOOLS_VOLUME = {"name": "tools", "emptyDir": {"sizeLimit": "1Gi"}}
_TOOLS_MOUNT = {"name": "tools", "mountPath": _TOOLS, "readOnly": True}
_MOST_PROCESSES = "2048"
# The kubelet makes this file on the node's disk, writable for anybody, and counts it nowhere: it
# lies where only root may enter.
_LAST_WORDS = "/root/termination-log"
_THEIRS = ("workspace", "home", "tmp")  # of the volume, for execd alone
# Tools have their own folder for temporary files; scripts that they run name this one. It is of the
# volume too: on the node's disk Kubernetes counts neither files without a name nor inodes.
_SCRATCH = {"name": "data", "mountPath": "/tmp", "subPath": "scratch"}  # noqa: S108 - the pod's own
_POD_LIMITS_SINCE = 34  # before, an API server may refuse what it does not know

_NGINX = "nginx.ingress.kubernetes.io"
# A stream is silent while the agent thinks, and lives as long as its turn.
_STREAMING = {
    f"{_NGINX}/proxy-buffering": "off",
    f"{_NGINX}/proxy-request-buffering": "off",
    f"{_NGINX}/proxy-read-timeout": "3600",
    f"{_NGINX}/proxy-send-timeout": "3600",
    f"{_NGINX}/proxy-body-size": "8m",
}

_PLACEHOLDERS = {
    TOKEN_KEY: "REPLACE-WITH-A-RANDOM-TOKEN",
    MODEL_KEY: "REPLACE-WITH-THE-MODEL-PROVIDER-KEY",
    **dict.fromkeys(_SECRET[1:], "REPLACE-WITH-THE-ADDRESS-OF-THE-PROXY"),
}
_HEADING = """\
# The environment of project {project} of user {user}, as these settings make it.
# Secrets are not printed: replace each value that begins with REPLACE-WITH before you apply this.
# Greylag makes a token of its own for each environment and keeps it in the Secret.
"""


def project_objects(
    environment: Environment,
    options: Options,
    variables: Mapping[str, str],
    *,
    token: str,
    replicas: int,
) -> list[dict[str, Any]]:
    """Return Secret, ConfigMap, PersistentVolumeClaim, Service, Deployment and, maybe, Ingress.

    That is the order of applying; all are ready for server-side apply.

    Args:
        environment: which environment.
        options: what the settings say.
        variables: agentd's environment variables; the model provider's key, and proxies, which may
            hold passwords, go into the Secret.
        token: what the environment's agentd will demand.
        replicas: 0 to sleep, 1 to run.

    Raises:
        ClusterError: the project's template does not exist (terminal).
    """
    template = options.template_of(environment)
    secrets = {TOKEN_KEY: token} | {key: variables[key] for key in _SECRET if key in variables}
    plain = {name: value for name, value in variables.items() if name not in _SECRET}
    ingress = _ingress(environment, options)
    return [
        _secret(environment, secrets),
        _config(environment, options, {**plain, **template.environment}),
        _volume_claim(environment, options, template),
        _service(environment, options),
        _deployment(environment, options, template, replicas),
        *([ingress] if ingress else []),
    ]


def settings_digest(
    environment: Environment, options: Options, variables: Mapping[str, str], key: str
) -> str:
    """Return a short text that changes with what only a new start gives an environment: its pod,
    its variables, the provider's key, whom it trusts, and the ``key`` (named by its id) of its
    token.

    It is salted with the record's id, lest environments tell which of them share a key. Raises as
    ``project_objects``.
    """
    things = project_objects(environment, options, variables, token="", replicas=1)
    kept = {one["kind"]: one.get("data") or one["spec"] for one in things}
    kept["Deployment"] = kept["Deployment"]["template"]["spec"]
    parts = [kept[kind] for kind in ("Secret", "ConfigMap", "Deployment")]
    # Only where there are some: without, what an earlier version applied is not outdated by this.
    parts += [options.authorities] if options.authorities else []
    whole = json.dumps([environment.id, key, *parts], sort_keys=True)
    return sha256(whole.encode()).hexdigest()[:_DIGEST_LENGTH]


def has_pod_limits(version: str) -> bool:
    """Tell whether Kubernetes of this version (``v1.34.1``) has limits of whole pods."""
    known = re.match(r"v1\.(\d+)", version)
    return known is not None and int(known.group(1)) >= _POD_LIMITS_SINCE


def printed(
    environment: Environment, options: Options, variables: Mapping[str, str], *, replicas: int
) -> str:
    """Return all objects of one environment as YAML for ``kubectl apply``, without any secret.

    Args:
        environment: which environment; no record needs to exist.
        options: what the settings say.
        variables: agentd's environment variables.
        replicas: 0 for a sleeping environment.

    Raises:
        ClusterError: the template does not exist.
    """
    hidden = {name: _PLACEHOLDERS[name] for name in _SECRET if name in variables}
    variables = {**variables, **hidden}
    token = _PLACEHOLDERS[TOKEN_KEY]
    objects = shared_objects(environment, options)
    objects += project_objects(environment, options, variables, token=token, replicas=replicas)
    ref = environment.ref
    heading = _HEADING.format(project=json.dumps(ref.project_id), user=json.dumps(ref.user_id))
    # Through JSON, so that nothing is one object in two places, which YAML would print as an alias.
    plain = [json.loads(json.dumps(_readable(each))) for each in objects]
    return heading + str(yaml.safe_dump_all(plain, sort_keys=False, explicit_start=True))


def ingress_url(environment: Environment, options: Options) -> str | None:
    """Return the URL under which the Ingress shows agentd's root, without a slash at its end."""
    host = _ingress_host(environment, options)
    if host is None:
        return None
    prefix = _path_prefix(environment, options) or ""
    return f"{'https' if options.ingress_tls else 'http'}://{host}{prefix}"


def _secret(environment: Environment, values: Mapping[str, str]) -> dict[str, Any]:
    return thing(
        "Secret",
        project_metadata(environment, secret_name(environment)),
        type="Opaque",
        # Not stringData: server-side apply cannot own what the server does not keep.
        data={name: base64.b64encode(value.encode()).decode() for name, value in values.items()},
    )


def _config(
    environment: Environment, options: Options, variables: Mapping[str, str]
) -> dict[str, Any]:
    fixed = {
        "GOOSE_API_HOST": "0.0.0.0",  # noqa: S104 - the pod's own address, behind policy and token
        "GOOSE_API_PORT": str(options.agent_port),
        "GREYLAG_AGENT_FOLDER": FOLDER,
        "GREYLAG_EXECD_SOCKET": _SOCKET,
        "GREYLAG_ENVIRONMENT": f"{environment.names.namespace}/{project_slug(environment)}",
        "GREYLAG_LOG_FORMAT": "json",
    }
    if prefix := _path_prefix(environment, options):
        fixed["GREYLAG_PATH_PREFIX"] = prefix
    if options.authorities:
        fixed["SSL_CERT_FILE"] = f"{_AUTHORITIES_FOLDER}/{AUTHORITIES_FILE}"
    return thing(
        "ConfigMap",
        project_metadata(environment, config_name(environment)),
        data={"GREYLAG_GOOSE": f"{_TOOLS}/bin/goose", **variables, **fixed},
    )


def _volume_claim(environment: Environment, options: Options, template: Template) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": template.volume_size or options.volume_size}},
    }
    if options.storage_class:
        spec["storageClassName"] = options.storage_class
    return thing(
        "PersistentVolumeClaim",
        project_metadata(environment, volume_claim_name(environment)),
        spec=spec,
    )


def _service(environment: Environment, options: Options) -> dict[str, Any]:
    """Return the Service: the agent's port under the same number."""
    metadata = project_metadata(environment, environment.names.service)
    metadata["annotations"] |= dict(options.service_annotations)
    spec: dict[str, Any] = {
        "type": options.service_type,
        "selector": labels(environment),
        "ports": [
            {
                "name": PORT_NAME,
                "port": options.agent_port,
                "targetPort": PORT_NAME,
                "protocol": "TCP",
            }
        ],
    }
    if options.balancer_sources:
        # The policy must see the caller's own address, not that of the node it came in by.
        spec["externalTrafficPolicy"] = "Local"
        spec["loadBalancerSourceRanges"] = list(options.balancer_sources)
    return thing("Service", metadata, spec=spec)


def _ingress(environment: Environment, options: Options) -> dict[str, Any] | None:
    """Return the Ingress, None when no base domain is set."""
    host = _ingress_host(environment, options)
    if host is None:
        return None
    metadata = project_metadata(environment, environment.names.ingress)
    metadata["annotations"] |= _STREAMING
    metadata["annotations"] |= dict(options.ingress_annotations)
    path = {
        "path": _path_prefix(environment, options) or "/",
        "pathType": "Prefix",
        "backend": {"service": {"name": environment.names.service, "port": {"name": PORT_NAME}}},
    }
    spec: dict[str, Any] = {"rules": [{"host": host, "http": {"paths": [path]}}]}
    if options.ingress_class:
        spec["ingressClassName"] = options.ingress_class
    if options.ingress_tls:
        certificate = options.ingress_tls_secret
        spec["tls"] = [{"hosts": [host], **({"secretName": certificate} if certificate else {})}]
    return thing("Ingress", metadata, spec=spec)


def _ingress_host(environment: Environment, options: Options) -> str | None:
    """Return the host of the project's Ingress, None when it has none.

    With a host per project it is one label before the domain, so that one wildcard certificate
    and one DNS record serve all; the label ends in a hash, so that no two projects share it.
    """
    domain = options.ingress_base_domain
    if domain is None or options.ingress_routing == "path":
        return domain
    return f"{label(f'{project_slug(environment)}.{environment.names.namespace}')}.{domain}"


def _path_prefix(environment: Environment, options: Options) -> str | None:
    """Return the path below which the Ingress shows the project, None when it has its own host.

    agentd takes it off itself: each ingress controller would want it asked for in its own way.
    """
    if options.ingress_base_domain is None or options.ingress_routing != "path":
        return None
    return f"/{environment.names.namespace}/{project_slug(environment)}"


def _deployment(
    environment: Environment, options: Options, template: Template, replicas: int
) -> dict[str, Any]:
    """Return the Deployment with 0 or 1 ``replicas``."""
    metadata = project_metadata(environment, environment.names.deployment)
    metadata["annotations"] |= {
        RECORD_ANNOTATION: environment.fence.record_id,
        CLAIM_ANNOTATION: str(environment.fence.number),
        NAME_ANNOTATION: json.dumps(environment.name),
        TEMPLATE_ANNOTATION: json.dumps(environment.template),
    }
    return thing(
        "Deployment",
        metadata,
        spec={
            "replicas": replicas,
            "revisionHistoryLimit": 0,
            # Two pods must never write to one volume.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels(environment)},
            "template": {
                "metadata": {
                    "labels": metadata["labels"],
                    "annotations": project_metadata(environment, "")["annotations"],
                },
                "spec": _pod(environment, options, template),
            },
        },
    )


def _pod(environment: Environment, options: Options, template: Template) -> dict[str, Any]:
    """Return the pod: agentd, which is trusted, and execd, where the agent and its tools run.

    They share the network, the folder of one socket, and a group; all that either of them has of
    the volume is out of the other's sight.
    """
    chosen: dict[str, Any] = {
        "runtimeClassName": options.runtime_class,
        "priorityClassName": options.priority_class,
        "nodeSelector": dict(options.node_selector),
        "tolerations": [one.model_dump(exclude_none=True) for one in options.tolerations],
    }
    if options.image_pull_secret:
        chosen["imagePullSecrets"] = [{"name": options.image_pull_secret}]
    if options.shared_cpu:
        chosen["resources"] = {
            "requests": {"cpu": template.cpu_request},
            "limits": {"cpu": template.cpu_limit},
        }
    if template.image:
        chosen["initContainers"] = [_copying(options, template)]
    group = options.user + 1
    return {
        "serviceAccountName": SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": options.user,
            "runAsGroup": group,
            # Of no earlier version: what a volume holds is made this group's before the start.
            "fsGroup": group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **{name: value for name, value in chosen.items() if value},
        **({} if options.host_users else {"hostUsers": False}),
        "containers": [
            _agentd(environment, options, template),
            _execd(options, template),
        ],
        "volumes": _volumes(environment, options, template),
    }


def _volumes(
    environment: Environment, options: Options, template: Template
) -> list[dict[str, Any]]:
    claim = {"claimName": volume_claim_name(environment)}
    return [
        {"name": "data", "persistentVolumeClaim": claim},
        {"name": "socket", "emptyDir": {"medium": "Memory", "sizeLimit": _SOCKET_SIZE}},
        *([_TOOLS_VOLUME] if template.image else []),
        *([_AUTHORITIES_VOLUME] if options.authorities else []),
    ]


def _agentd(environment: Environment, options: Options, template: Template) -> dict[str, Any]:
    return {
        "name": AGENTD,
        "image": options.image,
        "imagePullPolicy": options.image_pull_policy,
        "envFrom": [
            {"configMapRef": {"name": config_name(environment)}},
            {"secretRef": {"name": secret_name(environment)}},
        ],
        "ports": [{"name": PORT_NAME, "containerPort": options.agent_port, "protocol": "TCP"}],
        "resources": _resources(options, template)[0],
        "securityContext": _restricted(options.user + 1),
        # A period of a second, as activation waits for it. No startup probe: readiness would be
        # asked only after it, and agentd itself answers within a second, whatever goose does.
        "readinessProbe": _probe(HEALTH_PATH, period=1, failures=3),
        # Health fails too while agentd starts a dead goose again; a kill then would end the turns
        # that it is about to save, so only an agentd that does not answer at all is restarted.
        "livenessProbe": _probe(ALIVE_PATH, period=10, failures=6),
        "volumeMounts": [
            {"name": "data", "mountPath": f"{FOLDER}/state", "subPath": "state"},
            {"name": "socket", "mountPath": _SOCKET_FOLDER, "readOnly": True},
            *([_AUTHORITIES_MOUNT] if options.authorities else []),
        ],
    }


def _execd(options: Options, template: Template) -> dict[str, Any]:
    command = [f"{_TOOLS}/bin/python3", "-I", "-S", f"{_TOOLS}/execd"]
    command += ["--socket", _SOCKET, "--client", str(options.user + 1)]
    if not options.host_users:
        # The system counts them for each user in each user namespace: without one of its own, all
        # environments of a node together.
        command += ["--processes", _MOST_PROCESSES]
    command += ["--own", *(f"{FOLDER}/{one}" for one in _THEIRS)]
    return {
        "name": EXECD,
        "image": template.image or options.image,
        "imagePullPolicy": options.image_pull_policy,
        "command": command,
        "workingDir": "/",
        # git trusts no folder of another owner, and those of the volume are root's.
        "env": [
            {"name": "GIT_CONFIG_COUNT", "value": "1"},
            {"name": "GIT_CONFIG_KEY_0", "value": "safe.directory"},
            {"name": "GIT_CONFIG_VALUE_0", "value": "*"},
            # No option: an older image's execd would not start with one that it does not know.
            {"name": "GREYLAG_EXECD_EMPTY", "value": _SCRATCH["mountPath"]},
        ],
        "resources": _resources(options, template)[1],
        "terminationMessagePath": _LAST_WORDS,
        "securityContext": _restricted(options.user),
        "volumeMounts": [
            *({"name": "data", "mountPath": f"{FOLDER}/{one}", "subPath": one} for one in _THEIRS),
            {"name": "socket", "mountPath": _SOCKET_FOLDER},
            _SCRATCH,
            *([_TOOLS_MOUNT] if template.image else []),
            *([_AUTHORITIES_MOUNT] if options.authorities else []),
        ],
    }


def _copying(options: Options, template: Template) -> dict[str, Any]:
    """Return what puts execd and goose beside an image that has neither."""
    return {
        "name": "tools",
        "image": options.image,
        "imagePullPolicy": options.image_pull_policy,
        "command": ["cp", "-RL", f"{_TOOLS}/.", "/tools"],
        "resources": {
            "requests": _resources(options, template)[1]["requests"],
            "limits": {  # all of it, as nothing else runs meanwhile
                "cpu": template.cpu_limit,
                "memory": template.memory_limit,
                "ephemeral-storage": template.ephemeral_storage,
            },
        },
        "securityContext": _restricted(options.user),
        "volumeMounts": [{"name": "tools", "mountPath": "/tools"}],
    }


def _resources(options: Options, template: Template) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what agentd has of the template's requests and limits, and what execd has."""
    asked = {
        "cpu": halves(template.cpu_request, "100m"),
        "memory": halves(template.memory_request, "128Mi"),
        "ephemeral-storage": halves(EPHEMERAL_REQUEST, EPHEMERAL_REQUEST),
    }
    most = {
        "cpu": halves(template.cpu_limit, "500m"),
        "memory": halves(template.memory_limit, "256Mi"),
        "ephemeral-storage": halves(template.ephemeral_storage, "256Mi"),
    }
    if options.shared_cpu:
        most["cpu"] = (template.cpu_limit, template.cpu_limit)
    agentd, execd = (
        {
            "requests": {name: pair[side] for name, pair in asked.items()},
            "limits": {name: pair[side] for name, pair in most.items()},
        }
        for side in (0, 1)
    )
    return agentd, execd


def _restricted(user: int) -> dict[str, Any]:
    return {
        "runAsUser": user,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": PORT_NAME},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _readable(one: dict[str, Any]) -> dict[str, Any]:
    """Return an object with readable placeholders, and without the claim of a worker."""
    shown = dict(one)
    if one["kind"] == "Secret":
        values = shown.pop("data")
        shown["stringData"] = {
            name: base64.b64decode(value).decode() for name, value in values.items()
        }
    if one["kind"] == "Deployment":
        annotations = dict(one["metadata"]["annotations"])
        for name in (RECORD_ANNOTATION, CLAIM_ANNOTATION, NAME_ANNOTATION, TEMPLATE_ANNOTATION):
            del annotations[name]
        shown["metadata"] = {**one["metadata"], "annotations": annotations}
    return shown
