"""How the client takes answers that are odd: in pieces, too long, from a proxy, or a 401."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web
from tests.cluster.kubernetes.api_server import (
    Answer,
    cut,
    says,
    served,
    silent,
    status,
    stream,
    thing,
)
from tests.cluster.kubernetes.kubeconfigs import certificate, connected, kubeconfig, written
from tests.ports import free_port
from yarl import URL

from greylag.cluster.kubernetes import api as api_module
from greylag.cluster.kubernetes import calls
from greylag.cluster.kubernetes.api import Api, server_version
from greylag.cluster.kubernetes.credentials import Credentials, TokenFile
from greylag.cluster.kubernetes.failures import ApiError, cluster_error
from greylag.common.concurrent import beside
from greylag.domain.errors import ClusterUnavailableError, ConfigError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE", 0.001)


def in_pieces(code: int, *pieces: bytes) -> Answer:
    """Answer with this body, each piece in a packet of its own."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=code)
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0.02)
        return response

    return answer


async def test_a_refusal_that_comes_in_pieces_is_read_to_its_end() -> None:
    words = b'{"kind":"Status","code":403,"reason":"Forbidden","mess', b'age":"exceeded quota: q"}'
    async with served(in_pieces(403, *words)) as (_, api):
        with pytest.raises(ApiError) as refused:
            await api.patch_merge("Pod", "n", "a", {})
    assert cluster_error(refused.value).info.code == "quota_exceeded"


async def test_an_error_without_an_end_is_cut() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400)
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except ConnectionError:
            return response

    async with served(endless) as (_, api):
        with pytest.raises(ApiError, match="400"):
            await api.read("Pod", "n", "a")


async def test_an_answer_that_is_too_long_is_given_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "LONGEST_ANSWER", 1000)
    async with served(says({"a": "x" * 2000})) as (server, api):
        with pytest.raises(ClusterUnavailableError, match="too long"):
            await api.read("Pod", "n", "a")
        assert len(server.asked) == 1


@pytest.mark.parametrize("body", [b'{"code": "E_BUSY"}', b'{"code": 7, "details": 3}', b"[1]"])
async def test_a_proxys_own_errors_count_by_their_status(body: bytes) -> None:
    async with served(in_pieces(503, body), says(thing("a", 1))) as (server, api):
        assert await api.read("Pod", "n", "a")
        server.answers[:] = [in_pieces(403, body)]
        with pytest.raises(ApiError) as refused:
            await api.read("Pod", "n", "a")
    assert refused.value.status == 403
    assert refused.value.is_refusal


def test_retry_after_may_be_a_date() -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    asked = ApiError.of_answer(503, "", b"", moment).retry_after
    assert asked is not None
    assert 200 < asked <= 300
    # By the server's own clock, where it says that.
    date, moment = "Thu, 01 Jan 2026 00:00:00 GMT", "Thu, 01 Jan 2026 00:00:05 GMT"
    assert ApiError.of_answer(503, "", b"", moment, date).retry_after == 5
    assert ApiError.of_answer(503, "", b"", "soon").retry_after is None
    passed = "Thu, 01 Jan 1970 00:00:00 GMT"
    assert ApiError.of_answer(503, "", b"", passed).retry_after == 0


@pytest.mark.parametrize(
    ("method", "answers", "tries"),
    [
        ("delete", [cut, says({})], 1),
        ("delete-uid", [cut, says({})], 2),
        ("merge", [status(503), says(thing("a", 1))], 1),
        ("merge-version", [status(503), says(thing("a", 1))], 2),
    ],
)
async def test_which_writes_are_repeated(method: str, answers: list[Answer], tries: int) -> None:
    versioned = {"metadata": {"resourceVersion": "1"}}
    async with served(*answers) as (server, api):
        done: dict[str, Callable[[], Awaitable[Any]]] = {
            "delete": lambda: api.delete("Pod", "n", "a"),
            "delete-uid": lambda: api.delete("Pod", "n", "a", uid="u"),
            "merge": lambda: api.patch_merge("Pod", "n", "a", {}),
            "merge-version": lambda: api.patch_merge("Pod", "n", "a", versioned),
        }
        if tries == 1:
            with pytest.raises(ClusterUnavailableError):
                await done[method]()
        else:
            await done[method]()
        assert len(server.asked) == tries


async def test_a_call_that_was_never_sent_is_tried_again_whatever_it_is() -> None:
    port = free_port()

    async def begin(runner: web.AppRunner) -> None:
        await asyncio.sleep(0.1)
        await web.TCPSite(runner, "127.0.0.1", port).start()

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(thing("a", 1))

    app = web.Application()
    app.router.add_patch("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    found = connected(host=f"http://127.0.0.1:{port}", token="t")
    api = Api(found)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calls, "FIRST_PAUSE", 0.1)
            made, _ = await asyncio.gather(api.patch_merge("Pod", "n", "a", {}), begin(runner))
        assert made == thing("a", 1)
    finally:
        await api.close()
        await runner.cleanup()


async def test_waiting_for_room_is_no_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "CALLS_AT_ONCE", 1)
    monkeypatch.setattr(api_module, "TRY_SECONDS", 2.0)

    async def slow(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.5)
        return web.json_response(thing("a", 1))

    async with served(slow) as (server, api):
        await asyncio.gather(*(api.patch_merge("Pod", "n", "a", {}) for _ in range(6)))
        assert len(server.asked) == 6


@asynccontextmanager
async def with_file(server_url: str, path: Path) -> AsyncIterator[Api]:
    await asyncio.to_thread(path.write_text, "old")
    credentials: Credentials = TokenFile(path)
    api = Api(replace(connected(host=server_url, token="t"), credentials=credentials))
    try:
        yield api
    finally:
        await api.close()


async def test_a_rotated_token_is_read_and_the_call_repeated_once_even_after_other_faults(
    tmp_path: Path,
) -> None:
    path = tmp_path / "token"

    async def known(request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"] != "Bearer new":
            return web.json_response({"reason": "Unauthorized"}, status=401)
        return web.json_response(thing("a", 1))

    async with served(known) as (server, _), with_file(server.url, path) as api:
        with pytest.raises(ApiError, match="401"):
            await api.read("Pod", "n", "a")
        assert len(server.asked) == 2
        path.write_text("new")
        made = await asyncio.gather(*(api.patch_merge("Pod", "n", "a", {}) for _ in range(3)))
        assert made == [thing("a", 1)] * 3
    async with served(status(503), known) as (server, _), with_file(server.url, path) as api:
        assert (await api.within(0).answers(1)) is True  # the old token is read
        path.write_text("new")
        assert await api.read("Pod", "n", "a")


async def test_a_log_is_opened_with_the_rotated_token(tmp_path: Path) -> None:
    path = tmp_path / "token"

    async def known(request: web.Request) -> web.StreamResponse:
        path.write_text("new")
        code = 200 if request.headers["Authorization"] == "Bearer new" else 401
        return web.Response(status=code, text="line\n")

    async with (
        served(known) as (server, _),
        with_file(server.url, path) as api,
        api.stream_log("n", "a", container="c") as chunks,
    ):
        assert b"".join([chunk async for chunk in chunks]) == b"line\n"


@asynccontextmanager
async def secured(folder: Path, answer: Answer) -> AsyncIterator[tuple[str, str]]:
    """Serve TLS on loopback with a certificate for another name; yield URL and authority."""
    pem, _ = certificate(folder, "-addext", "subjectAltName=DNS:other.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "crt.pem", folder / "key.pem")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}", pem
    finally:
        await runner.cleanup()


async def first_word(**options: str) -> str:
    """Return what the start is refused with."""
    api = Api(connected(**options))
    try:
        with pytest.raises(ConfigError) as refused:
            await server_version(api)
        assert isinstance(refused.value.__cause__, ClusterUnavailableError)
    finally:
        await api.close()
    return str(refused.value)


async def test_what_tls_refuses_is_told_with_the_setting_and_why(tmp_path: Path) -> None:
    async with secured(tmp_path, status(404)) as (url, pem):
        (tmp_path / "else").mkdir()
        wrong, _ = certificate(tmp_path / "else")
        said = await first_word(host=url, token="t", ca=wrong)
        assert said.startswith("KUBE_CA does not fit")
        assert "self-signed" in said or "self signed" in said
        said = await first_word(host=url, token="t", ca=pem)
        assert said.startswith("KUBE_HOST does not fit")
        assert "mismatch" in said
    async with served(says({})) as (server, _):
        said = await first_word(host=server.url.replace("http", "https"), token="t")
        assert said.startswith("KUBE_HOST: there is no TLS with what answers at")


async def test_a_server_name_in_the_kubeconfig_is_what_the_certificate_must_have(
    tmp_path: Path,
) -> None:
    async with secured(tmp_path, status(404)) as (url, pem):
        found = replace(connected(host=url, token="t", ca=pem), server_name="other.test")
        api = Api(found)
        try:
            with pytest.raises(ApiError, match="404"):
                await api.get("/version")
        finally:
            await api.close()


@pytest.mark.parametrize("skips", [True, "true"])
async def test_a_certificate_is_not_looked_at_where_the_kubeconfig_says_just_that(
    tmp_path: Path, *, skips: bool | str
) -> None:
    async with secured(tmp_path, status(404)) as (url, _):
        of_it = {"server": url, "insecure-skip-tls-verify": skips}
        api = Api(connected(kubeconfig=written(tmp_path, kubeconfig(cluster=of_it))))
        refusal = ApiError if skips is True else ClusterUnavailableError
        try:
            with pytest.raises(refusal):
                await api.get("/version")
        finally:
            await api.close()


async def test_connections_of_streams_that_are_refused_are_given_back() -> None:
    async with served(status(403, "Forbidden")) as (_, api):
        for _ in range(3):
            with pytest.raises(ApiError, match="403"):
                async with api.stream_log("n", "a", container="c"):
                    pass
        connector = api._http.connector
        assert isinstance(connector, aiohttp.TCPConnector)
        assert not connector._acquired


async def left_in_a_watch(api: Api, _: asyncio.Event) -> None:
    async with api.watch("Pod", resource_version="1", seconds=9, silence=9):
        pass


async def left_in_an_answer(api: Api, _: asyncio.Event) -> None:
    assert await api.answers(9)


async def left_before_the_answer(api: Api, heard: asyncio.Event) -> None:
    async with beside(api.get("/version"), "asking"):
        await heard.wait()


@pytest.mark.parametrize(
    ("leave", "answer"),
    [
        (left_in_a_watch, stream(then="silent")),
        (left_in_an_answer, stream(then="silent")),
        (left_before_the_answer, silent),
    ],
)
async def test_what_is_left_before_its_end_keeps_no_connection_that_waits_for_the_other_side(
    tmp_path: Path, leave: Callable[[Api, asyncio.Event], Awaitable[None]], answer: Answer
) -> None:
    heard = asyncio.Event()

    async def told(request: web.Request) -> web.StreamResponse:
        heard.set()
        return await answer(request)

    async with secured(tmp_path, told) as (url, pem):
        api = Api(replace(connected(host=url, token="t", ca=pem), server_name="other.test"))
        await leave(api, heard)
        await api.close()
        await asyncio.sleep(0)  # what the other side says of it takes more turns of the loop
        known = psutil.Process().net_connections("tcp4")
        assert not [one for one in known if one.raddr[1:] == (URL(url).port,)]
