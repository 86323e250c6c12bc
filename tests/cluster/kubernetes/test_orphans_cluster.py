"""A Greylag that has lost its records: what it left on the cluster is listed, and removed only by
the command, which does no harm to what has a record.
"""

import asyncio
import json
import sqlite3
from contextlib import closing
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
            product(tmp_path / "new", "serve", **settings) as new,
        ):
            # The new one's records are put back from a copy of before there was anything.
            await new.end("serve")
            _copy(old, new)
            await new.start()
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
                "instance": None,
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


async def test_of_two_greylags_each_leaves_alone_what_the_other_has(tmp_path: Path) -> None:
    settings = real_cluster.settings(GREYLAG_KUBE_TEMPLATES=json.dumps({"default": SMALL}))
    prefix = settings["KUBE_NAMESPACE_PREFIX"]
    namespace = f"{prefix}me"
    try:
        async with (
            product(tmp_path / "first", **settings) as first,
            product(tmp_path / "second", **settings) as second,
        ):
            path = await first.project("kept")
            kept, instance = objects(namespace, "kept"), _instance(namespace)
            for project_id in ("kept", "other"):
                theirs = await second.project(project_id, active=False)
                status, refused = await second.call("POST", f"{theirs}/activate")
                assert (status, refused["code"]) == (409, "environment_foreign"), refused
                assert instance in refused["detail"]
                # What has nothing on the cluster is soon gone.
                await second.call("DELETE", theirs)
                assert await second.settled(theirs) is None
            env = {**settings, "GREYLAG_DATA": str(second.data)}
            done = await run("orphans", "--delete", "--yes", "--json", env=env)
            assert (done.code, done.err) == (
                0,
                f"Left alone: 1 environment belongs to another Greylag, {instance}.\n",
            )
            (orphan,) = done.document["orphans"]
            assert (orphan["project_id"], orphan["instance"]) == ("kept", instance)
            assert objects(namespace, "kept") == kept
            assert await first.status(path) == "active"
    finally:
        real_cluster.remove_namespaces(prefix)


async def test_what_a_lost_greylag_left_is_adopted_as_it_is(tmp_path: Path) -> None:
    settings = real_cluster.settings(GREYLAG_KUBE_TEMPLATES=json.dumps({"default": SMALL}))
    prefix = settings["KUBE_NAMESPACE_PREFIX"]
    namespace = f"{prefix}me"
    try:
        async with product(tmp_path, **settings) as one:
            path = await one.project("kept")
            session = (await one.first(path, "turn", "Hello!")).content["session_id"]
            kept, pods, old = objects(namespace, "kept"), _pods(namespace), _instance(namespace)
            await one.kill()
            for file in one.data.glob("greylag.db*"):
                file.unlink()
            await one.start()
            env = {**settings, "GREYLAG_DATA": str(one.data)}
            asked = await run("orphans", "--adopt", "--yes", env=env)
            assert asked.code == 0
            assert asked.err.endswith(f"hint: If its records are lost, add --instance {old}.\n")
            for _ in range(2):
                done = await run("orphans", "--adopt", "--instance", old, "--yes", env=env)
                assert done.code == 0, done
            assert await one.settled(path) == "active"
            assert (objects(namespace, "kept"), _pods(namespace)) == (kept, pods)
            assert _instance(namespace) not in {"", old}
            assert (await one.call("GET", path))[1]["name"] == "X"
            again = await one.say(path, "Are you still there?", session_id=session)
            assert again[-1].type == "complete"
            for verb, ends in (("deactivate", "inactive"), ("activate", "active")):
                status, body = await one.call("POST", f"{path}/{verb}")
                assert (status, body["status"]) == (200, ends), body
    finally:
        real_cluster.remove_namespaces(prefix)


def _pods(namespace: str) -> str:
    return kubectl("get", "pods", "-n", namespace, "-o", "jsonpath={.items[*].metadata.uid}").stdout


def _instance(namespace: str) -> str:
    label = "jsonpath={.metadata.labels.greylag\\.dev/instance}"
    return kubectl("get", "namespace", namespace, "-o", label).stdout


def _copy(old: Product, new: Product) -> None:
    with (
        closing(sqlite3.connect(old.data / "greylag.db")) as source,
        closing(sqlite3.connect(new.data / "greylag.db")) as target,
    ):
        source.backup(target)


async def _lost(old: Product) -> None:
    """Leave an active environment behind."""
    await old.project("lost")
    await old.kill()
