"""Logs and events as they come."""

import itertools
import signal

from tests.cli.program import Cli, finish, start
from tests.cli.proxy import CuttingProxy
from tests.cli.stack import Stack

from greylag.domain.project import ProjectRef

REF = ProjectRef("ann", "told")


async def test_the_last_lines_of_a_log_are_printed_harmless(cli: Cli, stack: Stack) -> None:
    await cli("projects", "create", "Told", "--id", "told")
    await cli("activate", "told")
    for line in (b"first", "sch\u00f6n \x1b[31mred".encode(), b"\xff last"):
        stack.cluster.say(REF, line)
    done = await cli("logs", "told", "--tail", "2")
    assert done.out == "schön ␛[31mred\n\N{REPLACEMENT CHARACTER} last\n"
    as_json = await cli("logs", "told", "--json")
    assert [line["line"] for line in as_json.lines][-3] == "first"


async def test_a_followed_log_goes_on_until_ctrl_c(cli: Cli, stack: Stack) -> None:
    await cli("projects", "create", "Told", "--id", "told")
    await cli("activate", "told")
    stack.cluster.say(REF, b"before")
    process = await start("logs", "told", "-f", env=stack.env)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"before\n"
    stack.cluster.say(REF, b"after")
    assert await process.stdout.readline() == b"after\n"
    process.send_signal(signal.SIGINT)
    assert (await finish(process)).code == 130


async def test_followed_events_come_once_each_over_dropped_connections_and_end_with_the_project(
    cli: Cli, stack: Stack
) -> None:
    await cli("projects", "create", "Told", "--id", "told")
    await cli("activate", "told")
    cuts = itertools.chain(itertools.repeat(1, 3))
    async with CuttingProxy(stack.address, cuts).running() as proxy:
        process = await start(
            "events", "told", "-f", "--json", env={**stack.env, "GREYLAG_SERVER": proxy.address}
        )
        assert process.stdout is not None
        await process.stdout.readline()
        assert (await cli("projects", "delete", "told", "--yes")).code == 0
        done = await finish(process)
    assert done.code == 0, done.err
    numbers = [int(event["id"]) for event in done.lines]
    assert numbers == list(range(2, 2 + len(numbers)))
