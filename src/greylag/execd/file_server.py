"""The operation ``files``: what may be asked of the workspace's files, and how it is answered.

A request names a ``verb``, the folder ``root``, and what the verb takes. ``{"ok": true}`` is
followed by what the verb gives: ``STDOUT`` frames with content, then, when all went well, one
``JSON`` frame: without it, it was not done. ``write`` and ``unpack`` take ``STDIN`` frames, ended
by ``STDIN_END``; without that, nothing is written.

=======  =============================================  ==========================================
verb     takes                                          gives
=======  =============================================  ==========================================
show     ``path``                                       ``entry``
page     ``path``, ``after``, ``most``                  ``entry``, ``entries``, ``next``
read     ``path``, ``tag``, ``start``, ``length``       content
write    ``path``, ``tag`` ("": new; null: any)         ``entry``
folder   ``path``                                       ``entry``
move     ``source``, ``target``, ``replace``            ``entry``
remove   ``path``, ``recursive``
archive  ``path``, ``format`` (tar.gz, zip)             content
unpack   ``path``, ``format``                           ``files``, ``left_out``
search   ``path``, ``text``, ``most``                   ``matches``, ``whole``
=======  =============================================  ==========================================
"""

import asyncio
import io
import os
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, TypeVar

from greylag.execd.file_search import search
from greylag.execd.files import FILE, MOST_DEPTH, MOST_PATH, Place, Workspace, refusing, shown
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

READ_AT_ONCE = 1024 * 1024
_MOST_NAMED = 100
_LEFT_OUT = "LEFT-OUT.txt"
# Long work takes a thread each; as many must stay free for ending processes.
_LONG = asyncio.Semaphore(3)

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
    return {"entry": files.folder(_path(request))}


def _move(files: Workspace, request: dict[str, Any]) -> dict[str, Any]:
    source, target = _path(request, "source"), _path(request, "target")
    return {"entry": files.move(source, target, replace=request.get("replace") is True)}


def _remove(files: Workspace, request: dict[str, Any]) -> dict[str, Any]:
    files.remove(_path(request), recursive=request.get("recursive") is True)
    return {}


async def _read(files: Workspace, request: dict[str, Any], _: Reader, writer: Writer) -> None:
    left = _number(request, "length")
    opening = files.reading(_path(request), text_in(request, "tag"))
    file = await asyncio.to_thread(opening.__enter__)
    try:
        await agree(writer)
        file.seek(_number(request, "start"))
        while left > 0 and (data := await asyncio.to_thread(file.read, min(left, READ_AT_ONCE))):
            left -= len(data)
            await send_data(writer, FrameKind.STDOUT, data)
        if left == 0:
            await agree(writer)
    finally:
        opening.__exit__(None, None, None)


async def _write(files: Workspace, request: dict[str, Any], reader: Reader, writer: Writer) -> None:
    tag = request.get("tag")
    path = _path(request)
    writing = files.writing(path, tag if isinstance(tag, str) else None)
    file, made = await asyncio.to_thread(writing.__enter__)
    try:
        await agree(writer)
        async for data in content_in(reader):
            with refusing(path):
                await asyncio.to_thread(write_all, file, data)
    except BaseException as error:
        # It goes back through the block, which takes the beginnings of the file away.
        await asyncio.to_thread(leave, writing, error)
        raise
    await asyncio.to_thread(writing.__exit__, None, None, None)
    await agree(writer, entry=made[0])


def leave(writing: Any, error: BaseException) -> None:
    """Leave the block that writes a file by an error, which takes its beginnings away."""
    try:
        writing.__exit__(type(error), error, error.__traceback__)
    except BaseException as again:  # what came is raised by the caller already
        if again is not error:
            raise


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data``, in as many steps as it takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


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


# Archives.


class _Outlet(io.RawIOBase):
    """A file that a thread writes, and that goes out on the loop's connection."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._loop = asyncio.get_running_loop()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        whole = bytes(data)
        sending = send_data(self._writer, FrameKind.STDOUT, whole)
        asyncio.run_coroutine_threadsafe(sending, self._loop).result()
        return len(whole)


async def write_out(writer: Writer, work: Callable[..., None], *args: Any) -> None:
    """Send what ``work`` writes, in a thread, into the file that it is given last."""
    outlet = _Outlet(writer)

    def write() -> None:
        # Closed in the thread, also after an error: on the loop it would wait for the loop.
        with io.BufferedWriter(outlet, READ_AT_ONCE) as out:
            work(*args, out)

    async with _LONG:
        await asyncio.to_thread(write)


async def _archive(files: Workspace, request: dict[str, Any], _: Reader, writer: Writer) -> None:
    pack = _format(request, {"tar.gz": _tar, "zip": _zip})
    path = _path(request)
    await asyncio.to_thread(files.entry, path)
    await agree(writer)
    await write_out(writer, pack, files, path)
    await agree(writer)


def _tar(files: Workspace, path: str, out: BinaryIO) -> None:
    with (
        closing(files.walk(path)) as walk,
        tarfile.open(fileobj=out, mode="w|gz", format=tarfile.PAX_FORMAT) as tar,
    ):
        left_out = []
        for name, place, about in walk:
            one = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            one.mode, one.mtime = stat.S_IMODE(about.st_mode), int(about.st_mtime)
            content = None
            try:
                if stat.S_ISREG(about.st_mode):
                    one.size, content = about.st_size, _Exactly(place, about.st_size)
                elif stat.S_ISLNK(about.st_mode):
                    one.type, one.linkname = tarfile.SYMTYPE, _linkname(place)
                elif stat.S_ISDIR(about.st_mode) and not _too_deep(name):
                    one.type = tarfile.DIRTYPE
                else:
                    left_out.append(name)
                    continue
            except OSError:
                left_out.append(name)
                continue
            with closing(content or io.BytesIO()) as file:
                tar.addfile(one, file)
        if left_out:
            words = _left_out(left_out)
            one = tarfile.TarInfo(_LEFT_OUT)
            one.size = len(words)
            tar.addfile(one, io.BytesIO(words))


def _zip(files: Workspace, path: str, out: BinaryIO) -> None:
    with (
        closing(files.walk(path)) as walk,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        left_out = []
        for name, place, about in walk:
            one = zipfile.ZipInfo(shown(name), _zip_time(about.st_mtime))
            one.external_attr = about.st_mode << 16
            one.compress_type = zipfile.ZIP_DEFLATED
            try:
                if stat.S_ISREG(about.st_mode):
                    with (
                        closing(_Exactly(place, about.st_size)) as file,
                        archive.open(one, "w", force_zip64=True) as target,
                    ):
                        while data := file.read(READ_AT_ONCE):
                            target.write(data)
                elif stat.S_ISLNK(about.st_mode):
                    archive.writestr(one, _linkname(place).encode("utf-8", "surrogateescape"))
                elif stat.S_ISDIR(about.st_mode) and not _too_deep(name):
                    one.filename += "/"
                    archive.writestr(one, b"")
                else:
                    left_out.append(name)
            except PermissionError:
                left_out.append(name)
        if left_out:
            archive.writestr(_LEFT_OUT, _left_out(left_out))


class _Exactly(io.RawIOBase):
    """A file's content, cut or filled with zeros to the length that was said of it."""

    def __init__(self, place: Place, length: int) -> None:
        self._file = os.fdopen(place.open(FILE), "rb", buffering=0)
        self._left = length

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted) or bytes(min(wanted, READ_AT_ONCE))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def _linkname(place: Place) -> str:
    return os.fsdecode(os.readlink(place.name, dir_fd=place.folder))


def _too_deep(name: bytes) -> bool:
    return name.count(b"/") >= MOST_DEPTH - 1


def _zip_time(modified: float) -> tuple[int, int, int, int, int, int]:
    # A zip file knows no years before 1980 and after 2107.
    year, *rest = time.gmtime(min(max(modified, 315_532_800), 4_354_819_198))[:6]
    return (year, rest[0], rest[1], rest[2], rest[3], rest[4])


def _left_out(names: list[bytes]) -> bytes:
    """Say which entries are in no archive: sockets and the like, what is shut, what is too deep."""
    lines = [f"{shown(name)}\n" for name in names[:_MOST_NAMED]]
    if len(names) > _MOST_NAMED:
        lines.append(f"and {len(names) - _MOST_NAMED} more\n")
    return "".join(lines).encode()


async def _unpack(
    files: Workspace, request: dict[str, Any], reader: Reader, writer: Writer
) -> None:
    unpack = _format(request, {"tar.gz": _tar_members, "zip": _zip_members})
    path = _path(request)
    with refusing(path), tempfile.TemporaryFile(dir=text_in(request, "root")) as spool:
        await agree(writer)
        async for data in content_in(reader):
            await asyncio.to_thread(spool.write, data)
        spool.seek(0)
        async with _LONG:
            made, left_out = await asyncio.to_thread(_extract, files, path, unpack(spool))
    await agree(writer, files=made, left_out=left_out)


@dataclass(frozen=True, slots=True)
class _Member:
    """One entry of an archive: a folder, a link to ``target``, or a file's ``content``."""

    name: str
    mode: int
    target: str | None = None
    content: IO[bytes] | None = None


def _extract(
    files: Workspace, path: str, members: Iterator[_Member | str]
) -> tuple[int, list[str]]:
    """Put members below ``path``; those that may not be there, or are of no kind, are named."""
    made, left_out = 0, []
    try:
        for member in members:
            if isinstance(member, str):
                left_out.append(member)
                continue
            try:
                _put(files, path, member)
                made += 1
            except RefusedError as error:
                if error.code == "no_space":
                    raise
                left_out.append(member.name)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise RefusedError("invalid_archive", f"The archive cannot be read: {error}.") from error
    return made, [one[:MOST_PATH] for one in left_out[:_MOST_NAMED]]


def _put(files: Workspace, path: str, member: _Member) -> None:
    where = f"{path}/{shown(member.name.encode('utf-8', 'surrogateescape'))}"
    if member.target is not None:
        files.link(where, member.target.encode("utf-8", "surrogateescape"))
    elif member.content is None:
        files.folder(where)
    else:
        with files.writing(where, mode=member.mode & 0o777 | 0o600, durable=False) as (file, _):
            while data := member.content.read(READ_AT_ONCE):
                write_all(file, data)


def _tar_members(spool: IO[bytes]) -> Iterator[_Member | str]:
    with tarfile.open(fileobj=spool, mode="r|*") as tar:
        for one in tar:
            tar.members = []  # type: ignore[attr-defined] # else it would keep them all
            if one.isfile():
                yield _Member(one.name, one.mode, content=tar.extractfile(one))
            elif one.isdir():
                yield _Member(one.name, one.mode)
            elif one.issym():
                yield _Member(one.name, one.mode, target=one.linkname)
            else:
                yield one.name


def _zip_members(spool: IO[bytes]) -> Iterator[_Member | str]:
    with zipfile.ZipFile(spool) as archive:
        for one in archive.infolist():
            mode = one.external_attr >> 16
            if one.is_dir():
                yield _Member(one.filename, mode)
            elif one.flag_bits & 1:  # encrypted
                yield one.filename
            elif stat.S_ISLNK(mode):
                yield _Member(one.filename, mode, target=archive.read(one)[:MOST_PATH].decode())
            else:
                with archive.open(one) as content:
                    yield _Member(one.filename, mode or 0o644, content=content)


async def _search(files: Workspace, request: dict[str, Any], _: Reader, writer: Writer) -> None:
    path, text = _path(request), text_in(request, "text")
    most = _number(request, "most")
    await asyncio.to_thread(files.entry, path)
    await agree(writer)
    async with _LONG:
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
    "remove": _with_facts(_remove),
    "archive": _archive,
    "unpack": _unpack,
    "search": _search,
}
