"""The workspace's files over HTTP, with the real execd behind it."""

import asyncio
import errno
import io
import os
import re
import shutil
import socket
import stat
import tarfile
import threading
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agentd.doubles import AgentDouble, Api, chunk, serving

from greylag.agentd import execution, files
from greylag.agentd.agent.types import PromptResult, TurnSink
from greylag.agentd.api import requests
from greylag.execd import packing
from greylag.execd.files import Workspace, parts_of, shown
from greylag.execd.protocol import RefusedError
from greylag.execd.server import ExecServer

ROOT = "/api/v1/files"


@asynccontextmanager
async def site(folder: Path, agent: AgentDouble | None = None) -> AsyncIterator[Api]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "execd"))
        listener.listen()
        execd = asyncio.create_task(ExecServer().serve(listener), name="execd")
        try:
            async with serving(folder, agent) as api:
                yield api
        finally:
            execd.cancel()
            await asyncio.wait({execd})


def there(folder: Path) -> Path:
    return folder / "workspace"


async def ask(api: Api, method: str, path: str, **more: Any) -> tuple[int, Any, bytes]:
    async with api.http.request(method, api.base + ROOT + path, **more) as answer:
        return answer.status, answer.headers, await answer.read()


async def listed(api: Api, query: str) -> Any:
    status, body = await api.json("GET", f"{ROOT}?{query}")
    assert status == 200, body
    return body


async def test_what_is_written_is_read_listed_moved_and_deleted(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        body = os.urandom(3_000_000)
        status, entry = await api.json("PUT", f"{ROOT}/content?path=a/b/c.py", body)
        assert (status, entry["path"], entry["size"]) == (200, "a/b/c.py", 3_000_000)
        assert entry["media_type"] == "text/x-python"
        assert (there(tmp_path) / "a/b/c.py").read_bytes() == body
        status, headers, read = await ask(api, "GET", "/content?path=a/b/c.py")
        assert (status, read, headers["etag"]) == (200, body, entry["etag"])
        assert headers["content-type"] == "application/octet-stream"
        found = await listed(api, "path=a/b")
        assert found == {"entry": found["entry"], "entries": [entry], "next": None}
        assert found["entry"]["kind"] == "folder"
        moved = {"source": "a/b/c.py", "target": "d/e.txt"}
        status, entry = await api.json("POST", f"{ROOT}/move", moved)
        assert (status, entry["path"], entry["name"]) == (200, "d/e.txt", "e.txt")
        assert (await ask(api, "DELETE", "?path=d/e.txt"))[0] == 204
        assert (await api.json("DELETE", f"{ROOT}?path=a"))[1]["code"] == "folder_not_empty"
        assert (await ask(api, "DELETE", "?path=a&recursive=true"))[0] == 204
        status, entry = await api.json("POST", f"{ROOT}/folder", {"path": "x/y"})
        assert (status, entry["kind"]) == (201, "folder")
        assert [one["name"] for one in (await listed(api, ""))["entries"]] == ["d", "x"]


@pytest.mark.parametrize(
    ("wanted", "status", "body", "told"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=10-", 416, None, None),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
async def test_a_range_is_as_the_rfc_says(
    wanted: str, status: int, body: bytes | None, told: str | None, tmp_path: Path
) -> None:
    async with site(tmp_path) as api:
        (there(tmp_path) / "f").write_bytes(b"0123456789")
        got, headers, read = await ask(api, "GET", "/content?path=f", headers={"range": wanted})
        assert (got, headers.get("content-range")) == (status, told)
        assert body in {None, read}


async def test_conditions_hold_for_reads_and_writes(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        put = f"{ROOT}/content?path=f"
        new = {"if-none-match": "*"}
        status, entry = await api.json("PUT", put, b"one", headers=new)
        assert status == 200
        assert (await api.json("PUT", put, b"two", headers=new))[0] == 412
        match = {"if-match": entry["etag"]}
        status, _, _ = await ask(
            api, "GET", "/content?path=f", headers={"if-none-match": entry["etag"]}
        )
        assert status == 304
        assert (await api.json("PUT", put, b"three", headers=match))[0] == 200
        status, refused = await api.json("PUT", put, b"four", headers=match)
        assert (status, refused["code"]) == (412, "file_changed")
        assert (await ask(api, "GET", "/content?path=f", headers=match))[0] == 412
        anything = {"if-match": "*"}
        assert (await api.json("PUT", put, b"three", headers=anything))[0] == 200
        for missing in ("nope", "new/folder/nope"):
            path = f"{ROOT}/content?path={missing}"
            for tag in (anything, match):
                status, refused = await api.json("PUT", path, b"five", headers=tag)
                assert (status, refused["code"]) == (412, "file_changed")
        assert sorted(os.listdir(there(tmp_path))) == ["f"]  # noqa: PTH208 - names
        gone = {"range": "bytes=0-1", "if-range": entry["etag"]}
        assert (await ask(api, "GET", "/content?path=f", headers=gone))[2] == b"three"
        assert (there(tmp_path) / "f").read_bytes() == b"three"


async def test_a_write_says_what_rights_and_time_a_file_has(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        put = f"{ROOT}/content?path=f"
        moment = "2001-02-03T04:05:06.789Z"
        status, entry = await api.json("PUT", f"{put}&mode=755&modified={moment}", b"one")
        assert (status, entry["mode"], entry["modified"]) == (200, "755", moment)
        assert (await listed(api, "path=f"))["entry"] == entry
        _, later = await api.json("PUT", put, b"two")
        assert (later["mode"], later["modified"] > moment) == ("755", True)
        for wrong in ("mode=4755", "mode=7", "mode=rwx", "modified=now", "modified=2001-02-03"):
            status, refused = await api.json("PUT", f"{put}&{wrong}", b"three")
            assert (status, refused["code"]) == (400, "invalid_request"), wrong
        assert (there(tmp_path) / "f").read_bytes() == b"two"


async def test_a_write_that_breaks_off_leaves_all_as_it_was(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        file = there(tmp_path) / "f"
        file.write_bytes(b"before")
        file.chmod(0o751)
        begun = asyncio.Event()

        async def broken() -> AsyncIterator[bytes]:
            yield b"x" * 100_000
            begun.set()
            raise OSError("the client is gone")

        with pytest.raises((aiohttp.ClientError, OSError)):
            await ask(api, "PUT", "/content?path=f", data=broken())
        assert begun.is_set()
        async with asyncio.timeout(20):
            while len(os.listdir(there(tmp_path))) > 1:  # noqa: PTH208, ASYNC110 - another process's work
                await asyncio.sleep(0.01)
        assert file.read_bytes() == b"before"
        await api.json("PUT", f"{ROOT}/content?path=f", b"after")
        assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"after", 0o751)


async def test_links_are_followed_inside_and_never_out(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        root = there(tmp_path)
        (root / "real").mkdir()
        (root / "real/f").write_text("inside")
        (tmp_path / "secret").write_text("outside")
        (root / "in").symlink_to("real")
        (root / "absolute").symlink_to(root / "real")
        (root / "up").symlink_to("../secret")
        (root / "out").symlink_to("/etc")
        (root / "round").symlink_to("round")
        for path in ("in/f", "absolute/f"):
            assert (await ask(api, "GET", f"/content?path={path}"))[2] == b"inside"
        for path in ("up", "out/passwd", "out", "round", "round/x"):
            status, refused = await api.json("GET", f"{ROOT}?path={path}")
            assert (status, refused["code"]) == (409, "outside_workspace"), path
            assert (await ask(api, "PUT", f"/content?path={path}", data=b"x"))[0] == 409
        assert (tmp_path / "secret").read_text() == "outside"
        links = {one["name"]: one["target"] for one in (await listed(api, ""))["entries"]}
        assert links["up"] == "../secret"
        assert (await ask(api, "DELETE", "?path=out&recursive=true"))[0] == 204


@pytest.mark.parametrize(
    "path", ["../x", "a/../b", "a%00b", "x" * 256, "a\\", "a\\x4", "a\\q", "%ff"]
)
async def test_what_is_no_path_is_refused(path: str, tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        status, refused = await api.json("GET", f"{ROOT}?path={quote(path, safe='%')}")
        # A byte that no decoder takes is a replacement character by now, which is a fine name.
        assert (status, refused["code"]) in {(400, "invalid_path"), (404, "file_not_found")}


@given(st.binary(min_size=1, max_size=60).filter(lambda name: not {0, 47} & set(name)))
def test_every_name_can_be_said(name: bytes) -> None:
    text = shown(name)
    text.encode()
    if name not in {b".", b".."}:
        assert parts_of(text) == [name]


@given(st.text(max_size=40))
def test_no_text_is_two_names(path: str) -> None:
    try:
        parts = parts_of(path)
    except RefusedError:
        return
    assert all(part not in {b"", b".", b".."} and b"/" not in part for part in parts)


async def test_names_of_any_bytes_come_and_go(tmp_path: Path) -> None:
    names = [b"caf\xc3\xa9", b"\xff\xfe", b"back\\slash", b"line\nbreak", b" ", b"\x1b[31m"]
    async with site(tmp_path) as api:
        for name in names:
            (there(tmp_path) / os.fsdecode(name)).write_bytes(name)
        entries = (await listed(api, ""))["entries"]
        assert len(entries) == len(names)
        for entry in entries:
            _, _, read = await ask(api, "GET", "/content", params={"path": entry["path"]})
            assert shown(read) == entry["path"]
            assert (await ask(api, "DELETE", "", params={"path": entry["path"]}))[0] == 204


async def test_a_folder_of_many_is_paged_and_none_is_missed(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        for number in range(2500):
            (there(tmp_path) / f"f{number:04d}").touch()
        names: list[str] = []
        after = ""
        while after is not None:
            page = await listed(api, f"limit=1000&after={after}")
            names += [one["name"] for one in page["entries"]]
            after = page["next"]
        assert names == [f"f{number:04d}" for number in range(2500)]


@pytest.mark.parametrize("form", ["tar.gz", "zip"])
async def test_an_archive_brings_a_tree_there_and_back(form: str, tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        root = there(tmp_path)
        (root / "t/deep/er").mkdir(parents=True)
        (root / "t/empty").mkdir()
        (root / "t/deep/er/f").write_bytes(b"x" * 2_000_000)
        (root / "t/run").write_text("#!/bin/sh\n")
        (root / "t/run").chmod(0o755)
        (root / "t/link").symlink_to("deep/er/f")
        os.mkfifo(root / "t/pipe")
        status, _, packed = await ask(api, "GET", f"/archive?path=t&format={form}")
        assert status == 200
        status, body = await api.json("POST", f"{ROOT}/archive?path=new&format={form}", packed)
        assert (status, body["left_out"]) == (200, [])
        assert (root / "new/deep/er/f").read_bytes() == b"x" * 2_000_000
        assert stat.S_IMODE((root / "new/run").stat().st_mode) == 0o755
        assert (root / "new/link").readlink() == Path("deep/er/f")
        assert (root / "new/empty").is_dir()
        assert (root / "new/LEFT-OUT.txt").read_text() == "pipe\n"
        (root / "kept").write_bytes(packed)
        for source, code in (("kept", None), ("t", "not_a_file"), ("../kept", "invalid_path")):
            path = f"{ROOT}/archive?path=again&format={form}&source={source}"
            status, body = await api.json("POST", path, b"")
            assert body.get("code") == code, body
        assert (root / "again/deep/er/f").read_bytes() == b"x" * 2_000_000


async def test_a_hostile_archive_writes_nothing_outside(tmp_path: Path) -> None:
    tarred, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w:gz") as tar:
        link = tarfile.TarInfo("way")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        for name in ("../up", "/abs", "way/through", "fine"):
            one = tarfile.TarInfo(name)
            one.size = 1
            tar.addfile(one, io.BytesIO(b"x"))
        device = tarfile.TarInfo("device")
        device.type = tarfile.CHRTYPE
        tar.addfile(device)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("../up", "x")
        archive.writestr("fine", "x")
    async with site(tmp_path) as api:
        before = sorted(os.listdir(tmp_path))  # noqa: PTH208 - names
        for form, content in (("tar.gz", tarred), ("zip", zipped)):
            path = f"{ROOT}/archive?path={form}&format={form}"
            status, body = await api.json("POST", path, content.getvalue())
            assert status == 200, body
            assert "../up" in body["left_out"]
            assert (there(tmp_path) / form / "fine").read_text() == "x"
        assert sorted(os.listdir(tmp_path)) == before  # noqa: PTH208 - names
        cut = tarred.getvalue()[:60]
        status, body = await api.json("POST", f"{ROOT}/archive?path=cut", cut)
        assert (status, body["code"]) == (400, "invalid_archive")


@pytest.mark.parametrize("program", [None, "rg"])
async def test_a_search_finds_names_and_lines(
    program: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if program is not None and shutil.which(program) is None:
        pytest.skip("RIPGREP IS NOT THERE: only the search without it is tested")
    if program is None:
        monkeypatch.setattr("greylag.execd.file_search.shutil.which", lambda _: None)
    async with site(tmp_path) as api:
        root = there(tmp_path)
        (root / "src").mkdir()
        (root / "src/needle.py").write_text("import os\nprint('NEEDLE')\n")
        (root / "binary").write_bytes(b"\0needle")
        (root / "node_modules").mkdir()
        (root / "node_modules/x.js").write_text("needle")
        status, body = await api.json("GET", f"{ROOT}/search?q=needle")
        assert (status, body) == (
            200,
            {
                "matches": [
                    {"path": "src/needle.py", "line": 0, "text": ""},
                    {"path": "src/needle.py", "line": 2, "text": "print('NEEDLE')"},
                ],
                "whole": True,
            },
        )
        _, body = await api.json("GET", f"{ROOT}/search?q=needle&limit=1")
        assert (len(body["matches"]), body["whole"]) == (1, False)
        _, body = await api.json("GET", f"{ROOT}/search?q=NEEDLE&path=src")
        assert [one["line"] for one in body["matches"]] == [0, 2]
        assert (await api.json("GET", f"{ROOT}/search?q="))[0] == 400


async def test_a_deep_tree_is_listed_by_path_and_deleted(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        folder = os.open(there(tmp_path), os.O_RDONLY)
        for _ in range(3000):
            os.mkdir("d", dir_fd=folder)
            inner = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = inner
        os.close(folder)
        path = "/".join(["d"] * 500)
        assert (await listed(api, f"path={path}"))["entry"]["path"] == path
        status, _, packed = await ask(api, "GET", "/archive?path=&format=zip")
        assert status == 200
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            assert "LEFT-OUT.txt" in archive.namelist()
        assert (await ask(api, "DELETE", "?path=d&recursive=true"))[0] == 204
        assert os.listdir(there(tmp_path)) == []  # noqa: PTH208 - names


async def test_a_deletion_may_take_longer_than_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_within, longer = 0.3, threading.Event()
    remove = Workspace.remove

    def slow(self: Workspace, path: str, *, recursive: bool) -> None:
        longer.wait(3 * answers_within)
        remove(self, path, recursive=recursive)

    monkeypatch.setattr(execution, "_ANSWER_SECONDS", answers_within)
    monkeypatch.setattr(Workspace, "remove", slow)
    async with site(tmp_path) as api:
        (there(tmp_path) / "f").touch()
        assert (await ask(api, "DELETE", "?path=f"))[0] == 204
        status, refused = await api.json("DELETE", f"{ROOT}?path=f")
        assert (status, refused["code"]) == (404, "file_not_found")


async def test_a_file_that_replaces_another_must_say_so(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        (there(tmp_path) / "a").write_text("a")
        (there(tmp_path) / "b").write_text("b")
        body: dict[str, Any] = {"source": "a", "target": "b"}
        status, refused = await api.json("POST", f"{ROOT}/move", body)
        assert (status, refused["code"]) == (409, "file_exists")
        assert (await api.json("POST", f"{ROOT}/move", {**body, "replace": True}))[0] == 200
        assert (there(tmp_path) / "b").read_text() == "a"


async def test_what_fails_leaves_no_folders_behind(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        root = there(tmp_path)
        (root / "a/kept").mkdir(parents=True)
        for source, target in (("nope", "new/folder/x"), ("a", "a/kept/new/b")):
            body = {"source": source, "target": target}
            status, _ = await api.json("POST", f"{ROOT}/move", body)
            assert status in {400, 404}
        assert sorted(root.rglob("*")) == [root / "a", root / "a/kept"]


async def test_without_execd_it_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        status, refused = await api.json("GET", ROOT)
        assert (status, refused["code"]) == (503, "agent_unavailable")


async def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    async with site(tmp_path) as api:
        os.mkfifo(there(tmp_path) / "pipe")
        status, refused = await api.json("GET", f"{ROOT}/content?path=pipe")
        assert (status, refused["code"]) == (409, "not_a_file")


async def _totals(api: Api, session: str) -> list[Any]:
    _, listed = await api.json("GET", f"/api/v1/sessions/{session}/turns")
    return [turn["changes"] for turn in listed["turns"]]


async def test_a_turn_is_undone_over_http_and_the_next_message_tells_the_agent(
    tmp_path: Path,
) -> None:
    at_work, go_on = asyncio.Event(), asyncio.Event()

    async def writes(agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        (there(tmp_path) / "made").write_text(text)
        at_work.set()
        await go_on.wait()
        await sink.update(chunk("done"))
        return PromptResult("end_turn", None)

    agent = AgentDouble(writes)
    async with site(tmp_path, agent) as api:
        session = await api.session()
        turn = await api.turn("hello", session)
        one = f"/api/v1/turns/{turn}"
        await at_work.wait()
        status, running = await api.json("GET", f"{one}/changes")
        assert (status, running["code"]) == (409, "turn_running")
        await api.json("PUT", f"{ROOT}/content?path=by/hand", b"meanwhile")
        go_on.set()
        last = (await api.events(turn))[-1]
        _, found = await api.json("GET", f"{one}/changes")
        told = {change["path"]: change["shared"] for change in found["changes"]}
        totals = {"files": 2, "added_lines": 2, "deleted_lines": 0}
        assert (told, last["content"]["changes"]) == ({"made": False, "by/hand": True}, totals)
        _, between = await api.json("GET", f"/api/v1/changes?from={turn}&to={turn}")
        assert [change["path"] for change in between["changes"]] == ["by/hand", "made"]
        for body in ({"override": 1}, {"paths": "made"}, {"other": True}):
            assert (await api.json("POST", f"{one}/undo", body))[0] == 400
        status, undone = await api.json("POST", f"{one}/undo", {})
        kept = {one["path"]: one["reason"] for one in undone["kept"]}
        assert (status, kept) == (200, {"by": "not_empty", "by/hand": "changed_by_others"})
        assert [path.name for path in there(tmp_path).iterdir()] == ["by"]
        holds = totals | {"undo_id": undone["undo_id"], "undone_files": 1}
        _, again = await api.json("POST", f"{one}/undo", {})
        assert (again["changes"]["total"], await _totals(api, session)) == (0, [holds])
        await api.events(await api.turn("go on", session))
        await api.events(await api.turn("and on", session))
        first, second, third = (text for _, text in agent.prompts)
        assert re.fullmatch(
            r"Note from the platform.* them again: made\.\n\ngo on", second, re.DOTALL
        )
        assert (first, third) == ("hello", "and on")
        _, history = await api.json("GET", f"/api/v1/sessions/{session}/messages")
        assert [said["content"] for said in history["messages"]][::2] == [
            "hello",
            "go on",
            "and on",
        ]
        status, missing = await api.json("GET", "/api/v1/turns/none/diff?path=made")
        assert (status, missing["code"]) == (404, "turn_not_found")


async def test_an_archive_that_cannot_be_read_to_its_end_stops_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = packing._Exactly.read
    left = [2]

    def failing(file: Any, size: int = -1) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, "the disk is broken")
        return read(file, size)

    async with site(tmp_path) as api:
        for name in "fg":
            (there(tmp_path) / name).write_bytes(os.urandom(30_000))
        monkeypatch.setattr(packing._Exactly, "read", failing)
        async with asyncio.timeout(15):  # it is past when something held up the loop meanwhile
            with pytest.raises(aiohttp.ClientPayloadError):
                await ask(api, "GET", "/archive")
            assert len((await listed(api, ""))["entries"]) == 2


def test_whatever_execd_refuses_by_has_a_status() -> None:
    assert requests._STATUS.keys() >= files._CODES
