"""A person and the agent, in a real browser over the memory adapters."""

import asyncio
import json
import re

import pytest
from playwright.async_api import Request, Route, expect
from tests.browser.dropping import DroppingProxy
from tests.browser.person import AXE, Person, at_browser
from tests.web.server import ADA, Site, settings, site

from greylag.domain.project import ProjectRef

HOSTILE = (
    "<script>document.title='owned'</script> <img src=x onerror=\"document.title='owned'\">"
    " [click](javascript:document.title='owned') javascript:document.title='owned'"
    " https://example.test/a?b=1. \x1b[31mred\x1b[0m \x07 \u202egnp.exe\u2066"
)


SAYS_SO_IN_SIGHT = """() => {
  const said = document.getElementById("console-status");
  const { top, bottom, height } = said.getBoundingClientRect();
  return said.textContent.includes("Trying again") && height > 0 && top > 0 && bottom < innerHeight;
}"""
KEEPS_WHAT_IS_SAID = """() => {
  const place = document.getElementById("console-status");
  window.said = [];
  new MutationObserver(() => said.push(place.textContent))
    .observe(place, { childList: true, subtree: true });
}"""
CHANGED_AND_A_WHILE = """() => {
  document.dispatchEvent(new Event("greylag:changed"));
  return new Promise((done) => setTimeout(done, 500));
}"""


async def test_a_message_wakes_the_environment_and_is_answered(
    running: Site, person: Person
) -> None:
    await person.open_project(await running.project())
    await person.say("Hello there")
    await person.answered()
    assert await person.answer() == "You said: Hello there"
    woke = person.page.locator(".turn #waking summary")
    await expect(woke).to_have_text(re.compile(r"^Activated in \d+\.\d s$"))
    await woke.click()
    await expect(person.page.locator(".wake-done")).to_have_count(5)
    await expect(person.page.locator("#project-header .badge")).to_have_text("Active")
    # The header may tell of it when the turn is over already: what was shown stays.
    await person.page.evaluate(CHANGED_AND_A_WHILE)
    assert await person.answer() == "You said: Hello there"
    await expect(person.page.locator("#log")).to_contain_text("The environment is active.")
    await expect(person.page.locator(".session-title")).to_have_text("Hello there")
    assert "session=" in person.page.url


async def test_a_tool_runs_only_when_it_is_allowed(running: Site, person: Person) -> None:
    page = person.page
    await person.open_project(await running.project(active=True))
    await person.say("run: rm -rf /")
    await person.page.get_by_role("button", name="Allow").wait_for()
    await person.picture("console-confirmation")
    await person.page.get_by_role("button", name="Decline").click()
    await person.answered()
    assert "You declined." in await person.answer()
    await asked_out_of_sight(person)
    await person.say("run: df")
    await page.get_by_role("button", name="Allow").press("Escape")
    await person.answered()
    assert "You declined." in await person.answer()
    await person.say("run: ls")
    await expect(person.page.get_by_role("timer")).to_have_text("Declined by itself in 9 min")
    await person.page.get_by_role("button", name="Always in this session").click()
    await person.answered()
    assert "It ran." in await person.answer()
    await expect(person.page.locator(".step").last).to_contain_text("Ran ls")


async def asked_out_of_sight(person: Person) -> None:
    """Ask below what is seen: it is told above the composer, and Enter leads to it, no further."""
    page, dock = person.page, person.page.locator("#question-dock")
    await person.say("\n".join("Much was said." for _ in range(80)))
    await person.answered()
    await person.say("run: uname")
    await page.get_by_role("button", name="Allow").wait_for()
    await expect(dock).to_have_text("")
    await page.locator("#scroller").focus()
    await page.keyboard.press("Home")
    await expect(dock).to_contain_text("The agent asks: Run uname?")
    await person.picture("console-question-dock")
    if AXE.exists():
        await person.judged()
    await page.focus("#message")
    for _ in "held down":
        await page.keyboard.down("Enter")
    await page.keyboard.up("Enter")
    await expect(page.get_by_role("button", name="Allow")).to_be_focused()
    await expect(dock).to_have_text("")
    await expect(page.get_by_role("button", name="Allow")).to_be_in_viewport()
    # Who has answered by keys goes on writing, before the answer has arrived, too.
    arrives = asyncio.Event()
    await page.route("**/confirmations/*", lambda route: _when(arrives, route))
    await page.keyboard.press("Enter")
    await expect(page.locator("#message")).to_be_focused()
    await page.keyboard.type("no")
    await expect(page.locator("#message")).to_have_value("no")
    await page.fill("#message", "")
    arrives.set()
    await person.answered()
    await page.unroute("**/confirmations/*")
    assert "It ran." in await person.answer()


async def test_a_tool_s_picture_is_shown_and_what_may_run_is_only_to_be_saved(
    running: Site, person: Person
) -> None:
    await person.open_project(await running.project(active=True))
    await person.say("run: failing pictures")
    await person.page.get_by_role("button", name="Allow").click()
    await person.answered()
    failed = person.page.locator(".step-failed")
    await failed.locator("summary").click()
    await expect(failed).to_contain_text("no luck")
    await expect(failed.locator("img")).to_have_count(1)
    await person.open_project(await running.project("other", active=True))
    await person.say("run: pictures")
    await person.page.get_by_role("button", name="Allow").click()
    await person.answered()
    await person.page.locator(".step summary").last.click()
    pictures = person.page.locator(".step img")
    await expect(pictures).to_have_count(1)
    assert await pictures.evaluate("one => one.decode().then(() => one.naturalWidth)") == 1
    links = person.page.locator(".step a[download]")
    kinds = await links.evaluate_all("all => all.map(one => one.getAttribute('download'))")
    assert len(kinds) >= 2
    assert await person.page.locator(".step-body :is(svg, iframe, object)").count() == 0
    assert "owned" not in await person.page.title()


async def test_a_turn_is_stopped(running: Site, person: Person) -> None:
    page, taken = person.page, asyncio.Event()
    await person.open_project(await running.project(active=True))
    await person.say("wait: for ever")
    await page.get_by_role("button", name="Stop").click()
    await person.answered()
    await expect(page.locator(".turn-end").last).to_have_text("Stopped.")
    # Also one of which the agent does not know yet; what waits for its end comes back.
    await page.route("**/messages", lambda route: _when(taken, route))
    await person.say("wait: for ever")
    await person.say("And then")
    await page.get_by_role("button", name="Stop").click()
    said = page.locator("#console-status")
    await expect(said).to_have_text("It is stopped as soon as the agent has the message.")
    await expect(page.locator("#message")).to_have_value("And then")
    taken.set()
    await person.answered()
    await expect(page.locator(".turn-end")).to_have_text(["Stopped."] * 2)


async def test_a_failed_turn_shows_its_error(running: Site, person: Person) -> None:
    await person.open_project(await running.project(active=True))
    await person.say("fail: the model is out of order")
    await person.answered()
    await expect(person.page.locator(".answer .problem")).to_contain_text("out of order")
    await person.page.reload()
    await expect(person.page.locator(".answer .problem")).to_contain_text("out of order")


async def test_a_reload_in_a_turn_finds_it_again(running: Site, person: Person) -> None:
    await person.open_project(await running.project(active=True))
    await person.say("run: ls")
    await person.page.get_by_role("button", name="Allow").wait_for()
    await person.page.reload()
    await person.page.get_by_role("button", name="Allow").click()
    await person.answered()
    assert await person.page.locator(".turn").count() == 1
    assert (await person.answer()).count("It ran.") == 1


async def test_a_dropped_connection_goes_on_by_itself(
    running: Site, person: Person, proxy: DroppingProxy
) -> None:
    await person.open_project(await running.project(active=True))
    await person.say("run: ls")
    await person.page.get_by_role("button", name="Allow").wait_for()
    for _ in range(3):
        proxy.drop()
        await person.page.wait_for_function(SAYS_SO_IN_SIGHT)
        await expect(person.page.locator("#console-status")).to_have_text("")
    assert await person.page.locator(".ask").count() == 1
    await person.page.get_by_role("button", name="Allow").click()
    await person.answered()
    assert (await person.answer()).count("It ran.") == 1
    assert await person.page.locator(".step").count() == 1


async def test_a_stream_that_ends_as_planned_is_not_told_as_a_lost_connection() -> None:
    async with (
        site(settings(stream_seconds=0.25)) as brief,
        at_browser(f"http://127.0.0.1:{brief.port}") as person,
    ):
        await person.open_project(await brief.project(active=True))
        await person.page.evaluate(KEEPS_WHAT_IS_SAID)
        await person.say("run: ls")
        await person.page.get_by_role("button", name="Allow").wait_for()
        for _ in range(3):
            async with person.page.expect_request("**/turns/*/events"):
                pass
        await person.page.get_by_role("button", name="Allow").click()
        await person.answered()
        assert not [said for said in await person.page.evaluate("said") if "lost" in said]


async def test_a_message_that_met_a_dropped_connection_is_one_turn() -> None:
    async with site(auto=False) as slow, DroppingProxy(slow.port).running() as way:
        path = await slow.project()
        async with at_browser(way.address) as waiting:
            await waiting.open_project(path)
            await waiting.say("Only once")
            await expect(waiting.page.locator(".turn .wake-now")).to_have_text("API")
            way.drop()
            await expect(waiting.page.locator("#console-status")).to_contain_text("Trying again")
            await expect(waiting.page.locator("#console-status")).to_have_text("")
            # What is sent in another session meanwhile is another message, in another tab, too.
            await waiting.page.goto(f"{path.removeprefix('/api')}?session=other")
            await waiting.say("Another")
            await expect(waiting.page.locator(".turn .wake-now")).to_have_text("API")
            tab = await waiting.page.context.new_page()
            await waiting.page.close()
            waiting.page = tab
            await waiting.open_project(path)
            await expect(waiting.page.locator(".said")).to_have_text("Only once")
            await expect(waiting.page.locator(".turn .wake-now")).to_have_text("API")
            slow.house.cluster.advance(ProjectRef("ada", "notes"))
            await waiting.answered()
            assert (await waiting.answer()).count("You said: Only once") == 1
            _, listed = await slow.ask("GET", f"{path}/sessions")
            (session,) = listed["sessions"]
            assert session["message_count"] == 2


async def test_a_hostile_answer_is_only_text(running: Site, person: Person) -> None:
    await person.open_project(await running.project(active=True))
    await person.say(HOSTILE)
    await person.answered()
    answer = person.page.locator(".turn").last.locator(".prose")
    shown = await answer.inner_text()
    assert "<script>document.title='owned'</script>" in shown
    assert "\u241b[31mred" in shown
    assert "\u2407" in shown
    assert "[U+202E]gnp.exe[U+2066]" in shown
    links = answer.locator("a")
    assert [await link.get_attribute("href") for link in await links.all()] == [
        "https://example.test/a?b=1"
    ]
    assert await links.get_attribute("rel") == "noopener noreferrer nofollow"
    assert await answer.locator("script, img").count() == 0
    await person.page.reload()
    await expect(person.page.locator(".said")).to_contain_text("[U+202E]")
    assert "owned" not in await person.page.title()
    await person.picture("console-hostile")


@pytest.mark.parametrize("kind", ["turn", "port"])
async def test_ids_of_a_hostile_environment_lead_to_nothing_else(
    running: Site, person: Person, kind: str
) -> None:
    page, path = person.page, await running.project(active=True)
    victim = (await running.project("victim", active=True)).removeprefix("/api")
    asked: asyncio.Queue[str] = asyncio.Queue()

    def note(request: Request) -> None:
        if request.method == "POST":
            asked.put_nowait(request.url)

    page.on("request", note)
    way = f"../../../../../..{victim}/delete?"
    told = {"turn_id": way, "session_id": "s", "message_id": "m"}
    event = json.dumps({"type": "turn", "content": told})
    begun = {"content_type": "text/event-stream", "body": f"id: t-0\ndata: {event}\n\n"}
    served = {"ports": [{"port": f"../{way}", "process": "x"}]}
    await page.route("**/api/**/messages", lambda route: route.fulfill(**begun))
    # So it is still there to be stopped.
    await page.route("**/events", lambda route: route.fulfill(status=503))
    await page.route("**/api/**/ports", lambda route: route.fulfill(json=served))
    await person.open_project(path)
    if kind == "turn":
        await person.say("Hello")
        await expect(page.locator(".turn[data-turn]")).to_have_count(1)
        await page.get_by_role("button", name="Stop").click()
        assert (await asked.get()).endswith("/messages")
    else:
        await page.locator("#tab-preview").click()
    async with asyncio.timeout(30):
        url = await asked.get()
    assert url.partition("/api/")[2].startswith(f"{path.removeprefix('/api/')}/")
    _, found = await running.ask("GET", f"/api{victim}")
    assert found["desired"] == "active"


async def test_answers_are_light_markdown(running: Site, person: Person) -> None:
    await person.open_project(await running.project(active=True))
    await person.page.fill(
        "#message",
        "x\n\n# Head\n\n- one\n- two `code`\n\n```\nlet a;\n```\n**bold**\n\n"
        "[Notes](notes.md) https://a.test/%FF <https://a.test/\u202eb>\n\n![Far](https://a.test/far)"
        "![A dot](data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7)",
    )
    await person.page.click("#send")
    await person.answered()
    prose = person.page.locator(".prose").last
    await expect(prose.locator("h3")).to_have_text("Head")
    await expect(prose.locator("li")).to_have_count(2)
    await expect(prose.locator("li code")).to_have_text("code")
    await expect(prose.locator("pre")).to_have_text("let a;\n")
    await expect(prose.locator("strong")).to_have_text("bold")
    # What leads nowhere from here, or elsewhere than it looks, is no link; a far picture is one.
    await expect(prose).to_contain_text("Notes (notes.md)")
    await expect(prose.locator("a")).to_have_text(["https://a.test/\ufffd", "Picture: Far"])
    await expect(prose.get_by_role("img", name="A dot")).to_have_count(1)


async def test_sessions_are_chosen_begun_and_deleted(running: Site, person: Person) -> None:
    await person.open_project(await running.project(active=True))
    await person.say("First")
    await person.answered()
    await person.page.click("text=New session")
    await expect(person.page.locator(".turn")).to_have_count(0)
    await person.say("Second")
    await person.answered()
    await expect(person.page.locator(".session")).to_have_count(2)
    await person.page.locator(".session-link").nth(1).click()
    await expect(person.page.locator(".said")).to_have_text("First")
    person.page.on("dialog", lambda dialog: dialog.accept())
    await person.page.get_by_role("button", name="Delete First").click()
    await expect(person.page.locator(".session")).to_have_count(1)
    await expect(person.page.locator(".said")).to_have_text("Second")


async def test_a_message_that_meets_another_tab_s_turn_waits_for_its_end(
    running: Site, person: Person
) -> None:
    path = await running.project(active=True)
    await person.open_project(path)
    _, session = await running.ask("POST", f"{path}/sessions")
    await person.page.goto(f"{path.removeprefix('/api')}?session={session['session_id']}")
    page, waits = person.page, person.page.locator(".queued")
    body = {"message": "wait: x", "session_id": session["session_id"], "message_id": "theirs"}
    await page.wait_for_selector("#composer[data-ready]")
    # The page hears of it when it has sent its own message already, and has another that waits.
    both = asyncio.Event()
    await page.route("**/messages", lambda route: _after(running, path, body, both, route))
    await person.say("Me too")
    await person.say("And me")
    both.set()
    await expect(page.locator(".said")).to_have_text(["wait: x"])
    await expect(waits.locator("span")).to_have_text("Me too\n\nAnd me")
    await page.unroute("**/messages")
    # Another tab has what waits, too: it is not lost with the one that it was written in.
    other = await page.context.new_page()
    await other.goto(page.url)
    await expect(other.locator(".queued")).to_contain_text("And me")
    await page.reload()
    await expect(waits).to_contain_text("And me")
    _, listed = await running.ask("GET", f"{path}/sessions/{session['session_id']}/turns")
    await running.ask("POST", f"{path}/turns/{listed['turns'][0]['turn_id']}/cancel")
    await expect(page.locator(".said")).to_have_text(["wait: x", "Me too\n\nAnd me"])
    # Both tabs have sent it, and either may be the one whose turn it is.
    last = page.locator(".turn").last.locator(".answer")
    await expect(last).to_contain_text(re.compile(r"You said: Me too\s*And me"))
    await person.answered()
    await expect(waits).to_be_hidden()
    await expect(other.locator(".queued")).to_be_hidden()
    await expect(other.locator(".said")).to_have_count(2)
    await other.close()
    # A turn of another tab is there by itself, whether it has ended or not.
    for message in ("From elsewhere", "run: ls"):
        body = {"message": message, "session_id": session["session_id"]}
        async with running.http.post(f"{path}/messages", json=body) as answer:
            await answer.content.readline()
        await expect(page.locator(".said").last).to_have_text(message)
    await page.get_by_role("button", name="Allow").click()
    await person.answered()
    assert (await person.answer()).endswith("It ran.")
    await turns_from_elsewhere_come_in_their_order(running, person, path, session["session_id"])


@pytest.mark.parametrize("status", [429, 500])
async def test_a_turn_whose_stream_is_refused_is_followed_later_and_what_is_sent_waits_for_it(
    running: Site, person: Person, status: int
) -> None:
    path = await running.project(active=True)
    begun = {"message": "wait: long", "message_id": "theirs"}
    async with running.http.post(f"{path}/messages", json=begun) as answer:
        await answer.content.readline()
    page = person.page
    sent: list[str] = []
    refused: list[str] = []
    followed = asyncio.Event()

    async def refuse_thrice(route: Route) -> None:
        if len(refused) == 3:
            followed.set()
            return await route.continue_()
        refused.append(route.request.url)
        body = '{"code": "limit_exceeded", "detail": "There are too many streams."}'
        return await route.fulfill(status=status, body=body)

    def note(request: Request) -> None:
        if request.method == "POST" and request.url.endswith("/messages"):
            sent.append(request.url)

    page.on("request", note)
    await page.route("**/turns/*/events", refuse_thrice)
    await person.open_project(path)
    await person.say("And then this")
    await followed.wait()
    await expect(page.locator("#stop")).to_be_visible()
    await expect(page.locator(".queued")).to_contain_text("And then this")
    assert len(sent) <= 3
    turn = await page.locator(".turn").get_attribute("data-turn")
    await running.ask("POST", f"{path}/turns/{turn}/cancel")
    await expect(page.locator(".said")).to_have_text(["wait: long", "And then this"])
    await person.answered()
    assert (await person.answer()).startswith("You said: And then this")


async def turns_from_elsewhere_come_in_their_order(
    running: Site, person: Person, path: str, session: str
) -> None:
    """Also when the first cannot be fetched at once."""
    failed: list[str] = []

    async def fail_once(route: Route) -> None:
        await (route.continue_() if failed else route.abort())
        failed.append(route.request.url)

    one_turn = re.compile(r"/turns/[^/]+$")
    await person.page.route(one_turn, fail_once)
    for message in ("One", "Two"):
        body = {"message": message, "session_id": session}
        async with running.http.post(f"{path}/messages", json=body) as answer:
            await answer.read()
    said = person.page.locator(".said")
    await expect(said.last).to_have_text("Two")
    assert (await said.all_inner_texts())[-2:] == ["One", "Two"]
    await expect(person.page.locator("#console-status")).to_have_text("")
    await person.page.unroute(one_turn)


async def test_a_first_message_on_its_way_is_its_own_tab_s(running: Site, person: Person) -> None:
    """Also where the server shows the session that another tab has made meanwhile."""
    path = await running.project(active=True)
    page = person.page

    async def hold(route: Route) -> None:
        if (route.request.post_data_json or {}).get("message") != "First of mine":
            await route.continue_()

    await page.route("**/messages", hold)  # until the page is left
    await person.open_project(path)
    address = page.url
    for leave in ("reload", "come again"):
        if leave == "reload":
            await person.say("First of mine")
            await expect(page.locator(".said")).to_have_text("First of mine")
        other = await page.context.new_page()
        await other.goto(f"{address}?session=new")
        await other.wait_for_selector("#composer[data-ready]")
        await other.fill("#message", "Another session")
        await other.press("#message", "Enter")
        await expect(other.locator(".said")).to_have_text(["Another session"])
        await expect(other.locator(".answer")).to_have_text("You said: Another session")
        await other.close()
        await (page.reload() if leave == "reload" else page.goto(address))
        await expect(page.locator(".said")).to_have_text(["First of mine"])
    await page.route("**/messages", lambda route: route.continue_())
    await page.goto(address)
    await expect(page.locator(".answer")).to_have_text("You said: First of mine")
    await expect(page).to_have_url(re.compile("session=(?!new)"))
    # It has become a turn: a new session is empty.
    await page.goto(f"{address}?session=new")
    await page.wait_for_selector("#composer[data-ready]")
    await expect(page.locator(".turn")).to_have_count(0)


async def test_a_first_message_that_has_become_a_turn_unseen_begins_no_session_anew(
    running: Site, person: Person
) -> None:
    path = await running.project(active=True)
    page = person.page

    async def answer_elsewhere(route: Route) -> None:
        body = route.request.post_data_json
        async with running.http.post(f"{path}/messages", json=body) as answer:
            await answer.read()

    await page.route("**/messages", answer_elsewhere)
    await person.open_project(path)
    await person.say("First of mine")
    await expect(page.locator(".session-title")).to_have_text("First of mine")
    await page.reload()
    await expect(page.locator(".answer")).to_have_text("You said: First of mine")
    await page.goto(f"{page.url.partition('?')[0]}?session=new")
    await page.wait_for_selector("#composer[data-ready]")
    await expect(page.locator(".turn")).to_have_count(0)


async def _when(may: asyncio.Event, route: Route) -> None:
    await may.wait()
    await route.continue_()


async def _after(
    running: Site, path: str, body: dict[str, str], ready: asyncio.Event, route: Route
) -> None:
    await ready.wait()
    async with running.http.post(f"{path}/messages", json=body) as answer:
        await answer.content.readline()
    await route.continue_()


@pytest.mark.parametrize(
    ("width", "dark"), [(390, False), (390, True), (1200, True), (1200, False)]
)
async def test_pages_fit_and_are_pictured(running: Site, width: int, *, dark: bool) -> None:
    path = await running.project(active=True)
    await running.project("a-project-with-quite-a-long-id-that-nobody-would-type")
    looks = f"{width}-{'dark' if dark else 'light'}"
    base = f"http://127.0.0.1:{running.port}"
    async with at_browser(base, width=width, dark=dark) as person:
        await person.page.goto(f"{base}{ADA.removeprefix('/api').removesuffix('/projects')}")
        await expect(person.page.locator(".project-row")).to_have_count(2)
        assert await _overflow(person) <= 0
        await person.picture(f"list-{looks}")
        await person.open_project(path)
        await person.say("Hello, what can you do?")
        await person.answered()
        await person.say("run: make dinner")
        await person.page.get_by_role("button", name="Allow").wait_for()
        assert await _overflow(person) <= 0
        await person.picture(f"project-{looks}")
        assert await person.page.evaluate("document.documentElement.dataset.theme") == (
            "dark" if dark else "light"
        )


async def _overflow(person: Person) -> int:
    wide: int = await person.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return wide
