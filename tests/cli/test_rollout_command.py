"""`greylag rollout`: what runs gets the settings of now, a few at a time, until one fails."""

from tests.cli.program import Cli
from tests.cli.stack import Stack

from greylag.cli.errors import Exit
from greylag.domain.errors import ClusterError
from greylag.domain.lifecycle import Verb
from greylag.domain.project import ProjectRef


async def outdated(cli: Cli, stack: Stack, *names: str) -> None:
    """Make active projects that lack the newest settings, the first of them listed first."""
    for name in reversed(names):
        await cli("projects", "create", name, "--id", name)
        await cli("activate", name)
        await lacking(stack, name)


async def lacking(stack: Stack, name: str) -> None:
    """Let an active project lack the newest settings, and wait until its record says so."""
    ref = ProjectRef("ann", name)
    stack.cluster.outdate(ref, "new-image")
    with stack.store.subscribe(ref) as news:
        await stack.store.poke(ref, (await stack.store.get("ann", name)).updated_at)
        while (await stack.store.get("ann", name)).outdated is None:
            await news.changed(5)


def verbs(stack: Stack, name: str) -> list[Verb]:
    return [call.verb for call in stack.cluster.calls[ProjectRef("ann", name)]]


async def test_the_first_that_fails_ends_it_and_the_next_run_goes_on(
    cli: Cli, stack: Stack
) -> None:
    await outdated(cli, stack, "good", "bad", "last")
    fault = ClusterError("The image is not there.", code="image_not_found", terminal=True)
    stack.cluster.fail_next(ProjectRef("ann", "bad"), Verb.START, fault)
    done = await cli("rollout", "--at-once", "1", "--json")
    assert done.code == Exit.REFUSED
    assert done.document == {
        "refreshed": [{"user_id": "ann", "project_id": "good"}],
        "busy": [],
        "left": [{"user_id": "ann", "project_id": "last"}],
        "failed": [
            {
                "user_id": "ann",
                "project_id": "bad",
                "error": {"code": "image_not_found", "message": "The image is not there."},
            }
        ],
    }
    assert verbs(stack, "good")[-2:] == [Verb.STOP, Verb.START]
    assert verbs(stack, "last")[-1] is Verb.START
    again = await cli("rollout")
    assert (again.code, again.err) == (
        Exit.OK,
        "Started anew (1 of 1): the environment of project last of user ann.\n",
    )
    assert again.out == "Started anew: 1 of 1; still at work: 0; failed: 0; not begun: 0.\n"


async def test_what_runs_is_told_and_nothing_is_started_anew(
    cli: Cli, stack: Stack, project: str
) -> None:
    await outdated(cli, stack, "old")
    before = verbs(stack, "old")
    told = await cli("rollout", "--list", "--json")
    assert {one["project_id"]: one["outdated"] for one in told.document["active"]} == {
        "old": True,
        project: False,
    }
    rows = [line.split("\t")[:3] for line in (await cli("rollout", "--list")).out.splitlines()]
    assert ["ann", "old", "earlier settings"] in rows
    assert ["ann", project, "the settings of now"] in rows
    assert verbs(stack, "old") == before


async def test_one_at_work_is_left_until_it_is_not(cli: Cli, stack: Stack, project: str) -> None:
    at = await stack.cluster.reach((await stack.store.get("ann", project)).environment)
    await stack.agents.start_turn(at, None, "wait: a while", "m1")
    before = verbs(stack, project)
    await lacking(stack, project)
    done = await cli("rollout", "--timeout", "1")
    assert done.code == Exit.TIMEOUT
    assert "Still at work, started anew later" in done.err
    assert verbs(stack, project) == before
    assert (await stack.store.get("ann", project)).refresh == "new-image"
