"""For how long nobody has used an environment."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from tests.agentd.api.test_preview_routes import SERVED
from tests.agentd.api.test_terminal_routes import TERMINALS, connected, site, started, told, until
from tests.agentd.doubles import Api, eventually, serving
from tests.clocks import FakeClock

from greylag.agentd.api.app import CountUse, LastUse


def _seconds(use: LastUse, *, busy: bool = False, said: int = 0) -> float:
    return use.seconds(busy=busy, said=said)


def _of_a_page(kind: str) -> list[tuple[bytes, bytes]]:
    """Return what a browser says of what a page asks for; ``empty``: its script does."""
    return [(b"sec-fetch-dest", kind.encode())]


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
    asked = {"type": "http", "method": "GET", "headers": [], **scope}
    await CountUse(app, use)(asked, nothing, nothing)
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
        {"method": "GET", "path": "/api/v1/preview/8000/a.png", "headers": _of_a_page("image")},
        {"method": "POST", "path": "/api/v1/preview/8000/form", "headers": _of_a_page("empty")},
        {"type": "websocket", "path": "/api/v1/commands"},
    ],
)
async def test_what_changes_something_or_shows_it_and_a_command_are_use(
    scope: dict[str, Any],
) -> None:
    assert await _asked(FakeClock(), **scope) == 60


@pytest.mark.parametrize(
    "scope",
    [
        {"method": "GET", "path": "/api/v1/sessions"},
        {"method": "HEAD", "path": "/api/v1/agent/status"},
        {"method": "PUT", "path": "/api/v1/git/setup"},
        {"method": "GET", "path": "/api/v1/preview/8000/news", "headers": _of_a_page("empty")},
        {"type": "websocket", "path": "/api/v1/terminals/1"},
        {"type": "websocket", "path": "/api/v1/preview/8000/hmr"},
    ],
)
async def test_what_reads_or_is_only_open_and_what_the_platform_does_by_itself_is_none(
    scope: dict[str, Any],
) -> None:
    assert await _asked(FakeClock(), **scope) == 180


@pytest.mark.parametrize(("size", "each", "uses"), [(500, 2, False), (800, 2, True)])
def test_a_socket_is_use_while_it_carries_more_than_pings(
    size: int, each: int, *, uses: bool
) -> None:
    clock = FakeClock()
    use = LastUse(clock.monotonic)
    carrying = use.carrying()
    for _ in range(3600 // each):
        clock.advance(each)
        carrying(size)
    assert (_seconds(use) < 60) is uses


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


async def _idle_for(api: Api) -> float:
    _, body = await api.json("GET", "/api/v1/agent/status")
    return float(body["idle_seconds"])


async def test_a_terminal_that_is_only_watched_is_no_use_but_what_is_typed_is(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as api, connected(api, f"{TERMINALS}/{await started(api)}") as socket:
        await told(socket)
        await socket.send_bytes(b"stty -echo; echo RE''ADY; exec cat > typed\n")
        await until(socket, b"READY")
        await _idle_for(api)
        begun = time.monotonic()
        await socket.send_str(json.dumps({"ping": True}))
        assert await told(socket) == {"pong": True}
        since = time.monotonic() - begun
        assert await _idle_for(api) >= since
        begun = time.monotonic()
        await socket.send_bytes(b"unseen\n")
        await eventually(lambda: (tmp_path / "workspace/typed").read_bytes() == b"unseen\n", 20)
        assert await _idle_for(api) <= time.monotonic() - begun


async def test_a_preview_s_socket_that_is_only_open_is_no_use_but_what_it_carries_is(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as api, connected(api, f"{TERMINALS}/{await started(api)}") as shell:
        await told(shell)
        await shell.send_bytes(f"{sys.executable} {SERVED} > port\n".encode())
        port = tmp_path / "workspace/port"
        await eventually(lambda: port.exists() and bool(port.read_text()), 20)
        async with connected(api, f"/api/v1/preview/{int(port.read_text())}/socket") as socket:
            await _idle_for(api)
            begun = time.monotonic()
            await socket.send_str("ping")
            assert await socket.receive_str(timeout=20) == "ping"
            since = time.monotonic() - begun
            assert await _idle_for(api) >= since
            begun = time.monotonic()
            await socket.send_bytes(bytes(100_000))
            assert len(await socket.receive_bytes(timeout=20)) == 100_000
            assert await _idle_for(api) <= time.monotonic() - begun
