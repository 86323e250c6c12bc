"""Records that are put back from an older copy while environments run, and settings that change:
on this machine and on a real cluster.
"""

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.cli.program import run
from tests.cluster import real_cluster
from tests.e2e.product import Product, product

pytestmark = pytest.mark.slow

SMALL = {"cpu_request": "10m", "environment": {"GREYLAG_GOOSE": "scripted"}}


def on_kubernetes() -> dict[str, str]:
    """Return the settings of a Greylag on the real cluster, whose environments are small."""
    return real_cluster.settings(GREYLAG_KUBE_TEMPLATES=json.dumps({"default": SMALL}))


@pytest.fixture(params=["local", pytest.param("kubernetes", marks=pytest.mark.cluster)])
async def up(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Product]:
    if request.param == "local":
        async with product(tmp_path, GREYLAG_GOOSE="scripted", GREYLAG_CLUSTER="local") as local:
            yield local
        return
    settings = on_kubernetes()
    try:
        async with product(tmp_path, **settings) as real:
            yield real
    finally:
        real_cluster.remove_namespaces(settings["KUBE_NAMESPACE_PREFIX"])


async def test_what_was_put_back_from_an_older_copy_is_taken_over_in_one_step(up: Product) -> None:
    path = await up.project("kept")
    await up.end()
    backup = up.data.with_name("backup")
    backup.mkdir()
    for file in up.data.glob("greylag.db*"):
        shutil.copy(file, backup)
    await up.start()
    for verb in ("deactivate", "activate", "deactivate", "activate"):
        await up.call("POST", f"{path}/{verb}")
    await up.end()
    for file in up.data.glob("greylag.db*"):
        file.unlink()
    for file in backup.glob("greylag.db*"):
        shutil.copy(file, up.data)
    await up.start()
    status, body = await up.call("POST", f"{path}/deactivate")
    assert (status, body["status"]) == (200, "inactive"), body
    told = [event.content for event in await up.log(path, "records_restored")]
    assert told[-1]["message"].startswith("Greylag's records were put back from an older copy")
    status, body = await up.call("POST", f"{path}/activate")
    assert (status, body["status"]) == (200, "active"), body


async def test_changed_settings_reach_what_runs_by_a_rollout(up: Product) -> None:
    path = await up.project("kept")
    session = (await up.first(path, "turn", "Hello!")).content["session_id"]
    await up.end()
    up.change(GREYLAG_MODEL_KEY="rotated", GREYLAG_MODEL_URL="http://127.0.0.1:9")
    await up.start()
    await up.until(path, outdated=True)
    shown = await run("projects", "show", "kept", env=up.env)
    assert "greylag rollout" in shown.out
    # A pod may take all of its grace period to end.
    done = await run("rollout", "--json", env=up.env, patience=120)
    assert (done.code, done.document) == (
        0,
        {
            "refreshed": [{"user_id": "me", "project_id": "kept"}],
            "busy": [],
            "left": [],
            "failed": [],
        },
    )
    _, body = await up.call("GET", path)
    assert (body["status"], body["outdated"]) == ("active", False)
    assert (await up.call("GET", f"{path}/sessions/{session}"))[0] == 200
    again = await run("rollout", env=up.env)
    assert (again.code, again.out) == (0, "No environment that runs is outdated.\n")
