"""What is remembered of the turns of late."""

from greylag.agentd.records import new_turn
from greylag.agentd.turns.running import ActivityEntry, TurnActivity


def begun(activity: TurnActivity) -> ActivityEntry:
    return activity.begin(new_turn("s", "hello", None, 1.0), "agent-streaming")


def test_a_turn_that_runs_is_remembered_however_many_have_ended_since() -> None:
    activity = TurnActivity(lambda: 1.0)
    long = begun(activity)
    for _ in range(300):
        activity.end(begun(activity), failed=False)
    assert activity.recent()[0] is long
    assert len(activity.recent()) < 210
    activity.end(long, failed=False)
    assert activity.total_processed == 301


def test_of_turns_that_have_ended_the_youngest_are_remembered() -> None:
    activity = TurnActivity(lambda: 1.0)
    at_once = [begun(activity) for _ in range(300)]
    for entry in at_once:
        activity.end(entry, failed=False)
    last = begun(activity)
    assert activity.recent() == [*at_once[100:], last]
