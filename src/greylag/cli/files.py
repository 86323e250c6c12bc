"""`greylag files` and `greylag cp`: a workspace's files, here and there.

What a workspace says of its files is its agent's word: a name that would lead elsewhere on this
machine is refused, and links are left where they are.
"""

import asyncio
import errno
import fcntl
import hashlib
import os
import re
import stat
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO

import click

from greylag.cli.access import Access, api_command
from greylag.cli.client import ApiClient, ProjectPlace
from greylag.cli.errors import CliError, ServerRefusedError, ServerUnreachableError
from greylag.cli.output import confirm, counted, moment
from greylag.cli.transport import LONGEST_WAIT
from greylag.common.agent_api import FileEntry
from greylag.common.clock import LAST_MOMENT, parse_rfc3339, rfc3339
from greylag.execd.files import parts_of, shown
from greylag.execd.protocol import RefusedError

COLUMNS = ("MODE", "SIZE", "MODIFIED", "NAME")
STREAM = "-"
_AT_ONCE = 1024 * 1024
_TRIES = 4
_SAME_SECONDS = 0.002  # times are told in milliseconds
_REMOTE = re.compile(r"([^/:]+):(.*)", re.DOTALL)


@click.group()
def files() -> None:
    r"""List, read, write, move, delete and search the files of a project's workspace.

    The project must be active. Paths are relative to the workspace; a byte of a name that is no
    UTF-8 is written \xHH, and a backslash \\.
    """


@files.command(name="ls", short_help="List a folder of the workspace.")
@click.argument("project")
@click.argument("path", default="")
@api_command
async def ls(access: Access, *, project: str, path: str) -> None:
    """List a folder of the workspace (by default the workspace itself), or one file."""
    place = await access.place(project)
    entry = await access.api.file(place, path)
    is_folder = entry.kind == "folder"
    found = [one async for one in access.api.folder(place, path)] if is_folder else [entry]
    access.output.listing(
        {"entry": asdict(entry), "entries": [asdict(one) for one in found if is_folder]},
        COLUMNS,
        ((one.mode, _size(one), moment(one.modified), _name(one)) for one in found),
        prose=("NAME", "MODIFIED"),
        empty="The folder is empty.",
    )


def _name(entry: FileEntry) -> str:
    if entry.kind == "link":
        return f"{entry.name} -> {entry.target}"
    return entry.name + ("/" if entry.kind == "folder" else "")


def _size(entry: FileEntry) -> str:
    return str(entry.size) if entry.kind == "file" else "-"


@files.command(short_help="Read a file of the workspace into one here.")
@click.argument("project")
@click.argument("path")
@click.argument("file", required=False)
@api_command
async def get(access: Access, *, project: str, path: str, file: str | None) -> None:
    """Read a file of the workspace into FILE here (`-`: print it; by default its own name)."""
    place = await access.place(project)
    entry = await access.api.file(place, path)
    if entry.kind != "file":
        raise CliError(f"{entry.path} is a {entry.kind}, not a file.", "Use `greylag cp`.")
    if file == STREAM:
        async with access.api.read_file(place, entry) as content:
            async for chunk in content.chunks:
                await asyncio.to_thread(access.output.write_bytes, chunk)
        return
    target = _below(Path(), entry.name) if file is None else Path(file)
    with _refused(target, "written"):
        target = _below(target, entry.name) if target.is_dir() else target
    copying = _Copying(access.api, place)
    await copying.download(entry, target)
    copying.tell(access)


@files.command(short_help="Write a file here to one of the workspace.")
@click.argument("project")
@click.argument("file")
@click.argument("path", required=False)
@api_command
async def put(access: Access, *, project: str, file: str, path: str | None) -> None:
    """Write FILE of this machine (`-`: standard input) to a path of the workspace."""
    if path is None and file == STREAM:
        raise click.UsageError("Say which PATH what comes from standard input gets.")
    place = await access.place(project)
    copying = _Copying(access.api, place)
    if file == STREAM:
        await copying.upload(sys.stdin.buffer, path or "")
    else:
        await copying.put(Path(file), path or _said(Path(file).name))
    copying.tell(access)


@files.command(short_help="Delete a file or folder of the workspace.")
@click.argument("project")
@click.argument("path")
@click.option("-r", "--recursive", is_flag=True, help="A folder, with all that it holds.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@api_command
async def rm(access: Access, *, project: str, path: str, recursive: bool, yes: bool) -> None:
    """Delete a file of the workspace, or a folder; a link, not what it leads to."""
    place = await access.place(project)
    if recursive:
        await confirm(f"Delete {path} of {project} with all that it holds?", yes=yes)
    query = {"path": path, "recursive": "true" if recursive else "false"}
    await access.api.delete(*place.path, "files", query=query, within=LONGEST_WAIT)
    if access.output.json:
        access.output.document({"deleted": path})
    else:
        access.output.line(f"{path} is deleted.")


@files.command()
@click.argument("project")
@click.argument("source")
@click.argument("target")
@click.option("--replace", is_flag=True, help="Take the place of a file that is there.")
@api_command
async def mv(access: Access, *, project: str, source: str, target: str, replace: bool) -> None:
    """Give a file or folder of the workspace another path."""
    place = await access.place(project)
    body = {"source": source, "target": target, "replace": replace}
    moved = await access.api.post(*place.path, "files", "move", body=body)
    _shown(access, access.api.shaped_one(FileEntry, moved))


@files.command()
@click.argument("project")
@click.argument("path")
@api_command
async def mkdir(access: Access, *, project: str, path: str) -> None:
    """Make a folder in the workspace, and those on the way to it."""
    _shown(access, await access.api.make_folder(await access.place(project), path))


def _shown(access: Access, entry: FileEntry) -> None:
    if access.output.json:
        access.output.document(asdict(entry))
    else:
        access.output.line(f"{entry.path} is there.")


@files.command(short_help="Find names and lines that hold a text.")
@click.argument("project")
@click.argument("text")
@click.argument("path", default="")
@api_command
async def search(access: Access, *, project: str, text: str, path: str) -> None:
    """Find names and lines that hold TEXT, in any case, below a folder of the workspace."""
    place = await access.place(project)
    query = {"q": text, "path": path, "limit": "500"}
    found = await access.api.get(*place.path, "files", "search", query=query)
    if access.output.json:
        access.output.document(found)
        return
    for match in found["matches"]:
        line = f":{match['line']}: {match['text']}" if match["line"] else ""
        access.output.line(f"{match['path']}{line}")
    if not found["whole"]:
        access.output.note("There is more than this; search in a folder, or for a longer text.")
    elif not found["matches"]:
        access.output.note("Nothing holds that text.")


# Copying.


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--project", metavar="PROJECT", help="Whose workspace; its paths are :PATH then.")
@api_command
async def cp(access: Access, *, source: str, target: str, project: str | None) -> None:
    """Copy a file, or a folder with all that it holds, from or to a project's workspace.

    One of SOURCE and TARGET is PROJECT:PATH, the other a path here. What comes before the first
    colon is the project, unless a slash is in it: a path here that has a colon is written ./a:b,
    and a project that has one is named by --project.

    A copy has the time of change of what it is a copy of, and is executable as that is. The same
    again goes on where it was: what is there already, of the same size and time, is not copied, and
    a file that came in part is gone on with. Links are left out, and counted.

    \b
    Examples:
      greylag cp first:src ./src
      greylag cp ./data first:data
      greylag cp --project 2:nd :src ./src
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    there, here = _remote(source, project), _remote(target, project)
    remote = there or here
    if remote is None or (there is not None and here is not None):
        form = "PROJECT:PATH" if project is None else ":PATH"
        found = "none" if remote is None else "both"
        raise click.UsageError(
            f"One of SOURCE and TARGET is {form}, not {found}; the other is a path here, written"
            " ./a:b if it has a colon."
        )
    name, path = remote
    copying = _Copying(access.api, await _place(access, name, source if there else target))
    if there is not None:
        with _refused(Path(target), "written"):
            await copying.fetch(await access.api.file(copying.place, path), Path(target))
    else:
        with _refused(Path(source), "read"):
            await copying.send(Path(source), path)
    copying.tell(access)


def _remote(given: str, project: str | None) -> tuple[str, str] | None:
    """Return the project and the path in it that an argument names; ``None``: a path here."""
    if project is not None:
        return (project, given[1:]) if given.startswith(":") else None
    found = _REMOTE.fullmatch(given)
    return None if found is None else (found[1], found[2])


async def _place(access: Access, project: str, given: str) -> ProjectPlace:
    """Return where a project is found, or say how what was ``given`` is read."""
    try:
        return await access.place(project)
    except (ServerRefusedError, click.UsageError) as error:
        missing = isinstance(error, click.UsageError) or error.problem.code == "project_not_found"
        if missing and os.path.lexists(given):
            access.output.note(f"The path here is written ./{given}.")
        elif missing and given.count(":") > 1:
            access.output.note(f"{given} is read as {project}, then a path: see --project.")
        raise


@dataclass
class _Copying:
    """Copies of one project's files, and what came of them."""

    api: ApiClient
    place: ProjectPlace
    counts: dict[str, int] = field(
        default_factory=lambda: {"files": 0, "bytes": 0, "already_there": 0, "links_left_out": 0}
    )

    def tell(self, access: Access) -> None:
        """Print what came of it."""
        if access.output.json:
            access.output.document(self.counts)
            return
        files, size = counted(self.counts["files"], "file"), counted(self.counts["bytes"], "byte")
        words = f"Copied {files}, {size}."
        if self.counts["already_there"]:
            words += f" Already there: {self.counts['already_there']}."
        if self.counts["links_left_out"]:
            words += f" Left out: {counted(self.counts['links_left_out'], 'link')}."
        access.output.line(words)

    async def fetch(self, entry: FileEntry, target: Path) -> None:
        """Copy a file or folder here; into ``target`` when that is a folder and it a file."""
        todo = [(entry, target)]
        if entry.kind != "folder" and target.is_dir():
            todo = [(entry, _below(target, entry.name))]
        while todo:
            one, where = todo.pop()
            if one.kind == "file":
                await self.download(one, where)
            elif one.kind == "folder":
                with _refused(where, "made"):
                    where.mkdir(parents=True, exist_ok=True)
                async for inner in self.api.folder(self.place, one.path):
                    todo.append((inner, _below(where, inner.name)))
            else:
                self.counts["links_left_out"] += 1

    async def send(self, source: Path, path: str) -> None:
        """Copy a file or folder there, to ``path``, or into it when that ends in ``/``."""
        if not source.is_dir():
            name = _said(source.name) if path == "" or path.endswith("/") else ""
            await self.put(source, path + name)
            return
        for folder, folders, names in os.walk(source, onerror=_unread):
            folders.sort()
            here, below = Path(folder), _joined(path, _said(os.path.relpath(folder, source)))
            there = await self._there(below)
            self.counts["links_left_out"] += sum((here / name).is_symlink() for name in folders)
            for name in sorted(names):
                await self._send_one(here / name, _joined(below, _said(name)), there)

    async def _send_one(self, file: Path, path: str, there: dict[str, FileEntry]) -> None:
        with _refused(file, "read"):
            about, known = file.lstat(), there.get(_said(file.name))
        if not stat.S_ISREG(about.st_mode):
            self.counts["links_left_out"] += 1
        elif known is not None and _is_same(known, about) and _runs(known) == _runs_here(about):
            self.counts["already_there"] += 1
        else:
            await self.put(file, path)

    async def _there(self, path: str) -> dict[str, FileEntry]:
        await self.api.make_folder(self.place, path)
        return {one.name: one async for one in self.api.folder(self.place, path)}

    async def put(self, file: Path, path: str) -> None:
        """Write a file of this machine there, with its rights and its time."""
        with _opened(file) as source:
            about = os.fstat(source.fileno())
            if not stat.S_ISREG(about.st_mode):
                return await self.upload(source, path)
            moment = rfc3339(min(max(about.st_mtime, 0.0), LAST_MOMENT))
            mode = f"{about.st_mode & 0o777:03o}"
            return await self.upload(source, path, {"mode": mode, "modified": moment})

    async def upload(
        self, source: IO[bytes], path: str, about: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Write a file there."""
        written = await self.api.write_file(self.place, path, _chunks(source), about)
        self.counts["files"] += 1
        self.counts["bytes"] += written.size

    async def download(self, entry: FileEntry, target: Path) -> None:
        """Read a file into ``target``, which is whole once it is there."""
        mark = hashlib.sha256(f"{entry.path}{entry.etag}".encode()).hexdigest()[:12]
        part = target.with_name(f".greylag-{mark}.part")
        with _refused(target, "written"):
            if target.is_file() and not target.is_symlink() and _is_same(entry, target.stat()):
                _let_run(target, entry)
                self.counts["already_there"] += 1
                return
            with _own_part(part) as file:
                await self._download(entry, file)
                moved = _seconds(entry)
                os.utime(part, (moved, moved))
                _let_run(part, entry)
                part.replace(target)
        self.counts["files"] += 1
        self.counts["bytes"] += entry.size

    async def _download(self, entry: FileEntry, part: IO[bytes]) -> None:
        """Go on with a part until it is whole, over as many connections as that takes."""
        for tried in range(1, _TRIES + 1):
            part.flush()
            size = os.fstat(part.fileno()).st_size
            start = size if size <= entry.size else part.truncate(0)
            if start == entry.size:  # all was there before it got its name
                return
            try:
                async with self.api.read_file(self.place, entry, start) as content:
                    if not content.partial:
                        part.truncate(0)
                    async for chunk in content.chunks:
                        await asyncio.to_thread(part.write, chunk)
                part.flush()
            except ServerUnreachableError:
                if tried == _TRIES:
                    raise
            else:
                return


@contextmanager
def _own_part(part: Path) -> Iterator[IO[bytes]]:
    """Open a part to be gone on with by this program alone.

    Raises:
        CliError: another is at it, or has just given it its name.
    """
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(file.fileno()), part.stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}:
                raise
            ours = True  # the file system has no locks
        if not ours:
            raise CliError("The same file is being copied here already.", "Try again after that.")
        yield file


async def _chunks(source: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(source.read, _AT_ONCE):
        yield chunk


def _opened(file: Path) -> IO[bytes]:
    with _refused(file, "read"):
        return file.open("rb")


@contextmanager
def _refused(path: Path, verb: str) -> Iterator[None]:
    """Turn what this machine refuses into words."""
    try:
        yield
    except OSError as error:
        raise CliError(f"{path} cannot be {verb}: {error.strerror}.") from error


def _unread(error: OSError) -> None:
    with _refused(Path(error.filename), "read"):
        raise error


def _is_same(entry: FileEntry, about: os.stat_result) -> bool:
    """Tell whether a file there and one here are the same, by what rsync goes by.

    A copy has the time of what it is a copy of; whoever writes into either changes its own.
    """
    same_age = abs(about.st_mtime - _seconds(entry)) < _SAME_SECONDS
    return entry.kind == "file" and entry.size == about.st_size and same_age


def _runs(entry: FileEntry) -> bool:
    """Tell whether its owner may execute it there."""
    return entry.mode[-3:-2] in {"1", "3", "5", "7"}


def _runs_here(about: os.stat_result) -> bool:
    return bool(about.st_mode & stat.S_IXUSR)


def _let_run(file: Path, entry: FileEntry) -> None:
    """Make a file here one to execute, for all who may read it, or none, as it is there."""
    about = file.stat()
    if _runs_here(about) != _runs(entry):
        mode = stat.S_IMODE(about.st_mode)
        with suppress(PermissionError):  # file systems of other systems have no such rights
            file.chmod(mode | (mode & 0o444) >> 2 if _runs(entry) else mode & ~0o111)


def _below(folder: Path, name: str) -> Path:
    """Return a path here for a name there, which must be one name and lead nowhere else."""
    try:
        (plain,) = parts_of("" if "/" in name else name)
    except (RefusedError, ValueError) as error:
        raise CliError("The workspace names a file as no file can be named here.") from error
    return folder / os.fsdecode(plain)


def _said(name: str) -> str:
    """Return a name of this machine as the API has it."""
    return shown(os.fsencode(name))


def _joined(folder: str, name: str) -> str:
    return folder if name == "." else f"{folder.rstrip('/')}/{name}".lstrip("/")


def _seconds(entry: FileEntry) -> float:
    try:
        return parse_rfc3339(entry.modified).timestamp()
    except ValueError as error:
        raise CliError("The workspace tells no time that could be read.") from error
