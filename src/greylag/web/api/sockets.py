"""WebSockets of the agent's API on the platform: each of the table, relayed message by message.

A refusal before one is open is an HTTP answer. Past that it is a last message, and the connection
ends with a code that says whether coming back helps (`docs/terminal.md`).
"""

import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
from fastapi import APIRouter, WebSocket

from greylag.common import agent_api, sockets
from greylag.common.agent_api import OpenSocket, Socket
from greylag.domain.errors import GreylagError
from greylag.domain.users import Action
from greylag.web.access_watch import REFUSALS
from greylag.web.api.projects import PROJECT
from greylag.web.deps import ProjectCallDep, RequestContext

_log = structlog.get_logger(__name__)
router = APIRouter()


def _handler(socket: Socket) -> Callable[..., Coroutine[Any, Any, None]]:
    async def relay(client: WebSocket, call: ProjectCallDep) -> None:
        parts = {name: str(client.path_params[name]) for name in socket.parameters}
        opening = await call.use_cases.agents.socket(*call.at, socket, parts)
        with call.streams.place(call.ref):
            async with opening as agent:
                await client.accept()
                async with _audited(socket, call, parts):
                    await _relay(client, agent, call)

    return relay


@asynccontextmanager
async def _audited(
    socket: Socket, call: RequestContext, parts: dict[str, str]
) -> AsyncIterator[None]:
    """Log who opened it, and when it ended; user and project are bound to every line."""
    about = {"principal": call.principal.name, **parts}
    began = time.monotonic()
    _log.info(f"{socket.name}_opened", **about)
    try:
        yield
    finally:
        _log.info(f"{socket.name}_closed", **about, seconds=round(time.monotonic() - began, 1))


async def _relay(client: WebSocket, agent: OpenSocket, call: RequestContext) -> None:
    try:
        async with call.while_allowed(Action.TERMINAL_USE):
            code = await sockets.join(client, agent)
    except sockets.SocketClosedError:
        return
    except GreylagError as error:
        code = sockets.WRONG if isinstance(error, REFUSALS) else sockets.FAILED
        told = {"code": error.info.code, "message": error.info.message, "hint": error.info.hint}
        with suppress(sockets.SocketClosedError):
            await sockets.send(client, json.dumps({"error": told}))
    await sockets.close(client, code)


for _socket in agent_api.SOCKETS:
    router.add_api_websocket_route(PROJECT + _socket.path, _handler(_socket))
