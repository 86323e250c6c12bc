"""Notifications over HTTP: what is added and shown, the service worker, the page that answers."""

from tests.harness import BEARER, settings
from tests.web.server import Site, site

from greylag.domain.project import ProjectRef
from greylag.domain.users import OPERATOR

HERE = "/api/users/ada/notifications"


async def _asks(running: Site, command: str) -> tuple[str, str]:
    """Have the agent ask whether it may run a command; return the page for it and the question."""
    await running.project(active=True)
    at = await running.house.use_cases.agents.address(OPERATOR, ProjectRef("ada", "notes"))
    turn = await running.house.gateway.start_turn(at, None, f"run: {command}", "m1")
    _, told = await running.ask("GET", f"/api/users/ada/projects/notes/turns/{turn.turn_id}")
    page = f"/users/ada/projects/notes/turns/{turn.turn_id}/answer"
    return page, told["question"]["confirmation_id"]


async def test_browsers_and_webhooks_are_added_shown_tested_and_removed(running: Site) -> None:
    browser = {
        "name": "Phone",
        "endpoint": "https://push.example/x",
        "p256dh": "p",
        "auth": "a",
    }
    status, made = await running.ask("POST", f"{HERE}/browsers", json=browser)
    assert (status, made["host"]) == (201, "push.example")
    hook = {"name": "Chat", "url": "https://hooks.example/x"}
    status, hooked = await running.ask("POST", f"{HERE}/webhooks", json=hook)
    assert (status, hooked["secret"][:6]) == (201, "whsec_")
    _, listed = await running.ask("GET", HERE)
    assert [one["name"] for one in listed["targets"]] == ["Phone", "Chat"]
    assert listed["public_key"] == "public key 1"
    assert "example/x" not in str(listed)
    tested = await running.ask("POST", f"{HERE}/targets/{made['id']}/test")
    assert tested == (200, {"delivered": True, "result": "delivered"})
    (contact,) = {message.contact for _, message in running.house.delivery.pushed}
    assert contact == "mailto:operator@localhost"
    async with running.http.get("/users/ada/account") as page:
        shown = await page.text()
    assert "hooks.example" in shown
    assert "example/x" not in shown
    assert (await running.ask("DELETE", f"{HERE}/targets/{made['id']}"))[0] == 204
    assert (await running.ask("DELETE", f"{HERE}/targets/{made['id']}"))[0] == 404
    plain = {"name": "Chat", "url": "http://hooks.example/x"}
    assert (await running.ask("POST", f"{HERE}/webhooks", json=plain))[0] == 422


async def test_a_form_adds_a_webhook_and_shows_its_secret_this_once(running: Site) -> None:
    form = {"name": "Chat", "url": "http://hooks.example/x"}
    there = "/users/ada/account/new-webhook"
    async with running.http.post(there, data=form) as refused:
        assert (refused.status, "must be https" in await refused.text()) == (422, True)
    form["url"] = "https://hooks.example/x"
    async with running.http.post(there, data=form) as made:
        assert "whsec_" in await made.text()
        assert made.headers["cache-control"] == "no-store"
    (one,) = await running.house.use_cases.notifications.of("ada")
    acted = f"/users/ada/account/notifications/{one.id}"
    for verb in ("test", "remove"):
        async with running.http.post(f"{acted}/{verb}", allow_redirects=False) as done:
            assert (done.status, done.headers["location"]) == (303, "/users/ada/account")
    assert not await running.house.use_cases.notifications.of("ada")


async def test_a_question_about_what_no_page_can_hold_is_shown(running: Site) -> None:
    page, _ = await _asks(running, "echo")
    at = await running.house.use_cases.agents.address(OPERATOR, ProjectRef("ada", "notes"))
    turn = running.house.gateway._at(at).run(page.split("/")[-2])
    turn.arguments = {"command": "echo half \ud800 of it"}
    assert "echo half ? of it" in await running.page(page)


async def test_a_question_is_answered_by_a_post_and_by_nothing_else() -> None:
    async with site(settings(root_path="/tools")) as running:
        page, question = await _asks(running, "rm -rf <b>/")
        page = f"/tools{page}"
        async with running.http.get(f"{page}?choice=allow_once&decision=allow_once") as shown:
            text = await shown.text()
        assert "rm -rf &lt;b&gt;/" in text
        async with running.http.get(page) as again:
            assert question in await again.text()
        wrong = {"confirmation": question, "decision": "allow_always"}
        async with running.http.post(page, data=wrong) as refused:
            assert refused.status == 422
        foreign = {"origin": "http://localhost:1"}
        form = {"confirmation": question, "decision": "reject_once"}
        assert ("in 9 min" in text, 'value="allow_session"' in text) == (True, True)
        async with running.http.post(page, data=form, headers=foreign) as refused:
            assert refused.status == 403
        async with running.http.post(page, data=form) as done:
            assert str(done.url).endswith(f"{page}?said=reject_once")
            assert "You declined it." in await done.text()
        late = form | {"decision": "allow_once"}
        async with running.http.post(page, data=late) as settled:
            assert (settled.status, "settled otherwise" in await settled.text()) == (409, True)
        async with running.http.get(page, headers={"authorization": ""}) as unknown:
            assert unknown.status == 401


async def test_what_is_not_shown_whole_is_not_allowed_here(running: Site) -> None:
    page, question = await _asks(running, "x" * 30_000)
    async with running.http.get(page) as shown:
        text = await shown.text()
    assert question in text
    assert 'value="allow_once"' not in text
    assert 'value="allow_session"' not in text
    assert 'value="reject_once"' in text


async def test_the_service_worker_may_serve_the_whole_site_below_its_root_path() -> None:
    async with site(settings(root_path="/tools/greylag")) as running:
        worker = "/tools/greylag/static/js/service_worker.js"
        async with running.http.get(worker, headers={"authorization": ""}) as answer:
            assert answer.status == 200
            assert answer.headers["service-worker-allowed"] == "/tools/greylag/"
            assert answer.headers["cache-control"] == "no-cache"
        async with running.http.get("/tools/greylag/users/ada/account", headers=BEARER) as page:
            text = await page.text()
        assert f'data-worker="{worker}"' in text
        assert 'data-scope="/tools/greylag/"' in text
        hook = {"name": "Chat", "url": "https://hooks.example/x"}
        await running.ask("POST", f"/tools/greylag{HERE}/webhooks", json=hook)
        (one,) = await running.house.use_cases.notifications.of("ada")
        assert one.site == f"http://127.0.0.1:{running.port}/tools/greylag"
