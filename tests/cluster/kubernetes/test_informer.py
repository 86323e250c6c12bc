"""What the informers do when the API server ends them, breaks them off, or forgets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from tests.cluster.kubernetes.api_server import (
    PATIENCE,
    Answer,
    Server,
    event,
    page,
    says,
    served,
    status,
    stream,
    thing,
)

from greylag.cluster.kubernetes import informer
from greylag.cluster.kubernetes.informer import Change, Informers
from greylag.common.concurrent import beside
from greylag.domain.errors import ClusterError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(informer, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(informer, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(informer, "FIRST_PROBE", 0.05)
    monkeypatch.setattr(informer, "SILENCE", 0.3)


@asynccontextmanager
async def watching(*answers: Answer) -> AsyncIterator[tuple[Server, Informers, list[Change]]]:
    """Watch Pods; yield once the first list is known."""
    changes: list[Change] = []
    async with served(*answers) as (server, api):
        informers = Informers(api.within(1), ["Pod"])
        informers.subscribe(changes.append)
        running = asyncio.create_task(informers.run(), name="informers")
        try:
            await informers.synced(PATIENCE)
            yield server, informers, changes
        finally:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


def versions(server: Server) -> list[str]:
    return [one.query["resourceVersion"] for one in server.asked if "watch" in one.query]


@pytest.mark.parametrize("then", ["end", "cut", "silent"])
async def test_a_watch_that_ends_breaks_off_or_falls_silent_goes_on_from_where_it_was(
    then: str,
) -> None:
    first = stream(
        event("MODIFIED", thing("a", 12)),
        event("BOOKMARK", thing("", 15)),
        then=then,
    )
    second = stream(event("ADDED", thing("b", 16)), then="silent")
    async with watching(page(10, thing("a", 1)), first, second) as (server, informers, changes):
        await until(lambda: ("n", "b") in informers["Pod"].cache)
        assert versions(server)[:2] == ["10", "15"]
        assert sum("watch" not in one.query for one in server.asked) == 1
        told = [(one.name, one.gone) for one in changes]
        assert told == [("a", False), ("a", False), ("b", False)]


@pytest.mark.parametrize(
    "gone",
    [
        status(410, "Expired"),
        stream(event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})),
    ],
)
async def test_after_410_all_is_listed_anew_and_what_went_meanwhile_is_told(gone: Answer) -> None:
    parts = (
        page(10, thing("stays", 1), thing("goes", 2)),
        gone,
        page(20, thing("stays", 1), thing("comes", 18)),
        stream(then="silent"),
    )
    async with watching(*parts) as (server, informers, changes):
        await until(lambda: ("n", "comes") in informers["Pod"].cache)
        assert set(informers["Pod"].cache) == {("n", "stays"), ("n", "comes")}
        assert sorted({(one.name, one.gone) for one in changes}) == [
            ("comes", False),
            ("goes", False),
            ("goes", True),
            ("stays", False),
        ]
        await until(lambda: versions(server)[-1] == "20")


async def test_a_watch_that_is_forbidden_is_told_as_that() -> None:
    said = 'pods is forbidden: User "w" cannot list resource "pods" in API group ""'
    async with served(status(403, "Forbidden", said)) as (_, api):
        informers = Informers(api, ["Pod"])
        async with beside(informers.run(), "informers"):
            with pytest.raises(ClusterError, match="pods is forbidden") as refused:
                await informers.synced(0.3)
    assert refused.value.info.code == "cluster_forbidden"
    assert not informers.live


async def test_caches_are_not_live_while_a_watch_is_broken() -> None:
    parts = (page(10), stream(), status(500), stream(then="silent"))
    async with watching(*parts) as (_, informers, _changes):
        await until(lambda: not informers.live)
        assert informers.problem
        assert await informers.alive(PATIENCE)
        assert informers.problem == ""


async def test_caches_are_not_live_between_a_watch_that_ends_in_good_order_and_the_next() -> None:
    opens = asyncio.Event()

    async def slowly(request: web.Request) -> web.StreamResponse:
        await opens.wait()
        return await stream(then="silent")(request)

    async with watching(page(10), stream(), slowly) as (_, informers, _changes):
        await until(lambda: not informers.live)
        assert not await informers.alive(0.1)
        assert "not open again" in informers.problem
        opens.set()
        assert await informers.alive(PATIENCE)


async def test_a_list_that_takes_too_long_is_begun_anew() -> None:
    parts = (
        page(10, thing("a", 1), more="next"),
        status(410, "Expired"),
        page(20, thing("b", 2)),
        stream(then="silent"),
    )
    async with watching(*parts) as (server, informers, _changes):
        assert set(informers["Pod"].cache) == {("n", "b")}
        assert "continue" not in server.asked[2].query


@pytest.mark.parametrize(
    "nonsense",
    [
        says({"ok": True}),
        says(["maintenance"]),
        status(503, "Busy", **{"Retry-After": "99999"}),
        stream({"type": "ADDED", "object": {}}),
        stream({"type": "ERROR", "object": "no"}),
        stream({"type": "ADDED"}, ["no event"]),
    ],
)
async def test_no_answer_ends_the_informers_for_good(
    nonsense: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(informer, "LONGEST_ASKED", 0.01)
    parts = (nonsense, page(10), nonsense, nonsense, page(11, thing("a", 1)), stream(then="silent"))
    again = status(410, "Expired")
    async with watching(*parts[:4], again, *parts[4:]) as (_, informers, _changes):
        await until(lambda: ("n", "a") in informers["Pod"].cache)
        assert await informers.alive(PATIENCE)
