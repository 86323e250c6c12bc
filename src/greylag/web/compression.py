"""The layer that compresses text for clients that take it.

Streams are not compressed: events must come at once. Nor what an agent gives as it is, logs and
files, nor what is small.

Whoever can make a browser ask for what they choose, and sees how long the answers are, could guess
a secret that stands in one beside their choice (BREACH). None does: the token and the cookie never
stand in a body, and a browser sends the cookie with no request of another site's page.
"""

from starlette.datastructures import Headers
from starlette.middleware.gzip import (
    DEFAULT_EXCLUDED_CONTENT_TYPES,
    GZipResponder,
    IdentityResponder,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MIN_BYTES = 1024
_AS_IT_IS = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "text/plain", "application/octet-stream")
# JSON of lists is mostly repetition: the quickest level leaves a tenth of it.
_LEVEL = 1


class Compression:
    """ASGI layer: gzip where the client takes it and the answer gains by it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        respond = _Large(self._app, MIN_BYTES, exclude_content_types=_AS_IT_IS)
        if _takes_gzip(Headers(scope=scope)):
            respond = _Gzip(self._app, MIN_BYTES, _LEVEL, exclude_content_types=_AS_IT_IS)
        await respond(scope, receive, send)


class _Large(IdentityResponder):
    """Tells caches that there is another form of this answer; of a small one there is none."""

    _small = False

    async def send_with_compression(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = Headers(raw=message.setdefault("headers", []))
            self._small = int(headers.get("content-length", MIN_BYTES)) < MIN_BYTES
        await (self.send if self._small else super().send_with_compression)(message)


class _Gzip(_Large, GZipResponder):
    """The same, compressed."""


def _takes_gzip(headers: Headers) -> bool:
    accepted = headers.get("accept-encoding", "").replace(" ", "").lower()
    offers = (offer.partition(";") for offer in accepted.split(","))
    return any(name == "gzip" and quality.rstrip("0.") != "q=" for name, _, quality in offers)
