"""The workspace's files on the page, over `greylag up` with the scripted agent."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Dialog, Locator, Route, expect
from tests.browser.person import Person, at_browser, needs_axe
from tests.browser.whole import Whole, up

pytestmark = pytest.mark.slow

API = "/api/users/me/projects/whole"
HOSTILE = b"<script>document.title = 'owned'</script>"
PIXEL = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with up(tmp_path_factory.mktemp("files") / "data", GREYLAG_GOOSE="scripted") as one:
        await one.project()
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browsing(whole: Whole) -> AsyncIterator[Person]:
    async with at_browser(whole.address, token=whole.token) as one:
        yield one


@pytest_asyncio.fixture(loop_scope="session")
async def person(whole: Whole, browsing: Person) -> AsyncIterator[Person]:
    """The person at the pane of files, in a workspace that holds what ``CONTENT`` says."""
    async with whole.http.get(f"{API}/files") as answer:
        for entry in (await answer.json())["entries"]:
            gone = {"path": entry["path"], "recursive": "true"}
            async with whole.http.delete(f"{API}/files", params=gone) as deleted:
                assert deleted.status == 204
    for path, content in CONTENT.items():
        where = {"path": path}
        async with whole.http.put(f"{API}/files/content", params=where, data=content) as put:
            assert put.status == 200, await put.text()
    await browsing.page.set_viewport_size({"width": 1200, "height": 850})
    await browsing.open_project(API)
    await browsing.page.get_by_role("tab", name="Files").click()
    await expect(browsing.page.locator(".files-list")).to_be_visible()
    yield browsing


CONTENT = {
    "src/main.py": b"def main() -> int:\n    return 42\n",
    "page.html": HOSTILE,
    "pixel.gif": PIXEL,
    "bytes.bin": b"\0\1\2\xff",
    "notes.txt": "Grüße\n".encode(),
    "lines.txt": b"one\r\ntwo\r\n",
    "mixed.txt": b"one\r\ntwo\n",
    "src/workspace/main.py": b"1\n",
}


def row(person: Person, name: str) -> Locator:
    return person.page.locator(".files-row", has=person.page.get_by_text(name, exact=True))


async def menu(person: Person, name: str, action: str) -> None:
    await row(person, name).locator("summary").click()
    await row(person, name).get_by_text(action, exact=True).click()


async def content(whole: Whole, path: str) -> bytes:
    where = f"{API}/files/content"
    async with whole.http.get(where, params={"path": path}) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def test_folders_open_and_files_show_as_what_they_are(person: Person) -> None:
    page, pane = person.page, person.page.locator("#files")
    await person.picture("files-list")
    await row(person, "src").get_by_role("button", name="src").click()
    await row(person, "main.py").get_by_role("button").first.click()
    await expect(pane.locator("pre .hljs-keyword").first).to_have_text("def")
    await person.picture("files-text")
    await page.get_by_role("button", name="Files").click()
    await page.locator(".files-path").get_by_role("button", name="workspace").click()
    for name, shown in (("page.html", "<script>"), ("bytes.bin", "This is not text")):
        await row(person, name).get_by_role("button").first.click()
        await expect(pane).to_contain_text(shown)
        assert await pane.locator("script, iframe").count() == 0
        await page.get_by_role("button", name="Files").click()
    await row(person, "pixel.gif").get_by_role("button").first.click()
    loaded = "one => one.decode().then(() => one.naturalWidth)"
    assert await pane.locator("img").evaluate(loaded) == 1
    assert "owned" not in await page.title()
    async with page.expect_download() as download:
        await pane.get_by_role("link", name="Download").click()
    assert await asyncio.to_thread((await (await download.value).path()).read_bytes) == PIXEL


async def put(whole: Whole, path: str, body: bytes) -> None:
    where = f"{API}/files/content"
    async with whole.http.put(where, params={"path": path}, data=body) as answer:
        assert answer.status == 200, await answer.text()


async def opened(person: Person, path: str) -> None:
    """Open a file as a step or a change does, whatever the pane shows."""
    show = "path => document.dispatchEvent(new CustomEvent('greylag:open-file', { detail: path }))"
    await person.page.evaluate(show, path)


async def _once(may: asyncio.Event, route: Route) -> None:
    await may.wait()
    await route.continue_()


async def test_text_is_edited_and_a_change_of_another_s_is_not_lost(
    whole: Whole, person: Person
) -> None:
    page, pane, editor = (
        person.page,
        person.page.locator("#files"),
        person.page.locator(".file-editor"),
    )
    await row(person, "notes.txt").get_by_role("button").first.click()
    await page.get_by_role("button", name="Edit", exact=True).click()
    await editor.fill("Mine\n")
    await page.keyboard.press("Control+s")
    await expect(page.locator(".file-text")).to_have_text("Mine")
    assert await content(whole, "notes.txt") == b"Mine\n"
    await it_follows_what_the_agent_writes(whole, person)
    await page.get_by_role("button", name="Edit", exact=True).click()
    await page.evaluate(_COUNT_KEPT)
    await editor.fill("")
    await editor.press_sequentially("Mine again\n")
    assert await page.evaluate("kept") < 4
    # What is opened meanwhile is edited for itself, and what was begun is a draft of what it was.
    await opened(person, "/w/workspace/src/workspace/main.py")
    await expect(pane.locator(".file-name bdi")).to_have_text("src/workspace/main.py")
    await expect(editor).to_have_count(0)
    await put(whole, "notes.txt", b"Theirs\n")
    await page.reload()
    await page.get_by_role("tab", name="Files").click()
    await row(person, "notes.txt").get_by_role("button").first.click()
    await expect(pane).to_contain_text("You have changed it and not saved that")
    await person.picture("files-kept-draft")
    await page.get_by_role("button", name="Edit", exact=True).click()
    await expect(editor).to_have_value("Mine again\n")
    await expect(pane.get_by_role("alert")).to_contain_text("has changed since you began")
    await page.get_by_role("button", name="Save").click()
    await expect(pane.get_by_role("alert")).to_contain_text("has changed since you began")
    await person.picture("files-draft")
    assert await content(whole, "notes.txt") == b"Theirs\n"
    await page.get_by_role("button", name="Overwrite it").click()
    await expect(page.locator(".file-text")).to_have_text("Mine again")
    assert await content(whole, "notes.txt") == b"Mine again\n"
    assert await content(whole, "src/workspace/main.py") == CONTENT["src/workspace/main.py"]


async def it_follows_what_the_agent_writes(whole: Whole, person: Person) -> None:
    """An open file is read again when a turn ends; while it is edited, that is said."""
    page, pane = person.page, person.page.locator("#files")
    editor = page.locator(".file-editor")
    await put(whole, "notes.txt", b"The agent's\n")
    await person.say("Something")
    await expect(page.locator(".file-text")).to_have_text("The agent's")
    await page.get_by_role("button", name="Edit", exact=True).click()
    await expect(editor).to_be_focused()
    await editor.fill("Mine in the meantime\n")
    await put(whole, "notes.txt", b"The agent's again\n")
    elsewhere = {"message": "In another session, and by another program"}
    async with whole.http.post(f"{API}/messages", json=elsewhere) as answer:
        await answer.read()
    await expect(pane.get_by_role("alert")).to_contain_text("has changed since you began")
    await expect(pane.get_by_role("button", name="Overwrite it")).to_be_visible()
    await pane.get_by_role("button", name="Discard").click()
    await expect(page.locator(".file-text")).to_have_text("The agent's again")


async def test_a_file_keeps_its_line_ends_and_what_has_several_is_not_edited(
    whole: Whole, person: Person
) -> None:
    page, pane = person.page, person.page.locator("#files")
    await opened(person, "lines.txt")
    await page.get_by_role("button", name="Edit", exact=True).click()
    await page.locator(".file-editor").fill("one\n2\nthree\n")
    # What was asked for before takes nobody away from what was asked for after it.
    answered = asyncio.Event()
    await page.route("**/files?path=src", lambda route: _once(answered, route))
    async with page.expect_request("**/files?path=src"):
        await opened(person, "src")
    await opened(person, "lines.txt")
    await page.get_by_role("button", name="Edit", exact=True).click()
    async with page.expect_response("**/files?path=src"):
        answered.set()
    await page.get_by_role("button", name="Save").click()
    await expect(page.locator(".file-text")).to_contain_text("three")
    assert await content(whole, "lines.txt") == b"one\r\n2\r\nthree\r\n"
    await opened(person, "mixed.txt")
    await expect(pane).to_contain_text("its lines end in different ways")
    await expect(pane.get_by_role("button", name="Edit", exact=True)).to_have_count(0)


async def test_files_folders_and_archives_are_uploaded(
    whole: Whole, person: Person, tmp_path: Path
) -> None:
    page, status = person.page, person.page.locator("#files .files-status").first
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "a.txt").write_text("a")
    (tmp_path / "tree" / "inner" / "b.txt").write_text("b")
    await page.set_input_files("input[aria-label='Upload files']", tmp_path / "tree" / "a.txt")
    await expect(row(person, "a.txt")).to_be_visible()
    await page.set_input_files("input[aria-label='Upload a folder']", tmp_path / "tree")
    await expect(row(person, "tree")).to_be_visible()
    await what_is_there_is_replaced_only_when_a_person_says_so(whole, person)
    assert await content(whole, "tree/inner/b.txt") == b"b"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("packed/c.txt", "c")
    given = {"name": "some.zip", "mimeType": "application/zip", "buffer": packed.getvalue()}

    async def accept(dialog: Dialog) -> None:
        assert "replace those of the same path" in dialog.message
        await dialog.accept()

    page.on("dialog", accept)
    await page.set_input_files("input[aria-label='Upload and unpack an archive']", given)  # type: ignore[arg-type] # its own type of dict
    await expect(row(person, "packed")).to_be_visible()
    assert await content(whole, "packed/c.txt") == b"c"
    await page.set_input_files("input[aria-label='Upload files']", given)  # type: ignore[arg-type] # its own type of dict
    await expect(status).to_have_text("1 of 1 uploaded.")
    await menu(person, "some.zip", "Unpack here")
    await expect(status).to_have_text("1 file unpacked.")
    await page.evaluate(_DROP)
    await expect(row(person, "dropped.txt")).to_be_visible()
    await page.evaluate(_DROP_FOLDERS)
    await expect(row(person, "hollow")).to_be_visible()
    assert await content(whole, "full/inside.txt") == b"inside"
    page.remove_listener("dialog", accept)
    assert await content(whole, "dropped.txt") == b"dropped"


async def what_is_there_is_replaced_only_when_a_person_says_so(
    whole: Whole, person: Person
) -> None:
    page, status = person.page, person.page.locator("#files .files-status").first
    given = [
        {"name": name, "mimeType": "text/plain", "buffer": b"new" * 10_000}
        for name in ("a.txt", "x" * 300, "fresh.txt")
    ]
    asked: list[str] = []
    for answer in ("dismiss", "accept"):

        async def reply(dialog: Dialog, answer: str = answer) -> None:
            asked.append(dialog.message)
            await (dialog.accept() if answer == "accept" else dialog.dismiss())

        page.once("dialog", reply)
        await page.set_input_files("input[aria-label='Upload files']", given)  # type: ignore[arg-type] # its own type of dict
        if answer == "dismiss":
            await expect(status).to_contain_text("1 of 3 uploaded. Kept as it was: a.txt. Not")
            await expect(status).to_contain_text(
                f"uploaded: {'x' * 300}. The path holds what no name"
            )
            assert await content(whole, "a.txt") == b"a"
    await expect(status).to_contain_text("2 of 3 uploaded. Not uploaded: xxx")
    assert await content(whole, "a.txt") == b"new" * 10_000
    assert asked == [
        "a.txt is there already. Replace?",
        "a.txt, fresh.txt are there already. Replace?",
    ]


async def test_folders_are_made_and_files_moved_deleted_and_packed(
    whole: Whole, person: Person
) -> None:
    page = person.page
    await page.get_by_label("More for this folder").click()
    longest = page.get_by_role("button", name="Upload and unpack an archive")
    await expect(longest).to_be_in_viewport(ratio=1)
    await person.picture("files-menu")
    await page.get_by_role("button", name="New folder").click()
    await page.get_by_label("Name of the new folder").fill("made")
    await page.keyboard.press("Enter")
    await expect(row(person, "made")).to_be_visible()
    await menu(person, "notes.txt", "Rename or move")
    await page.get_by_label("New path").fill("made/moved.txt")
    await page.keyboard.press("Enter")
    await expect(row(person, "notes.txt")).to_have_count(0)
    assert await content(whole, "made/moved.txt") == "Grüße\n".encode()
    async with page.expect_download() as download:
        await menu(person, "made", "Download as an archive")
    with zipfile.ZipFile(await (await download.value).path()) as archive:
        assert "moved.txt" in "".join(archive.namelist())
    page.once("dialog", lambda dialog: dialog.accept())
    await menu(person, "made", "Delete")
    await expect(row(person, "made")).to_have_count(0)


async def test_the_focus_goes_on_to_the_next_row(whole: Whole, person: Person) -> None:
    page, keys = person.page, person.page.keyboard

    async def choose(name: str, action: str) -> None:
        await row(person, name).locator("summary").focus()
        await keys.press("Enter")
        await row(person, name).get_by_text(action, exact=True).focus()
        await keys.press("Enter")

    def name_of(name: str) -> Locator:
        return row(person, name).get_by_role("button", name=name)

    for name, heir in (("notes.txt", "page.html"), ("pixel.gif", "src"), ("src", "page.html")):
        page.once("dialog", lambda dialog: dialog.accept())
        await choose(name, "Delete")
        await expect(name_of(heir)).to_be_focused()
    for name, target in (("page.html", "again.html"), ("again.html", "again.html")):
        await choose(name, "Rename or move")
        await expect(page.get_by_label("New path")).to_be_focused()
        await keys.type(target)
        await keys.press("Enter")
        await expect(name_of("again.html")).to_be_focused()
    await choose("again.html", "Rename or move")
    await expect(page.get_by_label("New path")).to_be_focused()
    await keys.press("Escape")
    await expect(name_of("again.html")).to_be_focused()
    await page.get_by_label("More for this folder").press("Enter")
    await page.get_by_role("button", name="New folder").focus()
    await keys.press("Enter")
    await expect(page.get_by_label("Name of the new folder")).to_be_focused()
    await keys.type("made")
    await keys.press("Enter")
    await expect(page.get_by_label("More for this folder")).to_be_focused()
    await put(whole, "made/only", b"")
    await name_of("made").focus()
    await keys.press("Enter")
    await expect(name_of("only")).to_be_focused()
    page.once("dialog", lambda dialog: dialog.accept())
    await choose("only", "Delete")
    await expect(page.get_by_text("Nothing is here yet")).to_be_focused()


async def test_names_and_lines_are_searched(person: Person) -> None:
    await person.page.get_by_label("Search files").fill("return 42")
    found = person.page.locator(".files-match")
    await expect(found).to_contain_text("src/main.py:2")
    await found.get_by_role("button").click()
    await expect(person.page.locator("#files pre")).to_contain_text("return 42")


async def test_a_large_folder_comes_in_pages(whole: Whole, person: Person) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(250):
            archive.writestr(f"many/{number:03d}", "")
    where = f"{API}/files/archive?format=zip"
    async with whole.http.post(where, data=packed.getvalue()) as answer:
        assert answer.status == 200
    await person.page.reload()
    await person.page.get_by_role("tab", name="Files").click()
    await row(person, "many").get_by_role("button", name="many").click()
    await expect(person.page.locator(".files-row")).to_have_count(200)
    more = asyncio.Event()
    await person.page.route("**/files?*after=*", lambda route: _once(more, route))
    await person.page.click("text=Show more")
    await person.page.get_by_role("button", name="workspace").click()
    await expect(row(person, "notes.txt")).to_be_visible()
    count = await person.page.locator(".files-row").count()
    async with person.page.expect_response("**/files?*after=*"):
        more.set()
    await row(person, "many").get_by_role("button", name="many").click()
    await person.page.click("text=Show more")
    await expect(person.page.locator(".files-row")).to_have_count(250)
    assert count < 20
    # And stays as long as it was: when a file goes, after a search, and when one has been open.
    person.page.once("dialog", lambda dialog: dialog.accept())
    await menu(person, "003", "Delete")
    await expect(person.page.locator(".files-row")).to_have_count(249)
    await person.page.get_by_label("Search files").fill("return 42")
    await person.page.locator(".files-match").get_by_role("button").click()
    await person.page.get_by_role("button", name="Files").click()
    await expect(person.page.locator(".files-match")).to_be_visible()
    await person.page.get_by_label("Search files").fill("")
    await expect(row(person, "249")).to_be_visible()


async def test_the_page_is_six_requests_and_light(person: Person) -> None:
    page, sent, sizes = person.page, list[tuple[str, str, str]](), list[float]()
    # A turn of another test's that has not ended yet would be followed.
    await expect(page.get_by_role("button", name="Stop", exact=True)).to_be_hidden(timeout=30_000)
    browser = await page.context.new_cdp_session(page)
    await browser.send("Network.enable")
    await browser.send("Network.setCacheDisabled", {"cacheDisabled": True})
    browser.on(
        "Network.requestWillBeSent",
        lambda one: sent.append((one["loaderId"], one["type"], one["request"]["url"])),
    )
    browser.on("Network.dataReceived", lambda came: sizes.append(came["encodedDataLength"]))
    await page.add_init_script(
        "document.addEventListener('greylag:changed', () => { window.told = true; })"
    )
    await page.goto("/users/me/projects/whole?session=new")  # of which there is no turn to follow
    await page.wait_for_function(
        "() => window.told"
    )  # what a change makes the page ask has been asked
    await expect(page.locator(".files-list")).to_be_visible()
    # What the page before may still ask as it goes is not this page's.
    this = next(loader for loader, kind, _ in sent if kind == "Document")
    asked = [url for loader, _, url in sent if loader == this and not url.startswith("data:")]
    assert 5 <= len(asked) <= 6, "\n".join(asked)
    assert 50_000 < sum(sizes) <= 250_000


@needs_axe
async def test_on_a_phone_one_part_at_a_time_fills_the_page(person: Person) -> None:
    page = person.page
    await page.set_viewport_size({"width": 390, "height": 844})
    await page.get_by_role("tab", name="Chat").click()
    await expect(page.locator("#message")).to_be_visible()
    await expect(page.locator("#files")).to_be_hidden()
    for part in ("#changes", "#files"):
        await page.keyboard.press("ArrowRight")
        await expect(page.locator(part)).to_be_visible()
        await expect(page.locator("#message")).to_be_hidden()
    await person.picture("files-phone")
    for width in (320, 1920):
        await page.set_viewport_size({"width": width, "height": 844})
        await person.judged()
    await row(person, "notes.txt").get_by_role("button").first.click()
    await page.get_by_role("button", name="Edit", exact=True).click()
    await person.judged()


async def test_the_splitter_is_kept(person: Person) -> None:
    page = person.page
    await page.locator("#splitter").focus()
    for _ in range(5):
        await page.keyboard.press("ArrowLeft")
    await expect(page.locator("#splitter")).to_have_attribute("aria-valuenow", "46")
    await page.reload()
    await expect(page.locator("#splitter")).to_have_attribute("aria-valuenow", "46")


_COUNT_KEPT = """() => {
  const { setItem } = Storage.prototype;
  window.kept = 0;
  Storage.prototype.setItem = function (...given) {
    window.kept += 1;
    return setItem.apply(this, given);
  };
}"""
_DROP_FOLDERS = """() => {
  const folder = (name, ...parts) => {
    const reader = { readEntries: (take) => take(parts.splice(0)) };
    return { isFile: false, name, createReader: () => reader };
  };
  const file = (take) => take(new File(["inside"], "inside.txt"));
  const dropped = [folder("full", { isFile: true, name: "inside.txt", file }), folder("hollow")];
  const items = dropped.map((one) => ({ webkitGetAsEntry: () => one, getAsFile: () => null }));
  const event = new DragEvent("drop", { bubbles: true, cancelable: true });
  Object.defineProperty(event, "dataTransfer", { value: { items } });
  document.querySelector(".files").dispatchEvent(event);
}"""
_DROP = """() => {
  const given = new DataTransfer();
  given.items.add(new File(["dropped"], "dropped.txt"));
  const event = new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true });
  document.querySelector(".files").dispatchEvent(event);
}"""
