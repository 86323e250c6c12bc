"""A stand-in for the API server's proxy of Services, which rewrites as that does.

See ``Transport.RoundTrip`` and ``corsRemovingTransport`` in k8s.io/apimachinery, pkg/util/proxy.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from tests.agentd.conftest import serve

PATH = "/api/v1/namespaces/{namespace}/services/{service}/proxy"
_CORS = ("Credentials", "Headers", "Methods", "Origin")
_FRAMING = {"connection", "transfer-encoding", "content-length", "date", "server"}


@asynccontextmanager
async def service_proxy(agent: str) -> AsyncIterator[str]:
    """Run one that leads to what is at ``agent``; give its address."""
    http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)

    async def relay(request: web.Request) -> web.StreamResponse:
        before = PATH.format_map(request.match_info)
        headers = CIMultiDict(request.headers)
        for name in ("Authorization", "Host"):
            headers.popall(name, None)
        came_by = [*headers.popall("X-Forwarded-For", []), request.remote or ""]
        headers["X-Forwarded-For"] = ", ".join(came_by)
        headers["X-Forwarded-Host"] = request.host
        headers["X-Forwarded-Proto"] = "https"
        headers["X-Forwarded-Uri"] = request.raw_path
        async with http.request(
            request.method,
            f"{agent}/{request.match_info['rest']}?{request.query_string}",
            headers=headers,
            data=await request.read() or None,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            allow_redirects=False,
        ) as answer:
            return _rewritten(before, await answer.read(), answer)

    app = web.Application()
    app.router.add_route("*", PATH + "/{rest:.*}", relay)
    async with http, serve(app) as address:
        yield address


def _rewritten(before: str, body: bytes, answer: aiohttp.ClientResponse) -> web.Response:
    headers = CIMultiDict(
        (name, value) for name, value in answer.headers.items() if name.lower() not in _FRAMING
    )
    for name in _CORS:
        headers.popall(f"Access-Control-Allow-{name}", None)
    headers.add("Cache-Control", "no-cache, private")
    headers.add("Audit-Id", "1")
    if "Location" in headers:
        headers["Location"] = before + headers["Location"]
    elif headers.get("Content-Type", "").startswith("text/html"):
        for link in (b'href="', b'src="', b'action="'):
            body = body.replace(link + b"/", link + before.encode() + b"/")
    return web.Response(status=answer.status, body=body, headers=headers)
