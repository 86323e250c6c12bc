"""For how long nobody has used an environment."""

from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from tests.agentd.doubles import serving
from tests.clocks import FakeClock

from greylag.agentd.api.app import CountUse, LastUse


def _seconds(use: LastUse, *, busy: bool = False, said: int = 0) -> float:
    return use.seconds(busy=busy, said=said)


async def _asked(clock: FakeClock, **scope: Any) -> float:
    """Return for how long nothing is used a minute after a request that took one."""
    use = LastUse(clock.monotonic)
    told = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        clock.advance(60)
        told.append(_seconds(use))

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    clock.advance(60)
    await CountUse(app, use)({"type": "http", "method": "GET", **scope}, nothing, nothing)
    clock.advance(60)
    assert told == [0 if _seconds(use) == 60 else 120]
    return _seconds(use)


@pytest.mark.parametrize(
    "scope",
    [
        {"method": "POST", "path": "/api/v1/sessions"},
        {"method": "PUT", "path": "/api/v1/files/content"},
        {"method": "GET", "path": "/api/v1/preview/8000/index.html"},
        {"method": "GET", "path": "/api/v1/files/content"},
        {"method": "GET", "path": "/api/v1/files/archive"},
        {"type": "websocket", "path": "/api/v1/terminals/1"},
    ],
)
async def test_what_changes_something_shows_it_or_stays_open_is_use(scope: dict[str, Any]) -> None:
    assert await _asked(FakeClock(), **scope) == 60


@pytest.mark.parametrize(
    "scope",
    [
        {"method": "GET", "path": "/api/v1/sessions"},
        {"method": "HEAD", "path": "/api/v1/agent/status"},
        {"method": "PUT", "path": "/api/v1/git/setup"},
    ],
)
async def test_what_reads_and_what_the_platform_does_by_itself_is_none(
    scope: dict[str, Any],
) -> None:
    assert await _asked(FakeClock(), **scope) == 180


def test_a_turn_and_what_terminals_say_count_until_they_were_seen_last() -> None:
    clock = FakeClock()
    use = LastUse(clock.monotonic)
    for busy, said, idle in [(True, 0, 0), (False, 0, 60), (False, 7, 0), (False, 7, 60)]:
        clock.advance(60)
        assert _seconds(use, busy=busy, said=said) == idle


async def test_status_tells_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        await api.session()
        _, body = await api.json("GET", "/api/v1/agent/status")
        assert 0 <= body["idle_seconds"] < 60
