"""How a program loads what stays until its end."""

import subprocess
import sys

SEEN = """
import gc
from greylag.common.loading import loading

with loading():
    print(gc.isenabled())
print(gc.isenabled(), gc.get_freeze_count() > 1_000)
"""


def run(program: str) -> str:
    return subprocess.run(  # noqa: S603 - its own program
        (sys.executable, "-c", program), check=True, capture_output=True, text=True
    ).stdout


def test_no_garbage_is_looked_for_while_it_loads_and_never_in_what_is_loaded() -> None:
    assert run(SEEN).split() == ["False", "True", "True"]


def test_a_program_that_cannot_be_loaded_leaves_the_search_on() -> None:
    without = "import sys; sys.modules['uvloop'] = None\n"
    tried = "try:\n    import greylag.agentd.__main__\nexcept ImportError:\n"
    assert run(f"{without}{tried}    import gc; print(gc.isenabled())").split() == ["True"]


def test_agentd_is_loaded_so() -> None:
    seen = (
        "import greylag.agentd.__main__, gc; print(gc.isenabled(), gc.get_freeze_count() > 20_000)"
    )
    assert run(seen).split() == ["True", "True"]
