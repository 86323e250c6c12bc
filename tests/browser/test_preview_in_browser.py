"""A preview at its own origin, in a tab and in a frame of the dashboard's."""

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import expect
from tests.browser.person import at_browser
from tests.browser.whole import Whole, up

pytestmark = pytest.mark.slow
PAGE = b"""<!doctype html><link rel=icon href=data:,><h1>Made by an agent</h1><p id=said></p>
<script>
document.cookie = "own=1";
fetch("/data.txt").then(got => got.text()).then(text => {
  document.querySelector("#said").textContent = text + document.cookie;
});
</script>"""


async def _served(whole: Whole, path: str) -> int:
    for name, content in (("index.html", PAGE), ("data.txt", b"fetched ")):
        async with whole.http.put(f"{path}/files/content?path={name}", data=content) as put:
            assert put.status == 200
    async with asyncio.timeout(30):
        while True:
            async with whole.http.get(f"{path}/ports") as answer:
                ports = (await answer.json())["ports"]
            if ports:
                return int(ports[0]["port"])
            await asyncio.sleep(0.1)


async def _link(whole: Whole, path: str, port: int) -> str:
    async with whole.http.post(f"{path}/ports/{port}/preview", json={}) as made:
        return str((await made.json())["url"])


async def test_a_preview_is_shown_in_a_tab_and_in_a_frame(tmp_path: Path) -> None:
    async with up(tmp_path / "data", GREYLAG_GOOSE="scripted") as whole:
        path = await whole.project()
        async with whole.http.ws_connect(f"{path}/commands") as command:
            argv = ["python3", "-m", "http.server", "0", "--bind", "127.0.0.1"]
            await command.send_json({"run": {"argv": argv}})
            port = await _served(whole, path)
            async with at_browser(whole.address, token=whole.token) as person:
                page = person.page
                await page.goto(whole.address)
                frame = await _link(whole, path, port)
                await page.evaluate(
                    "url => document.body.append(Object.assign("
                    "document.createElement('iframe'), {src: url}))",
                    frame,
                )
                inside = page.frame_locator("iframe")
                # The application's own cookies are another site's there, which browsers leave out.
                await expect(inside.locator("#said")).to_contain_text("fetched")
                await page.goto(await _link(whole, path, port))
                await expect(page.locator("#said")).to_have_text("fetched own=1")
                assert page.url == f"http://{port}--whole--me.localhost:{whole.port}/"
                await page.reload()
                await expect(page.locator("#said")).to_have_text("fetched own=1")
