"""Ids and the DNS-safe names made from them: never two ids with one name."""

import re
import unicodedata

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from greylag.domain import names
from greylag.domain.errors import InvalidRequestError

RFC_1035_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
ANY_ID = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=300)
PLAIN_ID = st.from_regex(RFC_1035_LABEL, fullmatch=True)
TROUBLE = st.text(
    st.sampled_from("aAzZ09-._ /\u0430\u00e9e\u0301\u212a\u0131\ufb01\u00df2"),
    min_size=1,
    max_size=70,
)
IDS = ANY_ID | PLAIN_ID | TROUBLE
LENGTHS = st.sampled_from([40, 55, 58, 63])


def variants(identifier: str) -> set[str]:
    """Return ids that look like this one, or like what is made of it."""
    forms = {unicodedata.normalize(form, identifier) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    cases = {identifier.lower(), identifier.upper(), identifier.swapcase()}
    marks = {identifier.replace("-", mark) for mark in "._ "} | {identifier.replace(".", "-")}
    edges = {
        f"{identifier}-",
        f"-{identifier}",
        f"x-{identifier}",
        f" {identifier}",
        identifier[:-1],
    }
    made = {names.label(identifier), names.slug(identifier, 63), f"{identifier[:49]}-{'a' * 13}"}
    return (forms | cases | marks | edges | made) - {"", identifier}


@given(IDS, LENGTHS)
@example("a" * 300, 63)
@example("\U0001f9a2", 63)
@example("-", 63)
@example("1", 63)
def test_every_id_gets_a_label_that_dns_takes(identifier: str, length: int) -> None:
    label = names.label(identifier, length)
    assert RFC_1035_LABEL.fullmatch(label)
    assert len(label) <= length
    assert label == names.label(identifier, length)


@given(IDS, IDS, LENGTHS)
def test_two_ids_never_share_a_label(one: str, other: str, length: int) -> None:
    assume(one != other)
    assert names.label(one, length) != names.label(other, length)


@given(IDS, LENGTHS)
@example("Project.One", 63)
@example("a" * 63, 63)
def test_an_id_never_shares_a_label_with_its_look_alikes(identifier: str, length: int) -> None:
    made = [names.label(each, length) for each in (identifier, *variants(identifier))]
    assert len(set(made)) == len(made)


@given(IDS, LENGTHS)
def test_an_id_that_is_the_label_of_another_gets_its_own(identifier: str, length: int) -> None:
    label = names.label(identifier, length)
    assume(label != identifier)
    assert names.label(label, length) != label


@given(PLAIN_ID)
def test_a_plain_id_is_its_own_label(identifier: str) -> None:
    assume(not re.fullmatch(r".*-[a-z2-7]{13}", identifier))
    assert names.label(identifier) == identifier


def test_labels_are_what_they_were_in_every_earlier_version() -> None:
    # Another scheme would part a user's new projects from the namespace of the old ones.
    assert names.label("demo") == "demo"
    assert names.label("Demo") == "demo-riwmazz3drbig"
    assert names.label("\u00dcbung 1") == "ubung-1-hkxia4ivqvo6t"
    assert names.label("1") == "x-1-nodle477gt6od"
    assert names.label("\u96ea") == "x-kmcy7yxahqans"


@given(IDS, IDS)
def test_all_names_of_an_environment_are_labels(user: str, project: str) -> None:
    made = names.environment_names(user, project)
    for name in (made.namespace, made.deployment, made.service, made.ingress):
        assert RFC_1035_LABEL.fullmatch(name)
    assert made.namespace.startswith("user-")


@given(st.tuples(IDS, IDS), st.tuples(IDS, IDS))
def test_two_environments_never_meet(one: tuple[str, str], other: tuple[str, str]) -> None:
    assume(one != other)
    mine, theirs = names.environment_names(*one), names.environment_names(*other)
    assert (mine.namespace, mine.deployment) != (theirs.namespace, theirs.deployment)
    assert (mine.namespace, mine.service) != (theirs.namespace, theirs.service)
    assert (mine.namespace, mine.ingress) != (theirs.namespace, theirs.ingress)
    assert (mine.namespace == theirs.namespace) == (one[0] == other[0])


@given(st.text(min_size=1, max_size=200))
def test_a_new_project_id_is_a_plain_id_and_its_own_label(name: str) -> None:
    project_id = names.new_project_id(name)
    assert names.check_id(project_id, "project_id") == project_id
    assert names.environment_names("u", project_id).deployment == f"{project_id}-api"


@given(IDS)
def test_an_id_of_any_clean_text_is_taken_as_it_is(identifier: str) -> None:
    assume("/" not in identifier and identifier not in {".", ".."})
    assert names.check_id(identifier, "id") == identifier


@pytest.mark.parametrize(
    "bad", ["", "a" * 301, ".", "..", "a/b", "a\nb", "a\x00", "\x7f", "\x85", "\ud800"]
)
def test_an_id_that_cannot_stand_in_a_path_is_refused_by_field(bad: str) -> None:
    with pytest.raises(InvalidRequestError, match="project_id"):
        names.check_id(bad, "project_id")


@pytest.mark.parametrize("good", ["a", "x" * 200, "\u96ea/\u2603", ".", " a "])
def test_a_display_name_may_be_nearly_anything(good: str) -> None:
    assert names.check_name(good) == good


@pytest.mark.parametrize("bad", ["", " \u3000", "x" * 201, "a\tb", "\x1b[2J", "\udcff"])
def test_a_display_name_without_a_visible_form_is_refused(bad: str) -> None:
    with pytest.raises(InvalidRequestError, match="name"):
        names.check_name(bad)
