"""A Greylag that has lost its records: what it left on the cluster is listed, and removed only by
the command, which does no harm to what has a record.
"""

import asyncio
import json
from pathlib import Path

import pytest
from tests.cli.program import run
from tests.cluster import real_cluster
from tests.cluster.real_cluster import kubectl
from tests.e2e.product import Product, product

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SMALL = {"cpu_request": "10m", "environment": {"GREYLAG_GOOSE": "scripted"}}
OURS = "deployments,pods,services,secrets,configmaps,persistentvolumeclaims"


def objects(namespace: str, project: str) -> set[str]:
    """Return all that is there of a project; a pod that is made anew has another name."""
    label = f"greylag.dev/project={project}"
    return set(kubectl("get", OURS, "-n", namespace, "-l", label, "-o", "name").stdout.split())


async def test_what_a_lost_greylag_left_is_listed_and_removed_only_when_told_so(
    tmp_path: Path,
) -> None:
    settings = real_cluster.settings(GREYLAG_KUBE_TEMPLATES=json.dumps({"default": SMALL}))
    prefix = settings["KUBE_NAMESPACE_PREFIX"]
    namespace = f"{prefix}me"
    try:
        async with (
            product(tmp_path / "old", **settings) as old,
            product(tmp_path / "new", **settings) as new,
        ):
            await asyncio.gather(_lost(old), new.project("kept"))
            kept, lost = objects(namespace, "kept"), objects(namespace, "lost")
            # What a start does to all, it does now, with the other one's environment there.
            await new.end()
            await new.start()
            env = {**settings, "GREYLAG_DATA": str(new.data)}
            listed = await run("orphans", "--json", env=env)
            (orphan,) = listed.document["orphans"]
            assert orphan == {
                "user_id": "me",
                "project_id": "lost",
                "namespace": namespace,
                "deployment": "lost-api",
            }
            assert objects(namespace, "lost") == lost, "it was touched unasked"
            done = await run("orphans", "--delete", "--yes", "--json", env=env)
            assert (done.code, done.document["orphans"][0]["deleted"]) == (0, True), done
            assert objects(namespace, "lost") == set()
            assert objects(namespace, "kept") == kept
            assert await new.status("/api/users/me/projects/kept") == "active"
            assert await new.status("/api/users/me/projects/lost") is None
    finally:
        real_cluster.remove_namespaces(prefix)


async def _lost(old: Product) -> None:
    """Leave an active environment behind."""
    await old.project("lost")
    await old.kill()
