"""The real cluster for tests marked `cluster`; without one they are skipped, and say so."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tests.cluster import real_cluster

Kubectl = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="session")
def cluster_environment() -> dict[str, str]:
    """Return the environment variables under which kubectl finds the cluster; it is up."""
    return dict(real_cluster.cluster_environment())


@pytest.fixture(scope="session")
def kubeconfig(cluster_environment: dict[str, str]) -> Path:
    """Return the path of the real cluster's kubeconfig."""
    return Path(cluster_environment["KUBECONFIG"])


@pytest.fixture(scope="session")
def kubectl(cluster_environment: dict[str, str]) -> Kubectl:
    """Return a function that runs kubectl against the real cluster."""
    assert cluster_environment
    return real_cluster.kubectl
