import json
import logging
import subprocess
import sys

PROGRAM = """
import logging
from greylag.common.logs import configure_logging
configure_logging("json", "info")
told = {"color_message": "[36mStarted", "api_key": "s3cret"}
logging.getLogger("uvicorn.error").info("Started", extra=told)
"""


def test_a_librarys_line_is_json_without_its_coloured_copy_or_secrets() -> None:
    done = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    line = json.loads(done.stderr)
    assert line["event"] == "Started"
    assert line["level"] == logging.getLevelName(logging.INFO).lower()
    assert "color_message" not in line
    assert line["api_key"] == "[hidden]"
