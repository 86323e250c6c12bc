"""The dashboard's pages over the memory adapters, read without a browser."""

import asyncio
import html
import json
import re
from typing import Any, cast

import pytest
from tests.harness import TOKEN
from tests.web.server import ADA, Site, site

from greylag.common import sse
from greylag.common.agent_api import Session
from greylag.domain.errors import (
    AgentUnreachableError,
    ForbiddenError,
    GreylagError,
    NotActiveError,
)
from greylag.domain.project import Project, ProjectRef
from greylag.domain.users import OPERATOR, Limits
from greylag.services.agents import Agents
from greylag.services.people import UserEdit
from greylag.services.projects import Projects
from greylag.services.sharing import Members
from greylag.web.dashboard import conversations, pages, rail, users
from greylag.web.dashboard.pages import ProjectView, project_view
from greylag.web.dashboard.rail import read_projects, read_sessions
from greylag.web.deps import RequestContext

HTML = {"Accept": "text/html"}
HTMX = HTML | {"HX-Request": "true"}
PAGE = "/users/ada/projects/notes"
REF = ProjectRef("ada", "notes")


async def test_names_are_escaped_and_overrides_shown(running: Site) -> None:
    name = "<script>x</script> \u202egnp.exe"
    await running.ask("POST", ADA, json={"name": name, "project_id": "notes"})
    for path in ("/users/ada", PAGE, f"{PAGE}/delete"):
        page = await running.page(path)
        assert "<script>x" not in page
        assert "&lt;script&gt;x&lt;/script&gt; [U+202E]gnp.exe" in page


async def test_an_edit_form_keeps_the_name_as_it_is(running: Site) -> None:
    await running.ask("POST", ADA, json={"name": "a\u202eb", "project_id": "notes"})
    assert 'value="a\u202eb"' in await running.page(f"{PAGE}/edit")


async def test_no_page_has_inline_code_or_foreign_files(running: Site) -> None:
    await running.project(active=True)
    for path in ("/users/ada", PAGE, f"{PAGE}/edit", "/users/ada/new-project", "/nowhere"):
        async with running.http.get(path, headers=HTML) as answer:
            page = await answer.text()
            assert "'unsafe" not in answer.headers["content-security-policy"]
        assert not re.search(r"<script(?![^>]*\ssrc=)|\sstyle=|\son\w+=|javascript:", page)
        sources = re.findall(r'(?:src|<link[^>]*href)="([^"]+)"', page)
        assert sources
        assert all(re.match(r"/static/[0-9a-f]{16}/|data:image/svg", source) for source in sources)


async def test_every_file_that_a_page_names_is_there(running: Site) -> None:
    page = await running.page("/users/ada")
    for path in set(re.findall(r'"(/static/[^"]+)"', page)):
        async with running.http.get(path) as answer:
            assert answer.status == 200, path


async def test_odd_ids_have_addresses_that_work(running: Site) -> None:
    odd = "a b?c#d%2F\u00e4&e"
    status, _ = await running.ask("POST", ADA, json={"name": "Odd", "project_id": odd})
    assert status == 201
    link = re.search(r'<h2[^>]*><a href="([^"]+)"', await running.page("/users/ada"))
    assert link is not None
    assert "Odd" in await running.page(link[1].replace("&amp;", "&"))


async def test_errors_are_pages_with_hint_and_request_id(running: Site) -> None:
    page = await running.page("/users/ada/projects/nothing", 404)
    assert "project_not_found" in page
    assert re.search(r"request <code>[0-9a-f]{32}</code>", page)
    assert "not_found" in await running.page("/nowhere", 404)
    assert "show must be" in await running.page("/users/ada?show=1000000", 422)


async def test_hints_on_pages_name_no_requests_and_no_fields(running: Site) -> None:
    for path in ("/users/ada/projects/nothing", "/nowhere", "/users/nobody"):
        page = await running.page(path, 404)
        assert "problem-hint" in page
        assert not re.search(r"GET |/api/|openapi|GREYLAG_", page)
    page = await running.page("/users/ada?show=0", 422)
    assert "Correct what the sentence names, and try again." in page


async def test_a_new_project_offers_beginnings_and_one_that_goes_takes_no_message(
    running: Site,
) -> None:
    await running.project()
    page = await running.page(PAGE)
    assert 'data-fill="#message"' in page
    assert "what was said before" not in page
    await running.ask("POST", f"{ADA}/notes/activate")
    running.house.cluster.auto = False  # what is to stop goes on
    await running.ask("DELETE", f"{ADA}/notes", headers={"Prefer": "respond-async"})
    page = await running.page(PAGE)
    assert "The project is being deleted." in page
    assert re.search(r'<textarea[^>]* disabled placeholder="This project is being deleted"', page)


async def test_an_open_page_gets_errors_as_notices(running: Site) -> None:
    path = "/users/ada/projects/nothing/activate"
    async with running.http.post(path, headers=HTMX) as answer:
        assert answer.status == 404
        assert answer.headers["hx-retarget"] == "#notices"
        assert (await answer.text()).startswith('<div class="notice">')


async def test_an_agent_that_does_not_answer_leaves_the_rest_of_the_page(running: Site) -> None:
    await running.project(active=True)
    running.house.gateway.unreachable.add("memory://user-ada/notes-api")
    page = await running.page(PAGE)
    assert "agent_unreachable" in page
    assert "Deactivate" in page


async def test_the_form_for_a_session_s_name_leads_to_that_session_whatever_the_agent_says(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.project(active=True)
    other = Session("../../other/sessions/s", "", "", 0)

    async def says(*_: object, **__: object) -> Session:
        return other

    monkeypatch.setattr(conversations, "ask", says)
    form = await running.page(f"{PAGE}/sessions/mine/rename")
    assert f'action="{PAGE}/sessions/mine/rename"' in form
    assert "other" not in form


async def test_a_form_sent_twice_creates_one_project(running: Site) -> None:
    form = {"name": "Twice", "key": "k" * 32, "git_url": "https://example.org/a.git"}
    for _ in range(2):
        async with running.http.post("/users/ada/new-project", data=form) as answer:
            assert answer.status == 200
    _, listed = await running.ask("GET", ADA)
    assert [one["source"]["git"]["url"] for one in listed["projects"]] == [form["git_url"]]


async def test_a_form_error_keeps_what_was_typed(running: Site) -> None:
    form = {"name": "Mine", "metadata": "{oops"}
    async with running.http.post("/users/ada/new-project", data=form, headers=HTML) as answer:
        assert answer.status == 422
        page = await answer.text()
    assert 'value="Mine"' in page
    assert "{oops" in page


async def test_a_form_that_a_limit_refuses_keeps_what_was_typed(running: Site) -> None:
    await running.project()
    limited = UserEdit(limits=Limits(templates=("small",)))
    await running.house.use_cases.people.edit("ada", limited)
    form = {"name": "Mine", "metadata": '{"template": "large", "team": "blue"}'}
    for path in ("/users/ada/new-project", f"{PAGE}/edit"):
        async with running.http.post(path, data=form, headers=HTML) as answer:
            page = await answer.text()
        assert "may not use the template" in page
        assert ('value="Mine"' in page, "blue" in page) == (True, True)


@pytest.mark.parametrize("path", ["/users/ada/new-project", f"{PAGE}/edit", f"{PAGE}/messages"])
async def test_a_form_in_a_charset_that_spells_half_a_character_is_refused(
    running: Site, path: str
) -> None:
    await running.project(active=True)
    kind = "multipart/form-data; boundary=x; charset=unicode_escape"
    fields = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n\\ud800\r\n'
        for name in ("name", "message")
    ]
    sent = "".join(fields) + "--x--\r\n"
    async with running.http.post(
        path, data=sent, headers={**HTML, "content-type": kind}, allow_redirects=False
    ) as answer:
        assert answer.status == 422
        assert "must not hold unpaired surrogates" in await answer.text()
    _, listed = await running.ask("GET", ADA)
    assert [one["name"] for one in listed["projects"]] == ["Notes"]


@pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
async def test_a_body_that_is_no_form_changes_nothing(running: Site, kind: str) -> None:
    await running.project()
    for path in (
        f"{PAGE}/delete",
        f"{PAGE}/activate",
        "/users/ada/account/sessions/end-others",
        "/look/end",
    ):
        headers = HTML | {"content-type": kind}
        async with running.http.post(path, data=b"{}", headers=headers) as answer:
            assert answer.status == 415
            assert "takes forms alone" in await answer.text()
    _, project = await running.ask("GET", f"{ADA}/notes")
    assert project["status"] == "inactive"


async def test_what_has_no_fields_is_sent_without_a_body_too(running: Site) -> None:
    await running.project()
    headers = {"content-type": "application/json"}
    for path, given in (("activate", {}), ("deactivate", headers)):
        async with running.http.post(f"{PAGE}/{path}", headers=given) as answer:
            assert answer.status == 200


async def test_pages_of_other_sites_cannot_send_the_forms(running: Site) -> None:
    await running.project()
    headers = HTML | {"Origin": "https://evil.example"}
    async with running.http.post(f"{PAGE}/delete", headers=headers) as answer:
        assert answer.status == 403
    assert "Deleting" not in await running.page(PAGE)


async def test_the_live_stream_of_a_project_resumes_and_ends(running: Site) -> None:
    await running.project(active=True)
    frames = []
    headers = {"Last-Event-ID": "2"}
    async with running.http.get(f"{PAGE}/live", headers=headers) as answer:
        await running.ask("DELETE", f"{ADA}/notes")
        splitter = sse.FrameSplitter()
        async for chunk in answer.content.iter_any():
            frames += [sse.parse(raw) for raw in splitter.feed(chunk)]
    data = [json.loads(frame.data) for frame in frames if frame is not None]
    assert data[-1] == {"type": "gone", "content": {}}
    html = "".join(one["content"]["html"] for one in data[:-1])
    assert 'id="event-2"' not in html
    events = [int(number) for number in re.findall(r'id="event-(\d+)"', html)]
    assert events[:3] == [3, 4, 5]
    assert events == sorted(set(events))


async def test_an_open_page_is_sent_what_it_does_not_show_and_no_more(running: Site) -> None:
    path = await running.project(active=True)
    await running.project("other")
    async with running.http.post(f"{path}/messages", json={"message": "hello"}) as answer:
        await answer.read()
    page = await running.page(PAGE)
    found = re.search('data-live="([^"]+)"', page)
    assert found is not None
    assert "hello" in page
    frames: list[dict[str, Any]] = []
    async with running.http.get(found[1].replace("&amp;", "&")) as answer:
        splitter = sse.FrameSplitter()
        async for chunk in answer.content.iter_any():
            told = [sse.parse(raw) for raw in splitter.feed(chunk)]
            frames += [json.loads(one.data) for one in told if one is not None]
            if [one["type"] for one in frames][-1:] == ["turns"]:
                await running.ask("POST", f"{ADA}/other/activate")
            if any(one["type"] == "order" for one in frames):
                break
    html = "".join(one["content"]["html"] for one in frames if one["type"] == "html")
    assert 'id="rail-projects"' not in html
    assert 'id="sessions"' not in html
    assert 'data-state="ready"' in html


async def test_an_open_page_hears_that_no_turn_runs_in_a_project_that_sleeps(running: Site) -> None:
    path = await running.project(active=True)
    async with running.http.post(f"{path}/messages", json={"message": "wait: long"}) as answer:
        await answer.content.readline()
    states: list[list[str]] = []

    async def follow(until: list[str]) -> None:
        async with running.http.get(f"{PAGE}/live") as answer:
            splitter = sse.FrameSplitter()
            async for chunk in answer.content.iter_any():
                for raw in splitter.feed(chunk):
                    frame = sse.parse(raw)
                    told: dict[str, Any] = {} if frame is None else json.loads(frame.data)
                    if told.get("type") == "turns":
                        states.append([one["state"] for one in told["content"]["turns"]])
                        if states[-1] == ["working"]:
                            await running.ask("POST", f"{path}/deactivate")
                if states[-1:] == [until]:
                    return

    async with asyncio.timeout(20):
        await follow([])
        assert states == [["working"], []]
        # One that was not looked at meanwhile, too: it may show that it works.
        states.clear()
        await follow([])


async def test_an_open_page_hears_of_the_turns_that_run_in_all_projects(running: Site) -> None:
    await running.project()
    path = await running.project("other", active=True)
    heard: list[dict[str, str]] = []
    async with running.http.post(f"{path}/messages", json={"message": "run: ls"}) as turn:
        await turn.content.readline()
        async with asyncio.timeout(20), running.http.get(f"{PAGE}/live") as answer:
            splitter = sse.FrameSplitter()
            async for chunk in answer.content.iter_any():
                told = [sse.parse(raw) for raw in splitter.feed(chunk)]
                frames = [json.loads(one.data) for one in told if one is not None]
                for doing in [one["content"]["turns"] for one in frames if one["type"] == "doing"]:
                    heard.append(doing)
                    for asking in [one for one, state in doing.items() if state == "asks"]:
                        await running.ask("POST", f"{path}/turns/{asking}/cancel")
                if heard[-1:] == [{}]:
                    break
    assert [*heard[-2].values()] == ["asks"]


async def test_a_list_makes_each_row_once_a_look_and_writes_no_metadata(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        new = {"name": "Notes", "project_id": f"p{number}", "metadata": {"team": "blue"}}
        assert (await running.ask("POST", ADA, json=new))[0] == 201
    first = "/users/ada/projects/p0"
    for path in ("edit", "endpoint"):
        assert '"team": "blue"' in html.unescape(await running.page(f"{first}/{path}"))
    made: list[str] = []

    def view(project: Project) -> ProjectView:
        made.append(project.project_id)
        return project_view(project)

    monkeypatch.setattr(rail, "project_view", view)
    monkeypatch.setattr(pages, "json", None)
    await running.page("/users/ada")
    assert sorted(made) == ["p0", "p1", "p2"]
    made.clear()
    async with running.http.get("/users/ada/live") as answer:
        await answer.content.readany()
    assert sorted(made) == ["p0", "p1", "p2"]


async def at_rest(running: Site) -> str:
    """Return the list once the worker is done with all that it shows."""
    async with asyncio.timeout(20):
        while 'data-state="moving"' in (page := await running.page("/users/ada")):
            pass
    return page


async def test_an_open_page_makes_the_row_again_that_has_changed_and_no_other(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        new = {"name": "Notes", "project_id": f"p{number}"}
        assert (await running.ask("POST", ADA, json=new))[0] == 201
    await at_rest(running)
    made: list[str] = []

    def view(project: Project) -> ProjectView:
        made.append(project.project_id)
        return project_view(project)

    monkeypatch.setattr(rail, "project_view", view)
    async with asyncio.timeout(20), running.http.get("/users/ada/live") as answer:
        await answer.content.readany()
        made.clear()
        assert (await running.ask("PATCH", f"{ADA}/p1", json={"name": "Plans"}))[0] == 200
        while b"Plans" not in await answer.content.readany():
            pass
    assert made == ["p1"]


async def test_a_page_looks_at_no_file_of_a_template_that_has_been_read(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await running.ask("POST", ADA, json={"name": "Notes"}))[0] == 201
    before = await at_rest(running)

    def look(path: str) -> float:
        raise AssertionError(path)

    monkeypatch.setattr("jinja2.loaders.os.path.getmtime", look)
    assert len(await running.page("/users/ada")) == len(before)


async def test_lists_say_that_they_do_not_hold_all_projects(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        assert (await running.ask("POST", ADA, json={"name": f"p{number}"}))[0] == 201
    whole = await running.page("/users/ada")
    assert 'rail-total">4</span>' in whole
    assert "Only the newest" not in whole
    monkeypatch.setattr(rail, "MOST_ROWS", 2)
    for module in (rail, users):
        monkeypatch.setattr(module, "MOST_READ", 3)
    monkeypatch.setattr(rail, "_AT_ONCE", 1)
    cut = await running.page("/users/ada?q=p0&show=3")
    assert 'rail-total">2 of 3</span>' in cut
    assert "Only the newest 3 projects are listed and searched here." in cut


async def test_of_many_sessions_the_rail_has_those_used_last_and_says_so(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await running.project(active=True)
    made = [(await running.ask("POST", f"{path}/sessions"))[1]["session_id"] for _ in range(3)]
    said = {"message": "hello", "session_id": made[0]}
    async with running.http.post(f"{path}/messages", json=said) as answer:
        await answer.read()
    monkeypatch.setattr(rail, "SESSIONS_SHOWN", 1)
    page = await running.page(PAGE)
    assert re.findall(r'class="session" id="session-([^"]+)"', page) == [made[0]]
    assert "2 more were used longer ago." in page


async def test_an_open_page_does_not_look_at_what_happens_to_others(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    bobs = "/api/users/bob/projects"
    new = {"id": "bob", "display_name": "Bob"}
    assert (await running.ask("POST", "/api/users", json=new))[0] == 201
    for path in (ADA, bobs):
        assert (await running.ask("POST", path, json={"name": "N", "project_id": "n"}))[0] == 201
        # Nothing more happens to it by itself.
        assert (await running.ask("POST", f"{path}/n/deactivate"))[0] == 200
    looks: list[str] = []
    monkeypatch.setattr(rail, "GATHER_SECONDS", 0)

    async def read(call: RequestContext) -> list[Project]:
        looks.append(call.user_id)
        return await read_projects(call)

    monkeypatch.setattr(rail, "read_projects", read)
    async with running.http.get("/users/ada/live") as answer:
        await answer.content.readany()
        looks.clear()
        for name in "abc":
            await running.ask("PATCH", f"{bobs}/n", json={"name": name})
        await running.ask("PATCH", f"{ADA}/n", json={"name": "Mine"})
        while b"Mine" not in await answer.content.readany():
            pass
    assert looks == ["ada"]


class Looks:
    """What an open page asks for, whose first question for sessions fails by ``failure``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failure: GreylagError) -> None:
        self.failure = failure
        self.looks = self.asked = 0
        monkeypatch.setattr(rail, "RECHECK_SECONDS", 0.01)
        monkeypatch.setattr(rail, "GATHER_SECONDS", 0.01)
        monkeypatch.setattr(rail, "AGAIN_SECONDS", 0.01)
        monkeypatch.setattr(rail, "read_sessions", self._read_sessions)
        monkeypatch.setattr(rail, "read_projects", self._read_projects)

    async def _read_projects(self, call: RequestContext) -> list[Project]:
        self.looks += 1
        return await read_projects(call)

    async def _read_sessions(self, call: RequestContext) -> list[Session]:
        self.asked += 1
        if self.asked == 1:
            raise self.failure
        return await read_sessions(call)


@pytest.mark.parametrize("active", [True, False])
async def test_sessions_that_could_not_be_told_are_asked_for_again(
    running: Site, monkeypatch: pytest.MonkeyPatch, *, active: bool
) -> None:
    path = await running.project(active=True)
    async with running.http.post(f"{path}/messages", json={"message": "My title"}) as answer:
        await answer.read()
    if not active:
        assert (await running.ask("POST", f"{path}/deactivate"))[0] == 200
    of, told = running.house.use_cases, b""
    Looks(monkeypatch, AgentUnreachableError("It is slow."))
    async with asyncio.timeout(20):
        with of.activities.watch() as watch:
            watch.follow([await of.projects.get(OPERATOR, REF)])
            if active:  # what it does is known, and does not change
                await watch.news.wait()
            async with running.http.get(f"{PAGE}/live") as answer:
                while b"My title" not in told:
                    told += await answer.content.readany()


@pytest.mark.parametrize("active", [True, False])
async def test_news_of_others_asks_no_agent_again_that_has_just_failed(
    running: Site, monkeypatch: pytest.MonkeyPatch, *, active: bool
) -> None:
    await running.project(active=active)
    project = await running.house.use_cases.projects.get(OPERATOR, REF)
    now, asked, hangs = 1.0, 0, True

    async def read(_call: object) -> list[Session]:
        nonlocal asked, now
        asked += 1
        if hangs:
            now += rail.PATIENCE_SECONDS
            raise AgentUnreachableError("It hangs.")
        return []

    monkeypatch.setattr(rail, "read_sessions", read)
    sessions = rail._OpenSessions(cast("RequestContext", None), lambda: now)
    for _ in range(3):
        await sessions.look(project, "")
    assert asked == 1
    now += rail.AGAIN_SECONDS
    for _ in range(3):
        await sessions.look(project, "")
    assert asked == 2
    # One that tells something is there again, and asked at once.
    await sessions.look(project, "1")
    assert asked == (3 if active else 2)
    hangs = False
    now += rail.AGAIN_SECONDS
    for _ in range(3):
        await sessions.look(project, "1")
    assert (asked, sessions.known) == (4 if active else 3, [])


async def test_sessions_that_may_not_be_told_are_asked_for_once(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.project()
    for failure in (NotActiveError("It sleeps."), ForbiddenError("You may not.")):
        looks = Looks(monkeypatch, failure)
        async with asyncio.timeout(20), running.http.get(f"{PAGE}/live"):
            while looks.looks < 5:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        assert looks.asked == 1


async def test_a_live_number_that_is_none_is_refused(running: Site) -> None:
    await running.project()
    assert "after" in await running.page(f"{PAGE}/live?after=x", 422)


async def test_who_signed_in_can_sign_out() -> None:
    async with (
        site(signed_in=False) as locked,
        locked.http.post("/sign-in", data={"token": TOKEN}) as answer,
    ):
        assert "Sign out" in await answer.text()


async def test_earlier_messages_are_shown_however_many_there_are(running: Site) -> None:
    path = await running.project(active=True)
    body: dict[str, object] = {}
    for number in range(230):
        body = {**body, "message": f"m{number:03d}"}
        async with running.http.post(f"{path}/messages", json=body) as answer:
            frames = [sse.parse(one) for one in sse.FrameSplitter().feed(await answer.read())]
        body["session_id"] = json.loads(frames[0].data)["content"]["session_id"]  # type: ignore[union-attr] # a turn's first
    shown = 30
    page = await running.page(f"{PAGE}?turns={shown}")
    while "Show earlier messages" in page:
        shown += 100
        assert shown < 400
        page = await running.page(f"{PAGE}?turns={shown}")
    assert len(re.findall("You said: m[0-9]{3}", page)) == 230
    # A page with a script asks for what it lacks alone.
    page = await running.page(PAGE)
    said = re.findall("You said: (m[0-9]{3})", page)
    assert len(said) == 30
    while part := re.search('data-part="([^"]+)"', page):
        page = await running.page(html.unescape(part[1]))
        said = re.findall("You said: (m[0-9]{3})", page) + said
    assert said == [f"m{number:03d}" for number in range(230)]


async def test_a_first_message_makes_and_names_its_project(running: Site) -> None:
    page = await running.page("/users/ada")
    assert "What shall the agent do?" in page
    assert 'class="filters"' not in page
    form = {"message": "Make  a game\nof geese, and then a very long story about them", "key": "k"}
    async with running.http.post("/users/ada/start", data=form) as answer:
        page = await answer.text()
    assert "You said: Make  a game" in page
    _, listed = await running.ask("GET", ADA)
    assert [one["name"] for one in listed["projects"]] == [
        "Make a game of geese, and then a very long story"
    ]


async def test_a_message_that_a_form_without_scripts_sends_twice_is_one(running: Site) -> None:
    async def sent(page: str, **form: str) -> str:
        where = f"/users/ada/{page}"
        async with running.http.post(where, data=form, allow_redirects=False) as found:
            assert found.status == 303
            return found.headers["location"]

    async def said(begin: str) -> list[str]:
        return re.findall("You said: ([^<]*)", await running.page(begin))

    first = {"message": "Pay", "key": "k" * 32}
    begun = await sent("start", **first)
    assert await sent("start", **first) == begun
    assert await said(begun) == ["Pay"]
    composer = re.search(r'<form class="composer".*?</form>', await running.page(begun), re.DOTALL)
    assert composer is not None
    given = re.findall(r'type="hidden" name="(\w+)" value="([^"]+)"', composer[0])
    place = begun.partition("?")[0].removeprefix("/users/ada/") + "/messages"
    for message in ("Again", "Again", "Another, from a page gone back to"):
        assert await sent(place, message=message, **dict(given)) == begun
    assert await said(begun) == ["Pay", "Again", "Another, from a page gone back to"]
    await sent(place, message="Without a key", session=dict(given)["session"])
    assert (await said(begun))[-1] == "Without a key"


async def test_a_page_sends_its_first_message_itself_and_a_repository_needs_none(
    running: Site,
) -> None:
    form = {"message": "Hello", "key": "k" * 32, "first": "page"}
    async with running.http.post("/users/ada/start", data=form, allow_redirects=False) as answer:
        assert answer.headers["location"].endswith("?first=" + "k" * 32)
    form = {"message": " ", "git_url": "https://example.org/deep/tool.git/"}
    async with running.http.post("/users/ada/start", data=form, headers=HTML) as answer:
        assert answer.status == 200
        assert "<title>tool" in await answer.text()
    async with running.http.post("/users/ada/start", data={"git_url": "/"}, headers=HTML) as answer:
        assert answer.status == 422
        assert "Say what the agent shall do" in await answer.text()


async def test_extensions_are_shown_with_their_last_words_switched_and_removed(
    running: Site,
) -> None:
    await running.project(active=True)
    assert "An extension does not work: <bdi>broken</bdi>" in await running.page(PAGE)
    assert "It said: missing API key" in await running.page(f"{PAGE}/extensions")
    for change, there in (("disable", True), ("enable", True), ("remove", False)):
        path = f"{PAGE}/extensions/broken/{change}"
        async with running.http.post(path, headers=HTMX) as answer:
            page = await answer.text()
        assert ('aria-label="Remove broken"' in page) == there
        assert "missing API key" not in page
    async with running.http.post(f"{PAGE}/extensions/broken/enable", headers=HTML) as answer:
        assert "There is no such extension." in await answer.text()
    running.house.gateway.unreachable.add("memory://user-ada/notes-api")
    assert "agent_unreachable" in await running.page(f"{PAGE}/extensions")
    assert "memory://user-ada/notes-api" in await running.page(f"{PAGE}/endpoint")


async def test_what_a_page_shows_is_read_at_once(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.project(active=True)
    all_of_it = asyncio.Barrier(4)

    def wait_for_others(of: type, name: str) -> None:
        known = getattr(of, name)

        async def read(*about: Any) -> Any:
            await all_of_it.wait()
            return await known(*about)

        monkeypatch.setattr(of, name, read)

    wait_for_others(Agents, "status")
    wait_for_others(Projects, "events")
    wait_for_others(Projects, "page")
    wait_for_others(Members, "of")
    async with asyncio.timeout(60):
        assert "rail-projects" in await running.page(PAGE)
