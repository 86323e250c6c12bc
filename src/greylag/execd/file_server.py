"""The operation ``files``: what may be asked of the workspace's files, and how it is answered.

A request names a ``verb``, the folder ``root``, and what the verb takes. ``{"ok": true}`` is
followed by what the verb gives: ``STDOUT`` frames with content, then, when all went well, one
``JSON`` frame: without it, it was not done. ``write`` and ``unpack`` take ``STDIN`` frames, ended
by ``STDIN_END``; without that, nothing is written. Where verbs that change something find it past
links, ``reached`` says by which paths it is known without them.

=======  =============================================  ==========================================
verb     takes                                          gives
=======  =============================================  ==========================================
show     ``path``                                       ``entry``
page     ``path``, ``after``, ``most``                  ``entry``, ``entries``, ``next``
read     ``path``, ``tag``, ``start``, ``length``       content
write    ``path``, ``tag`` ("": new; null: any),        ``entry``
         ``mode``, ``modified`` (null: left)
folder   ``path``                                       ``entry``
move     ``source``, ``target``, ``replace``            ``entry``
remove   ``path``, ``recursive``
archive  ``path``, ``format`` (tar.gz, zip)             content
unpack   ``path``, ``format``                           ``files``, ``left_out``
search   ``path``, ``text``, ``most``                   ``matches``, ``whole``
sync                                                    when all is on the disk
=======  =============================================  ==========================================
"""

import asyncio
import io
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import Any, TypeVar

from greylag.execd.file_search import search
from greylag.execd.files import MOST_ARCHIVES, READ_AT_ONCE, Workspace, refusing, write_all
from greylag.execd.packing import extract, pack_tar, pack_zip, tar_members, zip_members
from greylag.execd.protocol import (
    FrameKind,
    ProtocolError,
    Reader,
    RefusedError,
    Writer,
    agree,
    read_frame,
    send_data,
    text_in,
)

STALLED_SECONDS = 300.0
"""Content of which nothing is taken for so long is broken off; one that is slow is not."""
_UNREAD = "the content is not taken"
# Long work takes a thread each; as many must stay free for ending processes. Archives take as long
# as their readers like, so that nothing else waits for them.
_ARCHIVES = asyncio.Semaphore(MOST_ARCHIVES)
_WORK = asyncio.Semaphore(2)

T = TypeVar("T")


async def answer(request: dict[str, Any], reader: Reader, writer: Writer) -> None:
    """Do what a request asks.

    Raises:
        RefusedError: it cannot be done.
    """
    verb = _VERBS.get(text_in(request, "verb"))
    if verb is None:
        raise RefusedError("unknown_operation", "There is no such verb.")
    await verb(Workspace(text_in(request, "root")), request, reader, writer)


def _with_facts(
    work: Callable[[Workspace, dict[str, Any]], dict[str, Any]],
) -> Callable[[Workspace, dict[str, Any], Reader, Writer], Any]:
    """Return what answers with the facts that ``work`` gives."""

    async def do(files: Workspace, request: dict[str, Any], _: Reader, writer: Writer) -> None:
        await agree(writer)  # the work may take longer than an answer is waited for
        await agree(writer, **await asyncio.to_thread(work, files, request))

    return do


def _show(files: Workspace, request: dict[str, Any]) -> dict[str, Any]:
    return {"entry": files.entry(_path(request))}


def _page(files: Workspace, request: dict[str, Any]) -> dict[str, Any]:
    return files.page(_path(request), _path(request, "after"), _number(request, "most"))


def _folder(files: Workspace, request: dict[str, Any]) -> dict[str, Any]:
    return {"entry": files.folder(_path(request)), "reached": sorted(files.reached)}


def _move(files: Workspace, request: dict[str, Any]) -> dict[str, Any]:
    source, target = _path(request, "source"), _path(request, "target")
    entry = files.move(source, target, replace=request.get("replace") is True)
    return {"entry": entry, "reached": sorted(files.reached)}


def _sync(files: Workspace, _: dict[str, Any]) -> dict[str, Any]:
    files.sync()
    return {}


def _left(reader: Reader) -> bool:
    """Tell whether agentd has left while work waited: it has told that as a failure."""
    return reader.at_eof() or reader.exception() is not None


async def _remove(
    files: Workspace, request: dict[str, Any], reader: Reader, writer: Writer
) -> None:
    path = _path(request)
    await asyncio.to_thread(files.find, path, follow=False)
    await agree(writer, reached=sorted(files.reached))
    async with _WORK:
        if _left(reader):
            return
        recursive = request.get("recursive") is True
        await asyncio.to_thread(files.remove, path, recursive=recursive)
    await agree(writer)


async def _read(files: Workspace, request: dict[str, Any], _: Reader, writer: Writer) -> None:
    left = _number(request, "length")
    opening = files.reading(_path(request), text_in(request, "tag"))
    file = await asyncio.to_thread(opening.__enter__)
    try:
        await agree(writer)
        file.seek(_number(request, "start"))
        while left > 0 and (data := await asyncio.to_thread(file.read, min(left, READ_AT_ONCE))):
            left -= len(data)
            await _send(writer, data)
        if left == 0:
            await agree(writer)
    finally:
        opening.__exit__(None, None, None)


async def _write(files: Workspace, request: dict[str, Any], reader: Reader, writer: Writer) -> None:
    tag = request.get("tag")
    path = _path(request)
    writing = files.writing(path, tag if isinstance(tag, str) else None)
    async with in_thread(writing) as (file, made):
        await agree(writer)
        async for data in content_in(reader):
            with refusing(path):
                await asyncio.to_thread(write_all, file, data)
        with refusing(path):
            if (mode := request.get("mode")) is not None:
                os.fchmod(file.fileno(), mode & 0o777)
            if (modified := request.get("modified")) is not None:
                os.utime(file.fileno(), (modified, modified))
    await agree(writer, entry=made[0], reached=sorted(files.reached))


@asynccontextmanager
async def in_thread(block: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave a block that blocks; an error goes back through it, so that one which writes
    a file takes its beginnings away.
    """
    given = await asyncio.to_thread(block.__enter__)
    try:
        yield given
    except BaseException as error:
        await asyncio.to_thread(_leave, block, error)
        raise
    await asyncio.to_thread(block.__exit__, None, None, None)


def _leave(block: AbstractContextManager[Any], error: BaseException) -> None:
    try:
        block.__exit__(type(error), error, error.__traceback__)
    except BaseException as again:  # what came is raised by the caller already
        if again is not error:
            raise


async def content_in(reader: Reader) -> AsyncIterator[bytes]:
    """Yield what agentd sends, to its proper end."""
    while (came := await read_frame(reader)) is not None:
        kind, body = came
        if kind is FrameKind.STDIN_END:
            return
        if kind is not FrameKind.STDIN:
            raise ProtocolError(f"{kind.name} has no place here")
        yield body
    raise ProtocolError("the content broke off")


async def _send(writer: Writer, data: bytes) -> None:
    """Send content; raises ``TimeoutError`` when none of it is taken for long."""
    await send_data(writer, FrameKind.STDOUT, data, STALLED_SECONDS)


class _Outlet(io.RawIOBase):
    """A file that a thread writes, and that goes out on the loop's connection."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._broken = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        whole = bytes(data)
        if self._broken:
            raise ProtocolError(_UNREAD)
        try:
            asyncio.run_coroutine_threadsafe(_send(self._writer, whole), self._loop).result()
        except (OSError, CancelledError) as error:
            self._broken = True
            # No OSError: whoever writes would take it for one of the files.
            raise ProtocolError(_UNREAD) from error
        return len(whole)


async def write_out(writer: Writer, work: Callable[..., None], *args: Any) -> None:
    """Send what ``work`` writes, in a thread, into the file that it is given last."""
    outlet = _Outlet(writer)

    def write() -> None:
        # Closed in the thread, also after an error: on the loop it would wait for the loop.
        with io.BufferedWriter(outlet, READ_AT_ONCE) as out:
            work(*args, out)

    await asyncio.to_thread(write)


async def _archive(files: Workspace, request: dict[str, Any], _: Reader, writer: Writer) -> None:
    pack = _format(request, {"tar.gz": pack_tar, "zip": pack_zip})
    path = _path(request)
    await asyncio.to_thread(files.entry, path)
    await agree(writer)
    async with _ARCHIVES:
        await write_out(writer, pack, files, path)
    await agree(writer)


async def _unpack(
    files: Workspace, request: dict[str, Any], reader: Reader, writer: Writer
) -> None:
    unpack = _format(request, {"tar.gz": tar_members, "zip": zip_members})
    path = _path(request)
    with refusing(path), tempfile.TemporaryFile(dir=text_in(request, "root")) as spool:
        with suppress(RefusedError):  # it is made, or refused, when there is something to put there
            await asyncio.to_thread(files.find, path)
        await agree(writer, reached=sorted(files.reached))
        async for data in content_in(reader):
            await asyncio.to_thread(spool.write, data)
        spool.seek(0)
        async with _WORK:
            if _left(reader):
                return
            made, left_out = await asyncio.to_thread(extract, files, path, unpack(spool))
    await agree(writer, files=made, left_out=left_out, reached=sorted(files.reached))


async def _search(files: Workspace, request: dict[str, Any], _: Reader, writer: Writer) -> None:
    path, text = _path(request), text_in(request, "text")
    most = _number(request, "most")
    await asyncio.to_thread(files.entry, path)
    await agree(writer)
    async with _WORK:
        matches, whole = await asyncio.to_thread(search, files, path, text, most)
    await agree(writer, matches=matches, whole=whole)


# What a request says.


def _path(request: dict[str, Any], name: str = "path") -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise RefusedError("invalid_request", f"{name} is not a text.")
    return value


def _number(request: dict[str, Any], name: str) -> int:
    value = request.get(name)
    if type(value) is not int or value < 0:
        raise RefusedError("invalid_request", f"{name} is no whole number.")
    return value


def _format(request: dict[str, Any], known: dict[str, T]) -> T:
    found = known.get(text_in(request, "format"))
    if found is None:
        raise RefusedError("invalid_request", "format is one of tar.gz and zip.")
    return found


_VERBS = {
    "show": _with_facts(_show),
    "page": _with_facts(_page),
    "read": _read,
    "write": _write,
    "folder": _with_facts(_folder),
    "move": _with_facts(_move),
    "remove": _remove,
    "archive": _archive,
    "unpack": _unpack,
    "search": _search,
    "sync": _with_facts(_sync),
}
