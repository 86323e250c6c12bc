"""A workspace's files by command line and API, with the real goose beside, in constant memory.

``GREYLAG_TEST_BIG_MIB=5120 GREYLAG_TEST_MANY_FILES=100000`` for the sizes that are promised.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
from aiohttp.test_utils import TestServer
from tests.agentd.doubles import recording_model
from tests.cli.program import run
from tests.e2e.product import Event, Product, product, real_goose

pytestmark = real_goose
MIB = 1024 * 1024
BIG = int(os.environ.get("GREYLAG_TEST_BIG_MIB", "150")) * MIB
BIG_PATIENCE = 30 + BIG / (4 * MIB)
MANY = int(os.environ.get("GREYLAG_TEST_MANY_FILES", "10000"))


async def test_files_and_folders_come_and_go_while_the_agent_works(tmp_path: Path) -> None:
    async with product(tmp_path, GOOSE_MODE="auto") as up:
        path = await up.project("demo")
        tree = tmp_path / "tree"
        (tree / "sub/deep").mkdir(parents=True)
        (tree / "sub/deep/f.txt").write_text("find me\n")
        (tree / "sub/café\\odd").write_bytes(os.urandom(100_000))
        (tree / "link").symlink_to("/etc/passwd")
        working = asyncio.create_task(up.say(path, "[[delay ms=20]] [[chunks n=100 size=5]]"))
        sent = (await run("cp", str(tree), "demo:in", "--json", env=up.env)).document
        assert sent == {"files": 2, "bytes": 100_008, "already_there": 0, "links_left_out": 1}
        again = (await run("cp", str(tree), "demo:in", "--json", env=up.env)).document
        assert (again["files"], again["already_there"]) == (0, 2)
        listed = await run("files", "ls", "demo", "in/sub", env=up.env)
        assert "deep/" in listed.out, listed.err
        assert "café\\\\odd" in listed.out
        found = await run("files", "search", "demo", "FIND ME", env=up.env)
        assert found.out.splitlines() == ["in/sub/deep/f.txt:1: find me"], found.err
        ours = tree / "sub/deep/f.txt"
        theirs = up.volume("demo") / "workspace/in/sub/deep/f.txt"
        ours.chmod(0o755)
        assert theirs.write_text("find us\n") == ours.stat().st_size
        changed = (await run("cp", str(tree), "demo:in", "--json", env=up.env)).document
        assert (changed["files"], theirs.read_text()) == (1, "find me\n")
        back = await run("cp", "demo:in", str(tmp_path / "back"), env=up.env)
        assert back.out == "Copied 2 files, 100008 bytes.\n", back.err
        assert os.access(tmp_path / "back/sub/deep/f.txt", os.X_OK)
        for name in ("sub/deep/f.txt", "sub/café\\odd"):
            assert (tmp_path / "back" / name).read_bytes() == (tree / name).read_bytes()
        await working
        events = await up.say(path, "[[tool cat in/sub/deep/f.txt; ln -s /etc in/out]]")
        (said,) = [event.content for event in events if event.type == "tool_response"]
        assert said["result"]["Ok"][0]["text"].startswith("find me")
        refused = await run("files", "get", "demo", "in/out/passwd", "-", env=up.env)
        assert (refused.code, "leads out of the workspace" in refused.err) == (1, True)
        kept = await run("files", "get", "demo", "in/sub/deep/f.txt", "-", env=up.env)
        assert kept.out == "find me\n"
        removed = await run("files", "rm", "demo", "in", "-r", "--yes", env=up.env)
        assert removed.out == "in is deleted.\n", removed.err
        left = await run("files", "ls", "demo", "--json", env=up.env)
        assert left.document["entries"] == []


async def test_a_big_file_and_a_big_folder_pass_in_constant_memory_also_after_a_cut(
    tmp_path: Path,
) -> None:
    async with product(tmp_path) as up:
        path = await up.project("demo")
        big = tmp_path / "big"
        with big.open("wb") as file:
            for _ in range(BIG // MIB):
                file.write(os.urandom(MIB))
        before = _memory(up)
        async with _watched(up) as most:
            words = ("files", "put", "demo", str(big), "there/big")
            put = await run(*words, env=up.env, patience=BIG_PATIENCE)
            assert put.code == 0, put.err
            digest = _digest(big)
            big.unlink()
            url = f"{up.address}{path}/files/content?path=there/big"
            async with up.signed_in(up.address) as http, http.get(url) as answer:
                etag = answer.headers["etag"]
                cut = await answer.content.readexactly(BIG // 3)
            # What a copy that was cut leaves.
            mark = hashlib.sha256(f"there/big{etag}".encode()).hexdigest()[:12]
            (tmp_path / f".copy.{mark}.part").write_bytes(cut)
            copy = tmp_path / "copy"
            words = ("files", "get", "demo", "there/big", str(copy))
            got = await run(*words, env=up.env, patience=BIG_PATIENCE)
            assert got.code == 0, got.err
        assert _digest(copy) == digest
        print("file:", (most[0] - before) // MIB, "MiB over rest")  # noqa: T201 - of the long run
        assert most[0] - before < 60 * MIB
        copy.unlink()
        many = up.volume("demo") / "workspace" / "many"
        many.mkdir()
        for number in range(MANY):
            (many / f"f{number}").touch()
        before = _memory(up)
        async with _watched(up) as most:
            assert await _listed(up, path, "many") == {f"f{number}" for number in range(MANY)}
        print("folder:", (most[0] - before) // MIB, "MiB over rest")  # noqa: T201 - as above
        assert most[0] - before < 60 * MIB


async def _listed(up: Product, path: str, folder: str) -> set[str]:
    """Return the names in a folder, read page by page; fail when one comes twice."""
    names: list[str] = []
    after: str | None = ""
    while after is not None:
        url = f"{path}/files?path={folder}&limit=1000&after={after}"
        status, page = await up.call("GET", url)
        assert status == 200, page
        names += [one["name"] for one in page["entries"]]
        after = page["next"]
    assert len(names) == len(set(names))
    return set(names)


def _memory(up: Product) -> int:
    """Return what all the product's processes hold, bytes."""
    total = 0
    for program in up.programs.values():
        whole = psutil.Process(program.pid)
        for one in (whole, *whole.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
    return total


@asynccontextmanager
async def _watched(up: Product) -> AsyncIterator[list[int]]:
    """Give a list whose only number is the most memory that was held so far."""
    most = [0]

    async def watch() -> None:
        while True:
            most[0] = max(most[0], _memory(up))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch(), name="memory")
    try:
        yield most
    finally:
        watching.cancel()


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


async def test_what_a_turn_changed_is_shown_and_undone_and_the_agent_is_told_or_forgets(
    tmp_path: Path,
) -> None:
    requests: list[str] = []
    async with (
        TestServer(recording_model(requests)) as model,
        product(tmp_path, GOOSE_MODE="auto", GREYLAG_MODEL_URL=str(model.make_url(""))) as up,
    ):
        path = await up.project("demo")
        first = await up.say(path, "[[tool printf 'one\\ntwo\\n' > f; mkdir -m 700 keep]]")
        session = first[0].content["session_id"]

        async def say(message: str) -> list[Event]:
            return await up.say(path, message, session_id=session)

        second = await say("[[tool printf 'one\\n2\\n' > f; rmdir keep; mkdir node_modules]]")
        shown = await run("changes", "demo", "--json", env=up.env)
        told = {one["path"]: one["change"] for one in shown.document["changes"]}
        assert told == {"f": "modified", "keep": "deleted"}, shown.err
        assert shown.document["left_out"] == [{"path": "node_modules", "reason": "build"}]
        compared = await run("diff", "demo", "f", env=up.env)
        assert compared.out.endswith("@@ -1,2 +1,2 @@\n one\n-two\n+2\n"), compared.err
        turn = second[0].content["turn_id"]
        undone = await run("undo", "demo", turn, "--yes", "--json", env=up.env)
        assert undone.document["kept"] == [], undone.err
        events = await say("[[tool cat f; stat -c %a keep; touch later]]")
        (said,) = [event.content for event in events if event.type == "tool_response"]
        assert said["result"]["Ok"][0]["text"].splitlines()[:3] == ["one", "two", "700"]
        assert "the user has undone changes" in requests[-1]
        status, problem = await up.call("GET", f"{path}/turns/nothing/changes")
        assert (status, problem["code"]) == (404, "turn_not_found")
        again = await run("undo", "demo", undone.document["undo_id"], "--yes", env=up.env)
        assert "modified\t+1 -1\t600\tf" in again.out, again.err

        wrong = await run("undo", "demo", turn, "--history", "none", "--yes", env=up.env)
        assert "'none' is not one of 'keep', 'cut'" in wrong.err
        forgot = await run("undo", "demo", turn, "--history", "cut", "--yes", env=up.env)
        assert "The agent has forgotten 2 turns." in forgot.err, forgot.err
        for sleeps in (True, False):
            await say("[[text on]]")
            assert ("mkdir -m 700 keep" in requests[-1], "rmdir" in requests[-1]) == (True, False)
            assert "touch later" not in requests[-1]
            assert "so read these again: later." in requests[-1]
            if sleeps:
                for verb in ("deactivate", "activate"):
                    assert (await up.call("POST", f"{path}/{verb}"))[0] == 200
        history = await run("sessions", "demo", session, env=up.env)
        assert history.out.count("User (forgotten by the agent):") == 2, history.err
