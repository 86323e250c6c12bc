"""What every store promises about pages, and about whose a project is."""

import pytest
from tests.contract.store_adapters import at, make_project
from tests.wishes import edit, want

from greylag.domain.errors import InvalidRequestError, ProjectNotFoundError
from greylag.domain.project import Desired, Project, Status
from greylag.ports import PageQuery, ProjectStore
from greylag.services.projects import Edit


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Z", "z"),
        ("a", "\u0430"),
        ("\u00e9", "e\u0301"),
        ("\u212b", "\u00c5"),
        ("a", "a "),
        ("x" * 300, "x" * 299 + "y"),
        ("1", "01"),
    ],
)
async def test_ids_that_differ_at_all_are_different(
    store: ProjectStore, one: str, other: str
) -> None:
    for user in (one, other):
        for project in (one, other):
            await store.create(make_project(project, user))
    for user in (one, other):
        page = await store.page(user, PageQuery())
        assert sorted(p.project_id for p in page.projects) == sorted((one, other))
        assert (await store.get(user, one)).project_id == one


async def test_other_users_projects_do_not_exist(store: ProjectStore) -> None:
    await store.create(make_project())
    assert not (await store.page("bob", PageQuery())).projects
    with pytest.raises(ProjectNotFoundError):
        await store.get("bob", "demo")
    with pytest.raises(ProjectNotFoundError):
        await edit(store, "bob", "demo", Edit(name="mine"), at(0))
    with pytest.raises(ProjectNotFoundError):
        await want(store, "bob", "demo", Desired.ACTIVE, at(0), at(1))
    with pytest.raises(ProjectNotFoundError):
        await store.events("bob", "demo", 0, 10)


async def test_pages_go_from_the_newest_to_the_oldest_and_miss_nothing(
    store: ProjectStore,
) -> None:
    # Several share a moment, so the order must not hang on time alone.
    made = [make_project(f"p{n}", created=n // 3) for n in range(20)]
    for project in made:
        await store.create(project)
    seen: list[Project] = []
    cursor = None
    while True:
        page = await store.page("ada", PageQuery(limit=3, cursor=cursor))
        seen += page.projects
        cursor = page.cursor
        if cursor is None:
            break
        await store.create(make_project(f"new{len(seen)}", created=1000))
    assert len(seen) == 20
    assert {p.id for p in seen} == {p.id for p in made}
    assert [p.created_at for p in seen] == sorted((p.created_at for p in made), reverse=True)


async def test_pages_go_on_past_records_with_ids_of_their_own(store: ProjectStore) -> None:
    own = ["3f2b8c1e-0000-4000-8000-000000000001", "a.b", "_", "\u00e9 /?&", "x" * 100]
    for number, record_id in enumerate(own):
        await store.create(make_project(f"own{number}", id=record_id, created=-(2**31)))
        await store.create(make_project(f"p{number}", created=-(2**31)))
    found, cursor = [], None
    while True:
        page = await store.page("ada", PageQuery(limit=1, cursor=cursor))
        found += [project.project_id for project in page.projects]
        cursor = page.cursor
        if cursor is None:
            break
    assert len(found) == len(set(found)) == 2 * len(own)


async def test_a_page_that_ends_with_the_last_project_has_no_cursor(store: ProjectStore) -> None:
    for n in range(4):
        await store.create(make_project(f"p{n}", created=n))
    assert (await store.page("ada", PageQuery(limit=4))).cursor is None
    assert (await store.page("ada", PageQuery(limit=2**64))).cursor is None
    first = await store.page("ada", PageQuery(limit=2))
    second = await store.page("ada", PageQuery(limit=2, cursor=first.cursor))
    assert second.cursor is None
    assert [p.project_id for p in second.projects] == ["p1", "p0"]


async def test_a_page_shows_only_the_status_asked_for(store: ProjectStore) -> None:
    for n in range(10):
        status = Status.ACTIVE if n % 2 else Status.ERROR
        await store.create(make_project(f"p{n}", created=n, status=status))
    first = await store.page("ada", PageQuery(limit=3, status=Status.ACTIVE))
    rest = await store.page("ada", PageQuery(limit=3, status=Status.ACTIVE, cursor=first.cursor))
    assert [p.project_id for p in (*first.projects, *rest.projects)] == [
        *("p9", "p7", "p5"),
        *("p3", "p1"),
    ]


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "!!",
        "é",
        "bnVsbA",
        "WzEsMl0",
        "WyJhIiwiYiJd",
        "W3RydWUsImEiXQ",
        "WzFlOTksImEiXQ",
        "[" * 5000,
    ],
)
async def test_a_cursor_that_is_not_ours_is_refused(store: ProjectStore, cursor: str) -> None:
    with pytest.raises(InvalidRequestError):
        await store.page("ada", PageQuery(cursor=cursor))


async def test_projects_of_all_users_are_counted_by_their_status(store: ProjectStore) -> None:
    assert await store.count_by_status() == dict.fromkeys(Status, 0)
    await store.create(make_project("one"))
    await store.create(make_project("one", "bob", status=Status.ACTIVE))
    await store.create(make_project("two", "bob", status=Status.ACTIVE))
    counted = dict.fromkeys(Status, 0) | {Status.INACTIVE: 1, Status.ACTIVE: 2}
    assert await store.count_by_status() == counted
