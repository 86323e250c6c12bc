"""What a person types to a shell, and to the program that carries it."""

import pytest

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
