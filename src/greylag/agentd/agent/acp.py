"""The protocol between agentd and the agent: JSON-RPC 2.0, one JSON object on each line (ACP).

Messages are handled strictly in order, one at a time: the next line is read only after the handler
of the last one has returned. So updates keep their order, and a slow handler slows the other side
down instead of growing memory.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import structlog

from greylag.agentd.agent.types import AgentDiedError, AgentRefusedError
from greylag.agentd.shortening import LineShortener
from greylag.common.typed import holds_more, parse_encodable

LONG_LINE = 12 * 1024 * 1024
LINE_LIMIT = 32 * 1024 * 1024
"""Bytes of a line from which on its texts are shortened, and that it may have at most then."""
MOST_VALUES = 1_000_000
"""Texts, lists, objects and commas that a line may have: a tenth of a second, 60 MB."""
_INTERNAL_ERROR = -32603
_LONGEST_ID = 200  # of a question's, which is kept until it is answered
_READ_SIZE = 64 * 1024
_HEAD = 4096
_ANSWER = re.compile(rb'\A.{0,40}"id":(\d{1,15}),"result":')
_TOOL_RESULT = re.compile(
    rb'"sessionId":"([^"]{1,200})".{0,100}"toolCallId":"([^"]{1,200})","status":"(completed|failed)"'
)

_log = structlog.get_logger(__name__)


class ByteReader(Protocol):
    """Where the other side's bytes come from, as ``asyncio.StreamReader``."""

    async def read(self, n: int, /) -> bytes:
        """Return up to ``n`` bytes as soon as there are some, b"" at the end."""
        ...


class ByteWriter(Protocol):
    """Where bytes to the other side go, as ``asyncio.StreamWriter``."""

    def write(self, data: bytes, /) -> None:
        """Send; ``drain`` waits for room."""

    async def drain(self) -> None:
        """Wait until more may be written.

        Raises:
            OSError: the other side is gone.
        """


class MessageHandler(Protocol):
    """Takes what the other side sends unasked.

    Neither method may wait for an answer of the same peer: the answer is behind it in the queue.
    What one raises is logged, and its message is dropped; a question is refused.
    """

    async def notification(self, method: str, params: dict[str, Any]) -> None:
        """Take a message that wants no answer."""

    async def request(self, request_id: str | int, method: str, params: dict[str, Any]) -> None:
        """Take a message that wants an answer, which ``AcpPeer.respond`` or ``refuse`` gives."""


class AcpPeer:
    """One side of a conversation in JSON-RPC 2.0.

    ``run`` must be running for answers to arrive.
    """

    def __init__(self, reader: ByteReader, writer: ByteWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._over: str | None = None

    async def run(self, handler: MessageHandler, on_end: Callable[[], None] | None = None) -> None:
        """Read and handle messages until the other side closes the stream.

        Args:
            handler: takes what the other side sends unasked.
            on_end: called at the end, before open requests fail.

        Raises:
            AgentDiedError: the stream broke.
        """
        try:
            async for line in _lines(self._reader):
                await self._handle(line, handler)
        except OSError as error:
            raise AgentDiedError(f"the pipe from the agent broke: {error}") from error
        finally:
            if on_end is not None:
                on_end()
            self._over = "the agent process has ended"
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_exception(AgentDiedError(self._over))

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        """Send a request and return its ``result``.

        Raises:
            AgentRefusedError: the other side answered with an error.
            AgentDiedError: the stream ended before the answer came.
        """
        self._last_id += 1
        request_id = self._last_id
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = answer
        try:
            await self._send({"id": request_id, "method": method, "params": params})
            return await answer
        finally:
            del self._pending[request_id]

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        """Send a message that wants no answer."""
        await self._send({"method": method, "params": params})

    async def respond(self, request_id: str | int, result: Any) -> None:
        """Answer a request of the other side."""
        await self._send({"id": request_id, "result": result})

    async def refuse(self, request_id: str | int, code: int, message: str) -> None:
        """Answer a request of the other side with an error."""
        await self._send({"id": request_id, "error": {"code": code, "message": message}})

    async def _send(self, message: dict[str, Any]) -> None:
        if self._over is not None:
            raise AgentDiedError(self._over)
        line = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":"))
        try:
            self._writer.write(line.encode() + b"\n")
            await self._writer.drain()
        except (OSError, RuntimeError) as error:  # RuntimeError: uvloop, on a closed pipe
            raise AgentDiedError(f"the pipe to the agent broke: {error}") from error

    async def _handle(self, line: bytes, handler: MessageHandler) -> None:
        if holds_more(line, MOST_VALUES):
            line = _instead(line[:_HEAD], len(line))
        try:
            message = parse_encodable(line)
        except ValueError:
            _log.warning("acp_line_ignored", reason="not JSON", size=len(line))
            return
        if not isinstance(message, dict):
            _log.warning("acp_line_ignored", reason="not an object", size=len(line))
            return
        method = message.get("method")
        request_id = message.get("id")
        if not isinstance(method, str):
            self._settle(request_id, message)
            return
        if isinstance(request_id, str) and len(request_id) > _LONGEST_ID:
            _log.warning("acp_line_ignored", reason="its id is too long", size=len(line))
            return
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        asked = request_id if isinstance(request_id, str | int) else None
        try:
            if asked is None:
                await handler.notification(method, params)
            else:
                await handler.request(asked, method, params)
        except AgentDiedError:
            raise
        except Exception:  # noqa: BLE001 - a defect of ours, of which the log has all; what the other side says must not end us
            _log.exception("acp_message_not_handled", method=method[:_HEAD])
            if asked is not None:
                await self.refuse(asked, _INTERNAL_ERROR, "it could not be handled")

    def _settle(self, request_id: Any, message: dict[str, Any]) -> None:
        """Give an answer to whoever waits; one that nobody waits for any more is dropped."""
        answer = self._pending.get(request_id) if isinstance(request_id, int) else None
        if answer is None or answer.done():
            return
        error = message.get("error")
        if isinstance(error, dict):
            code, words = error.get("code"), error.get("message")
            refusal = AgentRefusedError(
                code if isinstance(code, int) else 0,
                words if isinstance(words, str) else "the agent gave no reason",
                error.get("data"),
            )
            answer.set_exception(refusal)
        else:
            answer.set_result(message.get("result"))


async def _lines(reader: ByteReader) -> AsyncIterator[bytes]:
    """Yield whole lines; a last line without an end (the process was killed) is dropped.

    Of a line that is longer than ``LONG_LINE`` the long texts are shortened; of one that stays too
    long the beginning tells what is handled instead.
    """
    rest = bytearray()
    long: _LongLine | None = None
    while chunk := await reader.read(_READ_SIZE):
        first, *more = chunk.split(b"\n")
        if long is None and len(rest) + len(first) > LONG_LINE:
            long = _LongLine()
            await long.feed(rest)
            rest.clear()
        if long is None:
            rest += first
        else:
            await long.feed(first)
        if more:
            yield bytes(rest) if long is None else long.line()
            long = None
            *whole, last = more
            for line in whole:
                yield line
            rest = bytearray(last)


class _LongLine:
    """A line that is shortened as it comes; of one that stays too long only the head is kept."""

    def __init__(self) -> None:
        self._texts = LineShortener()
        self._too_long = 0

    async def feed(self, data: bytes | bytearray) -> None:
        """Take more of it, however much, and let others run meanwhile."""
        for at in range(0, len(data), _READ_SIZE):
            self._take(bytes(data[at : at + _READ_SIZE]))
            await asyncio.sleep(0)

    def _take(self, piece: bytes) -> None:
        if self._too_long:
            self._too_long += len(piece)
            return
        self._texts.feed(piece)
        line = self._texts.line
        if len(line) > LINE_LIMIT or self._texts.values > MOST_VALUES:
            self._too_long = len(line)
            del line[_HEAD:]

    def line(self) -> bytes:
        """Return it as it is kept, or what stands for it."""
        line = bytes(self._texts.line)
        return _instead(line, self._too_long) if self._too_long else line


def _instead(head: bytes, size: int) -> bytes:
    """Return what stands for a line that is too large: whoever waits for its end learns of it."""
    words = f"{size} bytes, which is too large to keep"
    _log.warning("acp_line_left_out", size=size)
    if answer := _ANSWER.search(head):
        error = {"code": 0, "message": f"The agent's answer has {words}."}
        return json.dumps({"id": int(answer[1]), "error": error}).encode()
    if result := _TOOL_RESULT.search(head):
        session, call, status = (part.decode("utf-8", "replace") for part in result.groups())
        content = {"type": "text", "text": f"[a result of {words}]"}
        update: dict[str, Any] = {"sessionUpdate": "tool_call_update", "toolCallId": call}
        update |= {"status": status, "content": [{"type": "content", "content": content}]}
        params = {"sessionId": session, "update": update}
        return json.dumps({"method": "session/update", "params": params}).encode()
    return b"{}"
