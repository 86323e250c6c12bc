"""What is open ends once who asked for it may not have it any more, whatever it is."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from unittest.mock import patch

import aiohttp
import pytest
from tests.agent.raw_agent import Asked
from tests.harness import TOKEN
from tests.services.house import House
from tests.web.server import Site, settings, site
from tests.web.test_people_api import REF, signed_in
from tests.web.test_relay_api import site_of
from tests.web.test_sockets_api import terminal

from greylag.domain.errors import ErrorInfo, ForbiddenError, GreylagError, StoreUnavailableError
from greylag.domain.users import OPERATOR, MemberRole, Principal, Role
from greylag.services.people import UserEdit
from greylag.web.auth import MAX_FAILURES, Authenticator
from greylag.web.stream import AccessWatch

PATIENCE = 30
"""It is a second on a quiet machine; what is tested here is that all ends by itself."""
MEMBER = "/api/users/ada/projects/notes/members/editor"


async def endless(asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begin to answer, or to take a body, and go on until the other side ends it."""
    if asked.line.startswith("GET"):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n"
        writer.write(head + b"transfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n")
    while await reader.read(65_536):
        pass


async def endless_body() -> AsyncIterator[bytes]:
    yield b"begun"
    await asyncio.Event().wait()


async def until(so: Callable[[], bool]) -> None:
    while not so():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)


async def unshare(running: Site) -> None:
    assert (await running.ask("DELETE", MEMBER))[0] == 204


async def demote(running: Site) -> None:
    assert (await running.ask("PUT", MEMBER, json={"role": "viewer"}))[0] == 200


async def disable(running: Site) -> None:
    await running.house.use_cases.people.edit("editor", UserEdit(disabled=True))


async def sign_out(running: Site) -> None:
    await running.house.use_cases.people.end_sessions("editor")


@pytest.mark.parametrize(
    ("end", "status"), [(unshare, 404), (demote, 403), (disable, 401), (sign_out, 401)]
)
async def test_streams_downloads_and_uploads_end(
    end: Callable[[Site], Coroutine[Any, Any, None]], status: int
) -> None:
    async with site_of(endless) as (running, agent, path):
        file = f"{path}/files/content?path=x"
        async with (
            asyncio.timeout(PATIENCE),
            signed_in_editor(running) as http,
            http.get(f"{path}/events") as events,
            http.get(file) as download,
            asyncio.TaskGroup() as tasks,
        ):
            assert await download.content.readexactly(5) == b"begun"
            upload = tasks.create_task(
                status_of(http, "PUT", file, data=endless_body()), name="upload"
            )
            await until(lambda: len(agent.asked) == 2)
            await end(running)
            assert await upload == status
            if end is demote:  # a viewer follows on, and reads
                assert not events.content.at_eof()
                assert not download.content.at_eof()
                return
            assert '"complete"' in await events.text()
            with pytest.raises(aiohttp.ClientPayloadError):
                await download.read()
            await until(lambda: not agent.connections)


async def endless_events(
    asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Begin to stream a turn, and go on until the other side ends it."""
    del asked
    event = b'id: t-1\ndata: {"type": "message", "content": {}}\n\n'
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n")
    writer.write(b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(event), event))
    while await reader.read(65_536):
        pass


@asynccontextmanager
async def looking(running: Site) -> AsyncIterator[tuple[aiohttp.ClientSession, Callable[[], Any]]]:
    """Give a client of an administrator who looks at ada with a reason, and the look's end."""
    headers = await signed_in(running, "boss", Role.ADMIN)
    of = running.house.use_cases
    secret = headers["cookie"].partition("=")[2]

    async def boss() -> Principal:
        found = await of.people.by_session(secret, "")
        assert found is not None
        return found

    async def end() -> None:
        await of.accounts.end_look(await boss())

    await of.accounts.look_at(await boss(), "ada", "asked to by Ada")
    base = f"http://127.0.0.1:{running.port}"
    async with aiohttp.ClientSession(base, headers=headers) as http:
        yield http, end


@pytest.mark.parametrize(
    ("agent", "what"),
    [(endless, "files/content?path=x"), (endless_events, "turns/t/events")],
)
async def test_what_is_read_with_a_reason_ends_with_it(agent: Any, what: str) -> None:
    async with site_of(agent) as (running, _, path), asyncio.timeout(PATIENCE):
        url = f"{path}/{what}"
        stated = {"x-greylag-reason": "a support case"}
        async with (
            looking(running) as (http, end_look),
            http.get(url) as looked,
            http.get(url, headers=stated) as by_header,
        ):
            assert (looked.status, by_header.status) == (200, 200)
            await looked.content.readany()
            await end_look()
            with suppress(aiohttp.ClientPayloadError):
                await looked.read()
            assert not by_header.content.at_eof()


async def test_a_page_that_tells_conversations_with_a_reason_ends_with_it(running: Site) -> None:
    live = (await running.project(active=True)).removeprefix("/api") + "/live"
    async with (
        asyncio.timeout(PATIENCE),
        looking(running) as (http, end_look),
        http.get(live, headers={"x-greylag-reason": "a support case"}) as by_header,
        http.get(live) as looked,
    ):
        assert (looked.status, by_header.status) == (200, 200)
        await end_look()
        assert "Only with a reason" in await looked.text()
        assert not by_header.content.at_eof()
        # Projects and their logs are seen without one.
        async with http.get(live) as anew:
            assert anew.status == 200
            await looked_at_again(running)
            assert not anew.content.at_eof()


async def test_what_is_seen_without_a_reason_goes_on_after_a_look() -> None:
    async with (
        site_of(endless) as (running, _, path),
        asyncio.timeout(PATIENCE),
        looking(running) as (http, end_look),
        http.get(f"{path}/events") as events,
        http.get(f"{path}/logs?follow=true") as logs,
        http.get("/users/ada/live") as projects,
    ):
        assert {one.status for one in (events, logs, projects)} == {200}
        await end_look()
        await looked_at_again(running)
        assert not any(one.content.at_eof() for one in (events, logs, projects))


async def test_who_may_see_conversations_anyway_goes_on_after_a_look(running: Site) -> None:
    live = (await running.project(active=True)).removeprefix("/api") + "/live"
    async with asyncio.timeout(PATIENCE), looking(running) as (http, end_look):
        await running.house.use_cases.members.share(OPERATOR, REF, "boss", MemberRole.VIEWER)
        async with http.get(live) as looked:
            await end_look()
            await looked_at_again(running)
            assert not looked.content.at_eof()
            assert (await running.ask("DELETE", MEMBER.replace("editor", "boss")))[0] == 204
            assert '"complete"' in await looked.text()


async def looked_at_again(running: Site) -> None:
    """Return once every right that is watched was looked at again, at least."""
    gate, looks = running.house.use_cases.gate, 0
    real = gate.check_again

    async def counted(*asked: Any) -> None:
        nonlocal looks
        await real(*asked)
        looks += 1

    with patch.object(gate, "check_again", counted):
        await until(lambda: looks > 2 * 2)


async def status_of(http: aiohttp.ClientSession, method: str, path: str, **given: Any) -> int:
    async with http.request(method, path, **given) as answer:
        await answer.read()
        return answer.status


@asynccontextmanager
async def signed_in_editor(running: Site) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a client of somebody with whom ada's notes are shared."""
    headers = await signed_in(running, "editor")
    await running.house.use_cases.members.share(OPERATOR, REF, "editor", MemberRole.EDITOR)
    base = f"http://127.0.0.1:{running.port}"
    async with aiohttp.ClientSession(base, headers=headers) as http:
        yield http


async def test_a_terminal_is_told_and_closed(running: Site) -> None:
    path = await terminal(running)
    async with (
        asyncio.timeout(PATIENCE),
        signed_in_editor(running) as http,
        http.ws_connect(path) as socket,
    ):
        assert "attached" in await socket.receive_json()
        await unshare(running)
        assert (await socket.receive_json())["error"]["code"] == "user_not_found"
        await socket.receive()
        assert socket.close_code == 1008


async def test_whoever_is_made_a_viewer_is_told_whom_to_ask(running: Site) -> None:
    path = await terminal(running)
    async with (
        asyncio.timeout(PATIENCE),
        signed_in_editor(running) as http,
        http.ws_connect(path) as socket,
    ):
        assert "attached" in await socket.receive_json()
        await demote(running)
        told = (await socket.receive_json())["error"]
        assert told["message"] == "As viewer of this you may not do terminal.use any more."
        assert told["hint"] == "Ask the owner, or an administrator."


async def test_who_waits_for_an_activation_is_told() -> None:
    async with site(auto=False) as running:
        path = await running.project()
        async with (
            asyncio.timeout(PATIENCE),
            signed_in_editor(running) as http,
            asyncio.TaskGroup() as tasks,
        ):
            waiting = tasks.create_task(
                status_of(http, "POST", f"{path}/activate", headers={"prefer": "wait=3600"}),
                name="activation",
            )
            await until(lambda: bool(running.house.cluster.calls[REF]))
            await unshare(running)
            assert await waiting == 404


async def test_any_number_of_streams_of_one_token_end_with_it(running: Site) -> None:
    path = await running.project()
    new = {"name": "x", "scopes": ["projects:read"], "expires_in_days": 1, "user": "ada"}
    _, made = await running.ask("POST", "/api/tokens", json=new)
    bearer = {"authorization": f"Bearer {made['token']}"}
    async with asyncio.timeout(PATIENCE), AsyncExitStack() as opened:
        # More than the wrong tokens that are taken from one address in a minute.
        streams = [
            await opened.enter_async_context(running.http.get(f"{path}/events", headers=bearer))
            for _ in range(MAX_FAILURES + 2)
        ]
        assert (await running.ask("DELETE", f"/api/tokens/{made['id']}"))[0] == 204
        for stream in streams:
            assert "does not count any more" in await stream.text()
        # They were no guesses.
        assert (await running.ask("GET", "/api/me", headers=bearer))[0] == 401


async def test_an_operator_s_browser_that_signs_out_loses_its_streams(running: Site) -> None:
    path, base = await running.project(), f"http://127.0.0.1:{running.port}"
    jar = aiohttp.CookieJar(unsafe=True)
    async with (
        asyncio.timeout(PATIENCE),
        aiohttp.ClientSession(base, cookie_jar=jar) as browser,
    ):
        assert await status_of(browser, "POST", "/sign-in", data={"token": TOKEN}) == 200
        async with browser.get(f"{path}/events") as events:
            cookies = {each.key: each.value for each in jar}
            async with aiohttp.ClientSession(base, cookies=cookies) as another_tab:
                assert await status_of(another_tab, "POST", "/sign-out") == 200
            assert '"complete"' in await events.text()


async def test_one_look_is_for_all_that_hang_on_the_same_right() -> None:
    chosen, of = settings(), House().use_cases
    watch = AccessWatch(Authenticator(chosen, of), of.gate)
    looks, ended, inside = 0, asyncio.Event(), asyncio.Semaphore(0)

    async def check() -> None:
        nonlocal looks
        looks += 1
        await ended.wait()
        raise ForbiddenError("It is over.", hint="Go.")

    async def hold() -> None:
        async with watch.until_refused("one", check):
            inside.release()
            await asyncio.Event().wait()

    async with asyncio.timeout(PATIENCE):
        tasks = [asyncio.create_task(hold(), name="hold") for _ in range(500)]
        for _ in tasks:
            await inside.acquire()
        await until(lambda: looks > 0)
        ended.set()
        refusals = await asyncio.gather(*tasks, return_exceptions=True)
    assert looks == 1
    told = {(type(one), one.info) for one in refusals if isinstance(one, GreylagError)}
    assert told == {(ForbiddenError, ErrorInfo("forbidden", "It is over.", "Go."))}
    assert len(set(map(id, refusals))) == len(refusals)
    assert watch._rights == {}


async def test_an_unknown_ends_nothing_and_a_fault_of_ours_does() -> None:
    chosen, of = settings(), House().use_cases
    watch = AccessWatch(Authenticator(chosen, of), of.gate)
    errors: list[Exception] = [RuntimeError("bug"), StoreUnavailableError("It is away.")]

    async def check() -> None:
        raise errors.pop()

    with pytest.raises(GreylagError, match="Something went wrong inside Greylag"):
        async with asyncio.timeout(PATIENCE), watch.until_refused("one", check):
            await asyncio.Event().wait()
    assert errors == []


async def test_what_is_over_is_looked_at_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greylag.web.stream.RECHECK_SECONDS", 0.01)
    chosen, of = settings(), House().use_cases
    watch = AccessWatch(Authenticator(chosen, of), of.gate)
    looked = asyncio.Event()

    async def check() -> None:
        looked.set()

    async with watch.until_refused("one", check):
        right = watch._rights["one"]
        async with watch.until_refused("one", check):
            pass
        assert watch._rights == {"one": right}
    assert right._first.cancelled()
    ended = watch.until_refused("one", check)
    await ended.__aenter__()
    watch._rights["one"].refusal = ForbiddenError("It is over.", hint="Go.")
    async with watch.until_refused("one", check):  # which is given again meanwhile
        right = watch._rights["one"]
        await ended.__aexit__(None, None, None)
        assert watch._rights == {"one": right}
    async with asyncio.timeout(PATIENCE):
        async with watch.until_refused("one", check):
            await looked.wait()
        await until(lambda: "access watch" not in {one.get_name() for one in asyncio.all_tasks()})
    assert watch._rights == {}
