"""`greylag orphans` as an operator uses it, on local environments of a Greylag that runs."""

import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from tests.cli.program import call, on_terminal, run
from tests.e2e.product import Product, product

LOST = {
    "user_id": "me",
    "project_id": "lost",
    "namespace": "user-me",
    "deployment": "lost-api",
    "instance": None,
}


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Product]:
    """A Greylag with a project, and an environment whose record is lost."""
    async with product(tmp_path, GREYLAG_GOOSE="scripted") as one:
        await one.project("kept")
        await one.project("lost")
        with closing(sqlite3.connect(one.data / "greylag.db")) as sql:
            sql.execute("DELETE FROM projects WHERE project_id = 'lost'")
            sql.commit()
        yield one


def settings(up: Product) -> Mapping[str, str]:
    return {"GREYLAG_DATA": str(up.data), "GREYLAG_GOOSE": "scripted"}


def deployments(up: Product) -> list[str]:
    """Return which environments there are."""
    return [folder.deployment for folder in up.folders()]


async def test_an_orphan_is_listed_and_deleted_only_when_told_so(up: Product) -> None:
    env = settings(up)
    place = f"sqlite://{up.data / 'greylag.db'}"
    before = up.processes()
    listed = await run("orphans", "--json", env=env)
    assert (listed.code, listed.err) == (0, "")
    assert listed.document == {"store": place, "orphans": [LOST]}
    refused = await run("orphans", "--delete", env=env)
    assert refused.code == 2
    heading, row = refused.out.splitlines()
    assert heading.split("\t") == [
        *("user", "project", "namespace", "deployment", "other greylag"),
    ]
    assert row.split("\t") == [value or "-" for value in LOST.values()]
    assert refused.err.startswith("error: Nobody can be asked here: add --yes")
    assert (deployments(up), up.processes()) == (["kept-api", "lost-api"], before)
    done = await run("orphans", "--delete", "--yes", env=env)
    assert (done.code, done.out) == (0, refused.out)
    assert done.err == "Deleted: the environment of project lost of user me.\n"
    assert deployments(up) == ["kept-api"]
    assert len(up.processes()) < len(before)
    assert await up.status("/api/users/me/projects/kept") == "active"
    empty = await run("orphans", "--delete", "--data", str(up.data), env={})
    assert (empty.code, empty.err) == (0, "")
    assert empty.out == f"Every environment has a record in {place}.\n"


async def test_it_asks_on_a_terminal_and_goes_on_after_one_that_fails(up: Product) -> None:
    env = settings(up)
    _astray(up)
    async with on_terminal("orphans", "--delete", env=env) as terminal:
        await terminal.until("lost-api")
        await terminal.until("Delete these 2 environments, of which sqlite://")
        await terminal.until("[y/N] ")
        terminal.type("n\n")
        await terminal.until("Nothing was changed.")
        assert await terminal.end() == 1
    assert deployments(up) == ["astray-api", "kept-api", "lost-api"]
    done = await run("orphans", "--delete", "--yes", "--json", env=env)
    assert done.code == 1
    failed, deleted = done.document["orphans"]
    assert (failed["project_id"], failed["deleted"]) == ("else", False)
    assert failed["error"]["code"] == "environment_misplaced"
    assert deleted == {**LOST, "deleted": True, "error": None}
    assert "error: the environment of project else of user me is not deleted: " in done.err
    assert deployments(up) == ["astray-api", "kept-api"]
    # It does not stay as a project that is being deleted.
    assert await up.status("/api/users/me/projects/else") is None
    shutil.rmtree(up.data / "environments/user-me/astray-api")


def _astray(up: Product) -> None:
    """Put an environment, stopped, where its names by the settings are not."""
    folder = up.data / "environments/user-me/astray-api"
    (folder / "volume").mkdir(parents=True)
    known = json.loads((folder.parent / "lost-api/environment.json").read_text())
    stopped = {"phase": "stopped", "process": None, "mark": "no-process-has-it"}
    ref = {"user_id": "me", "project_id": "else"}
    (folder / "environment.json").write_text(json.dumps({**known, **stopped, "ref": ref}))


async def test_where_there_is_no_database_none_is_made(tmp_path: Path) -> None:
    data = tmp_path / "data"
    done = await run("orphans", "--delete", "--yes", env={"GREYLAG_DATA": str(data)})
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: There is no database at {data}/greylag.db")
    assert not data.exists()


async def test_to_agree_beforehand_is_for_deleting_only() -> None:
    done = await call("orphans", "--yes", env={})
    assert (done.code, done.out) == (2, "")


async def test_a_store_that_is_away_ends_with_its_own_code() -> None:
    away = {
        "MONGODB_URI": "mongodb://u:s3cret@127.0.0.1:1/?serverMonitoringMode=poll",
        "GREYLAG_MONGODB_TIMEOUT": "0.2",
    }
    done = await run("orphans", env=away)
    assert (done.code, done.out) == (3, "")
    assert "[store_unavailable]" in done.err
    assert "s3cret" not in done.err
