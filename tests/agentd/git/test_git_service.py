"""git in the environment against a real git server over http: clones, secrets, commits, pushes."""

import asyncio
import base64
import hashlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import aiohttp
import pytest
from aiohttp import web
from tests.agentd.conftest import serve
from tests.agentd.doubles import Api, eventually, serving
from tests.git_server import TOKEN, USER, GitServer, git, git_server, make_repository, pointer
from yarl import URL

from greylag.agentd.config import AgentdSettings
from greylag.agentd.execution import ExecdProcess, Execution
from greylag.agentd.git import clone
from greylag.agentd.git.commands import GitAnswer, failure, plain_line
from greylag.agentd.git.relay import GitRelay, TransferLinks, Way
from greylag.agentd.git.service import GitService
from greylag.agentd.main import agent_setup
from greylag.agentd.problems import RequestError
from greylag.agentd.volume import Volume
from greylag.common.agent_api import UndoWish
from greylag.common.git import CloneState, GitCredential, GitSetup
from greylag.common.public_hosts import NamedHosts

FILES: dict[str, str | bytes] = {
    "README.md": "# Hello\n",
    "src/main.py": "print('hello')\n",
    "data.bin": bytes(range(256)) * 64,
}
AUTHOR = ("Ada", "ada@example.org")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[GitServer]:
    root = tmp_path / "repositories"
    for name in ("public/app.git", "private/app.git"):
        make_repository(root / name, FILES)
    async with git_server(root) as one:
        yield one


@asynccontextmanager
async def environment(
    folder: Path, server: GitServer, programs: str | None = None, **changes: Any
) -> AsyncIterator[Api]:
    Volume(folder).prepare()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environ["PATH"] = programs or environ["PATH"]
    execd = ExecdProcess((sys.executable, "-m", "greylag.execd"), folder / "execd", environ)
    running = asyncio.create_task(execd.run(), name="execd")
    try:
        await eventually((folder / "execd").exists, 30)
        changes = {"git_hosts": (f"http://{server.host}",), **changes}
        async with serving(folder, **changes) as api:
            yield api
    finally:
        running.cancel()
        await asyncio.wait({running})


@pytest.fixture
async def api(tmp_path: Path, server: GitServer) -> AsyncIterator[Api]:
    async with environment(tmp_path / "environment", server) as one:
        yield one


def setup(server: GitServer, path: str, *, token: str | None = None, **more: Any) -> dict[str, Any]:
    secret = {"name": "git", "host": server.host, "username": USER, "value": token}
    return {
        "url": f"{server.url}/{path}",
        "author": AUTHOR,
        "credentials": [secret] if token else [],
        **more,
    }


async def told(api: Api, said: dict[str, Any]) -> CloneState:
    """Set git up, and return how its clone ends."""
    async with asyncio.timeout(60):
        while True:
            status, found = await api.json("PUT", "/api/v1/git/setup", said)
            assert status == 200, found
            if found["status"] != "cloning":
                return CloneState(**found)
            await asyncio.sleep(0.02)


def workspace(folder: Path) -> dict[str, bytes]:
    """Return the workspace's files, without git's own."""
    root = folder / "workspace"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(root).parts
    }


BYTES = {name: text if isinstance(text, bytes) else text.encode() for name, text in FILES.items()}


async def test_a_repository_is_cloned_once_and_nothing_is_cloned_over_what_is_there(
    api: Api, server: GitServer, tmp_path: Path
) -> None:
    folder = tmp_path / "environment"
    assert (await told(api, setup(server, "public/app.git", depth=1))).status == "done"
    assert workspace(folder) == BYTES
    assert sorted(path.name for path in (folder / "workspace").iterdir()) == sorted(
        [".git", "README.md", "data.bin", "src"]
    )
    (folder / "workspace" / "README.md").write_text("mine")
    asked = len(server.asked)
    assert (await told(api, setup(server, "public/app.git", ref="v1"))).status == "done"
    assert len(server.asked) == asked
    assert (folder / "workspace" / "README.md").read_text() == "mine"


@pytest.mark.parametrize("named", ["branch", "tag", "commit"])
async def test_a_branch_a_tag_and_a_commit_can_be_named(
    api: Api, server: GitServer, tmp_path: Path, named: str
) -> None:
    bare = server.root / "public" / "app.git"
    commit = git(bare, "rev-parse", "main")
    git(bare, "branch", "feature/x")
    ref = {"branch": "feature/x", "tag": "v1", "commit": commit}[named]
    assert (await told(api, setup(server, "public/app.git", ref=ref, depth=1))).status == "done"
    _, status = await api.json("GET", "/api/v1/git")
    assert status["commit"] == commit
    assert status["branch"] == ("feature/x" if named == "branch" else None)
    assert workspace(tmp_path / "environment") == BYTES


async def test_a_private_repository_is_cloned_by_a_secret_that_no_side_of_the_agent_ever_has(
    api: Api, server: GitServer, tmp_path: Path
) -> None:
    folder = tmp_path / "environment"
    path = "private/app.git"
    refused = await told(api, setup(server, path))
    assert (refused.status, refused.code) == ("failed", "git_denied")
    assert "secret" in refused.hint
    wrong = await told(api, setup(server, path, token="of another"))
    assert (wrong.status, wrong.code) == ("failed", "git_denied")
    assert "refuses the secret git" in wrong.detail
    assert "127.0.0.1" not in wrong.detail.replace(server.host, "")
    assert (await told(api, setup(server, path, token=TOKEN))).status == "done"
    assert workspace(folder) == BYTES
    _, status = await api.json("GET", "/api/v1/git")
    assert status["remote"] == f"{server.url}/{path}"
    for file in folder.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file


async def test_a_clone_that_is_made_while_a_turn_runs_is_none_of_its_work(
    api: Api, server: GitServer, tmp_path: Path
) -> None:
    folder, path = tmp_path / "environment", "private/app.git"
    assert (await told(api, setup(server, path))).status == "failed"
    changes = api.services.changes
    await changes.begin("t", "s")
    assert (await told(api, setup(server, path, token=TOKEN))).status == "done"
    (folder / "workspace" / "answer").write_text("the agent's")
    await changes.end("t")
    undone = await changes.undo("t", UndoWish())
    assert {kept.reason for kept in undone.kept} == {"changed_by_others"}
    assert [one.path for one in undone.changes.changes] == ["answer"]
    assert workspace(folder) == BYTES


LARGE = bytes(range(256)) * 1200
LARGE_ID = hashlib.sha256(LARGE).hexdigest()
ATTRIBUTES = "*.big filter=lfs diff=lfs merge=lfs -text\n"
needs_git_lfs = pytest.mark.skipif(
    shutil.which("git-lfs") is None, reason="NO LARGE FILES WERE TESTED: install git-lfs"
)


def large_files_in(server: GitServer) -> str:
    """Make a private repository whose one large file is on the server; return its path."""
    files = {"sub/.gitattributes": ATTRIBUTES, "sub/a.big": pointer(LARGE), **FILES}
    make_repository(server.root / "private" / "large.git", files)
    server.objects[LARGE_ID] = LARGE
    return "private/large.git"


@needs_git_lfs
async def test_large_files_are_fetched_and_pushed_by_the_secret_that_stays_unseen(
    api: Api, server: GitServer, tmp_path: Path
) -> None:
    folder = tmp_path / "environment"
    state = await told(api, setup(server, large_files_in(server), token=TOKEN))
    assert state == CloneState("done", "The repository is cloned.")
    assert (folder / "workspace" / "sub" / "a.big").read_bytes() == LARGE
    assert (await api.json("GET", "/api/v1/git"))[1]["changed"] == 0
    for kept in (b"short", os.urandom(3 * 1024 * 1024)):
        (folder / "workspace" / "sub" / "new.big").write_bytes(kept)
        assert (await api.json("POST", "/api/v1/git/commit", {"message": "Large"}))[0] == 201
        status, said = await api.json("POST", "/api/v1/git/push", {"branch": "large"})
        assert status == 200, said
        assert server.objects[hashlib.sha256(kept).hexdigest()] == kept
    word = base64.b64encode(f"{USER}:{TOKEN}".encode())
    assert {f"Basic {word.decode()}"} == set(server.said)
    for file in folder.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert TOKEN.encode() not in content, file
        assert word not in content, file


@needs_git_lfs
@pytest.mark.parametrize("redirects", [False, True])
async def test_large_files_that_a_host_keeps_elsewhere_are_had_there_without_the_secret(
    api: Api, server: GitServer, tmp_path: Path, *, redirects: bool
) -> None:
    path, server.redirects = large_files_in(server), redirects
    async with git_server(server.root) as other:
        other.is_open, other.objects, server.objects_at = True, server.objects, other.url
        assert (await told(api, setup(server, path, token=TOKEN))).detail.endswith("cloned.")
        assert (tmp_path / "environment/workspace/sub/a.big").read_bytes() == LARGE
        assert other.asked
        assert not other.said


@needs_git_lfs
@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ({}, f"[{LARGE_ID}] no such object: [404] no such object"),
        ({LARGE_ID: b"other"}, f"expected OID {LARGE_ID}, got "),
    ],
)
async def test_large_files_that_cannot_be_had_leave_a_clone_that_says_so(
    api: Api, server: GitServer, tmp_path: Path, objects: dict[str, bytes], words: str
) -> None:
    path = large_files_in(server)
    server.objects = objects
    state = await told(api, setup(server, path, token=TOKEN))
    assert state.status == "done"
    assert state.detail.startswith(
        "The repository is cloned. Not all large files (Git LFS, 1) were fetched: those stay "
        f"pointers until `git lfs pull` has them. git-lfs said: {words}"
    )
    assert (tmp_path / "environment/workspace/sub/a.big").read_bytes() == pointer(LARGE)
    assert (tmp_path / "environment/workspace/README.md").read_bytes() == BYTES["README.md"]


async def test_without_git_lfs_pointers_stay_pointers_and_that_is_told(
    server: GitServer, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "git").symlink_to(shutil.which("git") or "")
    async with environment(tmp_path / "environment", server, str(programs)) as api:
        state = await told(api, setup(server, large_files_in(server), token=TOKEN))
    assert state == CloneState(
        "done",
        "The repository is cloned. Large files (Git LFS, 1) stay pointers: the environment has "
        "no git-lfs.",
    )
    assert (tmp_path / "environment/workspace/sub/a.big").read_bytes() == pointer(LARGE)


async def test_what_is_committed_and_pushed_reaches_the_server_under_the_owner_s_name(
    api: Api, server: GitServer, tmp_path: Path
) -> None:
    folder = tmp_path / "environment"
    assert (await api.json("GET", "/api/v1/git"))[1]["repository"] is False
    status, said = await api.json("POST", "/api/v1/git/commit", {"message": "x"})
    assert (status, said["code"]) == (409, "git_no_repository")
    await told(api, setup(server, "private/app.git", token=TOKEN))
    status, said = await api.json("POST", "/api/v1/git/commit", {"message": "x"})
    assert (status, said["code"]) == (409, "git_nothing_to_commit")
    (folder / "workspace" / "README.md").write_text("changed")
    (folder / "workspace" / "-new [file]").write_text("new")
    _, before = await api.json("GET", "/api/v1/git")
    assert (before["branch"], before["changed"], before["untracked"]) == ("main", 1, 1)
    body = {"message": "--amend: no option\n\nMore.", "paths": ["-new [file]"]}
    status, made = await api.json("POST", "/api/v1/git/commit", body)
    assert (status, made["branch"]) == (201, "main")
    _, after = await api.json("GET", "/api/v1/git")
    assert (after["ahead"], after["changed"], after["untracked"]) == (1, 1, 0)
    (folder / "workspace" / "large").write_bytes(os.urandom(3 * 1024 * 1024))  # sent in chunks
    assert (await api.json("POST", "/api/v1/git/commit", {"message": "All"}))[0] == 201
    status, pushed = await api.json("POST", "/api/v1/git/push", {"branch": "fix/it"})
    assert (status, pushed["branch"]) == (200, "fix/it")
    bare = server.root / "private" / "app.git"
    shown = git(bare, "log", "--format=%an <%ae> %s", "-2", "fix/it")
    assert shown == "Ada <ada@example.org> All\nAda <ada@example.org> --amend: no option"
    _, last = await api.json("GET", "/api/v1/git")
    assert (last["upstream"], last["ahead"]) == ("origin/fix/it", 0)
    for bad in ("-f", "a..b", ":main", "a b", ""):
        status, said = await api.json("POST", "/api/v1/git/push", {"branch": bad})
        assert (status, said["code"]) == (400, "invalid_request"), bad


@pytest.mark.parametrize(
    "name", ["fix-\U0001f468\u200d\U0001f4bb", "a\u2028b", "x" * 200 + "/" + "y" * 100]
)
async def test_a_branch_of_any_name_is_pushed_to_the_one_of_its_name(
    api: Api, server: GitServer, tmp_path: Path, name: str
) -> None:
    await told(api, setup(server, "private/app.git", token=TOKEN))
    git(tmp_path / "environment" / "workspace", "checkout", "-q", "-b", name)
    status, pushed = await api.json("POST", "/api/v1/git/push", {})
    assert status == 200, pushed
    bare = server.root / "private" / "app.git"
    assert git(bare, "rev-parse", f"refs/heads/{name}") == git(bare, "rev-parse", "main")
    assert pushed["branch"] == plain_line(name, 255)


async def test_a_push_that_the_server_does_not_take_is_told_with_its_cause(
    api: Api, server: GitServer, tmp_path: Path
) -> None:
    folder = tmp_path / "environment"
    await told(api, setup(server, "public/app.git"))
    await _moved_on(server.root / "public" / "app.git", tmp_path / "other")
    (folder / "workspace" / "README.md").write_text("mine")
    await api.json("POST", "/api/v1/git/commit", {"message": "Mine"})
    status, said = await api.json("POST", "/api/v1/git/push", {})
    assert (status, said["code"]) == (409, "git_rejected")
    assert (await api.json("GET", "/api/v1/git"))[1]["behind"] == 0
    status, fetched = await api.json("POST", "/api/v1/git/fetch")
    assert (status, fetched["ahead"], fetched["behind"]) == (200, 1, 1)
    assert (folder / "workspace" / "README.md").read_text() == "mine"
    hook = folder / "workspace" / ".git" / "hooks" / "pre-push"
    hook.write_text("#!/bin/sh\necho no, says the hook >&2\nexit 1\n")
    hook.chmod(0o755)
    status, said = await api.json("POST", "/api/v1/git/push", {"branch": "other"})
    assert (status, said["code"]) == (409, "git_failed")
    git(folder / "workspace", "remote", "remove", "origin")
    for verb in ("push", "fetch"):
        assert (await api.json("POST", f"/api/v1/git/{verb}", {}))[1]["code"] == "git_no_remote"


async def _moved_on(bare: Path, other: Path) -> None:
    git(bare.parent, "clone", "-q", str(bare), str(other))
    (other / "README.md").write_text("theirs")
    git(other, "commit", "-q", "-am", "Theirs")
    git(other, "push", "-q", "origin", "main")


@pytest.mark.parametrize(
    ("path", "more", "code"),
    [
        ("public/app.git", {"ref": "no-such"}, "git_ref_missing"),
        ("public/app.git", {"ref": "0" * 39 + "1"}, "git_ref_missing"),
        ("public/nothing.git", {}, "git_not_found"),
        ("private/nothing.git", {"token": TOKEN}, "git_not_found"),
        ("public/nothing.git", {"token": TOKEN}, "git_not_found"),
        ("", {"url": "https://no-such-host.invalid/a.git"}, "git_host_unknown"),
        ("", {"url": "http://127.0.0.1:9/a.git"}, "git_refused"),
    ],
)
async def test_a_clone_that_fails_says_why_and_what_to_do(
    api: Api, server: GitServer, path: str, more: dict[str, Any], code: str
) -> None:
    state = await told(api, setup(server, path, **more))
    assert (state.status, state.code) == ("failed", code), state
    assert state.hint
    assert not (await api.json("GET", "/api/v1/files"))[1]["entries"]
    folder = server.root.parent / "environment"
    (folder / "workspace" / "work").write_text("done meanwhile")
    again = await told(api, setup(server, "public/app.git"))
    assert (again.status, again.code) == ("failed", "git_workspace_not_empty")
    assert workspace(folder) == {"work": b"done meanwhile"}


async def test_a_token_is_given_to_its_host_alone_wherever_redirects_lead(
    api: Api, server: GitServer
) -> None:
    async with git_server(server.root) as other:
        server.moved_to = other.url
        state = await told(api, setup(server, "moved/private/app.git", token=TOKEN))
        assert (state.status, state.code) == ("failed", "git_denied")
        assert "redirects to" in state.detail
        assert other.asked == []
        server.moved_to = server.url
        state = await told(api, setup(server, "here/private/app.git", token=TOKEN))
        assert state.status == "done"
        assert server.said


@pytest.mark.parametrize("host", ["127.0.0.1:9", "localhost:9", "10.0.0.1", "169.254.169.254"])
async def test_the_relay_reaches_no_address_that_is_not_public_unless_the_operator_named_it(
    api: Api, server: GitServer, host: str
) -> None:
    secret = {"name": "git", "host": host, "username": USER, "value": TOKEN}
    said = {"url": f"https://{host}/a.git", "credentials": [secret]}
    state = await told(api, said)
    assert (state.status, state.code) == ("failed", "git_refused")
    assert "not public" in state.detail


async def test_the_relay_passes_on_nothing_but_git_and_only_to_who_has_its_token(
    server: GitServer,
) -> None:
    relay = GitRelay(NamedHosts([f"http://{server.host}"]))
    relay.use([GitCredential("git", server.host, USER, TOKEN)])

    async with relay.serving(), aiohttp.ClientSession() as http:
        here = f"http://127.0.0.1:{relay.port}/{server.host}/private/app.git"
        refs = "/info/refs?service=git-upload-pack"
        own = {"Authorization": f"Bearer {relay.token}"}

        async def asked(path: str, headers: dict[str, str], method: str = "GET") -> int:
            async with http.request(method, f"{here}{path}", headers=headers) as answer:
                return answer.status

        assert await asked(refs, own) == 200
        assert await asked(refs, {}) == 403
        batch = {"operation": "upload", "objects": [{"oid": LARGE_ID, "size": len(LARGE)}]}
        async with http.post(f"{here}/info/lfs/objects/batch", json=batch, headers=own) as answer:
            led = await answer.json()
        action = led["objects"][0]["actions"]["upload"]
        assert action["header"] == {"X-Own": "1"}
        link = URL(action["href"])
        assert (link.scheme, link.port) == ("http", relay.port)
        before = len(server.asked)
        for method, forged in (
            ("PUT", link.with_path(link.path.replace(LARGE_ID, "0" * 64))),
            ("PUT", link.with_path(link.path.replace("/-/", "/-/0")[:67])),
            ("PUT", link % {"more": "1"}),
            ("GET", link),
            ("DELETE", link),
        ):
            async with http.request(method, forged, headers=own, data=LARGE) as answer:
                assert answer.status == 403
        assert len(server.asked) == before
        for path in ("", "/info/refs", "/HEAD", "/info/refs?service=git-other", "/api/v4/user"):
            assert await asked(path, own) == 403
        assert await asked("/git-upload-pack", own) == 403
        assert await asked("/info/refs?service=git-upload-pack", own, "DELETE") == 403
        assert await asked("/%2e%2e/info/refs?service=git-upload-pack", own) in {403, 404}
        assert len(server.asked) == before or not server.asked[-1][0].startswith(
            "/private/app.git/."
        )


ESCAPED = 'gänse "füße"'
ANSWER = {"objects": [{"actions": {"download": {"href": "https://git.example/o?x=1/2"}}}]}


def answer_with(authorization: str) -> bytes:
    action = {"href": "https://git.example/o", "header": {"Authorization": authorization}}
    return json.dumps({"objects": [{"actions": {"download": action}}]}).encode()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "no answer"),
        (b"[]", "no answer"),
        (b'{"objects": [1]}', "no answer"),
        (b'{"objects": [{"actions": {"other": {}}}]}', "no answer"),
        (b'{"objects": [{"actions": {"upload": {"href": 1}}}]}', "no answer"),
        (
            b'{"objects": [{"actions": {"upload": {"href": "http://[", "header": {}}}}]}',
            "no answer",
        ),
        (b"[" * 1_000_000, "no answer"),
        (answer_with("Own 1\r\nX-More: 1"), "no answer"),
        (answer_with("a" * 8193), "no answer"),
        (json.dumps(ANSWER | {"_links": f"Basic {TOKEN}"}).encode(), "the secret"),
        (json.dumps(ANSWER | {"_links": f"a {ESCAPED}"}, ensure_ascii=False).encode(), "the sec"),
    ],
)
def test_an_answer_about_large_files_is_passed_on_only_if_it_is_one(
    answer: bytes, told: str
) -> None:
    way = Way("http://127.0.0.1:9/", "git.example", URL("https://git.example"))
    with pytest.raises(ValueError, match=told):
        TransferLinks().led(way, answer, {TOKEN, ESCAPED})


def test_actions_that_are_null_are_absent() -> None:
    way = Way("http://127.0.0.1:9/", "git.example", URL("https://git.example"))
    upload = {"href": "https://other.example/o", "header": {}}
    answer = {"objects": [{"actions": None}, {"actions": {"upload": upload, "verify": None}}]}
    led = json.loads(TransferLinks().led(way, json.dumps(answer).encode(), {TOKEN}))
    assert led == {"objects": [{"actions": {}}, {"actions": {"upload": upload}}]}


def test_what_a_host_gives_out_for_one_transfer_stays_in_the_relay() -> None:
    way = Way("http://127.0.0.1:9/", "git.example", URL("https://git.example"))
    links, seal = TransferLinks(), ""
    for href, is_own in (
        ("https://user:pass@git.example/o?x=1/2#f", True),
        ("https://git.example.evil/o", False),
        ("http://git.example/o", False),
    ):
        action = {"href": href, "header": {"authorization": "Own 1", "X-Its": f"a {TOKEN} b"}}
        told = json.dumps({"objects": [{"actions": {"download": action}}, {"error": {}}]})
        found = json.loads(links.led(way, told.encode(), {TOKEN}))["objects"][0]["actions"]
        assert found["download"]["header"] == ({} if is_own else {"authorization": "Own 1"})
        led = found["download"]["href"]
        if is_own:
            seal, _, path = led.removeprefix("http://127.0.0.1:9/-/").partition("/")
            assert path == "git.example/o?x=1/2"
            assert links.is_sealed(seal, "GET", "git.example", "/o?x=1/2")
            assert not links.is_sealed(seal, "PUT", "git.example", "/o?x=1/2")
            assert links.own(seal) == "Own 1"
        else:
            assert led == href
    for number in range(4096):  # only so many are kept
        links.link(way, "GET", URL(f"https://git.example/{number}"), "Own 2")
    assert links.own(seal) is None
    assert links.own(links.seal("GET", "git.example", "/0")) == "Own 2"
    links.link(way, "GET", URL("https://git.example/0"), None)
    assert links.own(links.seal("GET", "git.example", "/0")) is None


async def test_what_a_host_gives_out_for_a_transfer_is_sent_to_that_host_alone(
    server: GitServer,
) -> None:
    relay = GitRelay(NamedHosts([f"http://{server.host}"]))
    relay.use([GitCredential("git", server.host, USER, TOKEN)])
    server.is_open, server.gives, server.redirects = True, "Own 1", True
    async with relay.serving(), aiohttp.ClientSession() as http:
        here = f"http://127.0.0.1:{relay.port}/{server.host}/private/app.git"
        own = {"Authorization": f"Bearer {relay.token}"}
        batch = {"operation": "upload", "objects": [{"oid": LARGE_ID, "size": len(LARGE)}]}
        async with http.post(f"{here}/info/lfs/objects/batch", json=batch, headers=own) as answer:
            action = (await answer.json())["objects"][0]["actions"]["upload"]
        assert action["header"] == {"X-Own": "1"}
        where = action["href"]
        for objects_at in (f"{server.url}/private/more", "https://elsewhere.example"):
            server.objects_at = objects_at
            async with http.put(where, headers=own, allow_redirects=False) as answer:
                assert answer.status == 302
                where = answer.headers["Location"]
            assert server.asked[-1][1] == "Own 1"
        assert where == f"https://elsewhere.example/private/more/private/objects/{LARGE_ID}"


async def test_a_host_that_compresses_where_it_may_is_read_about_large_files() -> None:
    told = {"objects": [{"oid": LARGE_ID, "error": {"code": 404, "message": "none"}}]}

    async def answer(_: web.Request) -> web.Response:
        said = web.json_response(told)
        said.enable_compression()  # with what the request allows
        return said

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    async with serve(app) as url:
        host = f"127.0.0.1:{URL(url).port}"
        relay = GitRelay(NamedHosts([f"http://{host}"]))
        relay.use([GitCredential("git", host, USER, TOKEN)])
        async with relay.serving(), aiohttp.ClientSession() as http:
            here = f"http://127.0.0.1:{relay.port}/{host}/a.git/info/lfs/objects/batch"
            own = {"Authorization": f"Bearer {relay.token}", "Accept-Encoding": "gzip"}
            async with http.post(here, json={}, headers=own) as led:
                assert (led.status, await led.json()) == (200, told)


async def test_a_proxy_may_have_any_address_and_what_is_asked_of_it_may_not() -> None:
    async def answer(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.Response(text="from the host")

    asked: list[str] = []
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with serve(app) as address, aiohttp.ClientSession() as http:
        by_name = address.replace("127.0.0.1", "localhost")
        plain, private = "git.example.invalid", "localhost:9"
        relay = GitRelay(NamedHosts([f"http://{plain}"]), {"ALL_PROXY": by_name})
        relay.use([GitCredential("git", host, USER, TOKEN) for host in (plain, private)])
        own = {"Authorization": f"Bearer {relay.token}"}
        async with relay.serving():
            for host, status in ((plain, 200), (private, 403)):
                url = f"http://127.0.0.1:{relay.port}/{host}/a.git/info/refs"
                query = {"service": "git-upload-pack"}
                async with http.get(url, params=query, headers=own) as told:
                    assert told.status == status, await told.text()
    assert relay._resolver._threads._shutdown
    assert asked == [f"http://{plain}/a.git/info/refs?service=git-upload-pack"]


async def test_a_host_that_says_nothing_is_given_up(
    tmp_path: Path, server: GitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylag.agentd.git.relay.SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(clone, "SILENCE_SECONDS", 1)
    folder = tmp_path / "environment"
    async with environment(folder, server):
        volume = Volume(folder)
        relay = GitRelay(NamedHosts([f"http://{server.host}"]))
        folders = agent_setup(AgentdSettings(folder), volume)
        execution = Execution(folder / "execd")
        service = GitService(execution, folders, relay, tmp_path / "note")
        running = asyncio.create_task(service.run(), name="git")
        try:
            for credentials in ((), (GitCredential("git", server.host, USER, TOKEN),)):
                await service.set_up(
                    GitSetup(f"{server.url}/hang/app.git", credentials=credentials)
                )
                await eventually(lambda: service.state.status == "failed", 60)
                assert service.state.code == "git_timeout", service.state
        finally:
            running.cancel()
            await asyncio.wait({running})


class SlowCommands:
    """Runs git on a repository with one large file, but for the command that never ends."""

    def __init__(self, hangs: str) -> None:
        self._hangs = hangs

    async def run(self, *args: str, seconds: float = 60.0, **_: Any) -> GitAnswer:
        if self._hangs in " ".join(args):
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.Event().wait()
            except TimeoutError as error:
                raise failure("git_timeout", "git took too long.") from error
        return GitAnswer(0, b"a.big\0", whole=True, words="")

    must = run


@pytest.mark.parametrize(
    ("hangs", "ends", "words"),
    [
        (" clone ", ("failed", "git_timeout"), "Cloning took more than"),
        ("lfs pull", ("done", ""), "git-lfs said: git took too long."),
    ],
)
async def test_a_clone_over_its_time_is_told_so_and_one_whose_large_files_are_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str, ends: tuple[str, str], words: str
) -> None:
    monkeypatch.setattr(clone, "CLONE_SECONDS", 0.05)
    files = AsyncMock()
    files.show.side_effect = RequestError("file_not_found", "It is not there.")
    files.page.return_value.entries = []
    slow = clone.Clone(SlowCommands(hangs), files, tmp_path / "note")  # type: ignore[arg-type]
    await slow.run(GitSetup("https://git.example/a.git"))
    assert (slow.state.status, slow.state.code) == ends
    assert words in slow.state.detail
    assert (tmp_path / "note").exists() == (ends[0] == "done")


async def test_a_clone_is_on_the_disk_before_it_counts_as_whole(tmp_path: Path) -> None:
    files = AsyncMock()
    files.show.side_effect = RequestError("file_not_found", "It is not there.")
    files.page.return_value.entries = []
    files.sync.side_effect = RequestError("files_failed", "The disk is broken.")
    one = clone.Clone(SlowCommands("nothing"), files, tmp_path / "note")  # type: ignore[arg-type]
    await one.run(GitSetup("https://git.example/a.git"))
    assert one.state.status == "failed"
    files.move.assert_not_called()
    assert not (tmp_path / "note").exists()


async def test_a_kill_in_the_middle_leaves_nothing_half_cloned(
    tmp_path: Path, server: GitServer
) -> None:
    folder = tmp_path / "environment"
    server.held.clear()
    async with environment(folder, server) as api:
        said = setup(server, "public/app.git")
        status, found = await api.json("PUT", "/api/v1/git/setup", said)
        assert (status, found["status"]) == (200, "cloning")
        await eventually(lambda: len(server.asked) > 1, 30)
    assert workspace(folder) == {}
    server.held.set()
    async with environment(folder, server) as api:
        assert (await told(api, said)).status == "done"
    assert workspace(folder) == BYTES


@pytest.mark.parametrize("moved", [0, 1, 3])
async def test_a_kill_while_it_is_moved_in_is_gone_on_with(
    tmp_path: Path, server: GitServer, moved: int
) -> None:
    folder = tmp_path / "environment"
    whole = folder / "workspace" / ".greylag-00000000c104e000.part" / "whole"
    whole.parent.mkdir(parents=True)
    git(tmp_path, "clone", "-q", str(server.root / "public" / "app.git"), str(whole))
    for path in sorted(whole.iterdir())[:moved]:
        path.rename(folder / "workspace" / path.name)
    async with environment(folder, server) as api:
        assert (await told(api, setup(server, "public/app.git"))).status == "done"
        assert (await api.json("GET", "/api/v1/git"))[1]["changed"] == 0
    assert workspace(folder) == BYTES
    assert not server.asked
