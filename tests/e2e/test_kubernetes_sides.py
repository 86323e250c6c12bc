"""Environments on a real cluster whose two sides meet what was not made for them.

A volume of the version before, when both were one container of the user 1000, and an image for the
agent's side with a few programs of another system, and neither Python nor anything of Greylag's.
"""

import asyncio
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import real_cluster
from tests.cluster.real_cluster import kubectl
from tests.e2e.on_cluster import greylag
from tests.e2e.product import Product, text_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FOREIGN = "greylag-test-foreign:1"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PROGRAMS = ("sh", "cat", "git", "ls", "mkdir", "uname")
OLD_USER = 1000


async def tool(up: Product, path: str, command: str, **more: str) -> str:
    """Return what a command of the agent's printed."""
    events = await up.say(path, f"[[tool {command}]]", **more)
    results = [one.content["result"] for one in events if one.type == "tool_response"]
    assert results, [one.content for one in events]
    return json.dumps(results)


async def test_an_environment_of_the_version_before_starts_with_all_that_it_had(
    tmp_path: Path,
) -> None:
    async with greylag(tmp_path) as (up, prefix):
        namespace = f"{prefix}me"
        path = await up.project("demo", active=False)
        assert await up.settled(path) == "inactive"
        (made,) = json.loads(_get(namespace, "deployments", "-o", "json"))["items"]
        session = await asyncio.to_thread(_lived_in, namespace, made)
        assert (await up.call("POST", f"{path}/activate"))[0] == 200
        history = (await up.call("GET", f"{path}/sessions/{session}/messages"))[1]
        assert "once upon a time" in json.dumps(history)
        said = await up.say(path, "[[text and so it went on]]", session_id=session)
        assert text_of(said) == "and so it went on"
        kept = await tool(
            up, path, "cat private/file; chmod 640 private/file; id -u; ls -ld private/*"
        )
        assert "kept" in kept
        assert re.search("10001.*-rw-r----- 1 10001", kept), kept
        cloned = await tool(
            up, path, "git -C repository log --oneline && git clone -q repository c && ls"
        )
        assert "first" in cloned
        assert "mine" in await tool(up, path, "cat ~/.mine && rm ~/.mine && echo gone")
        # agentd ends its turns itself: execd waits for it, though both are told to end at once.
        begun = await up.first(path, "tool_request", "[[tool sleep 600]]")
        for verb in ("deactivate", "activate"):
            assert (await up.call("POST", f"{path}/{verb}"))[0] == 200
        rest = await up.rest_of(path, str(begun.id).rpartition("-")[0])
        assert rest[-1].content["stop_reason"] == "cancelled", rest


def _lived_in(namespace: str, made: dict[str, Any]) -> str:
    """Let a pod as it was before use the volume, and return the session that it had."""
    pod = _before(made)
    ran = kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(pod))
    assert ran.returncode == 0, ran.stderr
    ready = kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/before", "--timeout=30s")
    assert ready.returncode == 0, ready.stderr
    api = "http://127.0.0.1:3001/api/v1"
    curl = 'curl -sS -H "Authorization: Bearer $GREYLAG_AGENT_TOKEN"'
    script = f"""
        set -e
        cd /environment/workspace
        mkdir -m 700 private
        echo kept > private/file
        chmod 600 private/file
        echo mine > ../home/.mine
        chmod 400 ../home/.mine
        git init -q repository
        git -C repository -c user.name=a -c user.email=a@b commit -q --allow-empty -m first
        made=$({curl} -X POST {api}/sessions)
        session=${{made#*session_id\\":\\"}}
        session=${{session%%\\"*}}
        {curl} {api}/sessions/$session/send -d '{{"message": "[[text once upon a time]]"}}' >&2
        echo $session
    """
    said = kubectl("exec", "-n", namespace, "before", "--", "sh", "-c", script)
    assert said.returncode == 0, said.stderr
    assert kubectl("delete", "-n", namespace, "pod/before").returncode == 0
    return said.stdout.strip()


def _before(made: dict[str, Any]) -> dict[str, Any]:
    """Return the pod of a Deployment as version 0.1 made it at first: one user, one volume."""
    pod: dict[str, Any] = made["spec"]["template"]
    spec = pod["spec"]
    agentd = spec["containers"][0]
    spec["securityContext"] |= {
        "runAsUser": OLD_USER,
        "runAsGroup": OLD_USER,
        "fsGroup": OLD_USER,
    }
    del agentd["securityContext"]["runAsUser"]
    agentd["volumeMounts"] = [
        {"name": "data", "mountPath": "/environment"},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
    ]
    spec["volumes"] += [{"name": "tmp", "emptyDir": {}}]
    agentd["env"] = [{"name": "GREYLAG_EXECD_SOCKET", "value": ""}]
    agentd["resources"]["limits"] |= {"cpu": "500m", "memory": "1Gi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "before", "labels": pod["metadata"]["labels"]},
        "spec": {**spec, "containers": [agentd]},
    }


def _get(namespace: str, *words: str) -> str:
    return kubectl("get", "-n", namespace, *words).stdout


async def test_an_image_with_a_shell_and_certificates_can_be_the_agent_s_side(
    tmp_path: Path,
) -> None:
    await asyncio.to_thread(_load_foreign, tmp_path / "foreign.tar")
    shapes = {"theirs": {"image": FOREIGN}}
    async with greylag(tmp_path, GREYLAG_KUBE_TEMPLATES=json.dumps(shapes)) as (up, _):
        path = await up.project("demo", metadata={"template": "theirs"})
        said = await tool(up, path, "echo $OF_THE_IMAGE $PATH; ls /bin; python3 || echo none")
        assert "theirs /bin" in said
        assert set(re.split(r"\\n|\W", said)) >= {*PROGRAMS, "none"}, said
        git = "git init -q && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x"
        assert "Err" not in await tool(up, path, f"{git} && git log --oneline")


def _load_foreign(archive: Path) -> None:
    """Give the cluster an image of some programs of this machine, and their libraries."""
    there = CERTIFICATES.exists() and all(map(shutil.which, PROGRAMS))
    if real_cluster.is_foreign() or not there:
        pytest.skip("NOT TESTED: an image must be loaded into the tests' own cluster")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", dereference=True) as tar:
        for path in (CERTIFICATES, *_files()):
            tar.add(path, f"bin/{path.name}" if path.name in PROGRAMS else path)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin", "OF_THE_IMAGE=theirs"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"],
        },
    }
    manifest = [
        {"Config": "config", "Layers": ["layer"], "RepoTags": [f"docker.io/library/{FOREIGN}"]}
    ]
    parts = {"layer": layer.getvalue()}
    parts |= {"config": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
    with tarfile.open(archive, "w") as tar:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    real_cluster.load(archive)


def _files() -> set[Path]:
    """Return the programs, and all libraries that they need."""
    programs = {Path(str(shutil.which(name))) for name in PROGRAMS}
    found = set(programs)
    for program in programs:
        told = subprocess.run(["/usr/bin/ldd", program], capture_output=True, text=True, check=True)  # noqa: S603 - of this machine
        found |= {Path(path) for path in re.findall(r"(/\S+) \(0x", told.stdout)}
    return found
