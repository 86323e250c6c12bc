"""The clusters that the contract suite runs over."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cluster.environments import open_local
from tests.cluster.real_cluster import open_kubernetes
from tests.fakes.cluster import MemoryCluster

from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.domain.names import environment_names
from greylag.domain.project import Project
from greylag.ports import Cluster

CLUSTERS = (
    "memory",
    "local",
    "local-agentd",
    pytest.param("kubernetes", marks=pytest.mark.cluster),
)


def named_for(cluster: Cluster, project: Project) -> Project:
    """Return ``project`` with names that no other test has in a cluster that tests share."""
    if not isinstance(cluster, KubernetesCluster):
        return project
    prefix = cluster.namespace_prefix
    names = environment_names(project.user_id, project.project_id, prefix=prefix)
    return replace(project, names=names)


@asynccontextmanager
async def open_cluster(kind: str, root: Path) -> AsyncIterator[Cluster]:
    """Open an empty cluster of this kind; at the end nothing of it runs."""
    match kind:
        case "memory":
            cluster = MemoryCluster(auto=True)
            yield cluster
            await cluster.close()
        case "local":
            async with open_local(root) as local:
                yield local
        case "kubernetes":
            async with open_kubernetes(goose="scripted", allow_plain_http=True) as real:
                yield real
        case _:
            agentd = (sys.executable, "-m", "greylag.agentd")
            async with open_local(
                root, agentd_command=agentd, goose="scripted", sandbox="auto", grace=8.0
            ) as local:
                yield local
