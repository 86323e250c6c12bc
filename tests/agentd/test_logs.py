"""agentd's own log."""

import json
import subprocess
import sys

import pytest

FAILS = """
import structlog
from greylag.common.logs import configure_logging
configure_logging({log_format!r}, "info")
def call(key):
    raise ValueError("it failed")
try:
    call("sk-very-" + "secret")
except ValueError:
    structlog.get_logger().exception("a_defect", where="here")
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_tells_where_and_holds_no_values_of_variables(log_format: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", FAILS.format(log_format=log_format)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "it failed" in done.stderr
    assert "a_defect" in done.stderr
    assert "sk-very-secret" not in done.stderr
    if log_format == "json":
        (line,) = done.stderr.splitlines()
        assert json.loads(line)["exception"][0]["exc_type"] == "ValueError"
