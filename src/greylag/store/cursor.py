"""The cursor of a page of projects: where the page ended, as text that clients do not look into."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from greylag.domain.errors import InvalidRequestError
from greylag.domain.project import Project
from greylag.ports.store import Page

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_MILLIS = 253_402_300_799_999
"""The last millisecond of the year 9999, where ``datetime`` ends."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A project's place in the order of creation: milliseconds since 1970, then its record id."""

    created: int
    record_id: str


def position(project: Project) -> Position:
    """Return where ``project`` stands."""
    return Position(millis(project.created_at), project.id)


def encode(place: Position) -> str:
    """Return ``place`` as a cursor, safe inside a URL."""
    text = json.dumps([place.created, place.record_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str) -> Position:
    """Return the place that ``encode`` made ``cursor`` from, else raise ``InvalidRequestError``."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        value = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, RecursionError, binascii.Error) as error:
        raise _not_ours() from error
    match value:
        case [int(created), str(record_id)] if _is_ours(created, record_id):
            return Position(created, record_id)
        case _:
            raise _not_ours()


def cut(projects: Sequence[Project], limit: int) -> Page:
    """Return the first ``limit`` of ``projects`` as a page; one more than that means that there is
    a next page. Raises ``InvalidRequestError`` for a limit below 1.
    """
    check_limit(limit)
    if len(projects) <= limit:
        return Page(projects)
    shown = projects[:limit]
    return Page(shown, encode(position(shown[-1])))


def check_limit(limit: int) -> None:
    """Raise ``InvalidRequestError`` for a limit of a page below 1."""
    if limit < 1:
        raise InvalidRequestError("The limit of a page must be at least 1.")


def millis(moment: datetime) -> int:
    """Return ``moment`` (aware) in whole milliseconds since 1970."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


def from_millis(value: int) -> datetime:
    """Return the moment ``value`` milliseconds after the start of 1970, in UTC."""
    return EPOCH + timedelta(milliseconds=value)


def _is_ours(created: int, record_id: str) -> bool:
    # JSON's true is an int to Python, but was never a time.
    time_fits = not isinstance(created, bool) and 0 <= created <= _MAX_MILLIS
    return time_fits and record_id.isascii() and record_id.isalnum()


def _not_ours() -> InvalidRequestError:
    return InvalidRequestError("The cursor is not one that a page of projects gave.")
