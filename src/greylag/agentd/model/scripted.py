"""The scripted model: an OpenAI-compatible provider that needs no network and no key.

It serves demonstrations when no provider is set, and tests as a provider that fails on command.
``app()`` is the whole as a server of its own (chat completions, streamed or whole, and the list of
models). The words of the last message are turned into steps, which are then played.

A message without directives gets a short demonstration answer; ``run: <command>`` gets a call of
the shell tool. Tests write directives, ``[[name words key=value]]``, anywhere in the message; they
play in order and all other text is ignored:

==========================  ========================================================================
``[[text WORDS]]``          say these words, one chunk for each
``[[think WORDS]]``         the same, as reasoning
``[[chunks n=9 size=5]]``   n chunks of ``size`` characters, numbered from 0 (``0000 0001 ...``)
``[[bytes N]]``             N bytes of text in chunks of 4096
``[[unicode]]``             text of one- to four-byte characters, written in pieces that
                            split the characters
``[[tool CMD]]``            call the shell tool; what follows plays after its result came back
``[[tools A ;; B]]``        call the shell tool several times at once
``[[call NAME JSON]]``      call any tool with these arguments
``[[delay ms=20]]``         wait before each chunk that follows
``[[status CODE]]``         answer with this HTTP status and an error body
``[[context-exceeded]]``    answer 400 ``context_length_exceeded``
``[[hang]]``                never answer, not even headers
``[[stall after=2]]``       say nothing after so many chunks, connection open (wherever written)
``[[cut after=3]]``         break the connection after so many chunks (wherever written)
``[[error-in-stream]]``     an error object in place of the next chunk, then the end
``[[length]]``              end with finish_reason ``length``
``[[empty]]``               a 200 without any body
==========================  ========================================================================

Everything follows from the request alone: the same request has the same answer. It runs in agentd
itself, so a script has at most ``MOST_SCRIPT`` characters and says at most ``MOST_ANSWER``; what is
past that is left out.
"""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from greylag.common.typed import parse_json

MODEL_NAME = "greylag-scripted"
BODY_LIMIT = 64 * 1024 * 1024
MOST_SCRIPT = 256 * 1024
MOST_ANSWER = 16 * 1024 * 1024
UNICODE_TEXT = "aä€😀 שלום 你好 👩‍👩‍👧‍👦 e\u0301 \U0001f9a2"

_SPEAKING = frozenset({"text", "think", "chunks", "bytes", "unicode"})
_TOOLS = frozenset({"tool", "tools", "call"})
_FAULTS = frozenset({"status", "context-exceeded", "hang", "empty", "error-in-stream"})
_MANNERS = frozenset({"delay", "stall", "cut", "length"})
_KNOWN = _SPEAKING | _TOOLS | _FAULTS | _MANNERS

# None of these looks at a sign more than a few times, however a message is made.
_DIRECTIVE = re.compile(r"\[\[([a-z-]++)(?=\s|\]\])")
_OPTION = re.compile(r"\b(\w++)=(\d{1,9})")
_NUMBER = re.compile(r"\d{1,9}")
_WORD = re.compile(r"\S+\s*|\s+")
_RUN = re.compile(
    r"(?:\A|(?<=\S)(?>\s*?\n\n))\s*+run:\s*+(.+)",  # at the beginning, or after an empty line
    re.DOTALL | re.IGNORECASE,
)
# goose appends this to the user's words. After a turn without an answer it puts the next message
# behind it, into the same user message: only the last one is the script.
_CONTEXT = re.compile(r"<turn-context>")
_BYTES_CHUNK = 4096
_LEAST_CHUNK = 64  # characters that a chunk counts as, for what is around it
_CREATED = 1_700_000_000  # a fixed time, so that the same request has the same answer
_SPLIT = re.compile(rb"[\x00-\x7f]+|[\x80-\xff]{1,3}")  # cuts four-byte characters in two
_BYTES_PER_TOKEN = 4
_ECHO_LIMIT = 200
_RESULT_LIMIT = 2000


@dataclass(frozen=True, slots=True)
class Directive:
    """One step: its name, its words, and its numbers (``key=value``)."""

    name: str
    words: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)


def plan(messages: Sequence[Mapping[str, Any]]) -> list[Directive]:
    """Return the steps that answer a chat-completions conversation.

    Args:
        messages: the request's ``messages``. The last user message is the script; each assistant
            message after it was one stage, which its tool calls ended.
    """
    last_user = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=-1)
    text = _text_of(messages[last_user]) if last_user >= 0 else ""
    since = messages[last_user + 1 :]
    stages = _stages(_script(_last_words(text)[:MOST_SCRIPT]))
    done = sum(1 for m in since if m.get("role") == "assistant" and m.get("tool_calls"))
    steps = stages[done] if done < len(stages) else []
    return steps or [Directive("text", _closing(since))]


def deltas(step: Directive) -> Iterator[dict[str, Any]]:
    """Return the chat-completions deltas of a step that speaks; none for the others."""
    match step.name:
        case "text":
            pieces: Iterator[str] = iter(_WORD.findall(step.words))
        case "think":
            yield from ({"reasoning_content": word} for word in _WORD.findall(step.words))
            return
        case "unicode":
            pieces = iter(_WORD.findall(UNICODE_TEXT))
        case "chunks":
            count, size = _chunks_of(step)
            pieces = (f"{i:0{size - 1}d} " for i in range(count))
        case "bytes":
            pieces = _filler(_number(step.words, 0))
        case _:
            return
    yield from ({"content": piece} for piece in pieces)


def tool_calls(step: Directive, shell: str, first_id: str) -> list[dict[str, Any]]:
    """Return the tool calls that a step makes.

    Args:
        step: any step; those that call no tool give an empty list.
        shell: the name under which the request offers the shell tool.
        first_id: what the calls' ids start with; unique in the conversation.
    """
    match step.name:
        case "tool":
            wanted = [(shell, json.dumps({"command": step.words}))]
        case "tools":
            commands = [part.strip() for part in step.words.split(";;")]
            wanted = [(shell, json.dumps({"command": command})) for command in commands]
        case "call":
            name, _, arguments = step.words.partition(" ")
            wanted = [(name, arguments or "{}")]
        case _:
            wanted = []
    return [
        {
            "index": index,
            "id": f"{first_id}_{index}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for index, (name, arguments) in enumerate(wanted)
    ]


def _enclosed(text: str, begin: re.Pattern[str], end: str) -> Iterator[tuple[re.Match[str], int]]:
    """Yield what begins so, with where its end is; the first that has none is the last to look for
    one.
    """
    at = 0
    while (found := begin.search(text, at)) and (until := text.find(end, found.end())) >= 0:
        yield found, until
        at = until + len(end)


def _last_words(text: str) -> str:
    """Return the user's last words among the contexts that goose puts between them."""
    end, at, last = "</turn-context>", 0, ""
    for context, until in _enclosed(text, _CONTEXT, end):
        last = text[at : context.start()].strip() or last
        at = until + len(end)
    return text[at:].strip() or last


def _number(words: str, default: int) -> int:
    return int(words) if _NUMBER.fullmatch(words) else default


def _chunks_of(step: Directive) -> tuple[int, int]:
    """Return how many chunks a step says, and how large each is."""
    return step.numbers.get("n", 10), max(step.numbers.get("size", 5), 2)


def _within(step: Directive, room: int) -> tuple[Directive, int]:
    """Return a step that says no more than there is room for, and what room it leaves."""
    if step.name == "bytes":
        size = min(_number(step.words, 0), room)
        return replace(step, words=str(size)), room - size
    if step.name == "chunks":
        count, size = _chunks_of(step)
        size = min(size, _BYTES_CHUNK)
        each = max(size, _LEAST_CHUNK)
        count = min(count, room // each)
        return replace(step, numbers={"n": count, "size": size}), room - count * each
    return step, room


def _script(text: str) -> list[Directive]:
    found: list[Directive] = []
    room = MOST_ANSWER
    for begin, until in _enclosed(text, _DIRECTIVE, "]]"):
        if begin[1] not in _KNOWN:
            continue
        words = text[begin.end() : until].strip()
        numbers = {name: int(number) for name, number in _OPTION.findall(words)}
        step, room = _within(Directive(begin[1], words, numbers), room)
        found.append(step)
    if found:
        return found
    run = _RUN.search(text)  # a note of ours may stand before it
    if run:
        return [Directive("tool", run[1].strip())]
    return [Directive("delay", numbers={"ms": 25}), Directive("text", _demonstration(text))]


def _stages(script: Sequence[Directive]) -> list[list[Directive]]:
    """Cut the script after each step that waits for a tool's result."""
    stages: list[list[Directive]] = [[]]
    for step in script:
        stages[-1].append(step)
        if step.name in _TOOLS:
            stages.append([])
    return stages


def _demonstration(text: str) -> str:
    said = " ".join(text.split())
    if len(said) > _ECHO_LIMIT:
        said = said[:_ECHO_LIMIT] + "..."
    return (
        f'Hello! You wrote: "{said}". This is a demonstration: the scripted model answers, not a '
        "real one. Write `run: ls -la` to see the agent run a command. To talk to a real model, "
        "set GREYLAG_MODEL_URL, GREYLAG_MODEL_KEY and GREYLAG_MODEL, then start Greylag again."
    )


def _closing(since: Sequence[Mapping[str, Any]]) -> str:
    results = [_text_of(m).strip() for m in since if m.get("role") == "tool"]
    result = "\n".join(text for text in results if text)[:_RESULT_LIMIT]
    if not result:
        return "The command has ended and printed nothing. (The scripted model, a demonstration.)"
    return f"The tool answered:\n\n```\n{result}\n```\n\n(The scripted model, a demonstration.)"


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def _filler(size: int) -> Iterator[str]:
    line = "The quick brown fox jumps over the lazy dog, and nobody minds.\n"
    block = (line * (_BYTES_CHUNK // len(line) + 1))[:_BYTES_CHUNK]
    while size > 0:
        yield block[:size]
        size -= _BYTES_CHUNK


class _StreamOverError(Exception):
    """The script ends the stream here, without the provider's usual end."""


def app() -> web.Application:
    """Return the scripted model as an aiohttp application, to run on a port of its own."""
    application = web.Application(client_max_size=BODY_LIMIT)
    application.router.add_route("*", "/{path:.*}", answer)
    return application


async def answer(request: web.Request, body: bytearray | None = None) -> web.StreamResponse:
    """Answer one call of the OpenAI API, as the last user message's script says.

    Args:
        request: the call.
        body: the call's, where it has been read.
    """
    if request.method == "GET" and request.path.endswith("/models"):
        model = {"id": MODEL_NAME, "object": "model", "created": _CREATED, "owned_by": "greylag"}
        return web.json_response({"object": "list", "data": [model]})
    if request.method != "POST" or not request.path.endswith("/chat/completions"):
        return _error(404, f"the scripted model has no {request.method} {request.path}")
    asked = _parse(await request.read() if body is None else body)
    if asked is None:
        return _error(400, "the body is no chat-completions request")
    steps = plan(asked["messages"])
    refused = await _refusal(steps)
    if refused is not None:
        return refused
    if asked.get("stream"):
        return await _Stream(request, asked).play(steps)
    return web.json_response(_whole(asked, steps))


def _parse(raw: bytes | bytearray) -> dict[str, Any] | None:
    """Read a request's body; None when it is no chat-completions request."""
    try:
        body = parse_json(raw)
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
                code = _number(step.words, 500)
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
