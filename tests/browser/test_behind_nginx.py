"""Below a path of a real nginx, which leaves the path on or takes it off."""

import asyncio
import io
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import expect
from tests.browser.person import Person, at_browser
from tests.browser.whole import Whole, up
from tests.cli.program import call, run
from tests.ports import free_port

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
ROOT = "/tools/greylag"
PROJECTS = f"{ROOT}/api/users/me/projects"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="NO PROXY WAS TESTED: install nginx"),
]

# As docs/proxies.md says it, but for its folders.
_CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" close; }}
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  proxy_http_version 1.1;
  proxy_set_header Host $http_host;
  proxy_set_header X-Forwarded-For $remote_addr;
  proxy_set_header X-Forwarded-Proto $scheme;
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection $connection_upgrade;
  proxy_read_timeout 1h;
  client_max_body_size 0;
  proxy_request_buffering off;
  server {{
    listen 127.0.0.1:{port};
    location {root}/ {{ proxy_pass http://127.0.0.1:{upstream}{rest}; }}
  }}
  server {{
    listen 127.0.0.1:{port};
    server_name *.localhost;
    location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
  }}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, upstream: int, rest: str) -> AsyncIterator[str]:
    """Run nginx before ``upstream`` and give its address; ``rest``: what takes the path's place."""
    port = free_port()
    _configure(folder, port=port, upstream=upstream, rest=rest)
    process = await asyncio.create_subprocess_exec(
        *(NGINX or "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"),
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(30):
            while not await _answers(port):
                assert process.returncode is None, await process.stderr.read()  # type: ignore[union-attr] # it is a pipe
                await asyncio.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _configure(folder: Path, **values: int | str) -> None:
    folder.mkdir()
    written = _CONFIGURATION.format(folder=folder, root=ROOT, **values)
    (folder / "nginx.conf").write_text(written)


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest_asyncio.fixture(loop_scope="session")
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    named = {"GREYLAG_ROOT_PATH": f"{ROOT}/", "GREYLAG_GOOSE": "scripted"}
    async with up(tmp_path / "data", **named) as one:
        assert one.address.endswith(ROOT)
        yield one


async def test_all_is_found_below_the_path(whole: Whole, tmp_path: Path) -> None:
    for by_link, rest in ((True, ""), (False, "/")):
        async with nginx(tmp_path / f"nginx-{by_link}", whole.port, rest) as base:
            await _programs_find_their_way(whole, base)
            if not by_link:
                await _the_command_line_finds_its_way(base, tmp_path / "data")
            async with at_browser(base, token=None) as person:
                await _a_person_finds_their_way(person, whole, base, by_link=by_link)


async def _programs_find_their_way(whole: Whole, base: str) -> None:
    headers = whole.http.headers
    async with aiohttp.ClientSession(base, headers=headers) as http:
        async with http.get(f"{ROOT}/openapi.json") as answer:
            document = await answer.json()
        assert document["servers"] == [{"url": ROOT}]
        assert "/api/users" in document["paths"]
        async with http.get(f"{ROOT}/api/nothing") as answer:
            assert f"GET {ROOT}/openapi.json" in (await answer.json())["hint"]
        new = {"name": "One", "project_id": "one"}
        async with http.post(PROJECTS, json=new) as answer:
            assert (answer.status, answer.headers["location"]) == (201, f"{PROJECTS}/one")
        async with http.delete(f"{PROJECTS}/one") as answer:
            assert answer.status == 204


async def _the_command_line_finds_its_way(base: str, data: Path) -> None:
    environment = {"GREYLAG_SERVER": f"{base}{ROOT}/", "GREYLAG_DATA": str(data)}
    new = await call("projects", "create", "One", "--id", "one", env=environment)
    assert new.code == 0, new.err
    said = await run("chat", "one", "hello", env=environment)
    assert (said.code, bool(said.out)) == (0, True), said.err
    ran = await run("exec", "one", "--", "cat", env=environment, stdin=b"through")
    assert (ran.code, ran.out) == (0, "through"), ran.err
    assert (await call("projects", "delete", "one", "--yes", env=environment)).code == 0


async def _a_person_finds_their_way(
    person: Person, whole: Whole, base: str, *, by_link: bool
) -> None:
    page, home = person.page, f"{base}{ROOT}"
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    page.on("websocket", lambda one: asked.append(one.url.replace("ws://", "http://")))
    await page.goto(f"{home}/users/me/new-project")
    await expect(page.locator("h1")).to_have_text("Sign in")
    if by_link:
        await page.goto(whole.link.replace(whole.address, home))
        await page.wait_for_url(f"{home}/users/me")
        await page.click("#rail-new")
    else:
        await page.fill("#token", whole.token)
        await page.press("#token", "Enter")
        await page.wait_for_url(f"{home}/users/me/new-project")
    await page.fill("#field-name", "Hello")
    await page.press("#field-name", "Enter")
    await person.say("hello")
    await person.answered()
    await expect(page.locator("#log")).to_contain_text("The agent is ready.")
    await page.reload()
    await _what_came_later_is_found(person, whole, base)
    await page.click("text=All projects")
    await page.wait_for_url(f"{home}/users/me")
    await page.locator("a[id^=delete-]").click()
    await page.locator("#dialog-body button").click()
    await expect(page.locator("#projects")).to_contain_text("What shall the agent do?")
    assert {cookie.get("path") for cookie in await page.context.cookies(f"{home}/")} == {ROOT}
    await page.click("#user summary")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.locator("h1")).to_have_text("Sign in")
    ours = (f"{home}/", "http://files--", "data:")
    assert [one for one in asked if not one.startswith(ours)] == []


async def _what_came_later_is_found(person: Person, whole: Whole, base: str) -> None:
    """The terminal's WebSocket, a file's preview at its own host, the audit trail."""
    page, project = person.page, urlsplit(person.page.url).path
    api = project.replace("/users/", "/api/users/", 1)
    content, page_of = (
        {"path": "a.html"},
        b"<!doctype html><title>A</title><h1>Below</h1>" + b" " * 2**21,
    )
    async with (
        aiohttp.ClientSession(base, headers=whole.http.headers) as http,
        http.put(f"{api}/files/content", params=content, data=io.BytesIO(page_of)) as put,
    ):
        assert put.status == 200
    await page.get_by_role("tab", name="Terminal").click()
    await page.get_by_role("button", name="New terminal").click()
    await expect(page.locator("p.terminal-said[role=status]")).to_have_text("")
    await page.keyboard.type("echo $((6*7))\n")
    await expect(page.locator(".xterm-rows")).to_contain_text("42")
    await page.get_by_role("tab", name="Files").click()
    await page.locator(".files-name", has_text="a.html").click()
    await page.get_by_role("button", name="Preview", exact=True).click()
    inside = page.frame_locator("iframe.preview-frame")
    await expect(inside.locator("h1")).to_have_text("Below")
    await page.goto(f"{base}{ROOT}/audit")
    await expect(page.locator("main")).to_contain_text("projects.create")
    await page.goto(project)
