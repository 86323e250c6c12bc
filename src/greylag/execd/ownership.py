"""Taking over what another user has left on our volume, without any right to do so.

An environment may have run as another user: in an earlier version, or before a setting was changed.
Kubernetes then gives all files to our group before we start, and lets it read and write them. But
only their owner may change their modes, as goose does at its start. So what is not ours is copied,
and the copy takes its place: files one by one, folders by moving what is in them.

It goes from the inside out, and may be cut off anywhere: as long as something right in the folder
is not ours, the next start goes on. Nothing else runs yet, and what is found here can harm its own
environment alone.
"""

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

_DRAFT = ".greylag-draft"
_GROUP_BITS = 0o070


def take_over(root: Path) -> None:
    """Make all files and folders below ``root`` ours, if there is one right in it that is not."""
    if not any(True for _ in _of_others(root)):
        return
    copies: dict[int, Path] = {}
    for folder, _, _ in os.walk(root, topdown=False, onerror=_report):
        _put_back(Path(folder))
        for path, found in list(_of_others(Path(folder))):
            try:
                if stat.S_ISDIR(found.st_mode):
                    _take_folder(path, found)
                else:
                    _take_file(path, found, copies)
            except OSError as error:
                _report(error)


def _of_others(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                kind = stat.S_IFMT(found.st_mode)
                if found.st_uid != os.geteuid() and kind in {stat.S_IFREG, stat.S_IFDIR}:
                    yield Path(entry), found
    except OSError as error:
        _report(error)


def _take_file(path: Path, found: os.stat_result, copies: dict[int, Path]) -> None:
    draft = path.with_name(_DRAFT)
    draft.unlink(missing_ok=True)
    if (known := copies.get(found.st_ino)) is not None:  # another name of the same file
        os.link(known, draft)
    else:
        shutil.copyfile(path, draft)
        _finish(draft, found)
        if found.st_nlink > 1:
            copies[found.st_ino] = path
    draft.replace(path)


def _take_folder(path: Path, found: os.stat_result) -> None:
    draft = path.with_name(f"{path.name}{_DRAFT}")
    draft.mkdir(mode=stat.S_IRWXU, exist_ok=True)
    for name in os.listdir(path):  # noqa: PTH208 - names are all that is needed
        (path / name).rename(draft / name)
    _finish(draft, found)
    path.rmdir()
    draft.rename(path)


def _put_back(folder: Path) -> None:
    """Finish what was cut off just before a folder had its name again."""
    for draft in folder.glob(f"?*{_DRAFT}"):
        path = draft.with_name(draft.name.removesuffix(_DRAFT))
        try:
            if not path.exists():
                draft.rename(path)
        except OSError as error:
            _report(error)


def _finish(draft: Path, found: os.stat_result) -> None:
    """Give a copy its mode and times. What the group may is what others may: we had no group."""
    mode = stat.S_IMODE(found.st_mode) & ~_GROUP_BITS
    inherited = stat.S_IMODE(draft.stat().st_mode) & stat.S_ISGID
    draft.chmod(mode | inherited | (mode & stat.S_IRWXO) << 3)
    os.utime(draft, ns=(found.st_atime_ns, found.st_mtime_ns))


def _report(error: OSError) -> None:
    sys.stderr.write(f"execd: not taken over: {error}\n")
