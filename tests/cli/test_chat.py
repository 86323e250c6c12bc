"""`greylag chat`: what is printed where, questions, Ctrl-C, and dropped connections."""

import itertools
import json
import signal
from collections.abc import Iterator

import pytest
from tests.cli.program import Cli, finish, on_terminal, run, start
from tests.cli.proxy import CuttingProxy
from tests.cli.stack import Stack

from greylag.ports.agent import AgentAddress

HOSTILE = "\x1b]0;owned\x07 \x1b[2J \x9b1m \u202e \x00 end"


@pytest.fixture
async def project(cli: Cli) -> str:
    """An active project."""
    await cli("projects", "create", "Talk", "--id", "talk")
    await cli("activate", "talk")
    return "talk"


async def test_the_answer_alone_is_on_stdout(cli: Cli, project: str) -> None:
    done = await cli("chat", project, "good morning")
    assert (done.code, done.out) == (0, "You said: good morning\n")
    assert "session: " in done.err


async def test_a_message_may_come_by_pipe(cli: Cli, project: str) -> None:
    done = await cli("chat", project, stdin="Grüße\n".encode())
    assert done.out == "You said: Grüße\n\n"[: len(done.out)]
    assert done.out.startswith("You said: Grüße\n")


async def test_an_empty_message_is_wrong_usage(cli: Cli, project: str) -> None:
    done = await cli("chat", project, stdin=b" \n")
    assert done.code == 2


async def test_a_sleeping_environment_is_woken_and_says_so(cli: Cli) -> None:
    await cli("projects", "create", "Sleepy", "--id", "sleepy")
    done = await cli("chat", "sleepy", "hello")
    assert (done.code, done.out) == (0, "You said: hello\n")
    assert "waking" in done.err


async def test_a_session_is_gone_on_with(cli: Cli, project: str) -> None:
    first = await cli("chat", project, "one", "--json")
    session = first.lines[0]["content"]["session_id"]
    await cli("chat", project, "two", "--session", session)
    read = await cli("sessions", project, session, "--json")
    assert [message["content"] for message in read.document["messages"]] == [
        "one",
        "You said: one",
        "two",
        "You said: two",
    ]
    listed = await cli("sessions", project, "--json")
    assert [one["session_id"] for one in listed.document["sessions"]] == [session]
    assert (await cli("sessions", project, session, "--delete", "--yes")).code == 0
    assert (await cli("sessions", project, "--json")).document == {"sessions": []}


async def test_json_is_one_event_a_line_and_nothing_else(cli: Cli, project: str) -> None:
    done = await cli("chat", project, "a b", "--json")
    types = [event["type"] for event in done.lines]
    assert types[0] == "turn"
    assert types[-1] == "complete"
    assert set(types[1:-1]) == {"message"}
    assert done.err == ""


async def test_hostile_output_cannot_steer_the_terminal(
    cli: Cli, env: dict[str, str], project: str
) -> None:
    for mode in ([], ["--json"]):
        done = await cli("chat", project, *mode, stdin=f"fail: {HOSTILE}".encode())
        printed = done.out + done.err
        assert not set(printed) & set("\x1b\x07\x9b\u202e\x00")
    async with on_terminal("chat", project, HOSTILE.replace("\x00", ""), env=env) as terminal:
        await terminal.until("end")
        assert await terminal.end() == 0
        assert b"\x1b]0" not in terminal.raw
        assert b"\x1b[2J" not in terminal.raw


async def test_a_failed_turn_is_exit_code_1(cli: Cli, project: str) -> None:
    done = await cli("chat", project, "fail: no such model")
    assert done.code == 1
    assert "error: no such model [model_failed]" in done.err


async def test_a_tool_is_declined_where_nobody_can_be_asked(cli: Cli, project: str) -> None:
    done = await cli("chat", project, "run: rm -rf /")
    assert (done.code, done.out) == (0, "You declined.\n")
    assert "Declined without asking: shell" in done.err


async def test_tools_can_be_allowed_beforehand(cli: Cli, project: str) -> None:
    done = await cli("chat", project, "run: ls", "--allow-tools")
    assert (done.code, done.out) == (0, "It ran.\n")
    assert "> shell ls" in done.err
    assert "ok: done" in done.err


@pytest.mark.parametrize(
    ("answer", "outcome"), [("y\n", "It ran."), ("n\n", "You declined."), ("\n", "You declined.")]
)
async def test_a_terminal_is_asked_before_a_tool_runs(
    env: dict[str, str], project: str, answer: str, outcome: str
) -> None:
    async with on_terminal("chat", project, "run: make clean", env=env) as terminal:
        await terminal.until('"command": "make clean"')
        await terminal.until("Allow it once? [y/N]")
        terminal.type(answer)
        await terminal.until(outcome)
        assert await terminal.end() == 0


async def test_a_question_answered_elsewhere_is_dropped(
    env: dict[str, str], project: str, stack: Stack
) -> None:
    async with on_terminal("chat", project, "run: make", env=env) as terminal:
        await terminal.until("Allow it once? [y/N]")
        ((url, here),) = stack.agents._environments.items()
        (run,) = here.runs.values()
        assert run.confirmation is not None
        at = AgentAddress(url, "")
        await stack.agents.confirm(at, run.turn.turn_id, run.confirmation, "allow_once")
        await terminal.until("It ran.")
        assert await terminal.end() == 0


async def test_ctrl_c_cancels_the_turn(env: dict[str, str], project: str, stack: Stack) -> None:
    process = await start("chat", project, "wait: for ever", "--json", env=env)
    assert process.stdout is not None
    assert json.loads(await process.stdout.readline())["type"] == "turn"
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert done.code == 130
    assert done.lines[-1]["content"]["stop_reason"] == "cancelled"
    (here,) = stack.agents._environments.values()
    assert [run.turn.status for run in here.runs.values()] == ["cancelled"]


async def test_a_conversation_goes_on_in_one_session_until_ctrl_d(
    env: dict[str, str], project: str, cli: Cli
) -> None:
    async with on_terminal("chat", project, env=env) as terminal:
        await terminal.until("you> ")
        terminal.type("one\n")
        await terminal.until("You said: one")
        await terminal.until("you> ")
        terminal.type("run: for ever\n")
        await terminal.until("Allow it once? [y/N]")
        terminal.type("\x03")
        await terminal.until("Cancelling")
        await terminal.until("you> ")
        terminal.type("two\n")
        await terminal.until("You said: two")
        await terminal.until("you> ")
        terminal.type("\x04")
        assert await terminal.end() == 0
    listed = await cli("sessions", project, "--json")
    assert len(listed.document["sessions"]) == 1


async def test_ctrl_c_at_the_prompt_leaves(env: dict[str, str], project: str) -> None:
    async with on_terminal("chat", project, env=env) as terminal:
        await terminal.until("you> ")
        terminal.type("\x03")
        assert await terminal.end() == 130


@pytest.mark.parametrize("frame", range(6))
async def test_an_answer_cut_once_at_any_frame_is_whole(
    env: dict[str, str], project: str, frame: int
) -> None:
    """Frame 0 is the turn's own: before it the message is sent again and is the same turn."""
    done, proxy = await chat_through_cuts(env, project, iter([frame]))
    assert proxy.streams == 2
    assert done == expected_ids(done)


async def test_an_answer_cut_at_every_frame_is_whole(env: dict[str, str], project: str) -> None:
    done, proxy = await chat_through_cuts(
        env, project, itertools.chain([0, 0], itertools.repeat(1))
    )
    assert proxy.streams > 6
    assert done == expected_ids(done)


async def chat_through_cuts(
    env: dict[str, str], project: str, cuts: Iterator[int]
) -> tuple[list[str], CuttingProxy]:
    async with CuttingProxy(env["GREYLAG_SERVER"], cuts).running() as proxy:
        through = {"GREYLAG_SERVER": proxy.address}
        done = await run("chat", project, "a b c", "--json", env=through)
    assert done.code == 0, done.err
    words = "".join(
        event["content"]["content"] for event in done.lines if event["type"] == "message"
    )
    assert words == "You said: a b c"
    return [event["id"] for event in done.lines], proxy


def expected_ids(ids: list[str]) -> list[str]:
    turn = ids[0].rpartition("-")[0]
    return [f"{turn}-{number}" for number in range(7)]
