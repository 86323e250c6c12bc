"""Who may come in by a provider's word, as whom, and in which role."""

from contextlib import nullcontext
from typing import Any

import pytest
from tests.clocks import FakeClock
from tests.contract.store_adapters import at
from tests.harness import Harness, settings

from greylag.domain.audit import AuditAction
from greylag.domain.errors import SignInRefusedError
from greylag.domain.users import Role, User
from greylag.ports import AuditFilter
from greylag.services.people import UserEdit
from greylag.services.sign_in import SignInRules

CLAIMS: dict[str, Any] = {
    "sub": "248289761001",
    "name": "Ada Lovelace",
    "preferred_username": "ada",
    "email": "Ada@Example.org",
    "email_verified": True,
    "groups": ["staff", "admins", 7],
    "sid": "s1",
}


def rules(**given: Any) -> SignInRules:
    """Return rules; several names of groups or domains are one text with spaces."""
    sets = {name: frozenset(one.split()) for name, one in given.items() if not name.endswith("m")}
    return SignInRules(**{**given, **sets})


def test_who_somebody_is() -> None:
    identity, role = rules().admit("https://idp.example", CLAIMS)
    assert (identity.issuer, identity.subject) == ("https://idp.example", "248289761001")
    assert (identity.name, identity.email) == ("Ada Lovelace", "ada@example.org")
    assert (identity.groups, identity.provider_session, role) == (("staff", "admins"), "s1", None)


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"name": None}, "ada"),
        ({"name": "", "preferred_username": None}, "ada@example.org"),
        ({"name": 7, "preferred_username": "\u202e\n", "email_verified": False}, "248289761001"),
        ({"name": " Ada\u202e\u0007 "}, "Ada"),
        ({"name": "x" * 500}, "x" * 200),
    ],
)
def test_what_somebody_is_called(claims: dict[str, Any], name: str) -> None:
    assert rules().admit("i", CLAIMS | claims)[0].name == name


@pytest.mark.parametrize(
    ("email", "verified", "is_told"),
    [
        ("a@b.c", True, True),
        ("a@b.c", "true", True),
        ("a@b.c", False, False),
        ("a@b.c", "false", False),
        ("a@b.c", None, False),
        ("a@b.c", [True], False),
        ("abc", True, False),
        (7, True, False),
        ("\ud800@b.c", True, False),
        (None, True, False),
    ],
)
def test_an_address_counts_only_where_the_provider_vouches_for_it(
    email: Any, verified: Any, *, is_told: bool
) -> None:
    claims = CLAIMS | {"email": email, "email_verified": verified}
    assert rules().admit("i", claims)[0].email == ("a@b.c" if is_told else None)
    for needing in (rules(user_claim="email"), rules(allowed_domains="b.c")):
        if is_told:
            needing.admit("i", claims)
        else:
            with pytest.raises(SignInRefusedError):
                needing.admit("i", claims)


@pytest.mark.parametrize("value", [None, "", 7, ["a"], "x" * 256, "\ud800", "a\u0000"])
def test_a_claim_that_names_nobody_lets_nobody_in(value: Any) -> None:
    with pytest.raises(SignInRefusedError, match="who you are"):
        rules(user_claim="employee").admit("i", CLAIMS | {"employee": value})
    with pytest.raises(SignInRefusedError, match="does not tell"):
        rules(user_claim="email").admit("i", CLAIMS | {"sub": value})


def test_another_claim_names_the_person_and_the_provider_s_own_name_is_kept() -> None:
    identity, _ = rules(user_claim="email").admit("i", CLAIMS)
    assert (identity.subject, identity.provider_subject) == ("ada@example.org", "248289761001")


@pytest.mark.parametrize("domain", ["example.org.evil.example", "org", "evil-example.org", ""])
def test_a_domain_is_all_that_follows_the_at(domain: str) -> None:
    only = rules(allowed_domains="example.org")
    only.admit("i", CLAIMS)
    with pytest.raises(SignInRefusedError, match="domain"):
        only.admit("i", CLAIMS | {"email": f"ada@{domain}"})


def test_at_google_a_domain_is_that_of_the_account() -> None:
    google, only = "https://accounts.google.com", rules(allowed_domains="example.org")
    with pytest.raises(SignInRefusedError, match="domain"):
        only.admit(google, CLAIMS)
    only.admit(google, CLAIMS | {"hd": "example.org"})


@pytest.mark.parametrize(
    ("given", "groups", "role"),
    [
        ({}, [], None),
        ({"allowed_groups": "staff"}, ["staff"], None),
        ({"allowed_groups": "staff guests"}, "guests", None),
        ({"allowed_groups": "staff"}, ["Staff"], "refused"),
        ({"allowed_groups": "staff"}, None, "refused"),
        ({"allowed_groups": "\ud800"}, ["\ud800"], "refused"),
        ({"allowed_groups": "staff"}, {"staff": 1}, "refused"),
        ({"admin_groups": "admins"}, ["admins"], Role.ADMIN),
        ({"admin_groups": "admins"}, [], Role.USER),
        ({"user_groups": "staff"}, ["staff"], Role.USER),
        ({"user_groups": "staff"}, ["guests"], "refused"),
        ({"user_groups": "staff", "admin_groups": "admins"}, ["admins"], Role.ADMIN),
        ({"allowed_groups": "staff", "admin_groups": "admins"}, ["admins"], "refused"),
        ({"allowed_groups": "staff", "admin_groups": "admins"}, ["admins", "staff"], Role.ADMIN),
    ],
)
def test_groups_open_the_door_and_give_the_role(
    given: dict[str, str], groups: Any, role: Role | str | None
) -> None:
    claims = CLAIMS | {"groups": groups}
    if role == "refused":
        with pytest.raises(SignInRefusedError, match="groups"):
            rules(**given).admit("i", claims)
    else:
        assert rules(**given).admit("i", claims)[1] is role


def test_groups_of_which_the_provider_tells_only_that_there_are_more_are_no_groups() -> None:
    claims = {**CLAIMS, "_claim_names": {"groups": "src1"}}
    del claims["groups"]
    rules().admit("i", claims)
    with pytest.raises(SignInRefusedError, match="more groups"):
        rules(admin_groups="admins").admit("i", claims)


@pytest.mark.parametrize(
    ("sign_up", "stranger", "entered"),
    [("auto", True, True), ("invited", False, True), ("closed", False, False)],
)
async def test_who_is_new_comes_in_as_the_settings_say(
    sign_up: str, *, stranger: bool, entered: bool
) -> None:
    house = Harness(settings(users="ada:Ada", sign_up=sign_up))
    people = house.use_cases.people
    await people.edit("ada", UserEdit(email="ada@example.org"))
    for claims, comes_in in (({"sub": "1", "email": "bob@b.c"}, stranger), ({}, entered)):
        identity, role = rules().admit("i", CLAIMS | claims)
        with nullcontext() if comes_in else pytest.raises(SignInRefusedError, match="not a user"):
            await people.sign_in(identity, role=role, client="")


async def test_who_has_signed_in_before_comes_in_where_nobody_new_does() -> None:
    house = Harness(settings(users="ada:Ada", sign_up="closed"))
    identity, role = rules().admit("i", CLAIMS)
    await house.store.put(User("bob", "Bob", identity=identity.key), at(0))
    secret = await house.use_cases.people.sign_in(identity, role=role, client="")
    assert secret


@pytest.mark.parametrize(
    ("taken", "why"),
    [
        ({}, None),
        ({"identity": "i another"}, "not a user"),
        ({"service": True}, "not a user"),
        ({"disabled": True}, "disabled"),
    ],
)
async def test_an_address_lets_in_whom_it_was_entered_for_and_nobody_in_their_place(
    taken: dict[str, Any], why: str | None
) -> None:
    house = Harness(settings(users="ada:Ada", sign_up="invited"))
    bob = User("bob", "Bob", email="ada@example.org", **taken)
    await house.store.put(bob, at(0))
    identity, role = rules().admit("i", CLAIMS)
    with pytest.raises(SignInRefusedError, match=why) if why else nullcontext():
        await house.use_cases.people.sign_in(identity, role=role, client="")
    kept = await house.use_cases.people.get("bob")
    assert kept.identity == (bob.identity if why else identity.key)


async def test_a_session_ends_unused_for_long_and_at_the_latest_when_its_time_is_over() -> None:
    clock = FakeClock()
    given = settings(users="ada:Ada", session_idle_hours=24, session_days=3)
    house = Harness(given, clock=clock)
    people = house.use_cases.people
    identity, role = rules().admit("i", CLAIMS)
    used = await people.sign_in(identity, role=role, client="10.0.0.1")
    found = await people.by_session(used, "10.0.0.1")
    assert found is not None
    for _ in range(3):
        clock.advance(23 * 3600)
        assert await people.by_session(used, "10.0.0.2") == found
    user_id = found.user_id or ""
    assert (await people.get(user_id)).email == "ada@example.org"
    (made,) = await house.store.audit_entries(AuditFilter(action=AuditAction.USER_CREATE), 9)
    assert made[1]["object"] == f"user/{user_id}"
    assert await people.role_now(user_id, found.sign_in) is Role.USER
    unused = await people.sign_in(identity, role=role, client="10.0.0.3")
    listed = await people.sessions(user_id)
    assert [one.address for one in listed] == ["10.0.0.3", "10.0.0.2"]
    clock.advance(3 * 3600)
    assert await people.by_session(used, "10.0.0.2") is None
    assert await people.role_now(user_id, found.sign_in) is None
    clock.advance(21 * 3600)
    assert await people.by_session(unused, "10.0.0.3") is None
    assert not await people.sessions(user_id)
