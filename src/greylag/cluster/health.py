"""Asking an environment's agent whether it is ready."""

import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from greylag.cluster.logfile import plain

_MOST_BYTES = 8192
_MOST_WORDS = 300
_OK = 200


@dataclass(frozen=True, slots=True)
class Health:
    """What came of the question. ``late`` means that something listens but did not answer in time;
    ``words`` is what the agent says of itself when it is not ready.
    """

    answered: bool = False
    ready: bool = False
    late: bool = False
    words: str = ""


async def ask_health(session: aiohttp.ClientSession, url: str, seconds: float) -> Health:
    """Ask the agent at ``url`` and wait at most ``seconds``. It never raises for a bad answer."""
    try:
        async with session.get(
            f"{url}/api/v1/health",
            timeout=aiohttp.ClientTimeout(total=seconds),
            allow_redirects=False,
        ) as response:
            if response.status == _OK:
                return Health(answered=True, ready=True)
            body = await response.content.read(_MOST_BYTES)
            return Health(answered=True, words=_words(response.status, body))
    except TimeoutError:
        return Health(late=True)
    except aiohttp.ClientError:
        return Health()


def _words(status: int, body: bytes) -> str:
    """Return the agent's own sentence from its answer, or one that tells the status."""
    try:
        answer: Any = json.loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        for key in ("message", "detail", "error"):
            if isinstance(said := answer.get(key), str) and said:
                return plain(said)[:_MOST_WORDS]
    return f"The agent's health check answered {status}."
