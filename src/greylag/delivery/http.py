"""Implements ``greylag.ports.Delivery`` over HTTP: one try each, within bounds, and nowhere that
users' addresses must not lead.
"""

import asyncio
import base64
import hmac
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus

import aiohttp
from yarl import URL

from greylag.common.net import proxy_for
from greylag.common.public_hosts import NamedHosts, NotPublicError, PublicResolver
from greylag.delivery import web_push
from greylag.domain.errors import InvalidRequestError
from greylag.ports import (
    MAX_ADDRESS,
    Delivered,
    DeliveryResult,
    PushAddress,
    PushMessage,
    WebhookAddress,
)

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
KEPT_SECONDS = 4 * 3600
"""How long a push service keeps what it cannot hand on: then it is of no use to anybody."""
_MOST_AT_ONCE = 32
_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


class HttpDelivery:
    """See ``greylag.ports.Delivery``.

    Args:
        named: hosts that may have any address (``common.public_hosts.NamedHosts``).
        authorities: whom to trust, as PEM; "": whom this machine trusts.
        proxies: the variables that name proxies (``proxy_variables``).
    """

    def __init__(self, named: Sequence[str], authorities: str, proxies: Mapping[str, str]) -> None:
        self._proxies = proxies
        self._hosts = NamedHosts(named)
        # A name that nobody answers for holds its thread: what waits for one has a connection.
        self._resolver = PublicResolver(self._hosts, proxies, _MOST_AT_ONCE)
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)
        connector = aiohttp.TCPConnector(
            ssl=ssl.create_default_context(cadata=authorities or None),
            resolver=self._resolver,
            limit=0,  # room is waited for before, so that its seconds begin with its turn
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=TOTAL_SECONDS, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": "Greylag"},
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
        await self._resolver.close()  # a connector closes none that it was given

    @staticmethod
    def new_key() -> str:
        """Return a new private key for pushes; see the port."""
        return web_push.new_key()

    @staticmethod
    def public_key(key: str) -> str:
        """Return its public part; see the port."""
        return web_push.public_key(key)

    def check(self, address: PushAddress | WebhookAddress) -> str:
        """Return the host of an address that may be told something; see the port."""
        if isinstance(address, WebhookAddress):
            return self._checked(address.url)
        try:
            web_push.check(address)
        except ValueError as error:
            raise InvalidRequestError("The keys are not those of a browser.") from error
        return self._checked(address.endpoint)

    def _checked(self, text: str) -> str:
        try:
            url = URL(text)
            host = url.host or ""
            fits = len(text) <= MAX_ADDRESS and text.isprintable() and bool(url.port)
        except ValueError:
            fits, host, url = False, "", URL()
        secure = url.scheme == "https" or (url.scheme == "http" and self._hosts.is_plain(url))
        if not fits or not host or not secure or url.user or url.password:
            raise InvalidRequestError(
                f"The address must be https, of {MAX_ADDRESS} characters at most, without a user."
            )
        try:
            self._hosts.check_literal(url)
            if host == "localhost" or host.endswith(".localhost"):
                self._hosts.check(host, url.port or 0, ["127.0.0.1"])
        except NotPublicError as error:
            raise InvalidRequestError(
                "The address leads to a host that is not public.",
                hint="Whoever runs this Greylag can name the host in GREYLAG_NOTIFICATION_HOSTS.",
            ) from error
        return host

    async def push(self, to: PushAddress, key: str, message: PushMessage) -> Delivered:
        """Give a message to a browser's push service; see the port."""
        if (refused := self._refusal(to.endpoint)) is not None:
            return refused
        origin = str(URL(to.endpoint).origin())
        word = web_push.authorization(key, origin, message.contact, datetime.now(UTC))
        headers = {
            "Authorization": word,
            "Content-Encoding": "aes128gcm",
            "Content-Type": "application/octet-stream",
            "TTL": str(KEPT_SECONDS),
            "Topic": message.topic,
            "Urgency": "high" if message.urgent else "normal",
        }
        gone = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
        return await self._send(to.endpoint, headers, web_push.encrypted(to, message.body), gone)

    async def post(
        self, to: WebhookAddress, message_id: str, at: datetime, body: bytes
    ) -> Delivered:
        """Send a signed message to a webhook; see the port."""
        if (refused := self._refusal(to.url)) is not None:
            return refused
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(at.timestamp())),
        }
        headers["webhook-signature"] = signature(to.secret, headers, body)
        return await self._send(to.url, headers, body, {HTTPStatus.GONE})

    def _refusal(self, address: str) -> Delivered | None:
        try:
            self._checked(address)
        except InvalidRequestError as error:  # the settings have changed since it was added
            return Delivered(DeliveryResult.REFUSED, str(error))
        return None

    async def _send(
        self, address: str, headers: Mapping[str, str], body: bytes, gone: set[HTTPStatus]
    ) -> Delivered:
        async with self._room:
            return await self._sent(URL(address), headers, body, gone)

    async def _sent(
        self, url: URL, headers: Mapping[str, str], body: bytes, gone: set[HTTPStatus]
    ) -> Delivered:
        try:
            proxy = proxy_for(str(url), self._proxies)
            if proxy is not None:
                await self._resolver.check_name(url)
            # Whatever it answers, its status is all that counts: leaving closes what was not read.
            async with self._session.post(
                url,
                headers=headers,
                data=body,
                allow_redirects=False,
                proxy=None if proxy is None else proxy.url,
                proxy_headers=None if proxy is None else proxy.auth_header(),
            ) as answer:
                status = answer.status
        except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            return _unreached(error)
        if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            return Delivered(DeliveryResult.DONE, "delivered")
        result = DeliveryResult.REFUSED
        if status in gone:
            result = DeliveryResult.GONE
        elif status in _AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            result = DeliveryResult.LATER
        return Delivered(result, f"answered {status}")


def signature(secret: str, headers: Mapping[str, str], body: bytes) -> str:
    """Return what a webhook's receiver knows us by (Standard Webhooks, version v1)."""
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.digest(base64.b64decode(secret), signed, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def _unreached(error: Exception) -> Delivered:
    if NotPublicError in {type(error), type(error.__cause__)}:
        return Delivered(DeliveryResult.REFUSED, "its address is not public")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Delivered(DeliveryResult.LATER, "its name was not found")
    if isinstance(error, aiohttp.ClientSSLError):
        return Delivered(DeliveryResult.LATER, "its certificate is not trusted")
    if isinstance(error, TimeoutError):
        return Delivered(DeliveryResult.LATER, "it did not answer in time")
    return Delivered(DeliveryResult.LATER, "it was not reached")
