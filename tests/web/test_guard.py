"""What the guard refuses before anything is read or done, and what every answer carries."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator

import aiohttp
import pytest
from multidict import CIMultiDict
from structlog.testing import capture_logs
from tests.harness import BEARER, TOKEN
from tests.web.server import ADA, Site, settings, site
from yarl import URL

from greylag.domain.errors import ErrorInfo
from greylag.web.app import MIN_BYTES
from greylag.web.auth import own_path
from greylag.web.errors import problem_response


@pytest.fixture
async def running() -> AsyncIterator[Site]:
    async with site(settings(body_limit=2048, header_limit=40)) as one:
        yield one


async def problem(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    assert answer.content_type == "application/problem+json", await answer.text()
    body = await answer.json(content_type=None)
    assert body["status"] == answer.status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["hint"]
    return answer.status, body["code"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "192.0.2.1",
        "evil.example@localhost",
        "localhost/evil.example",
        "",
    ],
)
async def test_a_foreign_host_is_refused_so_that_no_name_can_be_rebound(
    running: Site, host: str
) -> None:
    async with running.http.get(ADA, headers={"host": host}) as answer:
        assert answer.status in {400, 403}
    async with running.http.get("/", headers={"host": host, "accept": "text/html"}) as page:
        assert page.status in {400, 403}
        assert page.content_type != "application/problem+json"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:9"])
async def test_names_of_this_machine_are_taken_with_any_port(running: Site, host: str) -> None:
    async with running.http.get(ADA, headers={"host": host}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "chrome-extension://localhost"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_another_site_cannot_write(running: Site, headers: dict[str, str]) -> None:
    async with running.http.post(ADA, json={"name": "x"}, headers=headers) as answer:
        assert await problem(answer) == (403, "forbidden")
    async with running.http.get(ADA) as answer:
        assert (await answer.json())["projects"] == []


@pytest.mark.parametrize(("name", "foreign"), [("host", ""), ("origin", "https://")])
async def test_of_two_names_neither_is_believed(running: Site, name: str, foreign: str) -> None:
    own = f"{foreign and 'http://'}127.0.0.1:{running.port}"
    headers = CIMultiDict([(name, own), (name, f"{foreign}evil.example")])
    async with running.http.post(ADA, json={"name": "x"}, headers=headers) as answer:
        assert await problem(answer) == (403, "forbidden")


async def test_our_own_origin_writes(running: Site) -> None:
    for own in (
        {"origin": f"http://127.0.0.1:{running.port}"},
        {"origin": "http://localhost", "host": "localhost:80"},
        {"origin": "https://localhost", "host": "localhost:443"},
    ):
        async with running.http.post(ADA, json={"name": "x"}, headers=own) as answer:
            assert answer.status == 201


async def test_too_large_a_body_is_refused_by_its_length_and_as_it_comes(running: Site) -> None:
    async with running.http.post(ADA, json={"name": "x" * 3000}) as answer:
        assert await problem(answer) == (413, "too_large")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 100

    async with running.http.post(ADA, data=pieces()) as answer:
        assert (await problem(answer))[0] == 413
    async with running.http.post("/sign-out", data=b" " * 3000) as answer:  # which reads none
        assert await problem(answer) == (413, "too_large")


async def test_too_many_headers_are_refused(running: Site) -> None:
    headers = {f"x-{number}": "y" for number in range(60)}
    async with running.http.get(ADA, headers=headers) as answer:
        assert await problem(answer) == (431, "headers_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("GET", "/nothing", 404),
        ("PUT", ADA, 405),
        ("GET", f"{ADA}/missing", 404),
        ("GET", "/api/users/nobody/projects", 404),
        ("GET", f"{ADA}?limit=0", 422),
        ("GET", f"{ADA}?limit=1e9", 422),
        ("GET", f"{ADA}?cursor=%00", 422),
        ("GET", f"{ADA}?cursor=nonsense", 422),
        ("GET", f"{ADA}?status=asleep", 422),
        ("GET", f"{ADA}/%ff%fe", 404),
        ("GET", f"{ADA}/%00", 404),
        ("GET", f"{ADA}/x/", 404),
    ],
)
async def test_every_error_is_a_problem_document(
    running: Site, method: str, path: str, status: int
) -> None:
    url = running.http._build_url(path)
    async with running.http.request(method, url) as answer:
        assert (await problem(answer))[0] in {status, 422}


async def test_a_method_that_is_not_taken_is_told_with_all_that_are(running: Site) -> None:
    async with running.http.put(ADA) as answer:
        assert (await problem(answer))[0] == 405
        assert answer.headers.getall("allow") == ["GET, POST"]


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"content-type": "application/x-www-form-urlencoded"}, "Content-Type: application/json"),
        ({"content-type": "text/plain"}, "Content-Type: application/json"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "compressed"),
    ],
)
async def test_a_body_that_is_not_sent_as_json_is_told_so(
    running: Site, headers: dict[str, str], told: str
) -> None:
    body = b'{"name": "x"}'
    body = gzip.compress(body) if "content-encoding" in headers else body
    async with running.http.post(ADA, data=body, headers=headers) as answer:
        assert answer.status == 422
        assert told in (await answer.json(content_type=None))["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b'{"name": 7}',
        b'{"name": ""}',
        b'{"name": "\\ud800"}',
        b'{"name": "x", "\\ud800": 1}',
        b'{"name": "x", "source": {"git": {"url": "https://x.example/y", "\\udfff": 1}}}',
        b'{"name": "x", "metadata": {"\\ud800": 1}}',
        b'{"name": "\xed\xa0\x80"}',
        b'{"name": "x", "metadata": {"a": 1e999}}',
        b'{"name": "x", "metadata": {"a": 123456789012345678901234567890}}',
        b'{"name": "x", "project_id": "a\\u0000b"}',
        b'{"name": "x", "surplus": 1}',
        b"\xff\xfe",
        b"[" * 2000,
    ],
)
async def test_a_body_that_cannot_be_taken_is_a_422_and_makes_nothing(
    running: Site, body: bytes
) -> None:
    headers = {"content-type": "application/json"}
    async with running.http.post(ADA, data=body, headers=headers) as answer:
        assert (await problem(answer))[0] == 422
    async with running.http.get(ADA) as answer:
        assert (await answer.json())["projects"] == []


@pytest.mark.parametrize(
    ("name", "told"),
    [("", "at least 1 character, not 0"), ("x" * 201, "at most 200 characters, not 201")],
)
async def test_the_length_of_a_text_is_told_in_characters(
    running: Site, name: str, told: str
) -> None:
    async with running.http.post(ADA, json={"name": name}) as answer:
        assert told in (await answer.json(content_type=None))["detail"]


async def test_every_answer_has_a_request_id_and_the_security_headers(running: Site) -> None:
    path = await running.project()
    for asked in ("/healthz", "/", ADA, f"{ADA}/missing", "/static/app.css", f"{path}/events"):
        async with running.http.get(asked, headers={"x-request-id": "mine-1"}) as answer:
            assert answer.headers["x-request-id"] == "mine-1"
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
    async with running.http.get("/healthz", headers={"x-request-id": "y" * 200}) as answer:
        assert len(answer.headers["x-request-id"]) == 32


async def test_only_the_token_or_a_sign_in_opens() -> None:
    async with site(signed_in=False) as locked:
        for header in (None, "Bearer wrong", "Basic eDp5", TOKEN):
            headers = {"authorization": header} if header else {}
            async with locked.http.get(ADA, headers=headers) as answer:
                assert await problem(answer) == (401, "unauthorized")
        async with locked.http.get(ADA, headers={"authorization": f"bearer {TOKEN}"}) as answer:
            assert answer.status == 200
        for method, path in (("GET", "/healthz"), ("HEAD", "/healthz"), ("GET", "/static/app.css")):
            async with locked.http.request(method, path) as answer:
                assert answer.status == 200
        page = {"accept": "text/html"}
        async with locked.http.post("/users/ada", headers=page) as answer:
            assert await problem(answer) == (401, "unauthorized")
        async with locked.http.get("/", headers=page, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["location"]) == (303, "/sign-in?next=%2F")
        asked = URL("/users/a%2Fb%20c?session=1%261", encoded=True)
        async with locked.http.get(asked, headers=page, allow_redirects=False) as answer:
            leads = URL(answer.headers["location"])
        assert leads.query["next"] == own_path(str(asked)) == str(asked)
        assert own_path("/" + "x" * 2000) == "/"
        async with locked.http.post("/sign-in", data={"token": TOKEN}, headers=page) as answer:
            assert answer.status == 200
        async with locked.http.get(ADA) as answer:
            assert answer.status == 200
        (cookie,) = [one for one in locked.http.cookie_jar if one.key == "greylag_sign_in"]
        assert (cookie["httponly"], cookie["samesite"].lower()) == (True, "strict")
        assert TOKEN not in cookie.value
        locked.http.cookie_jar.clear()
        # Not its last character: that one holds bits of padding, which nobody reads.
        changed = cookie.value[:-2] + ("A" if cookie.value[-2] != "A" else "B") + cookie.value[-1]
        async with locked.http.get(ADA, headers={"cookie": f"{cookie.key}={changed}"}) as answer:
            assert answer.status == 401


async def test_nobody_can_try_many_tokens() -> None:
    async with site(signed_in=False) as locked:

        async def guess(number: int) -> int:
            headers = {"authorization": f"Bearer {number}"}
            async with locked.http.get(ADA, headers=headers) as answer:
                return answer.status

        found = [await guess(number) for number in range(22)]
        assert found == [401] * 20 + [429] * 2
        _, told = await locked.ask("GET", "/api/audit?result=refused", headers=BEARER)
    assert [one["code"] for one in told["entries"]] == ["limit_exceeded", "unauthorized"]


async def test_no_log_line_holds_the_token_and_each_has_the_request_id(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with site(signed_in=False) as locked:
        headers = {"authorization": f"Bearer {TOKEN}", "x-request-id": "line-1"}
        async with locked.http.get(f"{ADA}/missing", headers=headers) as answer:
            assert answer.status == 404
        await asyncio.sleep(0)
    out = "".join(capsys.readouterr())
    assert TOKEN not in out
    assert "path=/api/users/{user}/projects/{project}" in out


async def test_no_json_body_of_any_request_takes_unknown_members(running: Site) -> None:
    async with running.http.get("/openapi.json") as answer:
        document = await answer.json()
    bodies = [
        content["schema"]
        for path in document["paths"].values()
        for operation in path.values()
        for media, content in operation.get("requestBody", {}).get("content", {}).items()
        if media == "application/json"
    ]
    assert bodies
    for schema in bodies:
        name = schema.get("$ref", "").rpartition("/")[2]
        found = document["components"]["schemas"][name] if name else schema
        assert found["additionalProperties"] is False, found


async def test_the_openapi_document_is_complete(running: Site) -> None:
    async with running.http.get("/openapi.json") as answer:
        document = json.loads(await answer.text())
    operations = [
        (f"{method} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) >= 20
    for name, operation in operations:
        assert operation["summary"], name
        assert operation["tags"], name
        errors = [code for code in operation["responses"] if code >= "400"]
        assert "500" in errors or name.endswith("z"), name
        for code in errors:
            assert "application/problem+json" in operation["responses"][code]["content"], name


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip", "gzip"), ("br, gzip;q=0.5", "gzip"), ("gzip;q=0.0", None), ("identity", None)],
)
async def test_text_is_compressed_for_those_who_take_it(
    running: Site, accepted: str, encoding: str | None
) -> None:
    path = await running.project()
    asked = {"accept-encoding": accepted, "accept": "text/html"}
    page = await _got(running, "/users/ada", **asked)
    files = set(re.findall(r'"(/static/[^"]+)"', await page.text()))
    for file in files:
        answer = await _got(running, file, **asked)
        expected = encoding if len(await answer.text()) >= MIN_BYTES else None
        assert (answer.headers.get("content-encoding"), answer.status) == (expected, 200), file
        assert "immutable" in answer.headers["cache-control"]
        tag = answer.headers["etag"]
        assert (await _got(running, file, **asked, **{"if-none-match": tag})).status == 304
    assert page.headers.get("content-encoding") == encoding
    assert "accept-encoding" in page.headers["vary"].lower()
    small = await _got(running, path, **asked)
    assert (small.headers.get("content-encoding"), "vary" in small.headers) == (None, False)
    async with running.http.get(f"{path}/events", headers=asked) as stream:
        assert "content-encoding" not in stream.headers
        assert await stream.content.readline()


async def _got(running: Site, path: str, **headers: str) -> aiohttp.ClientResponse:
    async with running.http.get(path, headers=headers) as answer:
        await answer.read()
        return answer


async def test_files_under_old_names_and_none_are_given_but_not_for_good(running: Site) -> None:
    for path in ("/static/js/app.js", "/static/0123456789abcdef/js/app.js"):
        answer = await _got(running, path)
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-cache")
    for path in ("/static/0123456789abcdef/js/none.js", "/static/0123456789abcdef/../../app.py"):
        answer = await _got(running, path)
        assert answer.status == 404
        assert "immutable" not in answer.headers["cache-control"]


async def test_another_site_s_reading_changes_nothing_and_is_counted(running: Site) -> None:
    path = await running.project(active=True)
    before = await running.ask("GET", path)
    with capture_logs() as lines:
        for asked in (f"{path}/activate", f"{path}/deactivate", "/sign-out", "/sign-in", "/"):
            async with running.http.get(
                asked, headers={"sec-fetch-site": "cross-site"}, allow_redirects=False
            ) as answer:
                await answer.read()
        after = await running.ask("GET", path)
    assert after == before
    counted = [line for line in lines if line.get("cross_site")]
    assert [(line["event"], line["log_level"]) for line in counted] == [("request", "info")] * 5
    assert not [line for line in lines if line["log_level"] not in {"debug", "info"}]


def test_words_that_no_answer_can_hold_cost_their_half_characters() -> None:
    told = problem_response(ErrorInfo("conflict", "half \ud800 of it", "\udfff"))
    assert json.loads(bytes(told.body))["detail"] == "half ? of it"
    assert told.status_code == 409
