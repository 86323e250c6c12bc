"""Two people who signed in by a provider, each in a browser: they share, look and part."""

from contextlib import AsyncExitStack

from playwright.async_api import expect
from tests.browser.person import Person, at_browser, needs_axe
from tests.identity.people import Provider, needs_provider
from tests.web.test_oidc import signing_in

pytestmark = [needs_provider, needs_axe]


async def come_in(person: Person, login: str) -> None:
    """Sign in at the provider."""
    page = person.page
    await page.goto("/")
    await page.get_by_role("link", name="Sign in with Ourselves").click()
    await page.get_by_label("Login").fill(login)
    await page.get_by_role("button", name="Continue").click()
    await expect(page.locator("h1")).to_contain_text("Projects")


async def press(person: Person, name: str) -> None:
    await person.page.get_by_role("button", name=name, exact=True).click()


async def follow(person: Person, name: str) -> None:
    await person.page.get_by_role("link", name=name, exact=True).click()


async def heads(person: Person, words: str) -> None:
    """Expect a page of this heading, and judge it."""
    await expect(person.page.locator("h1")).to_contain_text(words)
    await person.judged()


async def test_two_people_share_look_and_part(provider: Provider) -> None:
    async with signing_in(provider, oidc_admin_groups="admins") as site, AsyncExitStack() as open_:
        ada = await open_.enter_async_context(
            at_browser(site.base, token=None, width=390, dark=True)
        )
        bob = await open_.enter_async_context(at_browser(site.base, token=None))
        await come_in(ada, "ada")
        await come_in(bob, "bob")
        await bob.page.goto(f"{bob.page.url}/new-project")
        await bob.page.fill("#field-name", "Garden")
        await press(bob, "Create")
        await press(bob, "Activate")
        await bob.say("Only for us")
        await bob.answered()
        project = bob.page.url.partition("?")[0]
        await make_and_revoke_a_token(bob)
        await look_with_a_reason(ada, project)
        await share_and_talk(bob, ada, project)
        await find(ada, "bob")
        await follow(ada, "Bob")
        await heads(ada, "Account")
        ada.page.once("dialog", lambda asked: asked.accept())
        await press(ada, "Disable")
        await expect(ada.page.get_by_role("button", name="Enable")).to_be_visible()
        await bob.page.goto(project)
        await expect(bob.page.locator("h1")).to_have_text("Sign in")


async def make_and_revoke_a_token(bob: Person) -> None:
    page = bob.page
    await page.goto("/account")
    await heads(bob, "Account")
    await expect(page.get_by_text("This one")).to_have_count(1)
    await follow(bob, "New token")
    await page.get_by_label("Name").fill("nightly")
    await press(bob, "Create")
    await heads(bob, "New token")
    await expect(page.get_by_label("Name")).to_have_value("nightly")
    await expect(page.locator(".problem")).to_have_text("Choose what the token may do.")
    await page.get_by_label("Talk to agents").check()
    await press(bob, "Create")
    await heads(bob, "Token created")
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await press(bob, "Copy")
    await press(bob, "Copied")
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert copied == await page.get_by_label("The token").input_value()
    await follow(bob, "Done")
    await expect(page.get_by_text("nightly")).to_be_visible()
    page.once("dialog", lambda asked: asked.accept())
    await page.get_by_role("button", name="Revoke").press("Enter")
    await expect(page.get_by_text("nightly")).to_have_count(0)
    await expect(page.locator("main :focus")).to_have_count(1)


async def find(ada: Person, words: str) -> None:
    await ada.page.goto("/users")
    await ada.page.get_by_label("Search by id, name or email address").fill(words)
    await press(ada, "Search")
    await heads(ada, "Users")


async def look_with_a_reason(ada: Person, project: str) -> None:
    page = ada.page
    await find(ada, "bob")
    await follow(ada, "Projects of Bob")
    await heads(ada, "Look at the projects of Bob?")
    await press(ada, "Look")
    bar = page.get_by_role("region", name="Another user")
    await expect(bar).to_contain_text("You look at the projects of Bob")
    await expect(page.get_by_role("link", name="Garden").first).to_be_visible()
    await page.goto(project)
    await expect(page.locator("#conversation")).to_contain_text("Only with a reason")
    await expect(page.locator("#message")).to_be_disabled()
    await ada.judged()
    await ada.picture("looking-390")
    await follow(ada, "Say why")
    await page.get_by_label("Reason").fill("Bob asked me to")
    await press(ada, "Look")
    assert page.url == project
    await expect(page.locator(".answer")).to_contain_text("You said: Only for us")
    await page.click("#tab-files")
    await expect(page.locator("#files")).to_contain_text("Nothing is here yet.")
    await press(ada, "End")
    await expect(page.locator("h1")).to_contain_text("Ada Lovelace")
    await expect(bar).to_have_count(0)


async def share_and_talk(bob: Person, ada: Person, project: str) -> None:
    await bob.page.goto(project)
    await bob.page.click("#project-menu")
    await bob.page.get_by_role("menuitem", name="Members").click()
    await heads(bob, "Members")
    await bob.page.get_by_label("User").fill("nobody@example.org")
    await press(bob, "Share")
    await expect(bob.page.locator(".problem")).to_contain_text("There is no user")
    await bob.page.get_by_label("User").fill("ada@example.org")
    await press(bob, "Share")
    await expect(bob.page.locator(".row")).to_have_count(2)
    await ada.page.goto(project)
    await ada.say("From me")
    await ada.answered()
    await expect(ada.page.locator(".said-by")).to_have_text(["Bob", "Ada Lovelace"])
    await bob.page.goto(project)
    await expect(bob.page.locator(".said-by")).to_have_text(["Bob", "Ada Lovelace"])
    await bob.page.fill("#message", "Not sent yet")  # nor is it anybody else's in this browser
    whose = await bob.page.evaluate("document.body.dataset.person")
    kept = await bob.page.evaluate("Object.keys(localStorage)")
    assert whose
    assert any(one.startswith(f"greylag-draft:{whose} ") for one in kept)
    await bob.picture("authors-1200")
    await bob.page.goto(f"{project}/members")
    await follow_as_a_viewer(bob, ada, project)
    await bob.page.get_by_role("button", name="Remove", exact=True).press("Enter")
    await expect(bob.page.locator(".row")).to_have_count(1)
    await expect(bob.page.locator("main :focus")).to_have_count(1)


async def follow_as_a_viewer(bob: Person, ada: Person, project: str) -> None:
    await bob.page.get_by_label("Role of Ada Lovelace").first.select_option("viewer")
    await press(bob, "Change the role of Ada Lovelace")
    await ada.page.goto(project)
    await expect(ada.page.locator("#message")).to_be_disabled()
    await bob.page.goto(project)
    await bob.say("For both of us")
    await bob.answered()
    for person in (bob, ada):
        turn = person.page.locator(".turn").last
        await expect(turn.locator(".said")).to_have_text("For both of us")
        await expect(turn.locator(".answer")).to_contain_text("You said: For both of us")
        writes = turn.get_by_role("button", name="Edit and resend")
        await expect(writes).to_have_count(1 if person is bob else 0)
    await bob.page.goto(f"{project}/members")
