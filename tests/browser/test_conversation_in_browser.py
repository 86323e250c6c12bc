"""How a conversation reads and scrolls, in a real browser; one site and one browser for all."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Route, expect
from tests.browser.person import Person, at_browser, needs_axe
from tests.web.server import Site, site

from greylag.common.agent_api import TurnChanges
from greylag.domain.project import ProjectRef
from greylag.domain.users import OPERATOR
from greylag.reconcile import transcripts

FROM_END = "one => one.scrollHeight - one.clientHeight - one.scrollTop"
AT_END = "scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop < 2"
MARK = """() => {
  const at = (y) => document.elementFromPoint(scroller.clientWidth / 2, y).closest(".prose p");
  window.marked = at(innerHeight / 3) ?? at(innerHeight / 3 + 20);
  return marked.getBoundingClientRect().top;
}"""
MARKED = "marked.getBoundingClientRect().top"
ABOVE = "document.querySelector('.above')"
LINK_ABOVE = """() => document.querySelector('.prose').insertAdjacentHTML(
  'afterbegin', '<a class=above href=#>x</a>')"""
GROWS = """async () => {
  const left = scroller.scrollTop;
  conversation.append(Object.assign(document.createElement("p"), { textContent: "more" }));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return left;
}"""
# Where words stand on the screen.
TOP_OF = """async words => {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const texts = document.createTreeWalker(conversation, NodeFilter.SHOW_TEXT);
  const place = document.createRange();
  while (texts.nextNode()) {
    const at = texts.currentNode.data.search(words + "(?![0-9])");
    if (at < 0 || texts.currentNode.parentElement.closest(".said, .thought")) continue;
    place.setStart(texts.currentNode, at);
    place.setEnd(texts.currentNode, at + 1);
    return place.getBoundingClientRect().top;
  }
}"""
# Has words stand near the top of what is seen.
SCROLLED_TO = f"""async words => {{
  const top = {TOP_OF};
  scroller.dispatchEvent(new WheelEvent("wheel", {{ deltaY: -1 }}));
  for (let round = 0; round < 3; round++) {{
    scroller.scrollTop += await top(words) - scroller.getBoundingClientRect().top - 4;
  }}
  return top(words);
}}"""
PARAGRAPHS = "".join(f"Paragraph {n} of many words to read.\n\n" for n in range(1500))
SCREEN_AT_200_PERCENT = {"width": 640, "height": 400}
MARKDOWN = """\
# One

| a | b |
|:--|--:|
| 1 | 2 |

*so* **strong** ~~gone~~ and [a link](https://example.test/x "T") or <https://example.test/y>

> quoted

---

- [x] done
- [ ] to do
  - below

~~~py
first = 1
~~~

````
```
````

![a cat](https://example.test/cat.png) [later][1]

[1]: https://example.test/later
"""

NAMED = """\
1. one [it]
2. two

1. three [a b][it] `[it]`

- [x] done [x]
- [ ] to do

> [that
> one]

| [it] | b |
|------|---|
| [1]  | 2 |

[it]: https://example.test/first
[It]: https://example.test/second
[half]: https://example.test/h alf

# [that one] and [half]

[1]: <https://example.test/1>

> [That One]: https://example.test/that "T"

[x]: https://example.test/x
[it]: https://example.test/third
"""
LATE = "[late]: https://example.test/late\n"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running() -> AsyncIterator[Site]:
    async with site() as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browsing(running: Site) -> AsyncIterator[Person]:
    async with at_browser(f"http://127.0.0.1:{running.port}") as one:
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def person(
    running: Site, browsing: Person, request: pytest.FixtureRequest
) -> AsyncIterator[Person]:
    """The person at an awake project of the test's own."""
    name = "".join(one if one.isalnum() else "-" for one in request.node.name)[:40]
    await browsing.page.set_viewport_size({"width": 1200, "height": 850})
    await browsing.open_project(await running.project(name, active=True))
    yield browsing


async def told(person: Person, *events: tuple[str, dict[str, Any]]) -> None:
    """Have a turn of these events."""
    await person.say(f"events: {json.dumps(events)}")
    await person.answered()


def words(text: str, size: int = 400) -> list[tuple[str, dict[str, Any]]]:
    return [("message", {"content": text[at : at + size]}) for at in range(0, len(text), size)]


def shell(command: str, *outputs: str, result: str = "", **more: Any) -> list[Any]:
    """Return the events of a call of the shell tool."""
    call = {"id": "c1", "tool_name": "shell", "arguments": {"command": command}}
    printed = [
        ("tool_notification", {"tool_call_id": "c1", "params": {"chunks": [{"output": one}]}})
        for one in outputs
    ]
    given = {"Err": result} if more.get("is_error") else {"Ok": [{"type": "text", "text": result}]}
    return [
        ("tool_request", call),
        *printed,
        ("tool_response", {"id": "c1", "result": given, "is_error": False, **more}),
    ]


async def test_the_view_follows_what_grows_until_the_person_leaves_the_end(person: Person) -> None:
    scroller = person.page.locator("#scroller")
    await told(person, *words(PARAGRAPHS))
    assert await scroller.evaluate(FROM_END) <= 8
    await person.page.set_viewport_size({"width": 1000, "height": 600})
    await expect(person.page.locator("#to-end")).to_be_hidden()
    assert await scroller.evaluate(FROM_END) <= 8
    await person.page.reload()
    await expect(person.page.locator(".answer .prose")).to_contain_text("Paragraph 1499")
    await person.page.wait_for_function(
        f"() => ({FROM_END})(document.getElementById('scroller')) <= 8"
    )
    await scroller.hover()
    await person.page.mouse.wheel(0, -2000)
    await expect(person.page.locator("#to-end")).to_be_visible()
    left = await scroller.evaluate("one => one.scrollTop")
    await person.page.locator("#conversation").evaluate("one => one.append('more')")
    assert await scroller.evaluate("one => one.scrollTop") == left
    await person.say("Back to the end")
    await person.answered()
    await expect(person.page.locator(".said").last).to_be_in_viewport()
    assert await scroller.evaluate(FROM_END) <= 8
    # Whatever the way: by a key, to what the browser finds, by the focus.
    await person.page.evaluate(LINK_ABOVE)
    for leave in ("", f"{ABOVE}.nextSibling.scrollIntoView()", f"{ABOVE}.focus()"):
        await person.page.locator("#to-end").evaluate("one => one.click()")
        await scroller.focus()
        await (person.page.evaluate(leave) if leave else person.page.keyboard.press("Shift+Space"))
        await expect(person.page.locator("#to-end")).to_be_visible()
        left = await person.page.evaluate(GROWS)
        assert await scroller.evaluate("one => one.scrollTop") <= left  # it may be on its way up


async def test_a_refusal_is_in_sight_and_gives_the_words_back(
    running: Site, person: Person
) -> None:
    await told(person, *words(PARAGRAPHS[:8000]))
    await person.page.locator("#scroller").hover()
    await person.page.mouse.wheel(0, -2000)
    both = asyncio.Event()

    async def refuse(route: Route) -> None:
        await both.wait()
        await route.fulfill(status=409, json={})

    await person.page.route("**/messages", refuse)
    await person.say("Refused")
    await person.say("And what waited for it")
    both.set()
    await expect(person.page.locator(".answer .problem").last).to_be_in_viewport()
    back = "Refused\n\nAnd what waited for it"
    await expect(person.page.locator("#message")).to_have_value(back)
    await expect(person.page.locator("#console-status")).to_have_text("")
    await person.page.unroute("**/messages")
    await person.page.reload()
    await expect(person.page.locator("#message")).to_have_value(back)


async def test_answers_are_whole_markdown(person: Person) -> None:
    await told(person, *words(MARKDOWN, 7))
    prose = person.page.locator(".prose")
    for found, text in {
        "h3.heading-1": "One",
        "th.text-left": "a",
        "td.text-right": "2",
        "em": "so",
        "strong": "strong",
        "s": "gone",
        "blockquote": "quoted",
        "li li": "below",
        "figcaption >> nth=0": "pyCopy",
        "pre >> nth=0": "first = 1",
        "pre >> nth=1": "```",
        "a[href='https://example.test/cat.png']": "Picture: a cat",
        "a[href='https://example.test/later']": "later",
        "a[href='https://example.test/y']": "https://example.test/y",
    }.items():
        await expect(prose.locator(found)).to_have_text(text)
    await expect(prose.locator("hr")).to_have_count(1)
    await expect(prose.get_by_role("checkbox", checked=True)).to_have_count(1)
    await expect(prose.get_by_role("checkbox", checked=False)).to_have_count(1)
    await expect(prose.locator("pre .hljs-number")).to_have_text("1")
    await expect(prose).not_to_contain_text("~~")
    await person.picture("conversation-markdown")


async def test_what_is_defined_counts_for_all_of_the_answer(person: Person) -> None:
    page, shown = person.page, list[str]()
    for size in (100_000, 3, 1):
        await told(person, *words(NAMED, size))
        shown.append(await page.locator(".prose").last.inner_html())
    assert shown[1:] == shown[:1] * 2
    links = page.locator(".prose").last.locator("a")
    ends = await links.evaluate_all("all => all.map(one => one.href.split('/').at(-1))")
    assert ends == ["first", "first", "x", "x", "that", "first", "1", "h", "that"]
    # Also for what has long been shown, and for no more than what names it.
    rows = "| a |\n|---|\n" + "| [late] |\n" * 700
    items = "".join(f"- item {n} [late]\n" for n in range(300))
    prose = "\n\n".join((rows, items, PARAGRAPHS[:20_000], "Not [late][never].", LATE))
    await told(person, *words(prose, 2000))
    await expect(page.locator(".prose").last.locator("a")).to_have_count(1000)


async def test_long_blocks_keep_every_word_and_line(person: Person) -> None:
    numbers = [f"{n:04d}" if n % 50 else f"**{n:04d} so {n:04d}**" for n in range(4000)]
    items = "\n".join(f"1. item {n}" for n in range(1, 901))
    rows = "| row | of |\n|---|--:|\n" + "".join(f"| {n} | 700 |\n" for n in range(700))
    code = "\n".join(f"line {n}" for n in range(2000))
    parts = (" ".join(numbers), items, rows, f"```\n{code}\n```", "\U0001f642" * 9000, "end")
    for size in (400, 100_000):
        # With a line before each, the end of one block and the next one's come at once.
        await told(person, *words("\n\nsee\n\n".join(parts), size))
        prose = person.page.locator(".prose").last
        found = " ".join(await prose.locator(".block:has(> p)").all_text_contents()).split()
        expected = " ".join(numbers).replace("*", "").split()
        assert found[: len(expected)] == expected
        assert await prose.locator("strong").count() == len(numbers) // 50
        assert "".join(found[len(expected) :]) == "see" * 4 + parts[-2] + "see" + "end"
        lists = prose.locator("ol")
        starts = await lists.evaluate_all("all => all.map(one => [one.start, one.children.length])")
        assert [start for start, _ in starts] == [
            1 + sum(count for _, count in starts[:at]) for at in range(len(starts))
        ]
        kept = (await lists.locator("li").all_text_contents(), len(starts) > 1)
        assert kept == ([f"item {n}" for n in range(1, 901)], True)
        lines = (await prose.locator("pre").text_content() or "").split("\n")
        assert lines == [*code.split("\n"), ""]
        await expect(prose.locator("table")).to_have_count(1)
        cells = await prose.locator("td:first-child").all_text_contents()
        assert cells == [str(n) for n in range(700)]
    # A block that ends in the piece of text in which it is cut, and an address that is not.
    address = f"https://example.test/?q={'x' * 5000}"
    pieces = (f"```json\n{'y' * 4100}\n", "```\n\n", f"After **it** {address}")
    await told(person, *(("message", {"content": one}) for one in pieces))
    prose = person.page.locator(".prose").last
    await expect(prose.locator("pre")).to_have_text("y" * 4100)
    await expect(prose.locator("strong")).to_have_text("it")
    await expect(prose.locator("a")).to_have_attribute("href", address)
    # What is cut in the piece of text that ends the block before.
    await told(person, *words(f"Hi\n\n{items}", 100_000))
    await told(person, *words(f"Hi\n\n{rows}", 100_000))
    listed, tabled = person.page.locator(".prose").nth(-2), person.page.locator(".prose").last
    assert await listed.locator("li").all_text_contents() == [f"item {n}" for n in range(1, 901)]
    cells = await tabled.locator("td:first-child").all_text_contents()
    assert cells == [str(n) for n in range(700)]


async def test_code_colours_and_changes_that_would_take_for_ever_hold_up_nothing(
    person: Person,
) -> None:
    page = person.page
    bomb = "```markdown\n" + "[a](" * 4000 + "\n```\n\n```python\nx = 1\n```\n"
    colours = "\x1b[1mX" * 8_000 + "\x1b[0m\n\x1b[7;31mturned\x1b[0m\n"
    change = {"path": "a", "before": "", "after": "\n" * 130_000}
    edit = {"id": "c2", "tool_name": "developer__edit", "arguments": change}
    done = {"id": "c2", "result": {"Ok": []}, "is_error": False}
    steps: list[tuple[str, dict[str, Any]]] = [("tool_request", edit), ("tool_response", done)]
    await told(person, *shell("ls", colours), *steps, *words(bomb))
    await expect(page.locator(".prose .hljs-number")).to_have_text("1")
    await page.locator(".step summary").first.click()
    await expect(page.locator(".ansi-red-bg")).to_have_text("turned")
    assert await page.locator(".terminal .ansi-bold").first.get_attribute("class") == "ansi-bold"
    await page.locator(".step summary").last.click()
    await expect(page.locator(".step .diff-gap")).to_have_text("Shown in part")


async def test_long_code_is_looked_at_once_and_its_long_lines_are_scrolled_to(
    person: Person,
) -> None:
    page = person.page
    wide = "wide " * 100
    code = f"{wide}\n" + "".join(f"line {n:70}\n" for n in range(60_000))
    await page.wait_for_selector("#composer[data-ready]")
    await page.evaluate(_COUNT_LOOKS)
    await sent_at_once(person, words(f"```\n{code}```\n", 2000))
    # Its last part is looked at as often as it grows.
    assert await page.evaluate("window.looked") < 3 * len(code)
    pre = page.locator(".prose pre")
    assert (await pre.text_content() or "").strip() == code.strip()
    assert (await pre.evaluate(_SELECTED)).strip() == code.strip()
    await pre.evaluate("one => one.scrollIntoView()")
    await page.wait_for_function("() => document.querySelector('.prose pre').scrollWidth > 2000")


async def test_many_great_changes_at_once_do_not_freeze_the_page(person: Person) -> None:
    page = person.page
    await page.wait_for_selector("#composer[data-ready]")
    await page.evaluate(_WATCH_FREEZES)
    steps: list[tuple[str, dict[str, Any]]] = []
    for number in range(50):
        before, after = ("\n".join(f"{one} {n * 7919 % 1000}" for n in range(2000)) for one in "ab")
        change = {"path": f"file{number}", "before": before, "after": after}
        call = {"id": f"c{number}", "tool_name": "developer__edit", "arguments": change}
        done = {"id": f"c{number}", "result": {"Ok": []}, "is_error": False}
        steps += [("tool_request", call), ("tool_response", done)]
    await sent_at_once(person, steps)
    await expect(page.locator(".step-group .step-done")).to_have_count(50)
    await expect(page.locator(".step-more").first).to_have_text("+2000 \u22122000")
    # Each alone may take a fifth of a second: together they took ten.
    assert await page.evaluate("window.longestFreeze") < 3_000


async def sent_at_once(person: Person, events: list[tuple[str, dict[str, Any]]]) -> None:
    """Have a turn of these events, which may be more than a message holds, all of them at once."""
    told = {"turn_id": "t", "session_id": "s", "message_id": "m"}
    all_ = [("turn", told), *events, ("complete", {"stop_reason": "end_turn"})]
    frames = [
        f"id: t-{number}\ndata: {json.dumps({'type': kind, 'content': content})}\n\n"
        for number, (kind, content) in enumerate(all_)
    ]
    page = person.page
    answer = {"content_type": "text/event-stream", "body": "".join(frames)}
    await page.route("**/messages", lambda route: route.fulfill(**answer))
    await person.say("Go")
    await person.answered()
    await page.unroute("**/messages")


async def test_blanks_and_marks_that_would_take_for_ever_hold_up_nothing(person: Person) -> None:
    marks = "\n\n".join(["x" + "_" * 190_000 + "y"] * 4)
    names = "\\[" * 90_000 + "[x]\n\n[x]: https://example.test/\n"
    for text in (" " * 900_000 + "last", f"{marks}\n\nlast", f"{names}\nlast"):
        # While the turn runs each piece is looked at as it comes.
        await person.say(f"events: {json.dumps([*words(text, 50_000), ('wait', {})])}")
        await expect(person.page.locator(".turn").last.locator(".prose")).to_contain_text("last")
        await person.page.click("#stop")
        await person.answered()


async def test_what_is_read_of_a_long_answer_stays_in_place_as_it_scrolls(person: Person) -> None:
    page = person.page
    await told(person, *words(PARAGRAPHS))
    await page.reload()
    await expect(page.locator(".answer .prose")).to_contain_text("Paragraph 1499")
    await page.wait_for_function(AT_END)
    await page.locator("#scroller").hover()
    for _ in range(25):
        moved = await page.evaluate(MARK)
        await page.mouse.wheel(0, -400)
        await page.wait_for_timeout(100)
        assert abs(await page.evaluate(MARKED) - moved - 400) < 3
    await page.evaluate("getSelection().selectAllChildren(document.querySelector('.prose'))")
    assert "Paragraph 7 of" in await page.evaluate("String(getSelection())")


async def test_a_step_says_what_was_done_and_shows_its_output_once_in_colours(
    person: Person,
) -> None:
    command = "find . -name '*.pyc' " + "| xargs-with-a-very-long-name" * 20
    output = "\x1b[31mred\x1b[0m plain\n"
    await told(person, *shell(command, output, result="\x1b[31mred\x1b[0m plain"))
    step = person.page.locator(".step")
    title = step.locator(".step-title")
    await expect(title).to_contain_text("Ran find . -name")
    size = await step.bounding_box()
    assert size is not None
    assert size["height"] < 40
    await step.locator("summary").click()
    shown = step.locator(".terminal")
    assert await shown.inner_text() == "red plain\n"
    await expect(shown.locator(".ansi-red")).to_have_text("red")
    assert (await step.inner_text()).count("plain") == 1
    await told(person, *shell("false", result="no\n\nCommand exited with code 3", is_error=True))
    await expect(person.page.locator(".step-state").last).to_have_text("exit 3")
    changed = {"path": "src/a.py", "before": "a\nb\n", "after": "a\nc\nd\n"}
    edit = {"id": "c2", "tool_name": "developer__edit", "arguments": changed}
    done = {"id": "c2", "result": {"Ok": []}, "is_error": False}
    await told(person, ("tool_request", edit), ("tool_response", done))
    await expect(person.page.locator(".step-title").last).to_have_text("Edited src/a.py +2 \u22121")
    await person.page.locator(".step summary").last.click()
    await expect(person.page.locator(".diff-added").first).to_have_text("+ c")
    await expect(person.page.locator(".step-icon")).to_have_count(3)
    await person.picture("conversation-steps")
    await other_tools_are_told_by_what_they_do(person)
    await a_long_change_is_compared_once(person)
    await what_a_step_printed_is_made_when_it_is_opened(person)


async def other_tools_are_told_by_what_they_do(person: Person) -> None:
    calls: dict[str, tuple[dict[str, Any], str]] = {
        "developer__write": ({"path": "b.py", "file_text": "a\nb\n"}, "Wrote b.py +2"),
        "developer__tree": ({}, "Listed ."),
        "developer__analyze": ({"path": "src"}, "Read src"),
        "todo__todo_write": ({"content": "First this"}, "Planned"),
        "web__fetch": ({"url": "a.test"}, "Used web fetch a.test"),
        "web__post": ({"url": "a.test", "body": "b"}, "Used web post"),
    }
    events: list[tuple[str, dict[str, Any]]] = []
    for name, (given, _) in calls.items():
        events.append(("tool_request", {"id": name, "tool_name": name, "arguments": given}))
        events.append(("tool_response", {"id": name, "result": {"Ok": [], "data": {"made": 1}}}))
    # A turn that is joined late may tell of a result alone.
    events.append(("tool_response", {"id": "x", "tool_name": "late", "result": {"Err": {"no": 1}}}))
    events.append(("context_exceeded", {}))
    events.append(("history_update", {}))
    await told(person, *events)
    turn = person.page.locator(".turn").last
    titles = [title for _, title in calls.values()]
    await expect(turn.locator(".step .step-title")).to_have_text(["7 steps", *titles, "Used late"])
    await expect(turn.locator(".note")).to_have_text(
        [re.compile("too long"), re.compile("shortened")]
    )
    await turn.locator(".step-group > summary").click()
    await turn.locator(".step summary", has_text="web post").click()
    await expect(turn.locator(".step-body")).to_contain_text('"body": "b"')
    await expect(turn.locator(".step-body .terminal")).to_have_text(re.compile('"made": 1'))
    await turn.locator(".step summary", has_text="late").click()
    await expect(turn.locator(".terminal").last).to_have_text('{"no":1}')


async def a_long_change_is_compared_once(person: Person) -> None:
    page = person.page
    await page.evaluate(_COUNT_LONG_SPLITS)
    lines = ["\n".join(f"{word} {n}" * 3 for n in range(3000)) for word in ("one", "other")]
    changed = {"path": "long.py", "before": lines[0], "after": lines[1]}
    edit = {"id": "c3", "tool_name": "developer__edit", "arguments": changed}
    done = {"id": "c3", "result": {"Ok": []}, "is_error": False}
    await told(person, ("tool_request", edit), ("tool_response", done), *words(PARAGRAPHS, 100))
    title = page.locator(".step-title").last
    await expect(title).to_have_text("Edited long.py +3000 \u22123000")
    assert await page.evaluate("window.longSplits") < 20


async def what_a_step_printed_is_made_when_it_is_opened(person: Person) -> None:
    page = person.page
    await told(person, *shell("make", "built\n" * 9000), *words(PARAGRAPHS))
    made, step = page.locator(".step-body", has_text="built"), page.locator(".step").last
    await expect(made).to_have_count(0)
    await step.locator("summary").click()
    await expect(made).to_have_count(1)
    await step.locator("summary").click()
    await expect(made).to_have_count(0)


async def test_steps_fold_and_a_declined_one_says_so(person: Person) -> None:
    await told(person, *(event for n in range(3) for event in _numbered(shell("true"), n)))
    await expect(person.page.locator(".step-group > summary")).to_contain_text("3 steps")
    await an_open_step_stays_open(person)
    await person.say("run: rm -rf /")
    await person.page.get_by_role("button", name="Decline").click()
    await person.answered()
    for _ in range(2):
        step = person.page.locator(".step").last
        await expect(step.locator(".step-title")).to_have_text("Run rm -rf /")
        await expect(step.locator(".step-state")).to_have_text(re.compile("^declined"))
        await expect(step).not_to_contain_text("Err")
        await person.page.reload()
    await person.page.get_by_role("button", name="Show the steps").first.press("Enter")
    await expect(person.page.locator(".step-group > summary").first).to_be_focused()


async def an_open_step_stays_open(person: Person) -> None:
    """Also when its turn goes on and the steps would fold."""
    called = ("tool_request", {"id": "call_1", "tool_name": "shell", "arguments": {}})
    asked = ("tool_confirmation", {"id": "q1", "tool_name": "shell", "arguments": {}})
    events = [event for n in range(3) for event in _numbered(shell("pwd", "here"), n)]
    await person.say(f"events: {json.dumps([*events, called, asked])}")
    turn = person.page.locator(".turn").last
    await turn.locator(".step summary").nth(1).click()
    await turn.get_by_role("button", name="Allow").click()
    await person.answered()
    await expect(turn.locator(".step-group > summary")).to_contain_text("4 steps")
    await expect(turn.locator(".terminal")).to_have_text("here")
    await turn.locator(".step-group > summary").click()
    await expect(turn.locator(".terminal")).to_be_hidden()


async def test_a_draft_is_kept_for_each_session_whatever_happens(
    running: Site, person: Person
) -> None:
    await person.say("First")
    await person.answered()
    await person.page.fill("#message", "half a thought")
    await person.page.click("text=New session")
    await expect(person.page.locator("#message")).to_have_value("")
    await person.page.fill("#message", "for a new one")
    await person.page.locator(".session-link").first.click()
    await expect(person.page.locator("#message")).to_have_value("half a thought")
    # What waited for long is there, but is not sent by surprise.
    await person.page.evaluate(_LEFT_LONG_AGO)
    await person.page.reload()
    await expect(person.page.locator("#message")).to_have_value(
        "waited\n\non its way\n\nhalf a thought"
    )
    await expect(person.page.locator(".said")).to_have_count(1)
    await person.page.click("text=New session")
    await expect(person.page.locator("#message")).to_have_value("for a new one")


async def test_a_turn_is_copied_tried_again_and_edited(person: Person) -> None:
    page, line = person.page, person.page.locator(".turn-line").last
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await person.say("Some *words*")
    await person.answered()
    await line.get_by_role("button", name="Copy", exact=True).click()
    await expect(line.get_by_role("status")).to_have_text("Copied.")
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert "Some *words*" in copied
    # As over plain HTTP from another machine, where pages have no clipboard.
    await page.evaluate("navigator.clipboard.writeText('')")
    await page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    await line.get_by_role("button", name="Copy", exact=True).click()
    await expect(line.get_by_role("status")).to_have_text("Copied.")
    await page.locator("#message").press("Control+v")
    await expect(page.locator("#message")).to_have_value(copied)
    await page.evaluate("document.execCommand = () => false")
    await line.get_by_role("button", name="Copy", exact=True).click()
    await expect(line.get_by_role("status")).to_contain_text("Select the answer")
    await page.fill("#message", "")
    used = {"stop_reason": "end_turn", "changes": None, "usage": {"totalTokens": 12345}}
    await told(person, ("complete", used))
    await expect(page.locator("#fact-context")).to_have_text("12.3k tokens")
    await expect(line).to_contain_text("1 file changed +3 \u22121")
    await person.say("fail: it broke")
    await person.answered()
    await line.get_by_role("button", name="Retry").click()
    await expect(page.locator(".said")).to_have_count(4)
    await person.answered()
    await expect(page.locator(".said").last).to_have_text("fail: it broke")
    await expect(line.get_by_role("button")).to_have_text(["Retry", "Edit and resend"])
    await page.reload()
    await page.fill("#message", "and more")
    await line.get_by_role("button", name="Edit and resend").click()
    await expect(page.locator("#message")).to_have_value("fail: it broke\n\nand more")
    await expect(page.locator("#message")).to_be_focused()


async def test_a_dialog_keeps_what_was_typed_however_it_closes(person: Person) -> None:
    await person.page.goto("/users/ada")
    dialog = person.page.locator("#dialog")
    for close in ("outside", "Escape"):
        await person.page.click("#new-project")
        await expect(dialog).to_be_visible()
        if close == "outside":
            await person.page.fill("#field-name", "Half a name")
            await person.page.mouse.click(5, 400)
            await expect(dialog).to_be_visible()
        await person.page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()
    await person.page.click("#new-project")
    await expect(person.page.locator("#field-name")).to_have_value("Half a name")
    await person.page.click("#dialog >> text=Cancel")
    await person.page.click("#new-project")
    await expect(person.page.locator("#field-name")).to_have_value("")


async def test_what_is_said_of_stopping_ends_with_it(person: Person) -> None:
    await person.say("wait: for ever")
    await person.page.get_by_role("button", name="Stop").click()
    await person.answered()
    await expect(person.page.locator("#console-status")).to_have_text("")


async def test_the_conversation_is_seen_at_twice_the_size(person: Person) -> None:
    await told(person, *words(PARAGRAPHS[:3000]))
    await person.page.set_viewport_size(SCREEN_AT_200_PERCENT)  # type: ignore[arg-type] # its own type of dict
    size = await person.page.locator("#scroller").bounding_box()
    assert size is not None
    assert size["height"] > 200
    await expect(person.page.locator("#message")).to_be_in_viewport()
    await person.picture("conversation-zoomed")


async def test_earlier_messages_come_above_what_is_seen(running: Site, person: Person) -> None:
    for number in range(33):
        address = person.page.url.partition("?")[0].replace("/users/", "/api/users/", 1)
        body: dict[str, Any] = {"message": f"Message {number}"}
        if number:
            _, listed = await running.ask("GET", f"{address}/sessions")
            body["session_id"] = listed["sessions"][0]["session_id"]
        async with running.http.post(f"{address}/messages", json=body) as answer:
            await answer.read()
    await person.page.reload()
    first = person.page.locator(".said", has_text="Message 3").first
    await expect(person.page.locator(".turn-end button")).to_have_count(29)
    await person.page.locator("#scroller").hover()
    await person.page.mouse.wheel(0, -100_000)
    await expect(first).to_be_in_viewport()
    # What was refused is in the page alone.
    await person.page.route("**/messages", lambda route: route.fulfill(status=409, json={}))
    await person.say("Refused")
    await person.answered()
    await person.page.unroute("**/messages")
    await first.evaluate("one => one.scrollIntoView()")
    before = await first.bounding_box()
    await person.page.get_by_role("link", name="Show earlier").evaluate("one => one.click()")
    await expect(person.page.locator(".said").first).to_have_text("Message 0")
    await expect(person.page.locator(".turn-end button")).to_have_count(32)
    after = await first.bounding_box()
    assert before is not None
    assert after is not None
    assert abs(before["y"] - after["y"]) < 2


async def test_who_reads_an_answer_goes_on_with_the_same_words_when_it_is_drawn_from_its_events(
    person: Person,
) -> None:
    page, drawn = person.page, asyncio.Event()

    async def hold(route: Route) -> None:
        await drawn.wait()
        await route.continue_()

    before = "".join(f"{n}. **Paragraph {n}** of many words to read.\n" for n in range(1, 150))
    code = "~~~py\n" + "x = 1\n" * 200 + "~~~\n\n"
    after = "".join(f"Paragraph {n} of `many` words to read.\n\n" for n in range(150, 300))
    output = "\n".join(map(str, range(300)))
    thought = ("thinking", {"message": before + after})  # a draft of it
    await told(person, thought, *words(before), *shell("ls", output), *words(code + after))
    await page.route("**/turns/*/events", hold)
    await page.reload()
    await page.wait_for_selector("#composer[data-ready]")
    top = await page.evaluate(SCROLLED_TO, "Paragraph 229")
    drawn.set()
    await expect(page.locator(".answer .step")).to_have_count(2)
    assert abs(await page.evaluate(TOP_OF, "Paragraph 229") - top) < 2
    # So it is where the steps of an earlier turn are asked for.
    await told(person, *words("And one more."))
    for reading in ("Paragraph 77", "Paragraph 229", "And one more."):
        await page.reload()
        steps = page.get_by_role("button", name="Show the steps")
        await expect(page.locator(".prose[data-markdown]")).to_have_count(0)
        top = await page.evaluate(SCROLLED_TO, reading)
        await steps.first.evaluate("one => one.click()")
        await expect(page.locator(".answer .step")).to_have_count(2)
        assert abs(await page.evaluate(TOP_OF, reading) - top) < 2, reading


async def test_what_was_said_is_read_asleep_and_is_there_once_when_it_wakes(
    running: Site, person: Person
) -> None:
    path = await running.project("sleeper", active=True)
    page = person.page
    await person.open_project(path)
    for words in ("one", "two\n" * 60, "three"):
        await person.say(words)
        await person.answered()
    said = page.locator(".turn .said")
    await expect(said).to_have_count(3)
    await running.ask("POST", f"{path}/deactivate")
    await page.reload()
    await expect(page.locator("#kept-at")).to_contain_text("inactive. This is the conversation")
    await expect(page.locator("[data-kept] .prose")).to_have_count(3)
    await expect(page.locator(".session-title")).to_have_text("one")
    await page.wait_for_function(f"({FROM_END})(scroller) <= 8")
    await person.picture("conversation-asleep")
    await person.say("four")  # wakes it
    await expect(page.locator("[data-kept], #kept-at")).to_have_count(0)
    await person.answered()
    for _ in range(2):
        await expect(said).to_have_text(["one", "two\n" * 60, "three", "four"])
        await expect(page.locator(".turn .prose")).to_have_count(4)
        await page.wait_for_function(f"({FROM_END})(scroller) <= 8")
        await page.reload()
    await running.ask("POST", f"{path}/deactivate")
    await page.reload()
    await expect(page.locator("[data-kept]")).to_have_count(4)
    await page.locator("#scroller").hover()
    await page.mouse.wheel(0, -100)
    await expect(page.locator("#to-end")).to_be_visible()
    two = page.locator(".said").nth(1)
    await two.evaluate("one => one.scrollIntoView()")
    before = await two.bounding_box()
    await running.ask("POST", f"{path}/activate")
    await expect(page.locator("[data-kept], #kept-at")).to_have_count(0)
    await expect(page.locator(".turn[data-turn] .turn-line")).to_have_count(4)
    after = await two.bounding_box()
    assert before is not None
    assert after is not None
    assert abs(before["y"] - after["y"]) < 2


async def test_the_steps_are_read_asleep_as_they_were_and_are_there_once_when_it_wakes(
    running: Site, person: Person
) -> None:
    path = await running.project("steps", active=True)
    page = person.page
    await person.open_project(path)
    thought = ("thinking", {"message": "Let me look."})
    await told(person, thought, *shell("ls", result="a.txt\nCommand exited with code 3\n"))
    await person.say("run: make")
    await page.get_by_role("button", name="Decline").click()
    await person.answered()
    steps = page.locator(".turn .step")
    await expect(steps).to_have_count(3)
    # How long one took is measured by the page that saw it, and told from a second on.
    told_awake = [re.sub(r"(, )?\d+ s$", "", one) for one in await steps.all_text_contents()]
    awake = [re.compile(f"^{re.escape(one)}") for one in told_awake]
    newest = page.locator(".turn").last
    at = await running.house.use_cases.agents.address(OPERATOR, ProjectRef("ada", "steps"))
    first, _ = running.house.gateway._at(at).runs.values()
    first.turn = replace(first.turn, changes=TurnChanges(3, 48, 2))
    await running.ask("POST", f"{path}/deactivate")
    await page.reload()
    await expect(page.locator("#kept-at")).to_be_visible()
    await expect(newest.locator(".step")).to_have_count(1)  # as of an awake one, at once
    await expect(steps).to_have_count(1)
    await page.get_by_role("button", name="Show the steps").click()
    await expect(steps).to_have_text(awake)
    await steps.nth(1).locator("summary").click()
    await expect(steps.nth(1)).to_contain_text("a.txt")
    # It is only read: nobody is there who could be asked for more.
    await expect(page.locator(".turn-line")).to_have_text(["3 files changed +48 \u22122", ""])
    await expect(page.locator(".turn-line button")).to_have_count(0)
    for name in ("Allow", "Decline"):
        await expect(page.get_by_role("button", name=name)).to_have_count(0)
    await expect(page.locator("#stop")).to_be_hidden()
    await person.picture("conversation-asleep-steps")
    await running.ask("POST", f"{path}/activate")
    await expect(page.locator("[data-kept], #kept-at")).to_have_count(0)
    await expect(page.locator(".turn")).to_have_count(2)
    await expect(newest.locator(".step")).to_have_count(1)
    await page.get_by_role("button", name="Show the steps").click()
    await expect(steps).to_have_text(awake)
    await expect(page.get_by_role("button", name="Edit and resend")).to_have_count(2)


async def test_turns_of_late_keep_their_order_though_they_are_told_of_before_the_conversation(
    running: Site, person: Person
) -> None:
    path = await running.project("late", active=True)
    page, there = person.page, asyncio.Event()
    await person.open_project(path)
    for words in ("one", "two"):
        await person.say(words)
        await person.answered()
    first = await page.locator(".turn").first.get_attribute("data-turn")
    await running.ask("POST", f"{path}/deactivate")
    await page.reload()
    await expect(page.locator("[data-kept]")).to_have_count(2)
    await page.evaluate(
        "document.addEventListener('greylag:turns', (one) => window.told ||= one.detail.length)"
    )

    async def after_turns(route: Route) -> None:
        await page.wait_for_function("() => window.told")
        await route.continue_()

    async def after_conversation(route: Route) -> None:
        await there.wait()
        await route.continue_()

    await page.route("**/conversation?*", after_turns)
    await page.route(f"**/turns/{first}", after_conversation)
    await running.ask("POST", f"{path}/activate")
    await expect(page.locator("[data-kept], #kept-at")).to_have_count(0)
    there.set()
    await expect(page.locator(".turn[data-turn] .said")).to_have_text(["one", "two"])
    await expect(page.get_by_role("button", name="Show the steps")).to_have_count(1)
    await page.unroute_all()


async def test_steps_that_ran_at_once_are_told_with_the_time_that_passed(person: Person) -> None:
    spans = [(100, 102), (100, 103), (101, 103), (110, 111)]
    begun, ended = [], []
    for number, (began, end) in enumerate(spans):
        call = {"id": str(number), "tool_name": "shell", "arguments": {"command": "true"}}
        begun.append(("tool_request", call | {"timestamp": began}))
        result = {"result": {"Ok": []}, "is_error": False, "timestamp": end}
        ended.append(("tool_response", {"id": str(number), **result}))
    await told(person, *begun, *ended)
    summary = person.page.locator(".step-group > summary")
    await expect(summary).to_have_text(re.compile("4 steps *4 s"))


async def test_a_turn_that_failed_is_sent_again_though_its_environment_has_gone_to_sleep(
    running: Site, person: Person
) -> None:
    path = await running.project("restless", active=True)
    page = person.page
    await person.open_project(path)
    await person.say("fail: no key")
    await person.answered()
    await running.ask("POST", f"{path}/deactivate")
    await expect(page.locator(".badge").first).to_have_text("Inactive")
    await page.get_by_role("button", name="Edit and resend").click()
    await expect(page.locator("#message")).to_have_value("fail: no key")
    await page.get_by_role("button", name="Retry").click()  # wakes it
    await expect(page.locator(".turn .problem")).to_have_count(2)
    await person.answered()
    await expect(page.locator(".turn .said")).to_have_text(["fail: no key"] * 2)


async def test_an_answer_that_is_not_whole_in_the_copy_leaves_the_clipboard_as_it_was(
    running: Site, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcripts, "PAGE_CHARACTERS", 12)
    path = await running.project("brief", active=True)
    page, line = person.page, person.page.locator(".turn-line").last
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await person.open_project(path)
    await person.say("Some words")
    await person.answered()
    await page.evaluate("navigator.clipboard.writeText('of before')")
    await running.ask("POST", f"{path}/deactivate")
    await expect(page.locator(".badge").first).to_have_text("Inactive")
    await line.get_by_role("button", name="Copy", exact=True).click()
    await expect(line.get_by_role("status")).to_contain_text("not active")
    assert await page.evaluate("navigator.clipboard.readText()") == "of before"


@needs_axe
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_nothing_wrong(person: Person, theme: str) -> None:
    await person.page.evaluate(f"localStorage.setItem('greylag-theme', '{theme}')")
    await person.page.reload()
    await told(person, *words(MARKDOWN), *shell("ls", "\x1b[32mgreen\x1b[0m"))
    await person.page.locator(".step summary").click()
    await person.say("run: ls")
    await person.page.get_by_role("button", name="Allow").wait_for()
    for width in (320, 1200, 1920):
        await person.page.set_viewport_size({"width": width, "height": 800})
        menus = person.page.locator("details.menu")
        await menus.evaluate_all("all => all.forEach(one => { one.open = true; })")
        await person.judged()
    await person.picture(f"conversation-{theme}")
    await person.page.goto("/users/ada")
    await person.judged()
    await person.page.click("#new-project")
    await person.judged()
    await person.page.evaluate("localStorage.removeItem('greylag-theme')")


_SELECTED = """one => {
  getSelection().selectAllChildren(one);
  return String(getSelection());
}"""
_WATCH_FREEZES = """() => {
  window.longestFreeze = 0;
  let last = performance.now();
  setInterval(() => {
    const now = performance.now();
    window.longestFreeze = Math.max(window.longestFreeze, now - last);
    last = now;
  }, 20);
}"""
_COUNT_LOOKS = """() => {
  const { replace } = String.prototype;
  window.looked = 0;
  String.prototype.replace = function (...given) {
    if (given[0] instanceof RegExp && /u202a/.test(given[0].source)) window.looked += this.length;
    return replace.apply(this, given);
  };
}"""
_COUNT_LONG_SPLITS = """() => {
  const { split } = String.prototype;
  window.longSplits = 0;
  String.prototype.split = function (...given) {
    if (this.length > 50_000 && given[0] instanceof RegExp) window.longSplits += 1;
    return split.apply(this, given);
  };
}"""
_LEFT_LONG_AGO = """() => {
  const name = location.pathname + "?" + document.querySelector("#conversation").dataset.session;
  const at = Date.now() - 7_200_000;
  const old = (message) => ({ message, messageId: message, session: null, at });
  localStorage.setItem(`greylag-draft:sent ${name}`, JSON.stringify([old("on its way")]));
  localStorage.setItem(`greylag-draft:queued ${name}`, JSON.stringify(old("waited")));
}"""


def _numbered(events: list[Any], number: int) -> list[Any]:
    text = json.dumps(events).replace("c1", f"c1-{number}")
    made: list[Any] = json.loads(text)
    return made
