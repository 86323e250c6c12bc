"""The model provider: its address, the way there, and what its answers mean.

An address without a path means its ``/v1``; one with a path is taken as it stands. Redirects on the
provider's own host are followed here, as the key goes along; others are refused. Whatever a
provider does in place of an answer, a status, a page, an error in a 200 or in the middle of a
stream, becomes a ``ModelFailure`` in words for people.
"""

import asyncio
import json
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from greylag.agentd.agent.types import ModelFailure, ModelProvider
from greylag.agentd.model.bodies import Body
from greylag.common.net import Proxy, beginning, end_to_end, proxy_for, why_refused
from greylag.common.typed import dig, parse_encodable, parse_json

SESSION_HEADER = "agent-session-id"

_CONNECT_SECONDS = 15.0
_HEADER_LINE = 64 * 1024
_ERROR_LIMIT = 64 * 1024
_LINE_LIMIT = 1024 * 1024
_MESSAGE_LIMIT = 2000
_MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 307, 308})
_OURS = frozenset({"host", "authorization", SESSION_HEADER, "expect", "accept-encoding"})
_OF_THE_BODY = frozenset({"content-length", "content-encoding", "content-type"})
_EVENTS = "text/event-stream"
_WORDS = ("message", "detail", "error_description", "msg", "title")
_BAD_GATEWAY, _TIMEOUT = 502, 504
_WEB_PAGE = (
    "The model provider's address answers with a web page: see that GREYLAG_MODEL_URL is its API's."
)
_NO_END = "the connection ended before it did"
_FILTERED = (
    b'{"error": {"message": "The model provider\'s content filter ended the answer.",'
    b' "code": "content_filter"}}'
)
_BEGINNINGS = (b'"choices"', b'"response.created"')
_END = re.compile(
    rb'"finish_reason"\s*:\s*"[^"]|"type"\s*:\s*"response\.(?:completed|incomplete|failed)"'
)
_FILTER = re.compile(
    rb'"(?:finish_reason|incomplete_details"\s*:\s*\{\s*"reason)"\s*:\s*"content[_-]filter"'
)
"""How an answer begins and ends, of /v1/chat/completions and of /v1/responses."""
_SILENCE = "The model provider said nothing for {seconds:g} seconds (GREYLAG_MODEL_TIMEOUT)."

CallOutcome = tuple[web.StreamResponse, ModelFailure | None]


def target_of(base: str, path: str) -> URL:
    """Return where a provider at ``base`` has what is ``path`` (``/v1/...``) of the relay."""
    address, asked = URL(base, encoded=True), URL(path.removeprefix("/v1"), encoded=True)
    root = address.raw_path.rstrip("/") or "/v1"
    query = "&".join(filter(None, (address.raw_query_string, asked.raw_query_string)))
    target = f"{address.origin()}{root}{asked.raw_path}"
    return URL(f"{target}?{query}" if query else target, encoded=True)


class ProviderFaultError(Exception):
    """The provider gave no answer that can be passed on.

    Attributes:
        failure: why, for the turn.
        status: what the agent is answered.
    """

    def __init__(self, message: str, status: int = _BAD_GATEWAY, *, final: bool = False) -> None:
        super().__init__(message)
        self.failure = ModelFailure(None, message, final=final)
        self.status = status

    def outcome(self) -> CallOutcome:
        """Return the answer to the agent, in the shape of the OpenAI API's own errors."""
        said = {"message": str(self), "type": "provider_unreachable", "code": str(self.status)}
        return web.json_response({"error": said}, status=self.status), self.failure


class ProviderClient:
    """The connections to one provider.

    Args:
        provider: its address and key, and the proxies that may lie before it.
        idle_seconds: the longest silence of the provider that is waited for.

    Raises:
        ValueError: a proxy that would be used is none for HTTP.
    """

    def __init__(self, provider: ModelProvider, idle_seconds: float) -> None:
        self._provider = provider
        self._idle_seconds = idle_seconds
        self._key = _forms_of(provider.key) if provider.key else None
        # Not aiohttp's ``trust_env``: that reads ~/.netrc too, which belongs to the agent.
        self._proxy = proxy_for(provider.url, provider.proxies)
        trusted = ssl.create_default_context(cadata=provider.authorities or None)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=idle_seconds
        )
        self._session = aiohttp.ClientSession(
            timeout=timeout,
            connector=aiohttp.TCPConnector(limit=0, ssl=trusted),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=_HEADER_LINE,
            max_field_size=_HEADER_LINE,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        )

    async def aclose(self) -> None:
        """Close them all."""
        await self._session.close()

    async def forward(
        self, request: web.Request, body: Body, heard: Callable[[], None]
    ) -> CallOutcome:
        """Pass ``request`` on and stream the answer back.

        Args:
            request: the agent's.
            body: the request's; it is dropped when the provider answers.
            heard: called at each sign of life of the provider.

        Returns:
            The response, begun or whole, and why the call failed (None when it worked). An answer
            that breaks off or turns into an error is a response that has begun, with a failure: its
            connection is to be broken, as a clean end would make half an answer look whole.
        """
        headers = CIMultiDict(end_to_end(request.headers, without=_OURS))
        target = target_of(self._provider.url, request.raw_path)
        try:
            async with self.ask(request.method, target, headers, body.data or None) as answer:
                body.drop()
                heard()
                return await self._passed_on(request, answer, heard)
        except ProviderFaultError as fault:
            return fault.outcome()

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        target: URL,
        headers: CIMultiDict[str] | None = None,
        body: bytes | bytearray | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request with the key, and again where its answer points to on the same host.

        Raises:
            ProviderFaultError: there is no answer that is not such a pointer.
        """
        headers = CIMultiDict(headers or {})
        # What is compressed could not be looked into.
        headers["Accept-Encoding"] = "identity"
        if self._provider.key is not None:
            headers["Authorization"] = f"Bearer {self._provider.key}"
        auth = {} if self._proxy is None else self._proxy.auth_header()
        with _in_words(self._provider, self._proxy, self._idle_seconds):
            for _ in range(_MOST_REDIRECTS + 1):
                async with self._session.request(
                    method,
                    target,
                    headers=[*headers.items(), *(auth.items() if target.scheme == "http" else ())],
                    data=body,
                    proxy=None if self._proxy is None else self._proxy.url,
                    proxy_headers=auth if target.scheme == "https" else None,
                    allow_redirects=False,
                ) as answer:
                    if not HTTPStatus.MULTIPLE_CHOICES <= answer.status < HTTPStatus.BAD_REQUEST:
                        body = None  # while the answer comes nobody needs it
                        yield answer
                        return
                    target = _next_target(target, answer)
            words = f"The model provider redirects more than {_MOST_REDIRECTS} times."
            raise ProviderFaultError(words, final=True)

    async def _passed_on(
        self, request: web.Request, answer: aiohttp.ClientResponse, heard: Callable[[], None]
    ) -> CallOutcome:
        if answer.status >= HTTPStatus.BAD_REQUEST:
            return self._refused(
                answer.status, answer, await beginning(answer.content, _ERROR_LIMIT)
            )
        if answer.content_type == "text/html":
            raise ProviderFaultError(_WEB_PAGE, final=True)
        first = b""
        if answer.content_type.endswith("json"):
            first = await beginning(answer.content, _ERROR_LIMIT)
            said = error_in(first)
            if said is not None:
                return self._refused(_status_of(said), answer, first)
        return await self._stream(request, answer, heard, first)

    def _refused(self, status: int, answer: aiohttp.ClientResponse, body: bytes) -> CallOutcome:
        """Pass on an error (short by nature), with what the provider says in it."""
        headers = CIMultiDict(end_to_end(answer.headers, without=_OF_THE_BODY - {"content-type"}))
        response = web.Response(status=status, headers=headers, body=self.masked(body))
        plain = f"The model provider answered {status} {answer.reason or ''}".strip() + "."
        if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED and self._proxy is not None:
            plain = f"The proxy {self._proxy.url} wants another user or password (407)."
            return response, ModelFailure(None, plain, final=True)
        words = words_in(self.masked(body), answer.content_type) or plain
        return response, ModelFailure(status, words)

    def masked(self, body: bytes) -> bytes:
        """Return what the provider says without the key, which some repeat as they refuse it."""
        return body if self._key is None else self._key.sub(b"***", body)

    async def _stream(
        self,
        request: web.Request,
        answer: aiohttp.ClientResponse,
        heard: Callable[[], None],
        first: bytes,
    ) -> CallOutcome:
        events = _Events() if answer.content_type == _EVENTS else None
        # Without a length, or one that stops too soon would look whole all the same.
        headers = end_to_end(answer.headers, without={"content-length"} if events else ())
        response = web.StreamResponse(status=answer.status, headers=CIMultiDict(headers))
        try:
            async for chunk in _chunks(first, answer):
                heard()
                good = chunk if events is None else events.feed(chunk)
                if good:
                    if not response.prepared:
                        await response.prepare(request)
                    await response.write(good)
                if events is not None and events.error is not None:
                    return self._broken_off(response, answer, events.error)
            rest = b"" if events is None else events.end()
            if not response.prepared:
                await response.prepare(request)
            await response.write(rest)
        except (aiohttp.ClientError, TimeoutError) as error:
            timed_out = isinstance(error, TimeoutError)
            words = f"The model provider broke its answer off: {error}"
            if timed_out:
                words = _SILENCE.format(seconds=self._idle_seconds)
            if not response.prepared:
                status = _TIMEOUT if timed_out else _BAD_GATEWAY
                return ProviderFaultError(words, status, final=timed_out).outcome()
            return response, ModelFailure(None, words, final=timed_out)
        return response, None

    def _broken_off(
        self,
        response: web.StreamResponse,
        answer: aiohttp.ClientResponse,
        said: bytes,
    ) -> CallOutcome:
        """End a stream in which the provider has told of an error."""
        status = _status_of(error_in(said))
        words = words_in(self.masked(said), "application/json") or "The model provider failed."
        if response.prepared:
            return response, ModelFailure(status, words)
        headers = CIMultiDict(end_to_end(answer.headers, without=_OF_THE_BODY))
        refusal = web.Response(
            status=status,
            headers=headers,
            body=self.masked(said),
            content_type="application/json",
        )
        return refusal, ModelFailure(status, words)


def _forms_of(key: str) -> re.Pattern[bytes]:
    """Return what finds a key, also where JSON or an address has escaped signs of it."""
    found = b""
    for sign in key:
        plain = sign.encode()
        percent = b"".join(b"%%%02x" % byte for byte in plain)
        codes = b"|".join(map(re.escape, (b"\\u%04x" % ord(sign), percent)))
        found += b"(?:\\\\?" + re.escape(plain) + b"|(?i:" + codes + b"))"
    return re.compile(found)


async def _chunks(first: bytes, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in answer.content.iter_any():
        yield chunk


class _Events:
    """Looks into server-sent events as they pass, a line at a time.

    Attributes:
        error: the error that an event has told of, as JSON; None as long as there was none.
        rest: what has come of a line that is not whole yet.
    """

    def __init__(self) -> None:
        self.error: bytes | None = None
        self.rest = b""
        self._begun = self._finished = False

    def end(self) -> bytes:
        """Return what is left to be passed on of a stream that has ended.

        Raises:
            aiohttp.ClientPayloadError: it is an answer of which no end has come: what lies on the
                way often ends a stream properly that has broken off before.
        """
        self._note_end(self.rest)
        if self._begun and not self._finished:
            raise aiohttp.ClientPayloadError(_NO_END)
        return self.rest

    def feed(self, chunk: bytes) -> bytes:
        """Return what may be passed on by now: whole lines before an error."""
        whole, newline, self.rest = (self.rest + chunk).rpartition(b"\n")
        if len(self.rest) > _LINE_LIMIT:  # no error is as long as that
            passed, self.rest = whole + newline + self.rest, b""
            self._note_end(passed)
            return passed
        passed, name = b"", b""
        for line in (whole + newline).splitlines(keepends=True):
            if line.startswith(b"event:"):  # goes with the data that follow
                name = line
                continue
            if line.startswith(b"data:") and b'"error"' in line:
                error = error_in(line.removeprefix(b"data:").strip())
                if error is not None:
                    self.error = json.dumps({"error": error}).encode()
                    return passed
            self._note_end(line)
            if _FILTER.search(line) is not None:
                self.error = _FILTERED
                return passed
            passed, name = passed + name + line, b""
        self.rest = name + self.rest
        return passed

    def _note_end(self, line: bytes) -> None:
        """Note whether a line begins or ends an answer."""
        self._begun = self._begun or any(one in line for one in _BEGINNINGS)
        done = line.removeprefix(b"data:").strip() == b"[DONE]"
        self._finished = self._finished or done or _END.search(line) is not None


# What a provider's words and faults mean.


def error_in(body: bytes) -> Any:
    """Return the error that a JSON text tells of in place of an answer, None when it tells none."""
    try:
        said = parse_json(body)
    except ValueError:
        return None
    said = said[0] if isinstance(said, list) and said else said  # as Google does
    if not isinstance(said, dict) or "choices" in said:
        return None
    if said.get("type") == "response.failed":
        said = dig(said, "response")
    return said.get("error") or (said if said.get("type") == "error" else None)


def words_in(body: bytes, content_type: str) -> str | None:
    """Return what an error body says to people, None when it says nothing."""
    try:
        said = parse_encodable(body)
    except ValueError:
        text = body.decode("utf-8", "replace").strip()
        return text[:_MESSAGE_LIMIT] if text and content_type == "text/plain" else None
    return _words_of(said)


def _words_of(said: Any) -> str | None:
    """Look for words where providers put them: ``error``, ``errors``, ``message``, ``detail``."""
    while isinstance(said, list | dict):
        if isinstance(said, list):
            said = said[0] if said else None
            continue
        inner = next((said[name] for name in ("error", "errors", *_WORDS) if said.get(name)), None)
        said = inner
    return said[:_MESSAGE_LIMIT] if isinstance(said, str) and said.strip() else None


def _status_of(said: Any) -> int:
    """Return the HTTP status that an error means that came without one of its own."""
    if not isinstance(said, dict):
        return HTTPStatus.BAD_REQUEST
    for name in ("code", "status"):
        code = said.get(name)
        number = int(str(code)) if re.fullmatch(r"\d{3}", str(code)) else 0
        if HTTPStatus.BAD_REQUEST <= number < 600:  # noqa: PLR2004 - the last of HTTP's classes
            return number
    kind = f"{said.get('type')} {said.get('code')} {said.get('status')}".lower()
    for word, status in _KINDS.items():
        if word in kind:
            return status
    return HTTPStatus.BAD_REQUEST


_KINDS = {
    "rate_limit": HTTPStatus.TOO_MANY_REQUESTS,
    "resource_exhausted": HTTPStatus.TOO_MANY_REQUESTS,
    "quota": HTTPStatus.TOO_MANY_REQUESTS,
    "api_key": HTTPStatus.UNAUTHORIZED,
    "authentication": HTTPStatus.UNAUTHORIZED,
    "permission": HTTPStatus.FORBIDDEN,
    "server_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "api_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "overloaded": HTTPStatus.SERVICE_UNAVAILABLE,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}


def _next_target(target: URL, answer: aiohttp.ClientResponse) -> URL:
    """Return where a redirect leads, if the key may go there.

    Raises:
        ProviderFaultError: to another host, to clear text, or in a way that changes the request.
    """
    try:
        to = target.join(URL(answer.headers.get("Location", ""), encoded=True))
    except ValueError:
        to = URL()
    same = to.host == target.host and (
        to.origin() == target.origin() or (target.scheme, to.scheme) == ("http", "https")
    )
    if same and answer.status in _REDIRECTS and to != target:
        return to
    where = f"to {to.origin()}" if to.host and not same else "and that cannot be followed"
    raise ProviderFaultError(
        f"The model provider at {target.origin()} redirects ({answer.status}) {where}. The key "
        "is sent to no other host: set GREYLAG_MODEL_URL to the address that it is to have.",
        final=True,
    )


@contextmanager
def _in_words(provider: ModelProvider, proxy: Proxy | None, idle_seconds: float) -> Iterator[None]:
    """Say in words what keeps an answer away; no address that may hold a secret is in them."""
    at = URL(provider.url)
    name = f"The model provider at {at.host}:{at.port}"
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        words = f"{name} could not be connected to within {_CONNECT_SECONDS:g} seconds."
        raise ProviderFaultError(words, _TIMEOUT) from error
    except TimeoutError as error:
        raise ProviderFaultError(
            _SILENCE.format(seconds=idle_seconds), _TIMEOUT, final=True
        ) from error
    except (aiohttp.ClientHttpProxyError, aiohttp.ClientProxyConnectionError) as error:
        called = "The proxy" if proxy is None else f"The proxy {proxy.url}"
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            raise ProviderFaultError(f"{called} cannot be reached.") from error
        words = f"{called} refused the way to {at.host}:{at.port}: {error.status} {error.message}."
        raise ProviderFaultError(words[:_MESSAGE_LIMIT], final=True) from error
    except aiohttp.ClientConnectorCertificateError as error:
        raise ProviderFaultError(
            f"{name} shows a certificate that is not trusted ({error.certificate_error}). "
            "GREYLAG_CA_FILE names a private authority.",
            final=True,
        ) from error
    except aiohttp.ClientResponseError as error:
        long = "Got more than" in error.message
        what = f"a header line of more than {_HEADER_LINE // 1024} KiB" if long else "no valid HTTP"
        raise ProviderFaultError(f"{name} answers with {what}.", final=True) from error
    except aiohttp.ClientConnectorSSLError as error:
        raise ProviderFaultError(f"{name} has no TLS: {why_refused(error)}.") from error
    except aiohttp.ClientConnectorError as error:
        words = f"Cannot connect to {name[0].lower()}{name[1:]}: {_why(error.os_error)}."
        raise ProviderFaultError(words) from error
    except (aiohttp.ClientError, OSError, UnicodeError) as error:
        raise ProviderFaultError(f"{name} failed: {_why(error)}") from error


def _why(error: Exception) -> str:
    """Return the system's words for an error, without those that Python and aiohttp put around."""
    number = (error.errno or 0) if isinstance(error, OSError) else 0
    words = os.strerror(number) if number > 0 else getattr(error, "strerror", None)
    return words or str(error)


# Whether the provider's address and key can work, tried once before anybody waits for an answer.

_TRIED_WITHIN = 10.0
_NO_SUCH_CALL = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})


async def problem_of(provider: ModelProvider, within: float = _TRIED_WITHIN) -> str | None:
    """Ask a provider for its list of models, and say what is wrong with its address or key.

    Returns:
        A sentence; None where nothing is known to be wrong: it works, does not answer now, or has
        no such list.
    """
    try:
        async with aclosing(ProviderClient(provider, within)) as client, asyncio.timeout(within):
            return await _problem(client, provider)
    except ProviderFaultError as fault:
        return str(fault) if fault.failure.final and fault.status != _TIMEOUT else None
    except TimeoutError:
        return None


async def _problem(client: ProviderClient, provider: ModelProvider) -> str | None:
    listed = target_of(provider.url, "/v1/models")
    status, words = await _tried(client, "GET", listed)
    if status == HTTPStatus.UNAUTHORIZED:
        return f"The model provider refuses GREYLAG_MODEL_KEY: {words}"
    if status not in _NO_SUCH_CALL:
        return None
    inner = f"{provider.url.rstrip('/')}/v1"
    if "?" not in inner and not inner.endswith("/v1/v1") and URL(provider.url).path != "/":
        status, _ = await _tried(client, "GET", target_of(inner, "/v1/models"))
        if status < HTTPStatus.MULTIPLE_CHOICES:
            return (
                f"GREYLAG_MODEL_URL: there is no API of models at {provider.url}, but there is one "
                f"at {inner}: set it to that."
            )
    chat = target_of(provider.url, "/v1/chat/completions")
    status, words = await _tried(client, "POST", chat, b"{}")
    if status not in _NO_SUCH_CALL or "model" in words.lower():
        return None
    return (
        f"GREYLAG_MODEL_URL: {chat.with_query(None)} is not there ({status}). An address without a "
        "path means its /v1; one with a path is taken as it stands."
    )


async def _tried(
    client: ProviderClient, method: str, target: URL, body: bytes | None = None
) -> tuple[int, str]:
    """Return the status of a call, and what an error says."""
    headers = CIMultiDict({"Content-Type": "application/json", "Accept": "application/json"})
    async with client.ask(method, target, headers, body) as answer:
        if answer.status >= HTTPStatus.BAD_REQUEST:
            body = client.masked(await beginning(answer.content, _ERROR_LIMIT))
            said = words_in(body, answer.content_type)
            return answer.status, said or f"{answer.status} {answer.reason or ''}".strip()
        if answer.content_type == "text/html":
            raise ProviderFaultError(_WEB_PAGE, final=True)
        return answer.status, ""
