"""execd, and agentd's way to it: real processes over the real socket."""

import asyncio
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from greylag.agentd.execution import (
    ExecdProcess,
    Execution,
    ExecutionError,
    ExecutionRefusedError,
    RemoteOutput,
    RemoteProcess,
)
from greylag.execd import running
from greylag.execd.processes import birth, process_clock
from greylag.execd.protocol import (
    GROUP,
    MOST_DATA,
    MOST_INPUT,
    FrameKind,
    agree,
    frame,
    json_frame,
    pipe,
    read_frame,
    read_object,
    send_data,
)
from greylag.execd.server import to_its_end

ENV = {"PATH": os.environ["PATH"]}
SIZE = (24, 80)
EXECD = (sys.executable, "-m", "greylag.execd")
LOOPS = (asyncio.new_event_loop, uvloop.new_event_loop)  # execd's, and agentd's
# Without a process namespace of its own execd sees what tests beside this one run.
GROUP_G, GROUP_H = secrets.token_hex(8), secrets.token_hex(8)


@asynccontextmanager
async def execution(folder: Path) -> AsyncIterator[Execution]:
    path = folder / "s"
    execd = ExecdProcess(EXECD, path, {**ENV, "PYTHONPATH": os.pathsep.join(sys.path)})
    running = asyncio.create_task(execd.run(), name="execd")
    try:
        client = Execution(path)
        async with asyncio.timeout(30):
            while True:
                try:
                    await client.hello()
                except ExecutionError:
                    await asyncio.sleep(0.01)
                else:
                    break
        yield client
    finally:
        running.cancel()
        await asyncio.wait({running})


async def shell(client: Execution, script: str, folder: Path, **about: object) -> RemoteProcess:
    return await client.run(
        ("/bin/sh", "-c", script),
        env=ENV,
        cwd=folder,
        group=GROUP_G,
        **about,  # type: ignore[arg-type] # options of run
    )


async def all_of(process: RemoteProcess) -> bytes:
    return b"".join([piece async for piece in pieces(process)])


async def pieces(process: RemoteProcess) -> AsyncIterator[bytes]:
    while data := await process.stdout.read(1 << 16):
        yield data


async def gone(pid: int) -> None:
    async with asyncio.timeout(30):
        while birth(pid) is not None:  # noqa: ASYNC110 - a process has no event for its end
            await asyncio.sleep(0.01)


def descriptors_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def has_begun(pid: int, program: bytes) -> None:
    """Return once a shell's child is the program: until then it has the shell's own variables."""
    async with asyncio.timeout(30):
        while not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(program):  # noqa: ASYNC110, ASYNC240 - the kernel tells of it nowhere else
            await asyncio.sleep(0.01)


async def test_input_output_errors_and_the_exit_code_come_through(tmp_path: Path) -> None:
    async with execution(tmp_path) as client:
        process = await shell(client, "cat; echo bad >&2; pwd; exit 3", tmp_path)
        process.write(b"x" * 300_000 + b"\n")
        await process.drain()
        process.end_input()
        said = await all_of(process)
        assert said == b"x" * 300_000 + b"\n" + str(tmp_path).encode() + b"\n"
        assert await process.stderr.read(100) == b"bad\n"
        assert await process.wait() == 3
        await process.end()


async def test_what_is_private_is_opened_by_no_other_process(tmp_path: Path) -> None:
    async with execution(tmp_path) as client:
        process = await shell(client, "cat; echo over; exit 3", tmp_path, private=True)
        for number in (0, 1):
            # Before it has become the program it is shut to all but root.
            with pytest.raises(OSError, match=r"No such device or address|Permission denied"):
                os.open(f"/proc/{process.pid}/fd/{number}", os.O_RDWR)
        process.write(b"x" * 3_000_000)
        process.end_input()
        assert await all_of(process) == b"x" * 3_000_000 + b"over\n"
        assert await process.wait() == 3
        await process.end()


async def test_the_last_words_of_what_is_private_are_heard_though_it_left_input_unread(
    tmp_path: Path,
) -> None:
    async with execution(tmp_path) as client:
        script = "read line; head -c 1000000 /dev/zero; echo said"
        process = await shell(client, script, tmp_path, private=True)
        process.write(b"go\n" + b"x" * 500_000)
        assert (await all_of(process))[-5:] == b"said\n"
        assert await process.wait() == 0
        await process.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root sees what execd has open")
async def test_of_what_is_private_nothing_is_left_open_also_when_it_cannot_be_started(
    tmp_path: Path,
) -> None:
    async with execution(tmp_path) as client:
        execd = (await client.hello())["pid"]
        async with asyncio.timeout(30):
            await (await shell(client, "true", tmp_path)).end()
            before = descriptors_of(execd)
            for _ in range(10):
                await (await shell(client, "echo unread", tmp_path, private=True)).end()
                with pytest.raises(ExecutionRefusedError, match="cannot be started"):
                    await client.run(("/no",), env=ENV, cwd=tmp_path, group="g", private=True)
            while descriptors_of(execd) > before:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.01)


async def test_why_a_program_is_not_started_tells_the_folder_from_the_program(
    tmp_path: Path,
) -> None:
    async with execution(tmp_path) as client:
        with pytest.raises(ExecutionRefusedError, match=r"/no cannot be started: No such file"):
            await client.run(("/no",), env=ENV, cwd=tmp_path, group="g")
        with pytest.raises(ExecutionRefusedError, match="its folder cannot be entered: No such"):
            await client.run(("true",), env=ENV, cwd=tmp_path / "no", group="g")


async def test_a_reader_that_does_not_read_holds_the_process_back(tmp_path: Path) -> None:
    async with execution(tmp_path) as client:
        script = (
            "i=0; while [ $i -lt 200 ]; do head -c 65536 /dev/zero; i=$((i+1)); echo $i >n; done"
        )
        process = await shell(client, script, tmp_path)
        async with asyncio.timeout(30):
            while process.stdout._held < 4 * 65536:  # noqa: ASYNC110 - it has no event for that
                await asyncio.sleep(0.01)
        other = await client.run(("/bin/echo", "hi"), env=ENV, cwd=tmp_path, group=GROUP_H)
        assert await all_of(other) == b"hi\n"  # others are not held back
        held = int((tmp_path / "n").read_text() or 0)
        assert held < 100
        assert len(await all_of(process)) == 200 * 65536
        await process.end()
        await other.end()


async def test_what_a_process_said_before_its_end_waits_for_a_slow_reader(tmp_path: Path) -> None:
    async with execution(tmp_path) as client:
        # Two megabytes are more than all that lies between, so that some wait in its pipe.
        process = await shell(client, "head -c 2097152 /dev/zero; echo end", tmp_path)
        await asyncio.sleep(2.5)
        assert (await all_of(process)).endswith(b"\0end\n")
        assert await process.wait() == 0
        await process.end()


async def test_ending_kills_all_that_was_started_even_what_hid(tmp_path: Path) -> None:
    async with execution(tmp_path) as client:
        script = "(setsid sh -c 'echo $$ >hidden; exec sleep 600' >/dev/null 2>&1 &) ; sleep 600"
        process = await shell(client, script, tmp_path)
        hidden = tmp_path / "hidden"
        async with asyncio.timeout(30):
            while not hidden.exists() or not hidden.read_text().strip():  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)
        await process.end()
        await gone(int(hidden.read_text()))
        await gone(process.pid)


async def test_execd_that_is_killed_takes_its_processes_down_and_is_started_again(
    tmp_path: Path,
) -> None:
    async with execution(tmp_path) as client:
        process = await shell(client, "sleep 600", tmp_path)
        pid = (await client.hello())["pid"]
        os.kill(pid, signal.SIGTERM)
        with pytest.raises(ExecutionError):
            await process.wait()
        await gone(process.pid)
        await process.end()
        async with asyncio.timeout(30):
            again = await shell(client, "echo back", tmp_path)
        assert await all_of(again) == b"back\n"
        await again.end()


async def test_only_what_began_since_then_and_has_the_variables_is_killed(tmp_path: Path) -> None:
    async with execution(tmp_path) as client:
        script = "SESSION=a sleep 600 & echo $!; read line; SESSION=a sleep 601 & echo $!; wait"
        process = await shell(client, script, tmp_path)
        old = int(await process.stdout.read(100))
        await asyncio.sleep(0.1)
        since = process_clock()
        process.write(b"go\n")
        new = int(await process.stdout.read(100))
        await has_begun(new, b"sleep")
        await client.end_matching(GROUP_G, {"SESSION": ["a"]}, since)
        await gone(new)
        assert birth(old) is not None
        await process.end()


async def test_what_has_any_of_many_values_is_killed_at_once_and_nothing_else(
    tmp_path: Path,
) -> None:
    async with execution(tmp_path) as client, asyncio.timeout(20):
        script = "; ".join(f"SESSION={one} sleep 600 & echo $!" for one in ("a", "b1", "b"))
        process = await shell(client, f"{script}; wait", tmp_path)
        said = b""
        while said.count(b"\n") < 3:
            said += await process.stdout.read(100)
        pids = [int(one) for one in said.split()]
        for pid in pids:
            await has_begun(pid, b"sleep")
        values = ["a", "b", *(str(one) for one in range(1000))]
        await client.end_matching(GROUP_G, {"SESSION": values}, 0.0)
        assert [birth(pid) is None for pid in pids] == [True, False, True]
        await process.end()


async def test_what_an_older_process_starts_through_one_that_tells_nothing_is_left_alone(
    tmp_path: Path,
) -> None:
    inner = f"SESSION=a {GROUP}={GROUP_G} sleep 600 & echo $!; wait"
    async with execution(tmp_path) as client:
        script = f"export SESSION=a; read line; env -i /bin/sh -c '{inner}'"
        process = await shell(client, f"SESSION=a /bin/sh -c {shlex.quote(script)}", tmp_path)
        await asyncio.sleep(0.1)
        since = process_clock()
        process.write(b"go\n")
        started = int(await process.stdout.read(100))
        await client.end_matching(GROUP_G, {"SESSION": ["a"]}, since)
        assert birth(started) is not None
        await process.end()


async def test_what_is_pasted_into_a_terminal_waits_for_its_program(tmp_path: Path) -> None:
    async with execution(tmp_path) as client:
        script = "stty raw -echo; echo ready; read -r _; head -c 300000 | wc -c; stty sane"
        process = await shell(client, script, tmp_path, terminal=(24, 80))
        assert b"ready" in await process.stdout.read(100)
        process.write(b"x" * 150_000)  # far more than a terminal holds, and nobody reads yet
        sleeping = await asyncio.gather(
            *(shell(client, "sleep 600", tmp_path, terminal=(24, 80)) for _ in range(8))
        )
        for one in sleeping:
            one.write(b"line\n" * 50_000)  # nor ever: execd still has its threads for others
        await client.make_folders([tmp_path / "made"])
        process.write(b"\n" + b"y" * 300_000)
        counted = b""
        while b"300000" not in counted:
            counted += await process.stdout.read(100)
        await asyncio.gather(process.end(), *(one.end() for one in sleeping))
        async with asyncio.timeout(20):
            while any(birth(one.pid) is not None for one in sleeping):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


async def test_what_reads_nothing_of_its_input_is_signalled_all_the_same(tmp_path: Path) -> None:
    async with execution(tmp_path) as client, asyncio.timeout(20):
        process = await shell(client, "echo begun; exec sleep 600", tmp_path, paced=True)
        assert await process.stdout.read(100) == b"begun\n"
        process.write(b"x" * 1_000_000)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == -signal.SIGTERM
        await process.drain()  # there is nobody to wait for any more
        await process.end()


async def test_of_input_that_is_not_read_so_much_is_sent_and_no_more(tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    async with execution(tmp_path) as client, asyncio.timeout(20):
        process = await shell(client, f"read -r _ < {go}; exec wc -c", tmp_path, paced=True)
        process.write(b"x" * 1_000_000)
        process.end_input()
        process.send_signal(signal.SIGCONT)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.drain(), 0.5)
        assert MOST_INPUT <= process._on_way < MOST_INPUT + MOST_DATA
        await asyncio.to_thread(go.write_text, "go\n")
        await process.drain()
        assert (await all_of(process)).strip() == b"1000000"
        await process.end()


async def test_paced_input_comes_whole_and_in_order(tmp_path: Path) -> None:
    sent = os.urandom(3_000_000)
    async with execution(tmp_path) as client, asyncio.timeout(30):
        process = await shell(client, "cat; echo over; exit 3", tmp_path, paced=True)
        process.write(sent)
        process.end_input()
        process.write(b"what comes after its end")
        assert await all_of(process) == sent + b"over\n"
        await process.drain()
        assert await process.wait() == 3
        await process.end()


@pytest.mark.parametrize("typed", [20_000, 150_000])
async def test_a_program_that_reads_nothing_of_what_is_typed_can_be_interrupted(
    typed: int, tmp_path: Path
) -> None:
    async with execution(tmp_path) as client, asyncio.timeout(20):
        deaf = "trap : INT; stty -echo; (echo begun; exec sleep 600); echo on"
        script = f"{deaf}; read -r line; echo it is $line; read -r more"
        process = await shell(client, script, tmp_path, terminal=SIZE, paced=True)
        assert await process.stdout.read(100) == b"begun\r\n"
        process.write(b"pasted\n" * (typed // 7))
        process.write(b"\x03")
        assert await process.stdout.read(100) == b"on\r\n"
        process.write(b"typed\n")
        assert await process.stdout.read(100) == b"it is typed\r\n"
        await process.end()


@pytest.mark.parametrize("interrupted", [False, True])
async def test_a_terminal_is_let_go_of_without_an_error(*, interrupted: bool) -> None:
    wrong: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: wrong.append(about))
    asked = {"argv": ["sleep", "600"], "env": {}, "cwd": "/", "terminal": [24, 80]}
    started = await running.start(asked, GROUP_G, ENV)
    if interrupted:
        started.forget_typed()
        await asyncio.sleep(0)
        await started.write(b"typed anew")
        started.forget_typed()
    started.close()
    started.process.kill()
    await started.process.wait()
    assert wrong == []


async def test_a_program_that_takes_keys_as_they_are_gets_each(tmp_path: Path) -> None:
    async with execution(tmp_path) as client, asyncio.timeout(20):
        script = "stty raw -echo; echo begun; sleep 0.5; head -c 5 | od -An -c"
        process = await shell(client, script, tmp_path, terminal=SIZE, paced=True)
        assert await process.stdout.read(100) == b"begun\n"
        process.write(b"ab\x03cd")
        assert (await process.stdout.read(100)).split() == [b"a", b"b", b"003", b"c", b"d"]
        await process.end()


async def test_an_execd_that_paces_nothing_is_sent_all(tmp_path: Path) -> None:
    got = asyncio.Event()

    async def older(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_frame(FrameKind.JSON, {"ok": True, "pid": 7}))
        await reader.readuntil(b"the end")
        got.set()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(older, tmp_path / "s", limit=1 << 22)
    async with server, asyncio.timeout(20):
        process = await Execution(tmp_path / "s").run(
            ("a",), env={}, cwd=tmp_path, group=GROUP_G, paced=True
        )
        process.write(b"x" * 1_000_000 + b"the end")
        await got.wait()
        await process.end()


async def test_a_terminal_has_a_size_and_signals(tmp_path: Path) -> None:
    async with execution(tmp_path) as client:
        process = await shell(
            client, "stty size; read x; stty size; sleep 600", tmp_path, terminal=(24, 80)
        )
        assert b"24 80" in await process.stdout.read(100)
        process.resize(50, 132)
        process.write(b"\n")
        said = b""
        while b"50 132" not in said:
            said += await process.stdout.read(100)
        ended = asyncio.create_task(process.wait())
        while not ended.done():
            # Again: a shell that waits for a command which then ends well goes on.
            process.write(b"\x03")
            await asyncio.wait({ended}, timeout=0.2)
        assert ended.result() != 0
        await process.end()
        process.resize(24, 80)  # who watched it may not know yet
        process.write(b"\n")
        process.end_input()


async def test_what_cannot_be_started_is_refused_with_a_reason(tmp_path: Path) -> None:
    async with execution(tmp_path) as client:
        with pytest.raises(ExecutionRefusedError, match="No such file") as refused:
            await client.run(("/no/such",), env=ENV, cwd=tmp_path, group=GROUP_G)
        assert refused.value.code == "not_started"


async def test_the_untrusted_side_reaches_the_one_port_that_it_was_given(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    ours = server.sockets[0].getsockname()[1]
    async with server, execution(tmp_path) as client, client.listening("127.0.0.1", ours) as port:
        script = (
            "import socket,sys; s=socket.create_connection(('127.0.0.1',%d));"
            "s.sendall(b'ping'); print(s.recv(9).decode())"
        )
        process = await client.run(
            (sys.executable, "-c", script % port), env=ENV, cwd=tmp_path, group=GROUP_G
        )
        assert await all_of(process) == b"ping\n"
        await process.end()


async def test_a_port_inside_can_be_reached(tmp_path: Path) -> None:
    async with execution(tmp_path) as client:
        script = (
            "import socket; s=socket.create_server(('127.0.0.1',0));"
            "print(s.getsockname()[1],flush=True); c,_=s.accept(); c.sendall(b'in'); c.close()"
        )
        process = await client.run(
            (sys.executable, "-c", script), env=ENV, cwd=tmp_path, group=GROUP_G
        )
        reader, writer = await client.connect(int(await process.stdout.read(100)))
        assert await reader.read() == b"in"
        writer.close()
        await writer.wait_closed()
        await process.end()


LISTENS = """
import os, socket
kept = []
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET, "")):
    one = socket.socket(family)
    one.bind((host, 0))
    one.listen()
    kept.append(one)
    print(one.getsockname()[1], flush=True)
os.close(1)
while True:
    taken, _ = one.accept()
    taken.sendall(b"here")
    taken.close()
"""


async def test_only_ports_of_its_own_processes_are_told_and_reached(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        async with execution(tmp_path) as client:
            script = 'setsid "$0" -c "$1" & sleep 600'  # an orphan counts as well
            argv = ("/bin/sh", "-c", script, sys.executable, LISTENS)
            process = await client.run(argv, env=ENV, cwd=tmp_path, group=GROUP_G)
            said = b""
            while said.count(b"\n") < 3:
                said += await process.stdout.read(100)
            mine = [int(one) for one in said.split()]
            found = dict(await client.ports())
            assert sorted(found) == sorted(mine)
            assert all(name.startswith("python") for name in found.values())
            for port in mine:
                reader, writer = await client.connect(port)
                if port == mine[-1]:
                    assert await reader.read() == b"here"
                writer.close()
                await writer.wait_closed()
            for other in (foreign.getsockname()[1], 1, 0, -1, 1 << 16):
                with pytest.raises(ExecutionRefusedError) as refused:
                    await client.connect(other)
                assert refused.value.code == "not_listening"
            for number in ("one", None, 0, "0", list[int](), True):
                with pytest.raises(ExecutionRefusedError) as refused:
                    await client.exchange("accept", number=number).__aenter__()
                assert refused.value.code == "not_waiting"
            await process.end()
            assert await client.ports() == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff" * 64,
        frame(FrameKind.JSON, b"[]"),
        frame(FrameKind.JSON, b"{" * 100),
        frame(FrameKind.STDOUT, b"x"),
        b"\x01\xff\xff\xff\xff",
        json_frame(FrameKind.JSON, {"ok": True}),
        json_frame(FrameKind.JSON, {"ok": True, "pid": "1"}),
        json_frame(FrameKind.JSON, {"ok": False, "code": [], "message": "x" * 9999}),
        json_frame(FrameKind.JSON, {"ok": False, "code": "no", "message": "half \ud83d"}),
    ],
)
async def test_a_hostile_execd_is_one_clear_error(tmp_path: Path, answer: bytes) -> None:
    async def hostile(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(hostile, tmp_path / "s")
    async with server:
        with pytest.raises(ExecutionError) as failed:
            await Execution(tmp_path / "s").run(("a",), env={}, cwd=tmp_path, group=GROUP_G)
        assert len(str(failed.value).encode()) < 1100


HTTP = {"port": 80, "process": "web"}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (None, None),
        ({}, None),
        (["80"], None),
        *(([{**HTTP, "port": wrong}], None) for wrong in (0, 1 << 16, True, 80.0, "80", None)),
        *(([{**HTTP, "process": wrong}], None) for wrong in (1, None)),
        ([{**HTTP, "process": "x\ud83d" * 99}], [(80, "x?" * 32)]),
        ([HTTP, {**HTTP, "port": 65535}] * 200, [(80, "web"), (65535, "web")] * 100),
    ],
)
async def test_ports_of_a_hostile_execd_are_bounded_or_one_clear_error(
    tmp_path: Path, said: object, told: list[tuple[int, str]] | None
) -> None:
    async def hostile(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await agree(writer, ports=said, port=said)
        writer.close()
        await writer.wait_closed()

    client = Execution(tmp_path / "s")
    async with await asyncio.start_unix_server(hostile, tmp_path / "s"):
        with pytest.raises(ExecutionError, match="told no port"):
            await client.listening("127.0.0.1", 9).__aenter__()
        if told is not None:
            assert await client.ports() == told
            return
        with pytest.raises(ExecutionError, match=r"told (no ports|a port that is none)"):
            await client.ports()


@pytest.mark.parametrize(
    "later",
    [
        frame(FrameKind.STDIN, b"x"),
        b"\x09",
        frame(FrameKind.EXIT, b'{"code": "no"}'),
        frame(FrameKind.EXIT, b'{"code": true}'),
        frame(FrameKind.JSON, b"{}"),
        frame(FrameKind.TAKEN, b"{}"),
        frame(FrameKind.TAKEN, b'{"bytes": -1}'),
        b"\x04\xff\xff\xff\xff",
    ],
)
async def test_nonsense_after_the_start_ends_the_process_as_failed(
    tmp_path: Path, later: bytes
) -> None:
    async def hostile(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_frame(FrameKind.JSON, {"ok": True, "pid": 7}) + later)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(hostile, tmp_path / "s")
    async with server:
        process = await Execution(tmp_path / "s").run(("a",), env={}, cwd=tmp_path, group=GROUP_G)
        with pytest.raises(ExecutionError, match="does not keep to the protocol"):
            await process.wait()
        assert await process.stdout.read(10) == b""
        await process.end()


async def test_what_comes_after_the_end_is_dropped(tmp_path: Path) -> None:
    async def hostile(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json_frame(FrameKind.JSON, {"ok": True, "pid": 7}))
        writer.write(json_frame(FrameKind.EXIT, {"code": 0}))
        for _ in range(1000):
            writer.write(frame(FrameKind.STDOUT, b"x" * 65536))
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(hostile, tmp_path / "s")
    async with server:
        process = await Execution(tmp_path / "s").run(("a",), env={}, cwd=tmp_path, group=GROUP_G)
        assert await process.wait() == 0
        await asyncio.wait({process._pumping}, timeout=30)
        assert process._pumping.done(), "all of it was read"
        assert await process.stdout.read(10) == b""
        await process.end()


async def test_input_that_is_ended_after_the_program_takes_none_of_its_words(
    tmp_path: Path,
) -> None:
    async with execution(tmp_path) as client:
        about = {"argv": ["/bin/echo", "said"], "cwd": str(tmp_path), "env": ENV, "group": GROUP_G}
        async with client.exchange("run", **about, size=None) as (_, reader, writer):
            told = [came async for came in _frames(reader)]
            assert told[0] == (FrameKind.STDOUT, b"said\n")
            assert told[-1][0] is FrameKind.EXIT
            writer.write(frame(FrameKind.STDIN_END))
            assert not writer.is_closing()


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[FrameKind, bytes]]:
    while (came := await read_frame(reader)) is not None:
        yield came


async def test_empty_pieces_of_output_are_not_kept(tmp_path: Path) -> None:
    output = RemoteOutput()
    for _ in range(1000):
        await output.feed(b"")
    await output.feed(b"x")
    assert await output.read(10) == b"x"


async def test_a_process_that_nobody_reads_can_be_ended(tmp_path: Path) -> None:
    async with execution(tmp_path) as client:
        process = await shell(client, "exec cat /dev/zero", tmp_path)
        async with asyncio.timeout(30):
            while process.stdout._held < 4 * 65536:  # noqa: ASYNC110 - it has no event for that
                await asyncio.sleep(0.01)
        async with asyncio.timeout(8):  # less than it would wait for one that does not end
            await process.end()
        await gone(process.pid)


async def test_what_wiped_its_variables_ends_with_the_last_run(tmp_path: Path) -> None:
    script = "(env -i setsid /bin/sh -c 'echo $$; exec /bin/sleep 600' 2>/dev/null &) ; sleep 600"
    async with execution(tmp_path) as client:
        process = await shell(client, script, tmp_path)
        hidden = int(await process.stdout.read(100))
        other = await client.run(("/bin/sleep", "600"), env=ENV, cwd=tmp_path, group=GROUP_H)
        await other.end()
        assert birth(hidden) is not None, "it may be the first run's, which goes on"
        await process.end()
        await gone(hidden)


async def test_another_version_is_refused(tmp_path: Path) -> None:
    async with execution(tmp_path):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(json_frame(FrameKind.JSON, {"version": 2, "operation": "hello"}))
        came = await read_frame(reader)
        assert came is not None
        assert read_object(came[1])["code"] == "version"
        writer.close()
        await writer.wait_closed()


def test_execd_needs_nothing_but_pythons_own_library() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import greylag.execd.__main__;"
        "known = sys.stdlib_module_names | {'greylag', '__main__'};"
        "print([m for m in sys.modules if m.partition('.')[0] not in known])"
    )
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-S", "-I", "-c", code, str(source)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


def test_an_execd_for_which_there_are_too_few_threads_ends_to_be_started_again() -> None:
    code = """
import threading
from greylag.execd import __main__ as execd
start, begun = threading.Thread.start, []
def few(thread):
    if len(begun) == 4:
        raise RuntimeError("can't start new thread")
    begun.append(thread)
    start(thread)
threading.Thread.start = few
execd._standing_threads()
"""
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "can't start new thread" in done.stderr


async def test_work_that_ends_processes_is_done_however_often_it_is_cancelled() -> None:
    begun, free, done = threading.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max_workers=1) as threads:
        loop.set_default_executor(threads)
        threads.submit(begun.set)
        threads.submit(free.wait, 30)
        begun.wait(30)
        task = asyncio.create_task(to_its_end(done.set))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert done.is_set()


async def test_folders_are_made_where_they_are_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with execution(tmp_path) as client:
        for _ in range(2):
            await client.make_folders((tmp_path / "a/b", tmp_path / "c"))
        assert (tmp_path / "a/b").is_dir()
        assert (tmp_path / "c").is_dir()
        with pytest.raises(ExecutionRefusedError, match="file/d: Not a directory"):
            await client.make_folders((tmp_path / "file/d",))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_connection_that_is_closed_takes_nothing_and_says_so_on_each_loop(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def sent() -> None:
        near, far = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=near)
        far.close()
        for _ in range(3):  # the first one is what it learns by that it is closed
            with pytest.raises(OSError, match=r"closed|lost|Broken pipe"):
                await send_data(writer, FrameKind.STDIN, bytes(99 * MOST_DATA))
        said = asyncio.StreamReader()
        said.feed_data(b"more")
        said.feed_eof()
        await pipe(said, writer)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(sent(), 20))
