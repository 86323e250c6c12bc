"""Projects over HTTP: create, list, edit, activate, deactivate, delete."""

from typing import Any
from urllib.parse import quote

import pytest
from tests.web.server import ADA, Site, site

from greylag.domain.errors import ClusterError
from greylag.domain.lifecycle import Verb
from greylag.domain.project import ProjectRef


async def call(
    running: Site, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with running.http.request(method, path, json=body, headers=named) as answer:
        return answer.status, await answer.json(content_type=None) if answer.status != 204 else None


async def test_a_created_project_has_all_its_fields(running: Site) -> None:
    source = {"git": {"url": "https://example.org/a.git", "ref": "main", "depth": 1}}
    body = {"name": "Notes Ω", "project_id": "notes", "metadata": {"team": ["blue", 1, None]}}
    body |= {"source": source}
    async with running.http.post(ADA, json=body) as answer:
        made = await answer.json()
        assert (answer.status, answer.headers["location"]) == (201, f"{ADA}/notes")
    assert made["status"] == "inactive"
    assert made["name"] == "Notes Ω"
    assert (made["metadata"], made["source"]) == (body["metadata"], source)
    assert (made["namespace"], made["deployment"]) == ("user-ada", "notes-api")
    assert (made["service"], made["ingress"]) == ("notes-svc", "notes-ingress")
    assert made["endpoint"] is None
    assert made["error"] is None
    assert made["created_at"].endswith("Z")
    assert (await call(running, "POST", ADA, body))[1]["code"] == "project_exists"


async def test_a_source_that_is_no_repository_is_refused(running: Site) -> None:
    for git in ({}, {"url": "https://a:b@example.org/a.git"}, {"url": "ssh://example.org/a.git"}):
        status, said = await call(running, "POST", ADA, {"name": "Notes", "source": {"git": git}})
        assert (status, said["code"]) == (422, "invalid_request")
        assert "source.git.url" in said["detail"]
        assert "a:b" not in str(said)


async def test_the_same_idempotency_key_is_one_project(running: Site) -> None:
    body = {"name": "Notes"}
    first = await call(running, "POST", ADA, body, idempotency_key="k1")
    again = await call(running, "POST", ADA, body, idempotency_key="k1")
    assert (first[0], again[0]) == (201, 200)
    assert first[1]["id"] == again[1]["id"]
    other = await call(running, "POST", ADA, {"name": "Other"}, idempotency_key="k1")
    assert (other[0], other[1]["code"]) == (409, "idempotency_conflict")


async def test_pages_follow_one_another_newest_first(running: Site) -> None:
    for number in range(7):
        await running.project(f"p{number}")
    seen: list[str] = []
    query = "?limit=3"
    while query:
        _, page = await call(running, "GET", ADA + query)
        seen += [one["project_id"] for one in page["projects"]]
        query = f"?limit=3&cursor={page['next_cursor']}" if page["next_cursor"] else ""
    assert seen == [f"p{number}" for number in reversed(range(7))]
    _, active = await call(running, "GET", f"{ADA}?status=active")
    assert active["projects"] == []


async def test_a_list_holds_each_project_as_it_is_alone_and_now(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greylag.web.schemas.MOST_TEXTS", 2)

    async def alone() -> list[str]:
        found = []
        for number in (2, 1, 0):
            async with running.http.get(f"{ADA}/p{number}") as answer:
                found.append(await answer.text())
        return found

    async def listed() -> str:
        async with running.http.get(ADA) as answer:
            assert answer.headers["content-type"] == "application/json"
            return await answer.text()

    for number in range(3):
        body = {"name": "Ω", "project_id": f"p{number}", "metadata": {"a": ["é", None]}}
        assert (await call(running, "POST", ADA, body))[0] == 201
        assert (await call(running, "POST", f"{ADA}/p{number}/activate"))[0] == 200
    for name in ("x", "y", "y"):
        await call(running, "PATCH", f"{ADA}/p2", {"name": name})
        await call(running, "PATCH", f"{ADA}/p0", {"metadata": {"name": name}})
        for _ in range(2):
            whole = ",".join(await alone())
            assert await listed() == f'{{"projects":[{whole}],"next_cursor":null}}'


async def test_an_edit_changes_what_it_names_and_nothing_else(running: Site) -> None:
    path = await running.project()
    assert (await call(running, "PATCH", path, {"metadata": {"a": 1}}))[0] == 200
    _, edited = await call(running, "PATCH", path, {"name": "New"})
    assert (edited["name"], edited["metadata"]) == ("New", {"a": 1})
    assert (await call(running, "PATCH", path, {"status": "active"}))[0] == 422
    assert (await call(running, "PATCH", path, {}))[0] in {200, 422}


async def test_another_user_s_project_does_not_exist(running: Site) -> None:
    await running.project()
    status, body = await call(running, "GET", f"/api/users/{quote('Zoë')}/projects/notes")
    assert (status, body["code"]) == (404, "project_not_found")


async def test_it_is_activated_and_deactivated_and_deleted(running: Site) -> None:
    path = await running.project()
    status, one = await call(running, "POST", f"{path}/activate")
    assert (status, one["status"]) == (200, "active")
    assert one["endpoint"]
    assert one["last_activated_at"]
    status, one = await call(running, "POST", f"{path}/deactivate")
    assert (status, one["status"], one["endpoint"]) == (200, "inactive", None)
    assert (await call(running, "DELETE", path))[0] == 204
    assert (await call(running, "GET", path))[0] == 404
    assert (await call(running, "DELETE", path))[0] == 404


async def test_respond_async_returns_at_once() -> None:
    async with site(auto=False) as running:
        path = await running.project()
        headers = {"prefer": "respond-async"}
        async with running.http.post(f"{path}/activate", headers=headers) as answer:
            assert answer.status == 202
            assert answer.headers["preference-applied"] == "respond-async"
            assert (await answer.json())["desired"] == "active"
        status, late = await call(running, "POST", f"{path}/activate", prefer="wait=0")
        assert (status, late["code"]) == (504, "wait_timeout")
        async with running.http.delete(path, headers=headers) as answer:
            assert answer.status == 202
        status, refused = await call(running, "POST", f"{path}/activate")
        assert (status, refused["code"]) == (409, "project_deleting")


async def test_a_cluster_that_refuses_is_told_with_its_own_code(running: Site) -> None:
    path = await running.project()
    error = ClusterError("No such image.", code="image_not_found", hint="Mend it.", terminal=True)
    running.house.cluster.fail_next(ProjectRef("ada", "notes"), Verb.START, error)
    status, refused = await call(running, "POST", f"{path}/activate")
    assert (status, refused["code"], refused["hint"]) == (502, "image_not_found", "Mend it.")
    _, one = await call(running, "GET", path)
    assert (one["status"], one["error"]["code"]) == ("error", "image_not_found")
    assert one["error_message"] == "No such image."
    assert (await call(running, "POST", f"{path}/activate"))[1]["status"] == "active"
