"""Projects of every kind that a store can hold, with their logs and keys."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st
from tests.contract.store_adapters import at, make_project

from greylag.domain.errors import ErrorInfo
from greylag.domain.project import Desired, Event, GitSource, Lease, Status
from greylag.ports import StoredKey, StoredProject

FAR = datetime(2999, 1, 1, tzinfo=UTC)


def make_event(seq: int, **fields: Any) -> Event:
    """Return an event."""
    values = {"code": "image_pulled", "message": f"Step {seq} is done.", "hint": "\udcff é"}
    return Event(seq=seq, at=at(seq), status=Status.ACTIVATING, generation=2, **values | fields)


def make_stored(project_id: str = "demo", *, events: int = 3, **fields: Any) -> StoredProject:
    """Return a project of which every field says something, with a log and a key."""
    values: dict[str, Any] = {
        "name": "Dé\N{SNOWMAN}mo",
        "metadata": {"$odd": {"a.b": [1, 2.5, 2**70, None, True]}, "text": "\udcff"},
        "status": Status.ERROR,
        "endpoint": "http://127.0.0.1:1",
        "error": ErrorInfo("image_not_found", "No \udcff image.", "Name another."),
        "error_terminal": True,
        "updated_at": at(9),
        "last_activated_at": at(5),
        "last_deactivated_at": at(6),
        "desired": Desired.ACTIVE,
        "generation": 4,
        "observed_generation": 3,
        "attempts": 2,
        "due_at": at(70),
        "deadline_at": at(80),
        "last_seq": events,
        "source": GitSource("https://example.org/a.git", "main", 3),
        "environment_user": "eve",
    }
    project = make_project(project_id, **values | fields)
    return StoredProject(
        project=project,
        claims=7,
        events=[make_event(seq) for seq in range(1, events + 1)],
        keys=[StoredKey(project.user_id, f"key of {project_id}", "fingerprint", FAR)],
    )


def changed(stored: StoredProject, **fields: Any) -> StoredProject:
    """Return ``stored`` with other fields in its project."""
    return replace(stored, project=replace(stored.project, **fields))


def leased(stored: StoredProject, until: datetime) -> StoredProject:
    """Return ``stored`` under a lease."""
    return changed(stored, lease=Lease("worker", stored.claims, until))


START = datetime(1990, 1, 1, tzinfo=UTC)
MOMENTS = st.integers(0, 10**12).map(lambda millis: START + timedelta(milliseconds=millis))
COUNTS = st.integers(0, 2**31)
# What can be kept as it is: ids and names cannot hold unpaired surrogates or control characters.
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
TEXTS = st.text(st.characters(), max_size=8) | st.just("\udcff")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS | st.sampled_from(["$a", "a.b", "_json"]), inner, max_size=3)
    ),
    max_leaves=6,
)
ERRORS = st.builds(ErrorInfo, WORDS, TEXTS.filter(bool), TEXTS)


@st.composite
def _stored(draw: st.DrawFn) -> StoredProject:
    project = make_project(
        draw(WORDS),
        draw(WORDS),
        name=draw(WORDS),
        metadata=draw(st.dictionaries(TEXTS, JSON, max_size=3)),
        created_at=draw(MOMENTS),
        updated_at=draw(MOMENTS),
        status=draw(st.sampled_from(Status)),
        endpoint=draw(st.none() | WORDS),
        error=draw(st.none() | ERRORS),
        error_terminal=draw(st.booleans()),
        last_activated_at=draw(st.none() | MOMENTS),
        last_deactivated_at=draw(st.none() | MOMENTS),
        desired=draw(st.sampled_from(Desired)),
        generation=draw(COUNTS),
        observed_generation=draw(COUNTS),
        attempts=draw(COUNTS),
        due_at=draw(st.none() | MOMENTS),
        deadline_at=draw(st.none() | MOMENTS),
        last_seq=draw(st.integers(0, 900)),
        source=draw(st.none() | st.builds(GitSource, WORDS, st.none() | WORDS, st.none() | COUNTS)),
    )
    last, kept = project.last_seq, draw(st.integers(0, 4))
    keys = [StoredKey(project.user_id, key, draw(WORDS), FAR) for key in draw(st.sets(WORDS))][:2]
    return StoredProject(
        project=project,
        claims=draw(COUNTS),
        events=[draw(_event(seq)) for seq in range(max(1, last - kept + 1), last + 1)],
        keys=sorted(keys, key=lambda one: one.key),
    )


@st.composite
def _event(draw: st.DrawFn, seq: int) -> Event:
    event = make_event(seq, code=draw(WORDS), message=draw(TEXTS), hint=draw(TEXTS))
    return replace(event, at=draw(MOMENTS), status=draw(st.sampled_from(Status)))


STORED = _stored()
"""One project with its log and keys."""
