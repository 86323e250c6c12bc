"""A program's start without the search for garbage, which would go through all that is loaded."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Look for no garbage within the block, in which a program loads or builds what it runs.

    What there is at the block's end is taken for what stays as long as the process, and never gone
    through: neither as it runs nor when it ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
