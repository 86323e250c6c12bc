"""The options of commands that change a project: wait or not, and how long."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from greylag.cli.api_types import Wish

R = TypeVar("R")


def wait_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command --no-wait and --timeout, as one argument ``wish``."""

    @click.option("--no-wait", is_flag=True, help="Return at once; it goes on in the background.")
    @click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.IntRange(1, 3600),
        help="Wait at most so long, 1 to 3600 (default: the server's, 120).",
    )
    @functools.wraps(command)
    def with_wish(*args: Any, no_wait: bool, timeout: int | None, **kwargs: Any) -> R:
        if no_wait and timeout is not None:
            raise click.UsageError("--no-wait and --timeout exclude each other.")
        return command(*args, wish=Wish(wait=not no_wait and (timeout or True)), **kwargs)

    return with_wish
