"""How a project's waking is read from its log."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from greylag.domain.errors import ErrorInfo
from greylag.domain.names import environment_names
from greylag.domain.project import Desired, Event, Project, Status
from greylag.web.dashboard.projects import Waking, waking

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
LOCAL = "starting process_started api_answers agent_ready active"
BROKEN = ErrorInfo("image_missing", "The image does not exist.", "Name another.")


def project(status: Status, *, settled: bool = False, error: ErrorInfo | None = None) -> Project:
    return Project(
        id="0" * 24,
        user_id="ada",
        project_id="notes",
        name="Notes",
        names=environment_names("ada", "notes"),
        created_at=NOW,
        updated_at=NOW,
        status=status,
        error=error,
        desired=Desired.ACTIVE,
        generation=2,
        observed_generation=2 if settled else 1,
    )


def log(codes: str, *, start: float = 0.0, generation: int = 2) -> list[Event]:
    """Return events half a second apart."""
    return [
        Event(
            seq=n + 1,
            at=NOW + timedelta(seconds=start + n / 2),
            code=code,
            message=f"{code}.",
            status=Status.ACTIVATING,
            generation=generation,
        )
        for n, code in enumerate(codes.split())
    ]


def told(found: Waking | None) -> list[tuple[str, str, str]]:
    assert found is not None
    return [(one.name, one.state, one.words) for one in found.steps]


def test_reached_steps_have_their_seconds_and_the_present_one_is_told() -> None:
    earlier = log(LOCAL, start=-60, generation=1)
    found = waking(project(Status.ACTIVATING), [*earlier, *log("starting process_started")])
    assert told(found) == [
        ("Prepared", "done", "0.0 s"),
        ("Started", "done", "0.5 s"),
        ("API", "now", ""),
        ("Agent", "ahead", ""),
        ("Ready", "ahead", ""),
    ]
    assert found is not None
    assert (found.usual, found.woke) == ("2.0 s", "")


def test_before_the_first_step_of_a_new_wish_none_is_reached() -> None:
    found = waking(project(Status.INACTIVE), log(LOCAL, generation=1))
    assert [state for _, state, _ in told(found)] == ["now", *["ahead"] * 4]
    assert told(waking(project(Status.INACTIVE), []))[0] == ("Prepared", "now", "")


def test_the_step_that_failed_has_its_cause() -> None:
    failed = project(Status.ERROR, settled=True, error=BROKEN)
    found = waking(failed, log("starting process_started image_missing"))
    assert ("API", "failed", "failed") in told(found)
    assert found is not None
    assert (found.error, found.doing) == (BROKEN, "")


def test_a_clone_is_a_step_with_its_progress() -> None:
    ways = "starting process_started api_answers agent_ready git_cloning"
    found = waking(project(Status.ACTIVATING), log(ways))
    assert told(found)[-2:] == [("Clone", "now", ""), ("Ready", "ahead", "")]
    assert found is not None
    assert found.doing == "git_cloning."
    done = waking(project(Status.ACTIVATING), log(f"{ways} git_done"))
    assert told(done)[-2:] == [("Clone", "done", "1.0 s"), ("Ready", "now", "")]


def test_steps_that_a_cluster_does_not_tell_are_passed_with_a_later_one() -> None:
    codes = "starting namespace_ready quota_checked scheduled pulling_image"
    found = waking(project(Status.ACTIVATING), log(codes))
    assert told(found)[:2] == [("Prepared", "done", "1.0 s"), ("Started", "now", "")]
    assert found is not None
    assert found.doing == "pulling_image."
    found = waking(project(Status.ACTIVATING), log(f"{codes} process_started agent_ready"))
    assert told(found)[2:4] == [("API", "done", ""), ("Agent", "done", "0.5 s")]


def test_it_folds_to_how_long_it_took_where_somebody_watched() -> None:
    awake = project(Status.ACTIVE, settled=True)
    found = waking(awake, [*log(LOCAL), *log("git_failed", start=90)], watched=True)
    assert found is not None
    assert (found.woke, found.usual) == ("2.0 s", "")
    assert waking(awake, log(LOCAL)) is None


def test_nothing_takes_less_than_no_time_where_the_clock_was_set_back_meanwhile() -> None:
    awake = project(Status.ACTIVE, settled=True)
    events = [replace(one, at=one.at - timedelta(hours=n)) for n, one in enumerate(log(LOCAL))]
    found = waking(awake, events, watched=True)
    assert found is not None
    assert [found.woke, *(words for _, _, words in told(found))] == ["0.0 s"] * 6


def test_what_is_wrong_with_one_that_is_awake_is_said_alone() -> None:
    wrong = project(Status.ACTIVE, settled=True, error=BROKEN)
    assert waking(wrong, log(LOCAL), watched=True) == Waking(error=BROKEN)
