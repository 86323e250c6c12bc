"""What comes from an environment's agentd: refusals as errors of ours, streams, bodies, headers.

None of it is trusted: every answer has an end, and of its headers only those about content pass.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp

from greylag.common import agent_api, sse
from greylag.common.agent_api import Operation
from greylag.common.concurrent import beside
from greylag.common.git import CAUSES
from greylag.common.typed import parse_encodable
from greylag.domain.errors import (
    AgentFailedError,
    AgentUnreachableError,
    ConfirmationNotFoundError,
    ConfirmationSettledError,
    ConflictError,
    GreylagError,
    InvalidRequestError,
    LimitExceededError,
    MissingError,
    RefusalError,
    SessionNotFoundError,
    StreamCutError,
    TooLargeError,
)

# agentd's refusals as errors of ours.

BY_CODE: Mapping[str, Callable[[str], GreylagError]] = {
    "session_not_found": SessionNotFoundError,
    "session_busy": partial(RefusalError, code="session_busy"),
    "turn_not_found": partial(RefusalError, code="turn_not_found"),
    "turn_running": partial(RefusalError, code="turn_running"),
    "snapshot_gone": partial(RefusalError, code="snapshot_gone"),
    "history_not_cut": partial(RefusalError, code="history_not_cut"),
    "message_id_conflict": ConflictError,
    "confirmation_not_found": ConfirmationNotFoundError,
    "confirmation_settled": ConfirmationSettledError,
    "events_gone": partial(RefusalError, code="turn_not_found"),
    "too_large": TooLargeError,
    "unknown_event": InvalidRequestError,
    "invalid_request": InvalidRequestError,
    "limit_exceeded": LimitExceededError,
    "terminal_not_found": MissingError,
    "storage_failed": partial(
        AgentFailedError,
        hint="See that its disk is writable and has room: delete files, or give it more.",
    ),
}
_BY_STATUS: Mapping[int, Callable[[str], GreylagError]] = {
    400: InvalidRequestError,
    404: MissingError,
    409: ConflictError,
    412: partial(RefusalError, code="precondition_failed"),
    413: TooLargeError,
    416: partial(RefusalError, code="range_not_satisfiable"),
    429: LimitExceededError,
    503: AgentUnreachableError,
}
_FILES: Mapping[str, str] = {
    "file_exists": "Choose another name, or have it take that one's place.",
    "file_denied": "See whose it is and what its rights are, in a terminal.",
    "folder_not_empty": "Delete it with all that it holds (`recursive`), or empty it first.",
    "no_space": "Delete files, or give environments more disk.",
    "not_a_file": "Name a file: this is a folder, or something else.",
    "not_a_folder": "Name a folder: this is a file, or something else.",
    "outside_workspace": "Links are followed as far as they stay in the workspace.",
}
"""What to do where the workspace is not as a request takes it to be."""
UNAUTHORIZED = 401
_NO_SUCH_ROUTE = {"not_found", "method_not_allowed"}
LONGEST_WORDS = 1000
_REFUSAL_LIMIT = 64 * 1024


def refusal(status: int, body: Mapping[str, Any], missing: GreylagError | None) -> GreylagError:
    """Return the error that agentd's answer means.

    Args:
        status: the HTTP status.
        body: the JSON of agentd's errors (``error``, ``message``, ``code``).
        missing: what a 404 without a code means for the call that was made.
    """
    said = body.get("message")
    words = said if isinstance(said, str) else ""
    message = words[:LONGEST_WORDS] or f"The agent answered {status}."
    code = body["code"] if isinstance(body.get("code"), str) else None
    if code in _NO_SUCH_ROUTE:
        return AgentFailedError(
            "The agent does not know this request: its environment runs another version.",
            hint="Deactivate the project and activate it again, so that it gets the new version.",
        )
    if status == UNAUTHORIZED:
        return AgentFailedError(
            "The environment refuses Greylag's token: somebody changed or deleted its Secret.",
            hint="Greylag starts it anew within minutes; deactivate and activate it to do so now.",
        )
    if code is None and status == 404:  # noqa: PLR2004 - HTTP's not found
        return missing or AgentFailedError(message)
    if code is not None and code in CAUSES:
        return RefusalError(message, code)
    if code is not None and code in _FILES:
        return ConflictError(message, hint=_FILES[code])
    known = BY_CODE.get(code or "") or _BY_STATUS.get(status, AgentFailedError)
    return known(message)


async def refused(response: aiohttp.ClientResponse, missing: GreylagError | None) -> GreylagError:
    """Return the error that an answer means which is no success; ``missing`` as for ``refusal``."""
    if response.status < 400:  # noqa: PLR2004 - HTTP's errors begin here
        return AgentFailedError("The agent answered with a redirect, which is not followed.")
    try:
        body = await read_json(response, _REFUSAL_LIMIT)
    except (ValueError, GreylagError):
        body = None
    return refusal(response.status, body if isinstance(body, dict) else {}, missing)


# Reading a turn's stream from agentd: whole frames, and an end to those that have died.

SILENCE_SECONDS = 60.0
"""agentd sends a heartbeat every 15 s; a stream that is silent this long is dead."""

_COMPLETE = b'"type":"complete"'
_LAST_FRAME = 4096


@asynccontextmanager
async def silence_watched(response: aiohttp.ClientResponse) -> AsyncIterator[asyncio.Event]:
    """Break a stream off that is silent for ``SILENCE_SECONDS``, or twice that at most.

    The reader sets the event that it gets for all that it hears.
    """
    heard = asyncio.Event()
    heard.set()

    async def look() -> None:
        while heard.is_set():
            heard.clear()
            await asyncio.sleep(SILENCE_SECONDS)
        response.close()  # whoever reads gets an error

    async with beside(look(), "silence"):
        yield heard


async def whole_frames(
    response: aiohttp.ClientResponse, heard: asyncio.Event
) -> AsyncIterator[bytes]:
    """Yield runs of whole frames; ``StreamCutError`` for an end before the ``complete`` event."""
    splitter = sse.FrameSplitter()
    # A stream resumed after its last event is empty, and ended too.
    ended = True
    try:
        while chunk := await response.content.readany():
            heard.set()
            if frames := splitter.feed_whole(chunk):
                ended = frames.rfind(_COMPLETE, -_LAST_FRAME) >= 0
                yield frames
    except (aiohttp.ClientError, TimeoutError, sse.FrameTooLargeError) as error:
        raise StreamCutError("The agent's stream broke off.") from error
    if not ended:
        raise StreamCutError("The agent's stream ended before the turn did.")


# What an answer holds.

PASSED_TO_CLIENT = ("accept-ranges", "content-length", "content-range", "etag", "last-modified")
_SHOWN_IN_PAGES = {agent_api.JSON, agent_api.TEXT}
_BODILESS = {204, 304}


async def incoming(response: aiohttp.ClientResponse, limit: int) -> AsyncIterator[bytes]:
    """Yield an answer's body as it comes, ``limit`` bytes at most."""
    got = 0
    try:
        while chunk := await response.content.readany():
            got += len(chunk)
            if got > limit:
                raise AgentFailedError(f"The agent's answer is larger than {limit} bytes.")
            yield chunk
    except (aiohttp.ClientError, TimeoutError) as error:
        raise AgentUnreachableError("The agent broke its answer off.") from error


async def read_json(response: aiohttp.ClientResponse, limit: int) -> Any:
    """Return an answer's JSON, in texts that can be passed on.

    Raises:
        ValueError: it is none.
    """
    return parse_encodable(b"".join([chunk async for chunk in incoming(response, limit)]))


def answer_headers(response: aiohttp.ClientResponse, operation: Operation[Any]) -> dict[str, str]:
    """Return what may be told of an answer.

    Its type is the operation's own, never the agent's, and what is not known to be harmless in a
    browser is to be saved, not shown: nothing of an agent's runs as a page of ours.
    """
    passed = {name: response.headers.get(name, "") for name in PASSED_TO_CLIENT}
    headers = {
        name: said
        for name, said in passed.items()
        if said and said.isascii() and said.isprintable()
    }
    if response.status in _BODILESS:
        headers.pop("content-length", None)
        return headers
    if operation.media not in _SHOWN_IN_PAGES:
        headers["content-disposition"] = "attachment"
    return {**headers, "content-type": operation.media}


def check_answer(response: aiohttp.ClientResponse, operation: Operation[Any]) -> None:
    """Raise ``AgentFailedError`` for a success that is not the operation's."""
    if response.status not in {operation.status, 206, 304}:
        raise AgentFailedError(f"The agent answered {response.status}, which it should not.")
    expected = operation.media.partition(";")[0]
    if response.status not in _BODILESS and response.content_type != expected:
        raise AgentFailedError(f"The agent's answer is not {expected}.")
    if (response.content_length or 0) > operation.answer_limit:
        raise AgentFailedError(f"The agent's answer is larger than {operation.answer_limit} bytes.")
