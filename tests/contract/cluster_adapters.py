"""The clusters that the contract suite runs over."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.cluster.environments import open_local

from greylag.cluster.memory import MemoryCluster
from greylag.ports.cluster import Cluster

CLUSTERS = ("memory", "local", "local-agentd")


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
        case _:
            agentd = (sys.executable, "-m", "greylag.agentd")
            async with open_local(
                root, agentd_command=agentd, goose="scripted", sandbox="auto", grace=8.0
            ) as local:
                yield local
