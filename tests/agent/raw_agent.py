"""An agent that answers bytes of a test's choice, and keeps what it was asked."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from greylag.ports import AgentAddress

Answer = Callable[["Asked", asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@dataclass
class Asked:
    """One request: its first line and its headers by lower-case name."""

    line: str
    headers: dict[str, str]


@dataclass
class RawAgent:
    """Where it is, what it was asked, and how many connections it has."""

    at: AgentAddress
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0


def said(status: str, body: bytes = b"", **headers: str) -> Answer:
    """Answer so, to everything, once the request's head has come."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    more = {"content-type": "application/json", "content-length": str(len(body)), **given}
    lines = "".join(f"{name}: {value}\r\n" for name, value in more.items())
    head = f"HTTP/1.1 {status}\r\nconnection: close\r\n{lines}\r\n".encode()

    async def answer(
        _asked: Asked, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(head + body)
        await writer.drain()

    return answer


@asynccontextmanager
async def raw_agent(answer: Answer) -> AsyncIterator[RawAgent]:
    """Serve on a free port of this machine."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        agent.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *rest = head.strip().split("\r\n")
            pairs = (each.partition(": ") for each in rest)
            asked = Asked(line, {name.lower(): value for name, _, value in pairs})
            agent.asked.append(asked)
            await answer(asked, reader, writer)
        except (ConnectionError, EOFError):
            return
        finally:
            writer.close()
            agent.connections -= 1

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    agent = RawAgent(AgentAddress(f"http://localhost:{port}", "the agent's token"))
    async with server:
        yield agent
