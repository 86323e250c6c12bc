"""Two people sign in by an identity provider of another site, each in a real browser, and out."""

from playwright.async_api import expect
from tests.browser.person import at_browser
from tests.identity.people import Provider, needs_provider
from tests.web.test_oidc import signing_in

pytestmark = needs_provider

WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


async def test_two_people_sign_in_and_out(provider: Provider) -> None:
    async with signing_in(provider) as site:
        for login, name, width in (("ada", "Ada Lovelace", 390), ("bob", "Bob", 1200)):
            async with at_browser(site.base, token=None, width=width, dark=width < 400) as person:
                page = person.page
                await page.goto("/")
                await expect(page.locator("#token")).to_be_hidden()
                assert await page.evaluate(WIDE) <= 0
                await person.picture(f"sign-in-provider-{width}")
                await page.get_by_role("link", name="Sign in with Ourselves").click()
                await page.get_by_label("Login").fill(login)
                await page.get_by_role("button", name="Continue").click()
                # The provider is another site (localhost), and the cookie is for this one alone.
                await expect(page.locator("h1")).to_contain_text(name)
                assert await page.evaluate("document.referrer") == ""
                await page.go_back()
                assert "/auth/callback" not in page.url
                # A sign-in anew ends the one before, whose cookie another site's redirect lacks.
                await page.goto("/sign-in")
                await page.get_by_role("link", name="Sign in with Ourselves").click()
                await expect(page.locator("h1")).to_contain_text(name)
                (user,) = [one for one in await site.newcomers() if one.display_name == name]
                assert len(await site.use_cases.people.sessions(user.id)) == 1
                await page.goto("/")
                if width < 900:
                    await page.get_by_role("button", name="Projects", exact=True).click()
                await page.click("#user summary")
                await page.get_by_role("button", name="Sign out").click()
                await page.get_by_role("button", name="Yes, sign me out").click()
                await page.wait_for_url("**/sign-in")
                await page.goto("/")
                await expect(page.locator("h1")).to_have_text("Sign in")
        assert {user.display_name for user in await site.newcomers()} == {"Ada Lovelace", "Bob"}
