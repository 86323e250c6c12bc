"""The agent's own API on the platform: each operation and each WebSocket of the table, relayed.

A route authorizes as every other one, asks the agent, and hands on what comes, in constant memory.
A WebSocket's messages are handed on one by one: a refusal before it is open is an HTTP answer; past
that it is a last message, and a code that says whether coming back helps (``docs/terminal.md``).
"""

import json
import mimetypes
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from types import MappingProxyType, NoneType
from typing import Any, TypeVar

import structlog
from fastapi import APIRouter, Request, WebSocket
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from greylag.common import agent_api, sockets
from greylag.common.agent_api import OpenSocket, Operation, Parameter, Socket
from greylag.common.typed import parse_json
from greylag.domain.errors import GreylagError, InvalidRequestError, TooLargeError
from greylag.domain.names import MAX_ID_LENGTH, SEGMENT_FORM
from greylag.domain.users import Action
from greylag.ports import AgentAnswer, AgentRequest
from greylag.services.agents import action_of
from greylag.web.deps import (
    PROJECT,
    ProjectCallDep,
    RequestContext,
    Responses,
    api_router,
    problems,
)
from greylag.web.request_log import POLICY
from greylag.web.stream import REFUSALS

T = TypeVar("T")
MAX_PAGE_BYTES = 2 * agent_api.MEBIBYTE
"""The most of an answer that is read whole, to show it on a page."""

_log = structlog.get_logger(__name__)
router = api_router()
socket_router = APIRouter()


async def ask(
    call: RequestContext,
    operation: Operation[T],
    query: Mapping[str, str] = MappingProxyType({}),
    sent: Mapping[str, Any] | None = None,
    **parts: str,
) -> T:
    """Ask the agent, with ``sent`` as the body, and return its answer whole, checked, in the
    operation's shape.

    Raises:
        GreylagError: as the relay does; ``AgentFailedError`` for an answer of another shape.
    """
    body = None if sent is None else _once(json.dumps(sent).encode())
    asked = AgentRequest(operation, parts, query, body=body, told=_told(operation, sent))
    opening = await call.use_cases.agents.relay(*call.at, asked)
    return await read_whole(opening, operation)


async def read_whole(
    opening: AbstractAsyncContextManager[AgentAnswer], operation: Operation[T]
) -> T:
    """Return an answer that was asked for, as ``ask`` does."""
    shape = TypeAdapter(operation.answer)
    async with opening as answer:
        return await answer.read(MAX_PAGE_BYTES, lambda body: shape.validate_json(body or b"null"))


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _told(operation: Operation[Any], sent: object) -> Mapping[str, Any]:
    """Return what the audit trail is told of a body, of whatever form it came."""
    given = sent if isinstance(sent, dict) else {}
    found = {name: given.get(name) for name in operation.told}
    return {
        name: one
        for name, one in found.items()
        if isinstance(one, str | bool)
        or (isinstance(one, list) and all(isinstance(each, str) for each in one))
    }


class RelayedAnswer(Response):
    """A response that hands on what the agent answers, or what else streams as one.

    An error before the answer's head is a problem document. Past it, the connection just ends
    before the body does, so that no client takes a part for the whole. So it does once who asked is
    not ``allowed`` it any more. ``cut`` is what the log calls such an end. One that ``lasts`` may
    never end: a server that is to end does not wait for it.
    """

    def __init__(
        self,
        opening: AbstractAsyncContextManager[AgentAnswer],
        allowed: AbstractAsyncContextManager[None],
        cut: str = "relay_cut",
        *,
        lasts: bool = False,
    ) -> None:
        super().__init__()
        self._cut = cut
        self._lasts = lasts
        self._opening = opening
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay until the answer ends or the client leaves."""
        begun = False
        if not self._lasts:
            sockets.finishes(scope)
        try:
            async with self._allowed, self._opening as answer:
                begun = True
                await StreamingResponse(answer.body, answer.status, answer.headers)(
                    scope, receive, send
                )
        except GreylagError as error:
            if not begun:
                raise
            _log.warning(self._cut, code=error.info.code, error=error.info.message)


def _handler(
    operation: Operation[Any],
) -> Callable[[Request, RequestContext], Coroutine[Any, Any, Response]]:
    async def relay(request: Request, call: ProjectCallDep) -> Response:
        body, told = (None if operation.body is None else _body(request)), None
        if body is not None and operation.told:
            whole = b"".join([piece async for piece in body])
            with suppress(ValueError):  # which the agent refuses
                told = parse_json(whole)
            body = _once(whole)
        asked = AgentRequest(
            operation,
            {one.name: request.path_params[one.name] for one in operation.parameters},
            dict(request.query_params),
            dict(request.headers),
            body,
            _told(operation, told),
        )
        opening = await call.use_cases.agents.relay(*call.at, asked)
        if operation.answer is bytes:
            opening = _to_be_saved(opening, asked)
        return RelayedAnswer(opening, call.while_allowed(action_of(operation)))

    return relay


@asynccontextmanager
async def _to_be_saved(
    opening: AbstractAsyncContextManager[AgentAnswer], asked: AgentRequest
) -> AsyncIterator[AgentAnswer]:
    """Open a file under the type of its name; whoever shows it all the same shows a page that may
    do nothing, of nobody's origin.
    """
    async with opening as answer:
        headers = {**answer.headers, POLICY: "default-src 'none'; sandbox"}
        if asked.operation is agent_api.READ_FILE and "content-type" in headers:
            headers["content-type"] = saved_as(asked.query.get("path", ""))
        yield replace(answer, headers=headers)


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise InvalidRequestError("The request's body broke off.") from error
    except HTTPException as error:  # the guard's, for a body past what any route takes
        raise TooLargeError("The request's body is larger than is taken.") from error


# What a file is sent as: what its name says, where no browser can do harm by it.

_SAVED = (
    "application/json",
    "application/x-tar",
    "application/zip",
    "audio/*",
    "image/*",
    "text/csv",
    "text/markdown",
    "text/plain",
    "text/tab-separated-values",
    "text/x-python",
    "video/*",
)
"""What files may be sent as on our own origin, to be saved: nothing that a browser there runs, lays
out pages by, or shows as a page. A picture that is a document (SVG) is none of these.
"""
_TYPES = mimetypes.MimeTypes()  # Python's own, whatever the machine has
for _ending, _media in (
    (".avif", "image/avif"),
    (".js", "text/javascript"),
    (".md", "text/markdown"),
    (".mjs", "text/javascript"),
    (".webp", "image/webp"),
):
    _TYPES.add_type(_media, _ending)
_TEXTS = frozenset({"application/json", "image/svg+xml"})


def saved_as(path: str) -> str:
    """Return the content type of a file on our own origin: one of ``_SAVED``, or that of any."""
    media = _named(path)
    harmless = media in _SAVED or f"{media.partition('/')[0]}/*" in _SAVED
    return media if harmless and not media.endswith("+xml") else agent_api.BYTES


def shown_as(path: str) -> str:
    """Return the content type of a file on an origin of its own, where it is shown."""
    media = _named(path)
    media = "text/plain" if media == "text/markdown" else media  # browsers would save it
    return f"{media}; charset=utf-8" if media.startswith("text/") or media in _TEXTS else media


def _named(path: str) -> str:
    # Without the dot a name might be taken for an address, which says its type itself.
    media, packed = _TYPES.guess_type(f"./{path}", strict=False)
    return agent_api.BYTES if media is None or packed else media


_FILES = [
    (one, compile_path(PROJECT + one.path)[0])
    for one in agent_api.OPERATIONS
    if bytes in {one.body, one.answer}
]


def takes_file(method: str, path: str) -> bool:
    """Tell whether a request's body is a file, which passes in constant memory, however long."""
    return any(one.body is bytes and _is(one, where, method, path) for one, where in _FILES)


def gives_file(method: str, path: str) -> bool:
    """Tell whether a request is for a file, of whose very bytes its ranges and its ETag are."""
    return any(one.answer is bytes and _is(one, where, method, path) for one, where in _FILES)


def _is(operation: Operation[Any], where: re.Pattern[str], method: str, path: str) -> bool:
    return operation.method == method and where.match(path) is not None


# What OpenAPI tells of the operations.


_FILE = {"type": "string", "format": "binary"}
COPIED = {
    agent_api.KEPT_AT: {
        "description": "Only while the environment does not run: the answer is from a copy that "
        "is kept of its conversations, as they were then (RFC 3339). Without a copy it is a 409.",
        "schema": {"type": "string", "format": "date-time"},
    }
}
_UNSHAPED = {str, bytes, NoneType}
_ID = {"minLength": 1, "maxLength": MAX_ID_LENGTH, "pattern": SEGMENT_FORM}


def _documented(place: str, parameter: Parameter, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": place,
        "required": place == "path",
        "description": parameter.text,
        "schema": {**parameter.schema, **more},
    }


def _extra(operation: Operation[Any]) -> dict[str, Any]:
    inside = [_documented("path", one, _ID) for one in operation.parameters]
    inside += [_documented("query", one, {}) for one in operation.query]
    extra: dict[str, Any] = {"parameters": inside}
    if operation.body is not None:
        file = operation.body is bytes
        schema = _FILE
        if not file:
            # agentd refuses a member that it does not know.
            schema = TypeAdapter(operation.body).json_schema() | {"additionalProperties": False}
        content = {agent_api.BYTES if file else agent_api.JSON: {"schema": schema}}
        extra["requestBody"] = {"required": True, "content": content}
    return extra


def _responses(operation: Operation[Any]) -> Responses:
    statuses = [404, 409, 502]
    statuses += [413] if operation.body is not None else []
    statuses += [410] if operation.tag == "changes" else []
    refused = problems(*statuses)
    if operation.kept:
        return {**refused, operation.status: {"description": operation.text, "headers": COPIED}}
    if operation.answer is NoneType:
        return {**refused, operation.status: {"description": "It is done."}}
    if operation.answer in {str, bytes}:
        schema = _FILE if operation.answer is bytes else {"type": "string"}
        content: dict[str, Any] = {operation.media.partition(";")[0]: {"schema": schema}}
        if operation is agent_api.READ_FILE:
            content |= {media: {"schema": {}} for media in _SAVED}
        return {**refused, operation.status: {"description": operation.text, "content": content}}
    return refused


for _each in agent_api.OPERATIONS:
    router.add_api_route(
        PROJECT + _each.path,
        _handler(_each),
        methods=[_each.method],
        name=_each.name,
        summary=_each.summary,
        description=_each.text,
        tags=[_each.tag],
        status_code=_each.status,
        response_model=None if _each.answer in _UNSHAPED else _each.answer,
        response_class=Response if _each.answer in _UNSHAPED else JSONResponse,
        responses=_responses(_each),
        openapi_extra=_extra(_each),
    )


def _socket_handler(socket: Socket) -> Callable[..., Coroutine[Any, Any, None]]:
    async def handle(client: WebSocket, call: ProjectCallDep) -> None:
        parts = {name: str(client.path_params[name]) for name in socket.parameters}
        opening = await call.use_cases.agents.socket(*call.at, socket, parts)
        with call.streams.place(call.principal.user_id, call.ref):
            async with opening as agent:
                if socket is agent_api.COMMAND_SOCKET:  # it would be killed
                    sockets.finishes(client.scope)
                await client.accept()
                async with _audited(socket, call, parts):
                    await _join(client, agent, call)

    return handle


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


async def _join(client: WebSocket, agent: OpenSocket, call: RequestContext) -> None:
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
    socket_router.add_api_websocket_route(PROJECT + _socket.path, _socket_handler(_socket))
