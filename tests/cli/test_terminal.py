"""What a person types to a shell, and to the program that carries it."""

import asyncio
import os
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from greylag.cli import terminal
from greylag.cli.errors import CliError
from greylag.cli.terminal import Escape


@pytest.mark.parametrize(
    ("typed", "passed", "left"),
    [
        (b"~.", b"", True),
        (b"ls\r~.", b"ls\r", True),
        (b"ls\n~~x", b"ls\n~x", False),
        (b"~x~.", b"~x~.", False),
        (b"a~.", b"a~.", False),
        (b"~\r~.", b"~\r", True),
        (b"cd ~\r", b"cd ~\r", False),
    ],
)
def test_a_tilde_at_a_line_s_begin_is_for_the_program_itself(
    typed: bytes,
    passed: bytes,
    left: bool,  # noqa: FBT001 - of the table
) -> None:
    whole, by_key = Escape(), Escape()
    assert whole.passed(typed) == passed
    assert b"".join(by_key.passed(bytes([key])) for key in typed if not by_key.left) == passed
    assert (whole.left, by_key.left) == (left, left)


async def test_no_more_is_sent_ahead_of_what_the_command_has_read_than_is_kept_for_it() -> None:
    ahead = terminal._Ahead()
    async with asyncio.timeout(20):
        for _ in range(8):
            await ahead.room(32 * 1024)
        ahead.tell(0)
        more = asyncio.create_task(ahead.room(32 * 1024))
        await asyncio.sleep(0)
        assert not more.done()
        ahead.tell(20_000)
        await asyncio.sleep(0)
        assert not more.done()
        ahead.tell(40_000)
        await more


async def test_a_server_that_tells_nothing_of_what_is_read_is_sent_all_and_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(terminal, "_OLDER_SECONDS", 0)
    ahead = terminal._Ahead()
    async with asyncio.timeout(20):
        await ahead.room(1_000_000)
    monkeypatch.setattr(terminal, "_OLDER_SECONDS", 60)
    async with asyncio.timeout(20):
        await ahead.room(1_000_000)


def test_a_terminal_is_as_it_was_afterwards_though_its_output_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other, own = os.openpty()

    def stopped() -> None:
        with terminal._raw():
            assert termios.tcgetattr(own) != before
            raise CliError("This came first.")

    with Path("/dev/full").open("wb", buffering=0) as full, os.fdopen(other), os.fdopen(own):
        monkeypatch.setattr(terminal, "_IN", own)
        monkeypatch.setattr(terminal, "_OUT", full.fileno())
        monkeypatch.setattr(terminal, "_ERR", full.fileno())
        before = termios.tcgetattr(own)
        with pytest.raises(CliError, match="first"):
            stopped()
        assert termios.tcgetattr(own) == before


def test_an_output_that_others_made_not_to_wait_is_given_all() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    sent = bytes(range(256)) * 4096
    with os.fdopen(reading, "rb") as source, ThreadPoolExecutor(1) as beside:
        with os.fdopen(writing, "wb"):
            came = beside.submit(source.read)
            terminal._print(writing, sent)
        assert came.result() == sent
