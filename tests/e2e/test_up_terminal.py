"""Terminals and commands as people use them: by command line and API, over the whole product."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.cli.program import on_terminal, run, start
from tests.e2e.product import Product, product
from yarl import URL

pytestmark = pytest.mark.slow
SCRIPTED = {"GREYLAG_GOOSE": "scripted", "GREYLAG_MODEL_KEY": "the-key-of-the-provider"}
SCRIPTED["GREYLAG_MODEL_URL"] = "http://127.0.0.1:9"


async def listed(up: Product, path: str) -> list[dict[str, Any]]:
    status, found = await up.call("GET", f"{path}/terminals")
    assert status == 200, found
    terminals: list[dict[str, Any]] = found["terminals"]
    return terminals


async def shell_survives_its_connections(up: Product, path: str) -> None:
    async with on_terminal("shell", "demo", env=up.env) as terminal:
        terminal.type("stty size; echo $TERM in ${PWD##*/}; echo $((6 * 7)) 'of' mine\r")
        await terminal.until("xterm-256color in workspace")
        await terminal.until("42 of mine")
        terminal.type("~.")
        await terminal.until("The shell runs on")
        assert await terminal.end() == 0
    (one,) = await listed(up, path)
    async with asyncio.timeout(20):
        while one["attached"]:  # the client may be gone before its connection is
            await asyncio.sleep(0.05)
            (one,) = await listed(up, path)
    assert one["ended"] is False
    async with up.http.ws_connect(f"{path}/terminals/{one['terminal_id']}") as page:
        replay = json.loads(await page.receive_str())["attached"]["replay"]
        said = b""
        while len(said) < replay:
            said += await page.receive_bytes()
        assert b"42 of mine" in said
        await page.send_str(json.dumps({"resize": {"rows": 33, "columns": 99}}))
        await page.send_bytes(b"stty size\r")
        while b"33 99" not in said:
            said += await page.receive_bytes()
    async with on_terminal("shell", "demo", "--terminal", one["terminal_id"], env=up.env) as again:
        await again.until("33 99")
        again.type("exit 7\r")
        assert await again.end() == 7
    assert (await listed(up, path))[0]["exit_code"] == 7
    gone = await run("shell", "demo", "--list", "--json", env=up.env)
    assert gone.document["terminals"][0]["ended"] is True


async def a_command_is_as_if_it_ran_here(up: Product) -> None:
    script = "cat; echo wrong >&2; env; cat /proc/$PPID/environ; exit 3"
    done = await run("exec", "demo", "--", "sh", "-c", script, env=up.env, stdin=b"given\n")
    assert done.code == 3, done.err
    assert done.out.startswith("given\n")
    assert done.err.startswith("wrong\n")
    for secret in ("the-key-of-the-provider", up.http.headers["authorization"][7:], "API_KEY"):
        assert secret not in done.out
    big = await run("exec", "demo", "--", "wc", "-c", env=up.env, stdin=b"x" * 1_000_000)
    assert big.out.split() == ["1000000"], big.err
    killed = await run("exec", "demo", "--", "sh", "-c", "kill -9 $$", env=up.env)
    assert killed.code == 128 + 9
    missing = await run("exec", "demo", "--", "/no/such", env=up.env)
    assert (missing.code, "[not_started]" in missing.err) == (1, True), missing.err
    async with on_terminal("exec", "-t", "demo", "--", "sh", "-c", "tty", env=up.env) as terminal:
        await terminal.until("/dev/pts/")
        assert await terminal.end() == 0


async def opened(link: str) -> tuple[int, bytes]:
    """Open a link as a browser that finds the name here; return what it led to."""
    url = URL(link, encoded=True)
    headers = {"host": url.authority}
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(headers=headers, cookie_jar=jar) as http:
        here = url.with_host("127.0.0.1")
        async with http.get(here, allow_redirects=False) as first:
            if first.status != 303:
                return first.status, b""
            where = here.join(URL(first.headers["location"], encoded=True))
        cookies = {name: one.value for name, one in first.cookies.items()}
        async with http.get(where, cookies=cookies) as answer:
            return answer.status, await answer.read()


async def previews_are_opened_shared_and_ended(up: Product) -> None:
    """What is served is found, a link to it and to a file made, opened, shared and ended."""
    page = b"<!doctype html>page"
    put = await run("files", "put", "demo", "-", "a b/page.html", env=up.env, stdin=page)
    assert put.code == 0, put.err
    argv = ["python3", "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    serving = await start("exec", "demo", "--", *argv, env=up.env)
    assert serving.stdout is not None
    said = await serving.stdout.readline()
    port = int(said.split(b"port ")[1].split()[0])
    found = await run("ports", "demo", "--json", env=up.env)
    assert port in [one["port"] for one in found.document["ports"]]

    listing = await run("preview", "demo", str(port), env=up.env)
    status, content = await opened(listing.out.strip())
    assert (status, b"a%20b" in content) == (200, True), listing.err
    file = await run("preview", "demo", "a b/page.html", "--open", env={**up.env, **_BROWSER})
    link, told = file.out.split()
    assert link == told
    assert await opened(link) == (200, page)
    assert await opened(link) == (401, b"")
    shared = await run(
        "preview", "demo", str(port), "--path", "/a%20b/", "--share", "1h", env=up.env
    )
    (link,) = shared.out.split()
    for _ in range(2):
        assert b"page.html" in (await opened(link))[1]
    (share,) = (await run("shares", "demo", "--json", env=up.env)).document["shares"]
    assert (share["port"], share["path"], share["url"]) == (port, "/a%20b/", link)
    ended = await run("shares", "demo", "--end", share["share"], env=up.env)
    assert (ended.code, ended.err.strip()) == (0, "It opens nothing any more.")
    assert await opened(link) == (401, b"")
    for words in (("--share", "soon"), ("--share", "0h"), ("--path", "/x", "a.html")):
        assert (await run("preview", "demo", "80", *words, env=up.env)).code == 2
    serving.terminate()
    await serving.communicate()


_BROWSER = {"BROWSER": "echo %s"}


async def test_a_shell_and_commands_from_the_command_line_and_a_page(tmp_path: Path) -> None:
    async with product(tmp_path, **SCRIPTED) as up:
        path = await up.project("demo")
        await shell_survives_its_connections(up, path)
        await a_command_is_as_if_it_ran_here(up)
        await previews_are_opened_shared_and_ended(up)
        process = await start("exec", "demo", "--", "sh", "-c", "echo on; sleep 600", env=up.env)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"on\n"
        _, made = await up.call("POST", f"{path}/terminals", {"rows": 24, "columns": 80})
        async with up.http.ws_connect(f"{path}/terminals/{made['terminal_id']}") as page:
            await page.receive_str()
            status, _ = await up.call("POST", f"{path}/deactivate")
            assert status == 200
            while not page.closed:
                await page.receive(timeout=20)
            assert page.close_code in {1000, 1001, 1011, 1012}
        async with asyncio.timeout(30):
            await process.communicate()
        assert process.returncode not in {0, None}
        asleep = await run("exec", "demo", "--", "ls", env=up.env)
        assert (asleep.code, "[environment_not_active]" in asleep.err) == (1, True), asleep.err
        with pytest.raises(aiohttp.WSServerHandshakeError) as foreign:
            await up.http.ws_connect(f"{path}/commands", headers={"origin": "http://a.example"})
        assert foreign.value.status == 403


async def test_switched_off_the_command_line_says_so(tmp_path: Path) -> None:
    async with product(tmp_path, **SCRIPTED, GREYLAG_TERMINAL="off") as up:
        await up.project("demo", active=False)
        refused = await run("exec", "demo", "--", "ls", env=up.env)
        assert refused.code == 1
        assert refused.err.startswith(
            "error: Terminals and commands are switched off here. [terminal_off]\n"
        )
