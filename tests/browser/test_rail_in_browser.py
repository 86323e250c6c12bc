"""The rail beside every page, and what is live in it, in a real browser over memory adapters."""

import re

import pytest
from playwright.async_api import expect
from tests.browser.dropping import DroppingProxy
from tests.browser.person import LOOKED_AT, Person, at_browser, needs_axe
from tests.web.server import ADA, Site

from greylag.web.dashboard import rail

NARROW = {"width": 390, "height": 800}


async def make(running: Site, count: int) -> None:
    for number in range(count):
        body = {"name": f"Project {number:03d}", "project_id": f"p{number}"}
        assert (await running.ask("POST", ADA, json=body))[0] == 201


async def say(running: Site, path: str, message: str, **more: str) -> None:
    """Send a message as another tab or program would, and do not wait for its answer."""
    body = {"message": message, **more}
    async with running.http.post(f"{path}/messages", json=body) as answer:
        await answer.content.readline()


async def test_the_rail_leads_everywhere_and_is_as_wide_as_it_was_left(
    running: Site, person: Person
) -> None:
    path = await running.project()
    await make(running, 2)
    page = person.page
    await person.open_project(path)
    rows = page.locator(".rail-row .rail-name")
    await expect(rows).to_have_text(["Project 001", "Project 000", "Notes"])
    await expect(page.locator(".rail-row[aria-current]")).to_contain_text("Notes")
    size = await page.locator("#rail").bounding_box()
    row_size = await page.locator(".rail-row").first.bounding_box()
    assert size is not None
    assert row_size is not None
    assert (size["width"], row_size["height"]) == (248, 32)
    await its_menu_and_its_search_end_by_escape(person)
    await page.keyboard.press("/")
    await page.keyboard.type("001")
    await expect(page.locator(".rail-row:visible")).to_have_count(1)
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_have_text("Project 001")
    await page.locator("body").press("n")
    await page.fill("#field-name", "By key")
    await page.press("#field-name", "Enter")
    await expect(page.locator("h1")).to_have_text("By key")
    await page.get_by_role("button", name="Narrow sidebar").click()
    await page.get_by_role("button", name="Dark colours").click()
    await page.reload()
    await expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert await page.locator("#rail").evaluate("one => one.offsetWidth") == 48
    await page.get_by_role("button", name="Narrow sidebar").click()
    await page.set_viewport_size(NARROW)  # type: ignore[arg-type] # its own type of dict
    await expect(page.locator("#rail")).to_be_hidden()
    await page.locator("#project-header").get_by_role("button", name="Projects").click()
    await expect(page.locator("#rail")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("#rail")).to_be_hidden()
    await expect(page.locator(".drawer-button")).to_be_focused()
    await the_drawer_is_used_and_closes(person)
    await page.locator(".drawer-button").click()
    await page.click("text=All projects")
    await expect(page.locator(".project-row")).to_have_count(4)


async def its_menu_and_its_search_end_by_escape(person: Person) -> None:
    page = person.page
    await page.locator("#user summary").click()
    await expect(page.locator("#user")).to_have_attribute("open", "")
    await page.keyboard.press("Escape")
    await expect(page.locator("#user")).not_to_have_attribute("open", "")
    await page.keyboard.press("/")
    await page.keyboard.type("none")
    await expect(page.locator(".rail-row:visible")).to_have_count(0)
    await page.keyboard.press("Escape")
    await expect(page.locator(".rail-row:visible")).to_have_count(3)


async def the_drawer_is_used_and_closes(person: Person) -> None:
    page, rail, button = person.page, person.page.locator("#rail"), ".drawer-button"
    await page.locator(button).click()
    await page.locator("#rail-search").click()
    await page.keyboard.type("001")
    await expect(page.locator(".rail-row:visible")).to_have_count(1)
    await page.locator("#rail-search").fill("")
    await expect(page.locator(button)).to_have_attribute("aria-expanded", "true")
    await page.mouse.click(380, 400)  # beside it
    await expect(rail).to_be_hidden()
    await expect(page.locator(button)).to_have_attribute("aria-expanded", "false")
    await page.locator(button).click()
    await page.locator("#rail-new").click()
    await expect(page.locator("#field-name")).to_be_focused()
    await expect(rail).to_be_hidden()
    await page.keyboard.press("Escape")


async def test_what_agents_do_is_seen_from_everywhere(running: Site, person: Person) -> None:
    path = await running.project(active=True)
    await make(running, 2)
    page = person.page
    await page.goto("/users/ada/projects/p0")
    names = page.locator(".rail-row .rail-name")
    await expect(names).to_have_text(["Project 001", "Project 000", "Notes"])
    await page.locator(".rail-row").last.focus()
    notes = page.locator(".rail-row", has_text="Notes")
    for message, state, title in (
        ("wait: a while", "working", "Project 000"),
        ("run: ls", "asks", "(1) Project 000"),
    ):
        await say(running, path, message)
        await expect(notes).to_have_attribute("data-state", state)
        await expect(page).to_have_title(f"{title} \u00b7 Greylag")
    await expect(notes).to_contain_text("needs you")
    await expect(names).to_have_text(["Notes", "Project 001", "Project 000"])
    await expect(notes).to_be_focused()
    await expect(page.locator("li:has([aria-current]) + #rail-sessions")).to_be_visible()
    await expect(page.locator("#icon")).to_have_attribute("href", re.compile("mark-asks"))
    await person.picture("rail-needs-you")
    await page.goto("/users/ada")
    await expect(page.locator(".project-row .badge-asks")).to_have_text("Needs you")
    await page.locator(".filters").get_by_role("link", name="Needs you 1").click()
    await expect(page.locator(".project-row")).to_have_count(1)
    await page.locator(".project-row a").first.click()
    await expect(page).to_have_title("Needs you: Notes \u00b7 Greylag")
    await expect(page.locator(".session").first.get_by_label("needs you")).to_be_visible()
    await page.get_by_role("button", name="Allow").click()
    await expect(notes).to_have_attribute("data-state", "working")


async def test_a_session_is_named_and_all_pages_hear_of_a_new_name(
    running: Site, person: Person
) -> None:
    path = await running.project(active=True)
    page = person.page
    await say(running, path, "Make me an app\nof plants")
    await person.open_project(path)
    title = page.locator(".session-title")
    await expect(title).to_have_text("Make me an app of plants")
    await page.locator(".session").hover()
    await page.get_by_role("link", name="Rename Make").click()
    await page.fill("#field-title", "Plants <b>\u202e")
    await page.press("#field-title", "Enter")
    await expect(page.locator("dialog")).to_be_hidden()
    await expect(title).to_have_text("Plants <b>[U+202E]")
    await page.goto(f"{path.removeprefix('/api')}?session=new")
    await page.keyboard.press("Control+k")
    await page.get_by_role("combobox").fill("plants session")
    await page.keyboard.press("Enter")
    await expect(page.locator(".said")).to_have_text("Make me an app\nof plants")
    await running.ask("PATCH", path, json={"name": "Garden"})
    await expect(page).to_have_title("Garden \u00b7 Greylag")
    await expect(page.locator(".rail-row[aria-current]")).to_contain_text("Garden")
    await running.ask("POST", f"{path}/deactivate")
    await expect(page.locator(".session-actions")).to_have_count(0)  # a copy can only be read
    await expect(title).to_have_text("Plants <b>[U+202E]")


async def test_a_stream_that_is_lost_is_said_and_errors_do_not_pile_up(
    running: Site, person: Person, proxy: DroppingProxy
) -> None:
    await running.project()
    page = person.page
    async with page.expect_response("**/live*"):
        await page.goto("/users/ada")
    await page.route("**/live*", lambda route: route.abort())
    await page.route("**/activate", lambda route: route.abort())
    proxy.drop()
    await expect(page.locator("#live-lost")).to_contain_text("Not live")
    activate = page.get_by_role("button", name="Activate")
    for _ in range(3):
        async with page.expect_event("requestfailed", lambda one: "activate" in one.url):
            await activate.click()
    await expect(page.locator(".notice")).to_have_count(1)
    await page.unroute("**/live*")
    await expect(page.locator("#live-lost")).to_be_empty()
    await expect(page.locator(".notice")).to_contain_text("may have been done")
    await page.unroute("**/activate")
    await activate.click()
    await expect(page.locator(".notice")).to_have_count(0)
    # htmx notes the errors that the test asks for.
    person.complaints[:] = [one for one in person.complaints if not one.startswith("htmx:")]


async def test_many_projects_are_searched_ordered_and_found_by_a_few_letters(
    running: Site, person: Person
) -> None:
    await make(running, 200)
    page = person.page
    await page.goto("/users/ada")
    await expect(page.locator(".rail-row")).to_have_count(200)
    await expect(page.locator(".project-row")).to_have_count(50)
    size = await page.locator(".project-row").first.bounding_box()
    assert size is not None
    assert size["height"] <= 44
    await page.locator(".orders").get_by_role("link", name="Name").click()
    await expect(page.locator(".project-row h2").first).to_have_text("Project 000")
    await page.get_by_role("searchbox", name="Name or id").fill("19 project")
    await page.keyboard.press("Enter")
    await expect(page.locator(".project-row h2")).to_have_text(
        ["Project 019", "Project 119", *(f"Project {n}" for n in range(190, 200))]
    )
    await expect(page.locator(".filters")).to_contain_text("All 12")
    await page.keyboard.press("Control+k")
    palette = page.get_by_role("combobox")
    await palette.fill("project 07")
    await expect(page.get_by_role("option")).to_have_count(12)
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_have_text("Project 079")
    await page.keyboard.press("Control+k")
    await palette.fill("all proj")
    await expect(page.get_by_role("option")).to_have_text("All projectsAction")
    await palette.fill("new proj")
    await person.picture("palette")
    await page.keyboard.press("Enter")
    await expect(page.locator("#field-name")).to_be_focused()


@needs_axe
@pytest.mark.parametrize("dark", [False, True])
async def test_axe_finds_nothing_wrong_beside_the_page(running: Site, *, dark: bool) -> None:
    path = await running.project(active=True)
    await make(running, 3)
    await running.ask("POST", f"{ADA}/p0/activate")
    await say(running, path, "run: ls")
    await say(running, f"{ADA}/p0", "wait: x")
    async with at_browser(f"http://127.0.0.1:{running.port}", dark=dark) as person:
        page = person.page
        await page.goto("/users/ada")
        await expect(page.locator(".rail-row[data-state=asks]")).to_have_count(1)
        for width in (320, 1920):
            await page.set_viewport_size({"width": width, "height": 800})
            await person.judged()
        await page.goto(path.removeprefix("/api"))
        await page.set_viewport_size(NARROW)  # type: ignore[arg-type] # its own type of dict
        await page.locator("[data-drawer]:visible").click()
        await person.judged()
        await page.keyboard.press("Escape")
        await page.set_viewport_size({"width": 1200, "height": 800})
        await page.click("#rail-toggle")
        await page.keyboard.press("Control+k")
        await person.judged()


async def test_the_palette_says_that_it_does_not_search_all_projects(
    running: Site, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await running.project()
    await make(running, 2)
    page = person.page
    await person.open_project(path)
    said = page.locator(".palette-none")
    await page.click("#palette-open")
    await page.get_by_role("combobox").fill("project")
    await expect(page.get_by_role("option")).not_to_have_count(0)
    await expect(said).to_have_text("")
    monkeypatch.setattr(rail, "MOST_ROWS", 1)  # and the one that is open
    await person.open_project(path)
    await page.click("#palette-open")
    await page.get_by_role("combobox").fill("project")
    await expect(said).to_contain_text("Only 2 of 3 projects are searched here.")
    await page.get_by_role("combobox").fill("xyz")
    await expect(said).to_contain_text("Nothing matches. Only 2 of 3 projects are searched here.")


async def test_a_page_that_nobody_looks_at_does_not_say_that_its_agent_works_on_after_the_turn(
    running: Site, person: Person
) -> None:
    page, path = person.page, await running.project(active=True)
    await person.open_project(path)
    await person.say("run: ls")
    await expect(page).to_have_title("Needs you: Notes \u00b7 Greylag")
    await expect(page.locator(".rail-row[aria-current]")).to_have_attribute("data-state", "asks")
    await page.evaluate(LOOKED_AT, "hidden")
    await page.get_by_role("button", name="Decline").click()
    await person.answered()
    await expect(page).to_have_title("Notes \u00b7 Greylag")
    await page.evaluate(LOOKED_AT, "visible")
    await expect(page.locator(".rail-row[aria-current]")).to_have_attribute("data-state", "ready")
    await say(running, path, "wait: another session's")
    await expect(page).to_have_title("Working: Notes \u00b7 Greylag")
