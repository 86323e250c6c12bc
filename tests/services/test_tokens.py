"""The form of tokens, how long they count, and what a check of one costs the store."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.clocks import FakeClock
from tests.fakes.store import MemoryStore
from tests.services.house import House

from greylag.domain.audit import AuditEvent
from greylag.domain.errors import (
    ForbiddenError,
    InvalidRequestError,
    LimitExceededError,
    MissingError,
)
from greylag.domain.users import (
    LOGIN_LASTS,
    OPERATOR,
    ApiToken,
    DeviceLogin,
    Principal,
    Role,
    Scope,
    User,
    of_user,
)
from greylag.ports import AnyKept, AuditFilter, Kept
from greylag.services import tokens as tokens_service
from greylag.services.access import Gate
from greylag.services.people import People, UserEdit
from greylag.services.tokens import PLACE, NewToken, Tokens, is_token, new_token
from greylag.store import people as people_store
from greylag.store.people import RecentPeople

ADA = Principal("Ada", "ada")
FOR_SOME = replace(ADA, projects=frozenset({"a"}))
ROOT_USER = Principal("Root", "root", Role.USER, "session 1")
NEW = NewToken("nightly", frozenset({Scope.PROJECTS_READ, Scope.FILES}), 30)
ROOT = Path(__file__).parents[2]


class CountingStore(MemoryStore):
    """Counts what is read and written of people."""

    reads = lists = writes = 0

    async def find(self, kind: type[Kept], key: str) -> Kept | None:
        self.reads += 1
        return await super().find(kind, key)

    async def labelled(
        self, kind: type[Kept], label: str | None = None, *, strict: bool = False
    ) -> Sequence[Kept]:
        self.lists += 1
        return await super().labelled(kind, label, strict=strict)

    async def put(self, one: AnyKept, now: datetime, *, audit: AuditEvent | None = None) -> bool:
        self.writes += 1
        return await super().put(one, now, audit=audit)


def made(clock: FakeClock) -> tuple[CountingStore, People, Tokens]:
    store = CountingStore()
    recent = RecentPeople(store, clock)
    people = People(
        recent, [User("ada", "Ada"), User("bob", "Bob"), User("root", "Root", Role.ADMIN)], clock
    )
    gate = Gate(recent, people, store, clock)
    return store, people, Tokens(recent, people, gate, clock, longest=timedelta(days=60))


def test_tokens_have_one_form_that_the_documentation_tells_and_no_other_text_has() -> None:
    text = (ROOT / "docs" / "people.md").read_text("utf-8")
    (pattern,) = re.findall(r"`(glg_\S+)`", text)
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    for token in tokens:
        assert is_token(token)
        assert re.fullmatch(pattern, token)
        swapped = token[:10] + token[11] + token[10] + token[12:]
        assert swapped == token or not is_token(swapped)
        assert not is_token(token[:-1])
        assert not is_token(f"{token}0")


async def test_a_token_counts_until_it_runs_out_and_while_its_user_does() -> None:
    clock = FakeClock()
    _, people, tokens = made(clock)
    text, kept = await tokens.make(ADA, NEW)
    found = await tokens.principal(text, "10.0.0.1")
    assert found is not None
    assert (found.user_id, found.scopes, found.via) == ("ada", NEW.scopes, f"token {kept.id}")
    assert await people.role_now("ada", found.sign_in) is Role.USER
    assert await tokens.principal(new_token(), "10.0.0.1") is None
    await people.edit("ada", UserEdit(disabled=True))
    assert await tokens.principal(text, "10.0.0.1") is None
    await people.edit("ada", UserEdit(disabled=False))
    assert await tokens.principal(text, "10.0.0.1") is not None
    clock.advance(30 * 86_400)
    assert await tokens.principal(text, "10.0.0.1") is None
    assert await people.role_now("ada", found.sign_in) is None
    assert await tokens.listed(ADA, None) == []
    _, short = await tokens.make(ADA, replace(NEW, expires_in_days=None))
    assert short.expires_at - short.created_at == timedelta(days=60)
    other, _ = await tokens.make(Principal("Bob", "bob"), NEW)
    assert {one.user_id for one in await tokens.listed(OPERATOR, None)} == {"ada", "bob"}
    assert other not in str(await tokens.listed(OPERATOR, None))


async def test_all_users_are_read_twice_a_second_and_anew_after_a_change() -> None:
    clock = FakeClock()
    store, people, _ = made(clock)
    store.lists = 0
    for _ in range(100):
        assert len(await people.users()) == 3
    assert store.lists == 1
    await people.make(User("new", "New"))
    assert len(await people.users()) == 4
    await store.put(User("other", "Other"), clock.now())  # as by another process
    clock.advance(0.5)
    assert len(await people.users()) == 5
    assert store.lists == 3


async def test_what_is_used_often_is_written_once_a_minute_and_read_twice_a_second() -> None:
    clock = FakeClock()
    store, _, tokens = made(clock)
    text, kept = await tokens.make(ADA, NEW)
    store.reads = store.writes = 0
    for _ in range(100):
        assert await tokens.principal(text, "10.0.0.1") is not None
        clock.advance(0.01)
    assert store.writes == 1
    # Twice a second the token and its user, and the token again after it was written.
    assert store.reads <= 2 * 2 + 1
    clock.advance(60)
    await tokens.principal(text, "10.0.0.2")
    (listed,) = await tokens.listed(ADA, None)
    assert (listed.id, listed.address) == (kept.id, "10.0.0.2")
    assert text not in str(store._tables.people)


async def test_what_strangers_guess_puts_nobody_out_of_what_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(people_store, "_MOST_RECENT", 3)
    store, _, tokens = made(FakeClock())
    text, _ = await tokens.make(ADA, NEW)
    for _ in range(2):
        await tokens.principal(text, "10.0.0.1")
    store.reads = 0
    for _ in range(10):
        assert await tokens.principal(new_token(), "10.0.0.2") is None
        assert await tokens.principal(text, "10.0.0.1") is not None
    assert store.reads == 10


async def test_a_user_has_so_many_at_once_and_they_are_listed_in_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokens_service, "MOST_TOKENS", 3)
    clock = FakeClock()
    store, _, tokens = made(clock)
    for days in (1, 30, 30):
        await tokens.make(ADA, replace(NEW, expires_in_days=days))
    with pytest.raises(LimitExceededError):
        await tokens.make(ADA, NEW)
    (refused,) = await store.audit_entries(AuditFilter(result="refused"), 9)
    assert (refused[1]["action"], refused[1]["code"]) == ("tokens.create", "limit_exceeded")
    clock.advance(86_400)
    await tokens.make(ADA, NEW)
    await tokens.make(ROOT_USER, NEW)
    found: list[ApiToken] = []
    place: str | None = None
    while True:
        page, place = await tokens.page(OPERATOR, None, 2, place)
        found += page
        if place is None:
            break
        assert re.fullmatch(PLACE, place)
    assert found == await tokens.listed(OPERATOR, None)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("asker", "new", "error"),
    [
        (ADA, replace(NEW, expires_in_days=61), InvalidRequestError),
        (ADA, replace(NEW, scopes=frozenset()), InvalidRequestError),
        (ADA, replace(NEW, projects=frozenset()), InvalidRequestError),
        (OPERATOR, NEW, InvalidRequestError),
        (ADA, replace(NEW, projects=frozenset({"a", "b/c"})), InvalidRequestError),
        (ADA, replace(NEW, projects=frozenset({"x" * 301})), InvalidRequestError),
        (replace(ADA, scopes=frozenset({Scope.ADMIN})), NEW, ForbiddenError),
        # An administrator whom their groups make a user, as long as they are signed in so.
        (ROOT_USER, replace(NEW, scopes=frozenset({Scope.ADMIN})), ForbiddenError),
        # One for some projects makes none at all, not even for those.
        (FOR_SOME, NEW, ForbiddenError),
        (FOR_SOME, replace(NEW, projects=FOR_SOME.projects), ForbiddenError),
    ],
)
async def test_no_token_is_made_that_may_do_more_than_who_asks(
    asker: Principal, new: NewToken, error: type[Exception]
) -> None:
    store, _, tokens = made(FakeClock())
    with pytest.raises(error):
        await tokens.make(asker, new)
    assert await store.labelled(ApiToken) == []


@pytest.mark.parametrize("late", [False, True])
async def test_a_login_that_a_removed_user_has_allowed_lets_in_nobody_of_their_id(
    *, late: bool
) -> None:
    house = House()
    of, eve = house.use_cases, Principal("Eve", "eve", via="session 0123")
    await of.accounts.make(OPERATOR, User("eve", "Eve"))
    secret, login = await of.device_logins.begin("cli", frozenset({Scope.FILES}), "10.0.0.1")
    await of.device_logins.answer(eve, login.code, allow=True)
    (kept,) = await house.store.labelled(DeviceLogin, of_user("eve"))
    await of.accounts.remove(OPERATOR, "eve")
    assert await house.store.labelled(DeviceLogin) == []
    await of.accounts.make(OPERATOR, User("eve", "Another Eve"))
    if late:  # answered by a request that was under way meanwhile
        begun_later = replace(kept, version=0, expires_at=kept.expires_at + LOGIN_LASTS)
        await house.store.put(begun_later, house.clock.now())
    with pytest.raises(MissingError):
        await of.device_logins.redeem(secret)
    assert await house.store.labelled(ApiToken) == []


async def test_a_login_that_another_took_up_meanwhile_leaves_no_second_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House()
    logins, store = house.use_cases.device_logins, house.store
    secret, login = await logins.begin("cli", frozenset({Scope.FILES}), "10.0.0.1")
    await logins.answer(Principal("Ada", "ada", via="session 0123"), login.code, allow=True)
    keep = store.put

    async def taken_up(kept: AnyKept, now: datetime, *, audit: AuditEvent | None = None) -> bool:
        (meant,) = await store.labelled(DeviceLogin, of_user("ada"))
        await store.remove(DeviceLogin, meant.key)
        return await keep(kept, now, audit=audit)

    monkeypatch.setattr(store, "put", taken_up)
    with pytest.raises(MissingError):
        await logins.redeem(secret)
    assert await store.labelled(ApiToken) == []
    told = await store.audit_entries(AuditFilter(action="tokens.revoke"), 10)
    assert len(told) == 1
