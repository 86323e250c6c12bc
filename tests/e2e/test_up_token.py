"""The token that `greylag up` makes for itself: who finds it, and who does not."""

import asyncio
import re
import stat
from pathlib import Path

import aiohttp
import pytest
from tests.cli.program import PATIENCE, Done, finish, run, start
from tests.e2e.product import PROJECTS, product, real_goose

from greylag.cluster.local.sandbox import choose_sandbox

_, _, needs_goose = real_goose


async def started(data: Path, verb: str = "up", **settings: str) -> tuple[str, Done]:
    """Start Greylag, ask it for its projects without a token, and end it.

    Returns:
        The status and the page that a browser would see; how it ended, and what it printed.
    """
    words = (verb, "--port", "0", "--data", str(data))
    process = await start(*words, env={"GREYLAG_LOG_LEVEL": "debug", **settings})
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        line = (await process.stdout.readline()).decode()
    address = line.rpartition(" ")[2].strip()
    async with aiohttp.ClientSession(address) as http, http.get(PROJECTS) as answer:
        status = answer.status
    async with (
        aiohttp.ClientSession(address) as http,
        http.get("/", headers={"accept": "text/html"}) as answer,
    ):
        page = await answer.text()
    process.terminate()
    done = await finish(process)
    return f"{status} {page}", Done(done.code, line + done.out, done.err)


@pytest.mark.parametrize("verb", ["up", "serve"])
async def test_it_is_made_once_for_its_owner_and_never_shown(tmp_path: Path, verb: str) -> None:
    (said, first), (_, second) = await started(tmp_path, verb), await started(tmp_path, verb)
    assert said.startswith("401 ")
    file = tmp_path / "token"
    token = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    links = [re.findall(r"/sign-in#token=(\S+)", done.out) for done in (first, second)]
    assert [len(found) for found in links] == [1, 1]
    assert links[0] != links[1]
    for done in (first, second):
        assert done.code == 0
        assert "sign_in_off" not in done.err
        assert "#token" not in done.err
        assert token not in done.out + done.err
    assert await asyncio.to_thread(_named_like_it, tmp_path) == ["token"]


def _named_like_it(folder: Path) -> list[str]:
    return [one.name for one in folder.iterdir() if "token" in one.name]


async def test_a_token_that_was_given_is_not_kept_and_no_link_is_printed(tmp_path: Path) -> None:
    said, done = await started(tmp_path, GREYLAG_TOKEN="a-token-with-many-letters")
    assert said.startswith("401 ")
    assert "#token" not in done.out
    assert not (tmp_path / "token").exists()


async def test_without_a_sign_in_log_page_and_doctor_warn(tmp_path: Path) -> None:
    said, done = await started(tmp_path, GREYLAG_AUTH="none")
    assert said.startswith("200 ")
    assert "Nobody has to sign in" in said
    assert "sign_in_off" in done.err
    assert not (tmp_path / "token").exists()
    async with product(tmp_path / "other", GREYLAG_AUTH="none") as up:
        doctor = await run("doctor", env=up.env)
        assert "Nobody has to sign in" in doctor.out
        assert (await up.call("GET", PROJECTS))[0] == 200


async def test_no_sign_in_is_for_this_machine_alone_and_never_beside_a_token(
    tmp_path: Path,
) -> None:
    words = ("up", "--data", str(tmp_path), "--port", "0")
    opened = await run(*words, "--host", "0.0.0.0", env={"GREYLAG_AUTH": "none"})  # noqa: S104 - refused
    assert (opened.code, "GREYLAG_TOKEN" in opened.err) == (2, True), opened.err
    both = await run(*words, env={"GREYLAG_AUTH": "none", "GREYLAG_TOKEN": "x" * 20})
    assert (both.code, "contradict" in both.err) == (2, True), both.err


async def test_a_token_file_that_others_may_read_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-with-many-letters")
    (tmp_path / "token").chmod(0o644)
    done = await run("up", "--data", str(tmp_path), "--port", "0", env={})
    assert (done.code, "others may read it" in done.err) == (2, True), done.err
    assert "many-letters" not in done.err


@needs_goose
@pytest.mark.skipif(
    choose_sandbox("auto", hidden=(), needed=()).bwrap is None,
    reason="bubblewrap is not installed or not allowed here: the token's hiding is NOT tested",
)
async def test_an_agent_s_tools_find_the_token_nowhere(tmp_path: Path) -> None:
    async with product(tmp_path, GOOSE_MODE="auto") as up:
        token = (up.data / "token").read_text().strip()
        path = await up.project("demo")
        search = (
            f"cat {up.data}/token; ls -a {up.data}; cat ~/.config/greylag/token; env; "
            "cat /proc/*/environ; grep -rs 'token' . | head -c 2000; echo searched"
        )
        events = await up.say(path, f"[[tool {search}]]")
        (told,) = [str(event.content) for event in events if event.type == "tool_response"]
        assert "searched" in told
        assert token not in told
        # Nor is it in what the web has given to the environment.
        for file in (one for one in (up.data / "environments").rglob("*") if one.is_file()):
            assert token.encode() not in file.read_bytes(), file
        environments = [Path("/proc", str(one.pid), "environ") for one in up.processes()]
        assert environments
        assert not [one for one in environments if token.encode() in one.read_bytes()]
        # The same agent, asking the web that it can reach, is nobody.
        ask = f"curl -s -o /dev/null -w 'code=%{{http_code}}' {up.address}{PROJECTS}"
        events = await up.say(path, f"[[tool {ask} || echo none]]")
        (told,) = [str(event.content) for event in events if event.type == "tool_response"]
        assert "code=401" in told or "none" in told
        assert "code=200" not in told
