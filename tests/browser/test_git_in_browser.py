"""The git bar above a workspace's files: what changed is committed and pushed from the page."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Locator, expect
from tests.browser.person import Person, at_browser, needs_axe
from tests.browser.whole import up
from tests.git_server import git, git_server, make_repository

pytestmark = pytest.mark.slow

API = "/api/users/me/projects/cloned"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("git")
    make_repository(root / "app.git", {"README.md": "# Hello\n"})
    return root


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def person(place: Path) -> AsyncIterator[Person]:
    """The person at the files of a project that they made from a repository, and changed."""
    async with (
        git_server(place) as server,
        up(place / "data", GREYLAG_GOOSE="scripted") as whole,
        at_browser(whole.address, token=whole.token) as one,
    ):
        page = one.page
        await page.goto("/users/me/new-project")
        await page.get_by_label("Name").fill("Cloned")
        await page.locator("#field-id").fill("cloned")
        await page.get_by_label("Git repository").fill(f"{server.url}/app.git")
        await one.picture("git-form")
        await page.get_by_role("button", name="Create").click()
        await page.wait_for_url("**/projects/cloned")
        async with whole.http.post(f"{API}/activate") as active:
            assert active.status == 200, await active.text()
        where = {"path": "README.md"}
        async with whole.http.put(f"{API}/files/content", params=where, data=b"mine") as put:
            assert put.status == 200
        await one.open_project(API)
        await page.get_by_role("tab", name="Files").click()
        yield one


def bar_of(person: Person) -> Locator:
    return person.page.get_by_role("region", name="Git")


async def test_what_changed_is_committed_and_pushed_from_the_page(
    person: Person, place: Path
) -> None:
    page, bar = person.page, bar_of(person)
    await expect(bar).to_contain_text("1 changed")
    await person.picture("git-bar")
    await bar.get_by_role("button", name="Commit").press("Enter")
    await expect(bar.get_by_label("What the commit says")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(bar.get_by_role("button", name="Commit")).to_be_focused()
    await page.keyboard.press("Enter")
    await bar.get_by_label("What the commit says").fill("From the page")
    await page.keyboard.press("Enter")
    await expect(bar).to_contain_text("Committed as")
    await expect(bar).to_contain_text("nothing changed · 1 ahead")
    await expect(bar).to_be_focused()
    await bar.get_by_role("button", name="Push").click()
    await bar.get_by_label("Branch to push to").fill("fix")
    await person.picture("git-push")
    await page.keyboard.press("Enter")
    await expect(bar).to_contain_text("Pushed to fix")
    assert git(place / "app.git", "log", "--format=%s", "-1", "fix") == "From the page"
    for name, width, dark in (("git-dark", 1200, True), ("git-narrow", 390, False)):
        await page.set_viewport_size({"width": width, "height": 850})
        await page.emulate_media(color_scheme="dark" if dark else "light")
        await expect(bar).to_be_visible()
        await person.picture(name)


@needs_axe
async def test_axe_finds_nothing_wrong_in_the_bar(person: Person) -> None:
    bar = bar_of(person)
    await bar.get_by_role("button", name="Push").click()
    for width, dark in ((1200, True), (1200, False), (320, False)):
        await person.page.set_viewport_size({"width": width, "height": 850})
        await person.page.emulate_media(color_scheme="dark" if dark else "light")
        await person.judged()
    await bar.get_by_role("button", name="Cancel").click()
