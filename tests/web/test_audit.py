"""The audit trail over HTTP: what every route leaves in it, and who reads it."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientPayloadError, WSServerHandshakeError
from tests.harness import BEARER, TOKEN
from tests.web.server import Site, site
from tests.web.test_people_api import NAMES, REF, operations, people_at_work, signed_in

from greylag.common.agent_api import SOCKETS
from greylag.domain.audit import SYSTEM, ChainCheck, Link
from greylag.domain.users import Role
from greylag.ports import AuditFilter
from greylag.services import accounts
from greylag.services.accounts import EXPORT_AT_ONCE
from greylag.services.people import UserEdit
from greylag.web.audit import LINES

HIDDEN = "not-for-the-trail"
SAFE = {"GET"}
CALLS: dict[str, tuple[dict[str, str], Any]] = {
    "make_user": ({}, {"id": "eve", "display_name": "Eve", "service": True}),
    "edit_user": ({"user": "eve"}, {"display_name": "Eva", "limits": {"projects": 3}}),
    "make_token": (
        {},
        {"name": "t", "scopes": ["files"], "expires_in_days": 1, "user": "eve"},
    ),
    "revoke_token": ({}, None),
    "end_login": ({"user": "boss"}, None),
    "create_project": ({}, {"name": "New", "metadata": {"key": HIDDEN}}),
    "edit_project": ({}, {"name": "Other", "metadata": {"key": HIDDEN}}),
    "share_project": ({"member": "eve"}, {"role": "viewer"}),
    "unshare_project": ({"member": "eve"}, None),
    "remove_user": ({"user": "eve"}, None),
    "activate_project": ({}, None),
    "refresh_project": ({}, None),
    "open_preview": ({}, {}),
    "open_file": ({}, {"path": "index.html"}),
    "send_message": ({}, {"message": HIDDEN}),
    "answer_confirmation": ({}, {"decision": "allow_once"}),
    "cancel_turn": ({}, None),
    "create_session": ({}, None),
    "rename_session": ({}, {"title": HIDDEN}),
    "git_commit": ({}, {"message": HIDDEN}),
    "git_fetch": ({}, None),
    "git_push": ({}, {"branch": "x"}),
    "delete_session": ({}, None),
    "switch_extension": ({"extension": "memory"}, {"enabled": False}),
    "remove_extension": ({"extension": "memory"}, None),
    "change_setting": ({"key": "GOOSE_MODE"}, {"value": HIDDEN}),
    "reset_setting": ({"key": "GOOSE_MODE"}, None),
    "change_session_setting": ({"key": "GOOSE_MODE"}, {"value": HIDDEN}),
    "write_file": ({}, HIDDEN.encode()),
    "make_folder": ({}, {"path": "a"}),
    "move_file": ({}, {"source": "a", "target": "b"}),
    "unpack_archive": ({}, HIDDEN.encode()),
    "delete_file": ({}, None),
    "start_terminal": ({}, {"rows": 24, "columns": 80}),
    "end_terminal": ({}, None),
    "undo_turn": ({}, {}),
    "deactivate_project": ({}, None),
    "hand_over_project": ({}, {"user": "editor"}),
    "delete_project": ({"user": "editor"}, None),
}
"""Each operation that changes something, in an order in which it does: its path and body."""
ELSEWHERE = {"begin_device_login", "redeem_device_login", "end_share"} | {
    *("put_secret", "remove_secret"),
    *("add_notification_browser", "add_notification_webhook"),
    *("test_notification_target", "remove_notification_target"),
}
"""A program's part of a login, of which its answer is told, and what needs the name of a share or a
key to seal by: `test_device.py`, `test_previews.py`, `services/test_secrets.py` and
`test_notifications.py`.
"""


async def entries(running: Site, **asked: Any) -> list[Any]:
    found = await running.house.store.audit_entries(AuditFilter(**asked), 10_000)
    return [entry for _, entry in found]


def path_of(path: str, names: dict[str, str]) -> str:
    parts = path.split("/")
    return "/".join((NAMES | names).get(p[1:-1], "x") if p.startswith("{") else p for p in parts)


async def test_every_route_that_changes_something_leaves_an_entry_without_any_secret() -> None:
    async with people_at_work() as (running, _):
        _, document = await running.ask("GET", "/openapi.json", headers=BEARER)
        paths = {name: (m, path) for name, m, path in operations(document) if m not in SAFE}
        assert set(paths) - ELSEWHERE == set(CALLS)
        (boss,) = await running.house.use_cases.people.sessions("boss")
        secrets, made = [HIDDEN, TOKEN, boss.key], {"login": boss.id}
        for name, (names, body) in CALLS.items():
            method, path = paths[name]
            if name == "refresh_project":
                record = running.house.store._tables.records[REF]
                outdated = replace(record.project, outdated="model")
                running.house.store._keep(replace(record, project=outdated))
            sent: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
            query = {"path": "some/file.txt"} if name in {"write_file", "delete_file"} else {}
            async with running.http.request(
                method,
                path_of(path, made | names),
                headers={**BEARER, "x-request-id": name},
                params=query,
                **(sent if body is not None else {}),
            ) as answer:
                told = await answer.text()
            if name == "make_token":
                token = json.loads(told)
                secrets.append(token["token"])
                made["token"] = token["id"]
            mine = [one for one in await entries(running) if one["request_id"] == name]
            assert mine, (name, answer.status, told)
            # What the store itself does is one entry; what an agent does is told before and after.
            results = [one["result"] for one in mine]
            assert results in (["done"] * len(mine), ["begun", "done"], ["begun", "failed"]), name
            assert answer.status < 300 or results[-1] == "failed", (name, told)
            assert {one["actor"]["kind"] for one in mine} == {"operator"}
            assert mine[0]["actor"]["address"] == "127.0.0.1"
        all_told = json.dumps(await entries(running))
        assert [secret for secret in secrets if secret in all_told] == []
        written = await entries(running, object="project/ada/notes/files/content/some/file.txt")
        assert {one["changed"]["operation"] for one in written} >= {"write_file"}


async def test_an_entry_tells_what_the_body_says_an_operation_is_done_with() -> None:
    project = "/api/users/ada/projects/notes"
    move = {"source": "a", "target": "b/c", "replace": True}
    asked: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("POST", "files/move", move, move),
        ("POST", "files/move", {**move, "source": {"x": HIDDEN}, "more": HIDDEN}, {}),
        ("POST", "files/move", [HIDDEN], {}),
        ("POST", "files/folder", {"path": "new"}, {"path": "new"}),
        ("PUT", "extensions/memory/toggle", {"enabled": False}, {"enabled": False}),
        ("POST", "git/push", {"branch": "fix"}, {"branch": "fix"}),
        ("POST", "turns/t/undo", {"paths": ["x"], "override": True}, {"paths": ["x"]}),
        ("POST", "turns/t/undo", {"paths": [{"x": HIDDEN}]}, {}),
    ]
    async with people_at_work() as (running, _):
        await running.ask("POST", f"{project}/activate", headers=BEARER)
        for number, (method, path, body, told) in enumerate(asked):
            headers = {**BEARER, "x-request-id": f"asked-{number}"}
            await running.ask(method, f"{project}/{path}", json=body, headers=headers)
            found = await entries(running, object=f"project/ada/notes/{path}")
            mine = [one["changed"] for one in found if one["request_id"] == f"asked-{number}"]
            assert len(mine) == 2
            kept = {name: value for name, value in mine[0].items() if name != "operation"}
            assert kept.items() >= told.items()
            assert mine[0] == mine[1]
        assert HIDDEN not in json.dumps(await entries(running))


async def test_refusals_are_told_once_a_minute_with_their_number() -> None:
    async with people_at_work() as (running, who):
        for _ in range(3):
            await running.ask("GET", "/api/users/ada", headers=who["stranger"])
            await running.ask("DELETE", "/api/users/ada/projects/notes", headers=who["viewer"])
            wrong = {"authorization": "Bearer wrong-wrong-wrong"}
            assert (await running.ask("GET", "/api/me", headers=wrong))[0] == 401
            # A browser that gives none is sent to sign in; who tries one is told, and told of.
            assert (await page(running, "/users", wrong))[0] == 401
            assert (await page(running, "/users", {}))[0] == 303
            assert (await running.ask("GET", "/api/audit", headers=who["editor"]))[0] == 403
        rebound = {**BEARER, "host": "evil.example"}
        assert (await running.ask("GET", "/api/me", headers=rebound))[0] == 403
        told = [
            (one["actor"]["user"], one["action"], one["object"], one["code"], one["count"])
            for one in await entries(running, result="refused")
        ]
        first = [
            ("stranger", "account.read", "user/ada", "user_not_found", 1),
            ("viewer", "projects.delete", "project/ada/notes", "forbidden", 1),
            (None, "request", "/api/me", "unauthorized", 1),
            (None, "request", "/users", "unauthorized", 1),
            ("editor", "audit.read", "", "forbidden", 1),
            (None, "request", "/api/me", "forbidden", 1),
        ]
        assert told == first
        await running.house.use_cases.audit.flush()
        counted = (await entries(running, result="refused"))[len(first) :]
        assert [one["count"] for one in counted] == [2, 2, 2, 2, 2]


async def test_sign_ins_their_ends_and_reads_with_a_reason_are_told() -> None:
    async with people_at_work() as (running, who):
        async with running.http.post("/sign-in", data={"token": "wrong"}) as refused:
            assert refused.status == 401
        async with running.http.post("/sign-in", data={"token": TOKEN}) as entered:
            assert entered.status == 200
        running.http.cookie_jar.clear()
        headers = {**who["admin"], "x-greylag-reason": "a support case"}
        for _ in range(2):
            await running.ask("GET", "/api/users/ada/projects/notes/sessions", headers=headers)
        async with running.http.post("/sign-out", headers=who["viewer"]):
            pass
        told = [(e["actor"]["user"], e["action"], e["result"]) for e in await entries(running)]
        assert told[-4:] == [
            (None, "sessions.start", "refused"),
            (None, "sessions.start", "done"),
            ("boss", "agent.read", "done"),
            ("viewer", "sessions.end", "done"),
        ]
        assert (await entries(running))[-1]["actor"]["name"] == "Viewer"
        (read,) = await entries(running, action="agent.read")
        assert read["changed"] == {"reason": "a support case"}


async def test_each_websocket_leaves_an_entry_when_it_is_opened_ends_or_is_refused() -> None:
    async with people_at_work() as (running, who):
        path = "/api/users/ada/projects/notes"
        await running.ask("POST", f"{path}/activate", headers=BEARER)
        body = {"rows": 24, "columns": 80}
        _, made = await running.ask("POST", f"{path}/terminals", json=body, headers=BEARER)
        for socket in SOCKETS:
            place = socket.path.format(terminal=made["terminal_id"])
            with pytest.raises(WSServerHandshakeError):
                await running.http.ws_connect(f"{path}{place}", headers=who["viewer"])
            async with running.http.ws_connect(f"{path}{place}", headers=BEARER):
                pass
            on = f"project/ada/notes{place}"
            async with asyncio.timeout(10):
                while len(told := await entries(running, object=on)) < 3:  # noqa: ASYNC110 - the server tells of no end
                    await asyncio.sleep(0)
            assert [one["result"] for one in told] == ["begun", "done", "done"]
            assert told[0]["changed"] == {"operation": f"open_{socket.name}"}
            assert told[2]["changed"].pop("seconds") in range(60)
            assert told[2]["changed"] == {"operation": f"close_{socket.name}"}
            assert len({one["request_id"] for one in told}) == 1
        refused = await entries(running, result="refused")
        assert [(one["actor"]["user"], one["action"]) for one in refused] == [
            ("viewer", "terminal.use")
        ]


async def test_administrators_read_it_in_pages_and_as_lines() -> None:
    async with people_at_work() as (running, who):
        for _ in range(EXPORT_AT_ONCE):
            await running.house.use_cases.audit.append(
                running.house.use_cases.audit.event(SYSTEM, "test", "user/ada")
            )
        boss = who["admin"]
        status, page = await running.ask("GET", "/api/audit?limit=2", headers=boss)
        assert (status, len(page["entries"])) == (200, 2)
        assert page["end"]["number"] == page["entries"][0]["number"]
        cursor = page["next_cursor"]
        _, older = await running.ask("GET", f"/api/audit?limit=2&cursor={cursor}", headers=boss)
        assert older["entries"][0]["number"] == cursor - 1
        lines = await read_lines(running, boss)
        check = ChainCheck()
        check.follow(lines)
        assert check.last == Link(**page["end"])
        assert len(lines) > EXPORT_AT_ONCE
        _, mine = await running.ask("GET", "/api/audit?user=viewer", headers=boss)
        assert {one["actor"]["user"] for one in mine["entries"]} == {"viewer"}
        for odd in ("result=odd", "until=0.5", "since=2026-01-01T00:00:00", "cursor=x"):
            assert (await running.ask("GET", f"/api/audit?{odd}", headers=boss))[0] == 422


async def test_an_export_ends_with_the_right_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "EXPORT_AT_ONCE", 1)
    async with people_at_work() as (running, who), asyncio.timeout(30):
        find = running.house.store.audit_entries

        async def slow(*given: Any, after: int = 0, **more: Any) -> Any:
            if after > 1:
                await asyncio.Event().wait()
            return await find(*given, after=after, **more)

        monkeypatch.setattr(running.house.store, "audit_entries", slow)
        asked = {**who["admin"], "accept": LINES}
        async with running.http.get("/api/audit", headers=asked) as answer:
            assert await answer.content.readline()
            await running.house.use_cases.people.edit("boss", UserEdit(disabled=True))
            with pytest.raises(ClientPayloadError):
                await answer.read()


async def test_the_page_shows_and_filters_it_for_administrators_alone() -> None:
    async with people_at_work() as (running, who):
        status, _ = await page(running, "/audit", who["viewer"])
        assert status == 403
        status, html = await page(running, "/audit?object=project/ada/notes", who["admin"])
        assert status == 200
        assert "members.set" in html
        assert "users.create" not in html
        assert "/audit/export?object=project%2Fada%2Fnotes" in html
        assert (await page(running, "/audit?since=2025-13-01", who["admin"]))[0] == 422
        _, html = await page(running, f"/audit?cursor={2:015}9", who["admin"])
        assert "members.set" in html  # no entry has that number
        _, export = await page(running, "/audit/export?action=members.set", who["admin"])
        assert [json.loads(line)["action"] for line in export.splitlines()] == ["members.set"] * 2
        for name, user, linked in (("admin", "boss", True), ("viewer", "ada", False)):
            _, html = await page(running, f"/users/{user}", who[name])
            assert ('href="/audit"' in html) == linked
        kept = running.house.store._tables.audit
        kept[0] = {"number": 1}
        kept[1] |= {"actor": "x", "changed": [1], "count": "many", "action": 7, "result": {}}
        kept[2] |= {"actor": {"name": 7, "user": []}, "changed": "x", "at": None, "object": []}
        status, html = await page(running, "/audit", who["admin"])
        assert (status, html.count("damaged")) == (200, 2)


async def test_a_token_reads_it_only_with_the_scope_for_it() -> None:
    async with site(signed_in=False) as running:
        admin = await signed_in(running, "boss", Role.ADMIN)
        await running.ask("PATCH", "/api/users/boss", json={"role": "admin"}, headers=BEARER)
        for scope, wanted in (("admin", 200), ("files", 403)):
            body = {"name": scope, "scopes": [scope], "expires_in_days": 1}
            _, made = await running.ask("POST", "/api/tokens", json=body, headers=admin)
            token = {"authorization": f"Bearer {made['token']}"}
            assert (await running.ask("GET", "/api/audit", headers=token))[0] == wanted


async def page(running: Site, path: str, headers: dict[str, str]) -> tuple[int, str]:
    asked = {**headers, "accept": "text/html"}
    async with running.http.get(path, headers=asked, allow_redirects=False) as answer:
        return answer.status, await answer.text()


async def read_lines(running: Site, headers: dict[str, str]) -> list[Any]:
    asked = {**headers, "accept": LINES}
    async with running.http.get("/api/audit", headers=asked) as answer:
        assert answer.content_type == LINES
        return [json.loads(line) for line in (await answer.text()).splitlines()]
