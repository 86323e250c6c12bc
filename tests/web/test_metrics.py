"""What Prometheus is told."""

import asyncio
from datetime import timedelta

import aiohttp
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from tests.clocks import FakeClock
from tests.contract.store_adapters import make_project
from tests.fakes.store import MemoryStore
from tests.harness import served
from tests.web.server import ADA, Site

from greylag import __version__
from greylag.domain.errors import StoreUnavailableError
from greylag.domain.project import Desired, Status
from greylag.ports import Clock, ProjectStore
from greylag.web import metrics
from greylag.web.metrics import create_metrics_app


async def _told(store: ProjectStore, clock: Clock, accept: str = "") -> tuple[str, str]:
    headers = {"accept": accept} if accept else {}
    async with (
        served(create_metrics_app(store, clock)) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
        http.get("/metrics", headers=headers) as answer,
    ):
        assert answer.status == 200
        return answer.content_type, await answer.text()


def _number(text: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if (sample.name, sample.labels) == (name, labels):
                return sample.value
    return None


def _answers(method: str, route: str, status: int) -> float:
    labels = {"method": method, "route": route, "status": str(status)}
    return REGISTRY.get_sample_value("greylag_request_seconds_count", labels) or 0


async def test_how_many_projects_there_are_and_how_late_the_workers_are_is_told() -> None:
    store, clock = MemoryStore(), FakeClock()
    await store.create(make_project("one", due_at=clock.now() - timedelta(seconds=30)))
    await store.create(make_project("two", status=Status.ERROR, desired=Desired.ACTIVE))
    kind, text = await _told(store, clock)
    assert kind == "text/plain"
    counted = {one: _number(text, "greylag_projects", status=one) for one in Status}
    assert counted == dict.fromkeys(Status, 0.0) | {Status.INACTIVE: 1.0, Status.ERROR: 1.0}
    assert _number(text, "greylag_overdue_seconds") == 30
    assert _number(text, "greylag_store_up") == 1
    assert _number(text, "greylag_info", version=__version__) == 1


async def test_nobody_is_late_where_all_that_is_due_is_still_to_come() -> None:
    store, clock = MemoryStore(), FakeClock()
    await store.create(make_project("one", due_at=clock.now() + timedelta(seconds=30)))
    assert _number((await _told(store, clock))[1], "greylag_overdue_seconds") == 0


async def test_what_was_counted_is_told_though_the_store_is_away() -> None:
    store = MemoryStore()
    await store.close()
    text = (await _told(store, FakeClock()))[1]
    assert _number(text, "greylag_store_up") == 0
    assert _number(text, "greylag_projects", status="active") is None
    assert _number(text, "greylag_requests_in_progress") is not None


async def test_a_store_that_can_only_be_read_is_not_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused() -> None:
        raise StoreUnavailableError("The disk is full.")

    async def held() -> None:
        await asyncio.Event().wait()

    for ping, seconds in ((refused, 60.0), (held, 0.01)):
        store = MemoryStore()
        monkeypatch.setattr(store, "ping", ping)
        monkeypatch.setattr(metrics, "ANSWER_SECONDS", seconds)
        assert _number((await _told(store, FakeClock()))[1], "greylag_store_up") == 0


async def test_who_asks_for_open_metrics_has_them() -> None:
    kind, text = await _told(MemoryStore(), FakeClock(), "application/openmetrics-text")
    assert kind == "application/openmetrics-text"
    assert text.endswith("# EOF\n")


async def test_each_answer_counts_by_its_route_and_names_nobody(running: Site) -> None:
    route = "/api/users/{user}/projects/{project}"

    def counted() -> list[float]:
        all_of = ((route, 200), (route, 404), ("(none)", 404))
        return [_answers("GET", *one) for one in all_of]

    before = counted()
    path = await running.project("secret-plan")
    for asked in (path, path, f"{ADA}/nothing-here", "/api/secret-place"):
        await running.ask("GET", asked)
    assert [new - old for new, old in zip(counted(), before, strict=True)] == [2, 1, 1]
    text = (await _told(running.house.store, running.house.clock))[1]
    assert not [one for one in ('"ada', "/ada", "secret", "nothing-here") if one in text]


async def test_a_stream_is_in_progress_until_it_ends_and_counts_by_its_beginning(
    running: Site,
) -> None:
    def in_progress() -> float:
        return REGISTRY.get_sample_value("greylag_requests_in_progress") or 0

    path = await running.project("notes", active=True)
    route = "/api/users/{user}/projects/{project}/events"
    counted, before = _answers("GET", route, 200), in_progress()
    streamed = {"accept": "text/event-stream"}
    async with running.http.get(f"{path}/events", headers=streamed) as stream:
        await stream.content.readany()
        assert in_progress() == before + 1
    async with asyncio.timeout(5):
        while in_progress() > before:  # noqa: ASYNC110 - a number has no event
            await asyncio.sleep(0)
    assert _answers("GET", route, 200) == counted + 1


async def test_what_a_client_makes_up_has_no_number_of_its_own(running: Site) -> None:
    before = _answers("(other)", "(none)", 405)
    path = await running.project()
    for method in ("PROPFIND", "MKCOL", "PUT"):
        status, _ = await running.ask(method, path)
        assert status == 405
    assert _answers("(other)", "(none)", 405) == before + 3
