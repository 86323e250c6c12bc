"""Archives of the workspace's files, packed and unpacked in memory that does not grow with them.

An archive that comes is another's: all that is read of it at once is bounded, and what breaks it
says so as ``invalid_archive``. What cannot be packed or put where it belongs is left out and named.
"""

import errno
import gzip
import io
import json
import os
import stat
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import IO, BinaryIO

from greylag.execd.files import (
    MOST_PATH,
    READ_AT_ONCE,
    Place,
    Workspace,
    shown,
    too_deep,
    write_all,
)
from greylag.execd.protocol import RefusedError

_MOST_NAMED = 100
_MOST_NAME = 500
_LEFT_OUT = "LEFT-OUT.txt"
# Of a tar's entry: long names, and what else may stand before its content.
_MOST_HEADER = MOST_PATH + 16 * 1024
# Of a zip's entries, which its reader keeps in memory: more than 100,000 of usual names.
_MOST_LIST = 32 * 1024 * 1024
_MOST_ENTRIES = 250_000
_MOST_HELD = 8 * 1024 * 1024
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# Whatever Python's readers let out on archives that are none.
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    RuntimeError,
    ValueError,
)


# Packing.


class _LeftOut:
    """The entries that are in no archive: sockets and the like, what is shut, gone, or too deep."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._more = 0

    def add(self, name: bytes) -> None:
        if len(self._names) < _MOST_NAMED:
            self._names.append(shown(name))
        else:
            self._more += 1

    def words(self) -> bytes:
        """Return the text that says so, none when nothing is left out."""
        more = f"and {self._more} more\n" if self._more else ""
        return ("".join(f"{name}\n" for name in self._names) + more).encode()


def pack_tar(files: Workspace, path: str, out: BinaryIO) -> None:
    """Pack what is below a folder as a tar.gz."""
    left_out = _LeftOut()
    with (
        closing(_entries(files, path, left_out)) as entries,
        tarfile.open(fileobj=out, mode="w|gz", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, about, content in entries:
            one = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            one.mode, one.mtime = stat.S_IMODE(about.st_mode), int(about.st_mtime)
            if stat.S_ISREG(about.st_mode):
                one.size = about.st_size
            elif stat.S_ISLNK(about.st_mode):
                one.type, one.linkname = tarfile.SYMTYPE, os.fsdecode(content.read())
            else:
                one.type = tarfile.DIRTYPE
            tar.addfile(one, content)
            _forget(tar)
        if words := left_out.words():
            one = tarfile.TarInfo(_LEFT_OUT)
            one.size = len(words)
            tar.addfile(one, io.BytesIO(words))


def pack_zip(files: Workspace, path: str, out: BinaryIO) -> None:
    """Pack what is below a folder as a zip."""
    left_out = _LeftOut()
    with (
        closing(_entries(files, path, left_out)) as entries,
        closing(_Listed()) as listed,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.filelist = listed
        for name, about, content in entries:
            folder = "/" if stat.S_ISDIR(about.st_mode) else ""
            one = zipfile.ZipInfo(shown(name) + folder, _zip_time(about.st_mtime))
            one.external_attr = about.st_mode << 16
            one.compress_type = zipfile.ZIP_DEFLATED
            large = stat.S_ISREG(about.st_mode)
            with archive.open(one, "w", force_zip64=large) as target:
                while data := content.read(READ_AT_ONCE):
                    target.write(data)
            archive.NameToInfo.clear()
        if words := left_out.words():
            archive.writestr(_LEFT_OUT, words)


def _entries(
    files: Workspace, path: str, left_out: _LeftOut
) -> "Generator[tuple[bytes, os.stat_result, _Exactly | io.BytesIO], None, None]":
    """Yield names with what is known of them and what they hold."""
    with closing(files.walk(path)) as walk:
        for name, place, about in walk:
            try:
                content = _content(name, place, about)
            except OSError:  # it has gone since, is shut, or is of no kind that is packed
                left_out.add(name)
                continue
            with closing(content):
                yield name, about, content


def _content(name: bytes, place: Place, about: os.stat_result) -> "_Exactly | io.BytesIO":
    """Open what an entry holds: a file's content, where a link leads; nothing of a folder."""
    if len(shown(name)) <= MOST_PATH:
        if stat.S_ISREG(about.st_mode):
            return _Exactly(place.file(), about.st_size)
        if stat.S_ISLNK(about.st_mode):
            return io.BytesIO(os.readlink(place.name, dir_fd=place.folder))
        if stat.S_ISDIR(about.st_mode) and not too_deep(name):
            return io.BytesIO()
    raise OSError(errno.EINVAL, "not packed")


class _Exactly(io.RawIOBase):
    """A file's content, cut or filled with zeros to the length that was said of it."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._left = length

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        self._left -= wanted
        return data + bytes(wanted - len(data))

    def close(self) -> None:
        self._file.close()
        super().close()


class _Listed(list[zipfile.ZipInfo]):
    """The members of a zip that is written, for the list at its end: past some, on the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._file = tempfile.SpooledTemporaryFile(_MOST_HELD)  # noqa: SIM115 - `close` closes it
        self._count = 0

    def append(self, one: zipfile.ZipInfo) -> None:
        facts = [getattr(one, name) for name in _LISTED]
        self._file.write(json.dumps(facts).encode() + b"\n")
        self._count += 1

    def __iter__(self) -> Iterator[zipfile.ZipInfo]:
        self._file.seek(0)
        for line in self._file:
            one = zipfile.ZipInfo()
            for name, value in zip(_LISTED, json.loads(line), strict=True):
                setattr(one, name, value)
            yield one

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        self._file.close()


_LISTED = (
    "filename",
    "date_time",
    "compress_type",
    "flag_bits",
    "extract_version",
    "create_version",
    "external_attr",
    "header_offset",
    "CRC",
    "compress_size",
    "file_size",
)


def _zip_time(modified: float) -> tuple[int, int, int, int, int, int]:
    # A zip file knows no years before 1980 and after 2107.
    year, *rest = time.gmtime(min(max(modified, 315_532_800), 4_354_819_198))[:6]
    return (year, rest[0], rest[1], rest[2], rest[3], rest[4])


# Unpacking.


class _BoundedReader:
    """An archive's bytes, of which no more than ``left`` are read before that is set anew.

    With ``forward`` nothing is read twice: lengths below 0 would lead a reader round for ever.
    """

    def __init__(
        self, file: IO[bytes] | gzip.GzipFile, left: int, *, forward: bool = False
    ) -> None:
        self._file = file
        self._forward = forward
        self.left = left
        self.last = b""
        self.seekable = file.seekable
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        size = size if size >= 0 else READ_AT_ONCE  # all of a zip's end, which is less
        try:
            self.last = self._file.read(min(size, self.left + 1))
        except (OSError, *_BROKEN) as error:
            raise _invalid(error) from error
        self.left -= len(self.last)
        if self.left < 0:
            raise _invalid("what stands between its files is too long")
        return self.last

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self._forward and offset < self.tell():
            raise _invalid("it leads backwards")
        try:
            return self._file.seek(offset, whence)
        except (OSError, *_BROKEN) as error:
            raise _invalid(error) from error


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """One entry of an archive: a folder, a link to ``target``, or a file's ``content``.

    ``same_as`` is the name of another entry, of whose file it is a second name.
    """

    name: str
    mode: int
    target: str | None = None
    same_as: str | None = None
    content: IO[bytes] | None = None


ArchiveMembers = Iterator[ArchiveMember | str]
"""What an archive holds; of an entry that is of no kind here, its name."""


def extract(files: Workspace, path: str, members: ArchiveMembers) -> tuple[int, list[str]]:
    """Put members below a path, on the disk; blocks.

    Returns:
        how many, and the names of some of those that may not be there, or are of no kind.

    Raises:
        RefusedError: ``invalid_archive`` or ``no_space``.
    """
    made, left_out = 0, list[str]()
    try:
        for member in members:
            name = member if isinstance(member, str) else member.name
            if isinstance(member, ArchiveMember) and _is_put(files, path, member):
                made += 1
            elif len(left_out) < _MOST_NAMED:
                left_out.append(_shown(name)[:_MOST_NAME])
    except _BROKEN as error:
        raise _invalid(error) from error
    files.sync()
    return made, left_out


def _invalid(reason: object) -> RefusedError:
    return RefusedError("invalid_archive", f"The archive cannot be read: {reason}."[:_MOST_NAME])


def _shown(name: str) -> str:
    return shown(name.encode("utf-8", "surrogateescape"))


def _is_put(files: Workspace, path: str, member: ArchiveMember) -> bool:
    try:
        _put(files, path, member)
    except RefusedError as error:
        if error.code in {"no_space", "invalid_archive"}:
            raise
        return False
    return True


def _put(files: Workspace, path: str, member: ArchiveMember) -> None:
    where = f"{path}/{_shown(member.name)}"
    if member.target is not None:
        files.link(where, member.target.encode("utf-8", "surrogateescape"))
    elif member.same_as is not None:
        files.hard_link(where, f"{path}/{_shown(member.same_as)}")
    elif member.content is None:
        files.folder(where, member.mode, durable=False)
    else:
        with files.writing(where, follow=False, durable=False) as (file, _):
            os.fchmod(file.fileno(), member.mode & 0o777 | 0o600)
            while data := member.content.read(READ_AT_ONCE):
                write_all(file, data)


def tar_members(spool: IO[bytes]) -> ArchiveMembers:
    """Yield what a tar.gz holds."""
    source = _BoundedReader(gzip.GzipFile(fileobj=spool, mode="rb"), _MOST_HEADER, forward=True)
    with tarfile.open(fileobj=source, mode="r:") as tar:  # type: ignore[call-overload] # a part of IO is enough
        while (one := tar.next()) is not None:
            source.left = sys.maxsize
            _forget(tar)
            if one.isfile():
                yield ArchiveMember(one.name, one.mode, content=tar.extractfile(one))
            elif one.isdir():
                yield ArchiveMember(one.name, one.mode)
            elif one.issym():
                yield ArchiveMember(one.name, one.mode, target=one.linkname)
            elif one.islnk():
                yield ArchiveMember(one.name, one.mode, same_as=one.linkname)
            else:
                yield one.name
            source.left = _MOST_HEADER
        if source.last.strip(b"\0"):  # tarfile takes a header that is none for the end
            raise _invalid("it breaks off")
        source.left = sys.maxsize
        while source.read(READ_AT_ONCE):  # to its checksum
            pass


def _forget(tar: tarfile.TarFile) -> None:
    """Let go of what tarfile keeps of each member, and of all headers for the whole archive."""
    tar.members.clear()  # type: ignore[attr-defined]
    tar.pax_headers = {}


def zip_members(spool: IO[bytes]) -> ArchiveMembers:
    """Yield what a zip holds."""
    source = _BoundedReader(spool, _MOST_LIST)
    with zipfile.ZipFile(source) as archive:
        source.left = sys.maxsize
        entries: list[zipfile.ZipInfo] = archive.infolist()
        if len(entries) > _MOST_ENTRIES:
            raise _invalid(f"it has more than {_MOST_ENTRIES} entries")
        for one in entries:
            if one.compress_type not in _METHODS and not _encrypted(one):
                raise _invalid("it is packed by a method that is not known here; Deflate is")
        for one in entries:
            yield from _zip_member(archive, one)


def _encrypted(one: zipfile.ZipInfo) -> bool:
    return bool(one.flag_bits & 1)


def _zip_member(archive: zipfile.ZipFile, one: zipfile.ZipInfo) -> ArchiveMembers:
    mode = one.external_attr >> 16
    if one.is_dir():
        yield ArchiveMember(one.filename, mode)
    elif _encrypted(one):
        yield one.filename
    else:
        with archive.open(one) as content:
            if stat.S_ISLNK(mode):
                target = content.read(MOST_PATH + 1).decode("utf-8", "surrogateescape")
                yield ArchiveMember(one.filename, mode, target=target)
            else:
                yield ArchiveMember(one.filename, mode or 0o644, content=content)
