"""How smooth the page is while a long answer streams: by hand, in a real Chromium.

    python -m benchmarks.page

It prints the frames a second while a Markdown answer of 200 kB comes by the real goose, and how
long keystrokes in the composer take meanwhile, from the key to the frame after it; then once more
in a turn in which 40 commands have printed some 100 kB of colours each.
"""

import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from benchmarks.support import show
from tests.browser.person import Person, at_browser
from tests.browser.whole import up

PAUSE = 0.01
PIECE = 250
KEY_EVERY = 0.15
COMMANDS = 40
PRINTS = r"seq 1 9000 | sed 's/^/\x1b[32mok\x1b[0m /'"
SECTION = (
    "## Tea\n\nIt is **picked** by `hand`, and [dried](https://example.test) on racks; the *first* "
    "flush is light.\n\n- A cup takes three minutes, no more.\n- Water has not quite boiled.\n\n"
    "```python\ndef pour(cup: int) -> str:\n    return f'cup {cup} is full'\n```\n\n"
    "| leaf | minutes |\n|---|--:|\n| green | 2 |\n| black | 4 |\n\n"
)
ANSWER = SECTION * (200_000 // len(SECTION))
WATCHED = """() => {
  const watching = "seen" in window;
  window.seen = {frames: [], keys: []};
  if (watching) return;
  const frame = (now) => { seen.frames.push(now); requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
  document.addEventListener("keydown", (event) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => seen.keys.push(performance.now() - event.timeStamp);
    channel.port2.postMessage(null);
  }), true);
}"""


async def answered(request: web.Request) -> web.StreamResponse:
    """Answer as a provider of models does, piece by piece."""
    if not request.path.endswith("/chat/completions"):
        return web.json_response({"object": "list", "data": [{"id": "a-model"}]})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for delta in deltas(await request.json()):
        choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None}
        await sent(response, choice)
        await asyncio.sleep(PAUSE)
    await sent(response, {"index": 0, "delta": {}, "finish_reason": "stop"})
    await response.write(b"data: [DONE]\n\n")
    return response


async def sent(response: web.StreamResponse, choice: dict[str, Any]) -> None:
    """Send one choice as a chunk of the stream."""
    chunk = {"id": "1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
    await response.write(f"data: {json.dumps(chunk)}\n\n".encode())


def deltas(asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the model says next: a call of the shell while there is work, then the answer."""
    messages = asked["messages"]
    last = max(at for at, one in enumerate(messages) if one["role"] == "user")
    said = json.dumps(messages[last])
    worked = sum(one["role"] == "tool" for one in messages[last:])
    if "Work" in said and worked < COMMANDS:
        function = {"name": "shell", "arguments": json.dumps({"command": PRINTS})}
        yield {
            "tool_calls": [
                {"index": 0, "id": f"c{worked}", "type": "function", "function": function}
            ]
        }
    elif "tell me of tea" in said:
        yield from ({"content": ANSWER[at : at + PIECE]} for at in range(0, len(ANSWER), PIECE))
    else:
        yield {"content": "Tea"}


async def measured(person: Person, message: str) -> list[tuple[str, str]]:
    """Type while an answer comes; return what was seen."""
    page = person.page
    await person.say(message)
    await page.locator(".turn").last.locator(".heading-2").first.wait_for()
    await page.evaluate(WATCHED)
    began = time.monotonic()
    while await page.locator("#stop").is_visible():
        await page.keyboard.press("a")
        await asyncio.sleep(KEY_EVERY)
    took = time.monotonic() - began
    seen = await page.evaluate("() => seen")
    frames, keys = seen["frames"], sorted(seen["keys"])
    gaps = [after - before for before, after in itertools.pairwise(frames)]
    letters = len(await page.locator(".answer").last.text_content() or "")
    rate = len(gaps) / (frames[-1] - frames[0]) * 1000
    return [
        ("the answer", f"{len(ANSWER) / 1000:.0f} kB, {letters / 1000:.0f} kB of it text"),
        ("it came in", f"{took:.1f} s"),
        ("frames a second", f"{rate:.1f}, the longest {max(gaps):.0f} ms"),
        (
            f"{len(keys)} keystrokes",
            f"median {statistics.median(keys):.0f} ms, p95 {keys[int(len(keys) * 0.95)]:.0f} ms",
        ),
    ]


async def main() -> None:
    """Measure and print the table."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answered)
    with tempfile.TemporaryDirectory() as folder:
        async with TestServer(application) as model:
            address = str(model.make_url("/v1"))
            settings = {
                "GREYLAG_MODEL_URL": address,
                "GREYLAG_MODEL": "a-model",
                "GOOSE_MODE": "auto",
            }
            async with up(Path(folder) / "data", **settings) as whole:
                path = await whole.project()
                async with at_browser(whole.address, token=whole.token) as person:
                    await person.open_project(path)
                    plain = await measured(person, "Please tell me of tea")
                    steps = await measured(person, "Work, then tell me of tea")
    show("The page while an answer streams", plain)
    show(f"The same after {COMMANDS} commands", steps)


if __name__ == "__main__":
    asyncio.run(main())
