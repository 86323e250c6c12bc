"""The program itself: start, help, version, and every exit code that scripts rely on."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from tests.cli.program import Cli, finish, run, start
from tests.cli.stack import Stack, running_stack

from greylag.cli.access import DEFAULT_SERVER
from greylag.cli.main import VERBS, greylag
from greylag.config import DEFAULT_PORT, Settings
from greylag.domain.project import ProjectRef

TOKEN = "a-token-for-this-test"
HEAVY = {"aiohttp", "rich", "pydantic", "uvicorn", "fastapi", "greylag.config"}


@pytest.fixture
async def stuck_stack(settings: Settings) -> AsyncIterator[Stack]:
    """A server whose environments never become ready."""
    async with running_stack(settings, auto=False) as running:
        yield running


@pytest.mark.parametrize("words", [["version"], ["--help"], ["--version"]])
def test_a_light_verb_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from greylag.cli.main import main; main(sys.argv[1:]);"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("name", list(VERBS))
def test_each_verb_is_there_with_help(name: str) -> None:
    with greylag.make_context("greylag", [name]) as context:
        command = greylag.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert command.help


def test_the_default_server_is_where_up_listens() -> None:
    assert f"http://127.0.0.1:{DEFAULT_PORT}" == DEFAULT_SERVER


async def test_version_as_json_is_one_document() -> None:
    done = await run("version", "--json", env={})
    assert done.code == 0
    assert set(done.document) == {"greylag", "python"}


async def test_completion_offers_the_verbs() -> None:
    env = {"_GREYLAG_COMPLETE": "bash_complete", "COMP_WORDS": "greylag de", "COMP_CWORD": "1"}
    done = await run(env=env)
    assert done.out.split() == ["plain,deactivate"]


async def test_exit_0_when_it_worked(cli: Cli) -> None:
    done = await cli("users", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.document == {"users": [{"id": "ann", "display_name": "Ann"}]}


async def test_exit_1_with_detail_hint_and_code_when_the_platform_says_no(cli: Cli) -> None:
    done = await cli("users", "--json", "--user", "bob")
    assert done.code == 0
    done = await cli("projects", "list", "--json", "--user", "bob")
    assert (done.code, done.out) == (1, "")
    assert "[user_not_found]" in done.err
    assert "hint: " in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["users", "--nonsense"],
        ["users", "--server", "ftp://somewhere"],
        ["projects", "list", "--status", "asleep"],
        ["projects", "list", "--user", "a/b"],
        ["projects", "create", "x", "--metadata", "{"],
        ["projects", "create", "x", "--metadata", "[]"],
        ["activate", "x", "--timeout", "0"],
        ["activate", "x", "--timeout", "5", "--no-wait"],
        ["sessions", "x", "--delete"],
    ],
)
async def test_exit_2_for_wrong_usage(cli: Cli, words: list[str]) -> None:
    done = await cli(*words)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err


async def test_exit_3_when_nothing_answers() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        done = await run("users", "--server", f"http://127.0.0.1:{bound.getsockname()[1]}", env={})
    assert (done.code, done.out) == (3, "")
    assert "greylag up" in done.err


async def test_exit_3_when_something_else_answers() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n<a/>")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        done = await run("users", env={"GREYLAG_SERVER": f"http://127.0.0.1:{port}"})
    assert done.code == 3
    assert "not as Greylag does" in done.err


async def test_exit_4_when_the_time_is_over_and_it_goes_on(stuck_stack: Stack) -> None:
    env = {"GREYLAG_SERVER": stuck_stack.address}
    await run("projects", "create", "Slow", "--id", "slow", env=env)
    done = await run("activate", "slow", "--timeout", "1", "--json", env=env)
    assert (done.code, done.out) == (4, "")
    assert "[wait_timeout]" in done.err


@pytest.mark.parametrize("token", ["", "a-wrong-token-indeed"])
async def test_exit_5_without_the_right_token(token: str) -> None:
    settings = Settings(users="ann", token=TOKEN, _env_file=None)
    async with running_stack(settings) as stack:
        env = {"GREYLAG_SERVER": stack.address}
        refused = await run("users", env={**env, "GREYLAG_TOKEN": token})
        allowed = await run("users", env={**env, "GREYLAG_TOKEN": TOKEN})
    assert (refused.code, refused.out) == (5, "")
    assert "GREYLAG_TOKEN" in refused.err
    assert allowed.code == 0
    assert TOKEN not in refused.err + allowed.err


async def test_exit_130_on_ctrl_c(stuck_stack: Stack) -> None:
    env = {"GREYLAG_SERVER": stuck_stack.address}
    await run("projects", "create", "Slow", "--id", "slow", env=env)
    process = await start("activate", "slow", env=env)
    assert process.stderr is not None
    # The log is shown: it waits for the environment now.
    await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert (await finish(process)).code == 130


async def test_exit_141_when_the_reader_of_its_output_has_gone(cli: Cli, stack: Stack) -> None:
    await cli("projects", "create", "x" * 200, "--id", "x")
    process = await start("logs", "x", "--follow", env={"GREYLAG_SERVER": stack.address})
    assert process.stdout is not None
    project = ProjectRef("ann", "x")
    stack.cluster.say(project, b"one line")
    await process.stdout.readline()
    process.stdout._transport.close()  # type: ignore[attr-defined] # closes the pipe's read end
    while process.returncode is None:
        stack.cluster.say(project, b"more")
        await asyncio.sleep(0)
    assert process.returncode == 141


async def test_several_users_must_be_told_apart() -> None:
    settings = Settings(users="ann,bob", _env_file=None)
    async with running_stack(settings) as stack:
        env = {"GREYLAG_SERVER": stack.address}
        unsaid = await run("projects", "list", env=env)
        said = await run("projects", "list", "--json", env={**env, "GREYLAG_USER": "bob"})
    assert unsaid.code == 2
    assert "ann, bob" in unsaid.err
    assert json.loads(said.out) == {"projects": []}
