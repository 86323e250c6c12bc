"""What every store does with records that something else has written: each harms no other."""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.contract.store_adapters import ADAPTERS, all_claims, at, claim, make_project
from tests.store.sites import KINDS, Site, sites_in

from greylag.domain.audit import SYSTEM
from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import ProjectRef
from greylag.domain.users import NotificationTarget, Share, User, of_identity, of_user
from greylag.ports import (
    AnyKept,
    Archive,
    AuditFilter,
    PageQuery,
    ProjectStore,
    RecordUnreadableError,
    has_record,
)
from greylag.services.audit import event_of
from greylag.services.store_export import check_store, export_store
from greylag.services.store_file import Contents
from greylag.store.people import NAMES
from greylag.store.sqlite import archive as archive_of_a_file
from greylag.store.sqlite.queries import SELECT

BAD = ProjectRef("ada", "bad")
DAMAGES: list[dict[str, Any]] = [
    {"status": "confused"},
    {"attempts": "x"},
    {"deadline_at": "then"},
    {"claims": "x"},
    {"metadata": "{"},
]


@pytest.fixture(params=KINDS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """Each kind of store that others can write to, empty."""
    async with sites_in(tmp_path) as sites:
        yield await sites.make(request.param)


@pytest.fixture
async def store(site: Site) -> AsyncIterator[ProjectStore]:
    async with site.store() as opened:
        yield opened


async def exported(archive: Archive) -> Contents:
    return await export_store(archive, lambda _: None, at(90), lambda *_: None, lambda _: None)


async def spoil(site: Site, **fields: Any) -> None:
    """Write into the record of the project ``bad``, as something else might."""
    if site.settings.mongodb_uri is not None:
        async with site.raw() as raw:
            await raw["projects"].update_one({"project_id": "bad"}, {"$set": fields})
        return
    with closing(sqlite3.connect(site.path)) as sql, sql:
        for name, value in fields.items():
            assert name in SELECT
            query = f"UPDATE projects SET {name} = ? WHERE project_id = 'bad'"  # noqa: S608 - above
            sql.execute(query, (value,))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: next(iter(one)))
async def test_a_claim_steps_past_what_cannot_be_read(
    site: Site, store: ProjectStore, damage: dict[str, Any]
) -> None:
    await store.create(make_project("bad", due_at=at(0)))
    await store.create(make_project("good", due_at=at(1)))
    await store.create(make_project("other", "bob", due_at=at(2)))
    await spoil(site, **damage)
    with capture_logs() as lines:
        assert sorted(await all_claims(store, 3)) == ["good", "other"]
    assert [line["event"] for line in lines] == ["record_passed_over"]
    assert "'bad' of user 'ada' cannot be read" in lines[0]["error"]
    # It is looked at again when its lease has run out, and not before: nobody is kept busy by it.
    due = await store.next_due()
    assert due is not None
    assert due > at(3)
    with capture_logs() as lines:
        assert sorted(await all_claims(store, 40)) == ["good", "other"]
    assert len(lines) == 1


async def test_what_was_corrected_is_claimed_again(site: Site, store: ProjectStore) -> None:
    await store.create(make_project("bad", due_at=at(0)))
    await spoil(site, status="confused")
    assert await all_claims(store, 1) == []
    await spoil(site, status="inactive")
    assert (await store.get("ada", "bad")).project_id == "bad"
    assert await all_claims(store, 2) == []
    assert (await claim(store, 40)).number > 0


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: next(iter(one)))
async def test_a_page_leaves_out_what_cannot_be_read(
    site: Site, store: ProjectStore, damage: dict[str, Any]
) -> None:
    for number, name in enumerate(["one", "two", "bad", "three"]):
        await store.create(make_project(name, created=number))
    await spoil(site, **damage)
    found, cursor = [], None
    with capture_logs() as lines:
        while True:
            page = await store.page("ada", PageQuery(limit=1, cursor=cursor))
            found += [project.project_id for project in page.projects]
            cursor = page.cursor
            if cursor is None:
                break
    assert found == ["three", "two", "one"]
    assert {line["event"] for line in lines} == {"record_passed_over"}
    with pytest.raises(RecordUnreadableError, match="'bad' of user 'ada' cannot be read"):
        await store.get("ada", "bad")


async def test_what_cannot_be_read_is_there_all_the_same(site: Site, store: ProjectStore) -> None:
    await store.create(make_project("bad"))
    await store.create(make_project("good"))
    await spoil(site, status="confused")
    assert await has_record(store, BAD)
    await store.poke(BAD, at(0))
    await store.poke(ProjectRef("ada", "good"), at(0))
    assert await store.poke_unsettled(at(0)) >= 1
    assert await all_claims(store, 1) == ["good"]


async def test_who_has_one_that_cannot_be_read_has_projects(
    site: Site, store: ProjectStore
) -> None:
    assert not await store.has_projects("ada")
    await store.create(make_project("bad"))
    await spoil(site, status="confused")
    assert await store.has_projects("ada")
    assert not await store.has_projects("bob")


async def test_moments_that_are_none_are_never_due(site: Site, store: ProjectStore) -> None:
    await store.create(make_project("bad", due_at=at(0)))
    due = "claimable_at" if site.settings.mongodb_uri is not None else "due_at"
    await spoil(site, **{due: "then"})
    assert await store.next_due() is None
    assert await all_claims(store, 9) == []
    await store.create(make_project("good", due_at=at(5)))
    assert await store.next_due() == at(5)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("name = CAST(x'ff41' AS TEXT)", "name is not UTF-8"),
        ("metadata = CAST(x'7b2261223a22ff227d' AS TEXT)", "metadata is not UTF-8"),
        ("metadata = replace(hex(zeroblob(50000)), '00', '[')", "RecursionError"),
    ],
)
async def test_text_that_is_none_in_a_file_keeps_one_project_waiting(
    tmp_path: Path, written: str, why: str
) -> None:
    async with sites_in(tmp_path) as sites:
        site = await sites.make("sqlite")
        async with site.store() as store:
            await store.create(make_project("bad", due_at=at(0)))
            await store.create(make_project("good", due_at=at(1)))
            with closing(sqlite3.connect(site.path)) as sql, sql:
                sql.execute(f"UPDATE projects SET {written} WHERE project_id = 'bad'")  # noqa: S608 - above
            with capture_logs() as lines:
                assert await all_claims(store, 2) == ["good"]
                page = await store.page("ada", PageQuery())
            assert [one.project_id for one in page.projects] == ["good"]
            assert why in lines[0]["error"]
            with pytest.raises(RecordUnreadableError, match=why):
                await store.get("ada", "bad")
        async with site.archive() as archive:
            (finding,) = (await check_store(archive, at(1))).findings
        assert why in finding.sentence


@pytest.mark.parametrize("column", ["id", "user_id"])
async def test_a_name_in_a_file_that_is_no_text_ends_no_claims_and_no_reading(
    tmp_path: Path, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_of_a_file, "_AT_ONCE", 1)
    async with sites_in(tmp_path) as sites:
        site = await sites.make("sqlite")
        async with site.store() as store:
            await store.create(make_project("bad", due_at=at(0)))
            for name in ("first", "second", "third"):
                await store.create(make_project(name, due_at=at(0)))
            with closing(sqlite3.connect(site.path)) as sql, sql:
                none = f"UPDATE projects SET {column} = CAST(? AS TEXT) WHERE project_id = 'bad'"  # noqa: S608 - above
                sql.execute(none, (b"\xffA",))
            with capture_logs() as lines:
                # All that is due is of users under leases then: each user's first is looked for.
                assert sorted(await all_claims(store, 1)) == ["first", "second", "third"]
            assert [line["event"] for line in lines] == ["record_passed_over"]
            assert f"{column} is not UTF-8" in lines[0]["error"]
            due = await store.next_due()
            assert due is not None
            assert due > at(1)
        async with site.archive() as archive:
            report = await check_store(archive, at(1))
            contents = await exported(archive)
    assert report.projects == 4
    assert [f"{column} is not UTF-8" in one.sentence for one in report.findings] == [True]
    assert (contents.projects, contents.unreadable) == (3, 1)


async def test_projects_without_text_for_an_id_are_ordered_among_the_others(tmp_path: Path) -> None:
    async with sites_in(tmp_path) as sites:
        site = await sites.make("sqlite")
        async with site.store() as store:
            for user in ("ada", "bob"):
                for name in ("one", "two"):
                    await store.create(make_project(f"{user}-{name}", user, due_at=at(0)))
            assert [(await claim(store, 0)).project.user_id for _ in range(2)] == ["ada", "bob"]
            with closing(sqlite3.connect(site.path)) as sql, sql:
                sql.execute(
                    "UPDATE projects SET id = CAST(x'ff' AS TEXT) WHERE project_id = 'ada-two'"
                )
            assert await all_claims(store, 0) == ["bob-two"]


async def test_people_whose_key_is_no_text_hold_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_of_a_file, "_AT_ONCE", 1)
    async with sites_in(tmp_path) as sites:
        site = await sites.make("sqlite")
        async with site.store() as store:
            for user in (User("ada", "Ada"), User("bob", "Bob"), User("cyd", "Cyd")):
                await store.put(user, at(0))
            share = Share("s" * 16, "ada", "demo", "rec", None, "/", "", "ada", at(0), at(1))
            await store.put(share, at(0))
            with closing(sqlite3.connect(site.path)) as sql, sql:
                for table in ("people", "people_labels"):
                    sql.execute(
                        f"UPDATE {table} SET key = CAST(x'61ff' AS TEXT) WHERE key IN ('bob', ?)",  # noqa: S608 - above
                        (share.key,),
                    )
            assert await store.put(User("dan", "Dan"), at(50))
            with closing(sqlite3.connect(site.path)) as sql:
                left = sql.execute("SELECT count(*) FROM people WHERE kind = 'shares'").fetchone()
                labels = sql.execute(
                    "SELECT count(*) FROM people_labels WHERE kind = 'shares'"
                ).fetchone()
            assert (*left, *labels) == (0, 0)
        async with site.archive() as archive:
            contents = await exported(archive)
    assert contents.people == 4


@pytest.mark.parametrize(
    "written",
    [
        """CAST(replace(body, '"x"', '"' || CAST(x'ff' AS TEXT) || '"') AS TEXT)""",
        "replace(hex(zeroblob(50000)), '00', '[')",
    ],
    ids=["not UTF-8", "nested"],
)
async def test_an_entry_of_the_audit_trail_that_cannot_be_read_is_an_empty_one(
    tmp_path: Path, written: str
) -> None:
    async with sites_in(tmp_path) as sites:
        site = await sites.make("sqlite")
        async with site.store() as store:
            for second in range(3):
                await store.append_audit(event_of(SYSTEM, at(second), "projects.create", "x"))
            with closing(sqlite3.connect(site.path)) as sql, sql:
                sql.execute(f"UPDATE audit SET body = {written} WHERE number = 2")  # noqa: S608 - above
            found = await store.audit_entries(AuditFilter(), 9)
            assert [(number, bool(told)) for number, told in found] == [
                (1, True),
                (2, False),
                (3, True),
            ]
        async with site.archive() as archive:
            contents = await exported(archive)
        assert contents.entries == 3
        async with site.store() as store:
            assert await store.trim_audit(at(2)) == 2


async def test_an_instance_and_an_end_of_the_trail_that_are_no_text(tmp_path: Path) -> None:
    async with sites_in(tmp_path) as sites:
        site = await sites.make("sqlite")
        async with site.store() as store:
            await store.append_audit(event_of(SYSTEM, at(0), "projects.create", "x"))
            with closing(sqlite3.connect(site.path)) as sql, sql:
                sql.execute("UPDATE audit_bounds SET hash = CAST(x'ff' AS TEXT)")
                sql.execute("UPDATE instance SET id = CAST(x'ff' AS TEXT)")
            assert (
                await store.append_audit(event_of(SYSTEM, at(1), "projects.create", "x"))
            ).number == 2
            with pytest.raises(StoreUnavailableError, match="id is not UTF-8"):
                await store.instance()


async def test_text_of_a_log_and_of_people_that_is_none_hides_no_other(tmp_path: Path) -> None:
    async with sites_in(tmp_path) as sites:
        site = await sites.make("sqlite")
        spoiled, sound = make_target(1, "ada"), make_target(2, "bob")
        async with site.store() as store:
            await store.create(make_project("bad", due_at=at(0)))
            for one in (spoiled, sound):
                await store.put(one, at(0))
            with closing(sqlite3.connect(site.path)) as sql, sql:
                sql.execute(
                    "INSERT INTO events (record_id, seq, body) "
                    "SELECT id, 1, CAST(x'ff' AS TEXT) FROM projects"
                )
                none = "CAST(replace(body, 'Chat', CAST(x'ff' AS TEXT)) AS TEXT)"
                sql.execute(f"UPDATE people SET body = {none} WHERE key = ?", (spoiled.key,))  # noqa: S608 - above
            with pytest.raises(RecordUnreadableError, match="body is not UTF-8"):
                await store.events("ada", "bad", 0, 9)
            assert [one.id for one in await store.labelled(NotificationTarget)] == [sound.id]
        async with site.archive() as archive:
            found = (await check_store(archive, at(1))).findings
        assert len(found) == 2


@pytest.fixture(params=ADAPTERS)
async def of_people(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    async with sites_in(tmp_path) as sites:
        yield await sites.make(request.param)


async def spoil_person(site: Site, one: AnyKept, **fields: Any) -> None:
    name = NAMES[type(one)]
    if site.memory is not None:
        site.memory._tables.people[type(one), one.key] |= fields
    elif site.settings.mongodb_uri is not None:
        async with site.raw() as raw:
            collection = name if name == "users" else f"greylag_{name}"
            await raw[collection].update_one({"_id": one.key}, {"$set": fields})
    else:
        with closing(sqlite3.connect(site.path)) as sql, sql:
            of = (name, one.key)
            query = "SELECT body FROM people WHERE kind = ? AND key = ?"
            body = json.loads(sql.execute(query, of).fetchone()[0]) | fields
            sql.execute(
                "UPDATE people SET body = ? WHERE kind = ? AND key = ?", (json.dumps(body), *of)
            )


def make_target(number: int, user: str) -> NotificationTarget:
    return NotificationTarget(
        f"{number:016x}", user, "webhook", "Chat", "hooks.test", "https://x.test", "sealed", at(1)
    )


async def test_a_row_of_a_newer_version_hides_no_other(of_people: Site) -> None:
    async with of_people.store() as store:
        newer, sound = make_target(1, "ada"), make_target(2, "bob")
        for one in (newer, sound):
            assert await store.put(one, at(0))
        await spoil_person(of_people, newer, kind="matrix", sealed=["s3cret"])
        with capture_logs() as lines:
            assert [one.id for one in await store.labelled(NotificationTarget)] == [sound.id]
            assert await store.labelled(NotificationTarget, of_user("ada")) == []
        assert [line["event"] for line in lines] == ["record_passed_over"] * 2
        with pytest.raises(RecordUnreadableError, match="of notifications cannot be read") as found:
            await store.find(NotificationTarget, newer.key)
        # What stands in such a row may be secret.
        assert "s3cret" not in f"{found.value} {lines}"
        assert newer.key in lines[0]["error"]
        # Whoever asks for all is not told a part.
        for label in (of_user("ada"), None):
            with pytest.raises(RecordUnreadableError, match="of notifications cannot be read"):
                await store.labelled(NotificationTarget, label, strict=True)
        whole = await store.labelled(NotificationTarget, of_user("bob"), strict=True)
        assert [one.id for one in whole] == [sound.id]


async def test_a_user_who_cannot_be_read_is_not_taken_for_nobody(of_people: Site) -> None:
    async with of_people.store() as store:
        ada = User("ada", "Ada", identity="https://idp ada")
        await store.put(ada, at(0))
        await store.put(User("bob", "Bob"), at(0))
        await spoil_person(of_people, ada, role="auditor")
        assert [one.id for one in await store.labelled(User)] == ["bob"]
        with pytest.raises(RecordUnreadableError):
            await store.labelled(User, of_identity("https://idp ada"))
