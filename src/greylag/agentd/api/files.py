"""The workspace's files over HTTP: lists, contents with ranges and conditions, archives, search."""

import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from greylag.agentd.api.requests import answer, read_object, relayed, text, whole_number
from greylag.agentd.files import WorkspaceFiles
from greylag.agentd.problems import RequestError, invalid
from greylag.common import agent_api
from greylag.common.agent_api import FileEntry
from greylag.common.clock import parse_rfc3339
from greylag.execd.files import ANY

_SMALL_BODY = 64 * 1024
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_MODE = re.compile("[0-7]{3}")
_MOST_QUERY = 200
_FORMATS = ("tar.gz", "zip")

_log = structlog.get_logger(__name__)


class FileRoutes:
    """Handlers for ``/api/v1/files``; ``agent_api`` describes them."""

    def __init__(self, files: WorkspaceFiles) -> None:
        self._files = files

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            relayed(agent_api.LIST_FILES, self._list),
            relayed(agent_api.DELETE_FILE, self._delete),
            relayed(agent_api.READ_FILE, self._read),
            relayed(agent_api.WRITE_FILE, self._write),
            relayed(agent_api.MAKE_FOLDER, self._make_folder),
            relayed(agent_api.MOVE_FILE, self._move),
            relayed(agent_api.READ_ARCHIVE, self._archive),
            relayed(agent_api.UNPACK_ARCHIVE, self._unpack),
            relayed(agent_api.SEARCH_FILES, self._search),
        ]

    async def _list(self, request: Request) -> Response:
        default, most = agent_api.ENTRIES, agent_api.MOST_ENTRIES
        limit = whole_number(request, "limit", default=default, most=most)
        after = request.query_params.get("after", "")
        return answer(await self._files.page(_path(request), after, limit))

    async def _delete(self, request: Request) -> Response:
        recursive = request.query_params.get("recursive", "false")
        if recursive not in {"true", "false"}:
            raise invalid("recursive must be true or false.")
        await self._files.remove(_path(request), recursive=recursive == "true")
        return Response(status_code=204)

    async def _read(self, request: Request) -> Response:
        entry = await self._file(_path(request))
        asked = request.headers
        headers = {"etag": entry.etag, "accept-ranges": "bytes"}
        if not _holds(asked.get("if-match", "*"), entry.etag):
            raise RequestError("file_changed", f"It is another by now: {entry.path}")
        if "if-none-match" in asked and _holds(asked["if-none-match"], entry.etag):
            return Response(status_code=304, headers=headers)
        whole = asked.get("if-range", entry.etag) != entry.etag
        part = None if whole else _range(asked.get("range", ""), entry.size)
        start, length = (0, entry.size) if part is None else part
        if part is not None:
            headers["content-range"] = f"bytes {start}-{start + length - 1}/{entry.size}"
        headers["content-length"] = str(length)
        opening = self._files.read(entry, start, length)
        return _ContentResponse(opening, 200 if part is None else 206, headers)

    async def _file(self, path: str) -> FileEntry:
        entry = await self._files.show(path)
        if entry.kind != "file":
            raise RequestError("not_a_file", f"It is a {entry.kind}, not a file: {entry.path}")
        return entry

    async def _write(self, request: Request) -> Response:
        path = _path(request)
        mode, modified = (request.query_params.get(one) for one in ("mode", "modified"))
        if mode is not None and not _MODE.fullmatch(mode):
            raise invalid("mode must be three octal digits.")
        entry = await self._files.write(
            path,
            _wanted_tag(request),
            _body(request),
            mode=None if mode is None else int(mode, 8),
            modified=None if modified is None else _moment(modified),
        )
        return answer(entry)

    async def _make_folder(self, request: Request) -> Response:
        body = await read_object(request, _SMALL_BODY, "path")
        return answer(await self._files.make_folder(_member(body, "path")), 201)

    async def _move(self, request: Request) -> Response:
        body = await read_object(request, _SMALL_BODY, "source", "target", "replace")
        replace = body.get("replace", False)
        if not isinstance(replace, bool):
            raise invalid("replace must be true or false.")
        source, target = _member(body, "source"), _member(body, "target")
        return answer(await self._files.move(source, target, replace=replace))

    async def _archive(self, request: Request) -> Response:
        return _ContentResponse(self._files.archive(_path(request), _format(request)), 200, {})

    async def _unpack(self, request: Request) -> Response:
        form, path = _format(request), _path(request)
        source = request.query_params.get("source")
        if source is None:
            return answer(await self._files.unpack(path, form, _body(request)))
        entry = await self._file(source)
        async with self._files.read(entry, 0, entry.size) as content:
            return answer(await self._files.unpack(path, form, content))

    async def _search(self, request: Request) -> Response:
        wanted = request.query_params.get("q", "")
        if not wanted or len(wanted) > _MOST_QUERY or "\n" in wanted or "\0" in wanted:
            raise invalid(f"q must be one line of up to {_MOST_QUERY} characters.")
        default, most = agent_api.MATCHES, agent_api.MOST_MATCHES
        limit = whole_number(request, "limit", default=default, most=most)
        return answer(await self._files.search(_path(request), wanted, limit))


class _ContentResponse(Response):
    """A response whose content is opened when it is sent, and closed however that ends.

    A refusal on opening is an answer of its own. Past it the connection ends before the content
    does, so that no client takes a part for the whole.
    """

    def __init__(
        self,
        opening: AbstractAsyncContextManager[AsyncIterator[bytes]],
        status: int,
        headers: dict[str, str],
    ) -> None:
        super().__init__()
        self._opening = opening
        self._status = status
        self._named = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        begun = False
        try:
            async with self._opening as chunks:
                begun = True
                media = agent_api.BYTES
                response = StreamingResponse(chunks, self._status, self._named, media)
                await response(scope, receive, send)
        except RequestError as error:
            if not begun:
                raise
            _log.warning("content_cut", code=error.code, error=error.message)


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise invalid("The request's body broke off.") from error


def _wanted_tag(request: Request) -> str | None:
    """Return what the conditions ask of the file that is there."""
    match, none_match = (request.headers.get(one) for one in ("if-match", "if-none-match"))
    if none_match is not None:
        if none_match.strip() != "*" or match is not None:
            raise invalid("A write takes If-Match with one tag, or If-None-Match: *.")
        return ""
    if match is None or match.strip() == "*":
        return match and ANY
    return match.strip(' "*') or "none"


def _moment(said: str) -> float:
    try:
        return parse_rfc3339(said).timestamp()
    except ValueError as error:
        raise invalid("modified must be a moment as RFC 3339 has it.") from error


def _path(request: Request) -> str:
    return request.query_params.get("path", "")


def _format(request: Request) -> str:
    form = request.query_params.get("format", _FORMATS[0])
    if form not in _FORMATS:
        raise invalid("format must be tar.gz or zip.")
    return form


def _member(body: dict[str, object], name: str) -> str:
    value = text(body, name)
    if value is None:
        raise invalid(f"The body must have {name}.")
    return value


def _holds(condition: str, etag: str) -> bool:
    return condition.strip() == "*" or etag in {one.strip() for one in condition.split(",")}


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Return start and length of the one range that is asked for, ``None`` for all (RFC 9110, 14).

    Raises:
        RequestError: ``range_not_satisfiable``.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last or size), size - 1)
        if last and int(last) < start:
            return None
    else:
        start, end = max(size - int(last), 0), size - 1
    if start > end:
        raise RequestError("range_not_satisfiable", f"The file has {size} bytes.")
    return start, end - start + 1
