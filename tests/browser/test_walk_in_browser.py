"""What all of it is for, in one walk: an agent makes a small web application; a person watches it,
reads what changed, runs its tests, opens it, undoes it and takes the files home.
"""

import asyncio
import json
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import expect
from tests.browser.person import Person, at_browser
from tests.browser.whole import has_goose, up
from tests.e2e.on_cluster import greylag
from tests.e2e.product import PATIENCE, Product
from tests.ports import free_port

from greylag.common.token_file import read_token

pytestmark = pytest.mark.slow
PAGE = "<!doctype html>\n<title>Cups</title>\n<h1>Cups of tea</h1>\n"
TESTS = """\
import pathlib
import unittest


class PageTest(unittest.TestCase):
    def test_it_counts_cups(self):
        self.assertIn("Cups of tea", pathlib.Path("index.html").read_text())
"""
ASKED = (
    f"[[call write {json.dumps({'path': 'index.html', 'content': PAGE})}]] "
    f"[[call write {json.dumps({'path': 'test_page.py', 'content': TESTS})}]] "
    "[[tool echo kept notes >> notes.txt]] [[text The page counts **cups of tea**.]]"
)
NOT_FOR_VIEWERS = (
    ("POST", "/messages"),
    ("POST", "/terminals"),
    ("POST", "/deactivate"),
    ("PUT", "/files/content?path=notes.txt"),
    ("DELETE", "/files?path=notes.txt"),
)


@asynccontextmanager
async def on_laptop(folder: Path) -> AsyncIterator[tuple[str, str, str]]:
    """Yield the address, the token and the path of a project that is active, on this machine."""
    async with up(folder / "data", GOOSE_MODE="auto") as whole:
        yield whole.address, whole.token, await whole.project()


@asynccontextmanager
async def in_pod(folder: Path) -> AsyncIterator[tuple[str, str, str]]:
    """Yield the same in a pod of the cluster."""
    async with greylag(folder, GOOSE_MODE="auto") as (product, _):
        yield (
            product.address,
            read_token(product.data / "token") or "",
            await product.project("whole"),
        )


@pytest.mark.goose
@pytest.mark.skipif(not has_goose(), reason="GOOSE WAS NOT TESTED: it is not installed")
@pytest.mark.parametrize("width", [1200, 390], ids=["desk", "phone"])
async def test_a_web_application_is_made_seen_tried_undone_and_taken_home(
    width: int, tmp_path: Path
) -> None:
    async with on_laptop(tmp_path) as place:
        await walk(*place, width=width)


@pytest.mark.cluster
async def test_the_same_in_a_pod_while_a_viewer_follows_it_live_and_changes_nothing(
    tmp_path: Path,
) -> None:
    async with greylag(tmp_path, GOOSE_MODE="auto") as (product, _):
        path = await product.project("whole")
        headers = {"authorization": f"Bearer {await guest_of(product, path)}"}
        token = read_token(product.data / "token") or ""
        async with (
            aiohttp.ClientSession(product.address, headers=headers) as guest,
            asyncio.TaskGroup() as both,
        ):
            following = both.create_task(followed(guest, path, turns=2))
            both.create_task(walk(product.address, token, path, width=1200))
            _, second = await following
            assert "tool_request" in second
            assert '"files":3' in second
            for method, what in NOT_FOR_VIEWERS:
                said = {"message": "Hello"} if what == "/messages" else None
                async with guest.request(method, path + what, json=said) as refused:
                    assert refused.status == 403, what


async def guest_of(product: Product, path: str) -> str:
    """Share the project with somebody who may look at it, and return a token of theirs."""
    await product.call("POST", "/api/users", {"id": "guest", "display_name": "Guest"})
    await product.call("PUT", f"{path}/members/guest", {"role": "viewer"})
    scopes = ["projects:read", "projects:write", "messages", "files"]
    new = {"name": "x", "scopes": scopes, "expires_in_days": 1, "user": "guest"}
    status, made = await product.call("POST", "/api/tokens", new)
    assert status == 201, made
    return str(made["token"])


async def followed(guest: aiohttp.ClientSession, path: str, *, turns: int) -> list[str]:
    """Read so many turns as they come; return the events of each."""
    read: dict[str, str] = {}
    revision = ""
    async with asyncio.timeout(PATIENCE):
        while len(read) < turns:
            about = {"since": revision, "wait": "20"} if revision else {}
            async with guest.get(f"{path}/activity", params=about) as answer:
                activity = await answer.json()
                assert answer.status == 200, activity
            revision = activity["revision"]
            for turn in (one["turn_id"] for one in activity["turns"]):
                if turn not in read:
                    async with guest.get(f"{path}/turns/{turn}/events") as events:
                        read[turn] = await events.text()
    return list(read.values())


async def walk(address: str, token: str, path: str, *, width: int) -> None:
    """Go the whole way."""
    async with at_browser(address, token=token, width=width) as person:
        person.cuts_sockets = True  # of the terminal, at the end
        await person.open_project(path)
        await person.say("[[tool echo older notes > notes.txt]] [[text Noted.]]")
        await person.answered()
        await person.say(ASKED)
        await person.answered()
        await expect(person.page.locator(".answer").last).to_contain_text("cups of tea")
        await expect(person.page.locator(".turn-line").last).to_contain_text("3 files changed")
        await person.page.get_by_role("button", name="Review").last.click()
        await read(person)
        await tried(person)
        await opened(person, phone=width < 900)
        await taken_home(person, {"index.html": PAGE, "test_page.py": TESTS})
        await part(person, "Changes")
        await person.page.locator("#changes").get_by_role("button", name="Undo").first.click()
        asked = person.page.get_by_role("dialog")
        await asked.get_by_role("button", name="Undo", exact=True).click()
        await expect(person.page.locator("#changes").get_by_role("status")).to_contain_text(
            "brought back"
        )
        await part(person, "Files")
        await expect(person.page.locator("#files")).not_to_contain_text("index.html")
        await taken_home(person, {"notes.txt": "older notes\n"})


async def part(person: Person, name: str) -> None:
    """Open a part of the page."""
    await person.page.get_by_role("tab", name=name).click()


async def read(person: Person) -> None:
    """Read what changed."""
    pane = person.page.locator("#changes")
    change = pane.locator(".change", has_text="index.html")
    await change.locator("summary").click()
    await expect(change.locator(".diff-added").last).to_contain_text("Cups of tea")
    older = pane.locator(".change", has_text="notes.txt")
    await older.locator("summary").click()
    await expect(older.locator(".diff-added")).to_contain_text("kept notes")


async def tried(person: Person) -> None:
    """Run its tests, and then itself, in a terminal."""
    await part(person, "Terminal")
    page, rows = person.page, person.page.locator(".xterm-rows")
    await page.get_by_role("button", name="New terminal").click()
    await expect(page.locator("p.terminal-said[role=status]")).to_have_text("")
    await page.keyboard.type("python3 -m unittest -q test_page; echo ended-$?\n")
    await expect(rows).to_contain_text("ended-0")
    await page.keyboard.type(f"python3 -m http.server {free_port()} --bind 127.0.0.1\n")
    await expect(rows).to_contain_text("Serving HTTP")


async def opened(person: Person, *, phone: bool) -> None:
    """Open it in the page, and in a tab of its own."""
    await part(person, "Preview")
    inside = person.page.frame_locator("iframe.preview-frame")
    await expect(inside.locator("h1")).to_have_text("Cups of tea")
    await person.picture(f"walk-preview-{'phone' if phone else 'desk'}")
    async with person.page.expect_popup() as tab:
        await person.page.get_by_role("link", name="Open in a new tab").click()
    await expect((await tab.value).locator("h1")).to_have_text("Cups of tea")
    await (await tab.value).close()


async def taken_home(person: Person, files: dict[str, str]) -> None:
    """Download the workspace, and find these files in it."""
    await part(person, "Files")
    page = person.page
    await page.get_by_label("More for this folder").click()
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download as an archive").click()
    with zipfile.ZipFile(await (await download.value).path()) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        assert {name: archive.read(names[name]).decode() for name in files} == files
