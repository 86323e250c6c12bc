"""The relay between an HTTP client (as goose is one) and a provider on a real port."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from greylag.agentd.agent.types import ModelProvider
from greylag.agentd.model.relay import MOST_HELD, ModelRelay

Serve = Callable[[web.Application], Any]


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def headers(relay: ModelRelay, session: str = "s1") -> dict[str, str]:
    return {"Authorization": f"Bearer {relay.token}", "agent-session-id": session}


def chat(text: str) -> dict[str, Any]:
    return {"stream": True, "messages": [{"role": "user", "content": text}]}


async def test_a_call_without_the_relays_token_is_refused(client: aiohttp.ClientSession) -> None:
    relay = ModelRelay(None)
    async with relay.serving():
        for token in ({}, {"Authorization": "Bearer wrong"}):
            async with client.get(f"{relay.url}/v1/models", headers=token) as answer:
                assert answer.status == 401


async def test_the_provider_sees_its_key_and_neither_the_token_nor_hop_by_hop_headers(
    client: aiohttp.ClientSession, serve_app: Serve
) -> None:
    seen: dict[str, Any] = {}

    async def provider(request: web.Request) -> web.Response:
        seen.update(path=request.path_qs, body=await request.read(), headers=request.headers)
        return web.json_response({"ok": True}, headers={"x-kept": "1"})

    app = web.Application()
    app.router.add_route("*", "/{p:.*}", provider)
    async with serve_app(app) as url:
        relay = ModelRelay(ModelProvider(f"{url}/v1", key="real"))
        async with (
            relay.serving(),
            client.post(
                f"{relay.url}/v1/responses?q=a%20b",
                data=b"\x00body",
                headers=headers(relay) | {"Connection": "keep-alive, x-hop", "x-hop": "1"},
            ) as answer,
        ):
            assert await answer.json() == {"ok": True}
            assert answer.headers["x-kept"] == "1"
    assert (seen["path"], seen["body"]) == ("/v1/responses?q=a%20b", b"\x00body")
    assert seen["headers"]["Authorization"] == "Bearer real"
    assert "x-hop" not in seen["headers"]
    assert "agent-session-id" not in seen["headers"]


async def test_an_answer_is_passed_on_while_it_is_made(
    client: aiohttp.ClientSession, serve_app: Serve
) -> None:
    go_on = asyncio.Event()

    async def provider(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await go_on.wait()
        await response.write(b"second")
        return response

    app = web.Application()
    app.router.add_post("/v1/responses", provider)
    async with serve_app(app) as url:
        relay = ModelRelay(ModelProvider(url))
        async with (
            relay.serving(),
            client.post(f"{relay.url}/v1/responses", headers=headers(relay)) as answer,
        ):
            assert await answer.content.readany() == b"first"
            go_on.set()
            assert await answer.read() == b"second"


class Provider:
    """Answers each call once its test says so; what of its body came before is told at once."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[int] = asyncio.Queue()
        self.begin, self.end = asyncio.Event(), asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.came.put_nowait(len(await request.read()))
        await self.begin.wait()
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        await self.end.wait()
        return response

    @property
    def app(self) -> web.Application:
        app = web.Application(client_max_size=1024**3)
        app.router.add_post("/v1/responses", self.answer)
        return app


@asynccontextmanager
async def relayed(serve_app: Serve, **relay: Any) -> AsyncIterator[tuple[ModelRelay, Provider]]:
    provider = Provider()
    async with serve_app(provider.app) as url:
        made = ModelRelay(ModelProvider(url), **relay)
        async with made.serving(), asyncio.timeout(30):
            yield made, provider
            provider.begin.set()
            provider.end.set()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the relay tells nobody of what it reads
        await asyncio.sleep(0.01)


async def test_what_is_only_announced_takes_no_room(
    client: aiohttp.ClientSession, serve_app: Serve
) -> None:
    async with relayed(serve_app) as (relay, provider):
        _, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        announced = {**headers(relay), "Host": "x", "Content-Length": str(MOST_HELD)}
        lines = ["POST /v1/responses HTTP/1.1", *map(": ".join, announced.items()), "", ""]
        writer.write("\r\n".join(lines).encode())
        await until(lambda: len(relay._calls) == 1)
        provider.begin.set()
        provider.end.set()
        async with client.post(f"{relay.url}/v1/responses", headers=headers(relay), data=b"{}"):
            assert await provider.came.get() == 2
        assert relay._bodies.held == 0
        writer.close()
        await writer.wait_closed()


async def test_a_body_is_held_until_the_provider_answers(
    client: aiohttp.ClientSession, serve_app: Serve
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a" * 400
        yield b"b" * 200

    for body in ({"data": bytes(600)}, {"data": pieces()}):
        async with relayed(serve_app) as (relay, provider):
            url = f"{relay.url}/v1/responses"
            asking = asyncio.ensure_future(
                client.post(url, headers=headers(relay), **body).__aenter__()
            )
            assert await provider.came.get() == 600
            assert relay._bodies.held == 600
            provider.begin.set()
            answer = await asking
            assert await answer.content.readany() == b"begun"
            assert relay._bodies.held == 0
            provider.end.set()
            await answer.read()


async def test_a_call_without_room_is_told_of_and_the_oldest_always_goes_on(
    client: aiohttp.ClientSession, serve_app: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylag.agentd.model.relay.MOST_HELD", 1000)
    monkeypatch.setattr("greylag.agentd.model.relay.NOTICE_AFTER", (0.05,))
    told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def tell(session: str, words: str) -> None:
        told.put_nowait((session, words))

    rest = asyncio.Event()

    async def large() -> AsyncIterator[bytes]:
        yield bytes(900)
        await rest.wait()
        yield bytes(10_000)

    async with relayed(serve_app, tell=tell) as (relay, provider):
        relay.begin_turn("s2")
        url = f"{relay.url}/v1/responses"
        async with asyncio.TaskGroup() as calls:

            async def call(session: str, data: Any) -> None:
                sent = headers(relay, session)
                async with client.post(url, headers=sent, data=data) as answer:
                    assert answer.status == 200

            calls.create_task(call("s1", large()))
            await until(lambda: relay._bodies.held == 900)
            calls.create_task(call("s2", bytes(200)))
            session, words = await told.get()
            assert session == "s2"
            assert "until other model calls leave room" in words
            rest.set()
            assert await provider.came.get() == 10_900
            provider.begin.set()  # it is held until then, and the other one waits
            assert await provider.came.get() == 200
            provider.end.set()
        assert relay._bodies.held == 0


async def test_a_call_that_finds_no_room_in_time_fails_its_turn_in_words(
    client: aiohttp.ClientSession, serve_app: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylag.agentd.model.relay.MOST_HELD", 100)
    async with relayed(serve_app, idle_seconds=0.2) as (relay, provider):
        relay.begin_turn("s2")
        url, stop = f"{relay.url}/v1/responses", asyncio.Event()

        async def never_whole() -> AsyncIterator[bytes]:
            yield bytes(100)
            await stop.wait()

        hanging = asyncio.ensure_future(
            client.post(url, headers=headers(relay), data=never_whole()).__aenter__()
        )
        await until(lambda: relay._bodies.held == 100)
        async with client.post(url, headers=headers(relay, "s2"), data=b"{}") as answer:
            assert answer.status == 503
        failure = relay.failure("s2")
        assert failure is not None
        assert failure.final
        assert "no room in memory" in failure.message
        assert provider.came.empty()
        hanging.cancel()
        await asyncio.wait({hanging})
        await until(lambda: relay._bodies.held == 0)


async def test_a_body_that_does_not_come_and_one_that_is_too_large_are_refused(
    client: aiohttp.ClientSession, serve_app: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylag.agentd.model.relay._BODY_SECONDS", 0.1)
    monkeypatch.setattr("greylag.agentd.model.scripted.BODY_LIMIT", 1000)
    never = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await never.wait()

    async with relayed(serve_app) as (relay, provider):
        url = f"{relay.url}/v1/responses"
        for data, status in ((slow(), 408), (bytes(1001), 413)):
            async with client.post(url, headers=headers(relay), data=data) as answer:
                assert answer.status == status
        assert provider.came.empty()
        assert relay._bodies.held == 0


async def test_a_compressed_call_stays_so(client: aiohttp.ClientSession, serve_app: Serve) -> None:
    async def provider(request: web.Request) -> web.Response:
        return web.json_response([request.headers.get("Content-Encoding"), await request.text()])

    app = web.Application()
    app.router.add_post("/v1/responses", provider)
    async with serve_app(app) as url:
        relay = ModelRelay(ModelProvider(url))
        async with (
            relay.serving(),
            client.post(
                f"{relay.url}/v1/responses", headers=headers(relay), data=b"abc", compress="gzip"
            ) as answer,
        ):
            assert await answer.json() == ["gzip", "abc"]


async def test_a_client_that_hangs_up_ends_the_call_at_the_provider(
    client: aiohttp.ClientSession, serve_app: Serve
) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def provider(_request: web.Request) -> web.Response:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        raise AssertionError

    app = web.Application()
    app.router.add_post("/v1/responses", provider)
    async with serve_app(app) as url:
        relay = ModelRelay(ModelProvider(url))
        async with relay.serving():
            call = asyncio.create_task(
                client.post(f"{relay.url}/v1/responses", headers=headers(relay)).__aenter__()
            )
            await asked.wait()
            call.cancel()
            async with asyncio.timeout(5):
                await left.wait()


async def test_a_stopped_turn_is_answered_at_once_and_until_the_next_begins(
    client: aiohttp.ClientSession,
) -> None:
    relay = ModelRelay(None)

    async def ask(text: str, session: str) -> bytes:
        url = f"{relay.url}/v1/chat/completions"
        async with client.post(url, json=chat(text), headers=headers(relay, session)) as answer:
            assert answer.status == 200
            return await answer.read()

    async with relay.serving(), asyncio.timeout(10):
        hanging = asyncio.create_task(ask("[[hang]]", "s1"))
        other = asyncio.create_task(ask("[[hang]]", "s2"))
        while len(relay._calls) < 2:  # noqa: ASYNC110 - the relay tells nobody of a new call
            await asyncio.sleep(0.01)
        relay.stop_turn("s1")
        assert b"[DONE]" in await hanging
        assert b"hello" not in await ask("[[text hello]]", "s1")
        assert not other.done()
        relay.begin_turn("s1")
        assert b"hello" in await ask("[[text hello]]", "s1")
        relay.stop_turn("s2")
        await other


async def test_a_silent_provider_is_given_up(
    client: aiohttp.ClientSession, fake_provider: ModelProvider
) -> None:
    relay = ModelRelay(fake_provider, idle_seconds=0.2, retry_seconds=())
    url = "/v1/chat/completions"
    relay.begin_turn("s1")
    async with relay.serving():
        async with client.post(
            relay.url + url, json=chat("[[hang]]"), headers=headers(relay)
        ) as answer:
            assert answer.status == 504
            assert "said nothing" in (await answer.json())["error"]["message"]
        relay.begin_turn("s1")
        async with client.post(
            relay.url + url,
            json=chat("[[stall after=1]] [[text one two]]"),
            headers=headers(relay),
        ) as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        failure = relay.failure("s1")
        assert failure is not None
        assert failure.status is None


async def test_nothing_is_kept_of_a_session_that_a_tool_made_up(
    client: aiohttp.ClientSession, unused_url: str
) -> None:
    relay = ModelRelay(ModelProvider(unused_url), retry_seconds=(60.0,))
    async with relay.serving(), asyncio.timeout(10):
        url = f"{relay.url}/v1/chat/completions"
        async with client.post(url, json=chat("x"), headers=headers(relay, "made up")) as answer:
            assert answer.status == 502  # and is not held back: no turn of ours waits for it
    assert relay.failure("made up") is None


async def test_an_unreachable_provider_gives_502_in_its_own_error_shape(
    client: aiohttp.ClientSession, unused_url: str
) -> None:
    relay = ModelRelay(ModelProvider(unused_url, key="real"), retry_seconds=())
    async with (
        relay.serving(),
        client.post(
            f"{relay.url}/v1/chat/completions", json=chat("x"), headers=headers(relay)
        ) as answer,
    ):
        assert answer.status == 502
        error = (await answer.json())["error"]
    assert unused_url.removeprefix("http://") in error["message"]
    assert "real" not in error["message"]


async def test_nothing_but_model_calls_is_passed_on_with_the_key(
    client: aiohttp.ClientSession, serve_app: Serve
) -> None:
    passed: list[str] = []

    async def provider(request: web.Request) -> web.Response:
        passed.append(f"{request.method} {request.raw_path}")
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{p:.*}", provider)
    refused = [
        ("GET", "/v1/files"),
        ("DELETE", "/v1/models/mine"),
        ("GET", "/v1/models/../files"),
        ("GET", "/v1/models/..%2ffiles"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions/..%2f..%2ffiles"),
        ("GET", "/v1/organization/admin_api_keys"),
    ]
    async with serve_app(app) as url:
        relay = ModelRelay(ModelProvider(url, key="real"))
        async with relay.serving():
            for method, path in [*refused, ("GET", "/v1/models"), ("GET", "/v1/models/m-1:a")]:
                target = URL(relay.url + path, encoded=True)
                async with client.request(method, target, headers=headers(relay)) as answer:
                    assert answer.status == (403 if (method, path) in refused else 200), path
    assert passed == ["GET /v1/models", "GET /v1/models/m-1:a"]


async def test_a_netrc_of_the_agent_changes_nothing(
    client: aiohttp.ClientSession,
    serve_app: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    async def provider(request: web.Request) -> web.Response:
        seen.append(request.headers["Authorization"])
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/v1/models", provider)
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login someone password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    async with serve_app(app) as url:
        relay = ModelRelay(ModelProvider(url, key="real"))
        async with relay.serving():
            models = f"{relay.url}/v1/models"
            async with client.get(models, headers=headers(relay)) as answer:
                assert answer.status == 200
    assert seen == ["Bearer real"]
