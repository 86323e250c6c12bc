"""A person turns notifications on, is told on a phone that the agent asks, and answers there."""

import asyncio
import json
from typing import Any

import pytest
from playwright.async_api import Page, Worker, expect
from tests.browser.person import Chromium, Person, at_browser, chromium, needs_axe
from tests.services.test_notifier import running as telling
from tests.web.server import site

from greylag.domain.project import ProjectRef
from greylag.domain.users import OPERATOR, Principal

needs_notifications = pytest.mark.skipif(
    chromium(shows_notifications=True) is None,
    reason="NO NOTIFICATION WAS SHOWN: install chromium, the one with windows",
)
pytestmark = [needs_axe]

# Chromium has no push service here: what it would give out is made up, all else is real.
SUBSCRIBE = """
PushManager.prototype.subscribe = async function (options) {
  if (!options.userVisibleOnly || !options.applicationServerKey) throw new Error("not asked well");
  const keys = { p256dh: "P", auth: "A" };
  return { toJSON: () => ({ endpoint: "https://push.example/1", keys }) };
};
"""
# Events that are made up open and focus nothing: what they would have is told.
CLICKED = """async ([data, action, url]) => {
  let did = "", done;
  clients.matchAll = async () => [{ url, focus: async () => { did = `focuses ${url}`; } }];
  clients.openWindow = async (url) => { did = `opens ${url}`; };
  const notification = { data, close() {} }, waitUntil = (work) => { done = work; };
  const event = Object.assign(new Event("notificationclick"), { notification, action, waitUntil });
  dispatchEvent(event);
  await done;
  return did;
}"""
PUSHED = """async ([told, url, focused]) => {
  let silent, done;
  clients.matchAll = async () => [{ url, focused }];
  registration.showNotification = (title, options) => {
    silent = options.silent;
    return ServiceWorkerRegistration.prototype.showNotification.call(registration, title, options);
  };
  const data = { json: () => told }, waitUntil = (work) => { done = work; };
  dispatchEvent(Object.assign(new Event("push"), { data, waitUntil }));
  await done;
  return [silent, (await registration.getNotifications({ tag: told.turn })).length];
}"""
SHOWN = """async () => {
  const registration = await navigator.serviceWorker.ready;
  const shown = await registration.getNotifications();
  return shown.map(({ title, body, tag, actions }) =>
    ({ title, body, tag, actions: actions.map((one) => one.title) }));
}"""


@needs_notifications
async def test_a_phone_is_told_that_the_agent_asks_and_answers_it_with_one_thumb() -> None:
    notified = Chromium(shows_notifications=True)
    async with (
        site() as running,
        at_browser(f"http://127.0.0.1:{running.port}", width=390, browser=notified) as ann,
    ):
        page, context, house = ann.page, ann.page.context, running.house
        await context.grant_permissions(["notifications"])
        await page.add_init_script(SUBSCRIBE)
        api = await running.project(active=True)
        await page.goto("/users/ada/account")
        await page.get_by_role("button", name="Turn on in this browser").click()
        row = page.locator("#notifications .row")
        await expect(row).to_contain_text("Chrome on Linux")
        await expect(row).to_contain_text("not told yet")
        await ann.judged()
        await ann.picture("notifications-account-390")
        await row.get_by_role("button", name="Test").click()
        await expect(row).to_contain_text("delivered")

        async with telling(house.build("teller").notifier):
            at = await house.use_cases.agents.address(*_at(api))
            turn = await house.gateway.start_turn(at, None, "run: make all", "m1")
            while len(house.delivery.pushed) < 2:
                await house.delivery.news.wait()
                house.delivery.news.clear()
        body = house.delivery.pushed[-1][1].body.decode()
        await _push(page, f"http://127.0.0.1:{running.port}", body)
        await page.wait_for_function(f"async () => (await ({SHOWN})()).length")
        (shown,) = await page.evaluate(SHOWN)
        assert shown == {
            "title": "Notes",
            "body": "A tool call waits for your answer.\nrun: make all",
            "tag": turn.turn_id,
            "actions": ["Allow", "Decline"],
        }
        told = json.loads(body)
        await _led(context.service_workers[0], told)
        await page.goto(f"{told['project']}/turns/{told['turn']}/answer?choice=allow_once")
        await _answer(ann)


async def _led(worker: Worker, told: dict[str, Any]) -> None:
    """The notification and its buttons lead there; who looks at the project is not disturbed."""
    answer = f"{told['project']}/turns/{told['turn']}/answer"
    conversation = f"{told['project']}?session={told['session']}"
    ended, elsewhere = told | {"asks": False}, f"{told['project']}/members"
    for data, action, at, leads in (
        (told, "allow_once", conversation, f"opens {answer}?choice=allow_once"),
        (told, "", conversation, f"opens {answer}"),
        (ended, "", elsewhere, f"opens {conversation}"),
        (ended, "", conversation, f"focuses {conversation}"),
    ):
        assert await worker.evaluate(CLICKED, [data, action, at]) == leads
    for at, focused, shown in (
        (f"{conversation}#x", True, [True, 0]),
        (conversation, False, [False, 1]),
        (elsewhere, True, [False, 1]),
    ):
        assert await worker.evaluate(PUSHED, [told, at, focused]) == shown


async def _answer(ann: Person) -> None:
    page = ann.page
    await expect(page.locator("pre code")).to_have_text("make all")
    await expect(page.get_by_role("button", name="Allow")).to_be_focused()
    await expect(page.get_by_role("timer")).to_have_text("in 9 min")
    for name in ("Always in this session", "Allow", "Decline"):
        box = await page.get_by_role("button", name=name).bounding_box()
        assert box is not None
        assert box["height"] >= 48
        assert box["y"] > 640, "it is not under the thumb"
    await ann.judged()
    await ann.picture("answer-390")
    await page.get_by_role("button", name="Allow").click()
    await expect(page.get_by_role("status").first).to_have_text("You allowed it.")
    await expect(page.get_by_text("The turn has ended.")).to_be_visible()
    await ann.judged()
    await ann.picture("answered-390")
    await page.get_by_role("link", name="Open the conversation").click()
    await expect(page.locator(".turn").last).to_contain_text("make all")


def _at(api: str) -> tuple[Principal, ProjectRef]:
    user, project = api.removeprefix("/api/users/").split("/projects/")
    return OPERATOR, ProjectRef(user, project)


async def _push(page: Page, origin: str, body: str) -> None:
    """Have the browser hand a message to the service worker, as from its push service."""
    session = await page.context.new_cdp_session(page)
    found: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def registered(event: dict[str, Any]) -> None:
        for one in event["registrations"]:
            if not found.done():
                found.set_result(one["registrationId"])

    session.on("ServiceWorker.workerRegistrationUpdated", registered)
    await session.send("ServiceWorker.enable")
    await session.send(
        "ServiceWorker.deliverPushMessage",
        {"origin": origin, "registrationId": await found, "data": body},
    )
