"""Projects of every kind that a store can hold, made by chance."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st
from tests.contract.store_adapters import make_project
from tests.store.archive_places import FAR, make_event

from greylag.domain.errors import ErrorInfo
from greylag.domain.project import Desired, Event, Status
from greylag.ports import Bundle, KeptKey

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
def _bundles(draw: st.DrawFn) -> Bundle:
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
    )
    last, kept = draw(st.integers(0, 900)), draw(st.integers(0, 4))
    keys = [KeptKey(project.user_id, key, draw(WORDS), FAR) for key in draw(st.sets(WORDS))][:2]
    return Bundle(
        project=project,
        claims=draw(COUNTS),
        last_seq=last,
        events=[draw(_event(seq)) for seq in range(max(1, last - kept + 1), last + 1)],
        keys=keys,
    )


@st.composite
def _event(draw: st.DrawFn, seq: int) -> Event:
    event = make_event(seq, code=draw(WORDS), message=draw(TEXTS), hint=draw(TEXTS))
    return replace(event, at=draw(MOMENTS), status=draw(st.sampled_from(Status)))


BUNDLES = _bundles()
"""One project with its log and keys."""
