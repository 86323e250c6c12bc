"""`greylag export`, `import` and `doctor` over stores, as people and scripts use them."""

import json
import os
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.cli.program import Done, call, on_terminal, run
from tests.cli.stack import Stack
from tests.store.sites import KilledError, Site, Sites, cut_off, sites_in
from tests.store.stored_projects import leased, make_stored

from greylag.archives import place_of
from greylag.cli.store import _replacing
from greylag.ports import StoredProject

SQLITE_ONLY = {"MONGODB_URI": "mongodb://u:s3cret@127.0.0.1:1/"}


@pytest.fixture
async def sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sites]:
    monkeypatch.chdir(tmp_path)
    async with sites_in(tmp_path) as made:
        yield made


@pytest.fixture
async def source(sites: Sites) -> Site:
    return await sites.filled("sqlite", [make_stored("one"), make_stored("two")])


@pytest.fixture
async def backup(source: Site, tmp_path: Path) -> Path:
    file = tmp_path / "backup.jsonl"
    assert (await call("export", str(file), env=source.env)).code == 0
    return file


def names(held: list[StoredProject]) -> list[str]:
    return [stored.project.project_id for stored in held]


async def test_an_export_says_what_is_in_it_and_is_for_its_owner_alone(
    sites: Sites, source: Site, tmp_path: Path
) -> None:
    file = tmp_path / "backup.jsonl"
    file.write_text("an earlier one")
    done = await call("export", str(file), env=source.env)
    assert (done.code, done.err) == (0, "")
    shown = dict(line.split(None, 1) for line in done.out.splitlines())
    assert shown == {
        "store": f"sqlite://{source.path}",
        "file": str(file),
        "projects": "2",
        "events": "6",
        "keys": "2",
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    header, *_, end = file.read_text("ascii").splitlines()
    assert json.loads(header).items() >= {"greylag_export": 1, "projects": 2}.items()
    assert len(json.loads(end)["sha256"]) == 64
    # What an earlier file held is gone, and nothing else was left beside it.
    assert _names_in(tmp_path, "jsonl") == ["backup.jsonl"]


def _names_in(folder: Path, part: str) -> list[str]:
    return [file.name for file in folder.iterdir() if part in file.name]


@pytest.mark.parametrize("kind", ["sqlite", "mongo"])
async def test_an_import_says_what_the_store_holds(sites: Sites, backup: Path, kind: str) -> None:
    target = await sites.make(kind)
    done = await call("import", str(backup), "--json", env=target.env)
    assert (done.code, done.err) == (0, "")
    assert done.document == {
        "store": place_of(target.settings),
        "file": str(backup),
        "projects": 2,
        "events": 6,
        "keys": 2,
        "unreadable": 0,
        "people": 0,
        "left_out": 0,
        "entries": 0,
        "entries_left_out": 0,
    }
    assert names(await target.holds()) == ["one", "two"]


async def test_streams_carry_an_export_from_store_to_store(sites: Sites, source: Site) -> None:
    done = await run("export", "-", env=source.env)
    assert done.code == 0
    assert "projects 2" in done.err
    target = await sites.make("mongo")
    taken = await run("import", "-", env=target.env, stdin=done.out.encode())
    assert (taken.code, taken.err) == (0, "")
    assert names(await target.holds()) == ["one", "two"]
    usage = await call("export", "-", "--json", env=source.env)
    assert (usage.code, usage.out) == (2, "")


async def test_a_data_folder_that_is_named_is_meant_whatever_the_settings_say(
    source: Site, tmp_path: Path
) -> None:
    data = str(source.settings.data)
    file = str(tmp_path / "file")
    assert (await call("export", file, "--data", data, env=SQLITE_ONLY)).code == 0
    other = str(tmp_path / "other")
    assert (await call("import", file, "--data", other, env=SQLITE_ONLY)).code == 0
    assert (Path(other) / "greylag.db").is_file()


async def test_a_store_that_is_not_empty_is_left_alone_unless_told(
    sites: Sites, backup: Path
) -> None:
    target = await sites.filled("sqlite", [make_stored("theirs")])
    done = await call("import", str(backup), "--json", env=target.env)
    assert (done.code, done.out) == (1, "")
    assert "is not empty: it holds 1 projects. [store_not_empty]\nhint:" in done.err
    assert names(await target.holds()) == ["theirs"]
    assert (await call("import", str(backup), "--replace", env=target.env)).code == 0
    assert names(await target.holds()) == ["one", "two"]


async def test_a_store_at_work_is_refused(sites: Sites, backup: Path) -> None:
    at_work = leased(make_stored(), datetime.now(UTC) + timedelta(hours=1))
    target = await sites.filled("sqlite", [at_work])
    done = await call("import", str(backup), "--replace", env=target.env)
    assert done.code == 1
    assert "[store_in_use]" in done.err
    assert "hint: Stop each `greylag up`" in done.err


async def test_a_file_that_is_cut_changes_nothing_and_makes_no_store(
    sites: Sites, backup: Path
) -> None:
    _cut(backup)
    target = await sites.make("sqlite")
    for words in ((str(backup),), (str(backup), "--replace")):
        done = await call("import", *words, env=target.env)
        assert (done.code, done.out) == (1, "")
        assert "cut off before its end. [export_unusable]\nhint: Nothing was changed" in done.err
    assert not target.path.exists()
    missing = await call("import", "nowhere.jsonl", env=target.env)
    assert missing.code == 2
    assert "nowhere.jsonl cannot be read" in missing.err


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


async def test_what_cannot_be_read_is_named_and_the_exit_code_says_so(
    sites: Sites, source: Site, tmp_path: Path
) -> None:
    _confuse(source)
    file = tmp_path / "file"
    done = await call("export", str(file), "--json", env=source.env)
    assert done.code == 1
    assert (done.document["projects"], done.document["unreadable"]) == (1, 1)
    assert "left out: The record" in done.err
    assert "'one' of user 'ada' cannot be read" in done.err
    taken = await call("import", str(file), env=(await sites.make("sqlite")).env)
    assert taken.code == 0
    assert (
        "warning: could not be read when the export was made, and not in it: 1 record." in taken.err
    )


def _confuse(site: Site) -> None:
    with closing(sqlite3.connect(site.path)) as sql:
        sql.execute("UPDATE projects SET status = 'confused' WHERE project_id = 'one'")
        sql.commit()


async def test_what_sqlite_cannot_keep_is_said(sites: Sites, tmp_path: Path) -> None:
    source = await sites.filled("mongo", [make_stored()])
    async with source.raw() as raw:
        await raw["projects"].update_one({}, {"$set": {"theirs": 1}})
    file = str(tmp_path / "file")
    await call("export", file, env=source.env)
    done = await call("import", file, env=(await sites.make("sqlite")).env)
    assert done.code == 0
    assert "the fields of other programs in 1 record." in done.err


@pytest.mark.parametrize(
    ("uri", "code", "words"),
    [
        ("mongodb://u:s3cret@127.0.0.1:1/x?serverMonitoringMode=poll", 3, "[store_unavailable]"),
        ("mongodb://u:s3/cret@127.0.0.1:1/x", 2, "MONGODB_URI is not one"),
        ("mongodb://u:s3cret@127.0.0.1:1/?nonsense=s3cret", 2, "can be used (UserWarning)"),
        ("mongodb://u:s3cret@127.0.0.1:1/?tls=true&tlsCAFile=/none/ca", 2, "/none/ca, which"),
        ("mongodb://u:s3cret@127.0.0.1:1/?tls=true&tlsCAFile=/etc/passwd", 2, "cannot be used: "),
    ],
)
async def test_a_store_that_cannot_be_had_ends_with_its_own_code_and_no_password(
    backup: Path, uri: str, code: int, words: str
) -> None:
    env = {"MONGODB_URI": uri, "GREYLAG_MONGODB_TIMEOUT": "0.2"}
    for command in (("export", "other.jsonl"), ("import", str(backup))):
        done = await call(*command, env=env)
        assert (done.code, done.out) == (code, "")
        assert words in done.err
        assert "s3" not in done.err
    # Nothing was made for a store that is not there.
    assert not Path("other.jsonl").exists()  # noqa: ASYNC240 - a moment


async def test_a_store_that_is_not_there_is_not_exported(tmp_path: Path) -> None:
    done = await call("export", "file", env={"GREYLAG_DATA": str(tmp_path / "none")})
    assert done.code == 2
    assert f"There is no database at {tmp_path}/none/greylag.db" in done.err
    assert not (tmp_path / "none").exists()


async def test_a_database_without_a_store_is_not_exported_over_a_backup(
    sites: Sites, source: Site, backup: Path
) -> None:
    before = _bytes_of(backup)
    # A wrong name, and a server whose data are gone: either one answers for any name.
    wrong = await sites.make("mongo")
    done = await call("export", str(backup), env=wrong.env)
    assert (done.code, done.out) == (2, "")
    assert f"{place_of(wrong.settings)} holds no records of Greylag." in done.err
    assert "hint: Check MONGODB_URI and MONGODB_DB." in done.err
    # One that is filled only in part.
    half = await sites.filled("mongo", [])
    async with half.archive() as archive:
        await cut_off(archive)
    done = await call("export", str(backup), env=half.env)
    assert (done.code, done.out) == (1, "")
    assert "an import into it has not ended. [store_incomplete]" in done.err
    with closing(sqlite3.connect(source.path)) as sql:  # as an older Greylag's copy left it
        sql.execute("CREATE TABLE copying (one)")
    done = await call("export", str(backup), env=source.env)
    assert (done.code, "[store_incomplete]" in done.err) == (1, True)
    assert _bytes_of(backup) == before


def _bytes_of(file: Path) -> bytes:
    return file.read_bytes()


async def test_a_file_that_cannot_be_written_is_said(source: Site, tmp_path: Path) -> None:
    done = await call("export", str(tmp_path / "none" / "file"), env=source.env)
    assert done.code == 1
    assert "cannot be written" in done.err
    assert (await call("export", "/dev/full", env=source.env)).code == 1
    assert (await call("export", os.devnull, env=source.env)).code == 0
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)  # noqa: ASYNC240 - a moment


def test_until_it_is_whole_an_export_has_no_name_that_a_kill_could_leave(tmp_path: Path) -> None:
    file = tmp_path / "backup.jsonl"
    file.write_text("an earlier one")
    with _replacing(file) as write:
        write(b"half")
        assert _names_in(tmp_path, "") == ["backup.jsonl"]
        assert file.read_text() == "an earlier one"
        write(b" and half")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("half and half", 0o600)
    assert _names_in(tmp_path, "") == ["backup.jsonl"]


@pytest.mark.parametrize("named", [False, True])
def test_an_export_that_fails_leaves_the_earlier_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, named: bool
) -> None:
    if named:  # where a file cannot be without a name
        monkeypatch.delattr(os, "O_TMPFILE")
    file = tmp_path / "backup.jsonl"
    with _replacing(file) as write:
        write(b"whole")
    with suppress(KilledError), _replacing(file) as write:
        write(b"half")
        raise KilledError
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("whole", 0o600)
    assert _names_in(tmp_path, "") == ["backup.jsonl"]


async def test_a_terminal_shows_how_far_it_is(sites: Sites, backup: Path) -> None:
    target = await sites.make("sqlite")
    async with on_terminal("import", str(backup), env=target.env) as terminal:
        await terminal.until("projects")
        assert await terminal.end() == 0
        assert "importing" in terminal.text
        assert "2/2" in terminal.text


async def test_no_program_starts_on_a_store_that_an_import_has_left(
    sites: Sites, backup: Path
) -> None:
    half = await sites.filled("mongo", [])
    async with half.archive() as archive:
        await cut_off(archive)
    for command in ("up", "serve", "worker"):
        port = [] if command == "worker" else ["--port", "0"]
        done = await run(command, *port, env=half.env)
        assert (done.code, done.out) == (2, "")
        assert "holds only a part of what is being imported into it" in done.err
        assert "hint: Run the same `greylag import` again" in done.err
    assert _store_checks(await call("doctor", "--json", env=half.env)) == [
        ("fail", "An import into the store has not ended: it holds only a part of its records.")
    ]
    assert (await call("import", str(backup), env=half.env)).code == 0
    assert names(await half.holds()) == ["one", "two"]


def _store_checks(done: Done) -> list[tuple[str, str]]:
    return [
        (check["verdict"], check["detail"])
        for check in done.document["checks"]
        if check["name"] == "store"
    ]


async def test_doctor_reads_the_store_and_says_what_it_finds(
    sites: Sites, source: Site, tmp_path: Path
) -> None:
    none = {"GREYLAG_DATA": str(tmp_path / "none")}
    assert _store_checks(await call("doctor", "--json", env=none)) == [
        ("ok", "There are no records yet.")
    ]
    assert _store_checks(await call("doctor", "--json", env=source.env)) == [
        ("ok", "2 projects, and all can be read.")
    ]
    _confuse(source)
    before = source.path.read_bytes()
    ((verdict, detail),) = _store_checks(await call("doctor", "--json", env=source.env))
    assert verdict == "fail"
    assert "'one' of user 'ada' cannot be read" in detail
    assert source.path.read_bytes() == before
    remote = await sites.filled("mongo", [make_stored()])
    async with remote.raw() as raw:
        await raw["projects"].drop_index("user_id_1_project_id_1")
    ((verdict, detail),) = _store_checks(await call("doctor", "--json", env=remote.env))
    assert (verdict, "user_id_1_project_id_1" in detail) == ("fail", True)


async def test_doctor_tells_that_no_worker_runs_where_a_server_does(
    stack: Stack, source: Site
) -> None:
    env = {**stack.env, **source.env, "GREYLAG_TOKEN": stack.token}
    done = await call("doctor", "--json", env=env)
    (found,) = [one for one in done.document["checks"] if one["name"] == "worker"]
    # The data folder may be another's than that of the server which answers.
    assert found["verdict"] == "warn"
    assert "No worker has taken on project 'one' of user 'ada' and 1 more" in found["detail"]
    stopped = await call("doctor", "--json", env=source.env)
    assert "worker" not in {one["name"] for one in stopped.document["checks"]}


async def test_doctor_takes_a_database_before_the_first_start_for_no_fault(sites: Sites) -> None:
    new = await sites.make("mongo")
    checks = (await call("doctor", "--json", env=new.env)).document["checks"]
    verdicts = {check["name"]: check["verdict"] for check in checks}
    (store,) = [check for check in checks if check["name"] == "store"]
    assert (verdicts["mongodb"], store["verdict"]) == ("ok", "ok")
    assert store["detail"] == "There are no records yet."
    assert store["advice"] == "If there should be some, check MONGODB_URI and MONGODB_DB."
    # One that holds something, but no records: another's, or one that was emptied under a program.
    async with new.raw() as raw:
        await raw["others"].insert_one({})
    ((verdict, detail),) = _store_checks(await call("doctor", "--json", env=new.env))
    assert (verdict, "holds no records of Greylag." in detail) == ("fail", True)


async def test_doctor_names_no_more_than_a_few(sites: Sites) -> None:
    long_ago = datetime(2025, 1, 1, tzinfo=UTC)
    dead = [leased(make_stored(f"p{number}"), long_ago) for number in range(12)]
    site = await sites.filled("sqlite", dead)
    found = _store_checks(await call("doctor", "--json", env=site.env))
    assert len(found) == 11
    assert found[-1] == ("fail", "2 more findings.")
