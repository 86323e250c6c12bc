"""Where users are told: kept sealed, changed by themselves alone, told with no word of what was
said.
"""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.harness import Harness, settings

from greylag.domain.errors import (
    ForbiddenError,
    InvalidRequestError,
    LimitExceededError,
    MissingError,
    NotificationsOffError,
)
from greylag.domain.users import OPERATOR, Principal, Role
from greylag.ports import AuditFilter, Delivered, DeliveryResult, PushAddress, WebhookAddress
from greylag.services.notifications import (
    MOST_OF_USER_AT_ONCE,
    MOST_TARGETS,
    Notice,
    Notifications,
    What,
)
from greylag.services.projects import NewProject
from greylag.store.people import to_body

ADDRESS = PushAddress("https://push.example/SECRET-PLACE", "P-KEY", "A-KEY")
SITE = "https://greylag.example"
HOOK = "https://hooks.example/SECRET-PLACE"
ADA = Principal("ada", "ada")
ADMIN = Principal("root", "bob", role=Role.ADMIN)


def house(key: str | None = "k" * 32) -> Harness:
    return Harness(settings(secret_key=key, data="/nonexistent", users="ada:Ada,bob:Bob"))


async def test_a_browser_is_told_by_web_push_and_what_it_gave_out_is_kept_sealed() -> None:
    of = house()
    notifications = of.use_cases.notifications
    made = await notifications.add_browser(ADA, "ada", "Phone", SITE, ADDRESS)
    kept = f"{made!r} {json.dumps(to_body(made))}"
    assert not [secret for secret in ("SECRET-PLACE", "P-KEY", "A-KEY") if secret in kept]
    assert made.host == "push.example"
    _, done = await notifications.test(ADA, "ada", made.id)
    assert done.result is DeliveryResult.DONE
    ((to, message),) = of.delivery.pushed
    assert to == ADDRESS
    assert json.loads(message.body)["project"] == f"{SITE}/account"
    assert message.contact == SITE
    (told,) = await notifications.listed(ADA, "ada")
    assert (told.last_result, told.last_at is not None) == ("delivered", True)
    assert await notifications.public_key() == "public key 1"
    assert of.delivery.keys == 1
    entries = [entry for _, entry in await of.store.audit_entries(AuditFilter(), 100)]
    assert [entry["action"] for entry in entries] == ["notifications.add", "notifications.test"]
    assert "SECRET-PLACE" not in json.dumps(entries)


async def test_a_browser_tells_whoever_turned_it_on_last() -> None:
    notifications = house().use_cases.notifications
    await notifications.add_browser(ADA, "ada", "Phone", SITE, ADDRESS)
    await notifications.add_browser(ADA, "ada", "My phone", SITE, ADDRESS)
    assert [one.name for one in await notifications.listed(ADA, "ada")] == ["My phone"]
    await notifications.add_browser(OPERATOR, "bob", "Phone", SITE, ADDRESS)
    assert not await notifications.listed(ADA, "ada")
    assert len(await notifications.listed(OPERATOR, "bob")) == 1


async def test_nobody_but_the_user_adds_what_tells_of_their_turns() -> None:
    of = house().use_cases
    with pytest.raises(ForbiddenError):
        await of.notifications.add_webhook(ADMIN, "ada", "Spy", SITE, HOOK)
    secret, made = await of.notifications.add_webhook(ADA, "ada", "Chat", SITE, HOOK)
    assert secret.startswith("whsec_")
    with pytest.raises(ForbiddenError):
        await of.notifications.test(ADMIN, "ada", made.id)
    with pytest.raises(MissingError):
        await of.notifications.remove(OPERATOR, "bob", made.id)
    await of.notifications.remove(ADMIN, "ada", made.id)
    assert not await of.notifications.listed(ADA, "ada")
    with pytest.raises(MissingError):
        await of.notifications.test(ADA, "ada", made.id)


async def test_there_are_bounds_and_removing_a_user_removes_all_of_theirs() -> None:
    of = house().use_cases
    for number in range(MOST_TARGETS):
        await of.notifications.add_webhook(ADA, "ada", f"{number}", SITE, HOOK)
    with pytest.raises(LimitExceededError):
        await of.notifications.add_browser(ADA, "ada", "One more", SITE, ADDRESS)
    (refused,) = await of.store.audit_entries(AuditFilter(result="refused"), 9)
    assert refused[1]["action"] == "notifications.add"
    with pytest.raises(InvalidRequestError):
        await of.notifications.add_webhook(OPERATOR, "bob", "Bad", SITE, "http://hooks.example")
    with pytest.raises(InvalidRequestError):
        await of.notifications.add_webhook(OPERATOR, "bob", " ", SITE, HOOK)
    await of.notifications.remove_all(OPERATOR, "ada")
    assert not await of.notifications.of(None)


async def test_what_is_gone_for_good_is_removed_and_what_fails_says_so() -> None:
    of = house()
    notifications = of.use_cases.notifications
    made = await notifications.add_browser(ADA, "ada", "Phone", SITE, ADDRESS)
    of.delivery.answers += [
        Delivered(DeliveryResult.LATER, "answered 503"),
        Delivered(DeliveryResult.GONE, "answered 410"),
    ]
    await notifications.test(ADA, "ada", made.id)
    assert [one.last_result for one in await notifications.listed(ADA, "ada")] == ["answered 503"]
    await notifications.test(ADA, "ada", made.id)
    assert not await notifications.listed(ADA, "ada")


async def test_without_a_key_all_is_off_and_another_key_makes_a_new_one_for_pushes() -> None:
    off = house(None).use_cases.notifications
    assert await off.public_key() is None
    with pytest.raises(NotificationsOffError):
        await off.add_browser(ADA, "ada", "Phone", SITE, ADDRESS)
    of = house()
    first = await of.use_cases.notifications.public_key()
    made = await of.use_cases.notifications.add_browser(ADA, "ada", "Phone", SITE, ADDRESS)
    of.settings = settings(secret_key="n" * 32, data="/nonexistent", users="ada:Ada")
    anew = of.build("w2").use_cases.notifications
    _, done = await anew.test(ADA, "ada", made.id)
    assert (done.result, "cannot be opened" in done.words) == (DeliveryResult.REFUSED, True)
    assert await anew.public_key() != first


async def test_what_is_told_names_the_turn_and_fits_into_a_push_however_long_names_are() -> None:
    of = house()
    notifications: Notifications = of.use_cases.notifications
    new = NewProject("\U0001f4d3" * 100, "p" * 60)
    project = (await of.use_cases.projects.create(OPERATOR, "ada", new)).project
    _, hook = await notifications.add_webhook(ADA, "ada", "Chat", SITE, HOOK)
    browser = await notifications.add_browser(ADA, "ada", "Phone", "https://" + "g" * 290, ADDRESS)
    notice = Notice(
        What.ASKS,
        "msg_1",
        of.clock.now(),
        replace(project, name="\U0001f4d3" * 500),
        session_id="s" * 300,
        session="\u202e\n" + "\U0001f4d3" * 200,
        turn_id="t" * 300,
        confirmation_id="c",
    )
    await notifications.send(hook, notice)
    await notifications.send(browser, notice)
    ((_, message),) = of.delivery.pushed
    assert len(message.body) < 3900
    shown = json.loads(message.body)
    assert shown["body"].partition("\n")[2].startswith("  \U0001f4d3")
    assert message.urgent
    assert shown["asks"]
    ((_, message_id, told),) = of.delivery.posted
    assert (message_id, told["type"]) == ("msg_1", "turn.asks")
    assert told["data"]["url"].startswith(f"{SITE}/users/ada/projects/{'p' * 60}/turns/t")


async def test_places_of_one_user_that_never_answer_hold_nobody_else_s_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of, at_once = house(), Counter[str]()
    most, full, answers = Counter[str](), asyncio.Event(), asyncio.Event()

    async def post(to: WebhookAddress, *_: Any) -> Delivered:
        user = to.url.removeprefix("https://").partition(".")[0]
        at_once[user] += 1
        most[user] = max(most[user], at_once[user])
        if user == "ada":
            if at_once[user] == MOST_OF_USER_AT_ONCE:
                full.set()
            await answers.wait()
        at_once[user] -= 1
        return Delivered(DeliveryResult.LATER, "it did not answer in time")

    notifications = of.use_cases.notifications
    monkeypatch.setattr(of.delivery, "post", post)
    add = notifications.add_webhook
    ids = {
        name: (await add(OPERATOR, name, "Chat", SITE, f"https://{name}.example/"))[1].id
        for name in ("ada", "bob")
    }
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        for _ in range(30):
            tasks.create_task(notifications.test(OPERATOR, "ada", ids["ada"]), name="test")
        await full.wait()
        await notifications.test(OPERATOR, "bob", ids["bob"])
        assert at_once["ada"] == MOST_OF_USER_AT_ONCE
        answers.set()
    assert most == {"ada": MOST_OF_USER_AT_ONCE, "bob": 1}


async def test_what_is_removed_before_its_turn_is_told_nothing() -> None:
    of = house()
    notifications = of.use_cases.notifications
    made = await notifications.add_browser(ADA, "ada", "Phone", SITE, ADDRESS)
    await notifications.add_browser(Principal("bob", "bob"), "bob", "Phone", SITE, ADDRESS)
    done = await notifications.send(made, Notice(What.TEST, "msg_1", of.clock.now()))
    assert done.result is DeliveryResult.REFUSED
    assert not of.delivery.pushed
