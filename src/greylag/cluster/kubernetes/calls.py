"""What is true of each request to the API server: when it is tried again, and how it is told that
there is no answer; answers that are left before their end, the events of a watch, and sockets that
miss their other end.
"""

import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from greylag.cluster.kubernetes.failures import ApiError
from greylag.common.backoff import backoff
from greylag.common.net import why_refused
from greylag.common.typed import parse_json
from greylag.domain.errors import ClusterUnavailableError

TRIES = 5
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0

_TOO_MANY = 429
_LONGEST_LINE = 16 * 1024 * 1024
# Linux's names; what a system lacks is left at its own. The last one is in milliseconds.
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One request. ``repeatable``: doing it twice is the same as doing it once."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    content_type: str = "application/json"
    repeatable: bool = False


class Answer(aiohttp.ClientResponse):
    """An answer whose connection ends at once where it is left before its own end.

    Else TLS would wait for half a minute for what the other side says to that.
    """

    def close(self) -> None:
        """Break it off."""
        if self.connection is not None and self.connection.transport is not None:
            self.connection.transport.abort()
        super().close()

    def release(self) -> Any:
        """Give its connection back, if nothing of it is to come any more."""
        if not self.content.is_eof():
            self.close()
        return super().release()


class WatchStream:
    """What a watch tells: pairs of ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK`` and object.

    It ends by itself when its time is over.

    Raises:
        ApiError: the API server ends it; ``is_gone``: list anew.
        ClusterUnavailableError: it breaks off.
    """

    def __init__(self, response: aiohttp.ClientResponse, server: str) -> None:
        self._response = response
        self._server = server

    def cut(self) -> None:
        """Break it off; whoever reads gets an error."""
        self._response.close()

    async def __aiter__(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        try:
            async for line in _lines(self._response):
                event = parse_json(line)
                if event["type"] == "ERROR":
                    raise ApiError.of_status(event["object"], code=0)
                yield event["type"], _versioned(event["object"])
        except (aiohttp.ClientError, OSError) as error:
            raise unavailable(self._server, error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ClusterUnavailableError("The watch gave what is not an event.") from error


def unavailable(server: str, error: BaseException) -> ClusterUnavailableError:
    """Return what to raise from ``error``."""
    if isinstance(error, ApiError):
        return ClusterUnavailableError(f"The API server {server} answered {error}.")
    if isinstance(error, TimeoutError):
        return ClusterUnavailableError(f"The API server {server} did not answer in time.")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = f"its certificate is not one to trust ({why_refused(error)})"
    elif isinstance(error, OSError) and error.strerror:
        why = error.strerror
    else:
        why = "the connection broke off"
    return ClusterUnavailableError(f"The API server {server} cannot be reached: {why}.")


def _versioned(thing: dict[str, Any]) -> dict[str, Any]:
    """Return ``thing``; ``KeyError`` or ``TypeError`` when one cannot go on from it."""
    if not isinstance(thing["metadata"]["resourceVersion"], str):
        raise TypeError("a version that is not a text")
    return thing


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield whole lines; ``ClusterUnavailableError`` for an end within one."""
    pieces: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            yield b"".join((*pieces, piece))
            pieces, size = [], 0
        if rest:
            pieces.append(rest)
            size += len(rest)
        if size > _LONGEST_LINE:
            raise ClusterUnavailableError("The watch gave an event that is too long.")
    if pieces:
        raise ClusterUnavailableError("The watch broke off within an event.")


def pause_after(call: ApiCall, error: Exception, tried: int) -> float | None:
    """Return how many seconds to wait before the next try, ``None`` when there must be none.

    ``tried`` is how often it was tried.
    """
    pause = backoff(tried, FIRST_PAUSE, LONGEST_PAUSE)
    if isinstance(error, ApiError):
        if not error.is_unavailable:
            return None
    elif isinstance(error, aiohttp.ClientSSLError):
        return None
    never_begun = isinstance(error, aiohttp.ClientConnectorError) or (
        isinstance(error, ApiError) and error.status == _TOO_MANY
    )
    if tried >= TRIES or not (call.repeatable or never_begun):
        return None
    asked = (isinstance(error, ApiError) and error.retry_after) or 0.0
    # Who asks for more patience is told of to whoever waits, who may come again later.
    return max(asked, pause) if asked <= LONGEST_PAUSE else None


def kept_alive(address: Any) -> socket.socket:
    """Return a socket for an address as ``getaddrinfo`` gives it.

    Its other end is missed within seconds, though nothing is sent.
    """
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
