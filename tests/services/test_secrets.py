"""Users' secrets: kept sealed, told to nobody but the environments of their own user."""

import json
from dataclasses import replace

import pytest
from structlog.testing import capture_logs
from tests.harness import Harness, settings

from greylag.common.logs import hide_secrets
from greylag.common.sealing import SealError, Sealing
from greylag.domain.errors import (
    ConflictError,
    InvalidRequestError,
    LimitExceededError,
    MissingError,
    RefusalError,
)
from greylag.domain.project import GitSource
from greylag.domain.users import OPERATOR, Principal, UserSecret
from greylag.ports import AuditFilter, DeliveryResult
from greylag.services.projects import NewProject
from greylag.services.secrets import MOST_SECRETS, NewSecret
from greylag.services.use_cases import UseCases
from greylag.store.people import to_body

VALUE = "glsecret-5f0b7c1d9e"
KEY = "k" * 32
ADA = Principal("Ada", "ada")


def house(key: str | None = KEY) -> Harness:
    users = "ada:Ada,bob:Bob"
    return Harness(settings(secret_key=key, data="/nonexistent", users=users))


async def test_a_secret_is_kept_sealed_and_told_to_its_own_user_s_environments_alone() -> None:
    of = house().use_cases
    made = await of.secrets.put(OPERATOR, "ada", NewSecret("hub", "github.com", VALUE))
    assert VALUE not in f"{made!r} {json.dumps(to_body(made))}"
    project = await of.projects.create(
        OPERATOR, "ada", NewProject("Demo", source=GitSource("https://github.com/a/b", "main", 2))
    )
    setup = await of.secrets.setup(project.project)
    (one,) = setup.credentials
    assert (one.host, one.username, one.value) == ("github.com", "x-access-token", VALUE)
    assert VALUE not in repr(setup)
    assert (setup.url, setup.ref, setup.depth) == ("https://github.com/a/b", "main", 2)
    assert setup.author == ("Ada", "ada@localhost")
    other = await of.projects.create(OPERATOR, "bob", NewProject("Demo"))
    assert not (await of.secrets.setup(other.project)).credentials


async def test_a_secret_is_replaced_by_its_name_listed_and_taken_away() -> None:
    of = house().use_cases
    first = await of.secrets.put(OPERATOR, "ada", NewSecret("hub", "github.com", "old"))
    await of.secrets.put(OPERATOR, "ada", NewSecret("hub", "gitlab.com:8443", VALUE, "ada"))
    await of.secrets.put(OPERATOR, "ada", NewSecret("another", "github.com", "x"))
    listed = await of.secrets.listed(OPERATOR, "ada")
    assert [(one.name, one.host) for one in listed] == [
        ("another", "github.com"),
        ("hub", "gitlab.com:8443"),
    ]
    assert listed[1].created_at == first.created_at
    with pytest.raises(ConflictError, match=r"another is for github\.com"):
        await of.secrets.put(OPERATOR, "ada", NewSecret("third", "github.com", "x"))
    await of.secrets.remove(OPERATOR, "ada", "hub")
    with pytest.raises(MissingError):
        await of.secrets.remove(OPERATOR, "ada", "hub")
    told = [entry for _, entry in await of.store.audit_entries(AuditFilter(), 100)]
    assert sorted(entry["action"] for entry in told) == ["secrets.remove", *["secrets.set"] * 3]
    assert VALUE not in json.dumps(told)
    for number in range(MOST_SECRETS - 1):
        new = NewSecret(f"n{number}", f"host{number}", "x")
        await of.secrets.put(OPERATOR, "ada", new)
    with pytest.raises(LimitExceededError):
        await of.secrets.put(OPERATOR, "ada", NewSecret("more", "more", "x"))
    await of.secrets.put(OPERATOR, "ada", NewSecret("n0", "host0", "y"))
    (refused,) = await of.store.audit_entries(AuditFilter(result="refused"), 9)
    assert refused[1]["action"] == "secrets.set"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a/b"},
        {"name": ""},
        {"host": "https://github.com"},
        {"host": "GitHub.com"},
        {"username": "a:b"},
        {"username": ""},
        {"value": ""},
        {"value": f"{VALUE}\n"},
        {"value": f"{VALUE}\u00e9"},
        {"value": VALUE * 300},
    ],
)
async def test_what_can_be_no_secret_is_refused_and_never_repeated(wrong: dict[str, str]) -> None:
    of = house().use_cases
    new = replace(NewSecret("hub", "github.com", VALUE), **wrong)
    with pytest.raises(InvalidRequestError) as refused:
        await of.secrets.put(OPERATOR, "ada", new)
    assert VALUE not in str(refused.value)
    assert not await of.secrets.listed(OPERATOR, "ada")


async def test_without_a_key_nothing_is_kept_and_with_another_nothing_is_read() -> None:
    with pytest.raises(RefusalError, check=lambda error: error.info.code == "secrets_off"):
        await house(None).use_cases.secrets.put(OPERATOR, "ada", NewSecret("a", "a.b", VALUE))
    one = house()
    made = await one.use_cases.secrets.put(OPERATOR, "ada", NewSecret("a", "a.b", VALUE))
    project = (await one.use_cases.projects.create(OPERATOR, "ada", NewProject("x"))).project
    secrets = one.use_cases.secrets
    other = replace(secrets, sealing=Sealing(["another key of enough characters"]))
    assert not (await other.setup(project)).credentials
    rotated = Sealing(["another key of enough characters", KEY])
    assert rotated.open(made.sealed, "git secret a of ada for a.b") == VALUE
    with pytest.raises(SealError):
        rotated.open(made.sealed, "git secret a of bob for a.b")
    moved = replace(made, host="evil.example", version=1)
    assert await one.store.put(moved, made.created_at)
    assert not (await replace(secrets, sealing=rotated).setup(project)).credentials


async def test_after_a_start_with_a_new_key_the_old_one_can_go() -> None:
    of, new = house(), "n" * 32
    await of.use_cases.secrets.put(OPERATOR, "ada", NewSecret("hub", "github.com", VALUE))
    project = (await of.use_cases.projects.create(OPERATOR, "ada", NewProject("x"))).project
    notifications, hook = of.use_cases.notifications, "https://hook.example/SECRET"
    _, target = await notifications.add_webhook(ADA, "ada", "Chat", "http://localhost", hook)
    pushes = await notifications.public_key()

    def keyed(key: str) -> UseCases:
        of.settings = settings(secret_key=key, data="/nonexistent", users="ada:Ada")
        return of.build(key).use_cases

    # A key that opens nothing changes nothing: it may be a wrong one.
    await keyed(f"{new},{'w' * 32}").secrets.seal_anew()
    await keyed(f"{new},{KEY}").secrets.seal_anew()
    alone = keyed(new)
    (one,) = (await alone.secrets.setup(project)).credentials
    assert one.value == VALUE
    _, done = await alone.notifications.test(ADA, "ada", target.id)
    assert done.result is DeliveryResult.DONE
    assert await alone.notifications.public_key() == pushes


async def test_a_secret_that_is_set_anew_while_all_are_sealed_anew_stays_as_it_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = house()
    secrets, people = of.use_cases.secrets, of.use_cases.secrets.people
    await secrets.put(OPERATOR, "ada", NewSecret("hub", "github.com", VALUE))
    listed = await people.labelled(UserSecret)
    await secrets.remove(OPERATOR, "ada", "hub")
    await secrets.put(OPERATOR, "ada", NewSecret("hub", "github.com", "another-value"))
    (now,) = await people.labelled(UserSecret)

    async def as_before(kind: type, *_: object) -> object:
        return listed if kind is UserSecret else []

    monkeypatch.setattr(people, "labelled", as_before)
    await replace(secrets, sealing=Sealing(["n" * 32, KEY])).seal_anew()
    monkeypatch.undo()
    (kept,) = await people.labelled(UserSecret)
    assert Sealing(["n" * 32]).open(kept.sealed, "git secret hub of ada for github.com") == (
        "another-value"
    )
    assert kept.updated_at == now.updated_at


async def test_a_secret_that_cannot_be_read_is_named_in_the_log() -> None:
    of = house()
    await of.use_cases.secrets.put(OPERATOR, "ada", NewSecret("hub", "github.com", VALUE))
    project = (await of.use_cases.projects.create(OPERATOR, "ada", NewProject("x"))).project
    other = replace(of.use_cases.secrets, sealing=Sealing(["another key of enough characters"]))
    with capture_logs([hide_secrets]) as lines:
        await other.setup(project)
    assert [(line["event"], line["name"]) for line in lines] == [("secret_unreadable", "hub")]
