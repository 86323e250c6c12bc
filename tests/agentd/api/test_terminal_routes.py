"""Terminals and commands over the real agentd and execd."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType
from tests.agentd.doubles import Api, eventually, serving

from greylag.agentd.config import Secret as AgentdToken
from greylag.agentd.execution import ExecdProcess, RemoteProcess
from greylag.agentd.terminals import MOST_TERMINALS, SCROLLBACK, Scrollback
from greylag.execd.processes import birth

TERMINALS = "/api/v1/terminals"
SIZE = {"rows": 24, "columns": 80}


@asynccontextmanager
async def site(folder: Path, **changes: Any) -> AsyncIterator[Api]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    execd = ExecdProcess((sys.executable, "-m", "greylag.execd"), folder / "execd", environ)
    running = asyncio.create_task(execd.run(), name="execd")
    try:
        await eventually((folder / "execd").exists, 30)
        async with serving(folder, **changes) as api:
            yield api
    finally:
        running.cancel()
        await asyncio.wait({running})


async def started(api: Api) -> str:
    status, terminal = await api.json("POST", TERMINALS, SIZE)
    assert status == 201, terminal
    return str(terminal["terminal_id"])


def connected(api: Api, path: str) -> Any:
    return api.http.ws_connect(f"{api.base}{path}", max_msg_size=0)


async def told(socket: ClientWebSocketResponse) -> Any:
    return json.loads(await socket.receive_str(timeout=20))


async def until(socket: ClientWebSocketResponse, wanted: bytes, said: bytes = b"") -> bytes:
    while wanted not in said:
        said += await socket.receive_bytes(timeout=20)
    return said


async def rest(socket: ClientWebSocketResponse) -> tuple[bytes, bytes, list[Any], int | None]:
    """Return what a command says to its end: stdout, stderr, text messages, the close code."""
    outputs, messages = {1: b"", 2: b""}, []
    while (came := await socket.receive(timeout=20)).type in {WSMsgType.BINARY, WSMsgType.TEXT}:
        if came.type is WSMsgType.TEXT:
            messages.append(json.loads(came.data))
        else:
            outputs[came.data[0]] += came.data[1:]
    return outputs[1], outputs[2], messages, socket.close_code


async def test_who_asks_whether_a_terminal_is_there_is_answered(tmp_path: Path) -> None:
    async with site(tmp_path) as api, connected(api, f"{TERMINALS}/{await started(api)}") as socket:
        assert (await told(socket))["attached"]["pings"] is True
        await socket.send_str(json.dumps({"ping": True}))
        while (came := await socket.receive(timeout=20)).type is WSMsgType.BINARY:
            pass  # the shell's first words
        assert json.loads(came.data) == {"pong": True}


@pytest.mark.python_loop  # that of execd, which here runs in this process, too
async def test_a_terminal_shows_that_it_is_there_while_its_program_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylag.agentd.api.terminals._LIFE_SECONDS", 0.05)
    async with site(tmp_path) as api, connected(api, f"{TERMINALS}/{await started(api)}") as socket:
        await told(socket)
        await socket.send_bytes(b"stty raw -echo; echo RE''ADY; read -r _ < go; wc -c < /dev/tty\n")
        os.mkfifo(tmp_path / "workspace/go")
        await until(socket, b"READY")
        for _ in range(16):
            await socket.send_bytes(b"x" * 32_768)
        await socket.send_str(json.dumps({"ping": True}))  # it waits behind what nobody reads
        for _ in range(3):
            while (came := await socket.receive(timeout=20)).type is WSMsgType.BINARY:
                pass
            assert json.loads(came.data) == {"pong": True}


async def test_a_shell_outlives_its_connections_and_ends_with_its_code(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        one = await started(api)
        path = f"{TERMINALS}/{one}"
        async with connected(api, path) as socket:
            assert (await told(socket))["attached"]["rows"] == 24
            await socket.send_str(json.dumps({"resize": {"rows": 50, "columns": 132}}))
            await socket.send_bytes(b"stty size; pwd; echo $TERM $((40 + 2))\n")
            said = await until(socket, b"xterm-256color 42")
            assert b"50 132" in said
            assert str(tmp_path / "workspace").encode() in said
            _, listed = await api.json("GET", TERMINALS)
            (shown,) = listed["terminals"]
            assert (shown["attached"], shown["columns"], shown["ended"]) == (1, 132, False)
            _, status = await api.json("GET", "/api/v1/agent/status")
            assert status["watched_terminals"] == 1
        async with connected(api, path) as socket, connected(api, path) as other:
            replay = (await told(socket))["attached"]["replay"]
            assert len(await until(socket, b"xterm-256color 42")) <= replay
            await told(other)
            await until(other, b"xterm-256color 42")
            await socket.send_bytes(b"echo both $((50 + 5)); exit 7\n")
            for each in (socket, other):
                await until(each, b"both 55")
                while (came := await each.receive(timeout=20)).type is WSMsgType.BINARY:
                    pass
                assert json.loads(came.data) == {"exit": 7}
                assert (await each.receive()).type is WSMsgType.CLOSE
                assert each.close_code == 1000
        async with connected(api, path) as socket:
            await told(socket)
            await until(socket, b"both 55")
        (shown,) = (await api.json("GET", TERMINALS))[1]["terminals"]
        assert (shown["ended"], shown["exit_code"]) == (True, 7)
        assert (await api.json("DELETE", path))[0] == 204
        assert (await api.json("DELETE", path))[1]["code"] == "terminal_not_found"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await api.http.ws_connect(api.base + path)
        assert refused.value.status == 404


async def test_terminals_are_bounded_and_ended_with_all_they_started(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        every = [await started(api) for _ in range(MOST_TERMINALS)]
        status, refused = await api.json("POST", TERMINALS, SIZE)
        assert (status, refused["code"]) == (429, "limit_exceeded")
        async with connected(api, f"{TERMINALS}/{every[0]}") as socket:
            await told(socket)
            left = b"setsid nohup sh -c 'echo pid $$ ok; exec sleep 600' 2>&1 | cat &\n"
            await socket.send_bytes(left)
            said = await until(socket, b" ok\r\n", await until(socket, b"\npid "))
            pid = int(said.rpartition(b"\npid ")[2].split()[0])
            assert birth(pid) is not None
            assert (await api.json("DELETE", f"{TERMINALS}/{every[0]}"))[0] == 204
            await eventually(lambda: birth(pid) is None)
        async with connected(api, f"{TERMINALS}/{every[1]}") as socket:
            await told(socket)
            await socket.send_bytes(b"exit\n")
            while await socket.receive(timeout=20) and not socket.closed:
                pass
        fresh = [await started(api) for _ in range(2)]  # the one that ended makes room
        _, listed = await api.json("GET", TERMINALS)
        ids = [one["terminal_id"] for one in listed["terminals"]]
        assert ids == [*every[2:], *fresh]
        for body in ({"rows": 0, "columns": 80}, {"rows": True, "columns": 1}, {**SIZE, "x": 1}):
            assert (await api.json("POST", TERMINALS, body))[0] == 400


async def test_a_terminal_that_is_ended_while_all_are_hinders_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        terminals = api.services.terminals
        one, two = await started(api), await started(api)
        closing = asyncio.create_task(terminals.close(), name="closing")
        ending = asyncio.create_task(terminals.end(one), name="ending")
        await asyncio.gather(closing, ending)
        assert terminals.all() == []
        assert two not in terminals._running


async def test_a_slow_reader_holds_the_shell_back_alone_and_misses_the_rest_beside_another(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as api:
        one = await started(api)
        (terminal,) = api.services.terminals.all()
        path = f"{TERMINALS}/{one}"
        slow = await api.http.ws_connect(api.base + path, max_msg_size=0)
        await told(slow)
        await slow.send_bytes(b"yes xxxxxxxxxxxxxxxx | head -c 20000000; echo the ' 'end\n")
        counted = -1
        while terminal.scrollback.end != counted:  # it stops, though there is far more to say
            counted = terminal.scrollback.end
            await asyncio.sleep(0.3)
        assert counted < 15_000_000  # of which most lies in the system's own buffers
        async with connected(api, path) as quick:
            assert (await told(quick))["attached"]["replay"] <= SCROLLBACK
            said = b""
            while b"the  end" not in said:
                said = said[-100:] + await quick.receive_bytes(timeout=20)
        skipped, said = 0, b""
        while b"the  end" not in said:
            came = await slow.receive(timeout=20)
            if came.type is WSMsgType.TEXT:
                skipped += json.loads(came.data)["skipped"]
            else:
                said = said[-100:] + came.data
        assert skipped > 1_000_000
        await slow.close()


async def test_what_is_kept_begins_with_a_whole_line() -> None:
    kept = Scrollback(8)
    kept.add(b"ab\ncd")
    assert (kept.first_line(), kept.read(0, 99)) == (0, b"ab\ncd")
    kept.add(b"ef\ngh")
    assert (kept.start, kept.end, kept.read(2, 4)) == (2, 10, b"\ncde")
    assert kept.read(kept.first_line(), 99) == b"cdef\ngh"


async def test_a_command_keeps_its_outputs_apart_its_input_and_its_code(tmp_path: Path) -> None:
    script = "cat; pwd; echo wrong >&2; env >&2; exit 3"
    async with site(tmp_path) as api, connected(api, "/api/v1/commands") as socket:
        (tmp_path / "workspace" / "part").mkdir()
        run = {"argv": ["sh", "-c", script], "folder": "part"}
        await socket.send_str(json.dumps({"run": run}))
        await socket.send_bytes(b"given\n")
        await socket.send_str(json.dumps({"end_input": True}))
        out, err, messages, code = await rest(socket)
        assert out == f"given\n{tmp_path}/workspace/part\n".encode()
        assert err.startswith(b"wrong\n")
        assert b"API_KEY" not in err
        assert (messages, code) == ([{"exit": 3}], 1000)


async def test_a_command_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    wrong: list[Any] = [
        {"run": {"argv": []}},
        {"run": {"argv": ["ls"], "folder": "../state"}},
        {"run": {"argv": ["ls"], "terminal": {"rows": 1}}},
        {"run": {"argv": ["ls"], "env": {}}},
        {"resize": SIZE},
        [],
    ]
    refused = [(one, "invalid_request", 1008) for one in wrong]
    async with site(tmp_path) as api:
        for message, code, closed in (*refused, ({"run": {"argv": ["/no"]}}, "not_started", 1011)):
            async with connected(api, "/api/v1/commands") as socket:
                await socket.send_str(json.dumps(message))
                _, _, messages, close_code = await rest(socket)
                assert [one["error"]["code"] for one in messages] == [code]
                assert close_code == closed


async def test_a_command_is_signalled_and_ends_with_its_connection(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        run = {"run": {"argv": ["sh", "-c", "echo $$; exec sleep 600"], "terminal": SIZE}}
        for last in ({"signal": 15}, None):
            async with connected(api, "/api/v1/commands") as socket:
                await socket.send_str(json.dumps(run))
                pid = int((await until(socket, b"\n")).replace(b"\1", b""))
                if last is not None:
                    await socket.send_str(json.dumps(last))
                    assert (await rest(socket))[2] == [{"exit": -15}]
            await eventually(lambda pid=pid: birth(pid) is None)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("command", {"signal": 28}),
        ("command", {"end_input": True}),
        ("command", {"resize": SIZE}),
        ("terminal", {"resize": SIZE}),
    ],
)
async def test_no_message_is_taken_before_there_is_room_for_the_last_one(
    kind: str, message: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, waits, room = [], asyncio.Semaphore(0), asyncio.Event()
    send = RemoteProcess._send

    def counted(process: RemoteProcess, data: bytes) -> None:
        sent.append(data)
        send(process, data)

    async def drain(_: RemoteProcess) -> None:
        waits.release()
        await room.wait()

    monkeypatch.setattr(RemoteProcess, "_send", counted)
    monkeypatch.setattr(RemoteProcess, "drain", drain)
    async with site(tmp_path) as api, asyncio.timeout(60):
        path = f"{TERMINALS}/{await started(api)}" if kind == "terminal" else "/api/v1/commands"
        async with connected(api, path) as socket:
            if kind == "command":
                await socket.send_str(json.dumps({"run": {"argv": ["sleep", "60"]}}))
            for _ in range(10):
                await socket.send_str(json.dumps(message))
            await waits.acquire()
            await asyncio.sleep(0)
            assert len(sent) == 1
            room.set()
            for _ in range(9):
                await waits.acquire()
            assert len(sent) == 10


async def test_a_command_that_reads_nothing_of_its_input_is_signalled(tmp_path: Path) -> None:
    async with site(tmp_path) as api, connected(api, "/api/v1/commands") as socket:
        await socket.send_str(json.dumps({"run": {"argv": ["sleep", "600"]}}))
        for _ in range(8):
            await socket.send_bytes(b"x" * 32_000)
        await socket.send_str(json.dumps({"signal": 15}))
        assert (await rest(socket))[2][-1] == {"exit": -15}


async def test_who_sends_less_at_once_than_a_command_reads_is_told_all_the_same(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as api, connected(api, "/api/v1/commands") as socket:
        await socket.send_str(json.dumps({"run": {"argv": ["wc", "-c"]}}))
        for _ in range(2):
            await socket.send_bytes(b"x" * 32_768)
        assert (await told(socket))["taken"] <= 65_536
        await socket.send_str(json.dumps({"end_input": True}))
        assert (await rest(socket))[0].strip() == b"65536"


async def test_who_is_ahead_of_a_command_is_told_how_far_it_has_read(tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    async with site(tmp_path) as api, connected(api, "/api/v1/commands") as socket:
        run = {"argv": ["sh", "-c", f"read -r _ < {go}; exec wc -c"]}
        await socket.send_str(json.dumps({"run": run}))
        for _ in range(8):
            await socket.send_bytes(b"x" * 32_000)
        read = (await told(socket))["taken"]
        assert read < 256_000
        await asyncio.to_thread(go.write_text, "go\n")
        while read < 256_000 - 64 * 1024:
            before, read = read, (await told(socket))["taken"]
            assert read - before >= 64 * 1024
        await socket.send_str(json.dumps({"end_input": True}))
        out, _, messages, _ = await rest(socket)
        assert (out.strip(), messages) == (b"256000", [{"exit": 0}])


async def test_who_left_is_noticed_though_the_command_reads_nothing_and_says_nothing(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as api:
        socket = await api.http.ws_connect(f"{api.base}/api/v1/commands", max_msg_size=0)
        run = {"argv": ["sh", "-c", "echo $$; exec sleep 600"]}
        await socket.send_str(json.dumps({"run": run}))
        pid = int((await until(socket, b"\n")).replace(b"\1", b""))
        for _ in range(30):  # far more than is kept for it
            await socket.send_bytes(b"x" * 32_000)
        connection = socket._response.connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()
        await eventually(lambda: birth(pid) is None)
        await eventually(lambda: not api.services.terminals._commands)
        await socket.close()


async def test_a_message_is_bounded_and_the_token_wanted(tmp_path: Path) -> None:
    token = AgentdToken("a-token-of-this-agent")
    async with site(tmp_path, token=token) as api:
        path = f"{TERMINALS}/{await started(api)}"
        async with connected(api, path) as socket:
            await socket.send_bytes(b"x" * (64 * 1024 + 1))
            while not socket.closed:
                await socket.receive(timeout=20)
            assert socket.close_code == 1009
        async with connected(api, path) as socket:
            await socket.send_str("{}")
            while not socket.closed:
                await socket.receive(timeout=20)
            assert socket.close_code == 1008
        async with aiohttp.ClientSession() as stranger:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await stranger.ws_connect(api.base + path)
            assert refused.value.status == 401
