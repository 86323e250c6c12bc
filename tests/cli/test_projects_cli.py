"""Projects by command line: what people and scripts see."""

import pytest
from tests.cli.program import Cli, on_terminal
from tests.cli.stack import Stack

from greylag.cli import client
from greylag.cli.errors import Exit
from greylag.domain.errors import ClusterError
from greylag.domain.lifecycle import Verb
from greylag.domain.project import ProjectRef


async def test_a_project_lives_from_creation_to_deletion(cli: Cli) -> None:
    named = ("projects", "create", "Search engine", "--id", "search", "--metadata", '{"t": 1}')
    url = "https://example.org/a.git"
    created = await cli(*named, "--git", url, "--ref", "main", "--depth", "3", "--json")
    assert (created.document["project_id"], created.document["metadata"]) == ("search", {"t": 1})
    assert created.document["source"] == {"git": {"url": url, "ref": "main", "depth": 3}}
    assert f"{url} at main (the last 3 commits)" in (await cli("projects", "show", "search")).out
    assert "name it by --git" in (await cli("projects", "create", "x", "--ref", "main")).err
    active = await cli("activate", "search", "--json")
    assert active.document["status"] == "active"
    renamed = await cli("projects", "rename", "search", "Finder", "--json")
    assert renamed.document["name"] == "Finder"
    listed = await cli("projects", "list", "--status", "active", "--json")
    assert [one["name"] for one in listed.document["projects"]] == ["Finder"]
    stopped = await cli("deactivate", "Finder", "--json")
    assert stopped.document["status"] == "inactive"
    deleted = await cli("projects", "delete", "search", "--yes", "--json")
    assert deleted.document == {"project_id": "search", "deleted": True}
    gone = await cli("projects", "show", "search")
    assert gone.code == Exit.REFUSED
    assert "hint: `greylag projects list`" in gone.err


async def test_a_pipe_gets_whole_values_between_tabs_without_colours(cli: Cli) -> None:
    name = "A name of many words " * 9
    await cli("projects", "create", name, "--id", "long")
    rows = (await cli("projects", "list")).out.splitlines()
    assert rows[0].split("\t")[:3] == ["project", "name", "status"]
    assert rows[1].split("\t")[:2] == ["long", name]
    assert "\x1b" not in "".join(rows)


async def test_a_terminal_gets_a_table_and_no_colour_is_respected(
    cli: Cli, env: dict[str, str]
) -> None:
    await cli("projects", "create", "One", "--id", "one")
    async with on_terminal("projects", "list", env={**env, "NO_COLOR": "1"}) as terminal:
        await terminal.until("PROJECT")
        await terminal.until("One")
        assert await terminal.end() == 0
        assert b"\x1b[3" not in terminal.raw


async def test_a_project_is_found_by_its_only_name_but_not_by_one_of_two(cli: Cli) -> None:
    await cli("projects", "create", "Twin / one", "--id", "first")
    shown = await cli("projects", "show", "Twin / one", "--json")
    assert shown.document["project_id"] == "first"
    await cli("projects", "create", "Twin / one", "--id", "second")
    ambiguous = await cli("projects", "show", "Twin / one")
    assert ambiguous.code == Exit.USAGE
    assert "first" in ambiguous.err
    assert "second" in ambiguous.err


@pytest.mark.parametrize("project_id", ["Ä ö", "a.b", "50%", "x?y#z", "日本", "a+b&c"])
async def test_any_id_can_be_asked_for(cli: Cli, project_id: str) -> None:
    created = await cli("projects", "create", "N", "--id", project_id, "--json")
    assert created.code == 0, created.err
    shown = await cli("projects", "show", project_id, "--json")
    assert shown.document["project_id"] == project_id


async def test_the_same_key_creates_one_project(cli: Cli) -> None:
    command = ("projects", "create", "Once", "--idempotency-key", "k1", "--json")
    first, second = await cli(*command), await cli(*command)
    assert first.document["project_id"] == second.document["project_id"]


async def test_every_page_is_listed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAGE_LENGTH", "2")
    for number in range(5):
        await cli("projects", "create", "n", "--id", f"p{number}")
    listed = await cli("projects", "list", "--json")
    assert len({one["project_id"] for one in listed.document["projects"]}) == 5


async def test_nothing_is_deleted_where_nobody_can_be_asked(cli: Cli, program: Cli) -> None:
    await cli("projects", "create", "Kept", "--id", "kept")
    refused = await program("projects", "delete", "kept", stdin=b"y\n")
    assert refused.code == Exit.USAGE
    assert "--yes" in refused.err
    assert (await cli("projects", "show", "kept")).code == 0


@pytest.mark.parametrize(
    ("answer", "code", "left"),
    [
        ("y\n", Exit.OK, Exit.REFUSED),
        ("n\n", Exit.REFUSED, Exit.OK),
        ("\x04", Exit.REFUSED, Exit.OK),
        ("\x03", Exit.INTERRUPTED, Exit.OK),
    ],
    ids=["yes", "no", "end", "interrupt"],
)
async def test_a_terminal_is_asked_before_deleting(
    cli: Cli, env: dict[str, str], answer: str, code: int, left: int
) -> None:
    await cli("projects", "create", "Asked", "--id", "asked")
    async with on_terminal("projects", "delete", "asked", env=env) as terminal:
        asked = "Delete project Asked for good, with its files and conversations? [y/N] "
        await terminal.until(asked)
        terminal.type(answer)
        assert await terminal.end() == code
    assert (await cli("projects", "show", "asked")).code == left


async def test_no_wait_returns_at_once_with_the_project(cli: Cli) -> None:
    await cli("projects", "create", "Quick", "--id", "quick")
    done = await cli("activate", "quick", "--no-wait", "--json")
    assert done.code == 0
    assert done.document["desired"] == "active"


async def test_activation_shows_its_log_and_only_its_own(cli: Cli) -> None:
    await cli("projects", "create", "Told", "--id", "told")
    first = await cli("activate", "told")
    assert first.err.count("The environment is active.") == 1
    stopped = await cli("deactivate", "told")
    assert "The environment is inactive" in stopped.err
    assert "The environment is active." not in stopped.err
    second = await cli("activate", "told")
    assert second.err.count("The environment is active.") == 1
    again = await cli("activate", "told")
    assert (again.code, again.err) == (0, "")


async def test_a_failed_activation_tells_why(cli: Cli, stack: Stack) -> None:
    await cli("projects", "create", "Bad", "--id", "bad")
    fault = ClusterError("The image is not there.", code="image_not_found", terminal=True)
    stack.cluster.fail_next(ProjectRef("ann", "bad"), Verb.START, fault)
    done = await cli("activate", "bad", "--json")
    assert (done.code, done.out) == (Exit.REFUSED, "")
    assert "error: The image is not there. [image_not_found]" in done.err
    shown = await cli("projects", "show", "bad")
    assert "image_not_found" in shown.out


async def test_events_are_printed_once_each_in_order(cli: Cli) -> None:
    await cli("projects", "create", "Told", "--id", "told")
    await cli("activate", "told")
    events = (await cli("events", "told", "--json")).lines
    numbers = [int(event["id"]) for event in events]
    assert numbers == list(range(1, len(numbers) + 1))
    assert events[-1]["content"]["status"] == "active"
