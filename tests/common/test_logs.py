import json
import logging
import subprocess
import sys

import pytest

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


LEVELS = """
import logging
from greylag.common.logs import configure_logging
for level in ("error", "LEVEL"):
    configure_logging("json", level)
for name in ("pymongo.command", "greylag.web"):
    log = logging.getLogger(name)
    log.debug("debug"), log.info("info"), log.warning("warning")
"""


@pytest.mark.parametrize(
    ("level", "library", "own"),
    [
        ("debug", ["info", "warning"], ["debug", "info", "warning"]),
        ("info", ["info", "warning"], ["info", "warning"]),
        ("warning", ["warning"], ["warning"]),
    ],
)
def test_what_libraries_tell_when_debugging_which_may_be_whole_documents_is_not_written(
    level: str, library: list[str], own: list[str]
) -> None:
    program = LEVELS.replace("LEVEL", level)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)  # noqa: S603 - our own words
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    told = [(line["logger"], line["event"]) for line in lines]
    expected = [("pymongo.command", one) for one in library]
    assert told == [*expected, *(("greylag.web", one) for one in own)]


HOSTILE = r"a\x1b]0;owned\x07\r\nforged line\x9b2J\u202eb\u2028c\udc80"
HOSTILE_PROGRAM = f"""
import logging, structlog
from greylag.common.logs import configure_logging
text = "{HOSTILE}"
configure_logging("FORMAT", "info")
log = structlog.get_logger("here")
log.warning(text, text=text, several=[text], named={{text: text}})
logging.getLogger("elsewhere").warning("said %s", text)
try:
    raise ValueError(text)
except ValueError:
    log.exception("failed", path=text)
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_nothing_that_a_terminal_obeys_is_written_raw(log_format: str) -> None:
    program = HOSTILE_PROGRAM.replace("FORMAT", log_format)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)  # noqa: S603 - our own words
    written = done.stderr.decode()
    assert written.count("owned") >= 7
    assert not {char for char in written if not (char.isprintable() or char in "\n\t")}
    # An error's own words may have lines; a forged one stands below its stack.
    assert sum(line.startswith("forged") for line in written.splitlines()) <= 1
