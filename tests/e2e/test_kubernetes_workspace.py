"""A workspace in a pod: terminal, commands, changes, undo and preview, as on a laptop."""

import asyncio
from pathlib import Path

import pytest
from tests.cli.program import on_terminal, run
from tests.e2e.on_cluster import greylag
from tests.e2e.product import PATIENCE, Product, text_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
# The API server's proxy, by which it comes, makes such links lead elsewhere.
PAGE = '<a href="/second">second</a>'
SERVE = ["python3", "-m", "http.server", "0", "--bind", "127.0.0.1"]


async def test_what_an_agent_made_in_a_pod_is_run_previewed_and_undone(tmp_path: Path) -> None:
    async with greylag(tmp_path, GOOSE_MODE="auto") as (up, _):
        path = await up.project("demo")
        await up.say(path, "[[tool echo first > index.html]]")
        said = await up.say(path, f"[[tool echo '{PAGE}' > index.html; mkdir -m 700 new]]")
        turn = next(event.content["turn_id"] for event in said if event.type == "turn")
        async with on_terminal("shell", "demo", env=up.env) as terminal:
            terminal.type("cat index.html; id -u; exit 7\r")
            await terminal.until("second")
            await terminal.until("10001")
            assert await terminal.end() == 7
        done = await run("exec", "demo", "--", "sh", "-c", "cat; exit 3", env=up.env, stdin=b"in\n")
        assert (done.code, done.out) == (3, "in\n"), done.err
        async with up.http.ws_connect(f"{path}/commands") as command:
            await command.send_json({"run": {"argv": SERVE}})
            assert await previewed(up, path) == f"{PAGE}\n"
        shown = await run("changes", "demo", turn, "--json", env=up.env)
        assert [one["path"] for one in shown.document["changes"]] == ["index.html", "new"]
        undone = await run("undo", "demo", turn, "--yes", "--json", env=up.env)
        assert undone.document["kept"] == [], undone.err
        await up.call("POST", f"{path}/deactivate")
        said = await up.say(path, "[[tool cat index.html; ls]] [[text as before]]")
        (result,) = [event.content for event in said if event.type == "tool_response"]
        assert result["result"]["Ok"][0]["text"].split()[:2] == ["first", "index.html"]
        assert text_of(said) == "as before"


async def previewed(up: Product, path: str) -> str:
    """Open what the one port serves by a link, as a browser does; return the page."""
    async with asyncio.timeout(PATIENCE):
        while not (ports := (await up.call("GET", f"{path}/ports"))[1]["ports"]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    status, link = await up.call("POST", f"{path}/ports/{ports[0]['port']}/preview", {})
    assert status == 201, link
    local = link["url"].partition("/")[2].partition("/")[2].partition("/")
    host, way = local[0], f"/{local[2]}"
    async with up.http.get(way, headers={"host": host}, allow_redirects=False) as opened:
        assert opened.status == 303, await opened.text()
        cookie = opened.headers["set-cookie"].partition(";")[0]
        on = opened.headers["location"].removeprefix(f"http://{host}")
    async with up.http.get(on, headers={"host": host, "cookie": cookie}) as page:
        assert page.status == 200, await page.text()
        assert page.headers.getall("content-type") == ["text/html"]
        return await page.text()
