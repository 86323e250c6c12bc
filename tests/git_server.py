"""A git server over http: git's own ``http-backend`` behind a small server with Basic auth.

Below ``/private/`` a password is asked for; ``/moved/`` redirects to a place of choice, ``/here/``
to the same repository on this host, and below ``/hang/`` nothing is ever answered. Large files (Git
LFS) are kept as well, below ``/private/objects/``; as many hosts do, it tells clients to send there
what they came with as Authorization.
"""

import asyncio
import base64
import hashlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

USER, TOKEN = "someone", "glsecret-5f0b7c1d9e"
_READ = 64 * 1024
_IDENTITY = ("-c", "user.name=Test", "-c", "user.email=test@example.org")


def git(folder: Path, *args: str) -> str:
    """Run git in a folder, and return what it says."""
    command = ["git", *_IDENTITY, "-C", str(folder), *args]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own arguments
    return done.stdout.strip()


def make_repository(path: Path, files: dict[str, str | bytes]) -> str:
    """Make a bare repository of one commit on ``main``, with a tag; return the commit's id."""
    source = path.parent / f"{path.name}.source"
    source.mkdir(parents=True)
    git(source, "init", "-q", "-b", "main")
    for name, content in files.items():
        file = source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    git(source, "add", "-A")
    git(source, "commit", "-q", "-m", "Begin")
    git(source, "tag", "v1")
    git(source.parent, "clone", "-q", "--bare", str(source), str(path))
    git(path, "config", "http.receivepack", "true")
    git(path, "config", "uploadpack.allowAnySHA1InWant", "true")
    return git(path, "rev-parse", "main")


def pointer(content: bytes) -> bytes:
    """Return what a repository holds in place of a large file."""
    oid = hashlib.sha256(content).hexdigest()
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{oid}")
    return "\n".join((*lines, f"size {len(content)}", "")).encode()


@dataclass
class GitServer:
    """A running server.

    Attributes:
        root: where its repositories are.
        host: its name and port.
        asked: the path and the Authorization of each request.
        moved_to: where ``/moved/`` leads.
        held: while it is clear, packs are not sent.
        objects: large files, by their ids.
        objects_at: where clients are led for them, if that is elsewhere.
        redirects: whether they are led there by a redirect, from here.
        is_open: whether nothing asks for a password.
        gives: an Authorization that it gives out for large files; "": what clients came with.
    """

    root: Path
    host: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    moved_to: str = ""
    held: asyncio.Event = field(default_factory=asyncio.Event)
    objects: dict[str, bytes] = field(default_factory=dict)
    objects_at: str = ""
    redirects: bool = False
    is_open: bool = False
    gives: str = ""

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}"

    @property
    def said(self) -> list[str]:
        """What requests came with as Authorization, but for none."""
        return [said for _, said in self.asked if said]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        said = request.headers.get("Authorization", "")
        self.asked.append((request.path, said))
        kind = request.path.split("/")[1]
        if kind == "hang":
            await asyncio.Event().wait()
        if kind in {"moved", "here"}:
            rest = request.raw_path.removeprefix(f"/{kind}")
            return web.Response(status=301, headers={"Location": self.moved_to + rest})
        expected = base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
        if kind == "private" and not self.is_open and said != f"Basic {expected}":
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="git"'})
        if request.path.endswith("/info/lfs/objects/batch"):
            return web.json_response(self._led(await request.json(), said))
        if "/objects/" in request.path and self.redirects:
            return web.Response(status=302, headers={"Location": self.objects_at + request.path})
        if "/objects/" in request.path:
            return await self._object(request)
        if request.method == "POST":
            await self.held.wait()
        return await self._backend(request)

    def _led(self, asked: dict[str, Any], said: str) -> dict[str, Any]:
        """Answer a batch of objects: where each is had, or given."""
        ways = {"download": ("download",), "upload": ("upload", "verify")}[asked["operation"]]
        away = self.objects_at and not self.redirects
        where = (self.objects_at if away else self.url) + "/private/objects/"
        told = []
        for one in asked["objects"]:
            oid = one["oid"]
            header = {"Authorization": self.gives or said, "X-Own": "1"}
            action = {"href": f"{where}{oid}", "header": header}
            missing = ways == ("download",) and oid not in self.objects
            told.append(
                {**one, "error": {"code": 404, "message": "no such object"}}
                if missing
                else {**one, "actions": dict.fromkeys(ways, action)}
            )
        return {"transfer": "basic", "objects": told}

    async def _object(self, request: web.Request) -> web.Response:
        oid = request.path.rpartition("/")[2]
        assert request.headers["X-Own"] == "1"
        if request.method == "PUT":
            self.objects[oid] = await request.read()
            assert hashlib.sha256(self.objects[oid]).hexdigest() == oid
        if request.method == "GET":
            return web.Response(body=self.objects[oid])
        return web.Response(status=200 if oid in self.objects else 404)

    async def _backend(self, request: web.Request) -> web.StreamResponse:
        names = {"Content-Encoding": "HTTP_CONTENT_ENCODING", "Git-Protocol": "HTTP_GIT_PROTOCOL"}
        given = {names[name]: request.headers[name] for name in names if name in request.headers}
        body = await request.read()
        # In a thread: whoever asked may go away meanwhile, and the program ends all the same.
        done = await asyncio.to_thread(
            subprocess.run,
            ("git", "http-backend"),
            input=body,
            capture_output=True,
            check=False,
            env={
                "PATH": "/usr/bin:/bin",
                "GIT_PROJECT_ROOT": str(self.root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": request.path,
                "QUERY_STRING": request.query_string,
                "REQUEST_METHOD": request.method,
                "CONTENT_TYPE": request.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                **given,
            },
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(lines.pop("Status", "200").split()[0])
        return web.Response(status=status, headers=lines, body=content)


@asynccontextmanager
async def git_server(root: Path) -> AsyncIterator[GitServer]:
    """Run a server over the repositories in a folder."""
    server = GitServer(root)
    server.held.set()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(
        app, handler_cancellation=True, shutdown_timeout=0.1, auto_decompress=False
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.host = "{}:{}".format(*runner.addresses[0])
        yield server
    finally:
        with suppress(TimeoutError):
            await runner.cleanup()
