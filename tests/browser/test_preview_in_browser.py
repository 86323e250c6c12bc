"""The pane of previews, and previews at their own origin, over `greylag up`."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Page, Route, expect
from tests.browser.person import AXE, Person, at_browser
from tests.browser.whole import Whole, up

pytestmark = pytest.mark.slow

API = "/api/users/me/projects/whole"
SERVER = Path(__file__).with_name("preview_app.py")
HOSTILE = b"""<!doctype html><html lang=en><title>A page</title><link rel=stylesheet href=page.css>
<h1>Written by an agent</h1><img src="../pixel.svg" alt="A square"><p id=said></p>
<script src=page.js></script></html>"""
FILES = {
    "site/page.html": HOSTILE,
    "site/page.css": b"h1 { color: rgb(0, 128, 0); }",
    "site/page.js": b"""
      document.querySelector("#said").textContent = [origin, document.cookie || "no cookie",
        (() => { try { return top.document.title; } catch { return "refused"; } })()].join(" ");""",
    "pixel.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40"/>',
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with up(tmp_path_factory.mktemp("preview") / "data", GREYLAG_GOOSE="scripted") as one:
        path = await one.project()
        files = {**FILES, "app.py": await asyncio.to_thread(SERVER.read_bytes)}
        for name, content in files.items():
            where = {"path": name}
            async with one.http.put(f"{path}/files/content", params=where, data=content) as put:
                assert put.status == 200
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browsing(whole: Whole) -> AsyncIterator[Person]:
    async with at_browser(whole.address, token=whole.token) as one:
        one.meets_hostile_pages = True
        await one.page.emulate_media(reduced_motion="reduce")
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def person(browsing: Person) -> Person:
    await browsing.page.set_viewport_size({"width": 1200, "height": 850})
    await browsing.open_project(API)
    return browsing


@asynccontextmanager
async def serving(whole: Whole, port: int = 0) -> AsyncIterator[int]:
    """Run the application in the environment; give its port."""
    async with whole.http.ws_connect(f"{API}/commands") as command:
        argv = [sys.executable, "app.py", whole.address, str(port)]
        await command.send_json({"run": {"argv": argv}})
        came = b""
        async with asyncio.timeout(30):
            while b"\n" not in came:
                came += (await command.receive_bytes())[1:]
        yield int(came)


async def pane(person: Person) -> Any:
    await person.page.get_by_role("tab", name="Preview").click()
    return person.page.locator("#preview")


async def tried(place: Any) -> dict[str, str]:
    """Return what the application could do, by its own word, once it has tried all."""
    await expect(place.locator("#tried")).to_contain_text("session")
    found: dict[str, str] = json.loads(await place.locator("#tried").inner_text())
    return found


WIDTHS = ((False, 1200), (True, 390))
ALL_WIDTHS = (*WIDTHS, (True, 1920), (False, 320))


async def looks(person: Person, name: str, widths: Sequence[tuple[bool, int]] = WIDTHS) -> None:
    """Judge and keep the page in both colours, dark or not, and widths."""
    page = person.page
    for dark, width in widths:
        await page.emulate_media(color_scheme="dark" if dark else "light")
        await page.set_viewport_size({"width": width, "height": 844})
        if width < 900:
            await page.get_by_role("tab", name="Preview").click()
        await person.picture(f"preview-{name}-{'dark' if dark else 'light'}-{width}")
        if AXE.exists():
            await person.judged()
    await page.set_viewport_size({"width": 1200, "height": 850})


async def test_an_html_file_is_shown_without_a_server_with_what_it_names(
    whole: Whole, person: Person
) -> None:
    page = person.page
    await page.get_by_role("tab", name="Files").click()
    for name in ("site", "page.html"):
        await page.locator(".files-name", has_text=name).click()
    await page.get_by_role("button", name="Preview", exact=True).click()
    inside = page.frame_locator("iframe.preview-frame")
    own = f"http://files--whole--me.localhost:{whole.port}"
    await expect(inside.locator("#said")).to_have_text(f"{own} no cookie refused")
    await expect(inside.locator("h1")).to_have_css("color", "rgb(0, 128, 0)")
    assert await inside.locator("img").evaluate("one => one.naturalWidth") == 40
    await looks(person, "file")
    changed = HOSTILE.replace(b"Written", b"Written again")
    where = {"path": "site/page.html"}
    async with whole.http.put(f"{API}/files/content", params=where, data=changed) as put:
        assert put.status == 200
    await page.get_by_role("button", name="Reload").click()
    await expect(inside.locator("h1")).to_have_text("Written again by an agent")
    async with page.expect_popup() as tab:
        await page.get_by_role("link", name="Open in a new tab").click()
    opened = await tab.value
    await expect(opened.locator("h1")).to_have_text("Written again by an agent")
    assert opened.url == f"{own}/site/page.html"


# After it, so that the browser has a cookie of the files, too, when an application asks for them.
async def test_a_server_appears_is_shown_in_a_frame_and_can_do_nothing_here(
    whole: Whole, person: Person
) -> None:
    page, shown = person.page, await pane(person)
    await expect(shown).to_contain_text("Nothing is served yet")
    await looks(person, "empty")
    async with serving(whole) as port:
        inside = page.frame_locator("iframe.preview-frame")
        await expect(inside.locator("#news")).to_have_text("hot reload works")
        said = await tried(inside)
        # Its own cookie of the server's is kept in the frame; ours is not its to see.
        assert json.loads(said.pop("session")) == {"session": "own"}
        assert said.pop("write") in {"opaque", "refused"}
        assert said.pop("cookie") == "none"
        assert set(said.values()) <= {"refused", "none"}, said
        assert page.url.endswith("/users/me/projects/whole")
        await expect(page.locator(".badge")).to_have_text("Active")
        await looks(person, "shown")
        async with page.expect_popup() as tab:
            await shown.get_by_role("link", name="Open in a new tab").click()
        opened = await tab.value
        assert opened.url.startswith(f"http://{port}--whole--me.localhost:{whole.port}/")
        said = await tried(opened)
        assert said["opener"] == "none"
        assert json.loads(said["session"]) == {"session": "own", "script": "1"}
        await opened.close()
        assert (await _framed_elsewhere(page, whole, port)).startswith("chrome-error:")
    await expect(shown).to_contain_text(f"Nothing listens on port {port} any more")
    async with serving(whole, port):
        await expect(inside.locator("#news")).to_have_text("hot reload works")


async def _framed_elsewhere(page: Page, whole: Whole, port: int) -> str:
    """Return the address that another site's page gets when it frames a preview."""
    async with whole.http.post(f"{API}/ports/{port}/preview", json={}) as made:
        link = (await made.json())["url"]
    other = await page.context.new_page()
    await other.set_content(f"<iframe src='{link}'></iframe>")
    await other.wait_for_function("() => frames.length === 1")
    framed = other.frames[1]
    await framed.wait_for_url(re.compile("^(http|chrome-error)"))
    address = framed.url
    await other.close()
    return address


async def test_a_link_is_shared_and_ended(whole: Whole, person: Person) -> None:
    page, shown = person.page, await pane(person)
    async with serving(whole), at_browser(whole.address, token=None) as guest:
        guest.meets_hostile_pages = True
        odd = {"path": "odd-ü\\xFF#.html"}  # a name that is no UTF-8
        async with whole.http.put(f"{API}/files/content", params=odd, data=b"") as put:
            assert put.status == 200
        async with whole.http.post(
            f"{API}/files/preview", json=odd | {"share_seconds": 60}
        ) as made:
            assert made.status == 201
        await shown.get_by_text("Shared links", exact=True).click()
        await expect(shown.locator(".preview-share bdi")).to_have_text("odd-ü\\xFF#.html")
        await shown.get_by_role("button", name="End").press("Enter")
        await expect(shown.get_by_text("Nothing of this project is shared")).to_be_focused()
        await shown.get_by_role("button", name="1 hour").click()
        link = await shown.locator(".preview-share input").input_value()
        await looks(person, "shared", ALL_WIDTHS)
        await guest.page.goto(link)
        await expect(guest.page.locator("#news")).to_have_text("hot reload works")
        await shown.get_by_role("button", name="End").click()
        await expect(shown).to_contain_text("Nothing of this project is shared")
        # What is open there ends by itself; then nothing of it is answered any more.
        await expect(guest.page.locator("#news")).to_have_text("cut")
        await guest.page.goto(link)
        await expect(guest.page.locator("body")).to_contain_text("not shared any more")
    await page.keyboard.press("Escape")


async def test_a_project_that_sleeps_says_so(whole: Whole, person: Person) -> None:
    tabs = await person.page.locator("#tabs [role=tab]").all_inner_texts()
    await person.page.keyboard.press(f"Alt+{tabs[1:].index('Preview') + 1}")
    shown = person.page.locator("#preview")
    await expect(shown).to_be_visible()
    async with whole.http.post(f"{API}/deactivate") as answer:
        assert answer.status == 200
    await expect(shown).to_contain_text("The project is inactive")
    await looks(person, "sleeping")
    await shown.get_by_role("button", name="Activate it").click()
    await expect(shown).to_contain_text("Nothing is served yet")


async def test_a_project_that_failed_offers_to_wake_it(person: Person) -> None:
    tabs = await person.page.locator("#tabs [role=tab]").all_inner_texts()
    await person.page.keyboard.press(f"Alt+{tabs[1:].index('Preview') + 1}")
    shown = person.page.locator("#preview")
    await expect(shown).to_contain_text("Nothing is served yet")
    await person.page.evaluate(
        """() => {
            document.querySelector("#project-header").dataset.status = "error";
            document.dispatchEvent(new Event("greylag:changed"));
        }"""
    )
    await expect(shown.get_by_role("button", name="Activate it")).to_be_visible()


async def test_a_pane_that_loads_while_the_project_wakes_shows_it_awake(person: Person) -> None:
    page = person.page
    stands = """(status) => {
        document.querySelector("#project-header").dataset.status = status;
        document.dispatchEvent(new Event("greylag:changed"));
    }"""
    come = asyncio.Event()

    async def late(route: Route) -> None:
        await come.wait()
        await route.continue_()

    await page.route("**/preview_view-*.js", late)
    await page.get_by_role("tab", name="Files").click()  # which stands there from now on
    await page.reload()
    await page.wait_for_selector("#composer[data-ready]")
    await page.evaluate(stands, "activating")
    async with page.expect_request("**/preview_view-*.js"):
        shown = await pane(person)
    await page.evaluate(stands, "active")
    come.set()
    await expect(shown).to_contain_text("Nothing is served yet")
    await page.unroute("**/preview_view-*.js")
