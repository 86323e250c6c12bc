"""A person and their projects, in a real browser over the memory adapters."""

from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import expect
from tests.browser.person import Person, at_browser
from tests.web.server import ADA, Site

from greylag.domain.errors import ErrorInfo
from greylag.domain.project import ProjectRef

NOTES = ProjectRef("ada", "notes")


@pytest_asyncio.fixture(loop_scope="session")
async def person(running: Site) -> AsyncIterator[Person]:
    async with at_browser(f"http://127.0.0.1:{running.port}") as one:
        yield one


async def test_the_last_user_is_remembered(running: Site, person: Person) -> None:
    await person.page.goto("/")
    await expect(person.page.locator("h1")).to_contain_text("Ada Lovelace")
    await person.page.locator("#user summary").click()
    await person.page.get_by_role("link", name="Zoë").press("ArrowDown")
    await expect(person.page.locator("h1")).to_contain_text("Ada Lovelace")
    await person.page.get_by_role("link", name="Zoë").click()
    await expect(person.page.locator("h1")).to_contain_text("Zoë Ω")
    await person.page.goto("/")
    await expect(person.page.locator("h1")).to_contain_text("Zoë Ω")


async def test_a_project_is_created_and_shown(running: Site, person: Person) -> None:
    await person.page.goto("/users/ada")
    await person.page.click("#rail-new")
    await person.page.fill("#field-name", "Garden <b>notes</b>")
    await person.page.fill("#field-metadata", "[1]")
    await person.page.press("#field-name", "Enter")
    await expect(person.page.locator("dialog .problem")).to_contain_text("must be a JSON object")
    await person.page.fill("#field-metadata", '{"team": "blue"}')
    await person.page.press("#field-name", "Enter")
    await expect(person.page.locator("h1")).to_have_text("Garden <b>notes</b>")
    await person.page.click("text=All projects")
    await expect(person.page.locator(".project-row h2")).to_have_text("Garden <b>notes</b>")


async def test_a_card_changes_by_itself_and_keeps_the_focus(running: Site, person: Person) -> None:
    await running.project()
    await person.page.goto("/users/ada")
    card = person.page.locator(".project-row")
    await card.get_by_role("button", name="Activate").focus()
    await person.page.keyboard.press("Enter")
    await expect(card.locator(".badge")).to_have_text("Active")
    await expect(card.get_by_role("button", name="Deactivate")).to_be_focused()
    await person.page.keyboard.press("Enter")
    await expect(card.locator(".badge")).to_have_text("Inactive")
    # A double click's second one would meet the button that has come in the first one's place.
    asked: list[str] = []
    person.page.on("request", lambda one: asked.append(one.method))
    await card.get_by_role("button", name="Activate").dispatch_event("click", {"detail": 2})
    assert await person.page.evaluate("1") == 1
    assert "POST" not in asked
    await card.get_by_role("button", name="Activate").dispatch_event("click", {"detail": 1})
    await expect(card.locator(".badge")).to_have_text("Active")
    assert asked.count("POST") == 1


async def test_changes_of_others_appear_without_a_reload(running: Site, person: Person) -> None:
    await person.page.goto("/users/ada")
    await running.project("notes")
    await expect(person.page.locator(".project-row")).to_have_count(1)
    await running.ask("POST", f"{ADA}/notes/activate")
    await expect(person.page.locator(".project-row .badge")).to_have_text("Active")
    running.house.cluster.end(NOTES, ErrorInfo("out_of_memory", "It ate too much."), terminal=True)
    await expect(person.page.locator(".project-row .problem")).to_contain_text("It ate too much.")
    await person.picture("list-error")
    await running.ask("DELETE", f"{ADA}/notes")
    await expect(person.page.locator(".project-row")).to_have_count(0)


async def test_an_open_dialog_stays_while_the_page_changes_under_it(
    running: Site, person: Person
) -> None:
    await running.project()
    await person.page.goto("/users/ada")
    await (
        person.page.get_by_role("button", name="Edit")
        .or_(person.page.get_by_role("link", name="Edit"))
        .click()
    )
    await person.page.fill("#field-name", "Half a na")
    await running.ask("POST", f"{ADA}/notes/activate")
    await expect(person.page.locator(".project-row .badge")).to_have_text("Active")
    await expect(person.page.locator("#field-name")).to_have_value("Half a na")
    await person.page.fill("#field-name", "A whole name")
    await person.page.get_by_role("button", name="Save").click()
    await expect(person.page.locator("dialog")).to_be_hidden()
    await expect(person.page.locator(".project-row h2")).to_have_text("A whole name")


async def test_deleting_asks_first(running: Site, person: Person) -> None:
    await running.project()
    await person.page.goto("/users/ada")
    delete = person.page.get_by_role("link", name="Delete")
    await delete.click()
    await person.picture("dialog-delete")
    await person.page.keyboard.press("Escape")
    await expect(person.page.locator(".project-row")).to_have_count(1)
    await delete.click()
    await person.page.get_by_role("button", name="Delete").click()
    await expect(person.page.locator(".project-row")).to_have_count(0)


async def test_more_projects_are_shown_when_asked_for(running: Site, person: Person) -> None:
    for number in range(53):
        await running.project(f"p{number}")
    await person.page.goto("/users/ada")
    await expect(person.page.locator(".project-row")).to_have_count(50)
    await person.page.click("text=Show more")
    await expect(person.page.locator(".project-row")).to_have_count(53)
    assert "show=100" in person.page.url
    await running.ask("POST", f"{ADA}/p0/activate")
    await expect(person.page.locator(".badge-active")).to_have_count(1)


async def test_an_error_is_told_where_it_happened(running: Site, person: Person) -> None:
    await running.project()
    await person.page.goto("/users/ada")
    await person.page.route(
        "**/activate", lambda route: route.continue_(url=_gone(route.request.url))
    )
    await person.page.get_by_role("button", name="Activate").click()
    await expect(person.page.locator(".notice")).to_contain_text("project_not_found")
    await person.page.get_by_role("button", name="Dismiss").click()
    await expect(person.page.locator(".notice")).to_have_count(0)


async def test_everything_is_reached_by_keyboard(running: Site, person: Person) -> None:
    await running.project()
    await person.page.goto("/users/ada")
    await person.page.keyboard.press("Tab")
    await expect(person.page.locator(".skip-link")).to_be_focused()
    await person.page.keyboard.press("Enter")
    reached = []
    for _ in range(12):
        await person.page.keyboard.press("Tab")
        text = await person.page.evaluate("document.activeElement.textContent")
        reached.append(" ".join(text.split()))
    wanted = ["New project", "Search", "Last active", "All 1", "Inactive 1"]
    wanted += ["Notes", "Activate", "Edit", "Delete"]
    assert [words for words in reached if words in wanted] == wanted


async def test_without_scripts_forms_and_links_do_it_all(running: Site) -> None:
    async with at_browser(f"http://127.0.0.1:{running.port}", scripts=False) as person:
        await person.page.goto("/users/ada/new-project")
        await person.page.fill("#field-name", "Plain")
        await person.page.click("text=Create")
        await person.page.click(".project-actions >> text=Activate")
        await person.page.fill("#message", "Hello")
        await person.page.click("#send")
        await expect(person.page.locator(".answer")).to_contain_text("You said: Hello")
        await person.page.click("#project-menu")
        await person.page.click("#project-header >> text=Delete")
        await person.page.click("button:has-text('Delete')")
        await expect(person.page).to_have_url(f"http://127.0.0.1:{running.port}/users/ada")


def _gone(url: str) -> str:
    return url.replace("/notes/", "/nothing/")
