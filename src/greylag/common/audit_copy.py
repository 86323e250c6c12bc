"""A copy of the audit trail, a line of JSON for each entry, for whatever collects such lines.

It is written by a thread of its own: whoever reads slowly holds nobody up. What does not fit into
the queue is left out, and the log tells; its number tells in the copy.
"""

import json
import logging
import queue
import sys
from collections.abc import Mapping
from logging.handlers import QueueHandler, QueueListener, SysLogHandler
from pathlib import Path
from typing import Any

import structlog

_LOCAL = Path("/dev/log")
_USUAL = ("localhost", 514)
_WAITING = 10_000

_log = structlog.get_logger(__name__)


class AuditCopy:
    """Writes entries to ``where``, as ``GREYLAG_AUDIT_COPY`` says it, until it is closed.

    Raises:
        OSError: nothing takes them there.
    """

    def __init__(self, where: str) -> None:
        waiting: queue.Queue[logging.LogRecord] = queue.Queue(_WAITING)
        self._handler = logging.StreamHandler(sys.stdout) if where == "stdout" else _syslog(where)
        self._listener = QueueListener(waiting, self._handler)
        self._listener.start()
        self._sender = _Sender(waiting)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Write an entry, in a moment."""
        line = json.dumps(entry, sort_keys=True)
        self._sender.handle(logging.LogRecord("audit", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Write what waits, and end."""
        self._listener.stop()
        self._handler.close()


class _Sender(QueueHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        _log.error("audit_copy_lost", entry=record.getMessage())


def _syslog(where: str) -> logging.Handler:
    host, _, port = where.removeprefix("syslog").removeprefix("://").partition(":")
    place = (host, int(port)) if host else str(_LOCAL) if _LOCAL.exists() else _USUAL
    handler = SysLogHandler(place, SysLogHandler.LOG_AUTH)
    handler.ident = "greylag: "
    return handler
