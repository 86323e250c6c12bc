"""What comes between a person and the page: a network that dies unseen, a second turn, a clock that
is wrong, a part that does not load, storage that is forbidden; in a real browser.
"""

import asyncio
import json
import re
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import FilePayload, Page, Route, WebSocketRoute, expect
from playwright.async_api import TimeoutError as TooLateError
from tests.browser.dropping import DroppingProxy
from tests.browser.person import LOOKED_AT, Person, at_browser
from tests.web.server import Site, settings, site

A_MINUTE = 61_000
NO_STORAGE = """() => {
  for (const name of ["localStorage", "sessionStorage"]) {
    const get = () => { throw new DOMException("no", "SecurityError"); };
    Object.defineProperty(window, name, { get });
  }
}"""
# Has what htmx asks for wait a hundredth of its time.
SHORT_REQUESTS = """() => document.body.addEventListener(
  "htmx:configRequest", ({ detail }) => { detail.timeout /= 100; })"""
# Has the page's streams of one kind say nothing and end when the test says so.
QUIET = """kind => {
  const ask = window.fetch;
  window.opened = [];
  window.fetch = (url, options) => {
    if (!new URL(url, location).pathname.endsWith(kind)) return ask(url, options);
    const start = (stream) => opened.push(stream);
    return Promise.resolve(new Response(new ReadableStream({ start })));
  };
}"""
# Counts what the page's WebSockets are told.
HEARD = """window.heard = 0;
window.WebSocket = class extends WebSocket {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", () => heard++);
  }
};"""
# Pastes or drops a file into a field.
HAND_OVER = """(field, [way, name]) => {
  const given = new DataTransfer();
  given.items.add(new File(["b"], name));
  const about = { bubbles: true, cancelable: true };
  const kinds = {
    paste: new ClipboardEvent("paste", { ...about, clipboardData: given }),
    drop: new DragEvent("drop", { ...about, dataTransfer: given }),
  };
  field.dispatchEvent(kinds[way]);
}"""
# What is written is answered, but not to the end.
BREAKS_OFF = """() => {
  const ask = window.fetch, start = (body) => body.error(new TypeError("broken"));
  const broken = () => new Response(new ReadableStream({ start }), { status: 201 });
  window.fetch = async (url, given) => (given.method === "POST" ? broken() : ask(url, given));
}"""
# What is asked for is done, but nobody is told.
DONE_UNSEEN = """() => {
  const ask = window.fetch, start = (body) => body.error(new TypeError("broken"));
  window.fetch = async (url, given) => {
    const answer = await ask(url, given);
    return given.method ? new Response(new ReadableStream({ start }), { status: 201 }) : answer;
  };
}"""
OPEN_LOG = "document.querySelector('[data-shows=log]').click()"
# What follows from what has happened has happened then, but for what waits for a time.
AT_REST = """() => new Promise((done) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => done();
  port2.postMessage(null);
})"""


async def begin(running: Site, path: str, message: str, session: str | None = None) -> None:
    """Begin a turn from elsewhere."""
    body = {"message": message} | ({"session_id": session} if session else {})
    async with running.http.post(f"{path}/messages", json=body) as answer:
        await answer.content.readline()


async def newest(running: Site, path: str) -> tuple[str, str]:
    """Return the newest session and its newest turn."""
    _, listed = await running.ask("GET", f"{path}/sessions")
    session: str = listed["sessions"][0]["session_id"]
    _, turns = await running.ask("GET", f"{path}/sessions/{session}/turns")
    return session, turns["turns"][0]["turn_id"]


async def read_newest(running: Site, path: str) -> None:
    """Read the newest turn to its end."""
    _, turn = await newest(running, path)
    async with running.http.get(f"{path}/turns/{turn}/events") as answer:
        await answer.read()


async def ready(page: Page) -> Page:
    """Return another tab of what a page shows, whose script is there."""
    other = await page.context.new_page()
    await other.goto(page.url)
    await other.wait_for_selector("#composer[data-ready]")
    return other


async def test_a_connection_that_died_unseen_is_left_and_the_turn_followed_to_its_end(
    running: Site, person: Person, proxy: DroppingProxy
) -> None:
    page, path = person.page, await running.project(active=True)
    await page.clock.install()
    await person.open_project(path)
    await person.say("run: ls")
    await page.get_by_role("button", name="Allow").wait_for()
    proxy.forget()
    _, turn = await newest(running, path)
    _, found = await running.ask("GET", f"{path}/turns/{turn}")
    answer = f"{path}/turns/{turn}/confirmations/{found['question']['confirmation_id']}"
    await running.ask("POST", answer, json={"decision": "allow_once"})
    # The browser may ask again by another connection that is dead.
    for _ in range(5):
        await page.clock.fast_forward(A_MINUTE)
        with suppress(TooLateError):
            await page.wait_for_selector("#stop", state="hidden", timeout=3_000)
    await person.answered()
    assert (await person.answer()).count("It ran.") == 1
    assert await page.locator(".step").count() == 1


async def test_tabs_that_work_unseen_leave_the_connections_to_the_one_that_is_seen(
    running: Site, person: Person
) -> None:
    path, titled = await running.project(active=True), "{}Notes \u00b7 Greylag".format
    pages = [person.page]
    for number in range(8):  # a browser opens six connections to a host
        page = pages[number]
        await page.goto(f"{path.removeprefix('/api')}?session=new")
        await Person(page).say("run: ls" if number == 1 else "wait: long")
        await page.wait_for_selector(".turn[data-turn]")
        await expect(page).to_have_title(titled("Needs you: " if number == 1 else "Working: "))
        pages.append(await page.context.new_page())
        await page.evaluate(LOOKED_AT, "hidden")
    seen = pages[-1]
    await seen.goto(path.removeprefix("/api"))
    await expect(seen.locator(".session .dot-working")).to_have_count(7)
    # What happens to their turns is heard at once.
    await pages[1].get_by_role("button", name="Decline").click()
    await expect(pages[1]).to_have_title(titled(""))
    _, turn = await newest(running, path)
    await running.ask("POST", f"{path}/turns/{turn}/cancel")
    await Person(pages[7]).answered()
    await expect(pages[7].locator(".turn-end")).to_have_text("Stopped.")
    # One that is seen again has its own stream, and the one before tells the others on.
    await seen.evaluate(LOOKED_AT, "hidden")
    await expect(pages[0]).to_have_title(titled("Working: "))
    await pages[0].evaluate(LOOKED_AT, "visible")
    await pages[0].get_by_role("button", name="Stop").click()
    await Person(pages[0]).answered()


async def test_windows_that_work_side_by_side_leave_connections_to_all_else(
    running: Site, person: Person
) -> None:
    path = await running.project(active=True)
    await person.page.context.add_init_script("document.hasFocus = () => false")
    pages = [person.page]
    for number in range(5):  # each has a live stream and a turn's, of six connections to a host
        page = pages[number]
        await page.goto(f"{path.removeprefix('/api')}?session=new")
        await Person(page).say("wait: long")
        await page.wait_for_selector(".turn[data-turn]")
        pages.append(await page.context.new_page())
    await pages.pop().close()
    place = "#conversation"
    sessions = [await page.locator(place).get_attribute("data-session") for page in pages]
    for number, page in enumerate(pages):
        # What is asked for is answered, and what happens to each is heard by all.
        await expect(page.locator(".session .dot-working")).to_have_count(5 - number)
        assert await page.evaluate("() => fetch('/api/me').then((answer) => answer.status)") == 200
        await expect(page.locator("#live-lost")).to_be_empty()
        _, turns = await running.ask("GET", f"{path}/sessions/{sessions[number]}/turns")
        await running.ask("POST", f"{path}/turns/{turns['turns'][0]['turn_id']}/cancel")
        await Person(page).answered()
        await expect(page.locator(".turn-end")).to_have_text("Stopped.")


async def test_a_terminal_whose_connection_died_unseen_is_attached_to_again_each_time(
    running: Site, person: Person, proxy: DroppingProxy
) -> None:
    page = person.page
    person.cuts_sockets = True
    await page.add_init_script(HEARD)
    await page.clock.install()
    await person.open_project(await running.project(active=True))
    await page.locator("#tab-terminal").click()
    await page.get_by_role("button", name="New terminal").click()
    screen, pane = page.locator(".terminal-screen"), page.locator("#terminals")
    await page.wait_for_function("() => window.heard > 0")  # it is attached
    await screen.click()
    for word in ("first", "second"):
        await page.keyboard.type(word)
        await expect(screen).to_contain_text(word)
        proxy.forget()
        await page.keyboard.type("dead")
        for _ in range(2):
            await page.clock.fast_forward(11_000)
        await expect(pane).to_contain_text("The connection was lost.")
        await page.clock.fast_forward(1_000)
        # The list, too, may be asked for by a connection that is dead.
        await page.clock.fast_forward(41_000)
        await page.clock.fast_forward(1_000)
        await expect(pane).not_to_contain_text("The connection was lost.")
        proxy.end_forgotten()


async def test_what_nothing_answers_is_not_waited_for_and_can_be_asked_for_again(
    running: Site, person: Person
) -> None:
    page, later = person.page, asyncio.Event()
    await page.add_init_script(
        "const within = AbortSignal.timeout; window.haste = 1;"
        "AbortSignal.timeout = (ms) => within(ms / window.haste);"
    )

    async def hold(_: Route) -> None:
        await later.wait()

    async def carry(route: Route) -> None:
        await later.wait()
        await route.continue_()

    await person.open_project(await running.project(active=True))
    await person.say("run: ls")
    allow = page.get_by_role("button", name="Allow")
    await allow.wait_for()
    await page.route("**/confirmations/*", hold)
    await page.evaluate("window.haste = 100")  # not before: what is answered may take its time
    await allow.click()
    await expect(page.locator("#console-status")).to_contain_text("may have been done")
    await page.evaluate("window.haste = 1")
    await page.unroute("**/confirmations/*")
    await allow.click()
    await person.answered()
    assert (await person.answer()).count("It ran.") == 1
    # A file may be on its way for long; what only reads has done nothing.
    await page.route("**/content?*", carry)
    await page.route(re.compile("/(folder|terminals)$"), hold)
    file = FilePayload(name="a.txt", mimeType="text/plain", buffer=b"a")
    await page.evaluate("window.haste = 100")
    await page.locator("#attach-files").set_input_files(file)
    await page.get_by_label("More for this folder").click()
    await page.get_by_role("button", name="New folder").click()
    await page.get_by_label("Name of the new folder").fill("made")
    await page.keyboard.press("Enter")
    await expect(page.locator("#files")).to_contain_text("may have been done")
    await page.locator("#tab-terminal").click()
    await expect(page.locator("#terminals")).to_contain_text("cannot be reached")
    await expect(page.locator("#console-status")).to_have_text("Attaching a.txt")
    await person.say("Before it is there")
    await expect(page.locator("#console-status")).to_have_text("Wait until the file is attached.")
    later.set()
    message = page.locator("#message")
    await expect(message).to_have_value(re.compile(r"^Before .*\nattachments/\w+-a.txt$"))
    for way, name in (("paste", "b.txt"), ("drop", "c.txt")):
        await message.evaluate(HAND_OVER, [way, name])
        await expect(message).to_have_value(re.compile(rf"\nattachments/\w+-{name}$"))


UNREACHED = "The server cannot be reached. Try again."


@pytest.mark.parametrize(
    ("name", "words"), [("Allow", "It was answered by another."), ("Allow", ""), ("Stop", "")]
)
async def test_why_what_somebody_pressed_failed_is_said_however_often_the_stream_is_opened_anew(
    name: str, words: str
) -> None:
    async with (
        site(settings(stream_seconds=0.25)) as brief,
        at_browser(f"http://127.0.0.1:{brief.port}") as person,
    ):
        page, said = person.page, person.page.locator("#console-status")
        button = page.get_by_role("button", name=name, exact=True)

        async def fail(route: Route) -> None:
            if words:
                await route.fulfill(status=409, json={"detail": words})
            else:
                await route.abort()

        await person.open_project(await brief.project(active=True))
        await person.say("run: ls")
        await page.get_by_role("button", name="Allow", exact=True).wait_for()
        await page.route(re.compile("/(confirmations/.*|cancel)$"), fail)
        await button.click()
        await expect(said).to_have_text(words or UNREACHED)
        for _ in range(2):
            async with page.expect_response("**/turns/*/events"):
                pass
        await page.evaluate(AT_REST)
        await expect(said).to_have_text(words or UNREACHED)
        await page.unroute_all()
        await button.click()
        await person.answered()
        await expect(said).to_be_empty()


async def test_of_files_that_nothing_answers_the_first_alone_is_tried(
    running: Site, person: Person
) -> None:
    page, tried = person.page, 0

    async def fail(route: Route) -> None:
        nonlocal tried
        tried += 1
        await route.abort()

    await person.open_project(await running.project(active=True))
    await page.wait_for_selector("#composer[data-ready]")
    await page.route("**/content?*", fail)
    names = ("a.txt", "b.txt", "c.txt")
    files = [FilePayload(name=name, mimeType="text/plain", buffer=b"a") for name in names]
    await page.locator("#attach-files").set_input_files(files)
    words = f"Not attached: a.txt, b.txt, c.txt. {UNREACHED}"
    await expect(page.locator("#console-status")).to_have_text(words)
    assert tried == 1


async def test_a_file_that_cannot_be_read_any_more_is_named_and_the_others_are_sent(
    running: Site, person: Person, tmp_path: Path
) -> None:
    page = person.page
    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for file in files:
        file.write_text("a")

    async def remove(route: Route) -> None:
        files[1].unlink(missing_ok=True)
        await route.continue_()

    await person.open_project(await running.project(active=True))
    await page.wait_for_selector("#composer[data-ready]")
    await page.route("**/content?*", remove)
    await page.locator("#attach-files").set_input_files(files)
    said = page.locator("#console-status")
    await expect(said).to_have_text("Not attached: b.txt. It cannot be read.")
    both = re.compile(r"^attachments/\w+-a.txt\nattachments/\w+-c.txt$")
    await expect(page.locator("#message")).to_have_value(both)
    files[1].write_text("b")
    await page.set_input_files("input[aria-label='Upload files']", files)
    words = "2 of 3 uploaded. Not uploaded: b.txt. It cannot be read."
    await expect(page.locator("#files .files-status").first).to_have_text(words)


async def test_what_goes_wrong_with_a_file_or_with_its_repository_is_said(
    running: Site, person: Person
) -> None:
    page, path = person.page, await running.project(active=True)
    for name in (".git/config", "a.txt"):
        await running.ask("PUT", f"{path}/files/content?path={name}", data=b"")
    counts = {"ahead": 0, "behind": 1, "changed": 0, "untracked": 0, "conflicted": 0}
    commit = {"repository": True, "branch": None, "commit": "0123456789", "upstream": "origin/main"}
    denied = {"code": "git_denied", "detail": "It lets nobody in.", "hint": "Ask its owner."}
    too_large = {"detail": "It is too large."}

    async def refuse(route: Route) -> None:
        is_read = route.request.method == "GET"
        await (route.continue_() if is_read else route.fulfill(status=413, json=too_large))

    await page.route(re.compile("/git(/fetch)?$"), lambda one: one.fulfill(json=commit | counts))
    await page.route("**/git/push", lambda route: route.fulfill(status=409, json=denied))
    await page.route("**/content?*", refuse)
    await person.open_project(path)
    bar, files = page.get_by_role("region", name="Git"), page.locator("#files")
    await expect(bar).to_contain_text("01234567nothing changed \u00b7 1 behind")
    await bar.get_by_role("button", name="Fetch").click()
    await expect(bar.get_by_role("status")).to_have_text("Fetched: 1 behind.")
    await bar.get_by_role("button", name="Push").click()
    await bar.get_by_label("Branch to push to").fill("main")
    await page.keyboard.press("Enter")
    await expect(bar.get_by_role("status")).to_have_text("It lets nobody in. Ask its owner.")
    await page.locator(".files-name", has_text="a.txt").click()
    await expect(files).to_contain_text("It is empty.")
    await page.get_by_role("button", name="Edit", exact=True).click()
    await page.locator(".file-editor").fill("Mine")
    await page.get_by_role("button", name="Save").click()
    await expect(files.get_by_role("alert")).to_have_text("It is too large.")
    await expect(page.locator(".file-editor")).to_have_value("Mine")
    await page.get_by_role("button", name="Discard").click()
    await running.ask("DELETE", f"{path}/files?path=a.txt")
    await page.evaluate("document.dispatchEvent(new Event('greylag:turn-ended'))")
    await page.get_by_role("button", name="Show its folder").click()
    await expect(page.locator(".files-name")).to_have_text([".git"])


async def test_that_a_file_is_not_attached_is_said_whatever_else_ends_meanwhile(
    running: Site, person: Person
) -> None:
    page, said = person.page, person.page.locator("#console-status")
    second = asyncio.Event()

    async def refuse(route: Route) -> None:
        await second.wait()
        await route.fulfill(status=413, json={"detail": "It is too large."})

    async def hold(route: Route) -> None:
        second.set()
        await expect(said).to_contain_text("It is too large.")
        await route.continue_()

    await person.open_project(await running.project(active=True))
    await person.say("wait: for ever")
    await page.route("**/content?path=*large.txt", refuse)
    await page.route("**/content?path=*small.txt", hold)
    for name in ("large.txt", "small.txt"):
        file = FilePayload(name=name, mimeType="text/plain", buffer=b"a")
        await page.locator("#attach-files").set_input_files([file])
    await expect(page.locator("#message")).to_have_value(re.compile(r"^attachments/\w+-small.txt$"))
    await page.get_by_role("button", name="Stop").click()
    await person.answered()
    await expect(said).to_have_text("Not attached: large.txt. It is too large.")
    await person.say("Without it")
    await expect(said).to_be_empty()


async def test_what_came_of_one_thing_in_the_files_is_said_beside_what_comes_of_another(
    running: Site, person: Person
) -> None:
    page, said = person.page, person.page.locator("#files .files-status").first
    told = asyncio.Event()

    async def hold(route: Route) -> None:
        await told.wait()
        await route.continue_()

    await person.open_project(await running.project(active=True))
    await page.route("**/content?*", hold)
    why = {"detail": "It is there already."}
    await page.route("**/folder", lambda route: route.fulfill(status=409, json=why))
    file = FilePayload(name="a.txt", mimeType="text/plain", buffer=b"a" * 100_000)
    await page.locator("#files input[type=file]").first.set_input_files([file])
    await page.get_by_label("More for this folder").click()
    await page.get_by_role("button", name="New folder").click()
    await page.get_by_label("Name of the new folder").fill("made")
    await page.keyboard.press("Enter")
    await expect(said).to_contain_text("It is there already.")
    told.set()
    await expect(said).to_contain_text("1 of 1 uploaded.")
    await expect(said).to_contain_text("It is there already.")


async def test_the_first_turn_of_a_project_is_news_though_it_is_told_of_when_it_has_ended(
    running: Site, person: Person
) -> None:
    page, path = person.page, await running.project(active=True)
    for event in ("turns", "turn-ended"):
        listen = f"document.addEventListener('greylag:{event}', () => window['{event}'] = true)"
        await page.add_init_script(listen)
    await person.open_project(path)
    await page.wait_for_function("() => window.turns")
    async with running.http.post(f"{path}/messages", json={"message": "Brief"}) as answer:
        await answer.read()
    await page.wait_for_function("() => window['turn-ended']", timeout=10_000)


@pytest.mark.parametrize("stream", ["turns/*/events", "live?*"])
async def test_a_stream_that_breaks_at_once_each_time_is_asked_for_less_and_less(
    running: Site, person: Person, stream: str
) -> None:
    path = await running.project(active=True)
    await begin(running, path, "wait: long")
    asked: list[float] = []
    enough = asyncio.Event()

    async def break_off(route: Route) -> None:
        asked.append(time.monotonic())
        if len(asked) == 5:
            enough.set()
        told = '{"type": "error", "content": {"code": "agent_failed"}}'
        await route.fulfill(content_type="text/event-stream", body=f"data: {told}\n\n")

    await person.page.route(f"**/{stream}", break_off)
    await person.open_project(path)
    async with asyncio.timeout(60):
        await enough.wait()
    await person.page.unroute_all(behavior="ignoreErrors")
    # The least that four waits can be: half of 0.4, 0.8, 1.6 and 3.2 seconds.
    assert asked[4] - asked[0] >= 3.0


async def test_a_turn_that_began_before_the_last_one_was_shown_whole_can_be_stopped(
    running: Site, person: Person
) -> None:
    page, path = person.page, await running.project(active=True)
    await page.clock.install()
    await person.open_project(path)
    await person.say("First")
    await person.answered()
    session, _ = await newest(running, path)
    # Nothing is painted meanwhile, as in a page that has much to paint.
    await page.clock.pause_at(await page.evaluate("Date.now() / 1000 + 1"))
    await person.say("Second")
    await expect(page.locator(".turn[data-turn]")).to_have_count(2)
    await read_newest(running, path)
    await begin(running, path, "wait: from elsewhere", session)
    await expect(page.locator(".said")).to_have_text(["First", "Second", "wait: from elsewhere"])
    await page.clock.resume()
    await expect(page.locator(".answer").nth(1)).to_have_text("You said: Second")
    await expect(page.locator("#conversation")).to_have_attribute("aria-busy", "true")
    await person.say("Third")
    await expect(page.locator(".queued")).to_contain_text("Third")
    await page.get_by_role("button", name="Take back").click()
    await page.get_by_role("button", name="Stop").click()
    await person.answered()
    await expect(page.locator(".turn-end").last).to_have_text("Stopped.")


async def test_times_are_told_by_the_server_s_clock(running: Site, person: Person) -> None:
    page, path = person.page, await running.project(active=True)
    await begin(running, path, "run: ls")
    await page.clock.install(time=datetime.now(UTC) + timedelta(days=2))
    await person.open_project(path)
    when = page.locator(".session time")
    await expect(when).to_have_text("now")
    await page.get_by_role("button", name="Allow").wait_for()
    await expect(page.get_by_role("timer")).to_have_text(re.compile("in [89] min"))
    await page.clock.fast_forward(21_000)
    await expect(when).to_have_text("now")


async def test_a_part_that_does_not_load_is_told_and_loads_later(
    running: Site, person: Person
) -> None:
    page, path = person.page, await running.project(active=True)
    await person.open_project(path)
    await page.wait_for_selector("#composer[data-ready]")
    await page.route("**/js/palette-*", lambda route: route.abort())
    await page.keyboard.press("Control+k")
    await expect(page.locator(".notice")).to_contain_text("cannot be loaded")
    await page.unroute("**/js/palette-*")
    await page.keyboard.press("Control+k")
    await expect(page.get_by_role("combobox")).to_be_focused()


async def test_a_page_that_may_keep_nothing_works(running: Site, person: Person) -> None:
    page, path = person.page, await running.project(active=True)
    await page.add_init_script(f"({NO_STORAGE})()")
    await page.goto(f"{path.removeprefix('/api')}?first=some-key")
    await person.say("Hello")
    await person.answered()
    assert await person.answer() == "You said: Hello"
    await page.locator("#tab-files").click()
    await expect(page.locator("#files")).not_to_be_empty()


async def test_keys_of_an_input_method_do_nothing_else(running: Site, person: Person) -> None:
    page = person.page
    await running.project(active=True)
    await person.page.goto("/users/ada")
    await page.fill("#rail-search", "not")
    composing = "{ key, keyCode, isComposing, bubbles: true, cancelable: true }"
    press = f"""(one, [key, keyCode, isComposing]) =>
      one.dispatchEvent(new KeyboardEvent("keydown", {composing}))"""
    search = page.locator("#rail-search")
    # Safari ends the choice of a character before it tells of the key that did.
    for key, code, composes in (("Enter", 13, True), ("Enter", 229, False), ("Escape", 27, True)):
        assert await search.evaluate(press, [key, code, composes])
    await expect(search).to_have_value("not")
    assert page.url.endswith("/users/ada")
    await page.keyboard.press("Control+k")
    box = page.get_by_role("combobox")
    await box.fill("notes")
    for key, code, composes in (("Enter", 13, True), ("Enter", 229, False), ("Down", 40, True)):
        assert await box.evaluate(press, [key.replace("Down", "ArrowDown"), code, composes])
    await expect(box).to_be_visible()


async def test_earlier_messages_are_not_said_to_be_none_where_the_sign_in_has_ended(
    running: Site, person: Person
) -> None:
    page, path = person.page, await running.project(active=True)
    for message in ("One", "Two"):
        body = {"message": message}
        if message == "Two":
            body["session_id"] = (await newest(running, path))[0]
        async with running.http.post(f"{path}/messages", json=body) as answer:
            await answer.read()
    await page.goto(f"{path.removeprefix('/api')}?turns=1")
    await page.wait_for_selector("#composer[data-ready]")
    await expect(page.locator(".said")).to_have_text(["Two"])
    await page.context.clear_cookies()
    await page.get_by_role("link", name="Show earlier").click()
    await page.wait_for_url("**/sign-in*")


async def test_keys_reach_a_shell_of_whose_past_a_part_was_left_out(
    running: Site, person: Person
) -> None:
    page, path = person.page, await running.project(active=True)
    listed = {"terminals": [{"terminal_id": "t", "ended": False}]}
    typed: asyncio.Queue[bytes] = asyncio.Queue()

    def attach(socket: WebSocketRoute) -> None:
        socket.on_message(lambda one: typed.put_nowait(one) if isinstance(one, bytes) else None)
        socket.send(json.dumps({"attached": {"rows": 24, "columns": 80, "replay": 100}}))
        socket.send(b"old bytes ")
        socket.send(json.dumps({"skipped": 95}))
        socket.send(b"new $ ")

    await page.route("**/terminals", lambda route: route.fulfill(json=listed))
    await page.route_web_socket("**/terminals/t", attach)
    await person.open_project(path)
    await page.locator("#tab-terminal").click()
    await expect(page.locator(".xterm-rows")).to_contain_text("new $")
    await page.keyboard.press("ArrowUp")
    async with asyncio.timeout(20):
        assert await typed.get() == b"\x1b[A"


async def test_what_is_written_in_one_tab_outlives_what_another_one_sends(
    running: Site, person: Person
) -> None:
    page, path = person.page, await running.project(active=True)
    await person.open_project(path)
    await person.say("First")
    await person.answered()
    other = await ready(page)
    await page.fill("#message", "Long thought about")
    await other.fill("#message", "Quick")
    await other.press("#message", "Enter")
    await expect(page.locator(".said")).to_have_text(["First", "Quick"])
    await page.wait_for_function(
        "() => Object.values(localStorage).some((one) => one.includes('thought'))"
    )
    await page.close()
    await other.reload()
    await expect(other.locator("#message")).to_have_value("Long thought about")
    # What a tab has only brought back went with what was made of it elsewhere.
    idle = await ready(other)
    await other.locator("#message").press_sequentially(" and more")
    await other.press("#message", "Enter")
    await expect(idle.locator("#message")).to_have_value("")
    await expect(other.locator("#stop")).to_be_hidden()
    await other.reload()
    await other.wait_for_selector("#composer[data-ready]")
    await expect(other.locator("#message")).to_have_value("")
    # So it did with what waits for the end of a turn.
    await other.fill("#message", "run: ls")
    await other.press("#message", "Enter")
    await other.get_by_role("button", name="Allow").wait_for()
    await other.fill("#message", "Later")
    idle = await ready(other)
    await expect(idle.locator("#message")).to_have_value("Later")
    await other.press("#message", "Enter")
    await expect(idle.locator("#message")).to_have_value("")
    await expect(idle.locator(".queued")).to_contain_text("Later")
    person.page = other


async def test_a_session_s_first_message_leaves_what_another_tab_has_written(
    running: Site, person: Person
) -> None:
    page, path = person.page, await running.project(active=True)
    await page.goto(f"{path.removeprefix('/api')}?session=new")
    await page.wait_for_selector("#composer[data-ready]")
    other = await ready(page)
    await page.fill("#message", "Long thought about")
    await other.fill("#message", "Quick")
    await other.press("#message", "Enter")
    await expect(other).not_to_have_url(page.url)
    await expect(other.locator("#stop")).to_be_hidden()
    await page.reload()
    await page.wait_for_selector("#composer[data-ready]")
    await expect(page.locator("#message")).to_have_value("Long thought about")


@pytest.mark.parametrize("kind", ["/live", "/events"])
async def test_a_stream_that_was_short_and_quiet_is_asked_for_again_at_once(
    running: Site, person: Person, kind: str
) -> None:
    page, path = person.page, await running.project(active=True)
    await begin(running, path, "run: ls")
    await page.clock.install()
    await page.add_init_script(f"({QUIET})({json.dumps(kind)})")
    await person.open_project(path)
    await page.wait_for_function("() => opened.length === 1")
    await page.clock.pause_at(await page.evaluate("Date.now() / 1000 + 1"))
    for count in range(2, 8):
        await page.clock.run_for(10_000)
        await page.evaluate("opened.at(-1).close()")
        await page.evaluate(AT_REST)
        await page.clock.run_for(600)
        await page.evaluate(AT_REST)
        assert await page.evaluate("opened.length") == count


NGINX = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>nginx</body>\r\n</html>\r\n"
PORTAL = "<!doctype html><title>Hotel</title><p>Accept"


@pytest.mark.parametrize(
    ("status", "media", "body"),
    [(200, "text/html", PORTAL), (502, "text/html", NGINX), (503, "text/plain", "no upstream")],
)
async def test_what_a_proxy_answers_for_a_server_that_is_away_takes_the_place_of_nothing(
    running: Site, person: Person, status: int, media: str, body: str
) -> None:
    page = person.page
    await person.open_project(await running.project(active=True))
    await page.wait_for_selector("#composer[data-ready]")
    title = await page.title()
    await page.locator("#rail-new").click()
    name = page.locator("#dialog").get_by_label("Name")
    await name.fill("Typed")
    answer = {"status": status, "content_type": media, "body": body}
    await page.route("**/*", lambda route: route.fulfill(**answer))
    await page.locator("#dialog .btn-primary").click()
    notice = page.locator(".notice")
    await expect(notice).to_contain_text("cannot be reached")
    await expect(name).to_have_value("Typed")
    assert await page.title() == title


async def test_a_page_in_the_place_of_an_answer_of_the_api_is_no_success(
    running: Site, person: Person, proxy: DroppingProxy
) -> None:
    page = person.page
    await person.open_project(await running.project(active=True))
    await person.say("run: it")
    allow = page.get_by_role("button", name="Allow", exact=True)
    await allow.wait_for()
    await page.route("**/*", lambda route: route.fulfill(content_type="text/html", body=PORTAL))
    proxy.drop()
    await expect(page.locator("#live-lost")).to_contain_text("Not live")
    await expect(page.locator("#console-status")).to_contain_text("lost")
    await allow.click()
    await expect(page.locator("#console-status")).to_contain_text("cannot be reached")
    async with page.expect_response("**/events"):
        pass  # a try of the stream, which fails as well
    await page.evaluate(AT_REST)
    await expect(page.locator("#console-status")).to_contain_text("cannot be reached")
    file = FilePayload(name="a.txt", mimeType="text/plain", buffer=b"a")
    await page.locator("#files input[type=file]").first.set_input_files([file])
    await expect(page.locator("#files")).to_contain_text("Not uploaded: a.txt")
    await page.unroute("**/*")
    await expect(page.locator("#live-lost")).to_be_empty()
    await allow.click()
    await person.answered()


@pytest.mark.parametrize(
    ("status", "words"),
    [(502, "The connection was lost."), (503, "No store."), (429, "Too many streams.")],
)
async def test_a_turn_that_nobody_can_tell_of_for_long_is_not_said_to_have_ended(
    running: Site, person: Person, proxy: DroppingProxy, status: int, words: str
) -> None:
    page = person.page
    await page.clock.install()
    await person.open_project(await running.project(active=True))
    await person.say("run: it")
    allow = page.get_by_role("button", name="Allow", exact=True)
    await allow.wait_for()
    body = NGINX if status == 502 else json.dumps({"code": "x", "detail": words})
    await page.route("**/*", lambda route: route.fulfill(status=status, body=body))
    proxy.drop()
    said = page.locator("#console-status")
    await expect(said).to_have_text(f"{words} Trying again...")
    for _ in range(12):
        async with page.expect_response("**/events"):
            await page.clock.fast_forward(11_000)
    await expect(said).to_have_text(f"{words} Trying again...")
    live = f"Not live: {words.replace('The connection was', 'the connection is')} Trying again..."
    await expect(page.locator("#live-lost")).to_have_text(live)
    await page.unroute("**/*")
    await page.clock.fast_forward(16_000)
    await expect(said).to_be_empty()
    await allow.click()
    await person.answered()
    assert (await person.answer()).endswith("It ran.")


async def test_steps_that_nobody_can_tell_of_for_long_are_said_to_be_away(
    running: Site, person: Person
) -> None:
    page = person.page
    await page.clock.install()
    await person.open_project(await running.project(active=True))
    for words in ("one", "two"):
        await person.say(words)
        await person.answered()
    await page.reload()
    steps = page.get_by_role("button", name="Show the steps").first
    await steps.wait_for()
    refused = {"code": "agent_failed", "detail": "It answered something else."}
    await page.route("**/events", lambda route: route.fulfill(status=502, json=refused))
    async with page.expect_response("**/events"):
        await steps.click()
    said = page.locator("#console-status")
    for _ in range(20):
        await page.evaluate(AT_REST)
        if await said.inner_text():
            break
        await page.clock.run_for(11_000)
    await expect(said).to_have_text("It answered something else.")
    await page.unroute_all()


# The clock that tests own tells nothing of how a page came.
BY_HTTP_1 = "performance.getEntriesByType = () => [{ nextHopProtocol: 'http/1.1' }]"
WANTS = "() => setInterval(() => new BroadcastChannel('greylag-places').postMessage(true), 500)"


async def test_a_stream_keeps_its_place_until_it_was_answered_and_gives_it_to_others_then(
    running: Site, person: Person
) -> None:
    page, answer, asked = person.page, asyncio.Event(), 0

    async def late(route: Route) -> None:
        nonlocal asked
        asked += 1
        await answer.wait()
        await route.continue_()

    path = await running.project(active=True)
    await begin(running, path, "run: ls")
    await page.clock.install()
    await page.add_init_script(f"document.hasFocus = () => false; {BY_HTTP_1}")
    await page.route("**/events", late)
    async with page.expect_request("**/events"):
        await person.open_project(path)
    await page.evaluate(WANTS)
    await page.clock.run_for(8_000)
    await page.evaluate(AT_REST)
    assert asked == 1
    answer.set()
    await page.get_by_role("button", name="Allow", exact=True).wait_for()
    async with page.expect_response("**/events"):
        await page.clock.run_for(4_000)
    assert asked == 2
    await page.unroute_all()


async def test_a_page_whose_streams_get_no_place_for_long_goes_on_without(
    running: Site, person: Person
) -> None:
    page = person.page
    path = await running.project(active=True)
    await person.open_project(path)
    await page.evaluate(
        "() => { for (const one of '0123') navigator.locks.request(`greylag-place-${one}`,"
        " { steal: true }, () => new Promise(() => {})) }"
    )
    other = await page.context.new_page()
    await other.clock.install()
    await other.add_init_script(BY_HTTP_1)
    streams: list[str] = []
    other.on("request", lambda one: streams.append(one.url) if "/live?" in one.url else None)
    await other.goto(path.removeprefix("/api"))
    await other.wait_for_selector("#composer[data-ready]")
    await other.clock.run_for(5_000)
    assert streams == []
    async with other.expect_response("**/live?*"):
        await other.clock.run_for(30_000)
    await other.close()


async def test_what_went_wrong_in_a_dialog_is_seen_and_dismissed_on_a_phone(
    running: Site, person: Person
) -> None:
    page = person.page
    await page.set_viewport_size({"width": 390, "height": 600})
    await person.open_project(await running.project())
    await page.wait_for_selector("#composer[data-ready]")
    await page.evaluate("document.getElementById('rail-new').click()")
    name = page.locator("#dialog").get_by_label("Name")
    await name.fill("Typed")
    await page.route("**/new-project", lambda route: route.abort())
    await page.locator("#dialog .btn-primary").click()
    notice = page.get_by_role("alert").filter(has_text="may have been done")
    await notice.get_by_role("button", name="Dismiss").click()
    await expect(page.locator(".notice")).to_have_count(0)
    await expect(name).to_have_value("Typed")
    await page.get_by_role("link", name="Cancel").click()
    await page.evaluate("document.getElementById('rail-new').click()")
    await expect(page.locator("body > #notices .notice")).to_be_visible()
    person.complaints[:] = [one for one in person.complaints if not one.startswith("htmx:")]


async def test_a_form_whose_answer_is_lost_with_the_network_may_have_been_done(
    running: Site, person: Person
) -> None:
    page = person.page
    await running.project()
    await page.goto("/users/ada")

    async def lose(route: Route) -> None:
        if route.request.method != "POST":
            await route.continue_()
            return
        await route.fetch()
        await page.context.set_offline(True)
        await route.abort("internetdisconnected")

    await page.route("**/new-project", lose)
    await page.locator("#rail-new").click()
    await page.locator("#dialog").get_by_label("Name").fill("Typed")
    await page.locator("#dialog .btn-primary").click()
    await expect(page.locator(".notice")).to_contain_text("may have been done")
    await page.unroute_all()
    person.complaints[:] = [one for one in person.complaints if not one.startswith("htmx:")]


async def test_a_form_whose_answer_is_lost_is_told_of_truthfully_and_can_be_sent_again(
    running: Site, person: Person, proxy: DroppingProxy
) -> None:
    page = person.page
    await running.project()
    await page.goto("/users/ada")
    await page.evaluate(SHORT_REQUESTS)
    await page.locator("#rail-new").click()
    name = page.locator("#dialog").get_by_label("Name")
    await name.fill("Typed")
    create, notice = page.locator("#dialog .btn-primary"), page.locator(".notice")
    proxy.forget()  # a new connection would be answered; the browser takes one that it has
    await create.click()
    await expect(notice).to_contain_text("may have been done")
    await expect(create).not_to_have_class(re.compile("htmx-request"))
    proxy.end_forgotten()
    await page.evaluate("() => document.dispatchEvent(new Event('greylag:live'))")
    await expect(notice).to_contain_text("may have been done")  # as long as nobody has looked
    await create.click()
    await page.wait_for_url("**/projects/**")
    person.complaints[:] = [one for one in person.complaints if not one.startswith("htmx:")]


async def test_what_only_reads_and_is_not_answered_is_not_said_to_have_been_done(
    running: Site, person: Person
) -> None:
    page, never = person.page, asyncio.Event()

    async def hold(_: Route) -> None:
        await never.wait()

    await person.open_project(await running.project(active=True))
    await page.wait_for_selector("#composer[data-ready]")
    await page.evaluate(SHORT_REQUESTS)
    await page.route("**/new-project", hold)
    await page.locator("#rail-new").click()
    notice = page.locator(".notice")
    await expect(notice).to_contain_text("cannot be reached")
    await expect(notice).not_to_contain_text("may have been done")
    await page.evaluate("() => document.dispatchEvent(new Event('greylag:live'))")
    await expect(notice).to_have_count(0)
    never.set()
    person.complaints[:] = [one for one in person.complaints if not one.startswith("htmx:")]


async def test_a_pane_that_could_not_load_shows_what_it_holds_when_it_is_asked_for_again(
    running: Site, person: Person
) -> None:
    page = person.page
    await person.open_project(await running.project(active=True))
    await page.wait_for_selector("#composer[data-ready]")
    parts = re.compile(r"/js/(changes_list|preview_view)-|/terminals$")
    await page.route(parts, lambda route: route.abort())
    for name in ("changes", "preview"):
        await page.locator(f"#tab-{name}").click()
        await expect(page.locator(f"#pane-{name}")).to_contain_text("cannot be loaded")
    await page.locator("#tab-terminal").click()
    await expect(page.locator("#terminals")).to_contain_text("cannot be reached")
    await page.unroute_all()
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator("#terminals")).to_contain_text("No terminal is open.")
    for name, words in (("changes", "No turn of this session"), ("preview", "5173")):
        await page.locator(f"#tab-{name}").click()
        await expect(page.locator(f"#pane-{name}")).to_contain_text(words)
        await expect(page.locator(f"#pane-{name}")).not_to_contain_text("cannot be loaded")


async def test_what_panes_could_not_ask_for_they_ask_again_once_the_line_is_back(
    running: Site, person: Person, proxy: DroppingProxy
) -> None:
    page, path = person.page, await running.project(active=True)
    await begin(running, path, "Hello")
    await person.open_project(path)
    await page.wait_for_selector("#composer[data-ready]")
    asked = re.compile(
        r"/(terminals|search\?.*|content\?.*|preview|turns\?limit=30|shares|logs.*)$"
    )
    await page.route(asked, lambda route: route.abort())
    files = page.locator("#files")
    await page.get_by_label("Search files").fill("main")
    await expect(files).to_contain_text("cannot be reached")
    shown = {
        "terminal": "No terminal is open.",
        "changes": "1 file changed",
        "preview": "Nothing of this project is shared.",
        "log": "agent is ready",
    }
    for name in shown:
        tab = page.locator(f"#tab-{name}")
        await (tab.click() if name != "log" else page.evaluate(OPEN_LOG))
        if name == "preview":
            await page.get_by_text("Shared links", exact=True).click()
        await expect(page.locator(f"#pane-{name}")).to_contain_text("cannot be reached")
    await page.unroute(asked)
    proxy.drop()  # and the live stream is opened again
    for name, words in shown.items():
        pane = page.locator(f"#pane-{name}")
        await expect(pane).not_to_contain_text("cannot be reached")
        await expect(pane).to_contain_text(words)
    await expect(files).to_contain_text("match")
    await page.route(asked, lambda route: route.abort())
    await page.locator("#tab-changes").click()
    changes, compared = page.locator("#pane-changes"), page.get_by_label("What is compared")
    await expect(changes).to_contain_text("cannot be reached")
    await compared.select_option("since ")  # which asks for no turn
    await expect(compared).to_have_value("since ")
    await page.evaluate(AT_REST)
    await expect(changes).to_contain_text("cannot be reached")
    await page.unroute(asked)
    await compared.select_option(index=0)
    await page.route(re.compile(r"/turns(\?limit=30|/[^/]+)$"), _no_turn)
    await page.evaluate("document.dispatchEvent(new Event('greylag:turn-ended'))")
    await expect(changes).to_contain_text("It is gone.")
    await compared.select_option("since ")  # what is said of a turn is not of this
    await expect(changes).not_to_contain_text("It is gone.")


async def _no_turn(route: Route) -> None:
    status = 200 if "?" in route.request.url else 404
    await route.fulfill(status=status, json={"turns": [], "detail": "It is gone."})


async def _first_of_two_pages(route: Route) -> None:
    """Answer nothing of the second one."""
    if "after=" in route.request.url:
        return await route.abort()
    answer = await route.fetch()
    return await route.fulfill(response=answer, json=await answer.json() | {"next": "a"})


async def test_what_may_have_been_done_shows_among_terminals_and_links(
    running: Site, person: Person
) -> None:
    page, path = person.page, await running.project(active=True)
    await running.ask("PUT", f"{path}/files/content?path=a.html", data=b"a")
    await person.open_project(path)
    await page.wait_for_selector("#composer[data-ready]")
    await page.locator("#tab-terminal").click()
    await expect(page.locator("#terminals")).to_contain_text("No terminal is open.")
    await page.evaluate(DONE_UNSEEN)
    await page.get_by_role("button", name="New terminal").click()
    await expect(page.locator("#terminals")).to_contain_text("may have been done")
    await expect(page.get_by_role("button", name="Terminal 1")).to_be_visible()
    await page.locator("#tab-files").click()
    await page.locator(".files-name", has_text="a.html").click()
    await page.get_by_role("button", name="Preview", exact=True).click()
    await page.get_by_text("Shared links", exact=True).click()
    preview = page.locator("#preview")
    await expect(preview).to_contain_text("Nothing of this project is shared.")
    await page.get_by_role("button", name="1 hour").click()
    await expect(preview).to_contain_text("may have been done")
    await expect(page.locator(".preview-share")).to_have_count(1)


async def test_of_what_did_not_reach_the_server_no_more_is_said_once_the_line_is_back(
    running: Site, person: Person
) -> None:
    page, tried = person.page, 0
    answer: dict[str, Any] | None = None

    async def refuse(route: Route) -> None:
        nonlocal tried
        if route.request.method != "POST":
            return await route.continue_()
        tried += 1
        return await (route.fulfill(**answer) if answer else route.abort())

    path = await running.project(active=True)
    await running.ask("PUT", f"{path}/files/content?path=a.txt", data=b"a")
    await person.open_project(path)
    await page.wait_for_selector("#composer[data-ready]")
    await page.route(re.compile(r"/(terminals|files/folder.*)$"), refuse)
    await page.locator("#tab-terminal").click()
    terminals, live = (
        page.locator("#terminals"),
        "document.dispatchEvent(new Event('greylag:live'))",
    )
    await page.get_by_role("button", name="New terminal").click()
    await expect(terminals).to_contain_text("cannot be reached")
    await page.evaluate(f"() => {{ {live} }}")
    await expect(terminals).not_to_contain_text("cannot be reached")
    answer = {"status": 409, "body": '{"code": "x", "detail": "There are too many."}'}
    await page.get_by_role("button", name="New terminal").click()
    await expect(terminals).to_contain_text("There are too many.")
    await page.evaluate(f"() => {{ {live} }}")
    await page.evaluate(AT_REST)
    await expect(terminals).to_contain_text("There are too many.")
    assert tried == 2  # what was wanted then is not done now
    await page.evaluate(BREAKS_OFF)
    await page.get_by_role("button", name="New terminal").click()
    await expect(terminals).to_contain_text("may have been done")
    await page.route(re.compile(r"/files\?.*$"), _first_of_two_pages)
    await page.locator("#tab-files").click()
    files, rows = page.locator("#files"), page.locator(".files-row")
    await page.get_by_role("button", name="Show more").click()
    await expect(files).to_contain_text("cannot be reached")
    await expect(rows).not_to_have_count(0)
    await page.evaluate(f"() => {{ {live} }}")
    await expect(files).not_to_contain_text("cannot be reached")
    await expect(rows).not_to_have_count(0)
