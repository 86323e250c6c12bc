"""No field of a server's answer, however hostile, steers a terminal or forges a line."""

import json
import logging
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tests.cli.program import Done, call, run
from tests.cli.stack import NOTICE
from tests.harness import TOKEN, Harness, served, settings

from greylag.web.app import create_app

ESCAPES = "\x1b]0;owned\x07\x9b2J\u202e\u2066\u2028\x7f\r\nFORGED [ok]\tx"
# What programs, and these, go by; and times, which are cut.
LOGIC = frozenset({"status", "type", "session_id", "turn_id", "created_at"})
IDS = frozenset({"id", "project_id", "user_id"})
CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"
DIRECTIONS = "\u200e\u200f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069"
OBEYED = re.compile(f"[{CONTROLS}{DIRECTIONS}]")
COMMANDS = [
    ("users",),
    ("projects", "list"),
    ("projects", "show", "demo"),
    ("projects", "create", "Another", "--id", "another"),
    ("projects", "rename", "demo", "Else"),
    ("activate", "demo"),
    ("chat", "demo", "hello"),
    ("chat", "demo", "fail: it fails"),
    ("sessions", "demo"),
    ("sessions", "demo", "SESSION"),
    ("extensions", "demo"),
    ("events", "demo"),
    ("logs", "demo"),
    ("doctor",),
    ("deactivate", "demo"),
    ("projects", "show", "nobody"),
    ("projects", "delete", "another", "--yes"),
]


class Hostile:
    """ASGI layer: adds ``poison`` to each text of each answer, but to what programs go by."""

    def __init__(self, app: ASGIApp, poison: str, kept: frozenset[str]) -> None:
        self._app = app
        self._poison = poison
        self._kept = kept
        self.poisoned = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its answer back with poison in it."""
        body = bytearray()
        start: list[Message] = []

        async def poisoned(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(n, v) for n, v in message["headers"] if n.lower() != b"content-length"]
                start.append({**message, "headers": kept})
                if _is(kept, b"event-stream"):
                    await send(start[0])
            elif message["type"] == "http.response.body" and _is(
                start[0]["headers"], b"event-stream"
            ):
                lines = [self._line(line) for line in message.get("body", b"").split(b"\n")]
                await send({**message, "body": b"\n".join(lines)})
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    whole = self._json(bytes(body)) if _is(start[0]["headers"], b"json") else body
                    await send(start[0])
                    await send({"type": "http.response.body", "body": bytes(whole)})
            else:
                await send(message)

        await self._app(scope, receive, poisoned if scope["type"] == "http" else send)

    def _line(self, line: bytes) -> bytes:
        return b"data: " + self._json(line[6:]) if line.startswith(b"data: ") else line

    def _json(self, text: bytes) -> bytes:
        return json.dumps(self._in(json.loads(text))).encode() if text else text

    def _in(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._in(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._in(inner, key) for inner in value]
        if not isinstance(value, str) or key in self._kept:
            return value
        self.poisoned += 1
        return value + self._poison


def _is(headers: list[tuple[bytes, bytes]], kind: bytes) -> bool:
    return any(name.lower() == b"content-type" and kind in value for name, value in headers)


async def _outputs(
    poison: str, kept: frozenset[str], commands: Sequence[tuple[str, ...]]
) -> AsyncIterator[tuple[tuple[str, ...], Done]]:
    house = Harness(settings(users="ann:Ann", model_url="https://model.example"), notice=NOTICE)
    hostile = Hostile(create_app(house.use_cases, house.settings), poison, kept)
    clean = create_app(house.use_cases, house.settings)
    async with house.working(), served(hostile) as port, served(clean) as other:
        env = {"GREYLAG_TOKEN": TOKEN, "GREYLAG_SERVER": f"http://127.0.0.1:{port}"}
        at_clean = env | {"GREYLAG_SERVER": f"http://127.0.0.1:{other}"}
        await call("projects", "create", "Demo", "--id", "demo", env=at_clean)
        if "SESSION" in str(commands):
            await run("chat", "demo", "hello", env=at_clean)
        for words in commands:
            if "SESSION" in words:
                listed = await call("sessions", "demo", "--json", env=at_clean)
                session = listed.document["sessions"][0]["session_id"]
                words = tuple(session if word == "SESSION" else word for word in words)  # noqa: PLW2901 - the id is known only now
            asked = run if words[0] == "chat" else call  # it takes signals
            yield words, await asked(*words, "--user", "ann", env=env)
        assert hostile.poisoned > len(commands)


@pytest.mark.parametrize(
    ("poison", "kept", "commands"),
    [
        (ESCAPES, LOGIC | IDS, COMMANDS),
        (ESCAPES, LOGIC, COMMANDS[:5]),
        ("A" * 1_000_000, LOGIC | IDS, [*COMMANDS[:3], ("chat", "demo", "hello")]),
    ],
    ids=["texts", "ids", "megabytes"],
)
async def test_no_command_s_text_obeys_what_a_server_says(
    poison: str, kept: frozenset[str], commands: Sequence[tuple[str, ...]]
) -> None:
    # Unconfigured, the server's log would go to stdout, which belongs to the program under test.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    async for words, done in _outputs(poison, kept, commands):
        shown = done.out + done.err
        assert "Traceback" not in shown, (words, shown[:2000])
        assert not OBEYED.search(shown), (words, OBEYED.search(shown))
        # An agent may write lines of its own; nothing else that comes from a server may.
        if words[0] not in {"chat", "sessions"}:
            assert not re.search("^FORGED", shown, re.MULTILINE), (words, shown)
    structlog.reset_defaults()
