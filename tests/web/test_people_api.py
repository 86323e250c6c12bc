"""Roles over HTTP: every route is behind the gate, and what ends counts for streams that run."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs
from tests.harness import BEARER
from tests.web.server import Site, site

from greylag.common.agent_api import SOCKETS
from greylag.domain.errors import ConflictError
from greylag.domain.project import ProjectRef
from greylag.domain.users import OPERATOR, Action, Identity, MemberRole, Principal, Role, User
from greylag.services.access import RULES, WITH_REASON, Gate, Standing
from greylag.services.projects import NewProject
from greylag.web.auth import COOKIE
from greylag.web.deps import PROJECT

REF = ProjectRef("ada", "notes")
OPEN = {"health", "ready", "show_platform", "show_me", "list_users", "make_user"} | {
    *("make_token", "list_tokens", "revoke_token", "read_audit"),
    *("begin_device_login", "redeem_device_login"),
}
"""Operations whose paths name no user: two are for probes, the others have tests of their own."""
NAMES = {
    "port": "8080",
    "user": "ada",
    "project": "notes",
    "login": "0" * 16,
    "member": "ada",
    "target": "0" * 16,
}
BODIES: dict[str, Any] = {
    "add_notification_browser": {"name": "x", "endpoint": "https://x", "p256dh": "x", "auth": "x"},
    "add_notification_webhook": {"name": "x", "url": "https://hooks.example"},
    "open_file": {"path": "index.html"},
    "put_secret": {"value": "x", "host": "github.com"},
    "create_project": {"name": "New"},
    "send_message": {"message": "hello"},
    "answer_confirmation": {"decision": "allow_once"},
    "share_project": {"role": "viewer"},
    "hand_over_project": {"user": "editor"},
}


async def signed_in(running: Site, name: str, role: Role = Role.USER) -> dict[str, str]:
    """Return what the browser of somebody sends who has just signed in; their id is the name."""
    identity = Identity("https://idp", name, name, f"{name}@x.y", (), name, None)
    people = running.house.use_cases.people
    if name not in [user.id for user in await people.users()]:
        await people.make(User(name, name.title(), email=identity.email))
    secret = await people.sign_in(identity, role=role, client="127.0.0.1")
    cookie: SimpleCookie = SimpleCookie({COOKIE: secret})
    return {"cookie": cookie.output(header="").strip()}


class WatchedGate:
    """Lets nothing happen: what the gate allows ends in a conflict."""

    def __init__(self, gate: Gate) -> None:
        self._authorize = gate.authorize
        self.asked: list[Action] = []
        gate.authorize = self.authorize  # type: ignore[method-assign]

    async def authorize(self, principal: Principal, action: Action, what: Any) -> User:
        self.asked.append(action)
        await self._authorize(principal, action, what)
        raise ConflictError("The gate allows it.")


@asynccontextmanager
async def people_at_work() -> AsyncIterator[tuple[Site, dict[str, dict[str, str]]]]:
    async with site(signed_in=False) as running:
        of = running.house.use_cases
        who = {
            "stranger": await signed_in(running, "stranger"),
            "editor": await signed_in(running, "editor"),
            "viewer": await signed_in(running, "viewer"),
            "admin": await signed_in(running, "boss", Role.ADMIN),
        }
        await of.projects.create(OPERATOR, "ada", NewProject("Notes", "notes"))
        await of.members.share(OPERATOR, REF, "editor", MemberRole.EDITOR)
        await of.members.share(OPERATOR, REF, "viewer", MemberRole.VIEWER)
        yield running, who


def operations(document: Any) -> Iterator[tuple[str, str, str]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield operation["operationId"], method.upper(), path


def filled(path: str, **names: str) -> str:
    parts = [
        (NAMES | names).get(part[1:-1], "x") if part.startswith("{") else part
        for part in path.split("/")
    ]
    return "/".join(parts)


async def test_every_route_asks_the_gate_and_answers_each_role_as_the_table_says() -> None:
    async with people_at_work() as (running, who):
        _, document = await running.ask("GET", "/openapi.json", headers=who["admin"])
        gate = WatchedGate(running.house.use_cases.gate)
        for name, method, path in operations(document):
            if name in OPEN:
                continue
            for role, headers in who.items():
                gate.asked.clear()
                sent = {"json": BODIES.get(name, {})} if method in {"POST", "PUT", "PATCH"} else {}
                status, told = await running.ask(method, filled(path), headers=headers, **sent)
                (action,) = gate.asked or (None,)
                assert action is not None, f"{name} asks nobody"
                assert status == wanted(role, action, path), (name, role, action, told)
                if role == "stranger":
                    _, other = await running.ask(
                        method, filled(path, user="nobody"), headers=headers, **sent
                    )
                    assert other["detail"] == told["detail"].replace("ada", "nobody")
                    assert (other["code"], other["hint"]) == (told["code"], told["hint"])


async def test_a_page_offers_changes_to_those_who_may_make_them() -> None:
    async with people_at_work() as (running, who):
        where = "/users/ada/projects/notes"
        for role, writes in {"editor": "true", "viewer": "false"}.items():
            async with running.http.get(where, headers=who[role]) as page:
                assert f'data-writes="{writes}"' in await page.text(), role
        async with running.http.get(where, headers=who["admin"]) as asked:
            assert "data-writes" not in await asked.text()  # why they look comes first


def wanted(role: str, action: Action, path: str) -> int:
    """Return the status by which the watched gate tells what the table says."""
    if role == "stranger":
        return 404
    is_project = path.startswith(PROJECT)
    standing = Standing.VIEWER if role == "editor" and not is_project else Standing(role)
    if standing is Standing.ADMIN and action in WITH_REASON:
        return 403
    return 409 if standing in RULES[action][0] else 403


@pytest.mark.parametrize("socket", SOCKETS, ids=lambda one: one.name)
async def test_every_websocket_asks_the_gate(socket: Any) -> None:
    async with people_at_work() as (running, who):
        gate = WatchedGate(running.house.use_cases.gate)
        statuses = {}
        for role, headers in who.items():
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await running.http.ws_connect(filled(PROJECT + socket.path), headers=headers)
            statuses[role] = refused.value.status
        assert statuses == {"stranger": 404, "editor": 409, "viewer": 403, "admin": 403}
        assert gate.asked == [Action.TERMINAL_USE] * 4


async def test_what_is_about_no_user_is_answered_by_who_asks() -> None:
    async with people_at_work() as (running, who):
        ask = running.ask
        assert (await ask("GET", "/api/me"))[0] == 401
        _, me = await ask("GET", "/api/me", headers=who["admin"])
        assert (me["id"], me["role"], me["via"][:8]) == ("boss", "admin", "session ")
        _, seen = await ask("GET", "/api/users", headers=who["stranger"])
        assert seen == {"users": [{"id": "stranger", "display_name": "Stranger"}]}
        _, seen = await ask("GET", "/api/users", headers=who["viewer"])
        assert [user["id"] for user in seen["users"]] == ["viewer", "ada"]
        new = {"id": "eve", "display_name": "Eve", "email": "Eve@X.Y", "limits": {"projects": 1}}
        assert (await ask("POST", "/api/users", json=new, headers=who["viewer"]))[0] == 403
        wrong = {**new, "email": "eve.x.y"}
        status, told = await ask("POST", "/api/users", json=wrong, headers=who["admin"])
        assert (status, "email" in told["detail"]) == (422, True)
        status, told = await ask("DELETE", "/api/users/ada", headers=who["admin"])
        assert (status, told["code"]) == (409, "conflict")
        long = {"name": "x", "scopes": ["files"], "expires_in_days": 3000}
        status, told = await ask("POST", "/api/tokens", json=long, headers=who["viewer"])
        assert (status, "365 days at most" in told["detail"]) == (422, True)
        status, made = await ask("POST", "/api/users", json=new, headers=who["admin"])
        assert (status, made["email"], made["limits"]) == (
            201,
            "eve@x.y",
            {"projects": 1, "active": None, "templates": None},
        )
        _, edited = await ask(
            "PATCH", "/api/users/eve", json={"role": "admin"}, headers=who["admin"]
        )
        assert (edited["role"], edited["display_name"]) == ("admin", "Eve")
        assert (await ask("DELETE", "/api/users/eve", headers=who["admin"]))[0] == 204


async def test_sessions_are_listed_and_ended_by_their_user_and_an_administrator() -> None:
    async with people_at_work() as (running, who):
        another = await signed_in(running, "viewer")
        _, listed = await running.ask("GET", "/api/users/viewer/logins", headers=another)
        ids = {one["current"]: one["id"] for one in listed["sessions"]}
        assert len(listed["sessions"]) == 2
        path = f"/api/users/viewer/logins/{ids[False]}"
        assert (await running.ask("DELETE", path, headers=who["editor"]))[0] == 404
        assert (await running.ask("DELETE", path[:-1], headers=who["admin"]))[0] == 404
        assert (await running.ask("DELETE", path, headers=who["admin"]))[0] == 204
        assert (await running.ask("GET", "/api/me", headers=who["viewer"]))[0] == 401
        assert (await running.ask("GET", "/api/me", headers=another))[0] == 200


async def test_many_cookies_cost_the_store_little(monkeypatch: pytest.MonkeyPatch) -> None:
    async with people_at_work() as (running, who):
        asked = []
        find = running.house.store.find

        async def counted(kind: type[Any], key: str) -> Any:
            asked.append(kind)
            return await find(kind, key)

        monkeypatch.setattr(running.house.store, "find", counted)
        own = who["viewer"]["cookie"]
        for strange, status, most in (
            ([f"gls_{number:043}" for number in range(900)], 401, 4),
            ([f"gls_{number}" for number in range(900)], 401, 0),
            (["gls_" + "x" * 43] * 900, 401, 1),
        ):
            cookie = "; ".join(f"{COOKIE}={one}" for one in strange)
            for method, path in (("GET", "/api/me"), ("POST", "/sign-out")):
                asked.clear()
                async with running.http.request(
                    method, path, headers={"cookie": cookie}, allow_redirects=False
                ) as answer:
                    assert answer.status == (status if path == "/api/me" else 303)
                assert len(asked) <= most
        # One that another port of this host has set is in nobody's way.
        both = {"cookie": f"{COOKIE}=gls_{'x' * 43}; {COOKIE}=other; {own}"}
        assert (await running.ask("GET", "/api/me", headers=both))[0] == 200


async def test_a_token_comes_in_as_its_user_as_far_as_its_scopes_go_until_it_is_revoked() -> None:
    async with people_at_work() as (running, who):
        ask, viewer, editor = running.ask, who["viewer"], who["editor"]
        new = {"name": "nightly", "scopes": ["projects:read"], "expires_in_days": 7}
        status, made = await ask("POST", "/api/tokens", json=new, headers=viewer)
        assert (status, made["user_id"], made["token"][:4]) == (201, "viewer", "glg_")
        bearer = {"authorization": f"Bearer {made['token']}"}
        _, me = await ask("GET", "/api/me", headers=bearer)
        assert (me["id"], me["via"]) == ("viewer", f"token {made['id']}")
        path = "/api/users/ada/projects/notes"
        assert (await ask("GET", path, headers=bearer))[0] == 200
        assert (await ask("GET", f"{path}/sessions", headers=bearer))[0] == 403
        assert (await ask("GET", "/api/tokens", headers=bearer))[0] == 403
        assert (await ask("POST", "/api/tokens", json=new, headers=bearer))[0] == 403
        _, listed = await ask("GET", "/api/tokens", headers=viewer)
        (kept,) = listed["tokens"]
        assert kept["address"] == "127.0.0.1"
        assert kept["used_at"]
        assert "token" not in kept
        # Another's is as one that there is not.
        other = f"/api/tokens/{made['id']}"
        status, refused = await ask("DELETE", other, headers=editor)
        assert (status, refused["code"]) == (404, "not_found")
        assert (await ask("GET", "/api/tokens?user=viewer", headers=editor))[0] == 404
        async with running.http.get(f"{path}/events", headers=bearer) as stream:
            assert (await ask("DELETE", other, headers=viewer))[0] == 204
            async with asyncio.timeout(30):
                assert "does not count any more" in await stream.text()
        assert (await ask("GET", "/api/me", headers=bearer))[0] == 401
        # One for some projects makes none at all, not even one for those.
        new = {"name": "notes", "scopes": ["admin"], "projects": ["notes"]}
        _, made = await ask("POST", "/api/tokens", json=new, headers=viewer)
        bearer = {"authorization": f"Bearer {made['token']}"}
        status, refused = await ask("POST", "/api/tokens", json=new, headers=bearer)
        assert (status, "some projects only" in refused["detail"]) == (403, True)


async def test_each_request_s_line_in_the_log_says_who_asked_and_from_where() -> None:
    async with people_at_work() as (running, who):
        new = {"name": "nightly", "scopes": ["projects:read"], "expires_in_days": 7}
        _, made = await running.ask("POST", "/api/tokens", json=new, headers=who["viewer"])
        path = "/api/users/ada/projects/notes"
        nobody = {"authorization": "Bearer nonsense"}
        with capture_logs() as lines:
            await running.ask("GET", path, headers={"authorization": f"Bearer {made['token']}"})
            await running.ask("GET", path, headers=BEARER)
            await running.ask("GET", path, headers=nobody)
        told = [line for line in lines if line["event"] == "request"]
    assert [(line.get("actor"), line.get("via"), line["address"]) for line in told] == [
        ("viewer", f"token {made['id']}", "127.0.0.1"),
        ("operator", None, "127.0.0.1"),
        (None, None, "127.0.0.1"),
    ]


async def test_service_accounts_have_tokens_of_administrators_and_people_have_their_own() -> None:
    async with people_at_work() as (running, who):
        ask, boss = running.ask, who["admin"]
        robot = {"id": "robot", "display_name": "Robot", "service": True}
        assert (await ask("POST", "/api/users", json=robot, headers=boss))[0] == 201
        new = {"name": "ci", "scopes": ["projects:write", "projects:read"], "user": "robot"}
        status, made = await ask("POST", "/api/tokens", json=new, headers=boss)
        assert status == 201
        bearer = {"authorization": f"Bearer {made['token']}"}
        body = {"name": "Built", "project_id": "built"}
        path = "/api/users/robot/projects"
        assert (await ask("POST", path, json=body, headers=bearer))[0] == 201
        for headers, user, status in (
            (boss, "ada", 403),
            (who["viewer"], "robot", 404),
            (BEARER, None, 422),
            (BEARER, "ada", 201),
        ):
            asked: dict[str, Any] = {**new, "user": user}
            assert (await ask("POST", "/api/tokens", json=asked, headers=headers))[0] == status
        # A token may end itself.
        assert (await ask("DELETE", f"/api/tokens/{made['id']}", headers=bearer))[0] == 204
        assert (await ask("GET", path, headers=bearer))[0] == 401
