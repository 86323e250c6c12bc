"""The copy of the audit trail reaches whatever collects lines."""

import json
import socket

import pytest

from greylag.common.audit_copy import AuditCopy

ENTRY = {"number": 1, "action": "test", "object": "Ω\n"}


def test_a_copy_goes_to_standard_output_a_line_for_each_entry(
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = AuditCopy("stdout")
    copy.write(ENTRY)
    copy.write(ENTRY)
    copy.close()
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [ENTRY] * 2


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
