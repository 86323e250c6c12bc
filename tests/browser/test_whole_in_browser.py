"""The whole path in a browser: `greylag up`, the real goose, the scripted model."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import expect
from tests.browser.dropping import DroppingProxy
from tests.browser.person import Person, at_browser
from tests.browser.whole import Whole, has_goose, kill_environments, up

pytestmark = [
    pytest.mark.goose,
    pytest.mark.slow,
    pytest.mark.skipif(not has_goose(), reason="GOOSE WAS NOT TESTED: it is not installed"),
]


@pytest_asyncio.fixture(loop_scope="session")
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    async with up(tmp_path / "data") as one:
        yield one


async def test_from_nothing_to_an_answer(whole: Whole) -> None:
    async with at_browser(whole.address, token=None) as person:
        await person.page.goto(whole.link)
        await person.page.wait_for_url(f"{whole.address}/users/me")
        await expect(person.page.locator(".banner").last).to_contain_text("demonstration")
        await person.page.fill("#first-message", "run: echo $((6*7))")
        await person.page.press("#first-message", "Enter")
        await person.page.get_by_role("button", name="Allow").click()
        await person.answered()
        await expect(person.page.locator(".prose pre.code")).to_have_text("42\n")
        await expect(person.page.locator("#log")).to_contain_text("The agent is ready.")
        await person.picture("whole-answer")
        await _what_runs_without_asking(person)


async def _what_runs_without_asking(person: Person) -> None:
    """Give the agent rein for a session, take it back by a mode, and give it by another."""
    answer, mode = person.page.locator(".prose").last, person.page.locator("#fact-mode")
    questions = person.page.get_by_role("button", name="Decline")
    await expect(person.page.locator("#project-model")).to_be_disabled()  # a demonstration
    for number, before, ask in (
        (1, "", "Always in this session"),
        (2, "", None),
        (3, "Asks before it acts", "Decline"),
        (4, "Acts by itself", None),
    ):
        if before:
            await mode.click()
            await person.page.get_by_role("menuitemradio", name=before).click()
            await expect(mode).to_have_text(before)
        await person.say(f"run: echo number $(({number}))")
        if ask:
            await person.page.get_by_role("button", name=ask).click()
        await person.answered()
        await expect(questions).to_have_count(0)
        if ask != "Decline":
            await expect(answer).to_contain_text(f"number {number}")


async def test_a_reload_and_dropped_connections_lose_and_repeat_nothing(whole: Whole) -> None:
    path = await whole.project()
    proxy = DroppingProxy(whole.port)
    async with proxy.running(), at_browser(proxy.address, token=whole.token) as person:
        await person.open_project(path)
        await person.say("[[delay ms=10]] [[chunks n=600 size=5]]")
        prose = person.page.locator(".prose")
        for sign in ("0050", "0150", "0250"):
            await expect(prose).to_contain_text(sign)
            proxy.drop()
        await expect(prose).to_contain_text("0350")
        await person.page.reload()
        await person.answered()
        await expect(person.page.locator(".turn-line")).to_have_count(1)  # all of it is shown
        assert (await prose.inner_text()).split() == [f"{n:04d}" for n in range(600)]
        assert await person.page.locator(".turn").count() == 1


async def test_a_standard_event_source_reads_a_turn_and_stops(whole: Whole) -> None:
    path = await whole.project()
    async with whole.http.post(f"{path}/messages", json={"message": "hello"}) as answer:
        first = await answer.content.readline()
        await answer.read()
    turn = first.decode().removeprefix("id: ").rpartition("-")[0]
    async with at_browser(whole.address, token=whole.token) as person:
        await person.page.goto("/")
        kinds = await person.page.evaluate(
            """(url) => new Promise((done) => {
                const kinds = [], source = new EventSource(url);
                source.onmessage = (event) => kinds.push(JSON.parse(event.data).type);
                source.onerror = () => source.readyState === EventSource.CLOSED && done(kinds);
            })""",
            f"{path}/turns/{turn}/events",
        )
    assert kinds[0] == "turn"
    assert kinds.count("complete") == 1


async def test_big_answers_do_not_freeze_the_page(whole: Whole) -> None:
    path = await whole.project()
    async with at_browser(whole.address, token=whole.token) as person:
        await person.open_project(path)
        await person.page.evaluate(_WATCH_FREEZES)
        await person.say("[[chunks n=10000 size=5]]")
        await person.answered()
        # inner_text leaves out what the browser has not laid out yet.
        words = (await person.page.locator(".prose").text_content() or "").split()
        assert words == [f"{n:04d}" for n in range(10_000)]
        await person.say("[[bytes 2000000]]")
        await person.answered()
        length = await person.page.evaluate(
            "document.querySelectorAll('.prose')[1].textContent.length"
        )
        assert length >= 1_990_000
        # A person notices about a tenth of a second; the machine that tests may be slow and shared.
        assert await person.page.evaluate("window.longestFreeze") < 1_500


_WATCH_FREEZES = """() => {
  window.longestFreeze = 0;
  let last = performance.now();
  setInterval(() => {
    const now = performance.now();
    window.longestFreeze = Math.max(window.longestFreeze, now - last);
    last = now;
  }, 20);
}"""


async def test_a_turn_is_stopped_in_its_answer(whole: Whole) -> None:
    path = await whole.project()
    async with at_browser(whole.address, token=whole.token) as person:
        await person.open_project(path)
        await person.say("[[delay ms=20]] [[chunks n=5000 size=5]]")
        await expect(person.page.locator(".prose")).to_contain_text("0010")
        await person.page.get_by_role("button", name="Stop").click()
        await person.answered()
        await expect(person.page.locator(".turn-end")).to_have_text("Stopped.")
        await expect(person.page.locator(".prose")).not_to_contain_text("4999")


async def test_an_environment_that_is_killed_in_a_turn_is_waited_for(
    whole: Whole, tmp_path: Path
) -> None:
    path = await whole.project()
    async with at_browser(whole.address, token=whole.token) as person:
        await person.open_project(path)
        await person.say("[[delay ms=20]] [[chunks n=5000 size=5]]")
        await expect(person.page.locator(".prose")).to_contain_text("0010")
        kill_environments(tmp_path / "data")
        await person.answered()
        assert "The agent restarted while it answered." in await person.answer()
        await person.say("[[text here again]]")
        await person.answered()
        assert "here again" in await person.answer()
