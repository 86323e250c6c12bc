"""The audit trail by command line: listed, written out, and checked."""

import json
from pathlib import Path

from tests.cli.program import call
from tests.cli.stack import Stack

from greylag.cli.errors import Exit


async def test_it_is_listed_written_out_and_checked(stack: Stack, tmp_path: Path) -> None:
    for name in ("One", "Two", "Three"):
        assert (await call("projects", "create", name, env=stack.env)).code == 0
    listed = await call("audit", "list", "--action", "projects.create", env=stack.env)
    assert [line.split("\t")[3] for line in listed.out.splitlines()[1:]] == ["projects.create"] * 3
    page = await call("audit", "list", "--json", "--limit", "2", env=stack.env)
    assert [one["number"] for one in page.document["entries"]] == [3, 2]

    written = await call("audit", "export", env=stack.env)
    file = tmp_path / "audit.jsonl"
    file.write_text(written.out)
    of_file = await call("audit", "verify", "--json", str(file), env=stack.env)
    whole = await call("audit", "verify", "--json", env=stack.env)
    assert of_file.document == whole.document
    assert whole.document["entries"] == 3
    known = whole.document["last"]
    assert (await call("audit", "verify", "--known", known, env=stack.env)).code == 0

    lines = written.out.splitlines(keepends=True)
    links = [f"{one['number']}:{one['hash']}" for one in map(json.loads, lines)]
    file.write_text("".join(lines[1:]))
    # An entry that is noted and was trimmed, or is before the copy, is not passed over.
    for of, said in (
        (links[0], None),
        (links[0][:-1] + "x", "The entry 1 was changed."),
        (f"0:{'0' * 64}", "The entry 0 is not there any more"),
    ):
        done = await call("audit", "verify", "--known", of, str(file), env=stack.env)
        assert (said or "is whole") in done.out + done.err
    wrong = await call("audit", "verify", "--known", known[:-1] + "x", env=stack.env)
    assert (wrong.code, "The entry 3 was changed." in wrong.err) == (Exit.REFUSED, True)
    file.write_text(written.out.replace("One", "Oni"))
    edited = await call("audit", "verify", str(file), env=stack.env)
    assert "error: The entry 1 was changed. [audit_broken]" in edited.err
    for damaged in (b"[]\n", b"\xff\n", b"[" * 100_000, b'{"number": "1", "previous": ""}\n'):
        file.write_bytes(lines[0].encode() + damaged)
        told = await call("audit", "verify", str(file), env=stack.env)
        assert (told.code, "FILE: a line of it is no entry." in told.err) == (Exit.USAGE, True)
    del stack.store._tables.audit[1]
    gap = await call("audit", "verify", env=stack.env)
    assert (gap.code, "The entry 2 is missing." in gap.err) == (Exit.REFUSED, True)
    del stack.store._tables.audit[1]
    cut = await call("audit", "verify", env=stack.env)
    assert "The entry 2 is missing." in cut.err


async def test_by_leaves_out_what_others_did(stack: Stack) -> None:
    assert (await call("projects", "create", "One", env=stack.env)).code == 0  # by the operator
    listed = await call("audit", "list", "--by", "ada", "--json", env=stack.env)
    written = await call("audit", "export", "--by", "ada", env=stack.env)
    assert (listed.document["entries"], written.out) == ([], "")
