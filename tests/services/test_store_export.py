"""Exports and imports: lossless between all stores, whole or refused, right after any cut."""

import asyncio
import contextlib
import io
import json
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.contract.store_adapters import IDLE, at, claim, make_project
from tests.store.sites import KINDS, KilledError, Site, Sites, sites_in
from tests.store.stored_projects import STORED, changed, leased, make_stored
from tests.wishes import want

from greylag.domain.audit import SYSTEM, AuditEvent, ChainBrokenError, ChainCheck
from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import Desired, NewEvent
from greylag.domain.users import (
    ApiToken,
    Limits,
    Member,
    MemberRole,
    NotificationTarget,
    PushKey,
    Role,
    Scope,
    Session,
    Share,
    User,
    UserSecret,
)
from greylag.ports import (
    AnyKept,
    Archive,
    AuditFilter,
    Fill,
    Finding,
    Origin,
    Stored,
    StoredProject,
    StoreIncompleteError,
    StoreInUseError,
    StoreNotEmptyError,
)
from greylag.services.store_export import Imported, export_store, import_store
from greylag.services.store_file import (
    Contents,
    ExportUnusableError,
    ExportWriter,
    contents,
    read_export,
)

NOW = at(100)
FLOOR = int(NOW.timestamp() * 1000)
WAYS = [(source, target) for source in KINDS for target in KINDS]


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Sites]:
    async with sites_in(tmp_path) as made:
        yield made


def nobody(*_: object) -> None:
    """Hear nothing."""


def none_unreadable(finding: Finding) -> None:
    pytest.fail(finding.sentence)


async def exported(
    source: Site, tell: Callable[[str, int, int], None] = nobody, now: datetime = NOW
) -> bytes:
    file = io.BytesIO()
    async with source.archive(write=False) as archive:
        await export_store(archive, file.write, now, tell, none_unreadable)
    return file.getvalue()


async def imported(
    target: Site,
    file: bytes,
    *,
    replacing: bool = False,
    tell: Callable[[str, int, int], None] = nobody,
) -> Imported:
    async with target.archive() as archive:
        return await import_store(archive, io.BytesIO(file), NOW, tell, SYSTEM, replacing=replacing)


def arrived(stored: StoredProject) -> StoredProject:
    """Return what should be there after an import."""
    due = min(stored.project.due_at or NOW, NOW)
    keys = [key for key in stored.keys if key.expires_at > NOW]
    return replace(
        changed(stored, lease=None, due_at=due), keys=keys, claims=max(stored.claims, FLOOR)
    )


@pytest.mark.parametrize(("kind", "other"), WAYS)
async def test_everything_arrives_unleased_and_due(sites: Sites, kind: str, other: str) -> None:
    projects = [make_stored(f"p{number}") for number in range(5)]
    projects += [leased(make_stored("led"), NOW + timedelta(seconds=9))]
    projects += [make_stored("later", due_at=NOW + timedelta(hours=1))]
    projects += [make_stored("never", due_at=None)]
    source, target = await sites.filled(kind, projects), await sites.make(other)
    told: list[tuple[str, int, int]] = []
    file = await exported(source, lambda *at: told.append(at))
    done = await imported(target, file, tell=lambda *at: told.append(at))
    assert done == Imported(Contents(projects=8, events=24, keys=8), left_out=0)
    assert await target.holds() == [arrived(stored) for stored in projects]
    assert told == [("exporting", 8, 8), *(("importing", done, 8) for done in range(1, 9))]
    # What nobody has worked on is the same again.
    assert (await exported(source)).splitlines()[1:] == file.splitlines()[1:]


@pytest.mark.parametrize("kind", KINDS)
async def test_of_many_that_rest_some_are_due_at_a_time_and_what_is_to_run_is_at_once(
    sites: Sites, kind: str
) -> None:
    resting = [
        StoredProject(project=make_project(f"p{number:03}", observed_generation=1))
        for number in range(230)
    ]
    running = StoredProject(project=make_project("runs", desired=Desired.ACTIVE))
    file = await exported(await sites.filled(kind, [*resting, running]))
    target = await sites.make(kind)
    await imported(target, file)
    due = {one.project.project_id: one.project.due_at for one in await target.holds()}
    assert due.pop("runs") == NOW
    apart = timedelta(seconds=30)
    assert Counter(due.values()) == {NOW: 100, NOW + apart: 100, NOW + 2 * apart: 30}
    async with target.store() as store:
        while await store.claim_due("w", NOW, 1000) is not None:
            pass
        # Who wishes for one that is not due yet waits for no other.
        await want(store, "ada", "p229", Desired.ACTIVE, NOW, NOW + apart)
        claimed = await store.claim_due("w", NOW, 1000)
        assert claimed is not None
        assert claimed.project.project_id == "p229"


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STORED, max_size=5, unique_by=lambda stored: stored.project.ref))
def test_there_and_back_gives_equal_records(projects: list[StoredProject]) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(_there_and_back(Path(folder), _without_shared_keys(projects)))


async def _there_and_back(folder: Path, projects: list[StoredProject]) -> None:
    async with sites_in(folder) as sites:
        first = await sites.filled("sqlite", projects)
        middle, last = await sites.make("mongo"), await sites.make("sqlite")
        await imported(middle, await exported(first))
        await imported(last, await exported(middle))
        expected = sorted(map(arrived, projects), key=lambda stored: stored.project.id)
        assert await middle.holds() == await last.holds() == expected


def _without_shared_keys(projects: list[StoredProject]) -> list[StoredProject]:
    """A user's key stands for one project only."""
    taken: set[tuple[str, str]] = set()
    kept = []
    for stored in projects:
        keys = [key for key in stored.keys if (key.user_id, key.key) not in taken]
        taken |= {(key.user_id, key.key) for key in keys}
        kept.append(replace(stored, keys=keys))
    return kept


async def test_claims_go_on_above_all_that_an_environment_may_have_seen(sites: Sites) -> None:
    target = await sites.filled("sqlite", [make_stored(due_at=at(0))])
    backup = await exported(target)
    async with target.store() as store:
        newest = await claim(store, 100)
        await store.record(newest, replace(IDLE, due_at=at(0)), at(100), release=True)
        for second in range(101, 104):
            newest = await claim(store, second)
            await store.record(newest, replace(IDLE, due_at=at(0)), at(second), release=True)
    await imported(target, backup, replacing=True)
    async with target.store() as store:
        assert (await claim(store, 105)).number > newest.number
    high = replace(make_stored(), claims=2**60)
    other = await sites.make("sqlite")
    await imported(other, await exported(await sites.filled("sqlite", [high])))
    async with other.store() as store:
        assert (await claim(store, 105)).number == 2**60 + 1


@pytest.mark.parametrize("kinds", [("sqlite", "mongo"), ("mongo", "memory"), ("memory", "sqlite")])
async def test_what_was_imported_is_of_the_same_greylag(
    sites: Sites, kinds: tuple[str, str]
) -> None:
    source, target = [await sites.make(kind) for kind in kinds]
    async with source.store() as store:
        instance = await store.instance()
    backup = await exported(source)
    await imported(target, backup)
    async with target.store() as store:
        assert await store.instance() == instance
    writer = ExportWriter()
    older = writer.header(NOW, "older", 0, Origin()) + writer.end()
    await imported(target, older, replacing=True)
    async with target.store() as store:
        assert await store.instance() == instance


ADA = User(
    "ada",
    "Ada Ω",
    Role.ADMIN,
    disabled=True,
    email="a@x.y",
    identity="https://idp ada",
    groups=("staff",),
    limits=Limits(projects=3),
    created_at=at(1),
)
FAR = at(10_000_000_000)  # a database forgets by itself what has ended by its own clock
TOKEN = ApiToken(
    "d" * 64, "0" * 16, "ada", "ci", (Scope.FILES,), ("demo",), at(1), FAR, at(2), "::1"
)
MEMBER = Member("ada", "demo", "record", "bob", MemberRole.EDITOR)
SHARE = Share(
    "s" * 16, "ada", "demo", "record", 8080, "/", "https://greylag.test", None, at(1), FAR
)
SECRET = UserSecret("ada", "hub", "github.com", "ada", "sealed", at(1), at(2))
TARGET = NotificationTarget(
    "1" * 16, "ada", "webhook", "Chat", "hooks.test", "https://greylag.test", "sealed", at(1)
)
PUSH_KEY = PushKey("sealed")
SESSION = Session("e" * 64, "ada", None, at(1), at(1), FAR, "::1")


async def kept(site: Site) -> list[AnyKept]:
    async with site.store() as store:
        return [
            *await store.labelled(User),
            *await store.labelled(ApiToken),
            *await store.labelled(Member),
            *await store.labelled(Session),
        ]


async def keep(site: Site, *people: AnyKept) -> None:
    async with site.store() as store:
        for one in people:
            assert await store.put(one, at(0))


@pytest.mark.parametrize("kinds", [("sqlite", "mongo"), ("mongo", "memory"), ("memory", "sqlite")])
async def test_users_tokens_and_members_go_with_the_projects_and_sessions_do_not(
    sites: Sites, kinds: tuple[str, str]
) -> None:
    source, target = [await sites.filled(kind, [make_stored()]) for kind in kinds]
    without = await exported(source)
    await keep(source, ADA, TOKEN, MEMBER, SESSION)
    await keep(target, User("old", "Old"), replace(SESSION, user_id="old"))
    file = await exported(source)
    assert contents(io.BytesIO(file), nobody).people == 3
    with pytest.raises(StoreNotEmptyError, match=r"1 projects and 1 users, tokens and members\."):
        await imported(target, file)
    before = await kept(target)
    await imported(target, without, replacing=True)
    assert await kept(target) == before
    assert (await imported(target, file, replacing=True)).contents.people == 3
    assert await kept(target) == [replace(one, version=1) for one in (ADA, TOKEN, MEMBER)]
    async with target.store() as store:
        assert await store.labelled(User, "identity https://idp ada")
        assert await store.labelled(Member, "user bob")
    again = (await exported(target)).splitlines()
    assert sorted(again[1:4]) == sorted(file.splitlines()[1:4])


@pytest.mark.parametrize("kinds", [("sqlite", "mongo"), ("mongo", "memory"), ("memory", "sqlite")])
async def test_shared_previews_and_what_is_sealed_go_too(
    sites: Sites, kinds: tuple[str, str]
) -> None:
    source, target = [await sites.filled(kind, [make_stored()]) for kind in kinds]
    await keep(source, SHARE, SECRET, TARGET, PUSH_KEY)
    file = await exported(source)
    assert (await imported(target, file, replacing=True)).contents.people == 4
    async with target.store() as store:
        assert await store.labelled(Share) == [replace(SHARE, version=1)]
        assert await store.labelled(UserSecret) == [replace(SECRET, version=1)]
        assert await store.labelled(NotificationTarget) == [replace(TARGET, version=1)]
        assert await store.labelled(PushKey) == [replace(PUSH_KEY, version=1)]


async def test_keys_that_have_expired_stay_behind(sites: Sites) -> None:
    stored = make_stored()
    old = replace(stored.keys[0], key="old", expires_at=NOW)
    source = await sites.filled("sqlite", [replace(stored, keys=[*stored.keys, old])])
    early = await exported(source, now=NOW - timedelta(seconds=1))
    assert contents(io.BytesIO(early), nobody).keys == 2
    assert contents(io.BytesIO(await exported(source)), nobody).keys == 1
    target = await sites.make("mongo")
    await imported(target, early)
    assert await target.holds() == [arrived(stored)]


async def test_fields_of_others_go_from_mongodb_to_mongodb(sites: Sites) -> None:
    source, target = await sites.filled("mongo", [make_stored()]), await sites.make("mongo")
    theirs = {"theirs": {"x": [ObjectId(), {"$odd": 1}]}, "metadata": {"since": at(0)}}
    async with source.raw() as raw:
        await raw["projects"].update_one({}, {"$set": theirs})
    file = await exported(source)
    assert (await imported(target, file)).left_out == 0
    async with target.raw() as raw:
        found = await raw["projects"].find_one({})
    assert found is not None
    assert {name: found[name] for name in theirs} == theirs
    assert (await imported(await sites.make("sqlite"), file)).left_out == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_what_cannot_be_read_is_told_and_all_else_is_in_the_file(
    sites: Sites, kind: str
) -> None:
    source = await sites.filled(kind, [make_stored("bad"), make_stored("good")])
    await spoil(source, "bad")
    file, told = io.BytesIO(), list[Finding]()
    async with source.archive(write=False) as archive:
        found = await export_store(archive, file.write, NOW, nobody, told.append)
    assert found == Contents(projects=1, events=3, keys=1, unreadable=1)
    assert ["'bad' of user 'ada' cannot be read" in one.sentence for one in told] == [True]
    file.seek(0)
    assert contents(file, nobody) == found
    target = await sites.make("sqlite")
    await imported(target, file.getvalue())
    assert [stored.project.project_id for stored in await target.holds()] == ["good"]


async def spoil(site: Site, project_id: str) -> None:
    if site.settings.mongodb_uri is not None:
        async with site.raw() as raw:
            await raw["projects"].update_one(
                {"project_id": project_id}, {"$set": {"status": "confused"}}
            )
        return
    with sqlite3.connect(site.path) as sql:
        sql.execute("UPDATE projects SET status = 'confused' WHERE project_id = ?", (project_id,))
    sql.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_export_of_a_store_at_work_has_each_project_at_one_moment(
    sites: Sites, kind: str
) -> None:
    names = [f"p{number}" for number in range(120)]
    source = await sites.filled(kind, [StoredProject(project=make_project(n)) for n in names])
    at_work = asyncio.Event()

    async with source.store() as store:

        async def work() -> None:
            for second in range(10_000):
                for name in (names[0], names[60], names[119]):
                    await store.poke(make_project(name).ref, at(second))
                    claimed = await claim(store, second, 0.5)
                    # As many attempts as events, in one step.
                    known = len(await store.events("ada", claimed.project.project_id, 0, 500))
                    outcome = replace(IDLE, attempts=known + 1, events=[NewEvent("e", "E")])
                    await store.record(claimed, outcome, at(second), release=True)
                at_work.set()

        working = asyncio.create_task(work())
        await at_work.wait()
        for _ in range(3):
            file = io.BytesIO(await exported(source))
            for stored in read_export(file):
                assert isinstance(stored, StoredProject)
                seqs = [event.seq for event in stored.events]
                assert stored.project.last_seq == stored.project.attempts
                assert seqs == list(range(1, stored.project.last_seq + 1))[-500:]
        working.cancel()
        await asyncio.wait({working})


@pytest.fixture
async def file(sites: Sites) -> bytes:
    return await exported(await sites.filled("sqlite", [make_stored("one"), make_stored("two")]))


def refused(file: bytes) -> str:
    with pytest.raises(ExportUnusableError) as caught:
        contents(io.BytesIO(file), nobody)
    assert "Nothing was changed" in caught.value.info.hint
    return caught.value.info.message


def test_a_file_that_is_cut_anywhere_is_refused(file: bytes) -> None:
    assert contents(io.BytesIO(file), nobody) == Contents(projects=2, events=6, keys=2)
    lines = [0, *(place + 1 for place in range(len(file)) if file[place : place + 1] == b"\n")]
    dice = random.Random(7)  # noqa: S311 - the same cuts again
    for end in {*lines[:-1], *(dice.randrange(len(file)) for _ in range(200)), len(file) - 1}:
        assert "cut off" in refused(file[:end]) or end <= lines[1], end


def test_a_file_that_was_altered_anywhere_is_refused(file: bytes) -> None:
    dice = random.Random(8)  # noqa: S311 - the same places again
    end = file.rindex(b'{"end"')
    for place in [dice.randrange(end) for _ in range(300)]:
        other = bytes([file[place] ^ (1 << dice.randrange(7))])
        refused(file[:place] + other + file[place + 1 :])
    header, one, two, last = file.splitlines(keepends=True)
    for altered in (
        header + one + last,
        header + two + one + last,
        header + one + two + two + last,
        file + one,
        header + one + two + last.replace(b'"keys":2', b'"keys":3'),
        header + one + two + last.replace(b'"unreadable":0', b'"unreadable":"0"'),
    ):
        refused(altered)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "no export of Greylag"),
        (b"{}\n", "no export of Greylag"),
        (b"[1]\n", "Line 1"),
        (b'{"greylag_export": true}\n', "no export of Greylag"),
        (b"\x1f\x8b\x08\n", "Line 1"),
        (b'{"greylag_export": 4, "projects": 0}\n', "has version 4"),
    ],
)
def test_what_is_no_export_of_this_greylag_is_refused(file: bytes, words: str) -> None:
    assert words in refused(file)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "confused"},
        {"desired": 5},
        {"created_at": None},
        {"created_at": "then"},
        {"created_at": "2026-01-01T00:00:00"},
        {"due_at": 5},
        {"generation": "1"},
        {"generation": 2**63},
        {"generation": True},
        {"names": {"namespace": "n"}},
        {"error": {"code": 5, "message": "m"}},
        {"metadata": [1]},
        {"name": None},
        {"more": 1},
        {"lease": None},
    ],
)
def test_a_record_of_another_shape_is_refused_by_its_line(
    file: bytes, change: dict[str, Any]
) -> None:
    header, one, two, last = file.splitlines(keepends=True)
    said = json.loads(two)
    said["project"] |= change
    altered = header + one + json.dumps(said).encode() + b"\n" + last
    assert refused(altered).startswith("Line 3 of the export cannot be read (")


@pytest.mark.parametrize("kind", KINDS)
async def test_only_into_an_empty_store_unless_it_is_to_be_replaced(
    sites: Sites, file: bytes, kind: str
) -> None:
    target = await sites.filled(kind, [make_stored("theirs")])
    before = await target.holds()
    with pytest.raises(StoreNotEmptyError, match="is not empty: it holds 1 projects"):
        await imported(target, file)
    assert await target.holds() == before
    await imported(target, file, replacing=True)
    assert [stored.project.project_id for stored in await target.holds()] == ["one", "two"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_store_that_is_worked_on_is_left_alone(
    sites: Sites, file: bytes, kind: str
) -> None:
    target = await sites.filled(kind, [leased(make_stored(), NOW + timedelta(seconds=1))])
    before = await target.holds()
    with pytest.raises(StoreInUseError, match="has project 'demo' of user 'ada'"):
        await imported(target, file, replacing=True)
    assert await target.holds() == before


async def tell_of(site: Site, count: int) -> None:
    """Put entries into a store's audit trail."""
    async with site.store() as store:
        for number in range(count):
            on = f"user/Ω{number}"
            event = AuditEvent(at=at(number), actor=SYSTEM, action="test", object=on)
            await store.append_audit(event)


async def trail_of(site: Site) -> list[Any]:
    """Return a store's audit trail, once it was found whole."""
    async with site.store() as store:
        bounds = await store.audit_bounds()
        found = [body for _, body in await store.audit_entries(AuditFilter(), 999)]
    check = ChainCheck(bounds.start)
    check.follow(found)
    assert check.last == bounds.end
    return found


@pytest.mark.parametrize("kinds", WAYS)
async def test_the_audit_trail_comes_too_and_one_that_is_there_goes_on(
    sites: Sites, kinds: tuple[str, str]
) -> None:
    source, target = [await sites.make(kind) for kind in kinds]
    await tell_of(source, 250)
    async with source.store() as store:
        assert await store.trim_audit(at(20)) == 20
    backup = await exported(source)
    done = await imported(target, backup)
    assert (done.contents.entries, done.entries_left_out) == (230, 0)
    *carried, told = await trail_of(target)
    assert carried == await trail_of(source)
    assert (told["number"], told["action"], told["result"]) == (251, "records.import", "done")
    async with target.store() as store:
        assert len(await store.audit_entries(AuditFilter(object="user/Ω42"), 9)) == 1
    # Nobody ends a trail by putting another one in its place.
    done = await imported(target, backup, replacing=True)
    assert (done.contents.entries, done.entries_left_out) == (0, 230)
    *before, told = await trail_of(target)
    assert [one["number"] for one in before] == list(range(21, 252))
    assert told["changed"]["trail_left_out"] == f"250:{carried[-1]['hash']}"
    # Where it was damaged, what is left is carried, and the damage with it.
    if source.settings.mongodb_uri is None:
        with contextlib.closing(sqlite3.connect(source.path)) as sql, sql:
            sql.execute("DELETE FROM audit WHERE number = 77")
            sql.execute("UPDATE audit SET body = 'no JSON' WHERE number = 78")
        lost: list[Finding] = []
        file = io.BytesIO()
        async with source.archive(write=False) as archive:
            found = await export_store(archive, file.write, NOW, nobody, lost.append)
        assert ([one.place for one in lost], found.entries) == (["audit 77"], 229)
        other = await sites.make(kinds[1])
        assert (await imported(other, file.getvalue())).contents.entries == 229
        with pytest.raises(ChainBrokenError, match="The entry 77 is missing"):
            await trail_of(other)


class Killed:
    """An archive whose filling ends after so many projects."""

    def __init__(self, archive: Archive, after: int) -> None:
        self._archive = archive
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._archive, name)

    @asynccontextmanager
    async def replacing(self, *given: Any) -> AsyncIterator[Fill]:
        async with self._archive.replacing(*given) as fill:

            async def some(records: Sequence[Stored | AuditEvent]) -> None:
                await fill(records[: self._after])
                raise KilledError

            yield some


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("replacing", [False, True])
async def test_an_import_that_is_cut_off_is_done_by_the_same_again(
    sites: Sites, kind: str, *, replacing: bool
) -> None:
    projects = [make_stored(f"p{number}") for number in range(10)]
    source = await sites.filled("sqlite", projects)
    await tell_of(source, 4)
    file = await exported(source)
    old = [make_stored("old")] if replacing else []
    target = await sites.filled(kind, old)
    for after in (0, 3, 14):
        async with target.archive() as archive:
            killed: Any = Killed(archive, after)
            with pytest.raises(KilledError):
                await import_store(
                    killed, io.BytesIO(file), NOW, nobody, SYSTEM, replacing=replacing
                )
        if kind == "sqlite":
            assert await target.holds() == old
            continue
        with pytest.raises(StoreIncompleteError):
            async with target.store():
                pass
    await imported(target, file, replacing=replacing)
    assert await target.holds() == [arrived(stored) for stored in projects]
    assert len(await trail_of(target)) == 5
    async with target.store(), target.archive() as archive:
        assert not await archive.incomplete()


class Held:
    """An archive that, once it may be replaced, waits until it is let go."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self.holds, self.go = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._archive, name)

    @asynccontextmanager
    async def replacing(self, *given: Any) -> AsyncIterator[Fill]:
        async with self._archive.replacing(*given) as fill:
            self.holds.set()
            await self.go.wait()
            yield fill


@pytest.mark.parametrize("replacing", [False, True])
async def test_of_two_imports_into_a_file_at_once_the_later_finds_what_the_earlier_has_put_there(
    sites: Sites, *, replacing: bool
) -> None:
    files = []
    for name in ("one", "two"):
        source = await sites.filled("sqlite", [make_stored(name)])
        await tell_of(source, 3)
        files.append(io.BytesIO(await exported(source)))
    target = await sites.make("sqlite")
    async with target.archive() as first, target.archive() as second:
        held = Held(first)
        earlier: Any = held
        do = partial(import_store, now=NOW, tell=nobody, by=SYSTEM, replacing=replacing)
        one = asyncio.create_task(do(earlier, files[0]))
        await held.holds.wait()
        two = asyncio.create_task(do(second, files[1]))
        done, _ = await asyncio.wait({two}, timeout=0.2)  # it waits for the file
        assert not done
        held.go.set()
        found = await asyncio.gather(one, two, return_exceptions=True)
    assert isinstance(found[0], Imported)
    kept = "two" if replacing else "one"
    assert isinstance(found[1], Imported if replacing else StoreNotEmptyError)
    assert [stored.project.project_id for stored in await target.holds()] == [kept]
    # Nothing ends the trail that the earlier one has brought and gone on with.
    trail = await trail_of(target)
    assert len(trail) == 3 + 1 + replacing


async def test_a_file_that_changes_while_it_is_imported_is_not_taken_for_whole(
    sites: Sites, file: bytes
) -> None:
    target = await sites.filled("mongo", [])
    with pytest.raises(ExportUnusableError) as caught:
        await imported(target, file.replace(b'"image_pulled"', b'"image_Pulled"', 1))
    async with target.archive() as archive:
        assert await archive.incomplete()
    # It must not say that nothing was changed.
    assert caught.value.info.hint.startswith("The store holds only a part of its records now")
    whole = await sites.filled("sqlite", [])
    with pytest.raises(ExportUnusableError) as caught:
        await imported(whole, file.replace(b'"image_pulled"', b'"image_Pulled"', 1))
    assert "Nothing was changed" in caught.value.info.hint
    await imported(target, file)


class Away:
    """An archive whose server goes away at one question, and stays so."""

    def __init__(self, archive: Archive, at: str) -> None:
        self._archive = archive
        self._at = at
        self._is_away = False

    def __getattr__(self, name: str) -> Any:
        self._is_away |= name == self._at
        if not self._is_away:
            return getattr(self._archive, name)
        if name == "replacing":
            return self._no_replacing
        return self._no_answer

    async def _no_answer(self, *_: object) -> Any:
        raise StoreUnavailableError("MongoDB cannot be reached.", hint="Look at the server.")

    @asynccontextmanager
    async def _no_replacing(self, *_: object, **__: object) -> AsyncIterator[Fill]:
        yield await self._no_answer()


@pytest.mark.parametrize(
    ("at_question", "hint"),
    [
        ("count", "Look at the server."),
        ("at_work", "Look at the server."),
        ("audit_bounds", "Look at the server."),
        ("replacing", "The store holds only a part of its records now"),
    ],
)
async def test_an_import_that_wrote_nothing_does_not_say_that_a_part_is_there(
    sites: Sites, file: bytes, at_question: str, hint: str
) -> None:
    target = await sites.make("mongo")
    async with target.archive() as archive:
        away: Any = Away(archive, at_question)
        with pytest.raises(StoreUnavailableError) as caught:
            await import_store(away, io.BytesIO(file), NOW, nobody, SYSTEM, replacing=False)
    assert caught.value.info.hint.startswith(hint)
