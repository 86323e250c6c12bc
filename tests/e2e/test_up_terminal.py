"""Terminals and commands as people use them: by command line and API, over the whole product."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.cli.program import on_terminal, run, start
from tests.e2e.product import Product, product

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
    assert (one["attached"], one["ended"]) == (0, False)
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


async def test_a_shell_and_commands_from_the_command_line_and_a_page(tmp_path: Path) -> None:
    async with product(tmp_path, **SCRIPTED) as up:
        path = await up.project("demo")
        await shell_survives_its_connections(up, path)
        await a_command_is_as_if_it_ran_here(up)
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
