"""Structured logs: JSON for machines, colours on a terminal; all on standard error.

Every line of a request carries its id, and its user's and project's once they are known
(``structlog.contextvars``). Fields that could hold a secret are never written.
"""

import io
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Literal, TextIO

import structlog

request_id: ContextVar[str] = ContextVar("greylag_request_id", default="")
"""The id of the request that is being answered, for logs and for the agent."""

_SECRET_WORDS = ("token", "secret", "password", "authorization", "cookie", "api_key", "model_key")
_HIDDEN = "[hidden]"


def configure_logging(log_format: Literal["auto", "console", "json"], log_level: str) -> None:
    """Send every log line of the process, ours and the libraries', to standard error in one shape.

    ``auto`` means colours when standard error is a terminal and JSON otherwise; ``log_level`` is
    debug, info, warning or error; libraries tell from info on. A second call replaces the first.
    """
    on_terminal = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        drop_coloured_copy,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_request_id,
        hide_secrets,
    ]
    as_json = log_format == "json" or (log_format == "auto" and not on_terminal)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_ending(as_json=as_json, colours=on_terminal),
            ],
            foreign_pre_chain=shared,
        )
    )
    level = logging.getLevelNamesMapping()[log_level.upper()]
    # What a library tells when debugging is what passes through it: MongoDB's driver writes out the
    # documents, with what was said, of every question and answer.
    logging.basicConfig(handlers=[handler], level=max(level, logging.INFO), force=True)
    logging.getLogger("greylag").setLevel(level)


def add_request_id(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Add the id of the request that is being answered, if one is."""
    if known := request_id.get():
        event.setdefault("request_id", known)
    return event


def drop_coloured_copy(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Drop the second, coloured text that uvicorn gives with some of its lines."""
    event.pop("color_message", None)
    return event


def hide_secrets(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> Mapping[str, object]:
    """Replace the value of each field whose name says that it is a secret."""
    for name in event:
        if any(word in name.lower() for word in _SECRET_WORDS):
            event[name] = _HIDDEN
    return event


def _ending(*, as_json: bool, colours: bool) -> list[structlog.typing.Processor]:
    if as_json:
        # Local variables may hold secrets, so a stack is told without them.
        stack = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        return [
            structlog.processors.ExceptionRenderer(stack),
            structlog.processors.JSONRenderer(),
        ]
    return [
        escape_controls,
        structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=_write_stack),
    ]


# What a terminal would obey, or show as another line or in another direction than it is written.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)]
_MARKS = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C, 0x200E, 0x200F, 0x2028, 0x2029]
_ESCAPED = {code: ascii(chr(code))[1:-1] for code in (*_CONTROLS, *_MARKS)}
_ESCAPED_IN_STACKS = {code: text for code, text in _ESCAPED.items() if chr(code) not in "\n\t"}
_MANY_LINES = {"exception", "stack"}


def escape_controls(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Write control characters in texts as Python does; a field may hold what a client sent."""
    for name, value in event.items():
        if isinstance(value, str):
            kept = _ESCAPED_IN_STACKS if name in _MANY_LINES else _ESCAPED
            event[name] = value.translate(kept)
    return event


def _write_stack(stream: TextIO, error: structlog.typing.ExcInfo) -> None:
    lines = io.StringIO()
    structlog.dev.plain_traceback(lines, error)
    stream.write(lines.getvalue().translate(_ESCAPED_IN_STACKS))
