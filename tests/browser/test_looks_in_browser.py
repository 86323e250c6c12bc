"""How the pages look and fit: long names, phones, short windows, large text, no colours, text from
right to left; in a real browser over memory adapters; one site and one browser for all.
"""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Locator, expect
from tests.browser.person import Chromium, Person, at_browser
from tests.web.server import ADA, Site, site

LONG = "Averyverylongnamewithoutanyspacesatall" * 4
HELLO = "\u0645\u0631\u062d\u0628\u0627"
DOUBLE = ("--blink-settings=defaultFontSize=32",)
STATES = ("asleep", "moving", "ready", "working", "failed")
FORMS = """states => states.map(state => {
  const dot = document.createElement("span");
  dot.className = `dot dot-${state}`;
  document.body.append(dot);
  const { backgroundImage, backgroundColor, borderRadius } = getComputedStyle(dot);
  dot.remove();
  const filled = backgroundColor !== "rgba(0, 0, 0, 0)";
  return [backgroundImage.split("(")[0], filled, borderRadius].join();
})"""
UNDER = """button => {
  const text = document.createRange();
  text.selectNodeContents(button.parentElement.querySelector("code"));
  const { left, right, top, bottom } = button.getBoundingClientRect();
  return [...text.getClientRects()].some(one =>
    one.right > left && one.left < right && one.bottom > top && one.top < bottom);
}"""
HEIGHTS = "all => all.map(one => one.getBoundingClientRect().height)"
WIDER = "document.documentElement.scrollWidth - innerWidth"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running() -> AsyncIterator[Site]:
    async with site() as one:
        await one.project("long")
        await one.ask("PATCH", f"{ADA}/long", json={"name": LONG})
        await one.project("shown", active=True)
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def person(running: Site) -> AsyncIterator[Person]:
    async with at_browser(f"http://127.0.0.1:{running.port}") as one:
        yield one


async def size(person: Person, width: int, height: int = 800) -> None:
    await person.page.set_viewport_size({"width": width, "height": height})


async def width_of(place: Locator) -> float:
    box = await place.bounding_box()
    assert box is not None
    return box["width"]


@pytest.mark.parametrize("width", [320, 380, 1200])
async def test_long_names_widen_no_page(person: Person, width: int) -> None:
    await size(person, width)
    paths = ("", "/projects/long", "/projects/long/members", "/account/new-token")
    for path in paths:
        await person.page.goto(f"/users/ada{path}")
        assert await person.page.evaluate(WIDER) <= 0, path


async def test_a_phone_shows_which_project_it_is_and_how_it_stands(person: Person) -> None:
    page = person.page
    await size(person, 380)
    await page.goto("/users/ada")
    row = page.locator(".project-row", has_text="Averyvery")
    assert await width_of(row.locator("h2")) > 200
    await page.goto("/users/ada/projects/long")
    assert await width_of(page.locator(".project-name")) > 120
    await expect(page.get_by_text("Inactive", exact=True)).to_be_attached()
    await page.goto("/users/ada/projects/shown")
    header, badge = page.locator("#project-header"), page.locator("#project-header .badge")
    for words in ("Active", "Deactivating, and more"):
        await badge.evaluate("(badge, words) => { badge.textContent = words; }", words)
        box = await badge.bounding_box()
        assert box is not None
        assert box["height"] < 32
        assert await header.evaluate("one => one.scrollWidth <= one.clientWidth")


async def test_a_message_can_be_written_beside_a_phone_s_keyboard(person: Person) -> None:
    await size(person, 380, 420)
    await person.page.goto("/users/ada/projects/shown")
    await expect(person.page.locator("#fact-mode")).not_to_be_empty()
    assert await width_of(person.page.locator("#message")) > 180
    assert await person.page.evaluate(WIDER) <= 0


async def test_text_of_twice_the_size_leaves_room_for_the_conversation(running: Site) -> None:
    base = f"http://127.0.0.1:{running.port}"
    async with at_browser(base, width=1280, browser=Chromium(*DOUBLE)) as person:
        await person.page.goto("/users/ada/projects/shown")
        assert (
            await person.page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") == 32
        )
        assert await width_of(person.page.locator("#message")) > 800
        await expect(person.page.get_by_role("tab", name="Chat")).to_be_visible()
        assert await person.page.evaluate(WIDER) <= 0


async def test_a_phone_with_text_of_twice_the_size_cuts_no_tab_and_no_button(
    running: Site,
) -> None:
    base = f"http://127.0.0.1:{running.port}"
    await running.project("large", active=True)
    async with at_browser(base, width=380, browser=Chromium(*DOUBLE)) as person:
        page = person.page
        await page.goto("/users/ada/projects/large")
        await expect(page.locator("#fact-mode")).not_to_be_empty()
        cut = "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
        assert await page.locator("#tabs [role=tab]:visible, .fact:visible").evaluate_all(cut) == 0
        assert await width_of(page.locator("#message")) > 300
        await person.say("run: ls")
        await expect(page.locator(".ask")).to_be_visible()
        out = "one => one.scrollWidth > one.clientWidth"
        assert not await page.locator("#scroller").evaluate(out)
        assert await page.evaluate(WIDER) <= 0


async def test_states_are_told_apart_at_rest_and_without_colours(person: Person) -> None:
    page = person.page
    await size(person, 1200)
    await page.emulate_media(forced_colors="active", reduced_motion="reduce")
    await page.goto("/users/ada/projects/shown")
    forms = await page.evaluate(FORMS, STATES)
    assert len(set(forms)) == len(STATES), forms
    tabs = page.locator("#tabs [role=tab]:visible")
    lines = await tabs.evaluate_all(
        "all => all.map(one => [one.ariaSelected, getComputedStyle(one).borderBottomColor])"
    )
    chosen = {line for selected, line in lines if selected == "true"}
    assert chosen.isdisjoint({line for selected, line in lines if selected == "false"})
    await page.emulate_media(forced_colors="none", reduced_motion="no-preference")


async def test_text_from_right_to_left_has_its_marks_and_names_where_they_belong(
    running: Site, person: Person
) -> None:
    page = person.page
    await size(person, 1200)
    files = f"{ADA}/shown/files/content"
    for name in ("one.txt", f"{HELLO}.txt"):
        await running.ask("PUT", files, params={"path": name}, data=b"x")
    await page.goto("/users/ada/projects/shown?session=new")
    answer = f"{HELLO}\n\n- {HELLO}\n\n## {HELLO}"
    await person.say(f"events: {json.dumps([['message', {'content': answer}]])}")
    await person.answered()
    prose = page.locator(".prose").last
    found = await prose.locator("ul").evaluate("one => getComputedStyle(one).paddingRight")
    assert found == "24px"
    heading = prose.locator(".heading-2")
    assert int(await heading.evaluate("one => getComputedStyle(one).fontWeight")) >= 600
    await page.get_by_role("tab", name="Files").click()
    names = page.locator(".files-name bdi")
    await expect(names).to_have_count(2)
    lefts = await names.evaluate_all("all => all.map(one => one.getBoundingClientRect().left)")
    assert lefts[0] == lefts[1]


async def test_what_is_asked_stands_whole_beside_its_button(running: Site, person: Person) -> None:
    page = person.page
    await running.project("asks", active=True)
    for width in (380, 1200):
        await size(person, width)
        await page.goto("/users/ada/projects/asks?session=new")
        await person.say(f"run: {'make all of it anew ' * 12}")
        copy = page.locator(".ask").get_by_role("button", name="Copy")
        await expect(copy).to_be_visible()
        assert not await copy.evaluate(UNDER)
        await page.get_by_role("button", name="Decline").click()
        await person.answered()


async def test_the_drawer_s_button_says_that_it_closes(person: Person) -> None:
    page = person.page
    await size(person, 380)
    await page.goto("/users/ada")
    await page.get_by_role("button", name="Projects").click()
    await page.locator("#rail").get_by_role("button", name="Close").click()
    await expect(page.locator("#rail")).to_be_hidden()
    await size(person, 1200)
    await expect(page.get_by_role("button", name="Narrow sidebar")).to_be_visible()


async def test_why_a_form_came_back_is_announced(person: Person) -> None:
    page = person.page
    await size(person, 1200)
    await page.goto("/users/ada")
    await page.click("#rail-new")
    await page.fill("#field-name", "x")
    await page.fill("#field-metadata", "[1]")
    await page.press("#field-name", "Enter")
    problem = page.locator("dialog .problem[role=alert]")
    await expect(problem).to_contain_text("Metadata must be a JSON object")
    # What was sent is still only typed.
    await page.mouse.click(5, 400)
    await expect(problem).to_be_visible()
    await page.fill("#field-metadata", "[2]")
    await page.keyboard.press("Escape")
    await expect(problem).to_be_hidden()
    await page.click("#rail-new")
    await expect(page.locator("#field-name")).to_have_value("x")
    await expect(page.locator("#field-metadata")).to_have_value("[2]")
    await page.click("#dialog >> text=Cancel")


async def test_the_part_that_was_left_open_has_its_tab(person: Person) -> None:
    page = person.page
    await size(person, 1200)
    await page.goto("/users/ada/projects/shown")
    await page.click("#project-menu")
    await page.get_by_role("menuitem", name="Log").click()
    await page.goto("/users/ada/projects/long")
    await expect(page.get_by_role("tab", name="Log")).to_have_attribute("aria-selected", "true")
    await size(person, 380)
    await expect(page.get_by_role("tab", name="Log")).to_be_hidden()
    await size(person, 1200)
    await page.get_by_role("tab", name="Log").press("ArrowLeft")
    await expect(page.get_by_role("tab", name="Preview")).to_be_focused()
    await page.get_by_role("tab", name="Files").click()


async def test_what_is_pressed_by_a_finger_has_the_room_of_one(
    running: Site, person: Person
) -> None:
    page = person.page
    await running.project("touch", active=True)
    touch = await page.context.new_cdp_session(page)
    await touch.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    await size(person, 380)
    await page.goto("/users/ada/projects/touch?session=new")
    await page.wait_for_selector("#composer[data-ready]")
    await page.fill("#message", "run: ls")
    await page.click("#send")
    await expect(page.locator(".ask")).to_be_visible()
    assert min(await page.locator(".ask button").evaluate_all(HEIGHTS)) >= 40
    await page.get_by_role("button", name="Allow").click()
    await person.answered()
    assert min(await page.locator(".turn-line button").evaluate_all(HEIGHTS)) >= 40
    assert min(await page.locator("#composer button:visible").evaluate_all(HEIGHTS)) >= 32
    await page.goto("/users/ada")
    assert min(await page.locator("#projects :is(a, button)").evaluate_all(HEIGHTS)) >= 32
    await touch.send("Emulation.setTouchEmulationEnabled", {"enabled": False})
