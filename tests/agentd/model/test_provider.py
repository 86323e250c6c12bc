"""What the relay makes of a provider's address, the way there and its answers."""

import asyncio
import base64
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from tests.cluster.kubernetes.kubeconfigs import certificate

from greylag.agentd.agent.types import ModelProvider
from greylag.agentd.model.provider import problem_of, target_of
from greylag.agentd.model.relay import ModelRelay

Serve = Callable[[web.Application], Any]
Handler = Callable[[web.Request], Any]
CHAT = "/v1/chat/completions"


def provider_app(handler: Handler) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{p:.*}", handler)
    return app


class Agent:
    """Asks a relay as goose does, in the turn of one session."""

    def __init__(self, relay: ModelRelay) -> None:
        self.relay = relay
        relay.begin_turn("s1")

    async def ask(self, path: str = CHAT) -> tuple[int, str]:
        """Return status and body."""
        headers = {"Authorization": f"Bearer {self.relay.token}", "agent-session-id": "s1"}
        async with (
            aiohttp.ClientSession(max_field_size=65536) as session,
            session.post(self.relay.url + path, json={"q": 1}, headers=headers) as answer,
        ):
            return answer.status, await answer.text()

    @property
    def words(self) -> str:
        """Return why the last call failed."""
        failure = self.relay.failure("s1")
        assert failure is not None
        return failure.message


@asynccontextmanager
async def asking(provider: ModelProvider, **relay: Any) -> AsyncIterator[Agent]:
    made = ModelRelay(provider, **relay)
    async with made.serving(), asyncio.timeout(30):
        yield Agent(made)


@pytest.mark.parametrize(
    ("base", "target"),
    [
        ("https://api.test", "https://api.test/v1/chat/completions?a=b"),
        ("https://api.test/v1", "https://api.test/v1/chat/completions?a=b"),
        ("https://api.test/api/paas/v4", "https://api.test/api/paas/v4/chat/completions?a=b"),
        ("http://h:1/v1beta/openai/", "http://h:1/v1beta/openai/chat/completions?a=b"),
        ("https://h/d/x?api-version=7", "https://h/d/x/chat/completions?api-version=7&a=b"),
        ("http://[::1]:9/v1", "http://[::1]:9/v1/chat/completions?a=b"),
    ],
)
def test_an_address_without_a_path_means_its_v1_and_another_is_taken_as_it_stands(
    base: str, target: str
) -> None:
    assert str(target_of(base, f"{CHAT}?a=b")) == target


@pytest.mark.parametrize("status", [301, 307, 308])
async def test_a_redirect_on_the_same_host_is_followed_with_method_body_and_key(
    serve_app: Serve, status: int
) -> None:
    seen: list[tuple[str, str, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        if not request.path.startswith("/new"):
            return web.Response(status=status, headers={"Location": f"/new{request.path}"})
        seen.append((request.method, request.headers["Authorization"], await request.read()))
        return web.json_response({"choices": []})

    async with serve_app(provider_app(answer)) as url, asking(ModelProvider(url, "k")) as agent:
        assert await agent.ask() == (200, '{"choices": []}')
    assert seen == [("POST", "Bearer k", b'{"q": 1}')]


@pytest.mark.parametrize(("status", "elsewhere"), [(308, True), (302, False), (307, False)])
async def test_any_other_redirect_is_refused_in_words_and_nobody_sees_the_key(
    serve_app: Serve, status: int, *, elsewhere: bool
) -> None:
    calls: list[str] = []

    async def other(request: web.Request) -> web.Response:
        calls.append(request.path)
        return web.json_response({})

    async def answer(request: web.Request) -> web.Response:
        # A second redirect to where it came from never ends.
        to = f"{other_url}/x" if elsewhere else request.path
        return web.Response(status=status, headers={"Location": to})

    async with (
        serve_app(provider_app(other)) as other_url,
        serve_app(provider_app(answer)) as url,
        asking(ModelProvider(url, "k"), retry_seconds=(60.0,)) as agent,
    ):
        assert (await agent.ask())[0] == 502
        assert f"redirects ({status})" in agent.words
        assert not elsewhere or f"to {other_url}." in agent.words
    assert calls == []


OPENAI = {"error": {"message": "no such model", "type": "x", "code": None}}
QUOTA = {"error": {"message": "quota is used up", "code": 429}}


@pytest.mark.parametrize(
    ("status", "kind", "body", "told", "words"),
    [
        (
            403,
            "application/json",
            {"error": {"message": "not in your country"}},
            403,
            "not in your",
        ),
        (403, "application/json", {"detail": "no access"}, 403, "no access"),
        (403, "application/json", {"detail": [{"msg": "bad field"}]}, 403, "bad field"),
        (401, "application/json", {"error": "who are you, k-123?"}, 401, "who are you, ***?"),
        (400, "application/json", [{"error": {"message": "by list"}}], 400, "by list"),
        (503, "text/plain", "gone fishing", 503, "gone fishing"),
        (500, "text/html", "<html>", 500, "answered 500"),
        (200, "application/json", OPENAI, 400, "no such model"),
        (200, "application/json", QUOTA, 429, "quota is used up"),
        (200, "application/json", [QUOTA], 429, "quota is used up"),
        (200, "text/event-stream", f"data: {json.dumps(QUOTA)}\n\n", 429, "quota is used up"),
        (200, "text/event-stream", f"event: error\ndata: {json.dumps(OPENAI)}\n\n", 400, "no such"),
        (200, "text/html", "<html>Welcome</html>", 502, "web page"),
    ],
)
async def test_an_error_is_told_in_the_providers_words_whatever_its_status(
    serve_app: Serve, *, status: int, kind: str, body: Any, told: int, words: str
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, content_type=kind, text=text)

    async with serve_app(provider_app(answer)) as url, asking(ModelProvider(url, "k-123")) as agent:
        got, text = await agent.ask()
        assert got == told
        assert words in agent.words
        assert "k-123" not in text + agent.words


@pytest.mark.parametrize(
    "written",
    [
        lambda key: json.dumps(key)[1:-1],
        lambda key: key.replace("\\", "\\\\").replace('"', '\\"').replace("/", "\\/"),
        lambda key: "".join(f"\\u{ord(one):04X}" for one in key),
        lambda key: quote(key, safe=""),
        lambda key: re.sub("%..", lambda one: one[0].lower(), quote(key, safe="")),
    ],
    ids=["json", "slashes", "all-escaped", "address", "small-address"],
)
async def test_the_key_is_told_to_nobody_in_whatever_form_the_provider_repeats_it(
    serve_app: Serve, written: Callable[[str], str]
) -> None:
    key = 'bedrock/A+b="c&\\9<=='
    repeated = written(key)

    async def answer(request: web.Request) -> web.Response:
        said = f'{{"error": {{"message": "not the key: {repeated}."}}}}'
        if request.path.startswith("/stream/"):
            return web.Response(content_type="text/event-stream", text=f"data: {said}\n\n")
        return web.Response(status=401, content_type="application/json", text=said)

    async with serve_app(provider_app(answer)) as url:
        for base in (url, f"{url}/stream"):
            async with asking(ModelProvider(base, key)) as agent:
                _, text = await agent.ask()
                assert agent.words == "not the key: ***."
                assert repeated not in text
        assert (await problem_of(ModelProvider(url, key)) or "").endswith(": not the key: ***.")


async def test_an_error_in_the_middle_of_a_stream_ends_it_broken(serve_app: Serve) -> None:
    good = b'data: {"choices": [{"delta": {"content": "an \\"error\\" is no error"}}]}\n\n'

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        said = json.dumps({"error": {"message": "overloaded", "code": 529}})
        for part in (good, b"data: " + said[:9].encode(), f"{said[9:]}\n\n".encode()):
            await response.write(part)
        return response

    async with serve_app(provider_app(answer)) as url, asking(ModelProvider(url)) as agent:
        with pytest.raises(aiohttp.ClientPayloadError):
            await agent.ask()
        assert agent.words == "overloaded"


SAID = b'data: {"choices": [{"delta": {"content": "half"}, "finish_reason": null}]}\n\n'
ENDED = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
FILTERED = b'data: {"choices": [{"delta": {}, "finish_reason": "content_filter"}]}\n\n'


def response(kind: str, **members: Any) -> bytes:
    """Return an event of OpenAI's newer API of answers (``/v1/responses``)."""
    data = json.dumps({"type": f"response.{kind}", "response": {"id": "r", **members}})
    return f"event: response.{kind}\ndata: {data}\n\n".encode()


BEGUN = response("created", incomplete_details=None)
LONG = response("completed", output="x" * 1_200_000)
FILTERED_RESPONSE = response("incomplete", incomplete_details={"reason": "content_filter"})
CUT_SHORT = response("incomplete", incomplete_details={"reason": "max_output_tokens"})


def streaming(content: bytes) -> web.Application:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=content, content_type="text/event-stream")

    return provider_app(answer)


@pytest.mark.parametrize(
    "content",
    [
        SAID + b'data: {"choices": [{"delta": {"content": "\\"finish_reason\\": \\"',
        BEGUN + b'data: {"type": "response.output_text.delta", "delta": "response.completed"}\n\n',
    ],
)
async def test_an_answer_that_stops_without_saying_that_it_is_whole_is_broken_off(
    serve_app: Serve, content: bytes
) -> None:
    async with serve_app(streaming(content)) as url, asking(ModelProvider(url)) as agent:
        with pytest.raises(aiohttp.ClientPayloadError):
            await agent.ask()
        assert agent.words.startswith("The model provider broke its answer off: ")


@pytest.mark.parametrize(
    "content",
    [
        SAID + ENDED,
        SAID + ENDED.rstrip(),
        SAID + b"data: [DONE]\n\n",
        SAID + b"data:[DONE]",
        SAID + ENDED.replace(b"stop", b"tool-calls"),
        BEGUN + response("completed"),
        BEGUN + CUT_SHORT,
        BEGUN + LONG,
        b'event: message_start\ndata: {"type": "message_start"}\n\n',
    ],
)
async def test_an_answer_that_says_so_or_is_of_another_kind_is_whole(
    serve_app: Serve, content: bytes
) -> None:
    async with serve_app(streaming(content)) as url, asking(ModelProvider(url)) as agent:
        assert await agent.ask() == (200, content.decode())
        assert agent.relay.failure("s1") is None


@pytest.mark.parametrize(
    "content",
    [SAID + FILTERED, SAID + FILTERED.replace(b"t_f", b"t-f"), BEGUN + FILTERED_RESPONSE],
)
async def test_an_answer_that_a_content_filter_ends_says_so(
    serve_app: Serve, content: bytes
) -> None:
    async with serve_app(streaming(content)) as url, asking(ModelProvider(url)) as agent:
        with pytest.raises(aiohttp.ClientPayloadError):
            await agent.ask()
        assert "content filter" in agent.words
    async with serve_app(streaming(FILTERED)) as url, asking(ModelProvider(url)) as agent:
        status, body = await agent.ask()
        assert (status, agent.words) == (400, json.loads(body)["error"]["message"])


@pytest.mark.parametrize(
    "told",
    [
        response("failed", error={"code": "server_error", "message": "overheated"}),
        b'data: {"type": "error", "code": "server_error", "message": "overheated"}\n\n',
    ],
)
async def test_a_response_that_failed_says_why_in_the_provider_s_words(
    serve_app: Serve, told: bytes
) -> None:
    async with serve_app(streaming(BEGUN + told)) as url, asking(ModelProvider(url)) as agent:
        with pytest.raises(aiohttp.ClientPayloadError):
            await agent.ask()
        failure = agent.relay.failure("s1")
        assert failure is not None
        assert (failure.status, failure.message) == (500, "overheated")


@pytest.mark.parametrize(("size", "fine"), [(60 * 1024, True), (80 * 1024, False)])
async def test_a_header_line_of_64_kib_is_fine_and_a_longer_one_is_one_clear_error(
    size: int, *, fine: bool
) -> None:
    calls: list[str] = []

    async def raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        calls.append("")
        head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\nx-long: "
        writer.write(f"{head}{'x' * size}\r\n\r\n{{}}".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(raw, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asking(ModelProvider(url), retry_seconds=(60.0,)) as agent:
        if fine:
            assert await agent.ask() == (200, "{}")
        else:
            assert [(await agent.ask())[0] for _ in range(3)] == [502] * 3
            assert "header line of more than 64 KiB" in agent.words
    server.close()
    assert len(calls) == 1


async def test_a_silent_provider_is_told_of_and_after_its_time_not_asked_again(
    serve_app: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylag.agentd.model.relay.NOTICE_AFTER", (0.01,))
    calls: list[str] = []
    told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def answer(request: web.Request) -> web.Response:
        calls.append(request.path)
        await asyncio.Event().wait()
        raise AssertionError

    async def tell(session: str, words: str) -> None:
        told.put_nowait((session, words))

    relay = {"retry_seconds": (60.0,), "idle_seconds": 1.0, "tell": tell}
    async with serve_app(provider_app(answer)) as url, asking(ModelProvider(url), **relay) as agent:
        asked = asyncio.create_task(agent.ask())
        session, words = await told.get()
        assert session == "s1"
        assert "until the model provider answers; it is given up after 1 s" in words
        assert (await asked)[0] == 504
        assert [(await agent.ask())[0] for _ in range(3)] == [502] * 3
        assert "said nothing for 1 seconds" in agent.words
        assert len(calls) == 1
        agent.relay.begin_turn("s1")
        await agent.ask()
    assert len(calls) == 2


class HttpProxy:
    """A proxy for HTTP that wants a user; it takes every name for this machine."""

    def __init__(self, credentials: str) -> None:
        self._wanted = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        self.asked: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Yield where it listens, without a scheme."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split(" ", 2)
        self.asked.append(f"{method} {target}")
        if f"Proxy-Authorization: {self._wanted}" not in head:
            writer.write(b"HTTP/1.1 407 Go away\r\nContent-Length: 0\r\n\r\n")
        else:
            port = int(target.removeprefix("http://").split("/")[0].rpartition(":")[2])
            back, there = await asyncio.open_connection("127.0.0.1", port)
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                there.write(head.encode())
            await asyncio.gather(_carry(reader, there), _carry(back, writer))
        writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def https_provider(folder: Path) -> AsyncIterator[int]:
    """Serve under a certificate for model.test that nobody trusts by itself."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"choices": []})

    certificate(folder, "-addext", "subjectAltName=DNS:model.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "crt.pem", folder / "key.pem")
    runner = web.AppRunner(provider_app(answer), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def test_a_provider_behind_a_proxy_and_a_private_authority_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = HttpProxy("ann:s3cret/word")
    async with https_provider(tmp_path) as port, proxy.running() as address:
        proxies = {"HTTPS_PROXY": f"http://ann:s3cret%2Fword@{address}", "NO_PROXY": "10.0.0.0/8"}
        provider = ModelProvider(f"https://model.test:{port}", "k", proxies)
        async with asking(provider) as agent:
            assert (await agent.ask())[0] == 502
            assert "not trusted" in agent.words
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "crt.pem"))
        async with asking(provider) as agent:
            assert await agent.ask() == (200, '{"choices": []}')
    assert proxy.asked == [f"CONNECT model.test:{port}"] * 2


@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_a_proxy_that_refuses_is_named_without_its_password(scheme: str) -> None:
    proxy = HttpProxy("ann:another")
    async with proxy.running() as address:
        proxies = {"ALL_PROXY": f"http://ann:hunter2@{address}"}
        provider = ModelProvider(f"{scheme}://model.test:1", "k", proxies)
        async with asking(provider, retry_seconds=(60.0,)) as agent:
            _, text = await agent.ask()
            assert f"The proxy http://{address} " in agent.words
            assert "407" in agent.words
            assert "hunter2" not in text + agent.words


async def test_a_provider_that_is_not_there_is_told_of_in_plain_words() -> None:
    async with asking(ModelProvider("http://127.0.0.1:9"), retry_seconds=()) as agent:
        await agent.ask()
        told = "Cannot connect to the model provider at 127.0.0.1:9: Connection refused."
        assert agent.words == told


async def test_a_provider_without_tls_is_told_of_in_plain_words(serve_app: Serve) -> None:
    async with serve_app(web.Application()) as url:
        provider = ModelProvider(url.replace("http:", "https:"))
        async with asking(provider, retry_seconds=()) as agent:
            await agent.ask()
            assert "has no TLS: " in agent.words
            assert "ssl" not in agent.words


async def test_an_address_that_no_proxy_names_is_reached_straight(serve_app: Serve) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({})

    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "example.org, 127.0.0.0/8"}
    async with serve_app(provider_app(answer)) as url:
        async with asking(ModelProvider(url, proxies=proxies)) as agent:
            assert (await agent.ask())[0] == 200
        async with asking(ModelProvider(url, proxies=proxies | {"NO_PROXY": "10.1.1.1"})) as agent:
            assert (await agent.ask())[0] == 502
            assert agent.words == "The proxy http://127.0.0.1:9 cannot be reached."


def lists_at(path: str, *, calls: bool = True) -> Handler:
    """A provider whose list of models is at ``path``; it has its calls beside it, or has none."""

    async def answer(request: web.Request) -> web.Response:
        if path and request.path == f"{path}/models":
            return web.json_response({"data": []})
        if calls and request.path == f"{path}/chat/completions":
            return web.json_response({"error": {"message": "messages is missing"}}, status=400)
        return web.json_response({"detail": "Not Found"}, status=404)

    return answer


async def _refuses(_request: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "no such key"}}, status=401)


async def _page(_request: web.Request) -> web.Response:
    return web.Response(text="<html>", content_type="text/html")


@pytest.mark.parametrize(
    ("provider", "path", "problem"),
    [
        (lists_at("/v1"), "", None),
        (lists_at("/v1"), "/v1", None),
        (lists_at("/api/paas/v4"), "/api/paas/v4/", None),
        (lists_at("", calls=True), "/nothing", "/nothing/chat/completions is not there (404)"),
        (lists_at("/v1"), "/v2", "/v2/chat/completions is not there (404)"),
        (lists_at("/openai/v1"), "/openai", "/openai/v1: set it to that."),
        (_refuses, "", "refuses GREYLAG_MODEL_KEY: no such key"),
        (_page, "/docs", "a web page"),
    ],
)
async def test_a_wrong_address_or_key_is_told_before_anybody_asks(
    serve_app: Serve, provider: Handler, path: str, problem: str | None
) -> None:
    async with serve_app(provider_app(provider)) as url:
        found = await problem_of(ModelProvider(f"{url}{path}", "k-123"))
    assert found is None if problem is None else problem in (found or "")


async def test_a_provider_that_is_down_silent_or_without_a_list_is_no_problem(
    serve_app: Serve, unused_url: str
) -> None:
    async def silent(_request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def without(request: web.Request) -> web.Response:
        return web.Response(status=404 if request.method == "GET" else 422)

    for nowhere in (unused_url, f"https://{'a' * 64}.test"):
        assert await problem_of(ModelProvider(nowhere)) is None
    async with serve_app(provider_app(silent)) as url:
        assert await problem_of(ModelProvider(url), within=0.1) is None
    async with serve_app(provider_app(without)) as url:
        assert await problem_of(ModelProvider(url)) is None
