"""What git says, as people are shown it: one line, without passwords, however long it is."""

import asyncio

import pytest

from greylag.agentd.execution import RemoteOutput
from greylag.agentd.git.commands import _first, plain_line

_LONG = 1024 * 1024


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:word@host/a.git", "https://host/a.git"),
        ("two: http://a@one/x and ssh://b:c@two/y", "two: http://one/x and ssh://two/y"),
        ("https://host/a@b", "https://host/a@b"),
        ("git@host:a.git", "git@host:a.git"),
        ("a\x1b[31m\tline\n", "a [31m line"),
    ],
)
def test_a_line_is_shown_without_what_a_terminal_or_a_stranger_could_use(
    text: str, shown: str
) -> None:
    assert plain_line(text) == shown


@pytest.mark.parametrize("part", ["a", "a:", "a://", "://a", "a@", "é"])
def test_a_line_costs_its_length_and_no_more(part: str) -> None:
    # In a time that grew with its square each would take more than half an hour.
    assert plain_line(part * (_LONG // len(part)), 10) == (part * 10)[:10]


@pytest.mark.parametrize(("more", "whole"), [(b"", True), (b"x", False)])
async def test_of_a_long_output_the_beginning_is_kept_and_told_to_be_that(
    more: bytes, *, whole: bool
) -> None:
    output = RemoteOutput()

    async def say() -> None:
        for piece in (*[b"x" * 65_536] * (_LONG // 65_536), more):
            await output.feed(piece)
        await output.end()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(say(), name="git")
        assert await _first(output) == (b"x" * _LONG, whole)
