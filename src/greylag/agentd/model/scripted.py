"""The scripted model: an OpenAI-compatible provider that needs no network and no key.

It serves demonstrations when no provider is set, and tests as a provider that fails on command.
`scripted_plan` tells what it answers; this module speaks the protocol (chat completions, streamed
or whole, and the list of models). `app()` is the whole as a server of its own.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from greylag.agentd.model.script import Directive, deltas, plan, tool_calls

MODEL_NAME = "greylag-scripted"
BODY_LIMIT = 64 * 1024 * 1024
_CREATED = 1_700_000_000  # a fixed time, so that the same request has the same answer
_SPLIT = re.compile(rb"[\x00-\x7f]+|[\x80-\xff]{1,3}")  # cuts four-byte characters in two
_BYTES_PER_TOKEN = 4


class _StreamOverError(Exception):
    """The script ends the stream here, without the provider's usual end."""


def app() -> web.Application:
    """Return the scripted model as an aiohttp application, to run on a port of its own."""
    application = web.Application(client_max_size=BODY_LIMIT)
    application.router.add_route("*", "/{path:.*}", answer)
    return application


async def answer(request: web.Request) -> web.StreamResponse:
    """Answer one call of the OpenAI API, as the last user message's script says."""
    if request.method == "GET" and request.path.endswith("/models"):
        model = {"id": MODEL_NAME, "object": "model", "created": _CREATED, "owned_by": "greylag"}
        return web.json_response({"object": "list", "data": [model]})
    if request.method != "POST" or not request.path.endswith("/chat/completions"):
        return _error(404, f"the scripted model has no {request.method} {request.path}")
    body = _parse(await request.read())
    if body is None:
        return _error(400, "the body is no chat-completions request")
    steps = plan(body["messages"])
    refused = await _refusal(steps)
    if refused is not None:
        return refused
    if body.get("stream"):
        return await _Stream(request, body).play(steps)
    return web.json_response(_whole(body, steps))


def _parse(raw: bytes) -> dict[str, Any] | None:
    """Read a request's body; None when it is no chat-completions request."""
    try:
        body = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(body, dict):
        return None
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return None
    return body


async def _refusal(steps: Sequence[Directive]) -> web.StreamResponse | None:
    """Return the answer of a step that comes in place of any chunk, None when there is none."""
    for step in steps:
        match step.name:
            case "hang":
                await asyncio.Event().wait()
            case "status":
                code = int(step.words or "500")
                return _error(code, f"the scripted model was told to answer {code}")
            case "context-exceeded":
                return _error(400, "the context is too long", "context_length_exceeded")
            case "empty":
                return web.Response(content_type="text/event-stream")
    return None


def _error(status: int, message: str, code: str | None = None) -> web.Response:
    error = {"message": message, "type": "scripted_error", "code": code or str(status)}
    return web.json_response({"error": error}, status=status)


def _chunk(choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": MODEL_NAME,
        "choices": choices,
        **more,
    }


def _usage(body: dict[str, Any], answered: int) -> dict[str, int]:
    """Count tokens roughly, by bytes."""
    asked = len(json.dumps(body["messages"])) // _BYTES_PER_TOKEN
    said = answered // _BYTES_PER_TOKEN
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _calls(body: dict[str, Any], steps: Sequence[Directive]) -> list[dict[str, Any]]:
    names = [tool.get("function", {}).get("name", "") for tool in body.get("tools") or []]
    shell = next((name for name in names if name.split("__")[-1] == "shell"), "shell")
    first_id = f"call_{len(body['messages'])}"
    return [call for step in steps for call in tool_calls(step, shell, first_id)]


def _finish_reason(calls: Sequence[Any], steps: Sequence[Directive]) -> str:
    if calls:
        return "tool_calls"
    return "length" if any(step.name == "length" for step in steps) else "stop"


def _whole(body: dict[str, Any], steps: Sequence[Directive]) -> dict[str, Any]:
    """The answer as one JSON object, for a request that does not stream."""
    said = [delta for step in steps for delta in deltas(step)]
    content = "".join(delta.get("content", "") for delta in said)
    message: dict[str, Any] = {"role": "assistant", "content": content}
    calls = _calls(body, steps)
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(calls, steps)}
    whole = _chunk([choice], usage=_usage(body, len(content)))
    return {**whole, "object": "chat.completion"}


class _Stream:
    """Plays steps into one event stream."""

    def __init__(self, request: web.Request, body: dict[str, Any]) -> None:
        self._request = request
        self._body = body
        self._response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self._chunks = 0
        self._answered = 0
        self._delay = 0.0
        self._cut_after: int | None = None
        self._stall_after: int | None = None
        self._split = False

    async def play(self, steps: Sequence[Directive]) -> web.StreamResponse:
        await self._response.prepare(self._request)
        limits = {step.name: step.numbers.get("after", 0) for step in steps}
        self._cut_after, self._stall_after = limits.get("cut"), limits.get("stall")
        try:
            for step in steps:
                await self._step(step)
            await self._end(steps)
        except _StreamOverError:
            pass
        return self._response

    async def _step(self, step: Directive) -> None:
        match step.name:
            case "delay":
                self._delay = step.numbers.get("ms", 0) / 1000
            case "unicode":
                self._split = True
            case "error-in-stream":
                error = {"message": "overloaded mid stream", "type": "server_error", "code": "500"}
                await self._write(json.dumps({"error": error}))
                raise _StreamOverError
        for delta in deltas(step):
            await self._say(delta)

    async def _say(self, delta: dict[str, Any], finish: str | None = None) -> None:
        await self._obey_limits()
        await asyncio.sleep(self._delay)  # without a delay too: a long answer must not hog the loop
        chunk = _chunk([{"index": 0, "delta": delta, "finish_reason": finish}])
        await self._write(json.dumps(chunk, ensure_ascii=False))
        self._chunks += 1
        self._answered += len(delta.get("content", ""))

    async def _obey_limits(self) -> None:
        if self._stall_after is not None and self._chunks >= self._stall_after:
            await asyncio.Event().wait()
        if self._cut_after is not None and self._chunks >= self._cut_after:
            transport = self._request.transport
            if transport is not None:
                # Closing (not aborting) lets the chunks before arrive; the end mark never comes.
                transport.close()
            raise _StreamOverError

    async def _end(self, steps: Sequence[Directive]) -> None:
        calls = _calls(self._body, steps)
        if calls:
            await self._say({"role": "assistant", "tool_calls": calls})
        await self._say({}, _finish_reason(calls, steps))
        options = self._body.get("stream_options") or {}
        if options.get("include_usage"):
            usage = _usage(self._body, self._answered)
            await self._write(json.dumps(_chunk([], usage=usage)))
        await self._write("[DONE]")

    async def _write(self, data: str) -> None:
        for piece in self._pieces(f"data: {data}\n\n".encode()):
            await self._response.write(piece)

    def _pieces(self, frame: bytes) -> list[bytes]:
        return _SPLIT.findall(frame) if self._split else [frame]
