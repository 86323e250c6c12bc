"""Signing in by the link that is printed, by hand, and out again, in a real browser."""

import pytest
from playwright.async_api import expect
from pydantic import SecretStr
from tests.browser.person import at_browser
from tests.harness import TOKEN
from tests.web.server import Site

from greylag.web.auth import Signatures


def link_to(running: Site) -> str:
    return Signatures(SecretStr(TOKEN)).link(base_of(running))


def base_of(running: Site) -> str:
    return f"http://127.0.0.1:{running.port}"


async def test_a_link_signs_in_once_and_leaves_no_trace(running: Site) -> None:
    link, base = link_to(running), base_of(running)
    _, _, code = link.partition("=")
    async with at_browser(base, token=None) as person:
        asked: list[str] = []
        person.page.on("request", lambda one: asked.append(f"{one.url} {one.headers}"))
        await person.page.goto(link)
        await expect(person.page.locator("h1")).to_contain_text("Ada Lovelace")
        assert not [one for one in asked if code in one.replace(f"{link} ", "")]
        assert "#" not in person.page.url
        await person.page.go_back()
        assert code not in person.page.url
        await person.page.goto("/")
        await person.page.click("#user summary")
        await person.page.get_by_role("button", name="Sign out").click()
        await expect(person.page.locator("h1")).to_have_text("Sign in")
        await person.page.goto(link)
        await expect(person.page.get_by_role("alert").first).to_contain_text("has been used")
        assert code not in person.page.url
        assert code not in await person.page.content()


async def test_a_link_that_is_pasted_on_the_sign_in_page_signs_in(running: Site) -> None:
    async with at_browser(base_of(running), token=None) as person:
        await person.page.goto("/users/ada/new-project")
        await expect(person.page.locator("h1")).to_have_text("Sign in")
        await person.page.evaluate("link => { location.href = link; }", link_to(running))
        await expect(person.page.locator("h1")).not_to_have_text("Sign in")


async def test_what_is_typed_in_a_dialog_outlives_a_sign_in_that_ends_there(running: Site) -> None:
    await running.project()
    async with at_browser(base_of(running)) as person:
        page, name = person.page, person.page.locator("#field-name")
        await page.goto("/users/ada?order=name")
        await page.click("#new-project")
        await name.fill("Half a name")
        await page.context.clear_cookies()
        await name.press("Enter")
        await expect(page.locator("h1")).to_have_text("Sign in")
        await page.fill("#token", TOKEN)
        await page.press("#token", "Enter")
        await page.wait_for_url("**/users/ada?order=name")
        await page.click("#new-project")
        await expect(name).to_have_value("Half a name")
        # What has been made is not offered again.
        await name.press("Enter")
        await expect(page.locator("#project-header")).to_contain_text("Half a name")
        await page.goto("/users/ada")
        await page.click("#new-project")
        await expect(name).to_have_value("")


@pytest.mark.parametrize("scripts", [True, False])
async def test_by_hand_one_comes_to_the_page_that_was_wanted(
    running: Site, *, scripts: bool
) -> None:
    async with at_browser(base_of(running), token=None, scripts=scripts) as person:
        await person.page.goto("/users/ada/new-project")
        await person.page.fill("#token", "a-wrong-one")
        await person.page.press("#token", "Enter")
        await expect(person.page.get_by_role("alert").first).to_contain_text("not the token")
        await person.page.fill("#token", TOKEN)
        await person.page.click("button:has-text('Sign in')")
        await person.page.wait_for_url("**/users/ada/new-project")


@pytest.mark.parametrize(
    ("width", "dark"), [(390, False), (390, True), (1200, True), (1200, False)]
)
async def test_the_page_fits_and_is_pictured(running: Site, width: int, *, dark: bool) -> None:
    async with at_browser(base_of(running), token=None, width=width, dark=dark) as person:
        await person.page.goto("/sign-in")
        looks = f"{width}-{'dark' if dark else 'light'}"
        await person.picture(f"sign-in-{looks}")
        await person.page.fill("#token", "wrong")
        await person.page.press("#token", "Enter")
        await expect(person.page.get_by_role("alert").first).to_contain_text("not the token")
        await person.picture(f"sign-in-refused-{looks}")
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert await person.page.evaluate(wide) <= 0
