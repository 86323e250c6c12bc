"""Words as a page may show them: harmless characters, and times that people read."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

from greylag.common.clock import rfc3339
from greylag.domain.errors import ErrorInfo
from greylag.domain.project import Desired, Event, Project, Status

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
    machine = rfc3339(utc)
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


# What the templates are given: plain values, every decision made, every address built.

_LABELS = {
    Status.INACTIVE: "Inactive",
    Status.ACTIVATING: "Activating",
    Status.ACTIVE: "Active",
    Status.DEACTIVATING: "Deactivating",
    Status.ERROR: "Error",
}


@dataclass(frozen=True, slots=True)
class ProjectView:
    """One project as cards and headers show it. Two are equal when they look the same."""

    key: str
    """Unique and safe inside an ``id`` attribute."""
    user_id: str
    project_id: str
    name: str
    url: str
    api: str
    status: str
    label: str
    moving: bool
    deleting: bool
    endpoint: str | None
    endpoint_is_link: bool
    error: ErrorInfo | None
    can_activate: bool
    can_deactivate: bool
    metadata: str
    created: Moment
    last_activated: Moment | None
    last_deactivated: Moment | None

    @property
    def is_active(self) -> bool:
        """Whether its agent can be asked now."""
        return self.status == Status.ACTIVE


@dataclass(frozen=True, slots=True)
class EventView:
    """One line of the activation log."""

    seq: int
    at: Moment
    message: str
    hint: str
    status: str


def user_url(user_id: str, under: str = "", **query: str | int | None) -> str:
    """Return the address of a user's page, or of the path ``under`` it.

    A query value of ``None`` is left out.
    """
    given = {name: value for name, value in query.items() if value is not None}
    path = f"/users/{quote(user_id, safe='')}{under}"
    return f"{path}?{urlencode(given)}" if given else path


def project_url(user_id: str, project_id: str) -> str:
    """Return the address of a project's page."""
    return f"{user_url(user_id)}/projects/{quote(project_id, safe='')}"


def session_url(user_id: str, project_id: str, session_id: str | None) -> str:
    """Return the address of a project's page with a session chosen (``None``: the newest)."""
    url = project_url(user_id, project_id)
    return f"{url}?{urlencode({'session': session_id})}" if session_id else url


def project_view(project: Project, now: datetime) -> ProjectView:
    """Return how ``project`` looks at the time ``now``."""
    url = project_url(project.user_id, project.project_id)
    deleting = project.desired is Desired.DELETED
    wants_active = project.desired is Desired.ACTIVE
    failed = project.status is Status.ERROR
    return ProjectView(
        key=project.id,
        user_id=project.user_id,
        project_id=project.project_id,
        name=project.name,
        url=url,
        api=f"/api{url}",
        status="deleting" if deleting else project.status.value,
        label="Deleting" if deleting else _LABELS[project.status],
        moving=deleting or not project.settled,
        deleting=deleting,
        endpoint=project.endpoint,
        endpoint_is_link=(project.endpoint or "").startswith(("http://", "https://")),
        error=project.error,
        can_activate=not deleting and (failed or not wants_active),
        can_deactivate=not deleting and (wants_active or project.status is Status.ACTIVE),
        metadata=_metadata_text(project.metadata),
        created=moment(project.created_at, now),
        last_activated=_maybe(project.last_activated_at, now),
        last_deactivated=_maybe(project.last_deactivated_at, now),
    )


def event_view(event: Event, now: datetime) -> EventView:
    """Return how one line of the activation log looks."""
    return EventView(
        event.seq, moment(event.at, now), event.message, event.hint, event.status.value
    )


def _maybe(at: datetime | None, now: datetime) -> Moment | None:
    return moment(at, now) if at else None


def _metadata_text(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, indent=2, ensure_ascii=False) if metadata else ""
