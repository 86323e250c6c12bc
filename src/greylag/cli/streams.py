"""The standard streams and arguments of the process, made fit for use."""

import os
import re
import sys
from collections.abc import Sequence

# What Python makes of bytes that the locale's encoding does not know.
_UNREAD = re.compile("[\udc80-\udcff]")


def prepare_streams() -> None:
    """Make sure that the three standard streams are there and take every character.

    A stream that the caller has closed (`greylag users >&-`) becomes the null device: left closed,
    its number would go to the next file or socket, and printing would write there. An answer in any
    script is printed even where the terminal's encoding cannot hold it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free number is taken, which is the stream's own.
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def drop_output() -> None:
    """Forget what stdout could not take: Python writes it once more at exit, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_text(arguments: Sequence[str]) -> list[str]:
    """Return arguments as they were typed, where the locale could not read all of them as UTF-8."""
    return [
        os.fsencode(given).decode("utf-8", "replace") if _UNREAD.search(given) else given
        for given in arguments
    ]
