"""The objects of an environment as YAML for people and `kubectl apply`, without any secret."""

import base64
import json
from typing import Any

from greylag.cluster.kubernetes.manifests import (
    CLAIM_ANNOTATION,
    MODEL_KEY,
    RECORD_ANNOTATION,
    TOKEN_KEY,
    project_objects,
    shared_objects,
)
from greylag.config import agent_environment, load_settings
from greylag.domain.names import check_id, environment_names
from greylag.domain.project import DEFAULT_TEMPLATE, Environment, Fence, ProjectRef
from greylag.kubernetes_settings import kubernetes_options, load_kubernetes_settings

PLACEHOLDERS = {
    TOKEN_KEY: "REPLACE-WITH-A-RANDOM-TOKEN",
    MODEL_KEY: "REPLACE-WITH-THE-MODEL-PROVIDER-KEY",
}

_HEADING = """\
# The environment of project {project} of user {user}, as these settings make it.
# Secrets are not printed: replace each value that begins with REPLACE-WITH before you apply this.
# Greylag makes a token of its own for each environment and keeps it in the Secret.
"""


def printed_manifests(
    user_id: str, project_id: str, *, template: str | None = None, replicas: int = 1
) -> str:
    """Return all objects of one environment as a stream of YAML documents.

    Args:
        user_id: whose project.
        project_id: any id; no record needs to exist.
        template: name of a template; None: the default one.
        replicas: 0 for a sleeping environment.

    Raises:
        GreylagError: an id or a setting is wrong, or the template does not exist.
    """
    # Here, for the command line imports nothing that it may not need.
    import yaml  # noqa: PLC0415 - the reason is above

    settings = load_settings()
    environment = {**agent_environment(settings)}
    if MODEL_KEY in environment:
        environment[MODEL_KEY] = PLACEHOLDERS[MODEL_KEY]
    options = kubernetes_options(load_kubernetes_settings(), environment)
    shown = _environment(user_id, project_id, settings.namespace_prefix, template)
    token = PLACEHOLDERS[TOKEN_KEY]
    objects = shared_objects(shown, options)
    objects += project_objects(shown, options, token=token, replicas=replicas)
    heading = _HEADING.format(project=json.dumps(project_id), user=json.dumps(user_id))
    # Through JSON, so that nothing is one object in two places, which YAML would print as an alias.
    plain = [json.loads(json.dumps(_shown(each))) for each in objects]
    return heading + str(yaml.safe_dump_all(plain, sort_keys=False, explicit_start=True))


def _environment(user_id: str, project_id: str, prefix: str, template: str | None) -> Environment:
    check_id(user_id, "user id")
    check_id(project_id, "project id")
    names = environment_names(user_id, project_id, prefix=prefix)
    return Environment(
        "",
        ProjectRef(user_id, project_id),
        names,
        Fence("", 0),
        template=template or DEFAULT_TEMPLATE,
    )


def _shown(each: dict[str, Any]) -> dict[str, Any]:
    """Return an object with readable placeholders, and without the claim of a worker."""
    shown = dict(each)
    if each["kind"] == "Secret":
        values = shown.pop("data")
        shown["stringData"] = {
            name: base64.b64decode(value).decode() for name, value in values.items()
        }
    if each["kind"] == "Deployment":
        annotations = each["metadata"]["annotations"]
        kept = {
            name: value
            for name, value in annotations.items()
            if name not in {RECORD_ANNOTATION, CLAIM_ANNOTATION}
        }
        shown["metadata"] = {**each["metadata"], "annotations": kept}
    return shown
