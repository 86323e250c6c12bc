"""Clients of the older Goose API server lose nothing: their own parsing loops, the real goose."""

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from tests.e2e.agentd_process import agentd

from greylag.agentd.agent.types import find_agent

pytestmark = [
    pytest.mark.goose,
    pytest.mark.skipif(
        find_agent(None, os.environ).kind != "goose", reason="goose is not installed"
    ),
]
PIECES = 8000
WANTED = [f"{number:04d}" for number in range(PIECES)]
NODE = shutil.which("node")
SCRIPT = Path(__file__).parent / "data/older_clients.mjs"

Loop = Callable[[str, dict[str, str]], Awaitable[str]]


def told(line: str) -> str:
    """Return what a line says, as such clients do: what does not parse is passed over."""
    if not line.startswith("data: "):
        return ""
    try:
        event = json.loads(line[6:])
    except ValueError:
        return ""
    return str(event["content"]["content"]) if event["type"] == "message" else ""


async def bot(url: str, body: dict[str, str]) -> str:
    """Read line by line."""
    text = ""
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as answer:
        async for line in answer.content:
            text += told(line.decode().strip())
    return text


def by_node(loop: str) -> Loop:
    async def run(url: str, body: dict[str, str]) -> str:
        assert NODE is not None
        words = (NODE, str(SCRIPT), loop, url, json.dumps(body))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*words, stdout=pipe)
        return (await process.communicate())[0].decode()

    return run


LOOPS: list[Loop] = [bot, *map(by_node, ("lines", "frames") if NODE else ())]


async def test_nothing_of_8000_pieces_is_lost_live_or_in_a_burst(tmp_path: Path) -> None:
    async with agentd(tmp_path, GREYLAG_LEGACY_API="1") as api:
        url = f"{api.base}/api/v1/sessions/{await api.session()}/messages?token=test-token"
        body = {"message": f"[[chunks n={PIECES} size=5]]", "message_id": "once"}
        # The same message again is the same turn; once it has ended, all of it comes at once.
        for _ in ("live", "burst"):
            for text in await asyncio.gather(*(loop(url, body) for loop in LOOPS)):
                assert text.split() == WANTED
