"""The serverless entry: assembled by the first request, once for each event loop."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from starlette.types import Message
from tests.e2e.serverless_host import ENTRY, imported, is_taken_for_asgi
from tests.store import mongo_servers
from tests.web.server import settings

from greylag.config import Settings
from greylag.serverless import Serverless

TOKEN = "a-token-of-many-letters"
NOBODY = "mongodb://user:s3cret@127.0.0.1:1/?serverMonitoringMode=poll"


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
async def good(tmp_path: Path) -> AsyncIterator[Settings]:
    async with mongo_servers.database(mongo_servers.uri()) as name:
        yield chosen(tmp_path, MONGODB_URI=mongo_servers.uri(), MONGODB_DB=name)


def chosen(folder: Path, **values: Any) -> Settings:
    given = {"token": TOKEN, "sandbox": "none", "data": folder / "none"}
    # Only what never answers is given up soon: one that does may be slow on a busy machine.
    patience = {"mongodb_timeout": 0.3 if values.get("MONGODB_URI") == NOBODY else 60}
    return settings(**{**given, **patience, **values})


class Counted:
    """Settings that are given out, and how often they were asked for."""

    def __init__(self, found: Settings) -> None:
        self.found = found
        self.asked = 0

    def __call__(self) -> Settings:
        self.asked += 1
        return self.found


async def get(
    app: Callable[..., Any], path: str, token: str | None = TOKEN
) -> tuple[int, dict[bytes, bytes], Any]:
    """Call ``app`` as a host without lifespan messages does; return status, headers and JSON."""
    sent: list[Message] = []
    headers = [(b"host", b"localhost")]
    headers += [(b"authorization", f"Bearer {token}".encode())] if token else []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
        "headers": headers,
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body)


async def lifespan(app: Serverless, during: Callable[[], Any]) -> list[str]:
    """Send the lifespan messages around ``during``; return what was answered."""
    answers: list[str] = []
    messages: asyncio.Queue[Message] = asyncio.Queue()

    async def send(message: Message) -> None:
        answers.append(message["type"])

    running = asyncio.create_task(app({"type": "lifespan"}, messages.get, send), name="lifespan")
    messages.put_nowait({"type": "lifespan.startup"})
    await during()
    messages.put_nowait({"type": "lifespan.shutdown"})
    await running
    return answers


async def test_nothing_is_read_or_opened_before_the_first_request_and_all_of_it_once(
    good: Settings,
) -> None:
    read = Counted(good)
    app = Serverless(read)

    async def use() -> None:
        assert read.asked == 0
        answers = await asyncio.gather(*(get(app, "/readyz") for _ in range(5)))
        assert {status for status, _, _ in answers} == {200}
        assert read.asked == 1

    answers = await lifespan(app, use)
    assert answers == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert not good.data.exists()
    # A request after the shutdown is a new beginning.
    await lifespan(app, lambda: get(app, "/readyz"))
    assert read.asked == 2


async def test_the_token_is_needed(good: Settings) -> None:
    app = Serverless(Counted(good))

    async def use() -> None:
        assert (await get(app, "/api/users", token=None))[0] == 401
        assert (await get(app, "/api/users", token="another-token-of-letters"))[0] == 401
        assert (await get(app, "/api/users"))[0] == 200

    await lifespan(app, use)


async def test_it_opens_the_store_without_making_indexes(good: Settings) -> None:
    app = Serverless(Counted(good))
    await lifespan(app, lambda: get(app, "/api/users/me/projects"))
    async with mongo_servers.Client(mongo_servers.uri()) as client:
        assert "projects" not in await client[good.mongodb_db].list_collection_names()


def test_a_new_event_loop_gets_a_new_assembly(tmp_path: Path) -> None:
    name = "greylag_test_loops"
    read = Counted(chosen(tmp_path, MONGODB_URI=mongo_servers.uri(), MONGODB_DB=name))
    app = Serverless(read)

    async def two_requests() -> list[int]:
        return [(await get(app, "/readyz"))[0] for _ in range(2)]

    for times in (1, 2, 3):
        assert asyncio.run(two_requests()) == [200, 200]
        assert read.asked == times
        assert len(app._sites) == 1


async def test_what_could_not_be_assembled_is_said_and_tried_again(
    good: Settings, tmp_path: Path
) -> None:
    read = Counted(chosen(tmp_path, MONGODB_URI=NOBODY))
    app = Serverless(read)

    async def use() -> None:
        answers = await asyncio.gather(*(get(app, "/readyz") for _ in range(5)))
        for status, headers, problem in answers:
            assert (status, problem["code"]) == (503, "store_unavailable")
            assert headers[b"content-type"] == b"application/problem+json"
            assert int(headers[b"retry-after"]) > 0
            assert headers[b"x-request-id"].decode() == problem["request_id"]
            assert "s3cret" not in json.dumps(problem)
        # Those who waited for one try share what came of it.
        assert read.asked <= 2
        read.found = good
        assert (await get(app, "/readyz"))[0] == 200

    await lifespan(app, use)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"token": None, "MONGODB_URI": NOBODY}, "GREYLAG_TOKEN"),
        ({}, "MONGODB_URI"),
        ({"MONGODB_URI": "http://user:s3cret@host/"}, "MONGODB_URI"),
    ],
)
async def test_a_wrong_setting_is_named_and_its_secret_is_not(
    tmp_path: Path, wrong: dict[str, Any], name: str
) -> None:
    status, _, problem = await get(Serverless(Counted(chosen(tmp_path, **wrong))), "/")
    assert (status, problem["code"]) == (500, "config_error")
    assert name in problem["detail"]
    assert "s3cret" not in json.dumps(problem)


async def test_a_fault_is_not_told_to_anybody() -> None:
    def broken() -> Settings:
        raise RuntimeError("s3cret")

    status, _, problem = await get(Serverless(broken), "/")
    assert (status, problem["code"]) == (500, "internal_error")
    assert "s3cret" not in json.dumps(problem)


def test_the_entry_is_what_the_host_looks_for_and_its_limits_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GREYLAG_ALLOWED_HOSTS", "greylag.example.com")
    monkeypatch.setenv("VERCEL_URL", "greylag-abc.vercel.app")
    monkeypatch.setenv("GREYLAG_STREAM_SECONDS", "x")  # restored at the end
    monkeypatch.delenv("GREYLAG_STREAM_SECONDS")
    assert is_taken_for_asgi(imported())
    found = settings()
    assert found.allowed_hosts == "greylag.example.com,greylag-abc.vercel.app"
    host = json.loads((ENTRY.parents[1] / "vercel.json").read_text("utf-8"))
    (function,) = host["functions"].values()
    assert found.stream_seconds is not None
    assert found.stream_seconds + 20 <= function["maxDuration"]
