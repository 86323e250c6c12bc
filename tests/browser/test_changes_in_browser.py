"""What turns changed, on the page: over `greylag up` with the real goose and the scripted model."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Locator, Route, expect
from tests.browser.person import AXE, Person, at_browser
from tests.browser.whole import Whole, has_goose, up

pytestmark = [
    pytest.mark.goose,
    pytest.mark.slow,
    pytest.mark.skipif(not has_goose(), reason="GOOSE WAS NOT TESTED: it is not installed"),
]
API = "/api/users/me/projects/whole"
BEFORE = {
    "src/main.py": b"".join(b"line %d of alpha\n" % number for number in range(1, 31)),
    "notes.txt": b"Remember\n",
}
COMMAND = (
    "sed -i '12s/alpha/beta/' src/main.py; rm notes.txt; printf 'one\\ntwo\\n' >made.txt; "
    "printf '\\0' >bytes.bin; mkdir -p node_modules/x"
)
LEFT = "made.txt (changed afterwards), uploaded.txt (changed by somebody else meanwhile)"
VIEWS = (("wide", False, 1920), ("dark", True, 1200), ("phone", False, 390), ("small", True, 320))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with up(tmp_path_factory.mktemp("changes") / "data") as one:
        await one.project()
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def person(whole: Whole) -> AsyncIterator[Person]:
    async with at_browser(whole.address, token=whole.token) as one:
        await one.open_project(API)
        yield one


async def put(whole: Whole, path: str, content: bytes) -> None:
    where = {"path": path}
    async with whole.http.put(f"{API}/files/content", params=where, data=content) as answer:
        assert answer.status == 200, await answer.text()


async def content(whole: Whole, path: str) -> bytes | None:
    async with whole.http.get(f"{API}/files/content", params={"path": path}) as answer:
        return await answer.read() if answer.status == 200 else None


async def judged(person: Person, name: str) -> None:
    """Look at the page as it is, in both colours and on a phone."""
    for view, dark, width in VIEWS:
        await person.page.emulate_media(color_scheme="dark" if dark else "light")
        await person.page.set_viewport_size({"width": width, "height": 844})
        await person.picture(f"{name}-{view}")
        if AXE.exists():
            await person.judged()
    await person.page.set_viewport_size({"width": 1200, "height": 850})


def change(person: Person, path: str) -> Locator:
    return person.page.locator(".change", has_text=path)


async def undo(person: Person, place: Locator, name: str = "Undo") -> None:
    await place.get_by_role("button", name=name, exact=True).click()
    await person.page.get_by_role("dialog").get_by_role("button", name="Undo", exact=True).click()


async def test_a_turn_is_reviewed_undone_and_brought_back(whole: Whole, person: Person) -> None:
    page, line = person.page, person.page.locator(".turn-line").last
    for path, held in BEFORE.items():
        await put(whole, path, held)
    await person.say(f"[[tool {COMMAND}]] [[text All done.]]")
    await expect(page.get_by_role("button", name="Allow")).to_be_visible()
    await put(whole, "uploaded.txt", b"Meanwhile\n")
    await page.get_by_role("button", name="Allow").click()
    await person.answered()
    for _ in "before and after a reload":
        await expect(line).to_contain_text("5 files changed +4 \u22122")
        await page.reload()
    await reviewed(person)
    await put(whole, "made.txt", b"By hand\n")
    await told_before_it_is_undone(person)
    await page.get_by_role("tab", name="Files").click()
    await expect(page.locator("#files")).to_contain_text("bytes.bin")
    await undo(person, line)
    words = f"3 files brought back. Left as it is: {LEFT}."
    await expect(line.get_by_role("status")).to_have_text(words)
    await expect(page.locator("#files")).not_to_contain_text("bytes.bin")
    assert {path: await content(whole, path) for path in BEFORE} == BEFORE
    assert await content(whole, "made.txt") == b"By hand\n"
    await page.reload()
    await expect(line).to_contain_text("5 files changed +4 \u22122, 3 undone")
    await page.keyboard.press("Alt+1")
    pane = page.locator("#changes")
    await undo(person, pane, "Undo the undo")
    await expect(pane.get_by_role("status")).to_have_text("3 files brought back.")
    await expect(line.get_by_role("button", name="Undo", exact=True)).to_be_visible()
    assert await content(whole, "notes.txt") is None
    assert await content(whole, "src/main.py") != BEFORE["src/main.py"]
    await page.locator("#changes-of").select_option(label="Since the oldest state that is kept")
    await expect(change(person, "made.txt")).to_be_visible()
    await forgotten_by_the_agent(person)
    await seen_by_a_viewer(person)


async def reviewed(person: Person) -> None:
    page, pane = person.page, person.page.locator("#changes")
    await page.route("**/turns?limit=30", one_that_is_older_than_the_list)
    await page.locator(".turn-line").get_by_role("button", name="Review").click()
    await expect(page.locator("#pane-changes")).to_be_focused()
    await expect(pane.get_by_role("button", name="Undo", exact=True)).to_be_visible()
    await expect(page.locator("#changes-of option:checked")).to_contain_text("[[tool sed")
    await page.unroute("**/turns?limit=30")
    await expect(pane.locator(".changes-head")).to_contain_text("5 files changed +4 \u22122")
    await expect(pane.locator(".change > summary")).to_have_text(
        [
            "Aadded: bytes.binbinary",
            "Aadded: made.txt+2",
            "Ddeleted: notes.txt \u22121",
            "Mmodified: src/main.py+1 \u22121",
            "Aadded: uploaded.txtothers, too+1",
        ]
    )
    await expect(pane).to_contain_text("node_modules (made again by tools)")
    await change(person, "src/main.py").locator("summary").press("Enter")
    await expect(pane.locator(".diff-removed mark")).to_have_text("alpha")
    await expect(pane.locator(".diff-added mark")).to_have_text("beta")
    await expect(pane.locator(".diff-same")).to_have_count(6)
    await expect(pane.locator(".diff-added")).to_have_attribute("data-line", "12")
    await judged(person, "changes")


async def one_that_is_older_than_the_list(route: Route) -> None:
    await route.fulfill(json={"turns": []})


async def told_before_it_is_undone(person: Person) -> None:
    page, dialog = person.page, person.page.get_by_role("dialog")
    button = page.locator(".turn-line").get_by_role("button", name="Undo", exact=True)
    await button.click()
    await expect(dialog.locator("li")).to_have_text(
        ["bytes.bin is removed", "notes.txt comes back", "src/main.py is as it was"]
    )
    await expect(dialog).to_contain_text(f"Kept as they are: {LEFT}.")
    await expect(dialog).to_contain_text("in a terminal while the turn ran counts as the turn's")
    await judged(person, "undo")
    await page.keyboard.press("Escape")
    await expect(button).to_be_focused()


async def forgotten_by_the_agent(person: Person) -> None:
    page, line = person.page, person.page.locator(".turn-line").last
    await line.get_by_role("button", name="Undo", exact=True).click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Make the agent forget this turn").check()
    await expect(dialog).to_contain_text("They stay in the conversation here, marked.")
    await judged(person, "undo-forget")
    await dialog.get_by_role("button", name="Undo", exact=True).click()
    await expect(line.get_by_role("status")).to_contain_text("The agent has forgotten 1 turn.")
    for _ in "before and after a reload":
        await expect(page.locator(".turn-end")).to_have_text(["The agent has forgotten this."])
        await page.reload()


async def seen_by_a_viewer(person: Person) -> None:
    page, line = person.page, person.page.locator(".turn-line").last
    await page.route("**/projects/whole?session=*", as_a_viewer_sees_it)
    await page.reload()
    await expect(line.get_by_role("button")).to_have_text(["Review", "Copy"])
    await line.get_by_role("button", name="Review").click()
    await expect(page.locator(".changes-head")).to_contain_text("5 files changed")
    await expect(page.locator("#changes").get_by_role("button", name="Undo")).to_have_count(0)


async def as_a_viewer_sees_it(route: Route) -> None:
    shown = await route.fetch()
    body = (await shown.text()).replace('data-writes="true"', 'data-writes="false"')
    await route.fulfill(response=shown, body=body)


async def test_a_turn_that_changed_nothing_has_no_word_of_it_and_sleep_is_told(
    whole: Whole, person: Person
) -> None:
    page = person.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.route("**/changes_list*", lambda route: route.abort())
    await page.goto(f"{page.url}?session=new")
    await person.say("[[text Hello there.]]")
    await person.answered()
    line = page.locator(".turn-line")
    await expect(line.get_by_role("button")).to_have_text(["Copy", "Edit and resend"])
    assert not [url for url in asked if "/changes" in url]
    await page.keyboard.press("Alt+1")
    await expect(page.locator("#changes")).to_contain_text("cannot be loaded now")
    await page.unroute("**/changes_list*")
    await page.keyboard.press("Alt+1")
    await expect(page.locator("#changes")).to_contain_text("No turn of this session")
    asked.clear()
    async with whole.http.patch(API, json={"name": "Called otherwise"}) as answer:
        assert answer.status == 200
    await expect(page.locator("h1")).to_have_text("Called otherwise")
    await page.evaluate("new Promise((done) => setTimeout(done, 200))")
    assert not [url for url in asked if "/turns" in url]
    async with whole.http.post(f"{API}/deactivate") as answer:
        assert answer.status == 200
    await page.locator("#changes").get_by_role("button", name="Activate it").click()
    await expect(page.locator("#changes")).to_contain_text("No turn of this session")


async def test_a_large_difference_is_shown_in_part_and_saved_whole(
    whole: Whole, person: Person, tmp_path: Path
) -> None:
    page, pane = person.page, person.page.locator("#changes")
    await person.say("[[tool seq 1 30000 >many.txt]] [[text Many.]]")
    await page.get_by_role("button", name="Allow").click()
    await person.answered()
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.get_by_role("tab", name="Changes").click()
    await expect(pane).to_contain_text("It is shown in part.")
    assert await pane.locator(".diff-added").count() < 2000
    async with page.expect_download() as download:
        await pane.get_by_role("button", name="Save diff").click()
    await (await download.value).save_as(tmp_path / "saved")
    gone = {"status": 410, "code": "snapshot_gone", "detail": "It is gone."}
    await page.route("**/undo", lambda route: route.fulfill(status=410, json=gone))
    await undo(person, pane)
    await expect(page.get_by_role("dialog")).to_contain_text("or could not be taken")
    await page.keyboard.press("Escape")
    assert (tmp_path / "saved").read_text().endswith("+30000\n")
    await pane.get_by_role("button", name="Open in Files").click()
    await expect(page.locator("#files pre")).to_contain_text("29999")
