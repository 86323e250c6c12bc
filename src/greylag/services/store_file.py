r"""The file of an export: lines of JSON, a header first and a digest last.

    {"greylag_export": 1, "at": "2026-01-02T03:04:05.678Z", "store": "...", "projects": 2,
     "instance": "0123456789abcdef"}
    {"users": {...}}
    {"project": {...}, "claims": 7, "last_seq": 12, "events": [...], "keys": [...]}
    {"end": {"projects": 2, "events": 12, "keys": 0, "unreadable": 0}, "sha256": "..."}

The header says how many projects there were when the export began, the last line how many are in
the file; its digest is of all bytes before that line. ``instance`` is the id of the Greylag whose
records they are; exports of before there were such ids lack it. An export with ``people`` in its
header, of form 2, holds users, ``tokens`` (their hashes), ``members``, ``shares``, and what
is sealed, too, each in a line of its own before the projects. One of form 3 says in ``trail`` where
the audit trail begins and ends, and has its entries after these: ``{"entry": 7, "body": {...}}``.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, BinaryIO

from greylag.common.clock import parse_rfc3339, rfc3339
from greylag.common.typed import check_types
from greylag.domain.audit import AuditBounds, Link
from greylag.domain.errors import GreylagError
from greylag.domain.project import Event, Project, Status, project_of
from greylag.ports import (
    EXPORTED_KINDS,
    Origin,
    RecordUnreadableError,
    Stored,
    StoredEntry,
    StoredKey,
    StoredPerson,
    StoredProject,
)

FORMAT = 3
_WITHOUT_TRAIL = 2
_WITHOUT_PEOPLE = 1
_FORMAT_KEY = "greylag_export"
_LONGEST_LINE = 64 * 1024**2

# Who works on a project now, and what is seen anew at each look, is no part of what is kept of it;
# ``last_seq`` stands beside the log.
_LEFT_OUT = {"lease", "outdated", "refresh", "last_seq"}
_KEPT = [field.name for field in fields(Project) if field.name not in _LEFT_OUT]
_MAYBE = {"source", "environment_user"}


Check = Callable[[StoredPerson], object]
"""Raises ``RecordUnreadableError`` for one of whom no store can read what stands in the file."""


class ExportUnusableError(GreylagError):
    """A file is no whole export that this Greylag can read."""

    code = "export_unusable"
    hint = "Nothing was changed. Use another export; this one was cut off or altered."


@dataclass(slots=True)
class Contents:
    """What is in an export; ``unreadable`` records were left out of it."""

    projects: int = 0
    events: int = 0
    keys: int = 0
    unreadable: int = 0
    people: int = 0
    entries: int = 0

    def add(self, stored: Stored) -> None:
        """Count one record."""
        if isinstance(stored, StoredPerson):
            self.people += 1
            return
        if isinstance(stored, StoredEntry):
            self.entries += 1
            return
        self.projects += 1
        self.events += len(stored.events)
        self.keys += len(stored.keys)


class ExportWriter:
    """Makes the lines of one export, each to be written as it is given.

    Attributes:
        contents: what was written so far.
    """

    def __init__(self) -> None:
        self.contents = Contents()
        self._digest = hashlib.sha256()

    def header(self, at: datetime, store: str, projects: int, origin: Origin) -> bytes:
        """Return the first line."""
        version = _WITHOUT_TRAIL if origin.people else _WITHOUT_PEOPLE
        if origin.trail is not None:
            version = FORMAT
        said = {_FORMAT_KEY: version, "at": rfc3339(at), "store": store, "projects": projects}
        named = asdict(origin)
        return self._line(said | {name: value for name, value in named.items() if value})

    def record(self, stored: Stored) -> bytes:
        """Return the line of one record."""
        self.contents.add(stored)
        if isinstance(stored, StoredPerson):
            return self._line({stored.kind: dict(stored.body)})
        if isinstance(stored, StoredEntry):
            return self._line({"entry": stored.number, "body": dict(stored.body)})
        said: dict[str, Any] = {
            "project": _kept(stored.project),
            "claims": stored.claims,
            "last_seq": stored.project.last_seq,
            "events": list(stored.events),
            "keys": list(stored.keys),
        }
        return self._line(said | ({"extra": stored.extra} if stored.extra else {}))

    def end(self) -> bytes:
        """Return the last line."""
        said = asdict(self.contents)
        for name in ("people", "entries"):
            if not said[name]:
                del said[name]  # which earlier versions do not know
        return self._line({"end": said, "sha256": self._digest.hexdigest()})

    def _line(self, said: dict[str, Any]) -> bytes:
        # ASCII only, so that any text can be kept, with unpaired surrogates too.
        line = json.dumps(said, separators=(",", ":"), default=_plain).encode("ascii") + b"\n"
        self._digest.update(line)
        return line


def read_export(
    file: BinaryIO,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
    check: Check = lambda _person: None,
) -> Generator[Stored, None, Contents]:
    """Yield the records of an export, checked one by one; it is whole when the last has come.

    Args:
        file: the file, at its beginning.
        tell: hears how many projects were read, of how many about.
        check: see ``Check``.

    Returns:
        What is in the file (``contents`` takes it).

    Raises:
        ExportUnusableError: it is cut, altered, of a newer version or no export at all.
    """
    digest, found = hashlib.sha256(), Contents()
    first = _next_line(file, 1)
    total = _check_header(_parsed(first, 1))
    digest.update(first)
    while True:
        number = found.projects + found.people + found.entries + 2
        line = _next_line(file, number)
        said = _parsed(line, number)
        if "end" in said:
            break
        digest.update(line)
        stored = _checked(said, number, check)
        found.add(stored)
        tell(found.projects, max(total, found.projects))
        yield stored
    _check_end(said, found, digest.hexdigest())
    if file.read(1):
        raise ExportUnusableError("Something follows the last line of the export.")
    return found


def contents(
    file: BinaryIO, tell: Callable[[int, int], None], check: Check = lambda _person: None
) -> Contents:
    """Read an export to its end and return what is in it; see ``read_export``."""
    reading = read_export(file, tell, check)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            found: Contents = end.value
            return found


def origin_of(file: BinaryIO) -> Origin:
    """Return what an export is of; the file is at its beginning, before and after.

    Raises:
        ExportUnusableError: its header cannot be read.
    """
    said = _parsed(_next_line(file, 1), 1)
    file.seek(0)
    _check_header(said)
    instance, trail = said.get("instance"), said.get("trail")
    try:
        bounds = trail and AuditBounds(Link(**trail["start"]), Link(**trail["end"]))
        found = Origin(
            instance if isinstance(instance, str) else None, said.get("people", 0), bounds
        )
        check_types(found)
    except (TypeError, KeyError) as error:
        raise ExportUnusableError(_unreadable(1, "it is no header")) from error
    return found


def _kept(project: Project) -> dict[str, Any]:
    """Return what is kept of a project; without what it has not, as versions knew it that had no
    such thing.
    """
    kept = {name: getattr(project, name) for name in _KEPT}
    return {name: kept[name] for name in _KEPT if name not in _MAYBE or kept[name] is not None}


def _next_line(file: BinaryIO, number: int) -> bytes:
    line = file.readline(_LONGEST_LINE)
    if not line.endswith(b"\n"):
        longer = len(line) == _LONGEST_LINE
        what = f"Line {number} is too long." if longer else "The export is cut off before its end."
        raise ExportUnusableError(what if number > 1 else "This is no export of Greylag.")
    return line


def _parsed(line: bytes, number: int) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ExportUnusableError(_unreadable(number, "it is no JSON")) from error
    if not isinstance(said, dict):
        raise ExportUnusableError(_unreadable(number, "it is no object"))
    return said


def _check_header(said: Mapping[str, Any]) -> int:
    version = said.get(_FORMAT_KEY)
    if not isinstance(version, int) or not isinstance(said.get("projects"), int):
        raise ExportUnusableError("This is no export of Greylag.")
    if version > FORMAT:
        raise ExportUnusableError(
            f"The export has version {version} of its form; this Greylag knows {FORMAT}.",
            hint="Nothing was changed. Import it with the newer Greylag that wrote it.",
        )
    total: int = said["projects"]
    return total


def _check_end(said: Mapping[str, Any], found: Contents, digest: str) -> None:
    if said.get("sha256") != digest:
        raise ExportUnusableError("The export was altered: its digest is another.")
    try:
        claimed = Contents(**said["end"])
        check_types(claimed)
    except TypeError as error:
        raise ExportUnusableError("The last line of the export cannot be read.") from error
    found.unreadable = claimed.unreadable
    if claimed != found:
        raise ExportUnusableError("The export was altered: it does not hold what it says.")


def _checked(said: Mapping[str, Any], number: int, check: Check) -> Stored:
    try:
        stored = _stored(said)
        check_types(stored)
        if isinstance(stored, StoredPerson):
            check(stored)
    except RecordUnreadableError as error:
        raise ExportUnusableError(
            f"Line {number} of the export cannot be read by this Greylag. {error}",
            hint="Nothing was changed. Import it with the Greylag that wrote it, or correct the "
            "record there and export again.",
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ExportUnusableError(_unreadable(number, why)) from error
    return stored


def _unreadable(number: int, why: str) -> str:
    return f"Line {number} of the export cannot be read ({why})."


def _stored(said: Mapping[str, Any]) -> Stored:
    if EXPORTED_KINDS & said.keys():
        ((kind, body),) = said.items()
        return StoredPerson(kind, body)
    return StoredEntry(said["entry"], said["body"]) if "entry" in said else _project(said)


def _project(said: Mapping[str, Any]) -> StoredProject:
    project = said["project"]
    if "lease" in project:
        raise ValueError("an export holds no leases")
    given: dict[str, Any] = {
        **{name: value for name, value in said.items() if name != "last_seq"},
        "project": project_of({**project, "last_seq": said["last_seq"]}, parse_rfc3339),
        "events": [
            Event(**{**one, "at": parse_rfc3339(one["at"]), "status": Status(one["status"])})
            for one in said["events"]
        ],
        "keys": [
            StoredKey(**{**one, "expires_at": parse_rfc3339(one["expires_at"])})
            for one in said["keys"]
        ],
    }
    return StoredProject(**given)


def _plain(value: Any) -> Any:
    """Return what JSON does not know in words that it knows."""
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, Mapping):
        return dict(value)
    return {field.name: getattr(value, field.name) for field in fields(value)}
