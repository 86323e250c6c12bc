"""All manifests before kube-score and checkov: nothing but what docs/security.md argues."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
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
    "checkov": {
        *("CKV_K8S_11", "CKV_K8S_15", "CKV_K8S_35", "CKV_K8S_38", "CKV_K8S_40", "CKV_K8S_43"),
    },
}
ALL_GOOD = 10
WORDS = {
    "kube-score": ("score", "--output-format=json"),
    "checkov": ("--framework=kubernetes", "--compact", "--skip-download", "--output=json", "-f"),
}


def found(program: str, file: Path) -> set[str]:
    """Return what a judge finds in the manifests of ``file``."""
    judge = shutil.which(program, path=os.pathsep.join((str(JUDGES), os.environ["PATH"])))
    if judge is None:
        pytest.skip(f"NO MANIFEST WAS JUDGED BY {program}: run `make judges` first")
    done = subprocess.run(  # noqa: S603 - fixed words and paths of our own
        [judge, *WORDS[program], file], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    if program == "checkov":
        return {one["check_id"] for one in told["results"]["failed_checks"]}
    checks = [check for one in told for check in one["checks"]]
    failed = [one for one in checks if one["grade"] < ALL_GOOD and not one["skipped"]]
    return {comment["summary"] for check in failed for comment in check["comments"]}


@pytest.mark.cluster
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="NO MANIFEST WAS JUDGED: no kubectl")
@pytest.mark.parametrize("program", sorted(ARGUED))
@pytest.mark.parametrize("of", ["platform", "environment"])
def test_judges_find_nothing_but_what_is_argued(tmp_path: Path, program: str, of: str) -> None:
    made = {
        "platform": ("kubectl", "kustomize", str(EXAMPLE)),
        "environment": (sys.executable, "-m", "greylag", "manifests", "ada", "notes"),
    }[of]
    image = {"ACR_IMAGE": f"goose-api-server@sha256:{'0' * 64}"}
    objects = subprocess.run(  # noqa: S603 - fixed words and paths of our own
        made, capture_output=True, text=True, check=True, env=os.environ | image
    )
    (tmp_path / "all.yaml").write_text(objects.stdout)
    assert (told := found(program, tmp_path / "all.yaml"))
    assert told <= ARGUED[program]
