"""Greylag with its environments on the real cluster, gone from there afterwards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.cluster import real_cluster
from tests.e2e.product import Product, product


@asynccontextmanager
async def greylag(folder: Path, **changed: str) -> AsyncIterator[tuple[Product, str]]:
    """Run `greylag up` on the cluster; yield it and its namespaces' prefix."""
    settings = real_cluster.settings(**changed)
    prefix = settings["KUBE_NAMESPACE_PREFIX"]
    try:
        async with product(folder, **settings) as up:
            yield up, prefix
    finally:
        real_cluster.remove_namespaces(prefix)
