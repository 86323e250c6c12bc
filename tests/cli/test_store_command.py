"""`greylag store` as people and scripts use it: its output, its exit codes, and no password."""

import json
import os
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.cli.program import Done, call, on_terminal, run
from tests.store import mongo_servers
from tests.store.archive_places import Site, Sites, leased, make_bundle, raw_database, sites_in

from greylag.archives import refuse_unfinished
from greylag.config import Settings
from greylag.domain.project import Status
from greylag.ports import StoreIncompleteError


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """Settings of a shell in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return {"GREYLAG_DATA": str(tmp_path / "data")}


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Sites]:
    async with sites_in(tmp_path) as made:
        yield made


@pytest.fixture
async def source(sites: Sites) -> Site:
    return await sites.filled("sqlite", [make_bundle("one"), make_bundle("two")])


async def copy(source: Site, target: Site, *more: str, env: Mapping[str, str]) -> Done:
    return await call("store", "copy", "--from", source.url, "--to", target.url, *more, env=env)


async def test_a_copy_says_what_the_target_holds(
    sites: Sites, source: Site, env: Mapping[str, str]
) -> None:
    target = await sites.make("mongo")
    done = await copy(source, target, env=env)
    assert (done.code, done.err) == (0, "")
    shown = dict(line.split(None, 1) for line in done.out.splitlines())
    assert shown["source"] == source.place.shown
    assert shown["target"] == target.place.shown
    assert (shown["projects"], shown["events"], shown["keys"]) == ("2", "6", "2")
    again = await copy(source, target, "--json", env=env)
    assert again.document == {
        "source": source.place.shown,
        "target": target.place.shown,
        "projects": 2,
        "events": 6,
        "keys": 2,
        "digest": shown["digest"],
        "written": 0,
        "left_out": 0,
    }


async def test_what_sqlite_cannot_keep_is_said(sites: Sites, env: Mapping[str, str]) -> None:
    source = await sites.filled("mongo", [make_bundle()])
    async with raw_database(source) as raw:
        await raw["projects"].update_one({}, {"$set": {"theirs": 1}})
    done = await copy(source, await sites.make("sqlite"), env=env)
    assert done.code == 0
    assert "1 documents hold fields that Greylag does not know" in done.out


async def test_a_target_that_is_not_empty_is_refused(
    sites: Sites, source: Site, env: Mapping[str, str]
) -> None:
    target = await sites.filled("sqlite", [make_bundle("theirs")])
    done = await copy(source, target, "--json", env=env)
    assert (done.code, done.out) == (1, "")
    assert "is not empty: it holds 1 projects. [store_not_empty]\nhint:" in done.err


async def test_a_source_at_work_is_refused(sites: Sites, env: Mapping[str, str]) -> None:
    bundle = leased(make_bundle(), datetime.now(UTC) + timedelta(hours=1))
    source = await sites.filled("sqlite", [bundle])
    done = await copy(source, await sites.make("sqlite"), env=env)
    assert done.code == 1
    assert "[store_in_use]" in done.err
    assert "hint: Stop each `greylag up`" in done.err


@mongo_servers.forgets_sockets
@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("mongodb://u:s3cret@127.0.0.1:1/x?serverMonitoringMode=poll", 3, "[store_unavailable]"),
        ("mongodb://u:s3/cret@127.0.0.1:1/x", 2, "no address of a MongoDB"),
        ("mongodb://u:s3cret@127.0.0.1:1/?nonsense=s3cret", 2, "can be used (UserWarning)"),
        ("postgres://u:s3cret@host/x", 2, "no address of a store"),
        ("nowhere", 2, "no database at"),
    ],
)
async def test_a_store_that_cannot_be_had_ends_with_its_own_code_and_no_password(
    env: Mapping[str, str], url: str, code: int, words: str
) -> None:
    quick = {**env, "GREYLAG_MONGODB_TIMEOUT": "0.2"}
    for command in (("check", url), ("copy", "--from", url, "--to", "target.db")):
        done = await call("store", *command, env=quick)
        assert (done.code, done.out) == (code, "")
        assert words in done.err
        assert "s3" not in done.err
    # Nothing was made for a source that is not there.
    assert not Path("target.db").exists()  # noqa: ASYNC240 - a moment
    mongo_servers.collect_sockets()


async def test_a_check_that_finds_nothing_says_so(source: Site, env: Mapping[str, str]) -> None:
    done = await call("store", "check", source.url, env=env)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{source.place.shown}: 2 projects, and nothing is wrong.\n"


async def test_what_a_check_finds_is_explained(sites: Sites, env: Mapping[str, str]) -> None:
    bad = make_bundle(status=Status.ACTIVE, endpoint=None)
    site = await sites.filled("sqlite", [bad])
    done = await call("store", "check", site.url, env=env)
    assert (done.code, done.err) == (1, "")
    heading, finding = done.out.splitlines()
    assert heading.split("\t") == ["code", "record", "found", "hint"]
    assert finding.split("\t")[:2] == ["active_without_endpoint", bad.project.id]
    done = await call("store", "check", site.url, "--json", env=env)
    assert done.code == 1
    (found,) = done.document.pop("findings")
    assert set(found) == {"code", "record", "sentence", "hint"}
    rest = {"store": site.place.shown, "ok": False, "projects": 1}
    assert {name: done.document[name] for name in rest} == rest


async def test_without_a_url_the_store_of_the_settings_is_checked(
    sites: Sites, env: Mapping[str, str]
) -> None:
    missing = await call("store", "check", env=env)
    assert missing.code == 2
    assert str(Path(env["GREYLAG_DATA"]) / "greylag.db") in missing.err
    site = await sites.filled("mongo", [make_bundle()])
    uri, name = site.place.uri, site.place.database  # type: ignore[union-attr] # it is a MongoPlace
    done = await call("store", "check", env={**env, "MONGODB_URI": uri, "MONGODB_DB": name})
    assert (done.code, done.out.split(": ")[0]) == (0, site.place.shown)


async def test_a_terminal_shows_how_far_it_is(
    sites: Sites, source: Site, env: Mapping[str, str]
) -> None:
    target = await sites.make("sqlite")
    words = ("store", "copy", "--from", source.url, "--to", target.url)
    async with on_terminal(*words, env=env) as terminal:
        await terminal.until("digest")
        assert await terminal.end() == 0
        assert "verifying" in terminal.text
        assert "4/4" in terminal.text


async def test_no_program_starts_on_a_store_that_is_half_filled(
    sites: Sites, env: Mapping[str, str]
) -> None:
    data = Path(env["GREYLAG_DATA"])
    await refuse_unfinished(Settings(data=data, _env_file=None))
    half = await sites.filled("sqlite", [])
    async with half.archive() as archive:
        await archive.begin("elsewhere")
    folder = str(half.place.path.parent)  # type: ignore[union-attr] # it is a SqlitePlace
    done = await run("up", "--port", "0", "--data", folder, env=env)
    assert (done.code, done.out) == (2, "")
    assert "holds only a part of what is being copied from elsewhere" in done.err
    checked = await call("store", "check", folder, "--json", env=env)
    assert [found["code"] for found in checked.document["findings"]] == ["unfinished_copy"]
    remote = await sites.filled("mongo", [])
    async with remote.archive() as archive:
        await archive.begin("elsewhere")
    uri, name = remote.place.uri, remote.place.database  # type: ignore[union-attr] # a MongoPlace
    with pytest.raises(StoreIncompleteError, match="elsewhere"):
        await refuse_unfinished(Settings(mongodb_uri=uri, mongodb_db=name, _env_file=None))


async def test_a_check_of_a_spoilt_file_changes_nothing(
    source: Site, env: Mapping[str, str]
) -> None:
    path = source.place.path  # type: ignore[union-attr] # it is a SqlitePlace
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("UPDATE projects SET status = 'confused'")
        sql.commit()
    before = path.read_bytes()
    done = await call("store", "check", os.fspath(path), "--json", env=env)
    assert [found["code"] for found in json.loads(done.out)["findings"]] == ["unknown_status"] * 2
    assert path.read_bytes() == before
