"""How smooth the page is while a long answer streams: by hand, in a real Chromium.

    python -m benchmarks.page

It prints the frames a second while a Markdown answer of 200 kB comes by the real goose, and how
long keystrokes in the composer take meanwhile, from the key to the frame after it.
"""

import asyncio
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestServer
from benchmarks.support import show
from tests.browser.person import Person, at_browser
from tests.browser.whole import up

PAUSE = 0.01
PIECE = 250
KEY_EVERY = 0.15
SECTION = (
    "## Tea\n\nIt is **picked** by `hand`, and [dried](https://example.test) on racks; the *first* "
    "flush is light.\n\n- A cup takes three minutes, no more.\n- Water has not quite boiled.\n\n"
    "```python\ndef pour(cup: int) -> str:\n    return f'cup {cup} is full'\n```\n\n"
    "| leaf | minutes |\n|---|--:|\n| green | 2 |\n| black | 4 |\n\n"
)
ANSWER = SECTION * (200_000 // len(SECTION))
WATCHED = """() => {
  window.seen = {frames: [], keys: []};
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
    long = "Tell me of tea" in await request.text()
    words = [ANSWER[at : at + PIECE] for at in range(0, len(ANSWER), PIECE)] if long else ["Tea"]
    for number, content in enumerate([*words, ""]):
        last = number == len(words)
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": content},
            "finish_reason": "stop" if last else None,
        }
        chunk = {"id": "1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await asyncio.sleep(PAUSE)
    await response.write(b"data: [DONE]\n\n")
    return response


async def measured(person: Person) -> list[tuple[str, str]]:
    """Type while an answer comes; return what was seen."""
    page = person.page
    await person.say("Tell me of tea")
    await page.locator(".answer .heading-2").first.wait_for()
    await page.evaluate(WATCHED)
    began = time.monotonic()
    while await page.locator("#stop").is_visible():
        await page.keyboard.press("a")
        await asyncio.sleep(KEY_EVERY)
    took = time.monotonic() - began
    seen = await page.evaluate("() => seen")
    frames, keys = seen["frames"], sorted(seen["keys"])
    gaps = [after - before for before, after in itertools.pairwise(frames)]
    letters = len(await page.locator(".answer").last.inner_text())
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
            settings = {"GREYLAG_MODEL_URL": address, "GREYLAG_MODEL": "a-model"}
            async with up(Path(folder) / "data", **settings) as whole:
                path = await whole.project()
                async with at_browser(whole.address, token=whole.token) as person:
                    await person.open_project(path)
                    rows = await measured(person)
    show("The page while an answer streams", rows)


if __name__ == "__main__":
    asyncio.run(main())
