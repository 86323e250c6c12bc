"""A line of an environment's log, as a person reads it."""

import json

from greylag.cli.text import moment, one_line

STANDARD = {"timestamp", "level", "event"}


def log_line(line: str) -> str:
    """Return one line: time, level, event and its fields where it is Greylag's own JSON.

    A line of another shape comes back as it is. All of it is harmless to a terminal.
    """
    try:
        found = json.loads(line)
    except ValueError:
        return one_line(line)
    if not isinstance(found, dict) or not {"timestamp", "event"} <= found.keys():
        return one_line(line)
    fields = [f"{name}={_value(value)}" for name, value in found.items() if name not in STANDARD]
    level = f"{found.get('level', '')!s:<7}"
    return one_line(
        " ".join([moment(str(found["timestamp"])), level, str(found["event"]), *fields])
    )


def _value(value: object) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value)
