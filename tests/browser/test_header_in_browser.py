"""A project's header and menu, its waking and its extensions, in a real browser over memory
adapters; one site and one browser for all.
"""

import json
import re
from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import expect
from tests.browser.person import LOOKED_AT, Person, at_browser, needs_axe
from tests.web.server import ADA, Site, site

from greylag.domain.errors import ErrorInfo
from greylag.domain.lifecycle import API_ANSWERS
from greylag.domain.project import NewEvent, ProjectRef

pytestmark = needs_axe
GONE = ErrorInfo("image_missing", "The image does not exist.", "Name another image.")
LOOKS = ((320, "light"), (1920, "dark"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running() -> AsyncIterator[Site]:
    async with site() as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def person(running: Site) -> AsyncIterator[Person]:
    async with at_browser(f"http://127.0.0.1:{running.port}", width=1280) as one:
        yield one


async def judged(person: Person) -> None:
    """Judge the page as it is now, small and light, and large and dark."""
    page = person.page
    for width, theme in LOOKS:
        await page.set_viewport_size({"width": width, "height": 800})
        await page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
        await person.judged()
    await page.set_viewport_size({"width": 1280, "height": 800})


async def test_from_nothing_by_a_first_message_through_all_states(
    running: Site, person: Person
) -> None:
    page, cluster = person.page, running.house.cluster
    await page.goto("/users/ada")
    await page.get_by_role("button", name="Make a web page").click()
    await judged(person)
    cluster.auto = False
    await page.fill("#first-message", "Count the geese")
    await page.press("#first-message", "Enter")
    await expect(page.locator("h1")).to_have_text("Count the geese")
    _, listed = await running.ask("GET", ADA)
    ref = ProjectRef("ada", listed["projects"][0]["project_id"])
    # The steps of its waking, below the message.
    waking = page.locator(".turn #waking")
    await expect(waking.locator("[aria-current=step]")).to_have_text("API")
    assert "usually" not in await waking.inner_text()
    cluster.reach_step(ref, API_ANSWERS)
    cluster.reach_step(ref, NewEvent("git_cloning", "Receiving objects: 45%."))
    await expect(waking).to_contain_text("Receiving objects: 45%.")
    await judged(person)
    cluster.end(ref, GONE, terminal=True)
    await expect(waking.locator(".wake-failed")).to_contain_text("failed")
    await expect(page.locator("#project-header .badge")).to_have_text("Error")
    await expect(page.locator("#message")).to_have_value("Count the geese")
    # Said once on the whole page (the log has it, too, and is not shown).
    await expect(page.get_by_text(GONE.message).locator("visible=true")).to_have_count(1)
    await judged(person)
    await person.picture("waking-failed")
    cluster.vanish(ref)
    cluster.auto = True
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator("#waking summary")).to_have_text(re.compile(r"Activated in \d"))
    await page.press("#message", "Enter")
    await person.answered()
    await expect(page.locator("#project-model")).to_have_text("echo")
    await judged(person)
    await running.ask("DELETE", f"{ADA}/{ref.project_id}")
    await expect(page.locator("#start")).to_be_visible()


async def test_the_menu_is_used_by_keys_and_leads_to_no_raw_data(
    running: Site, person: Person
) -> None:
    path = await running.project("menu", active=True)
    page = person.page
    await person.open_project(path)
    size = await page.locator("#project-header").bounding_box()
    assert size is not None
    assert size["height"] == 48
    button, item = page.locator("#project-menu"), page.locator("[role=menuitem]:focus")
    await button.focus()
    await page.keyboard.press("ArrowDown")
    for key, name in (
        ("", "Edit"), ("End", "Delete"), ("ArrowDown", "Edit"), ("ArrowUp", "Delete"),
        ("Home", "Edit"), ("l", "Log"), ("e", "Extensions"), ("e", "Edit"), ("e", "Endpoint"),
    ):  # fmt: skip
        if key:
            await page.keyboard.press(key)
        await expect(item).to_have_text(name)
    await judged(person)
    await page.keyboard.press("Escape")
    await expect(button).to_be_focused()
    await expect(page.get_by_role("menu")).to_be_hidden()
    await page.keyboard.press("Enter")
    await expect(item).to_have_text("Edit")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("menu")).to_be_hidden()
    await choose(person, "Endpoint")
    await expect(page.get_by_label("Greylag's API")).to_have_value(re.compile(f"^http.*{path}$"))
    await judged(person)
    await page.keyboard.press("Escape")
    said = json.dumps({"timestamp": "2026-11-26", "event": "began", "port": 1, "who": "\u202eme"})
    running.house.cluster.say(ProjectRef("ada", path.rpartition("/")[2]), said.encode())
    await choose(person, "Log")
    await expect(page.locator("#environment-log pre")).to_have_text(
        "2026-11-26 began port=1 who=[U+202E]me\n"
    )
    await expect(page.locator("#log")).to_contain_text("The environment is active.")
    await judged(person)
    # Who reads in it stays where they are.
    await page.locator("#log li").first.evaluate("one => { one.style.minHeight = '60rem'; }")
    await page.locator("#log").evaluate("one => { one.scrollTop = 5; }")
    await running.ask("PATCH", path, json={"name": "Read"})
    await expect(page.locator("h1")).to_have_text("Read")
    assert await page.locator("#log").evaluate("one => one.scrollTop") == 5


async def test_a_page_that_is_looked_at_again_goes_on_with_its_log(
    running: Site, person: Person
) -> None:
    page = person.page
    path = await running.project("looked-at")
    await person.open_project(path)
    await page.wait_for_selector("#composer[data-ready]")
    lines = page.locator("#log li")
    for call, end in (("activate", "is active."), ("deactivate", "is inactive")):
        await running.ask("POST", f"{path}/{call}")
        await expect(lines.last).to_contain_text(end)
        await page.evaluate(LOOKED_AT, "hidden")
        await page.evaluate(LOOKED_AT, "visible")
    ids = await lines.evaluate_all("all => all.map(one => one.id)")
    assert len(set(ids)) == len(ids)


async def test_it_is_renamed_at_its_name_its_extensions_are_mended_and_it_sleeps(
    running: Site, person: Person
) -> None:
    path = await running.project("mended", active=True)
    page = person.page
    await person.open_project(path)
    await page.locator("h1 a").click()
    await page.fill("#field-name", "Geese")
    await page.press("#field-name", "Enter")
    await expect(page.locator("h1")).to_have_text("Geese")
    await expect(page).to_have_title("Geese \u00b7 Greylag")
    await choose(person, "Extensions")
    dialog = page.locator("#dialog")
    await expect(dialog).to_contain_text("It said: missing API key")
    await judged(person)
    await dialog.get_by_role("button", name="Disable broken").click()
    await expect(dialog.locator(".row", has_text="broken")).to_contain_text("Disabled")
    page.once("dialog", lambda one: one.accept())
    await dialog.get_by_role("button", name="Remove broken").click()
    await expect(dialog.locator(".row", has_text="broken")).to_have_count(0)
    await page.keyboard.press("Escape")
    await choose(person, "Deactivate")
    await expect(page.locator("#project-header .badge")).to_have_text("Inactive")
    await expect(page.locator("#project-model")).to_have_text("echo")
    await judged(person)


async def test_model_and_mode_are_chosen_for_a_session_and_a_refusal_is_told(
    running: Site, person: Person
) -> None:
    path = await running.project("chosen", active=True)
    page = person.page
    await person.open_project(path)
    model, mode = page.locator("#project-model"), page.locator("#fact-mode")
    said = page.locator("#console-status")
    await expect(mode).to_have_text("Asks before it acts")
    await mode.click()
    await expect(page.locator("[role=menuitemradio]:focus")).to_have_text("Asks before it acts")
    await judged(person)
    await person.picture("mode-menu")
    await page.keyboard.press("Home")
    await page.keyboard.press("Enter")
    await expect(mode).to_have_text("Acts by itself")
    await expect(said).to_have_text("This applies from your next message on.")
    await model.click()
    await page.get_by_role("menuitemradio", name="parrot").click()
    await expect(model).to_have_text("parrot")
    await person.say("Hello")
    await person.answered()
    await page.reload()
    await expect(page.locator(".session-title")).to_have_text(["Hello"])
    await expect(model).to_have_text("parrot")
    await expect(mode).to_have_text("Acts by itself")
    await mode.click()
    await page.get_by_role("menuitemradio", name="Only talks").click()
    await expect(said).to_contain_text("the value must be one that is allowed")
    await expect(mode).to_have_text("Acts by itself")
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.locator("#fact-model").click()
    await expect(page.locator("[role=menuitemradio]:focus")).to_have_text("parrot")
    await page.wait_for_selector("#model-menu:not([aria-busy])")
    await person.picture("model-menu-390")
    await page.keyboard.press("Escape")
    await page.goto(f"{path.removeprefix('/api')}?session=new")
    await expect(page.locator("#fact-model")).to_have_text("echo")


async def choose(person: Person, name: str) -> None:
    await person.page.click("#project-menu")
    await person.page.get_by_role("menuitem", name=name).click()


async def test_on_a_phone_enter_is_a_new_line_and_files_go_with_a_message(
    running: Site, person: Person
) -> None:
    path = await running.project("phone", active=True)
    page = person.page
    await person.open_project(path)
    await page.wait_for_selector("#composer[data-ready]")
    await page.set_input_files(
        "#attach-files", {"name": "a b.txt", "mimeType": "text/plain", "buffer": b"geese"}
    )
    await expect(page.locator("#message")).to_have_value(re.compile(r"^attachments/\w+-a-b\.txt$"))
    await page.fill("#message", "")
    heights = []
    for rows in (1, 10, 12):
        await page.fill("#message", "\n".join("x" * rows))
        heights.append(await page.locator("#message").evaluate("one => one.clientHeight"))
    assert heights[0] < heights[1]
    assert heights[1] == heights[2]
    touch = await page.context.new_cdp_session(page)
    await touch.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    await page.fill("#message", "wait: x")
    await page.press("#message", "Enter")
    await expect(page.locator("#message")).to_have_value("wait: x\n")
    await page.click("#send")
    await expect(page.locator("#project-header .badge")).to_have_text("Working")
    await expect(page.locator("#send")).to_be_hidden()
    await page.fill("#message", "more")
    await expect(page.locator("#send")).to_be_visible()
    await page.click("#stop")
    await person.answered()
    await page.goto(f"{path.removeprefix('/api')}?session=new")
    await expect(page.locator(".recent a")).to_have_count(1)
    await page.get_by_role("button", name="Look through").click()
    await expect(page.locator("#message")).to_have_value(re.compile("^Look through"))
    await judged(person)
    await page.set_viewport_size({"width": 390, "height": 844})
    shown = page.get_by_role("tab").locator("visible=true")
    await expect(shown).to_have_text(["Chat", "Changes", "Files", "Terminal", "Preview"])
