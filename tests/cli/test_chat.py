"""`greylag chat`: what is printed where, questions, Ctrl-C, and dropped connections."""

import asyncio
import itertools
import json
import re
import signal
from dataclasses import asdict

import pytest
from tests.cli.program import Cli, finish, on_terminal, run, start
from tests.cli.proxy import CuttingProxy
from tests.cli.stack import Stack
from tests.fakes.agent import EXTENSIONS

from greylag.cli.chat import TurnStream
from greylag.cli.chat_view import TextView
from greylag.cli.client import ApiClient, OutgoingMessage, ProjectPlace
from greylag.cli.output import Output
from greylag.cli.transport import StreamEvent
from greylag.ports import AgentAddress

HOSTILE = "\x1b]0;owned\x07 \x1b[2J \x9b1m \u202e \x00 end"


async def test_the_answer_alone_is_on_stdout(program: Cli, project: str) -> None:
    done = await program("chat", project, "good morning")
    assert (done.code, done.out) == (0, "You said: good morning\n")
    assert "session: " in done.err


async def test_a_message_may_come_by_pipe(program: Cli, project: str) -> None:
    done = await program("chat", project, stdin="Grüße\n".encode())
    assert done.out == "You said: Grüße\n\n"[: len(done.out)]
    assert done.out.startswith("You said: Grüße\n")


async def test_an_empty_message_is_wrong_usage(program: Cli, project: str) -> None:
    done = await program("chat", project, stdin=b" \n")
    assert done.code == 2


async def test_a_sleeping_environment_is_woken_and_says_so(cli: Cli, program: Cli) -> None:
    await cli("projects", "create", "Sleepy", "--id", "sleepy")
    done = await program("chat", "sleepy", "hello")
    assert (done.code, done.out) == (0, "You said: hello\n")
    assert "waking" in done.err


async def test_a_session_is_gone_on_with(cli: Cli, program: Cli, project: str) -> None:
    first = await program("chat", project, "one", "--json")
    session = first.lines[0]["content"]["session_id"]
    await program("chat", project, "two", "--session", session)
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


async def test_extensions_are_listed_with_how_each_stands(cli: Cli, project: str) -> None:
    await cli("activate", project)
    listed = await cli("extensions", project)
    assert [line.split()[:3] for line in listed.out.splitlines()[1:]] == [
        ["broken", "stdio", "failed"],
        ["developer", "platform", "not"],
        ["memory", "builtin", "off"],
    ]
    assert "It said: missing API key" in listed.out
    read = await cli("extensions", project, "--json")
    assert read.document["extensions"] == [asdict(one) for one in EXTENSIONS.extensions]


async def test_the_newest_session_or_the_beginning_of_an_id_will_do(
    cli: Cli, program: Cli, project: str
) -> None:
    first = await program("chat", project, "one", "--json")
    session = first.lines[0]["content"]["session_id"]
    again = await program("chat", project, "two", "--session", session[:8], "--json")
    newest = await program("chat", project, "three", "--continue", "--json")
    assert again.lines[0]["content"]["session_id"] == session
    assert newest.lines[0]["content"]["session_id"] == session
    read = await cli("sessions", project, session[:8], "--json")
    assert len(read.document["messages"]) == 6
    unknown = await program("chat", project, "four", "--session", "zz")
    assert unknown.code == 1
    assert "No session of the project begins with" in unknown.err
    assert (await program("chat", project, "x", "--continue", "--session", session)).code == 2


async def test_continuing_wakes_a_sleeping_environment(cli: Cli, program: Cli) -> None:
    await cli("projects", "create", "Resting", "--id", "resting")
    done = await program("chat", "resting", "hello", "--continue")
    assert (done.code, done.out) == (0, "You said: hello\n"), done.err
    assert "Waking" in done.err


async def test_sessions_are_read_while_it_sleeps_and_told_to_be_a_copy(
    cli: Cli, program: Cli
) -> None:
    await cli("projects", "create", "Dreaming", "--id", "dreaming")
    first = await program("chat", "dreaming", "hello", "--json")
    session = next(one["content"]["session_id"] for one in first.lines if one["type"] == "turn")
    await cli("deactivate", "dreaming")
    listed = await cli("sessions", "dreaming", "--json")
    assert [one["session_id"] for one in listed.document["sessions"]] == [session]
    assert listed.document["kept_at"].endswith("Z")
    read = await cli("sessions", "dreaming", session[:8])
    assert "You said: hello" in read.out
    assert "The environment is not active: this is a copy as of 20" in read.err
    assert (await cli("projects", "show", "dreaming", "--json")).document["status"] == "inactive"
    deleted = await cli("sessions", "dreaming", session[:8], "--delete", "--yes")
    assert (deleted.code, "Waking" in deleted.err) == (0, True)
    assert (await cli("sessions", "dreaming", "--json")).document == {"sessions": []}


async def test_a_session_that_is_read_tells_which_turn_failed_and_why(
    cli: Cli, program: Cli
) -> None:
    await cli("projects", "create", "Failing", "--id", "failing")
    await program("chat", "failing", "fail: no\tmodel")
    await program("chat", "failing", "hello", "--continue")
    session = (await cli("sessions", "failing", "--json")).document["sessions"][0]["session_id"]
    awake = (await cli("sessions", "failing", session)).out
    assert awake.startswith("User:\nfail: no\tmodel\n\nerror: no")
    assert awake.count("error: ") == 1
    await cli("deactivate", "failing")
    assert (await cli("sessions", "failing", session)).out == awake


async def test_a_session_that_is_read_says_that_a_turn_was_still_without_an_answer(
    env: dict[str, str], cli: Cli
) -> None:
    await cli("projects", "create", "Cut off", "--id", "cut-off")
    await cli("activate", "cut-off")
    process = await start("chat", "cut-off", "wait: long", "--json", env=env)
    assert process.stdout is not None
    assert json.loads(await process.stdout.readline())["type"] == "turn"
    process.kill()
    await finish(process)
    await cli("deactivate", "cut-off")
    session = (await cli("sessions", "cut-off", "--json")).document["sessions"][0]["session_id"]
    assert "No answer had come by then." in (await cli("sessions", "cut-off", session)).err


async def test_a_pasted_text_is_one_message(env: dict[str, str], project: str) -> None:
    async with on_terminal("chat", project, env=env) as terminal:
        await terminal.until("you> ")
        terminal.type("\x1b[200~first line\nsecond line\x1b[201~")
        terminal.type("\n")
        await terminal.until("You said: first line\nsecond line")
        await terminal.until("you> ")
        terminal.type("third\nfourth\n")
        await terminal.until("You said: third\nfourth")
        await terminal.until("you> ")
        terminal.type("\x04")
        assert await terminal.end() == 0


async def test_silence_is_shown_with_its_seconds_and_leaves_nothing(
    env: dict[str, str], project: str
) -> None:
    async with on_terminal("chat", project, "wait: x", env=env) as terminal:
        for _ in range(2):
            await terminal.until("waiting for the model, ")
            await terminal.until(" s")
        # One that is late, as on a busy machine, shows a later second.
        first, second = re.findall(r"waiting for the model, (\d+) s", terminal.text)[:2]
        assert 3 <= int(first) < int(second)
        terminal.type("\x03")
        assert await terminal.end() == 130
        assert terminal.raw.rfind(b"\x1b7\x1b[K\x1b8") > terminal.raw.rfind(b" s\x1b[0m")


async def test_silence_says_nothing_in_a_pipe(env: dict[str, str], project: str) -> None:
    process = await start("chat", project, "wait: x", env=env)
    await asyncio.sleep(4.5)
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert "\x1b" not in done.err
    assert " s\n" not in done.err


LINES = "\n".join(f"line {number}" for number in range(8))


@pytest.mark.parametrize("result", [{"Ok": [{"type": "text", "text": LINES}]}, {"Err": LINES}])
def test_a_long_result_is_shortened_and_shown_whole_when_asked_for(
    result: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    event = StreamEvent("1", "tool_response", {"result": result, "is_error": "Err" in result})
    TextView(Output(as_json=False)).show(event)
    assert "line 0 (+7 more lines) - `--full` shows all" in capsys.readouterr().err
    TextView(Output(as_json=False), full=True).show(event)
    assert LINES in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "image", "data": "aGk=", "mimeType": "image/png"}, "[image/png, 3 bytes]"),
        (
            {"type": "resource_link", "uri": "file:///x\x1b[2J"},
            "[resource_link, file:///x␛[2J]",
        ),
        ({"type": "resource", "resource": {"uri": "u", "text": "inside"}}, "inside"),
        ({"type": "diff", "path": "a.py", "newText": "x"}, "[changes a.py]"),
    ],
)
def test_a_result_that_is_no_text_is_named(
    part: dict[str, object], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for result in ({"Ok": [part]}, {"Err": "no luck", "content": [part]}):
        content = {"result": result, "is_error": "Err" in result}
        TextView(Output(as_json=False), full=True).show(StreamEvent("1", "tool_response", content))
        assert told in capsys.readouterr().err


async def test_json_is_one_event_a_line_and_nothing_else(program: Cli, project: str) -> None:
    done = await program("chat", project, "a b", "--json")
    types = [event["type"] for event in done.lines]
    assert types[0] == "turn"
    assert types[-1] == "complete"
    assert set(types[1:-1]) == {"message"}
    assert done.err == ""


async def test_hostile_output_cannot_steer_the_terminal(
    program: Cli, env: dict[str, str], project: str
) -> None:
    for mode in ([], ["--json"]):
        done = await program("chat", project, *mode, stdin=f"fail: {HOSTILE}".encode())
        printed = done.out + done.err
        assert not set(printed) & set("\x1b\x07\x9b\u202e\x00")
    async with on_terminal("chat", project, HOSTILE.replace("\x00", ""), env=env) as terminal:
        await terminal.until("end")
        assert await terminal.end() == 0
        assert b"\x1b]0" not in terminal.raw
        assert b"\x1b[2J" not in terminal.raw


async def test_a_failed_turn_is_exit_code_1(program: Cli, project: str) -> None:
    done = await program("chat", project, "fail: no such model")
    assert done.code == 1
    assert "error: no such model [model_failed]" in done.err


async def test_a_tool_is_declined_where_nobody_can_be_asked(program: Cli, project: str) -> None:
    done = await program("chat", project, "run: rm -rf /")
    assert (done.code, done.out) == (0, "You declined.\n")
    assert "Declined without asking: shell" in done.err


async def test_tools_can_be_allowed_beforehand(program: Cli, project: str) -> None:
    done = await program("chat", project, "run: ls", "--allow-tools")
    assert (done.code, done.out) == (0, "It ran.\n")
    assert "> shell ls" in done.err
    assert "ok: done" in done.err


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("y\n", "It ran."),
        ("a\n", "Answered: allow_session."),
        ("n\n", "You declined."),
        ("\n", "You declined."),
    ],
)
async def test_a_terminal_is_asked_before_a_tool_runs(
    env: dict[str, str], project: str, answer: str, outcome: str
) -> None:
    async with on_terminal("chat", project, "run: make clean", env=env) as terminal:
        await terminal.until('"command": "make clean"')
        await terminal.until("It is declined by itself in 9 min.")
        await terminal.until("Allow it once? [y/N, a: always in this session]")
        terminal.type(answer)
        await terminal.until(outcome)
        assert await terminal.end() == 0


async def test_a_question_answered_elsewhere_is_dropped(
    env: dict[str, str], project: str, stack: Stack
) -> None:
    async with on_terminal("chat", project, "run: make", env=env) as terminal:
        await terminal.until("Allow it once? [y/N, a: always in this session]")
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
        await terminal.until("Allow it once? [y/N, a: always in this session]")
        terminal.type("\x03")
        # The question's line is ended, so that nothing is written behind it.
        await terminal.until("^C\nCancelling")
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
        assert await terminal.interrupt_to_its_end() == 130


@pytest.mark.parametrize("frame", range(6))
async def test_an_answer_cut_once_at_any_frame_is_whole(
    stack: Stack, project: str, frame: int
) -> None:
    """Frame 0 is the turn's own: before it the message is sent again and is the same turn."""
    place = ProjectPlace("ann", project)
    remarks: list[str] = []
    async with CuttingProxy(stack.address, iter([frame])).running() as proxy:
        async with ApiClient(proxy.address, stack.token) as api:
            message = OutgoingMessage("a b c", "message-1")
            events = [
                event async for event in TurnStream(api, place, message, remarks.append).events()
            ]
        assert proxy.streams == 2
    assert whole(events) == "You said: a b c"
    assert len(remarks) == 1


async def test_an_answer_cut_at_every_frame_is_whole(env: dict[str, str], project: str) -> None:
    cuts = itertools.chain([0, 0], itertools.repeat(1))
    async with CuttingProxy(env["GREYLAG_SERVER"], cuts).running() as proxy:
        done = await run(
            "chat", project, "a b c", "--json", env={**env, "GREYLAG_SERVER": proxy.address}
        )
        assert proxy.streams > 6
    assert done.code == 0, done.err
    events = [StreamEvent(event["id"], event["type"], event["content"]) for event in done.lines]
    assert whole(events) == "You said: a b c"


async def test_a_dropped_connection_leaves_no_mark_in_an_answer_that_goes_to_a_file(
    env: dict[str, str], project: str
) -> None:
    async with CuttingProxy(env["GREYLAG_SERVER"], iter([2, 3])).running() as proxy:
        done = await run("chat", project, "a b c", env={**env, "GREYLAG_SERVER": proxy.address})
    assert (done.code, done.out) == (0, "You said: a b c\n")
    assert done.err.count("The connection dropped") == 2


def whole(events: list[StreamEvent]) -> str:
    """Return the answer, once every event has proved to be there exactly once."""
    turn = (events[0].id or "").rpartition("-")[0]
    assert [event.id for event in events] == [f"{turn}-{number}" for number in range(len(events))]
    assert (events[0].type, events[-1].type) == ("turn", "complete")
    return "".join(event.text("content") for event in events if event.type == "message")
