"""Names that users gave are looked up apart from all others."""

import asyncio
import socket
import threading
from typing import Any

import pytest

from greylag.common.public_hosts import NamedHosts, NotPublicError, PublicResolver


async def test_name_servers_that_never_answer_hold_none_of_the_loops_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()

    def silent(*_: Any) -> list[Any]:
        answers.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    resolver = PublicResolver(NamedHosts())
    waiting = [asyncio.create_task(resolver.resolve(f"{n}.test", 443)) for n in range(50)]
    try:
        await asyncio.wait(waiting, timeout=0.05)
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(lambda: "free") == "free"
    finally:
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        answers.set()
        await resolver.close()


async def test_what_was_checked_is_what_is_connected_to() -> None:
    resolver = PublicResolver(NamedHosts(["localhost:8080"]))
    found = await resolver.resolve("localhost", 8080)
    assert {one["host"] for one in found} <= {"127.0.0.1", "::1"}
    assert {one["port"] for one in found} == {8080}
    with pytest.raises(NotPublicError):
        await resolver.resolve("localhost", 8081)
    await resolver.close()
