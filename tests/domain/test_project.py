"""The small rules of records, users and errors."""

from dataclasses import replace
from datetime import UTC, datetime

from greylag.common.git import CAUSES
from greylag.domain.errors import HINTS, ClusterError, ConfigError, GreylagError, RefusalError
from greylag.domain.names import environment_names
from greylag.domain.project import Project, ProjectRef, new_record_id

NOW = datetime(2025, 1, 1, tzinfo=UTC)
PROJECT = Project(
    id=new_record_id(NOW),
    user_id="ada",
    project_id="demo",
    name="Demo",
    names=environment_names("ada", "demo"),
    created_at=NOW,
    updated_at=NOW,
)


def all_errors(kind: type[GreylagError] = GreylagError) -> list[type[GreylagError]]:
    below = [deeper for each in kind.__subclasses__() for deeper in all_errors(each)]
    return [kind, *below]


def test_a_project_is_settled_once_its_newest_wish_was_brought_to_an_end() -> None:
    assert not PROJECT.settled
    assert replace(PROJECT, observed_generation=1).settled
    assert not replace(PROJECT, generation=3, observed_generation=2).settled
    assert PROJECT.ref == ProjectRef("ada", "demo")


def test_record_ids_have_the_form_of_object_ids_sort_by_time_and_do_not_repeat() -> None:
    ids = [new_record_id(NOW) for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(each) == 24 and int(each, 16) >> 64 == NOW.timestamp() for each in ids)
    assert max(ids) < new_record_id(datetime(2025, 1, 1, 0, 0, 1, tzinfo=UTC))


def test_no_two_errors_share_a_code_and_each_says_what_to_do() -> None:
    kinds = [kind for kind in all_errors() if kind.__module__ == GreylagError.__module__]
    codes = [*CAUSES, *HINTS, *(kind.code for kind in kinds if kind is not RefusalError)]
    assert len(set(codes)) == len(codes)
    assert all(kind.hint for kind in kinds)
    assert all(RefusalError("It cannot be.", code).info.hint for code in (*CAUSES, *HINTS))


def test_an_error_carries_its_sentence_and_its_hint() -> None:
    assert ConfigError("It is wrong.").info.hint == ConfigError.hint
    assert ConfigError("It is wrong.", hint="Mend it.").info.hint == "Mend it."
    full = ClusterError("The quota is used up.", code="quota_exceeded", terminal=True)
    assert (full.info.code, full.info.hint) == ("quota_exceeded", ClusterError.hint)
    assert full.terminal
    assert not ClusterError("It failed.").terminal
