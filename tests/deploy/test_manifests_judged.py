"""All manifests before judges of others: what they find is argued in docs/security.md."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cluster import real_cluster
from tests.deploy.manifests import EXAMPLE

JUDGES = Path(__file__).parents[2] / "build" / "judges" / "bin"
ARGUED = {
    "kube-score": {
        "CPU limit is not set",
        "ImagePullPolicy is not set to Always",
        "The container is running with a low user ID",
        "The container running with a low group ID",
        "Deployment update strategy",
        "Deployment few replicas",
    },
    "trivy": {
        *("KSV-0011", "KSV-0039", "KSV-0040", "KSV-0041", "KSV-0048", "KSV-0049", "KSV-0056"),
        "KSV-01010",
    },
    "checkov": {
        *("CKV_K8S_11", "CKV_K8S_15", "CKV_K8S_35", "CKV_K8S_38", "CKV_K8S_40", "CKV_K8S_43"),
    },
}
ALL_GOOD = 10
WORDS = {
    "kube-score": ("score", "--output-format=json"),
    "trivy": ("config", "--skip-check-update", "--skip-version-check", "--quiet", "--format=json"),
    "checkov": ("--framework=kubernetes", "--compact", "--skip-download", "--output=json", "-f"),
}


def judge(program: str) -> str:
    """Return the path of a judge, or skip the test."""
    path = shutil.which(program, path=os.pathsep.join((str(JUDGES), os.environ["PATH"])))
    if path is None:
        pytest.skip(f"NO MANIFEST WAS JUDGED BY {program}: run `make judges` first")
    return path


def found(program: str, file: Path) -> set[str]:
    """Return what a judge finds in the manifests of ``file``."""
    done = subprocess.run(  # noqa: S603 - fixed words and paths of our own
        [judge(program), *WORDS[program], file],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    if program == "checkov":
        return {one["check_id"] for one in told["results"]["failed_checks"]}
    if program == "trivy":
        results = told["Results"]
        return {one["ID"] for each in results for one in each.get("Misconfigurations", [])}
    checks = [check for one in told for check in one["checks"]]
    failed = [one for one in checks if one["grade"] < ALL_GOOD and not one["skipped"]]
    return {comment["summary"] for check in failed for comment in check["comments"]}


def manifests(of: str, folder: Path) -> Path:
    """Write the manifests of the platform or of an environment into one file."""
    made = {
        "platform": ("kubectl", "kustomize", str(EXAMPLE)),
        "environment": (sys.executable, "-m", "greylag", "manifests", "ada", "notes"),
    }[of]
    image = {"ACR_IMAGE": f"goose-api-server@sha256:{'0' * 64}"}
    objects = subprocess.run(  # noqa: S603 - fixed words and paths of our own
        made, capture_output=True, text=True, check=True, env=os.environ | image
    )
    (folder / "all.yaml").write_text(objects.stdout)
    return folder / "all.yaml"


@pytest.mark.cluster
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="NO MANIFEST WAS JUDGED: no kubectl")
@pytest.mark.parametrize("program", sorted(ARGUED))
@pytest.mark.parametrize("of", ["platform", "environment"])
def test_judges_find_nothing_but_what_is_argued(tmp_path: Path, program: str, of: str) -> None:
    assert (told := found(program, manifests(of, tmp_path)))
    assert told <= ARGUED[program]


@pytest.mark.cluster
@pytest.mark.parametrize("of", ["platform", "environment"])
def test_each_field_is_one_that_the_api_server_s_schemas_know(tmp_path: Path, of: str) -> None:
    kubeconform = judge("kubeconform")
    file = manifests(of, tmp_path)
    objects = file.read_text()
    read = real_cluster.kubectl("get", "--raw", "/openapi/v2")
    definitions = json.loads(read.stdout)["definitions"]
    for one in definitions.values():
        if "properties" in one:
            one["additionalProperties"] = False
        if one.get("format") == "int-or-string":  # which Swagger has no word for
            one["type"] = ["integer", "string"]
    for name, one in definitions.items():
        for kind in one.get("x-kubernetes-group-version-kind", []):
            version = "-".join(filter(None, (kind["group"].partition(".")[0], kind["version"])))
            schema = {"$ref": f"#/definitions/{name}", "definitions": definitions}
            if f"\nkind: {kind['kind']}\n" in objects:
                called = f"{kind['kind']}-{version}.json".lower()
                (tmp_path / called).write_text(json.dumps(schema))
    where = tmp_path / "{{ .ResourceKind }}{{ .KindSuffix }}.json"
    done = subprocess.run(  # noqa: S603 - fixed words and paths of our own
        [kubeconform, "-strict", "-summary", "-output=json", f"-schema-location={where}", file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["resources"] == []
    assert told["summary"]["valid"] == objects.count("\nkind: ") + objects.startswith("kind: ")
    assert done.returncode == 0
