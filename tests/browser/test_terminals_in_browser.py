"""Terminals on the project's page, over `greylag up` with the scripted agent."""

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import expect
from tests.browser.person import AXE, Person, at_browser
from tests.browser.whole import Whole, up

pytestmark = pytest.mark.slow

API = "/api/users/me/projects/whole"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with up(tmp_path_factory.mktemp("terminals") / "data", GREYLAG_GOOSE="scripted") as one:
        await one.project()
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def person(whole: Whole) -> AsyncIterator[Person]:
    async with at_browser(whole.address, token=whole.token) as one:
        await one.open_project(API)
        await one.page.get_by_role("tab", name="Terminal").click()
        yield one


async def test_a_shell_survives_a_reload_and_tells_its_exit_code(person: Person) -> None:
    page = person.page
    rows, said = page.locator(".xterm-rows"), page.locator("p.terminal-said[role=status]")
    await page.get_by_role("button", name="New terminal").click()
    await expect(said).to_have_text("")
    await page.keyboard.type("echo $((6*7)); printf '\\033[38;2;200;30;30mred\\033[0m\\n'\n")
    await expect(rows).to_contain_text("42")
    red = rows.locator("span", has_text=re.compile("^red$"))
    await expect(red).to_have_css("color", "rgb(200, 30, 30)")
    await page.keyboard.press("Alt+0")
    await expect(page.locator("#message")).to_be_focused()
    person.cuts_sockets = True  # of terminals that are left, open or not yet
    await page.reload()
    await expect(rows).to_contain_text("42")
    for name, dark, width in (("light", False, 1200), ("dark", True, 1200), ("phone", False, 390)):
        await page.emulate_media(color_scheme="dark" if dark else "light")
        await page.set_viewport_size({"width": width, "height": 844})
        if width < 900:
            await page.get_by_role("tab", name="Terminal").click()
        await expect(rows).to_contain_text("42")
        await person.picture(f"terminal-{name}")
        if AXE.exists():
            await person.judged()
    await page.locator(".xterm-screen").click()
    await page.keyboard.type("exit 7\n")
    await expect(said).to_have_text("The shell ended with exit code 7.")
    await page.get_by_role("button", name="New terminal").click()
    await expect(page.get_by_role("button", name="Terminal 2")).to_have_attribute(
        "aria-pressed", "true"
    )
    await page.get_by_role("button", name="Terminal 1").click()
    await expect(said).to_have_text("The shell ended with exit code 7.")
    await page.get_by_role("button", name="End terminal").press("Enter")
    await expect(page.get_by_role("button", name="Terminal 2")).to_have_count(0)


async def test_a_project_that_sleeps_is_woken_from_the_pane(whole: Whole, person: Person) -> None:
    person.cuts_sockets = True  # a terminal was open
    async with whole.http.post(f"{API}/deactivate") as answer:
        assert answer.status == 200
    await person.page.get_by_role("button", name="Activate it").press("Enter")
    await expect(person.page.locator("#terminals")).to_contain_text("No terminal is open.")
    await expect(person.page.locator("#pane-terminal")).to_be_focused()
