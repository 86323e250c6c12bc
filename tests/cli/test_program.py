"""The program itself: start, help, version, and every exit code that scripts rely on."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import pytest
from tests.cli.program import GREYLAG, PATIENCE, Cli, call, environment, finish, run, start
from tests.cli.stack import Stack, running_stack
from tests.cluster.kubernetes.kubeconfigs import certificate
from tests.store import mongo_servers

from greylag.cli import access
from greylag.cli.access import DEFAULT_SERVER
from greylag.cli.errors import CliError, Problem, refusal
from greylag.cli.main import VERBS, as_text, greylag
from greylag.config import DEFAULT_PORT, Settings
from greylag.domain.errors import InvalidRequestError
from greylag.domain.project import ProjectRef

TOKEN = "a-token-for-this-test"
HEAVY = {"aiohttp", "rich", "pydantic", "uvicorn", "fastapi", "greylag.config"}
# What a client of the API has no use for where nobody sits at a terminal.
HEAVY_FOR_CLIENTS = HEAVY - {"aiohttp"}


@pytest.fixture
async def stuck_stack(settings: Settings) -> AsyncIterator[Stack]:
    """A server whose environments never become ready."""
    async with running_stack(settings, auto=False) as running:
        yield running


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["version"], HEAVY),
        (["--help"], HEAVY),
        (["--version"], HEAVY),
        (["users", "--server", "http://127.0.0.1:1"], HEAVY_FOR_CLIENTS),
    ],
)
def test_a_verb_imports_only_what_it_needs(words: list[str], heavy: set[str]) -> None:
    code = (
        "import sys; from greylag.cli.main import main; main(sys.argv[1:]);"
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip().endswith("[]")


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["up"], "greylag.programs.up"),
        (["serve"], "greylag.programs.serve"),
        (["worker"], "greylag.worker_program.work"),
        (["agentd"], "greylag.agentd.main._serve"),
    ],
)
def test_no_collection_of_a_running_program_goes_through_what_it_has_imported(
    words: list[str], place: str, tmp_path: Path
) -> None:
    code = (
        "import gc, sys; from unittest.mock import patch; from greylag.cli.main import main\n"
        "async def program(*_):\n print(gc.get_freeze_count() > len(gc.get_objects()))\n"
        f"with patch({place!r}, program): main(sys.argv[1:])"
    )
    token = "a-token-of-an-agent-that-is-long-enough"
    settings = {
        "GREYLAG_DATA": str(tmp_path / "data"),
        "GREYLAG_PORT": "0",
        "GREYLAG_AGENT_FOLDER": str(tmp_path / "environment"),
        "GREYLAG_AGENT_TOKEN": token,
        "GOOSE_API_PORT": "0",
    }
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", code, *words],
        env=environment(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr


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


async def test_exit_0_when_it_worked(program: Cli) -> None:
    done = await program("users", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.document == {"users": [{"id": "ann", "display_name": "Ann"}]}


async def test_exit_1_with_detail_hint_and_code_when_the_platform_says_no(program: Cli) -> None:
    done = await program("projects", "list", "--json", "--user", "bob")
    assert (done.code, done.out) == (1, "")
    assert "[user_not_found]" in done.err
    assert "hint: `greylag users`" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["users", "--nonsense"],
        ["users", "--server", "ftp://somewhere"],
        ["users", "--server", "http://127.0.0.1:99999"],
        ["users", "--server", "http://[::1"],
        ["users", "--server", "http://ann:password@127.0.0.1"],
        ["--server", "http://127.0.0.1", "users"],
        ["projects", "list", "--status", "asleep"],
        ["projects", "list", "--user", "a/b"],
        ["projects", "create", " "],
        ["projects", "create", "x", "--id", "a/b"],
        ["projects", "create", "x", "--metadata", "{"],
        ["projects", "create", "x", "--metadata", "[]"],
        ["activate", "x", "--timeout", "0"],
        ["activate", "x", "--timeout", "5", "--no-wait"],
        ["sessions", "x", "--delete"],
    ],
)
async def test_exit_2_for_wrong_usage(words: list[str]) -> None:
    done = await call(*words, env={})
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert "hint: " in done.err
    assert "password@" not in done.err


async def test_a_wrong_verb_is_told_with_the_one_that_looks_like_it() -> None:
    done = await run("activat", env={})
    assert done.code == 2
    assert "'activate'" in done.err
    assert "hint: `greylag --help` tells more." in done.err


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
async def test_closed_standard_streams_do_no_harm(env: dict[str, str], closed: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", f'exec "$@" {closed}', "sh", *GREYLAG, "users", "--json",
        env=environment(env), stdin=PIPE, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    done = await finish(process)
    assert (done.code, done.err) == (0, "")
    assert done.out == "" if ">&- 2" in closed or closed == ">&-" else done.document["users"]


@pytest.mark.parametrize(
    "words",
    ["users", "version", "--help", "users --help", "events talk", "events talk -f", "audit export"],
)
@pytest.mark.usefixtures("project")
async def test_a_full_disk_is_told_in_a_sentence(env: dict[str, str], words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", 'exec "$@" >/dev/full', "sh", *GREYLAG, *words.split(),
        env=environment(env), stdin=PIPE, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    done = await finish(process)
    assert (done.code, done.err) == (
        1,
        "error: The output cannot be written: No space left on device.\n",
    )


async def test_a_server_goes_on_where_its_address_cannot_be_printed(tmp_path: Path) -> None:
    server = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", 'exec "$@" >/dev/full', "sh", *GREYLAG, "up", "--port", "0",
        "--data", str(tmp_path), env=environment({}), cwd=tmp_path, stderr=PIPE,
    )  # fmt: skip
    assert server.stderr is not None
    async with asyncio.timeout(PATIENCE):
        while b"not_announced" not in (line := await server.stderr.readline()):
            assert line, "it has ended"
    assert "No space left on device" in line.decode()
    # What is written there later, as the copy of the audit trail, is to be told when it is lost.
    written_to = Path(f"/proc/{server.pid}/fd/1").readlink()  # noqa: ASYNC240 - a moment
    assert written_to == Path("/dev/full")
    server.send_signal(signal.SIGTERM)
    await server.communicate()
    assert server.returncode == 0


async def test_a_store_that_cannot_be_used_at_a_start_leads_to_doctor() -> None:
    env = {"MONGODB_URI": mongo_servers.NOBODY, "GREYLAG_MONGODB_TIMEOUT": "0.1"}
    done = await call("up", "--port", "0", env=env)
    assert done.code == 2
    assert "hint: `greylag doctor`, started as this was" in done.err


@pytest.mark.parametrize("given", ["30s", "31d", "soon"])
async def test_how_long_a_preview_is_shared_is_checked_before_the_server_is_asked(
    given: str,
) -> None:
    done = await call("preview", "demo", "8000", "--share", given, env={})
    assert done.code == 2
    assert "1m to 30d" in done.err or "no time such as" in done.err


def test_a_hint_of_its_own_stays_and_what_is_said_of_all_is_put_for_the_shell() -> None:
    general = refusal(Problem(422, "invalid_request", "It is wrong.", InvalidRequestError.hint))
    own = refusal(Problem(422, "invalid_request", "It is wrong.", "Do this."))
    assert ("--help" in general.hint, own.hint) == (True, "Do this.")
    field = refusal(Problem(422, "invalid_request", "Whose?", "Name a user in `user`."))
    assert field.hint == "Name one with --user."


def test_arguments_that_the_locale_cannot_read_are_read_as_utf_8() -> None:
    assert as_text([os.fsdecode("Grüße".encode()), "plain\n"]) == ["Grüße", "plain\n"]
    assert as_text(["\udcff"]) == ["\N{REPLACEMENT CHARACTER}"]


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


@pytest.mark.parametrize("command", ["users", "projects list", "whoami", "doctor", "tokens list"])
@pytest.mark.parametrize("body", [b'{"status": "ok"}', b"[]", b"5", b""])
async def test_exit_3_when_another_program_answers_in_json(command: str, body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head % len(body) + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        done = await call(*command.split(), env={"GREYLAG_SERVER": f"http://127.0.0.1:{port}"})
    assert done.code == (3 if command != "doctor" else done.code)
    assert "not as Greylag does" in done.err + done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("head", "hint"),
    [
        (b"301 Moved\r\nlocation: https://example.org/", "leads to https://example.org/;"),
        (b"502 Bad Gateway", "try again"),
        (b"200 OK", "Check the address"),
    ],
)
async def test_what_answers_in_place_of_the_server_is_told_with_what_to_do(
    head: bytes, hint: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: 4\r\n\r\n<a/>" % head)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        done = await call("users", env={"GREYLAG_SERVER": f"http://127.0.0.1:{port}"})
    assert (done.code, hint in done.err) == (3, True)


async def test_an_address_with_a_path_too_many_is_told_so(env: dict[str, str]) -> None:
    done = await call("users", "--server", f"{env['GREYLAG_SERVER']}/api", env=env)
    assert (done.code, "Check the path of --server" in done.err) == (1, True)


async def test_a_proxy_that_lets_no_websocket_through_is_told_of(env: dict[str, str]) -> None:
    await call("projects", "create", "Notes", "--id", "notes", env=env)
    server = urlsplit(env["GREYLAG_SERVER"])

    async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *headers = (await reader.readuntil(b"\r\n\r\n")).rstrip().split(b"\r\n")
        kept = [one for one in headers if not one.lower().startswith((b"upgrade:", b"connection:"))]
        answer, up = await asyncio.open_connection(server.hostname, server.port)
        up.write(b"\r\n".join([first, *kept, b"connection: close\r\n\r\n"]))
        writer.write(await answer.read())
        up.close()
        writer.close()

    async with await asyncio.start_server(hand_on, "127.0.0.1", 0) as proxy:
        at = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        done = await call("exec", "notes", "--", "true", env={**env, "GREYLAG_SERVER": at})
    assert (done.code, "must let WebSockets through" in done.err) == (1, True), done.err


async def test_a_refusal_that_comes_in_pieces_is_read_whole() -> None:
    refusal = b'{"title": "No", "code": "user_not_found", "detail": "There is nobody."}'
    head = b"HTTP/1.1 404 Not Found\r\ncontent-length: %d\r\n\r\n" % len(refusal)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in head + refusal:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        done = await call("users", env={"GREYLAG_SERVER": f"http://127.0.0.1:{port}"})
    assert (done.code, "There is nobody. [user_not_found]" in done.err) == (1, True)


async def test_what_is_wrong_with_tls_or_a_proxy_is_said(tmp_path: Path) -> None:
    certificate(tmp_path, "-addext", "subjectAltName=DNS:localhost")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "crt.pem", tmp_path / "key.pem")

    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with (
        await asyncio.start_server(refuse, "127.0.0.1", 0, ssl=tls) as untrusted,
        await asyncio.start_server(refuse, "127.0.0.1", 0) as plain,
    ):
        ports = [one.sockets[0].getsockname()[1] for one in (untrusted, plain)]
        said = [
            await call("users", env={"GREYLAG_SERVER": f"https://localhost:{port}"})
            for port in ports
        ]
    assert [one.code for one in said] == [3, 3]
    assert "no TLS with https://localhost" in said[0].err
    assert "self-signed certificate" in said[0].err
    assert "SSL_CERT_FILE" in said[1].err
    env = {"GREYLAG_SERVER": "http://greylag.test", "HTTP_PROXY": "http://me:secret@127.0.0.1:9"}
    away = await call("users", env=env)
    assert "The proxy http://127.0.0.1:9 does not lead to http://greylag.test." in away.err
    assert "secret" not in away.err


async def test_exit_4_when_the_time_is_over_and_it_goes_on(stuck_stack: Stack) -> None:
    env = stuck_stack.env
    await call("projects", "create", "Slow", "--id", "slow", env=env)
    done = await call("activate", "slow", "--timeout", "1", "--json", env=env)
    assert (done.code, done.out) == (4, "")
    assert "[wait_timeout]" in done.err


@pytest.mark.parametrize("token", ["", "a-wrong-token-indeed"])
async def test_exit_5_without_the_right_token(token: str) -> None:
    settings = Settings(users="ann", token=TOKEN, _env_file=None)
    async with running_stack(settings) as stack:
        env = stack.env
        refused = await call("users", env={**env, "GREYLAG_TOKEN": token})
        allowed = await call("users", env={**env, "GREYLAG_TOKEN": TOKEN})
    assert (refused.code, refused.out) == (5, "")
    assert "GREYLAG_TOKEN" in refused.err
    assert allowed.code == 0
    assert TOKEN not in refused.err + allowed.err


async def test_the_token_is_found_in_the_data_folder_then_where_the_person_keeps_it(
    stack: Stack, tmp_path: Path
) -> None:
    own = tmp_path / ".config/greylag/token"
    own.parent.mkdir(parents=True)
    own.write_text("a-token-of-another-server\n")
    server = {"GREYLAG_SERVER": stack.address, "HOME": str(tmp_path)}
    elsewhere = {**server, "GREYLAG_DATA": str(tmp_path)}
    assert (await call("users", env={**server, "GREYLAG_DATA": str(stack.data)})).code == 0
    assert (await call("users", "--data", str(stack.data), env=elsewhere)).code == 0
    refused = await call("users", env=elsewhere)
    assert (refused.code, "--data" in refused.err) == (5, True)
    own.write_text(f"{stack.token}\n")
    assert (await call("users", env=elsewhere)).code == 0
    wrong = {**elsewhere, "GREYLAG_TOKEN": "a-wrong-token-indeed"}
    assert (await call("users", env=wrong)).code == 5


async def test_a_data_folder_s_token_goes_to_no_other_machine(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str | None] = []

    def client(_server: str, token: str | None) -> NoReturn:
        given.append(token)
        raise CliError("nothing is asked")

    monkeypatch.setattr(access, "ApiClient", client)
    for server in ("http://192.0.2.1", "https://greylag.example", stack.address):
        await call("users", env={**stack.env, "GREYLAG_SERVER": server, "HOME": str(stack.data)})
    assert given == [None, None, stack.token]


async def test_a_file_that_is_no_token_is_told_without_its_content(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("something else")
    done = await call("users", env={"GREYLAG_DATA": str(tmp_path)})
    assert (done.code, str(tmp_path / "token") in done.err) == (2, True)
    assert "something" not in done.err


async def test_exit_130_on_ctrl_c(stuck_stack: Stack) -> None:
    env = stuck_stack.env
    await call("projects", "create", "Slow", "--id", "slow", env=env)
    process = await start("activate", "slow", env=env)
    assert process.stderr is not None
    # The log is shown: it waits for the environment now.
    await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert (await finish(process)).code == 130


async def test_exit_141_when_the_reader_of_its_output_has_gone(cli: Cli, stack: Stack) -> None:
    await cli("projects", "create", "x" * 200, "--id", "x")
    process = await start("logs", "x", "--follow", env=stack.env)
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
        env = stack.env
        unsaid = await call("projects", "list", env=env)
        said = await call("projects", "list", "--json", env={**env, "GREYLAG_USER": "bob"})
    assert unsaid.code == 2
    assert "ann, bob" in unsaid.err
    assert json.loads(said.out) == {"projects": []}
