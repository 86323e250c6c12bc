"""The README's picture, of which `docs/picture.png` is a copy: the real goose and its work."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import expect
from tests.browser.person import at_browser
from tests.browser.whole import has_goose, up

from greylag.agentd.model import scripted

pytestmark = [
    pytest.mark.goose,
    pytest.mark.slow,
    pytest.mark.skipif(not has_goose(), reason="GOOSE WAS NOT TESTED: it is not installed"),
]
ASKED = "Greet people by the time of day, and try it."
BEFORE = """\
def greeting(name):
    return f"Hello, {name}!"


if __name__ == "__main__":
    print(greeting("Ann"))
"""
AFTER = """\
from datetime import datetime


def greeting(name, hour=None):
    hour = datetime.now().hour if hour is None else hour
    part = "morning" if hour < 12 else "evening"
    return f"Good {part}, {name}!"


if __name__ == "__main__":
    print(greeting("Ann", hour=9))
"""
SCRIPT = (
    "[[tool cat greet.py]] "
    f"[[call write {json.dumps({'path': 'greet.py', 'content': AFTER})}]] "
    "[[tool python3 greet.py]] "
    "[[text `greeting` now takes the hour, by default the time of day. I tried it at nine: "
    "**Good morning, Ann!**]]"
)


@asynccontextmanager
async def provider() -> AsyncIterator[str]:
    """Run a provider that plays a script for what a person would write."""

    async def played(request: web.Request) -> web.StreamResponse:
        script = json.dumps(SCRIPT)[1:-1].encode()
        told = (await request.read()).replace(ASKED.encode(), script)
        async with http.request(request.method, model.make_url(request.path), data=told) as answer:
            response = web.StreamResponse(headers={"content-type": answer.content_type})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response

    application = web.Application(client_max_size=scripted.BODY_LIMIT)
    application.router.add_route("*", "/{path:.*}", played)
    async with (
        aiohttp.ClientSession() as http,
        TestServer(scripted.app()) as model,
        TestServer(application) as server,
    ):
        yield str(server.make_url("")).rstrip("/")


async def test_the_readme_s_picture_is_taken_of_a_real_turn(tmp_path: Path) -> None:
    async with provider() as model:
        settings = {"GREYLAG_MODEL_URL": model, "GREYLAG_MODEL": "a-model", "GOOSE_MODE": "auto"}
        async with up(tmp_path / "data", GREYLAG_MODEL_KEY="key", **settings) as whole:
            path = await whole.project()
            async with whole.http.patch(path, json={"name": "Greeter"}) as renamed:
                assert renamed.status == 200
            where = {"path": "greet.py"}
            content = f"{path}/files/content"
            async with whole.http.put(content, params=where, data=BEFORE.encode()) as put:
                assert put.status == 200
            async with at_browser(whole.address, token=whole.token, width=1280) as person:
                await person.open_project(path)
                await person.say(ASKED)
                await expect(person.page.locator(".prose")).to_contain_text("Good morning, Ann!")
                await person.page.get_by_role("button", name="Review").click()
                await expect(person.page.locator("#changes")).to_contain_text("greet.py")
                added = person.page.locator("#changes").get_by_text("Good {part}")
                await expect(added).to_be_visible()
                await expect(person.page.locator("#project-model")).to_have_text("a-model")
                await person.page.mouse.move(0, 0)
                await person.picture("readme")
