"""The real cluster that tests share; without one they are skipped, and say so."""

import fcntl
import os
import re
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from greylag import __version__
from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.cluster.kubernetes.connection import connect
from greylag.cluster.kubernetes.options import ConnectionOptions, Options

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT.parent / "shared" / "cluster" / "cluster"
ENVIRONMENTS = "goose-api-server"
IMAGE = os.environ.get("GREYLAG_TEST_IMAGE", f"{ENVIRONMENTS}:{__version__}")
GREYLAG_IMAGE = os.environ.get("GREYLAG_TEST_GREYLAG_IMAGE", f"greylag:{__version__}")
LOCK = Path(tempfile.gettempdir()) / "greylag-test-cluster.lock"
PATIENCE = 300
POD_PATIENCE = 180  # a pod may start while both images are built beside it
PID_FILE_SLACK = 2.0  # seconds; the clock may have been set since
BUILD_PATIENCE = 900  # the first build of an image fetches everything
CLUSTER_RANGES = ("10.91.0.0/16", "10.92.0.0/16", "10.93.0.0/24")


def is_foreign() -> bool:
    """Tell whether it is not the tests' own cluster but one that was named."""
    return bool(os.environ.get("GREYLAG_TEST_KUBECONFIG"))


@cache
def cluster_environment() -> Mapping[str, str]:
    """Return the environment variables under which kubectl finds the cluster, which is up.

    ``GREYLAG_TEST_KUBECONFIG`` names another one, where ``GREYLAG_TEST_IMAGE`` can be pulled.
    """
    given = os.environ.get("GREYLAG_TEST_KUBECONFIG")
    if given:
        return MappingProxyType({**os.environ, "KUBECONFIG": given})
    if not CLUSTER.exists() or os.geteuid() != 0:
        pytest.skip("NO REAL CLUSTER: set GREYLAG_TEST_KUBECONFIG to run the cluster tests")
    # One at a time starts it; for the others it is up then.
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        forget_ended(Path(os.environ.get("CLUSTER_HOME", "/var/lib/test-cluster")) / "run")
        _cluster("up")
    # Its programs must not hold a pipe of ours open.
    lines = _cluster("env")
    words = shlex.split(lines.replace(";", "\n"))
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    path = pairs["PATH"].replace("$PATH", os.environ["PATH"])
    return MappingProxyType({**os.environ, "KUBECONFIG": pairs["KUBECONFIG"], "PATH": path})


def forget_ended(folder: Path) -> None:
    """Remove the pid files of a cluster that ended without a word, as with the machine.

    Else who starts it anew kills whatever has those pids now: another test's program, or a test.
    """
    for file in folder.glob("*.pid"):
        try:
            began = psutil.Process(int(file.read_text())).create_time()
        except (psutil.Error, ValueError):
            continue
        # A component's file was written as soon as it had begun.
        if began > file.stat().st_mtime + PID_FILE_SLACK:
            file.unlink()


@cache
def image(name: str = ENVIRONMENTS) -> str:
    """Return the image ``name`` of ``images/``, which the cluster has."""
    cluster_environment()
    if is_foreign():
        return IMAGE if name == ENVIRONMENTS else GREYLAG_IMAGE
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        archive = build_image(name)
        stamp = f"{archive.stat().st_mtime_ns} {archive.resolve()}"
        loaded = LOCK.with_name(f"greylag-test-{name}.stamp")
        known = loaded.read_text() if loaded.exists() else ""
        there = f"{name}:{__version__}" in _cluster("images")
        if known != stamp or not there:
            if there:  # else the runtime may keep the old one
                _cluster("rmi", f"docker.io/library/{name}:{__version__}")
            _cluster("load", str(archive))
            loaded.write_text(stamp)
    return f"{name}:{__version__}"


def load(archive: Path) -> None:
    """Give the tests' own cluster an image."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _cluster("load", str(archive))


def build_image(name: str) -> Path:
    """Build the image ``name`` of ``images/``; quick when nothing of it has changed.

    Returns:
        Its archive. A machine that cannot build it skips the test.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("buildah", "mmdebstrap"))):
        pytest.skip("NO IMAGE: root, buildah and mmdebstrap are needed to build one")
    built = subprocess.run(  # noqa: S603 - our own tool
        [ROOT / "tools" / "image.sh", name],
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_PATIENCE,
    )
    assert built.returncode == 0, built.stderr
    return ROOT / "build" / f"{name}.tar"


@cache
def ingress_address() -> str:
    """Return the address of the cluster's ingress controller, which is installed."""
    cluster_environment()
    if is_foreign():
        if not (given := os.environ.get("GREYLAG_TEST_INGRESS", "")):
            pytest.skip("NO INGRESS: set GREYLAG_TEST_INGRESS to its address")
        return str(given)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = _cluster("ingress")
    found: list[str] = re.findall(r"\d+\.\d+\.\d+\.\d+", said)
    return found[-1]


def kubectl(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run kubectl against the cluster."""
    return subprocess.run(  # noqa: S603 - kubectl, with what tests say
        ["/usr/bin/env", "kubectl", *arguments],
        env=dict(cluster_environment()),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        **options,
    )


def settings(**changed: str) -> dict[str, str]:
    """Return the settings of a Greylag on this cluster, with namespaces that no other test has."""
    environment = cluster_environment()
    return {
        "KUBECONFIG": environment["KUBECONFIG"],
        "ACR_IMAGE": image(),
        "GOOSE_MODE": "auto",
        "KUBE_NAMESPACE_PREFIX": f"test-{secrets.token_hex(3)}-",
        **changed,
    }


@asynccontextmanager
async def open_kubernetes(
    *, goose: str | None = None, namespace_prefix: str = "", **changed: Any
) -> AsyncIterator[KubernetesCluster]:
    """Open the real cluster, with namespaces of its own, which are removed at the end.

    ``goose`` is what ``GREYLAG_GOOSE`` is to be in the environments; ``changed`` are options, or
    the ``kubeconfig``. With ``namespace_prefix`` the namespaces are those of another.
    """
    environment = cluster_environment()
    prefix = namespace_prefix or f"test-{secrets.token_hex(3)}-"
    usual: dict[str, Any] = {
        "image": image(),
        "platform_cidrs": ("0.0.0.0/0",),
        "service_type": "LoadBalancer",
        "cluster_cidrs": CLUSTER_RANGES,
    }
    kubeconfig = changed.pop("kubeconfig", environment["KUBECONFIG"])
    connection = connect(ConnectionOptions(kubeconfig=str(kubeconfig)), {})
    assert connection is not None
    options = Options(**(usual | changed))
    variables = {"GREYLAG_GOOSE": goose} if goose else {}
    cluster = KubernetesCluster(Api(connection), options, variables, namespace_prefix=prefix)
    try:
        yield cluster
    finally:
        await cluster.close()
        remove_namespaces(prefix)


def remove_namespaces(prefix: str) -> None:
    """Begin to remove all namespaces whose names begin so."""
    names = kubectl("get", "namespaces", "--output", "name").stdout.split()
    ours = [name for name in names if name.startswith(f"namespace/{prefix}")]
    if ours:
        kubectl("delete", "--wait=false", *ours)


def _cluster(*arguments: str) -> str:
    """Run the cluster's own program; what it says goes to a file, as its servers live on."""
    with tempfile.TemporaryFile() as said:
        subprocess.run(  # noqa: S603 - the cluster's own program
            [str(CLUSTER), *arguments], check=True, stdout=said, stderr=said, timeout=PATIENCE
        )
        said.seek(0)
        return said.read().decode()
