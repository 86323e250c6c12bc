"""The main path, as the README tells it: by HTTP and by command line, with the real goose."""

import asyncio
import json
import signal
from pathlib import Path

import aiohttp
import pytest
from tests.cli.program import run
from tests.e2e.product import PROJECTS, Product, product, real_goose, text_of, types_of
from tests.ports import free_port

pytestmark = real_goose


async def test_the_main_path_by_http(tmp_path: Path) -> None:
    async with product(tmp_path, GOOSE_MODE="auto") as up:
        path = await up.project("demo", active=False)
        events = await up.say(path, "run: echo kept > kept.txt && cat kept.txt")
        assert events[0].type == "status"
        assert "waking" in events[0].content["message"]
        assert "turn" in types_of(events)
        assert events[-1].type == "complete"
        assert await up.status(path) == "active"
        status, project = await up.call("POST", f"{path}/deactivate")
        assert (status, project["status"], project["endpoint"]) == (200, "inactive", None)
        assert not up.processes()
        told = [event for event in events if event.id is not None]
        assert await up.rest_of(path, told[0].content["turn_id"]) == told  # read asleep
        assert await up.status(path) == "inactive"
        events = await up.say(path, "[[tool cat kept.txt]] [[text still there]]")
        said = next(event.content for event in events if event.type == "tool_response")
        assert said["result"]["Ok"][0]["text"].startswith("kept")
        assert text_of(events) == "still there"
        assert (await up.call("DELETE", path))[0] == 204
        assert not up.processes()
        assert up.folders() == []
        assert (await up.call("GET", path))[0] == 404


async def test_the_main_path_by_command_line(tmp_path: Path) -> None:
    async with product(tmp_path) as up:
        env = up.env
        made = await run("projects", "create", "Notes", "--id", "notes", "--json", env=env)
        assert made.document["project_id"] == "notes", made.err
        said = await run("chat", "notes", "[[text good morning]]", env=env)
        assert (said.code, "good morning" in said.out) == (0, True), said.err
        listed = await run("projects", "list", "--json", env=env)
        assert "active" in listed.out
        assert (await run("deactivate", "notes", env=env)).code == 0
        assert (await run("projects", "delete", "notes", "--yes", env=env)).code == 0
        assert (await up.call("GET", PROJECTS))[1]["projects"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_cleanly_and_the_next_start_finds_environment_and_turn(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with product(tmp_path) as up:
        path = await up.project("demo")
        before = up.processes()
        first = await up.first(path, "message", "[[delay ms=30]] [[chunks n=60 size=5]]")
        opened = asyncio.Event()
        reading = asyncio.create_task(_to_the_end(up, path, opened), name="open stream")
        await opened.wait()
        assert await up.end(number=number) == 0
        await reading
        assert up.processes() >= before
        await up.start()
        assert first.id is not None
        turn, _, _ = first.id.rpartition("-")
        rest = await up.rest_of(path, turn, after=first.id)
        assert text_of(rest).split()[-1] == "0059"
        assert rest[-1].content["stop_reason"] == "end_turn"
        assert up.processes() >= before


async def _to_the_end(up: Product, path: str, opened: asyncio.Event) -> None:
    """Read the activation log, which is then ``opened``, until the server ends it."""
    async with up.signed_in(up.address) as http, http.get(f"{path}/events") as answer:
        opened.set()
        try:
            await answer.read()
        except aiohttp.ClientError:
            return


async def test_what_cannot_start_says_why_and_exits_with_2(tmp_path: Path) -> None:
    async with product(tmp_path) as up:
        data = str(tmp_path / "other")
        words = ("up", "--data", data)
        taken = await run(*words, "--port", str(up.port), env={})
        assert (taken.code, "cannot be used" in taken.err) == (2, True), taken.err
        port = str(free_port())
        open_bind = await run(*words, "--port", port, "--host", "0.0.0.0", env={})  # noqa: S104 - refused
        assert (open_bind.code, "GREYLAG_TOKEN" in open_bind.err) == (2, True), open_bind.err
        wrong = await run(*words, "--port", port, env={"GREYLAG_LEASE_SECONDS": "soon"})
        assert (wrong.code, "GREYLAG_LEASE_SECONDS" in wrong.err) == (2, True), wrong.err
        file = tmp_path / "file"
        file.touch()
        no_folder = await run("up", "--data", str(file / "x"), "--port", port, env={})
        assert (no_folder.code, "GREYLAG_DATA" in no_folder.err) == (2, True), no_folder.err
        for done in (taken, open_bind, wrong, no_folder):
            assert "Traceback" not in done.err


async def test_over_the_wire_only_the_operator_gets_in(tmp_path: Path) -> None:
    token = "a-token-with-many-letters"
    async with product(tmp_path, GREYLAG_TOKEN=token, GREYLAG_BODY_LIMIT="2048") as up:
        assert (await up.call("GET", PROJECTS))[0] == 401
        assert (await up.call("GET", PROJECTS, authorization="Bearer wrong"))[0] == 401
        up.http.headers["authorization"] = f"Bearer {token}"
        assert (await up.call("GET", PROJECTS))[0] == 200
        assert (await up.call("GET", PROJECTS, host="evil.example"))[0] == 403
        new = {"name": "x"}
        status, refused = await up.call("POST", PROJECTS, new, origin="https://evil.example")
        assert (status, refused["code"]) == (403, "forbidden")
        assert (await up.call("POST", PROJECTS, {"name": "x" * 4096}))[0] == 413
        many = {f"x_{number}": "y" for number in range(200)}
        assert (await up.call("GET", PROJECTS, **many))[0] == 431
        assert (await up.call("GET", PROJECTS))[1]["projects"] == []


async def test_no_log_line_holds_a_secret(tmp_path: Path) -> None:
    secrets = {"GREYLAG_TOKEN": "the-token-of-the-operator", "GREYLAG_MODEL_KEY": "sk-very-secret"}
    env = {**secrets, "GREYLAG_MODEL_URL": f"http://127.0.0.1:{free_port()}"}
    async with product(tmp_path, **env) as up:
        up.http.headers["authorization"] = f"Bearer {secrets['GREYLAG_TOKEN']}"
        path = await up.project("demo")
        events = await up.say(path, "[[text hello]]")
        assert events[-2].content["code"] == "model_unavailable"
        kept = [file for file in up.data.rglob("*") if file.is_file()]
        for file in kept:
            held = file.read_bytes()
            assert not [name for name in secrets.values() if name.encode() in held], file
        assert json.dumps(secrets) not in str(events)
