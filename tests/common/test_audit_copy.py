"""The copy of the audit trail reaches whatever collects lines."""

import json
import os
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from greylag.common import audit_copy
from greylag.common.audit_copy import AuditCopy
from greylag.domain.audit import START, Actor, ChainBrokenError, ChainCheck, chained, to_json
from greylag.services.audit import event_of

ENTRY = {"number": 1, "action": "test", "object": "Ω\n"}


def test_a_copy_goes_to_standard_output_a_line_for_each_entry(
    capfd: pytest.CaptureFixture[str],
) -> None:
    copy = AuditCopy("stdout")
    copy.write(ENTRY)
    copy.write(ENTRY)
    copy.close()
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == [ENTRY] * 2


def test_a_copy_goes_to_a_syslog_by_udp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(10)
        copy = AuditCopy(f"syslog://127.0.0.1:{collector.getsockname()[1]}")
        copy.write(ENTRY)
        copy.close()
        sent = collector.recv(65_536).decode().rstrip("\0")
    assert sent.startswith("<38>greylag: {")  # facility auth, severity info
    assert json.loads(sent.partition(": ")[2]) == ENTRY


def test_of_an_entry_that_no_datagram_holds_its_place_in_the_chain_is_sent() -> None:
    event = event_of(Actor("", "operator"), datetime.now(UTC), "test", "x")
    large = to_json(chained(event, START)) | {"more": "x" * 70_000}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(10)
        copy = AuditCopy(f"syslog://127.0.0.1:{collector.getsockname()[1]}")
        copy.write(large)
        copy.close()
        sent = json.loads(collector.recv(65_536).decode().rstrip("\0").partition(": ")[2])
    size = len(json.dumps(large))
    place = {name: large[name] for name in ("number", "previous", "hash")}
    assert sent == {**place, "left_out": size}
    with pytest.raises(ChainBrokenError, match="too large for this copy"):
        ChainCheck().follow([sent])


def test_what_whoever_acts_can_make_of_an_entry_fits_into_a_datagram() -> None:
    wide = "\N{GRINNING FACE}"
    who = Actor(wide * 200, "user", wide * 300, "token 0123456789abcdef", "10.0.0.1")
    ids = [f"{number:03}{wide * 297}" for number in range(100)]
    event = event_of(
        who, datetime.now(UTC), "tokens.create", wide * 1000, projects=ids, name=wide * 200
    )
    assert event.changed["projects"][-1] == "and 96 more"
    entry = to_json(chained(event, START))
    ChainCheck().follow([entry])
    assert len(json.dumps(entry)) < 65_000


def test_what_cannot_be_written_is_logged_and_what_follows_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[bytes] = []

    def write(_: int, line: bytes) -> int:
        written.append(line)
        if len(written) == 1:
            raise OSError("away")
        return len(line)

    monkeypatch.setattr(os, "write", write)
    copy = AuditCopy("stdout")
    with capture_logs() as logged:
        copy.write(ENTRY)
        copy.write(ENTRY)
        copy.close()
    assert [(one["event"], one["reason"]) for one in logged] == [("audit_copy_lost", "away")]
    assert len(written) == 2


def test_a_reader_that_stands_still_holds_no_end_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = threading.Event()

    def write(_: int, line: bytes) -> int:
        reads.wait(30)
        return len(line)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(audit_copy, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(audit_copy, "_WAITING", 3)
    copies = []
    for entries in (2, 9):  # the queue takes the word to end, or is full
        copies.append(AuditCopy("stdout"))
        with capture_logs() as logged:
            for _ in range(entries):
                copies[-1].write(ENTRY)
            copies[-1].close()
        assert logged[-1]["event"] == "audit_copy_lost"
        lost = sum(one.get("entries", 1) for one in logged)
        assert lost == entries
    reads.set()
    for copy in copies:
        copy.close()


def test_a_process_ends_whose_standard_output_nobody_reads() -> None:
    program = (
        "from greylag.common import audit_copy as of; of.CLOSE_SECONDS = 0.1;"
        "copy = of.AuditCopy('stdout');"
        "[copy.write({'text': 'x' * 900}) for _ in range(200)]; copy.close()"
    )
    # Of its folder alone, with what the tests run.
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(audit_copy.__file__).parents[2])}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(  # noqa: S603 - our own words
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
    ) as process:
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()
