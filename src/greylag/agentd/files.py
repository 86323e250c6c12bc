"""The workspace's files, as execd tells of them: asked for, checked, and handed on."""

import asyncio
import mimetypes
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from greylag.agentd.execution import (
    Execution,
    ExecutionError,
    ExecutionRefusedError,
    agreed,
    reason_of,
    send_content,
    whole_number,
)
from greylag.agentd.problems import RequestError
from greylag.common.agent_api import FileEntry, FileList, FileMatch, FileMatches, Unpacked
from greylag.common.clock import LAST_MOMENT, rfc3339
from greylag.common.concurrent import beside, place_among
from greylag.execd.files import CODES, MOST_ARCHIVES, entry_path, plain, shown
from greylag.execd.protocol import FrameKind, ProtocolError, Reader, Writer, read_frame

_QUICK_SECONDS = 20.0
_LONG_SECONDS = 3600.0
_PLACE_SECONDS = 15.0
_CODES = frozenset({"outside_workspace", "invalid_archive", *(code for code, _ in CODES.values())})
_KINDS = frozenset({"file", "folder", "link", "other"})
_TAG = re.compile(r"[0-9a-f-]{5,80}")
_MOST_TEXT = 16 * 1024
_UNKNOWN = "unknown_operation"


Touched = Callable[..., Awaitable[None]]
"""Is told the paths that a person is about to change."""


async def untold(*_paths: str) -> None:
    """Tell nobody."""


class WorkspaceFiles:
    """What may be done with the files of the workspace.

    Paths are texts as ``greylag.execd.files`` reads them, which refuses all others. Every method
    raises ``RequestError``: what the workspace refuses by its code, and ``agent_unavailable`` when
    execd does not answer as it must.
    """

    def __init__(self, execution: Execution, root: Path, touched: Touched = untold) -> None:
        self._touched = touched
        self._execution = execution
        self._root = str(root)
        self._archives = asyncio.Semaphore(MOST_ARCHIVES)

    async def show(self, path: str) -> FileEntry:
        """Return what is at a path."""
        said = await self._ask("show", path=path)
        with _understood():
            return _entry(said["entry"], _parent(path))

    async def page(self, path: str, after: str, most: int) -> FileList:
        """Return what is at a path and, for a folder, ``most`` entries after a name."""
        said = await self._ask("page", path=path, after=after, most=most)
        with _understood():
            entries = said["entries"]
            if not isinstance(entries, list) or len(entries) > most:
                raise ProtocolError("a page is no page")
            below = "/".join(_parts(path))
            following = said["next"]
            return FileList(
                _entry(said["entry"], _parent(path)),
                [_entry(one, below) for one in entries],
                None if following is None else _text(following),
            )

    async def make_folder(self, path: str) -> FileEntry:
        """Make a folder, and those on the way."""
        await self._touched(_clean(path))
        said = await self._ask("folder", path=path)
        with _understood():
            return _entry(said["entry"], _parent(path))

    async def move(self, source: str, target: str, *, replace: bool) -> FileEntry:
        """Give something another path."""
        await self._touched(_clean(source), _clean(target))
        said = await self._ask("move", source=source, target=target, replace=replace)
        with _understood():
            return _entry(said["entry"], _parent(target))

    async def remove(self, path: str, *, recursive: bool) -> None:
        """Delete something; a folder that holds something only if ``recursive``."""
        await self._touched(_clean(path))
        await self._ask("remove", _LONG_SECONDS, path=path, recursive=recursive)

    async def sync(self) -> None:
        """Return when all that anybody has written there is on the disk, which an execd of an older
        version sees to for nobody.
        """
        try:
            await self._ask("sync", _LONG_SECONDS)
        except RequestError as error:
            refused = error.__cause__
            if not isinstance(refused, ExecutionRefusedError) or refused.code != _UNKNOWN:
                raise

    async def search(self, path: str, text: str, most: int) -> FileMatches:
        """Return names and lines that hold a text."""
        said = await self._ask("search", _LONG_SECONDS, path=path, text=text, most=most)
        with _understood():
            found = said["matches"]
            if not isinstance(found, list) or len(found) > most:
                raise ProtocolError("matches are none")
            matches = [
                FileMatch(_text(one["path"]), _whole(one["line"]), _text(one["text"]))
                for one in found
            ]
            return FileMatches(matches, said["whole"] is True)

    @asynccontextmanager
    async def read(
        self, entry: FileEntry, start: int, length: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open ``length`` bytes of a file, refused when it changed since the entry was made."""
        tag = entry.etag.strip('"')
        about: dict[str, Any] = {"path": entry.path, "tag": tag, "start": start, "length": length}
        async with self._asked("read", **about) as (reader, _):
            yield _content(reader, length)

    @asynccontextmanager
    async def archive(self, path: str, form: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a folder as an archive, ``tar.gz`` or ``zip``; ``limit_exceeded`` where for a while
        as many are read as may be.
        """
        # execd would begin to answer and then wait, and whoever reads take that for a failure.
        words = f"{MOST_ARCHIVES} archives of this workspace are being read: as many as may be."
        full = RequestError("limit_exceeded", words)
        async with (
            place_among(self._archives, _PLACE_SECONDS, full),
            self._asked("archive", path=path, format=form) as (reader, _),
        ):
            yield _content(reader, None)

    async def write(
        self,
        path: str,
        tag: str | None,
        content: AsyncIterator[bytes],
        *,
        mode: int | None = None,
        modified: float | None = None,
    ) -> FileEntry:
        """Give a file its content; ``tag`` is what its own must be still, as execd takes it."""
        await self._touched(_clean(path))
        about = {"path": path, "tag": tag, "mode": mode, "modified": modified}
        async with self._asked("write", **about) as (reader, writer):
            said = await _given(reader, writer, content)
            await self._reached(said)
            with _understood():
                return _entry(said["entry"], _parent(path))

    async def unpack(self, path: str, form: str, content: AsyncIterator[bytes]) -> Unpacked:
        """Put an archive's files into a folder."""
        await self._touched(_clean(path))
        async with self._asked("unpack", path=path, format=form) as (reader, writer):
            said = await _given(reader, writer, content)
            await self._reached(said)
            with _understood():
                left_out = said["left_out"]
                if not isinstance(left_out, list):
                    raise ProtocolError("what was left out is no list")
                return Unpacked(_whole(said["files"]), [_text(one) for one in left_out])

    async def _ask(
        self, verb: str, seconds: float = _QUICK_SECONDS, **about: Any
    ) -> Mapping[str, Any]:
        async with self._asked(verb, **about) as (reader, _):
            async with asyncio.timeout(seconds):
                said = agreed(await read_frame(reader))
            await self._reached(said)
            return said

    @asynccontextmanager
    async def _asked(self, verb: str, **about: Any) -> AsyncIterator[tuple[Reader, Writer]]:
        try:
            asking = self._execution.exchange("files", verb=verb, root=self._root, **about)
            async with asking as (said, reader, writer):
                await self._reached(said)
                yield reader, writer
        except ExecutionRefusedError as error:
            code = error.code if error.code in _CODES else "files_failed"
            raise RequestError(code, str(error)) from error
        except (ExecutionError, ProtocolError, OSError) as error:  # TimeoutError is an OSError
            reason = f"The workspace's files cannot be reached: {reason_of(error)}"
            raise RequestError("agent_unavailable", reason) from error

    async def _reached(self, said: Mapping[str, Any]) -> None:
        """Tell by which paths it is known, too, what execd finds past links and changes."""
        with _understood():
            paths = [_text(path) for path in said.get("reached", ())]
        if paths:
            await self._touched(*paths)


async def _given(
    reader: Reader, writer: Writer, content: AsyncIterator[bytes]
) -> Mapping[str, Any]:
    """Send content and return what came of it; a refusal meanwhile ends the sending.

    Content may come as slowly as it likes, for how long is the platform's to say. What is made of
    it has its time from when all is sent.
    """
    async with (
        beside(send_content(writer, content, _LONG_SECONDS), "content to execd") as sending,
        beside(read_frame(reader), "answer of execd") as telling,
    ):
        await asyncio.wait({sending, telling}, return_when=asyncio.FIRST_COMPLETED)
        if not telling.done():
            await sending
        async with asyncio.timeout(_LONG_SECONDS):
            return agreed(await telling)


async def _content(reader: Reader, length: int | None) -> AsyncIterator[bytes]:
    """Yield content to its proper end.

    Raises:
        ProtocolError, ExecutionRefusedError: it has no such end, or not ``length`` bytes.
    """
    left = length
    while (came := await read_frame(reader)) and came[0] is FrameKind.STDOUT:
        if left is not None:
            left -= len(came[1])
            if left < 0:
                raise ProtocolError("there is more content than was asked for")
        yield came[1]
    if came is not None:
        agreed(came)
    if came is None or left:
        raise ProtocolError("the content broke off")


# What execd says is another's word.


@contextmanager
def _understood() -> Iterator[None]:
    """Turn an answer that lacks what it must have into an error that says so."""
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError, ProtocolError) as error:
        reason = "What came from the workspace is not of the form it must have."
        raise RequestError("agent_unavailable", reason) from error


def _entry(said: Any, parent: str) -> FileEntry:
    kind, tag, target = said["kind"], said["tag"], said["target"]
    name = _text(said["name"])
    if kind not in _KINDS or not _TAG.fullmatch(tag) or "/" in name:
        raise ProtocolError("an entry is none")
    return FileEntry(
        path=entry_path(parent, name) if name else parent,
        name=name,
        kind=kind,
        size=_whole(said["size"]),
        modified=rfc3339(min(max(float(said["modified"]), 0.0), LAST_MOMENT)),
        mode=f"{_whole(said['mode']) & 0o7777:03o}",
        target=None if target is None else _text(target),
        media_type=mimetypes.guess_type(name)[0] if kind == "file" else None,
        etag=f'"{tag}"',
    )


def _text(said: Any) -> str:
    if not isinstance(said, str) or len(said) > _MOST_TEXT:
        raise ProtocolError("a text is none")
    said.encode()  # half a character would reach no client
    return said


def _whole(said: Any) -> int:
    return whole_number(said, 1 << 62)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]


def _clean(path: str) -> str:
    """Return a path as it is told, in which no byte is escaped that need not be."""
    with suppress(ValueError):  # execd refuses it
        path = shown(plain(path))
    return "/".join(_parts(path))


def _parent(path: str) -> str:
    return "/".join(_parts(path)[:-1])
