"""The scripted agent: stands in for goose where goose is not installed.

``python -m greylag.agentd.agent.scripted`` speaks the part of ACP that agentd uses, over stdio.
Every prompt gets the same kind of answer: that this is a demonstration, and how to install goose.
"""

import asyncio
import re
import sys
from datetime import UTC, datetime
from typing import Any

import structlog

from greylag.agentd.agent.acp import AcpPeer
from greylag.agentd.agent.types import METHOD_NOT_FOUND

_DELAY_SECONDS = 0.025
_ECHO_LIMIT = 200
_ANSWER = (
    'You wrote: "{said}". This is a demonstration: goose is not installed here, so the scripted '
    "agent answers. It runs no tools and asks no model. To get the real agent, install Node.js 20 "
    "or newer and run `make setup`, or put `goose` on your PATH; then start Greylag again."
)
_PLAIN_ANSWERS: dict[str, dict[str, Any]] = {
    "initialize": {
        "protocolVersion": 1,
        "agentCapabilities": {"loadSession": False},
        "agentInfo": {"name": "scripted", "version": "1"},
    },
    "session/delete": {},
    "_goose/unstable/session/archive": {},
    "_goose/unstable/config/extensions/list": {"extensions": [], "warnings": []},
    "_goose/unstable/config/read": {"value": None},
}


class ScriptedAgent:
    """Answers one client."""

    def __init__(self, peer: AcpPeer) -> None:
        self._peer = peer
        self._turns: dict[str, asyncio.Task[None]] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._sessions = 0

    async def notification(self, method: str, params: dict[str, Any]) -> None:
        """Take ``session/cancel``; nothing else is told to an agent."""
        turn = self._turns.get(str(params.get("sessionId")))
        if method == "session/cancel" and turn is not None:
            turn.cancel()

    async def request(self, request_id: str | int, method: str, params: dict[str, Any]) -> None:
        """Answer a request; a prompt is answered by a task, so that it can be cancelled."""
        if method == "session/prompt":
            self._begin_turn(request_id, params)
        elif method == "session/new":
            self._sessions += 1
            name = f"scripted-{datetime.now(UTC):%Y%m%d%H%M%S%f}-{self._sessions}"
            await self._peer.respond(request_id, {"sessionId": name})
        elif method in _PLAIN_ANSWERS:
            await self._peer.respond(request_id, _PLAIN_ANSWERS[method])
        else:
            reason = f"the scripted agent has no method {method}"
            await self._peer.refuse(request_id, METHOD_NOT_FOUND, reason)

    def _begin_turn(self, request_id: str | int, params: dict[str, Any]) -> None:
        session = str(params.get("sessionId"))
        turn = asyncio.create_task(
            self._answer(session, _text_of(params)), name=f"answer-{session}"
        )
        self._turns[session] = turn
        ending = asyncio.create_task(
            self._end_turn(request_id, session, turn), name=f"end-{session}"
        )
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _end_turn(
        self, request_id: str | int, session: str, turn: "asyncio.Task[None]"
    ) -> None:
        await asyncio.wait({turn})
        if self._turns.get(session) is turn:
            del self._turns[session]
        reason = "cancelled" if turn.cancelled() else "end_turn"
        await self._peer.respond(request_id, {"stopReason": reason})

    async def _answer(self, session: str, text: str) -> None:
        said = " ".join(text.split())[:_ECHO_LIMIT]
        for word in re.findall(r"\S+\s*", _ANSWER.format(said=said)):
            update = {
                "sessionUpdate": "agent_message_chunk",
                "content": {"type": "text", "text": word},
                "messageId": "scripted",
            }
            await self._peer.notify("session/update", {"sessionId": session, "update": update})
            await asyncio.sleep(_DELAY_SECONDS)


def _text_of(params: dict[str, Any]) -> str:
    blocks = params.get("prompt") or []
    return " ".join(str(block.get("text", "")) for block in blocks if isinstance(block, dict))


async def serve_stdio() -> None:
    """Answer the client on stdin and stdout until it closes stdin."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop=loop), sys.stdout
    )
    peer = AcpPeer(reader, asyncio.StreamWriter(transport, protocol, None, loop))
    await peer.run(ScriptedAgent(peer))


if __name__ == "__main__":
    # stdout belongs to the protocol.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(serve_stdio())
