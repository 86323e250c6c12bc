"""A workspace's files in memory, as the relay gives them: folders are what paths say they are."""

from collections.abc import Callable, Mapping
from typing import Any

from greylag.common import agent_api
from greylag.common.agent_api import FileEntry, FileList, FileMatch, FileMatches, Unpacked
from greylag.domain.errors import ConflictError, InvalidRequestError, MissingError

Files = dict[str, bytes]
"""What each path holds; an empty folder is a path that ends in ``/``."""


def _path(query: Mapping[str, str], name: str = "path") -> str:
    path = query.get(name, "").strip("/")
    if "\\" in path or "\0" in path or ".." in path.split("/"):
        raise InvalidRequestError("The path is not written as paths are here.")
    return path


def _entry(files: Files, path: str) -> FileEntry:
    is_folder = not path or any(one.startswith(f"{path}/") for one in files)
    if path not in files and not is_folder:
        raise MissingError(f"It is not there: {path}")
    content = files.get(path, b"")
    return FileEntry(
        path=path,
        name=path.rpartition("/")[2],
        kind="folder" if is_folder else "file",
        size=len(content),
        modified="2026-11-26T00:00:00.000Z",
        mode="755" if is_folder else "644",
        target=None,
        media_type=None,
        etag=f'"{hash(content) & 0xFFFFFFFF:x}"',
    )


def _list(files: Files, query: Mapping[str, str], _sent: Any) -> FileList:
    path = _path(query)
    entry = _entry(files, path)
    prefix = f"{path}/" if path else ""
    inside = {one[len(prefix) :].split("/")[0] for one in files if one.startswith(prefix)}
    names = sorted(inside - {""}) if entry.kind == "folder" else []
    return FileList(entry, [_entry(files, prefix + name) for name in names], None)


def _delete(files: Files, query: Mapping[str, str], _sent: Any) -> None:
    path = _path(query)
    entry = _entry(files, path)
    inside = [one for one in files if one.startswith(f"{path}/")]
    if not path or (inside and query.get("recursive") != "true"):
        raise ConflictError("The folder is not empty.")
    for one in [*inside, entry.path]:
        files.pop(one, None)


def _read(files: Files, query: Mapping[str, str], _sent: Any) -> bytes:
    path = _path(query)
    if _entry(files, path).kind != "file":
        raise ConflictError("It is a folder.")
    return files[path]


def _write(files: Files, query: Mapping[str, str], sent: Any) -> FileEntry:
    path = _path(query)
    if not path or any(one.startswith(f"{path}/") for one in files):
        raise ConflictError("It is a folder.")
    files[path] = sent
    return _entry(files, path)


def _make_folder(files: Files, _query: Mapping[str, str], sent: Any) -> FileEntry:
    path = _said(sent, "path")
    if path in files:
        raise ConflictError("There is something of this name already.")
    files.setdefault(f"{path}/", b"")
    return _entry(files, path)


def _move(files: Files, _query: Mapping[str, str], sent: Any) -> FileEntry:
    source, target = _said(sent, "source"), _said(sent, "target")
    if source not in files or target in files:
        raise ConflictError("This cannot be done.")
    files[target] = files.pop(source)
    return _entry(files, target)


def _said(sent: Any, name: str) -> str:
    value = sent.get(name)
    if not isinstance(value, str) or not value.strip("/"):
        raise InvalidRequestError(f"{name} must be text.")
    return _path({name: value}, name)


def _archive(files: Files, query: Mapping[str, str], _sent: Any) -> bytes:
    _entry(files, _path(query))
    return b"packed"


def _unpack(_files: Files, query: Mapping[str, str], _sent: Any) -> Unpacked:
    _path(query)
    return Unpacked(0, [])


def _search(files: Files, query: Mapping[str, str], _sent: Any) -> FileMatches:
    wanted = query.get("q", "")
    if not wanted:
        raise InvalidRequestError("q must be one line.")
    return FileMatches([FileMatch(one, 0, "") for one in files if wanted in one], whole=True)


FILE_ANSWERS: Mapping[str, Callable[[Files, Mapping[str, str], Any], Any]] = {
    agent_api.LIST_FILES.name: _list,
    agent_api.DELETE_FILE.name: _delete,
    agent_api.READ_FILE.name: _read,
    agent_api.WRITE_FILE.name: _write,
    agent_api.MAKE_FOLDER.name: _make_folder,
    agent_api.MOVE_FILE.name: _move,
    agent_api.READ_ARCHIVE.name: _archive,
    agent_api.UNPACK_ARCHIVE.name: _unpack,
    agent_api.SEARCH_FILES.name: _search,
}
"""What answers an operation, by its name: of the files, the query, and what was sent."""
