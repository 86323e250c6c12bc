"""The pages of people, read without a browser: accounts, users, sharing, and looking."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.harness import BEARER
from tests.web.server import Site
from tests.web.test_people_api import REF, people_at_work, signed_in

from greylag.domain.users import OPERATOR, Limits, User
from greylag.web.dashboard import accounts

PAGE = "/users/ada/projects/notes"
VIEWER = "/users/viewer/account"
Headers = dict[str, str]
Who = dict[str, Headers]


class Pages:
    """What browsers get that follow nothing."""

    def __init__(self, running: Site, who: Who) -> None:
        self.running = running
        self.who = who | {"operator": BEARER}

    async def get(self, who: str, path: str, status: int = 200) -> str:
        return await self._ask("GET", who, path, status)

    async def post(self, who: str, path: str, status: int = 303, /, **form: Any) -> str:
        return await self._ask("POST", who, path, status, data=form)

    async def _ask(self, method: str, who: str, path: str, status: int, **more: Any) -> str:
        headers = self.who[who] | {"accept": "text/html"}
        async with self.running.http.request(
            method, path, headers=headers, allow_redirects=False, **more
        ) as answer:
            text = await answer.text()
            assert answer.status == status, text
            return answer.headers.get("location", text)


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    async with people_at_work() as (running, who):
        yield Pages(running, who)


async def test_an_account_shows_who_one_is_and_ends_sessions_and_tokens(pages: Pages) -> None:
    another = await signed_in(pages.running, "viewer")
    assert await pages.get("viewer", "/account", 303) == VIEWER
    page = await pages.get("viewer", VIEWER)
    assert page.count("This one") == 1
    assert "viewer@x.y" in page
    assert "Change this user" not in page
    await pages.get("editor", VIEWER, 404)
    await pages.post("editor", f"{VIEWER}/sessions/end-others", 404)
    await pages.post("viewer", f"{VIEWER}/sessions/end-others")
    assert (await pages.running.ask("GET", "/api/me", headers=another))[0] == 401
    form = {"name": "narrow", "scopes": "files", "all": "yes", "projects": "mine"}
    await pages.post("viewer", f"{VIEWER}/new-token", 200, **form)
    (narrow,) = await pages.running.house.use_cases.tokens.listed(OPERATOR, None)
    assert narrow.projects == ("mine",)
    await pages.post("viewer", f"{VIEWER}/tokens/{narrow.id}/revoke")
    form = {"name": "nightly", "scopes": "projects:read", "all": "yes", "expires_in_days": "999"}
    wrong = await pages.post("viewer", f"{VIEWER}/new-token", 422, **form)
    assert "A token lasts 365 days at most here." in wrong
    assert 'value="nightly"' in wrong
    made = await pages.post("viewer", f"{VIEWER}/new-token", 200, **form | {"expires_in_days": "7"})
    (text,) = re.findall(r'value="(glg_\w+)"', made)
    _, me = await pages.running.ask("GET", "/api/me", headers={"authorization": f"Bearer {text}"})
    assert me["id"] == "viewer"
    page = await pages.get("viewer", VIEWER)
    assert text not in page
    assert "from 127.0.0.1; ends" in page
    assert "nightly" in await pages.get("operator", "/account")
    (revoke,) = re.findall(r'action="([^"]+/revoke)"', page)
    await pages.post("editor", revoke, 404)
    assert await pages.post("viewer", revoke) == "/account"
    assert "nightly" not in await pages.get("viewer", VIEWER)


async def test_an_account_says_that_it_has_more_tokens_than_it_shows(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "TOKENS_SHOWN", 1)
    for name in ("first", "second", "third"):
        form = {"name": name, "scopes": "files", "all": "yes"}
        await pages.post("viewer", f"{VIEWER}/new-token", 200, **form)
    for who, path in (("viewer", VIEWER), ("operator", "/account")):
        page = await pages.get(who, path)
        assert "2 older ones are not shown here." in page
        assert page.count("Revoke this token?") == 1


async def test_administrators_find_add_change_disable_and_remove_users(pages: Pages) -> None:
    people = pages.running.house.use_cases.people
    for number in range(60):
        await people.make(User(f"u{number:02}", f"Number {number}", email=f"n{number}@x.y"))
    first = await pages.get("admin", "/users")
    assert first.count('<li class="row">') == 50
    assert "page=2" in first
    second = await pages.get("operator", "/users?q=number&page=2")
    assert second.count('<li class="row">') == 10
    assert "Number 42" in await pages.get("admin", "/users?q=N42%40+number")
    await pages.get("viewer", "/users", 403)
    await pages.post("viewer", "/new-user", 403, display_name="Eve")
    form = {"display_name": "Eve", "email": "eve.x.y", "projects": "two"}
    wrong = await pages.post("admin", "/new-user", 422, **form)
    assert "email: must be an email address, with an @." in wrong
    form |= {"email": "Eve@X.Y", "projects": "2"}
    assert await pages.post("admin", "/new-user", **form) == "/users/eve/account"
    assert "There is a user" in await pages.post("admin", "/new-user", 422, **form)
    eve = "/users/eve/account"
    named = {"templates": " large,, small "}
    await pages.post("admin", eve, display_name="Eva", role="user", email="", **named)
    assert (await people.get("eve")).limits == Limits(templates=("large", "small"))
    assert 'value="large, small"' in await pages.get("admin", eve)
    await pages.post("admin", eve, display_name="Eva", role="admin", email="", projects="")
    changed = await people.get("eve")
    assert (changed.display_name, changed.role, changed.email) == ("Eva", "admin", "eve@x.y")
    assert changed.limits == Limits()
    await pages.post("admin", f"{eve}/disable")
    assert (await people.get("eve")).disabled
    assert "Enable" in await pages.get("admin", eve)
    await pages.post("admin", f"{eve}/enable")
    assert await pages.post("admin", f"{eve}/remove") == "/users"
    refused = await pages.post("admin", "/users/ada/account/remove", 409)
    assert "has projects" in refused
    assert "Hand them over or delete them first" in refused
    robot = {"display_name": "Robot", "kind": "service"}
    await pages.post("admin", "/new-user", **robot)
    assert "New token" in await pages.get("admin", "/users/robot/account")
    assert "New token" not in await pages.get("admin", "/users/ada/account")


async def test_a_project_is_shared_by_id_or_address_changed_taken_back_and_left(
    pages: Pages,
) -> None:
    members = f"{PAGE}/members"
    wrong = await pages.post("operator", members, 422, member="nobody@x.y", role="editor")
    assert "There is no user" in wrong
    assert 'value="nobody@x.y"' in wrong
    await pages.post("operator", members, member="Stranger@X.Y", role="viewer")
    await pages.post("operator", members, member="stranger", role="editor")
    shown = await pages.get("viewer", members)
    assert "Stranger" in shown
    assert "Share with somebody" not in shown
    assert re.search(rf'<a [^>]*href="{PAGE}"[^>]*>.*Back', shown)
    await pages.post("viewer", members, 403, member="viewer", role="editor")
    await pages.post("viewer", f"{members}/editor/remove", 403)
    assert await pages.post("viewer", f"{members}/viewer/remove") == "/"
    await pages.get("viewer", members, 404)
    await pages.post("operator", f"{members}/editor/remove")
    found = await pages.running.house.use_cases.members.of(OPERATOR, REF)
    assert [(one.user_id, one.role) for one in found] == [("stranger", "editor")]


async def test_an_administrator_hands_a_project_over(pages: Pages) -> None:
    assert "Hand over" not in await pages.get("editor", f"{PAGE}/members")
    await pages.post("editor", f"{PAGE}/hand-over", 403, owner="editor")
    await pages.post("stranger", f"{PAGE}/hand-over", 404, owner="stranger")
    assert "Hand over" in await pages.get("operator", f"{PAGE}/members")
    wrong = await pages.post("operator", f"{PAGE}/hand-over", 422, owner="nobody@x.y")
    assert "There is no user" in wrong
    assert 'value="nobody@x.y"' in wrong
    api = "/api/users/ada/projects/notes"
    await pages.running.ask("POST", f"{api}/deactivate", headers=BEARER)
    there = "/users/editor/projects/notes"
    assert await pages.post("admin", f"{PAGE}/hand-over", owner="Editor@X.Y") == there
    await pages.get("editor", there)
    await pages.get("viewer", there)
    await pages.get("operator", PAGE, 404)
    status, told = await pages.running.ask(
        "POST", "/api/users/ada/projects", headers=BEARER, json={"name": "N", "project_id": "notes"}
    )
    assert (status, told["code"]) == (409, "project_exists")
    assert "handed over" in told["detail"]


async def test_an_administrator_switches_to_another_user_and_reads_only_with_a_reason(
    pages: Pages,
) -> None:
    await say(pages, "A secret")
    look = "/users/ada/look?next=%2Fusers%2Fada%2Fprojects%2Fnotes"
    assert await pages.get("admin", PAGE, 303) == look
    assert await pages.get("admin", "/users/ada", 303) == "/users/ada/look?next=%2Fusers%2Fada"
    assert "/look?next=" in await pages.get("admin", f"{PAGE}/members", 303)
    await pages.get("viewer", look, 403)
    await pages.get("stranger", look, 404)
    assert "Look at the projects of" in await pages.get("admin", look)
    assert await pages.post("admin", "/users/ada/look", next=PAGE) == PAGE
    page = await pages.get("admin", PAGE)
    assert "You look at the projects of" in page
    assert "Only with a reason may you read this." in page
    assert "Say why; it is audited." in page
    assert "A secret" not in page
    assert "disabled placeholder" in page
    history = "/api/users/ada/projects/notes/sessions"
    assert (await pages.running.ask("GET", history, headers=pages.who["admin"]))[0] == 403
    away = {"next": "//evil.example", "reason": "Ada asked"}
    assert await pages.post("admin", "/users/ada/look", **away) == "/"
    assert await pages.get("admin", "/", 303) == "/users/ada"
    page = await pages.get("admin", PAGE)
    assert "A secret" in page
    assert (await pages.running.ask("GET", history, headers=pages.who["admin"]))[0] == 200
    assert await pages.post("admin", "/look/end") == "/"
    trail = await pages.get("admin", "/audit")
    assert all(one in trail for one in ("looks.start", "looks.end", "Ada asked"))
    assert await pages.get("admin", "/", 303) == "/users/boss"
    assert "You look at" not in await pages.get("admin", "/users/boss")
    assert await pages.get("admin", PAGE, 303) == look
    # Nothing is asked of whom it is shared with, nor of the operator.
    assert "A secret" in await pages.get("viewer", PAGE)
    assert "A secret" in await pages.get("operator", PAGE)


async def test_whose_message_it_was_is_shown_where_there_are_several_people(pages: Pages) -> None:
    await say(pages, "From me")
    page = await pages.get("operator", PAGE)
    assert '<p class="said-by" dir="auto">Editor</p>' in page
    assert 'data-author="operator"' in page
    for member in ("editor", "viewer"):
        await pages.post("operator", f"{PAGE}/members/{member}/remove")
    page = await pages.get("operator", PAGE)
    assert "said-by" not in page
    assert "data-author" not in page


async def say(pages: Pages, words: str) -> None:
    """Have the editor send a message, and wait for its answer."""
    path = "/api/users/ada/projects/notes"
    await pages.running.ask("POST", f"{path}/activate", headers=BEARER)
    body = {"message": words}
    async with pages.running.http.post(
        f"{path}/messages", json=body, headers=pages.who["editor"]
    ) as answer:
        assert answer.status == 200
        await answer.read()
