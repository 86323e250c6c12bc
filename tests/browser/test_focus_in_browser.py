"""Where the focus is once what had it is gone, for who uses the page by keys."""

from playwright.async_api import expect
from tests.browser.person import at_browser
from tests.web.server import site

NOTICE = "<div class=notice><p>It failed.</p><button data-dismiss>Dismiss</button></div>"


async def test_the_focus_of_what_goes_is_passed_on() -> None:
    async with site() as running, at_browser(f"http://127.0.0.1:{running.port}") as person:
        page, path = person.page, await running.project(active=True)
        for number in range(3):
            await page.goto(f"{path.removeprefix('/api')}?session=new")
            await person.say(f"Session {number}")
            await person.answered()
        await expect(page.locator(".session")).to_have_count(3)
        page.on("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Delete Session 1").press("Enter")
        await expect(page.locator(".session-link[title='Session 0']")).to_be_focused()
        notice = {"HX-Retarget": "#notices", "HX-Reswap": "beforeend"}
        failing = {"status": 409, "headers": notice, "body": NOTICE}
        await page.route("**/delete", lambda route: route.fulfill(**failing))
        delete = page.get_by_role("button", name="Delete Session 0")
        await delete.press("Enter")
        await page.get_by_role("button", name="Dismiss").focus()
        await page.keyboard.press("Enter")
        await expect(delete).to_be_focused()
        await person.say("wait: for ever")
        await page.get_by_role("button", name="Stop").press("Enter")
        await person.answered()
        await expect(page.locator("#message")).to_be_focused()
        # A file is opened from another pane, which is not seen any more.
        await page.get_by_role("tab", name="Changes").press("Enter")
        await page.locator("#changes-of").focus()
        await page.keyboard.press("Alt+4")
        await expect(page.locator("#pane-preview")).to_be_focused()
