"""The manifests that deploy Greylag, as kubectl and helm read them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster import real_cluster

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
ACCESS = DEPLOY / "kubernetes" / "access"
CONFINEMENT = DEPLOY / "kubernetes" / "confinement"
METRICS = DEPLOY / "kubernetes" / "metrics"
OUTSIDE = DEPLOY / "kubernetes" / "outside"
EXAMPLE = DEPLOY / "kubernetes" / "example"
CHART = DEPLOY / "helm" / "greylag"

Object = dict[str, Any]


def kustomize(folder: Path) -> list[Object]:
    """Return the objects of a kustomization."""
    return _objects("kubectl", "kustomize", str(folder))


def helm(*arguments: str, namespace: str = "greylag", release: str = "greylag") -> list[Object]:
    """Return the objects of the chart."""
    words = ("template", release, str(CHART), "--namespace", namespace, "--kube-version", "1.35")
    return _objects("helm", *words, *arguments)


def overlay(folder: Path, resource: Path, **fields: Any) -> Path:
    """Write a kustomization over ``resource`` into ``folder`` and return that."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(resource, folder.resolve())],
        **fields,
    }
    (folder / "kustomization.yaml").write_text(json.dumps(whole))
    return folder


def confined(suffix: str, prefix: str) -> list[Object]:
    """Return patches of ../confinement, as an operator writes them for such accounts."""
    account = "^system:serviceaccount:[^:]+:greylag-{}" + suffix + "$"
    values = {
        "/spec/matchConditions/0/expression": account.format("(web|worker)"),
        "/spec/variables/1/expression": account.format("web"),
    }
    operations = [
        {"op": "replace", "path": path, "value": f"request.userInfo.username.matches('{value}')"}
        for path, value in values.items()
    ]
    operations.append(
        {"op": "replace", "path": "/spec/variables/0/expression", "value": f"'{prefix}'"}
    )
    target = {"kind": "ValidatingAdmissionPolicy", "name": "greylag-confinement"}
    return [{"target": target, "patch": json.dumps(operations)}]


def of_kind(objects: list[Object], kind: str) -> Iterator[Object]:
    """Yield the objects of this kind."""
    return (thing for thing in objects if thing["kind"] == kind)


def rights(rules: Sequence[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """Return all pairs of resource and verb that a role's rules grant."""
    return {
        (resource, verb)
        for rule in rules
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _objects(program: str, *arguments: str) -> list[Object]:
    environment = dict(real_cluster.cluster_environment())
    path = shutil.which(program, path=environment["PATH"])
    if path is None:
        pytest.skip(f"MANIFESTS ARE NOT TESTED: {program} is not installed")
    done = subprocess.run(  # noqa: S603 - kubectl or helm, with what tests say
        [path, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [thing for thing in yaml.safe_load_all(done.stdout) if thing]
