"""Words as a page may show them: harmless characters, and times that people read."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

_UNSEEN = re.compile("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]")
_DELETE = 0x7F
_PICTURES = 0x2400

_SPANS = (
    (timedelta(days=365), "year"),
    (timedelta(days=30), "month"),
    (timedelta(days=1), "day"),
    (timedelta(hours=1), "hour"),
    (timedelta(minutes=1), "minute"),
)


def visible(text: str) -> str:
    """Return ``text`` with control characters and bidirectional overrides made visible.

    Names, events and answers are written by others: an override could make one sentence look like
    another. Tab and newline stay. ``static/js/text.js`` does the same in the browser.
    """
    return _UNSEEN.sub(lambda match: _picture(ord(match[0])), text)


def _picture(code: int) -> str:
    if code < ord(" "):
        return chr(_PICTURES + code)
    if code == _DELETE:
        return "\u2421"
    return f"[U+{code:04X}]"


@dataclass(frozen=True, slots=True)
class Moment:
    """A time as a ``<time>`` element needs it: for machines, exact, and relative to now."""

    machine: str
    exact: str
    ago: str = field(compare=False)
    """Left out of comparisons: the page itself keeps it fresh."""


def moment(at: datetime, now: datetime) -> Moment:
    """Return how to show the aware time ``at`` at the aware time ``now``."""
    utc = at.astimezone(UTC)
    machine = utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Moment(machine, f"{utc:%Y-%m-%d %H:%M:%S} UTC", _ago(now - at))


def parsed_moment(text: str, now: datetime) -> Moment | None:
    """Return the same of an RFC 3339 time that an agent told, ``None`` when it is not one."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment(at if at.tzinfo else at.replace(tzinfo=UTC), now)


def _ago(passed: timedelta) -> str:
    for span, word in _SPANS:
        count = passed // span
        if count >= 1:
            return f"{count} {word}{'s' if count > 1 else ''} ago"
    return "just now"
