"""What the scripted model answers: the words of a message turned into steps.

A message without directives gets a short demonstration answer; `run: <command>` gets a call of
the shell tool. Tests write directives, `[[name words key=value]]`, anywhere in the message; they
play in order and all other text is ignored:

=====================  ========================================================================
`[[text WORDS]]`       say these words, one chunk for each
`[[think WORDS]]`      the same, as reasoning
`[[chunks n=9 size=5]]` n chunks of `size` characters, numbered from 0 (`0000 0001 ...`)
`[[bytes N]]`          N bytes of text in chunks of 4096
`[[unicode]]`          text of one- to four-byte characters, written to the network in pieces that
                       split the characters
`[[tool CMD]]`         call the shell tool; what follows plays after its result came back
`[[tools A ;; B]]`     call the shell tool several times at once
`[[call NAME JSON]]`   call any tool with these arguments
`[[delay ms=20]]`      wait before each chunk that follows
`[[status CODE]]`      answer with this HTTP status and an error body
`[[context-exceeded]]` answer 400 `context_length_exceeded`
`[[hang]]`             never answer, not even headers
`[[stall after=2]]`    say nothing more after so many chunks, connection open (wherever written)
`[[cut after=3]]`      break the connection after so many chunks (wherever written)
`[[error-in-stream]]`  an error object in place of the next chunk, then the end
`[[length]]`           end with finish_reason `length`
`[[empty]]`            a 200 without any body
=====================  ========================================================================

Everything follows from the request alone: the same request has the same answer.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

UNICODE_TEXT = "aä€😀 שלום 你好 👩‍👩‍👧‍👦 e\u0301 \U0001f9a2"

_SPEAKING = frozenset({"text", "think", "chunks", "bytes", "unicode"})
_TOOLS = frozenset({"tool", "tools", "call"})
_FAULTS = frozenset({"status", "context-exceeded", "hang", "empty", "error-in-stream"})
_MANNERS = frozenset({"delay", "stall", "cut", "length"})
_KNOWN = _SPEAKING | _TOOLS | _FAULTS | _MANNERS

_DIRECTIVE = re.compile(r"\[\[([a-z-]+)(?:\s+(.*?))?\]\]", re.DOTALL)
_OPTION = re.compile(r"(\w+)=(\d+)")
_WORD = re.compile(r"\S+\s*|\s+")
_RUN = re.compile(r"\s*run:\s*(.+)", re.DOTALL | re.IGNORECASE)
# goose appends this to the user's words. After a turn without an answer it puts the next message
# behind it, into the same user message: only the last one is the script.
_CONTEXT = re.compile(r"<turn-context>.*?</turn-context>", re.DOTALL)
_BYTES_CHUNK = 4096
_ECHO_LIMIT = 200
_RESULT_LIMIT = 2000


@dataclass(frozen=True, slots=True)
class Directive:
    """One step: its name, its words, and its numbers (`key=value`)."""

    name: str
    words: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)


def plan(messages: Sequence[Mapping[str, Any]]) -> list[Directive]:
    """Return the steps that answer a chat-completions conversation.

    Args:
        messages: the request's `messages`. The last user message is the script; each assistant
            message after it was one stage, which its tool calls ended.
    """
    last_user = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=-1)
    text = _text_of(messages[last_user]) if last_user >= 0 else ""
    said = [part.strip() for part in _CONTEXT.split(text) if part.strip()]
    since = messages[last_user + 1 :]
    stages = _stages(_script(said[-1] if said else ""))
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
            width = max(step.numbers.get("size", 5) - 1, 1)
            pieces = (f"{i:0{width}d} " for i in range(step.numbers.get("n", 10)))
        case "bytes":
            pieces = _filler(int(step.words or "0"))
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


def _script(text: str) -> list[Directive]:
    found = [
        Directive(name, words.strip(), {k: int(v) for k, v in _OPTION.findall(words)})
        for name, words in _DIRECTIVE.findall(text)
        if name in _KNOWN
    ]
    if found:
        return found
    run = _RUN.match(text)
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
