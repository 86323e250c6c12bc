"""Conversations that are read while their environment sleeps: by whom, and how that is marked."""

import html
import json
import re
from typing import Any

import aiohttp
import pytest
from tests.harness import BEARER, Harness
from tests.web.server import ADA, Site, served, settings
from tests.web.test_audit import entries
from tests.web.test_people_api import people_at_work

from greylag.common import sse
from greylag.common.agent_api import KEPT_AT
from greylag.domain.errors import RefusalError
from greylag.domain.project import ProjectRef
from greylag.domain.users import OPERATOR
from greylag.ports import AgentAddress
from greylag.reconcile import transcripts
from greylag.web.app import create_app

REF = ProjectRef("ada", "notes")
NOTES = f"{ADA}/notes"
PAGE = NOTES.removeprefix("/api")


async def get(running: Site, path: str, **options: Any) -> tuple[int, Any, str | None]:
    async with running.http.get(path, **options) as answer:
        text = await answer.text()
        said = text if answer.content_type == sse.MEDIA_TYPE else json.loads(text or "null")
        return answer.status, said, answer.headers.get(KEPT_AT)


def turn_of(running: Site) -> str:
    """Return the newest turn of the one environment that there is."""
    (here,) = running.house.gateway._environments.values()
    return [*here.runs][-1]


async def talk(running: Site, *messages: str, session: str | None = None) -> str:
    """Say this to ada's notes, and return the session."""
    of = running.house.use_cases
    for message in messages:
        at = await of.agents.address(OPERATOR, REF)
        turn = await running.house.gateway.start_turn(at, session, message, message)
        session = turn.session_id
    assert session is not None
    return session


async def sleep(running: Site) -> None:
    status, _ = await running.ask("POST", f"{NOTES}/deactivate")
    assert status == 200


async def test_it_is_told_as_it_was_and_marked_as_a_copy(running: Site) -> None:
    await running.project(active=True)
    session = await talk(running, "one", "two", "three")
    places = ["/sessions", f"/sessions/{session}"] + [
        f"/sessions/{session}/turns{query}" for query in ("", "?limit=1", "?limit=200")
    ]
    places += [
        f"/sessions/{session}/messages{query}"
        for query in ("", "?limit=1", "?limit=400", "?limit=2&before=3", "?limit=3&before=1")
    ]
    awake = [await get(running, NOTES + place) for place in places]
    assert {kept_at for _, _, kept_at in awake} == {None}
    await sleep(running)
    asleep = [await get(running, NOTES + place) for place in places]
    assert [one[:2] for one in asleep] == [one[:2] for one in awake]
    marks = {kept_at for _, _, kept_at in asleep}
    assert len(marks) == 1
    assert (marks.pop() or "").endswith("Z")
    await running.ask("POST", f"{NOTES}/activate")
    again = [await get(running, NOTES + place) for place in places]
    assert again == awake


async def test_what_is_not_kept_is_refused_as_ever_and_a_bad_page_as_by_an_agent(
    running: Site,
) -> None:
    await running.project(active=True)
    session = await talk(running, "hello")
    await sleep(running)
    for place in ("unknown", "unknown/messages", "unknown/turns", f"{session}/export"):
        status, told, mark = await get(running, f"{NOTES}/sessions/{place}")
        assert (status, told["code"], mark) == (409, "environment_not_active", None)
    for query in ("limit=0", "limit=401", "limit=-1", "limit=x", "limit=", "limit=1&before=0"):
        status, told, mark = await get(running, f"{NOTES}/sessions/{session}/messages?{query}")
        assert (status, told["code"], mark) == (422, "invalid_request", None)
    renamed = {"title": "a"}
    for method, place, body in (
        ("POST", "", {}),
        ("PUT", f"/{session}", renamed),
        ("DELETE", f"/{session}", {}),
    ):
        status, told = await running.ask(method, f"{NOTES}/sessions{place}", json=body)
        assert (status, told["code"]) == (409, "environment_not_active")


async def test_the_steps_are_told_as_while_it_was_awake_and_from_any_event_on(
    running: Site,
) -> None:
    await running.project(active=True)
    await talk(running, 'events: [["thinking", {"message": "id: \\n\\n"}], ["status", {}]]')
    turn = turn_of(running)
    places = [f"/turns/{turn}/events{after}" for after in ("", f"?after={turn}-0")]
    awake = [await get(running, NOTES + place) for place in places]
    assert [(status, kept_at) for status, _, kept_at in awake] == [(200, None)] * 2
    await sleep(running)
    asleep = [await get(running, NOTES + place) for place in places]
    assert [one[:2] for one in asleep] == [one[:2] for one in awake]
    assert all((kept_at or "").endswith("Z") for _, _, kept_at in asleep)
    resumed = await get(running, NOTES + places[0], headers={"last-event-id": f"{turn}-2"})
    assert resumed[1].startswith(f"id: {turn}-3\ndata: ")
    last = {"last-event-id": f"{turn}-3"}
    assert (await get(running, NOTES + places[0], headers=last))[0] == 204
    for wrong in (f"{turn}-4", f"{turn}-", turn[1:] + "-0", "thinking"):
        status, told, _ = await get(running, NOTES + places[0], headers={"last-event-id": wrong})
        assert (status, told["code"]) == (422, "invalid_request")
    status, told, mark = await get(running, f"{NOTES}/turns/unknown/events")
    assert (status, told["code"], mark) == (409, "environment_not_active", None)
    for place in (f"/turns/{turn}", f"/turns/{turn}/changes"):
        assert (await get(running, NOTES + place))[0] == 409


async def test_each_role_reads_it_as_while_it_is_awake() -> None:
    async with people_at_work() as (running, who):
        await running.ask("POST", f"{NOTES}/activate", headers=BEARER)
        session = await talk(running, "hello")
        turn = turn_of(running)
        made = {"name": "reader", "scopes": ["projects:read"], "user": "ada"}
        _, narrow = await running.ask("POST", "/api/tokens", json=made, headers=BEARER)
        await running.ask("POST", f"{NOTES}/deactivate", headers=BEARER)
        reason = {"x-greylag-reason": "a complaint"}
        wanted = {
            "stranger": (who["stranger"], 404),
            "viewer": (who["viewer"], 200),
            "editor": (who["editor"], 200),
            "admin": (who["admin"], 403),
            "admin, with a reason": (who["admin"] | reason, 200),
            "token of another scope": ({"authorization": f"Bearer {narrow['token']}"}, 403),
            "nobody": ({}, 401),
        }
        for role, (headers, status) in wanted.items():
            own = f"sessions/{session}"
            for place in (
                "sessions",
                own,
                f"{own}/messages",
                f"{own}/turns",
                f"turns/{turn}/events",
            ):
                found, _, mark = await get(running, f"{NOTES}/{place}", headers=headers)
                assert (found, mark is not None) == (status, status == 200), (role, place)
        (read,) = await entries(running, action="agent.read", user="boss", result="done")
        assert read["changed"] == {"reason": "a complaint"}


async def test_a_page_shows_it_with_its_time_and_offers_no_change_of_it(running: Site) -> None:
    await running.project(active=True)
    older = await talk(running, "the first session")
    session = await talk(running, *(f"message {number}" for number in range(40)))
    await sleep(running)
    page = await running.page(PAGE)
    assert "The project is inactive. This is the conversation as of" in page
    assert (page.count("data-kept"), "message 39" in page, "message 9<" in page) == (
        30,
        True,
        False,
    )
    assert "Show earlier messages" in page
    assert f'name="session" value="{session}"' in page
    assert page.count('class="session-link"') == 2
    assert f"/sessions/{session}/delete" not in page
    earlier = await running.page(f"{PAGE}/conversation?session={session}&turns=130")
    assert (earlier.count("data-kept"), "Show earlier" in earlier) == (40, False)
    part = re.search('data-part="([^"]+)"', page)
    assert part is not None
    rest = await running.page(html.unescape(part[1]))
    assert (rest.count("data-kept"), "Show earlier" in rest) == (10, False)
    assert ("message 9<" in rest, "message 10" in rest) == (True, False)
    assert "the first session" in await running.page(f"{PAGE}?session={older}")
    empty = await running.page(f"{PAGE}?session=new")
    assert "The project is inactive. A message activates it." in empty
    assert 'class="session-link"' in empty
    unknown = await running.page(f"{PAGE}?session=unknown")
    assert "what was said before shows once it is active" in unknown


async def test_a_page_says_that_a_turn_which_ended_with_its_environment_had_no_answer_yet(
    running: Site,
) -> None:
    await running.project(active=True)
    await talk(running, "one", "wait: long")
    await sleep(running)
    _, answered, cut_off = (await running.page(PAGE)).split('<article class="turn"')
    told = "No answer had come by then."
    assert (told in answered, told in cut_off) == (False, True)


async def test_a_page_offers_the_steps_of_those_turns_that_have_them(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.project(active=True)
    session = await talk(running, "fail: no key", "one")
    first, second = [*next(iter(running.house.gateway._environments.values())).runs]
    original = running.house.gateway.stream_turn

    def failing(at: AgentAddress, turn_id: str, after: str | None) -> Any:
        if turn_id == second:
            raise RefusalError("Its events are gone.", "turn_not_found")
        return original(at, turn_id, after)

    monkeypatch.setattr(running.house.gateway, "stream_turn", failing)
    await sleep(running)
    page = await running.page(PAGE)
    assert f'data-kept data-turn="{first}" data-turn-status="error"' in page
    why = 'The turn failed: <span dir="auto">no key</span>'
    assert (why in page, page.count("data-kept"), second in page) == (
        True,
        2,
        False,
    )
    del running.house.store._tables.transcripts[REF][f"{session}/"]
    page = await running.page(PAGE)
    assert (page.count("data-kept"), "data-turn=" in page, "You said: one" in page) == (
        2,
        False,
        True,
    )


async def test_a_page_says_how_turns_ended_of_whose_steps_there_is_no_copy(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.project(active=True)
    session = await talk(running, "fail: no key")

    def gone(_at: AgentAddress, _turn_id: str, _after: str | None) -> Any:
        raise RefusalError("Its events are gone.", "turn_not_found")

    monkeypatch.setattr(running.house.gateway, "stream_turn", gone)
    await sleep(running)
    page = await running.page(PAGE)
    why = 'The turn failed: <span dir="auto">no key</span>'
    told = "No answer had come by then."
    assert (why in page, told in page, "data-turn=" in page) == (True, False, False)
    del running.house.store._tables.transcripts[REF][f"{session}/"]
    assert told in await running.page(PAGE)
    await running.ask("POST", f"{NOTES}/activate")
    await talk(running, "one", session=session)
    await sleep(running)
    del running.house.store._tables.transcripts[REF][f"{session}/"]
    page = await running.page(PAGE)
    assert ("fail: no key" in page, told in page) == (True, False)  # as another followed it
    assert told not in await running.page(f"{PAGE}/conversation?session={session}&before=1")


async def test_a_page_says_what_a_copy_lacks(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.project(active=True)
    monkeypatch.setattr(transcripts, "MOST_MESSAGES", 4)
    await talk(running, "one", "two", "three")
    await sleep(running)
    page = await running.page(PAGE)
    assert "Earlier messages show once the project is active." in page
    assert (page.count("data-kept"), "You said: one" in page) == (2, False)


async def test_switched_off_nothing_is_kept_or_shown() -> None:
    given = settings(users="ada:Ada", model_url="https://model.example", transcripts="off")
    house = Harness(given)
    app = create_app(house.use_cases, given)
    async with (
        house.working(),
        served(app) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=BEARER) as http,
    ):
        running = Site(house, http, port)  # type: ignore[arg-type] # all of a house that it needs
        await running.project(active=True)
        await talk(running, "hello")
        await sleep(running)
        assert (await get(running, f"{NOTES}/sessions"))[0] == 409
        assert (await get(running, f"{NOTES}/turns/{turn_of(running)}/events"))[0] == 409
        page = await running.page(PAGE)
        assert "Sessions show once the project is active" in page
        assert "as of" not in page
        assert house.store._tables.transcripts == {}
