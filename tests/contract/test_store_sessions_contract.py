"""Signing in, coming back and being signed out, over every store."""

import asyncio
from dataclasses import replace
from datetime import timedelta

from tests.contract.store_adapters import at, claim, make_project

from greylag.common.clock import SystemClock
from greylag.domain.users import (
    Identity,
    Member,
    MemberRole,
    Role,
    Session,
    Share,
    User,
    of_project,
    of_user,
)
from greylag.ports import ProjectStore
from greylag.services.people import People

ADA = Identity("https://idp", "ada", "Ada \u03a9 \U0001f600", "a@b.c", ("staff",), "sub-1", "s1")
SECOND = timedelta(seconds=1)
SEEDS = [User("seed", "Seed", email="a@b.c")]


def people(store: ProjectStore, seeds: list[User] | None = None) -> People:
    return People(store, seeds or [], SystemClock())


async def test_a_session_is_found_by_its_secret_and_ended_for_every_process(
    store: ProjectStore,
) -> None:
    one, another = people(store), people(store)
    secret = await one.sign_in(ADA, role=Role.ADMIN, client="10.0.0.1")
    found = await another.by_session(secret, "10.0.0.2")
    assert found is not None
    assert (found.role, (await another.get(found.user_id or "")).display_name) == (
        Role.ADMIN,
        ADA.name,
    )
    assert await another.by_session(f"{secret}x", "10.0.0.2") is None
    await another.end_session(secret)
    assert await one.by_session(secret, "10.0.0.1") is None


async def test_people_who_sign_in_at_once_are_one_user_with_a_session_each(
    store: ProjectStore,
) -> None:
    one = people(store)
    secrets = await asyncio.gather(
        *(one.sign_in(ADA, role=None, client="10.0.0.1") for _ in range(3))
    )
    (user,) = await one.users()
    assert (user.identity, user.groups) == (ADA.key, ("staff",))
    assert len({*secrets}) == len(await one.sessions(user.id)) == 3


async def test_somebody_whom_the_settings_name_is_recognized_by_their_address(
    store: ProjectStore,
) -> None:
    one = people(store, SEEDS)
    await one.sign_in(ADA, role=None, client="10.0.0.1")
    (user,) = await one.users()
    assert (user.id, user.identity) == ("seed", ADA.key)


async def test_the_provider_ends_a_session_or_all_of_a_person(store: ProjectStore) -> None:
    one = people(store)
    given = [ADA, replace(ADA, provider_session="s2"), replace(ADA, provider_session=None)]
    secrets = [await one.sign_in(each, role=None, client="") for each in given]

    async def going_on() -> list[bool]:
        return [await one.by_session(secret, "") is not None for secret in secrets]

    await one.end_told("https://other", "sub-1", "s1")
    await one.end_told("https://idp", "sub-2", "s1")
    await one.end_told("https://idp", None, None)
    assert await going_on() == [True, True, True]
    await one.end_told("https://idp", "sub-1", "s1")
    assert await going_on() == [False, True, True]
    await one.end_told("https://idp", None, "s2")
    assert await going_on() == [False, False, True]
    await one.end_told("https://idp", "sub-1", None)
    assert await going_on() == [False, False, False]
    assert await store.labelled(Session) == []


async def test_a_share_is_found_by_its_project_until_it_is_ended_or_has_run_out(
    store: ProjectStore,
) -> None:
    now = SystemClock().now()
    short = Share("a", "ada", "n", "1", None, "/x", "http://h:1", None, now, now + SECOND)
    long = replace(short, key="b", port=80, by="ada", expires_at=now + timedelta(days=1))
    for one in (short, long, replace(long, key="c", project_id="m")):
        assert await store.put(one, now)
    of_n = of_project("ada", "n")
    assert await store.labelled(Share, of_n) == [replace(one, version=1) for one in (short, long)]
    assert await store.find(Share, "b") == replace(long, version=1)
    assert await store.remove(Share, "b")
    assert not await store.remove(Share, "b")
    # Each store forgets in its own time what has run out; another is found as before.
    await store.put(replace(long, key="d"), now + timedelta(hours=1))
    assert "d" in [one.key for one in await store.labelled(Share, of_n)]


async def test_what_has_other_values_than_are_named_is_not_removed(store: ProjectStore) -> None:
    member = Member("ada", "n", "1", "bob", MemberRole.VIEWER)
    assert await store.put(member, at(0))
    assert not await store.remove(Member, member.key, only={"record_id": "2"})
    assert await store.labelled(Member, of_user("bob")) == [replace(member, version=1)]
    assert await store.remove(Member, member.key, only={"record_id": "1"})
    assert not await store.remove(Member, member.key, only={"record_id": "1"})
    assert await store.labelled(Member, of_user("bob")) == []


async def test_members_and_links_go_with_the_record_of_their_project(store: ProjectStore) -> None:
    project = make_project(due_at=at(0))
    await store.create(project)
    now = SystemClock().now()
    later = now + timedelta(days=1)
    link = Share("a", "ada", "demo", project.id, 80, "/", "http://h:1", None, now, later)
    member = Member("ada", "demo", project.id, "bob", MemberRole.VIEWER)
    others = (replace(link, key="b", record_id="2"), replace(member, user_id="eve", record_id="2"))
    for one in (link, member, *others):
        assert await store.put(one, now)
    await store.forget(await claim(store, 0))
    kept = [*await store.labelled(Share), *await store.labelled(Member)]
    assert kept == [replace(one, version=1) for one in others]
