"""A person at a real Chromium, and everything the browser complained about meanwhile."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, Playwright, async_playwright, expect
from tests.harness import TOKEN

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
AXE = Path(__file__).parents[2] / "build" / "judges" / "node_modules" / "axe-core" / "axe.min.js"
needs_axe = pytest.mark.skipif(
    not AXE.exists(), reason="THE PAGES WERE NOT JUDGED: run tools/setup.sh dev where npm is"
)
PATIENCE_MS = 60_000
# Has a page take itself for one that is looked at or not, as "visible" and "hidden" say.
LOOKED_AT = """state => {
  Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
expect.set_options(timeout=PATIENCE_MS)
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--site-per-process",
)


def chromium(*, shows_notifications: bool = False) -> str | None:
    """Return the path of a Chromium, ``None`` when this machine has none.

    The one without windows comes first: it is the same engine for half of the processor's time. It
    shows no notifications.
    """
    named = os.environ.get("GREYLAG_TEST_CHROMIUM")
    known = ["chromium-headless-shell", "chromium", "google-chrome"]
    return named or next(filter(None, map(shutil.which, known[shows_notifications:])), None)


class Chromium:
    """The browser of all that are at one: where it is kept, the next has no start to wait for.

    Each is in a context of its own, with cookies, storage and workers that no other has.
    """

    def __init__(self, *arguments: str, shows_notifications: bool = False) -> None:
        self._arguments = [*_ARGUMENTS, *arguments]
        self._path = chromium(shows_notifications=shows_notifications)
        self._running: tuple[Playwright, Browser] | None = None
        self._at_it = 0
        self._kept = False
        self.suspected = False  # of a failure: whoever is first at it gets another

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep it running meanwhile; all are on this event loop."""
        self._kept = True
        try:
            yield
        finally:
            self._kept = False
            await self._end()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Browser]:
        """Give it, and end it after the last one where it is not kept."""
        if self.suspected and not self._at_it:
            await self._end()
        if self._running is None:
            playwright = await async_playwright().start()
            browser = await playwright.chromium.launch(
                executable_path=self._path, args=self._arguments
            )
            self._running = playwright, browser
        self._at_it += 1
        try:
            yield self._running[1]
        finally:
            self._at_it -= 1
            if not self._at_it and not self._kept:
                await self._end()

    async def _end(self) -> None:
        if self._running:
            playwright, browser = self._running
            self._running, self.suspected = None, False
            await browser.close()
            await playwright.stop()


CHROMIUM = Chromium()


@dataclass(slots=True)
class Person:
    """A page that is open at a site, and what its browser had to complain of."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    cuts_sockets: bool = False  # a test that does has the browser note it
    meets_hostile_pages: bool = False  # the browser notes what it refuses them

    async def open_project(self, path: str) -> None:
        """Open a project's page, as its API path names it."""
        await self.page.goto(path.removeprefix("/api"))

    async def say(self, words: str) -> None:
        """Write a message and send it with the Enter key, once the page's script is there."""
        await self.page.wait_for_selector("#composer[data-ready]")
        await self.page.fill("#message", words)
        await self.page.press("#message", "Enter")

    async def answered(self) -> None:
        """Wait until the turn has ended."""
        await self.page.wait_for_selector("#stop", state="hidden")

    async def answer(self) -> str:
        """Return the words of the newest answer, as they stand in the page."""
        return await self.page.locator(".turn").last.locator(".answer").inner_text()

    async def judged(self) -> None:
        """Fail if axe finds anything wrong in the page, or if it is wider than its window."""
        await self.page.evaluate(_AT_REST)
        if await self.page.evaluate("typeof axe === 'undefined'"):
            await self.page.evaluate(AXE.read_text())
        found = await self.page.evaluate(
            "async () => (await axe.run({ resultTypes: ['violations'] })).violations.map(one => "
            "[one.id, one.nodes.map(node => [node.html.slice(0, 200), node.failureSummary])])"
        )
        assert found == [], found
        wide = "document.documentElement.scrollWidth - innerWidth"
        assert await self.page.evaluate(wide) <= 0

    async def picture(self, name: str) -> None:
        """Keep a screenshot as test output."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@asynccontextmanager
async def at_browser(
    base: str,
    *,
    token: str | None = TOKEN,
    width: int = 1200,
    dark: bool = False,
    scripts: bool = True,
    browser: Chromium = CHROMIUM,
) -> AsyncIterator[Person]:
    """Open ``browser`` at the site at ``base``, whose paths are then its own, signed in by
    ``token``.

    On leaving it fails if the browser complained: of a script's error, of the content security
    policy, of a file that is not there.
    """
    async with (
        browser.opened() as opened,
        await opened.new_context(
            base_url=base,
            viewport={"width": width, "height": 850},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
        ) as context,
    ):
        context.set_default_timeout(PATIENCE_MS)
        await context.add_init_script(_PULSES_REST)
        if token is not None:
            await context.request.post("/sign-in", form={"token": token})
        person = Person(await context.new_page())
        _listen(person)
        yield person
    expected = [_CUT] if person.cuts_sockets else []
    expected += _REFUSED if person.meets_hostile_pages else []
    wrong = [one for one in person.complaints if not any(words in one for words in expected)]
    assert wrong == [], wrong


_CUT = "WebSocket connection to"
# A pulse goes on as long as an agent works, and its frames take a twelfth of a core.
_PULSES_REST = """addEventListener("animationstart", ({ target }) => {
  for (const one of target.getAnimations({ subtree: true }))
    if (one.effect.getTiming().iterations === Infinity) one.pause();
});"""
# Between two colours, which a frame may be the first to tell of, there are others. What is not
# painted never ends its transitions.
_AT_REST = """() => Promise.race([
  new Promise(painted => requestAnimationFrame(() => requestAnimationFrame(painted)))
    .then(() => Promise.allSettled(document.getAnimations()
      .filter(one => one instanceof CSSTransition).map(one => one.finished))),
  new Promise(done => setTimeout(done, 1000)),
])"""
_REFUSED = ("blocked by CORS policy", "Unsafe attempt to initiate navigation")


def _listen(person: Person) -> None:
    wrong = person.complaints
    person.page.on("pageerror", lambda error: wrong.append(str(error)))
    person.page.on(
        "console",
        lambda line: wrong.append(line.text) if _is_complaint(line.type, line.text) else None,
    )


def _is_complaint(kind: str, text: str) -> bool:
    # A connection that a test cuts, or an error that it asks for, is the browser's to note.
    expected = (
        "net::ERR_" in text or "Failed to load resource" in text or "Response Status Error" in text
    )
    is_slow = (
        "task queue exceeded allotted deadline" in text
    )  # the terminal's word for a busy machine
    return kind in {"error", "warning"} and not expected and not is_slow
