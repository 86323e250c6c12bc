"""`greylag` as it is, but for the cluster: the one that all processes of a soak share."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.soak.shared_cluster import SharedCluster

from greylag import clusters
from greylag.cli.main import main
from greylag.config import Settings
from greylag.ports import Cluster, ProjectStore


async def shared(settings: Settings, store: ProjectStore) -> Cluster:
    """Return the cluster of the soak."""
    del settings, store
    return SharedCluster(Path(os.environ["SOAK_CLUSTER"]))


if __name__ == "__main__":
    clusters.open_cluster = shared
    sys.exit(main())
