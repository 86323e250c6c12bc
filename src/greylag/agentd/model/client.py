"""Passes one HTTP call on to the model provider, streaming the request and the answer."""

import json
from types import TracebackType
from typing import Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from greylag.agentd.agent.types import ModelFailure, ModelProvider

_CONNECT_SECONDS = 15.0
_ERROR_LIMIT = 64 * 1024
_MESSAGE_LIMIT = 2000
_BAD_REQUEST = 400
# RFC 9110, section 7.6.1: these are about one connection and are never passed on.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_OURS = frozenset({"host", "authorization", "agent-session-id", "expect"})

Outcome = tuple[web.StreamResponse, ModelFailure | None]


class ProviderClient:
    """The connections to one provider; use it as an async context manager.

    Args:
        provider: base URL and key.
        idle_seconds: the longest silence of the provider that is waited for.
    """

    def __init__(self, provider: ModelProvider, idle_seconds: float) -> None:
        self._provider = provider
        self._idle_seconds = idle_seconds
        self._proxy = _proxy_for(URL(provider.url))
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=idle_seconds
        )
        self._session = aiohttp.ClientSession(
            timeout=timeout,
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def forward(self, request: web.Request) -> Outcome:
        """Pass `request` on and stream the answer back.

        Returns:
            The response, begun or whole, and why the call failed (None when it worked). A provider
            that cannot be reached gives 502, one that stays silent 504, in the shape of the OpenAI
            API's own errors; one that breaks off in mid-answer gets the connection broken too.
        """
        try:
            async with self._session.request(
                request.method,
                self._target(request),
                headers=self._headers(request),
                data=request.content if request.can_read_body else None,
                proxy=self._proxy,
                allow_redirects=False,
            ) as answer:
                if answer.status >= _BAD_REQUEST:
                    return await _refused(answer)
                return await _stream(request, answer)
        except TimeoutError:
            silence = f"The model provider said nothing for {self._idle_seconds:g} seconds."
            return _failed(504, silence)
        except (aiohttp.ClientError, OSError) as error:
            url = URL(self._provider.url)
            return _failed(502, f"The model provider at {url.host}:{url.port} failed: {error}")

    def _target(self, request: web.Request) -> URL:
        base = self._provider.url.rstrip("/")
        path = request.raw_path
        if base.endswith("/v1") and path.startswith("/v1/"):
            base = base.removesuffix("/v1")  # people give the address with and without it
        return URL(base + path, encoded=True)

    def _headers(self, request: web.Request) -> CIMultiDict[str]:
        headers = _end_to_end(request.headers)
        for name in _OURS:
            headers.popall(name, None)
        if self._provider.key is not None:
            headers["Authorization"] = f"Bearer {self._provider.key}"
        return headers


def _proxy_for(url: URL) -> str | None:
    """Return the proxy that the environment names for `url`.

    Not aiohttp's `trust_env`: that reads ~/.netrc too, which belongs to the agent.
    """
    if proxy_bypass(url.host or ""):
        return None
    return getproxies().get(url.scheme)


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    dropped = _HOP_BY_HOP | named
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in dropped)


async def _stream(request: web.Request, answer: aiohttp.ClientResponse) -> Outcome:
    response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
    await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
    except (aiohttp.ClientError, TimeoutError) as error:
        # A clean end would make half an answer look whole.
        if request.transport is not None:
            request.transport.close()
        return response, ModelFailure(None, f"The model provider broke its answer off: {error}")
    return response, None


async def _refused(answer: aiohttp.ClientResponse) -> Outcome:
    """Pass on an error answer (short by nature), and read what the provider says in it."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk[: _ERROR_LIMIT - len(body)]
        if len(body) >= _ERROR_LIMIT:
            break
    headers = _end_to_end(answer.headers)
    headers.popall("Content-Length", None)
    response = web.Response(status=answer.status, headers=headers, body=bytes(body))
    return response, ModelFailure(answer.status, _message(bytes(body), answer))


def _message(body: bytes, answer: aiohttp.ClientResponse) -> str:
    """Find the words in an error body of the OpenAI shape, or take the status line's."""
    plain = f"{answer.status} {answer.reason or ''}".strip()
    if answer.headers.get("Content-Encoding"):
        return plain
    try:
        error = json.loads(body)["error"]
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        return plain
    return str(said)[:_MESSAGE_LIMIT]


def _failed(status: int, message: str) -> Outcome:
    error = {"message": message, "type": "provider_unreachable", "code": str(status)}
    return web.json_response({"error": error}, status=status), ModelFailure(None, message)
