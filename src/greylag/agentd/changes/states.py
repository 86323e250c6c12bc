"""What states of the workspace are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

RULES = frozenset({"build", "ignored"})


class SnapshotError(Exception):
    """The workspace's state cannot be kept or read; the message says why."""


class StatesFileError(SnapshotError):
    """A file of states or records cannot be used, for a full disk most often."""


class TreeEntry(NamedTuple):
    """What a tree says of a name.

    Attributes:
        kind: ``f`` (a file), ``d`` (a folder), ``l`` (a link) or ``x`` (left out).
        mode: a file's or folder's rights.
        size: a file's bytes.
        content: the digests of a file's pieces, that of a folder's tree, a link's target, or why
            it was left out.
    """

    kind: str
    mode: int
    size: int
    content: Any

    @property
    def itself(self) -> tuple[Any, ...]:
        """What makes it another when it changes; of a folder not what it holds."""
        return (self.kind, self.mode) if self.kind == "d" else self


Change = tuple[TreeEntry | None, TreeEntry | None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state of the workspace that is kept.

    Attributes:
        number: grows with each.
        root: the workspace's tree.
        left_out: the first paths that are not in it, and why.
        left_out_count: how many there are.
    """

    number: int
    root: str
    left_out: list[tuple[str, str]]
    left_out_count: int


class FileStatus(NamedTuple):
    """A file as it was listed."""

    size: int
    modified: int
    changed: int
    inode: int

    @property
    def tag(self) -> str:
        """What execd calls the file's tag."""
        return f"{self.inode:x}-{self.size:x}-{self.modified:x}"


@dataclass(slots=True)
class Seen:
    """An entry of a folder as it was listed, with its content once that is known.

    Attributes:
        kind, mode, content: as of an ``TreeEntry``; of a folder the content is not told here.
        status: of a file.
        settled: whether it is as it was as long as it is listed the same.
    """

    kind: str
    mode: int = 0
    content: Any = None
    status: FileStatus | None = None
    settled: bool = True


Folder = dict[str, Seen] | str
"""The entries of a folder by name, or why it is left out."""


@dataclass(slots=True)
class Plan:
    """What a list of the workspace means: which folders are as they were, and what must be read.

    Attributes:
        digests: each folder's path and the digest of its record, those above first.
        folders: the entries of those that are not as they were; a text: why one is left out.
        wanted: the folder and name of each file whose content is not known.
        ruled_out: whether a rule leaves out what the newest state holds; it is to be told, too.
    """

    digests: dict[str, bytes] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)
    wanted: list[tuple[str, str, Seen]] = field(default_factory=list)
    ruled_out: bool = False


class RestoreStep(NamedTuple):
    """One thing that brings back a part of a state; it may be done again.

    Attributes:
        do: remove, folder, link, file, mode; sync: wait until all is on the disk.
        path: where.
        about: what else execd is told.
        pieces: the digests of what a file is to hold.
    """

    do: str
    path: str
    about: Mapping[str, Any]
    pieces: Sequence[str] = ()


def split(path: str) -> tuple[str, str]:
    """Return the path of the folder that an entry is in, and its name there."""
    folder, _, name = path.rpartition("/")
    return folder, name
