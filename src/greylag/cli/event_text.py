"""How a line of the activation log is shown."""

from greylag.cli.api_types import StreamEvent
from greylag.cli.text import moment, one_line


def event_line(event: StreamEvent) -> str:
    """Return an event of the activation log as one line, with its hint if it has one."""
    hint = event.text("hint")
    words = one_line(event.text("message")) + (f" ({one_line(hint)})" if hint else "")
    status = one_line(event.text("status"))
    return f"{moment(event.text('at') or None)}  {status:<12}  {words}"
