"""One watch as the API server streams it: a line of JSON for each event."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from greylag.cluster.kubernetes.failures import ApiError
from greylag.cluster.kubernetes.transport import Transport
from greylag.domain.errors import ClusterUnavailableError

_LONGEST_LINE = 16 * 1024 * 1024


class WatchStream:
    """What a watch tells: pairs of ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK`` and object.

    Raises ``ApiError`` (``is_gone``: list anew), ``ClusterUnavailableError`` when it breaks off. It
    ends by itself when its time is over.
    """

    def __init__(self, response: aiohttp.ClientResponse, transport: Transport) -> None:
        self._response = response
        self._transport = transport

    def cut(self) -> None:
        """Break it off; whoever reads gets an error."""
        self._response.close()

    async def __aiter__(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        try:
            async for line in _lines(self._response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError.of_status(event["object"], code=0)
                yield event["type"], _versioned(event["object"])
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._transport.unavailable(error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ClusterUnavailableError("The watch gave what is not an event.") from error


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
