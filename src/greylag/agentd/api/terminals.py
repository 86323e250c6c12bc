"""Terminals and commands over HTTP and WebSockets; ``docs/terminal.md`` has the messages."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket

from greylag.agentd.api.requests import answer, read_object, refusal, relayed
from greylag.agentd.execution import ExecutionError, RemoteOutput, RemoteProcess
from greylag.agentd.problems import RequestError, invalid
from greylag.agentd.terminals import RunningTerminal, TerminalReader, Terminals
from greylag.common import agent_api, sockets
from greylag.common.concurrent import beside, until_one_ends
from greylag.common.typed import parse_json
from greylag.execd.protocol import MOST_DATA

_SMALL_BODY = 4096
_SIDES = range(1, agent_api.MOST_SIZE + 1)
_MOST_SIGNAL = 64
_FIRST_MESSAGE_SECONDS = 30.0
_LIFE_SECONDS = 5.0
"""Half of what a page waits for an answer before it takes the connection for dead."""
_STDOUT, _STDERR = b"\x01", b"\x02"
_PIECE = MOST_DATA - 1  # with the byte that says whose it is, a message


class TerminalRoutes:
    """Handlers for ``/api/v1/terminals`` and ``/api/v1/commands``; ``agent_api`` describes them."""

    def __init__(self, terminals: Terminals) -> None:
        self._terminals = terminals

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        attach, command = agent_api.TERMINAL_SOCKET, agent_api.COMMAND_SOCKET
        return [
            relayed(agent_api.LIST_TERMINALS, self._list),
            relayed(agent_api.START_TERMINAL, self._start),
            relayed(agent_api.END_TERMINAL, self._end),
            WebSocketRoute(agent_api.ROOT + attach.path, self._attach),
            WebSocketRoute(agent_api.ROOT + command.path, self._command),
        ]

    async def _list(self, _request: Request) -> Response:
        return answer(agent_api.TerminalList([one.shown() for one in self._terminals.all()]))

    async def _start(self, request: Request) -> Response:
        rows, columns = _size(await read_object(request, _SMALL_BODY, "rows", "columns"))
        return answer((await self._terminals.start(rows, columns)).shown(), 201)

    async def _end(self, request: Request) -> Response:
        await self._terminals.end(request.path_params["terminal"])
        return Response(status_code=204)

    async def _attach(self, socket: WebSocket) -> None:
        try:
            terminal = self._terminals.get(socket.path_params["terminal"])
        except RequestError as error:
            await socket.send_denial_response(refusal(error))
            return
        async with _open(socket):
            with terminal.attached() as reader:
                size = {"rows": terminal.rows, "columns": terminal.columns}
                await _tell(socket, attached={**size, "replay": reader.replay, "pings": True})
                await until_one_ends(
                    output=_show(socket, terminal, reader),
                    input=_type(socket, terminal),
                    left=sockets.left(socket),
                )

    async def _command(self, socket: WebSocket) -> None:
        try:
            with self._terminals.place_for_command():
                async with _open(socket):
                    process = await self._started(socket)
                    try:
                        await until_one_ends(
                            output=_say(socket, process),
                            input=_pass_input(socket, process),
                            taken=_tell_taken(socket, process),
                            left=sockets.left(socket),
                        )
                    finally:
                        await process.end()
        except RequestError as error:
            await socket.send_denial_response(refusal(error))

    async def _started(self, socket: WebSocket) -> RemoteProcess:
        try:
            async with asyncio.timeout(_FIRST_MESSAGE_SECONDS):
                came = _control(await sockets.received(socket), "run")
        except TimeoutError as error:
            raise invalid("The first message must say what to run.") from error
        asked = _object(came["run"], "argv", "folder", "terminal")
        argv, folder, size = (asked.get(one) for one in ("argv", "folder", "terminal"))
        texts = isinstance(argv, list) and all(isinstance(one, str) for one in argv)
        if not texts or not argv or any("\0" in one for one in argv):
            raise invalid("argv must be a list of texts, the program first.")
        if not isinstance(folder or "", str):
            raise invalid("folder must be a text.")
        terminal = None if size is None else _size(_object(size, "rows", "columns"))
        return await self._terminals.run(argv, folder=folder or "", size=terminal)


@asynccontextmanager
async def _open(socket: WebSocket) -> AsyncIterator[None]:
    """Open a connection for the block; then tell what went wrong, if anything, and close it."""
    await socket.accept()
    code = sockets.NORMAL
    try:
        yield
    except sockets.SocketClosedError:
        return
    except RequestError as error:
        code = sockets.WRONG if error.code == "invalid_request" else sockets.FAILED
        with suppress(sockets.SocketClosedError):
            await _tell(socket, error={"code": error.code, "message": error.message, "hint": ""})
    except OSError:  # execd went away, which the terminal's own end tells better
        code = sockets.FAILED
    await sockets.close(socket, code)


async def _tell(socket: WebSocket, **message: Any) -> None:
    await sockets.send(socket, json.dumps(message))


# A terminal.


async def _show(socket: WebSocket, terminal: RunningTerminal, reader: TerminalReader) -> None:
    while (output := await reader.read()) is not None:
        if output.skipped:
            await _tell(socket, skipped=output.skipped)
        await sockets.send(socket, output.data)
    await _tell(socket, exit=terminal.exit_code)


async def _type(socket: WebSocket, terminal: RunningTerminal) -> None:
    while True:
        came = await sockets.received(socket)
        async with beside(_show_life(socket), "life of a terminal"):
            if isinstance(came, bytes):
                await terminal.write(came)
                continue
            match _control(came, "resize", "ping"):
                case {"resize": size}:
                    await terminal.resize(*_size(_object(size, "rows", "columns")))
                case _:
                    await _tell(socket, pong=True)


async def _show_life(socket: WebSocket) -> None:
    """Answer the ping that waits behind input which its program does not read."""
    with suppress(sockets.SocketClosedError):
        while True:
            await asyncio.sleep(_LIFE_SECONDS)
            await _tell(socket, pong=True)


# A command.


async def _say(socket: WebSocket, process: RemoteProcess) -> None:
    async def carry(mark: bytes, output: RemoteOutput) -> None:
        while data := await output.read(_PIECE):
            await sockets.send(socket, mark + data)

    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(carry(_STDOUT, process.stdout), name="stdout")
            both.create_task(carry(_STDERR, process.stderr), name="stderr")
    except* sockets.SocketClosedError as gone:
        raise sockets.SocketClosedError from gone
    try:
        await _tell(socket, exit=await process.wait())
    except ExecutionError:
        await _tell(socket, exit=None)


async def _pass_input(socket: WebSocket, process: RemoteProcess) -> None:
    while True:
        came = await sockets.received(socket)
        if isinstance(came, bytes):
            process.write(came)
            await process.drain()
            continue
        match _control(came, "end_input", "resize", "signal"):
            case {"end_input": True}:
                process.end_input()
            case {"resize": size}:
                process.resize(*_size(_object(size, "rows", "columns")))
            case {"signal": int(number)} if 0 < number <= _MOST_SIGNAL:
                process.send_signal(number)
            case _:
                raise invalid("A message is not of the form that it must have.")
        with suppress(OSError):  # it has ended, which is told
            await process.drain()


async def _tell_taken(socket: WebSocket, process: RemoteProcess) -> None:
    """Tell a client that sends much how far the command has read: who sends much more before it has
    keeps us from hearing what comes behind, be it a signal or the connection's end.
    """
    told: int | None = None
    while process.is_paced:
        news = process.written if told is None else process.taken - told
        if news < MOST_DATA:
            await process.input_moved()
            continue
        told = process.taken
        await _tell(socket, taken=told)
    await asyncio.Event().wait()  # an execd of an older version tells nothing


# What a message may be.


def _control(came: bytes | str, *known: str) -> dict[str, Any]:
    """Return a text message's object, which has one member that is known."""
    if isinstance(came, bytes) or len(came) > MOST_DATA:
        raise invalid("A text message must come here.")
    try:
        found = parse_json(came.encode())
    except ValueError as error:
        raise invalid("A text message must be JSON.") from error
    if len(message := _object(found, *known)) != 1:
        raise invalid("A text message must have one member.")
    return message


def _object(value: Any, *known: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not set(value) <= set(known):
        raise invalid(f"There must be an object with no other members than {', '.join(known)}.")
    return value


def _size(value: dict[str, Any]) -> tuple[int, int]:
    return _side(value.get("rows")), _side(value.get("columns"))


def _side(value: object) -> int:
    # 24.0 is a whole number as JSON Schema has it, and true is none.
    if isinstance(value, int | float) and value is not True and value in _SIDES:
        return int(value)
    raise invalid(f"rows and columns must be whole numbers from 1 to {agent_api.MOST_SIZE}.")
