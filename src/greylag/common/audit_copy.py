"""A copy of the audit trail, a line of JSON for each entry, for whatever collects such lines.

It is written by a thread of its own: whoever reads slowly holds nobody up. What does not fit into
the queue is left out, and the log tells; its number tells in the copy.
"""

import errno
import json
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Any

import structlog

CLOSE_SECONDS = 5.0
_LOCAL = Path("/dev/log")
_USUAL = ("localhost", 514)
_WAITING = 10_000
_STDOUT = 1
_PLACE = ("number", "previous", "hash")

_log = structlog.get_logger(__name__)


class AuditCopy:
    """Writes entries to ``where``, as ``GREYLAG_AUDIT_COPY`` says it, until it is closed.

    Raises:
        OSError: nothing takes them there.
    """

    def __init__(self, where: str) -> None:
        self._waiting: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._syslog = None if where == "stdout" else _Syslog(where)
        self._send: Callable[[str], None] = self._syslog.send if self._syslog else _print
        # What it waits for may never come, and it holds nothing by which others end.
        self._thread = threading.Thread(target=self._run, name="audit copy", daemon=True)
        self._thread.start()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Write an entry, in a moment."""
        line = json.dumps(entry, sort_keys=True)
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            _lost(line, "too many wait")

    def close(self) -> None:
        """Write what waits, for some seconds at most, and end."""
        end, under_way = time.monotonic() + CLOSE_SECONDS, 1
        with suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSE_SECONDS)
            under_way = 0  # the word to end waits in its place
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            lost = self._waiting.qsize() + under_way
            _log.error("audit_copy_lost", entries=lost, reason="nobody reads it")
        elif self._syslog is not None:
            self._syslog.close()

    def _run(self) -> None:
        while (line := self._waiting.get()) is not None:
            try:
                self._send(line)
            except Exception as error:  # noqa: BLE001 - one that is lost ends no other
                _lost(line, str(error))


def _lost(line: str, reason: str) -> None:
    _log.error("audit_copy_lost", entry=line, reason=reason)


def _print(line: str) -> None:
    # Not by Python's own stream: whoever waits in there keeps the process from ending.
    left = f"{line}\n".encode()
    while left:
        left = left[os.write(_STDOUT, left) :]


class _Syslog(SysLogHandler):
    def __init__(self, where: str) -> None:
        host, _, port = where.removeprefix("syslog").removeprefix("://").partition(":")
        place = (host, int(port)) if host else str(_LOCAL) if _LOCAL.exists() else _USUAL
        if host:  # from Python 3.14 on the handler takes a name that nobody knows without a word
            socket.getaddrinfo(host, int(port))
        super().__init__(place, SysLogHandler.LOG_AUTH)
        self.ident = "greylag: "

    def send(self, line: str) -> None:
        """Send a line, or of an entry that no datagram holds what it is in the chain."""
        try:
            self._send(line)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            place = {name: one for name, one in json.loads(line).items() if name in _PLACE}
            self._send(json.dumps({**place, "left_out": len(line)}, sort_keys=True))

    def _send(self, line: str) -> None:
        self.emit(logging.LogRecord("audit", logging.INFO, "", 0, line, None, None))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Raise what ``emit`` has caught, which Python would write to standard error."""
        del record
        error = sys.exception()
        assert error is not None  # noqa: S101 - it is called where one was caught
        raise error
