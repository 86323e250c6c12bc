"""A log that is followed goes on through streams that end, and gives each line once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from tests.cluster.kubernetes.api_server import PATIENCE, served
from tests.contract.store_adapters import make_project

from greylag.cluster.kubernetes import log
from greylag.cluster.kubernetes.manifests import AGENTD

ENVIRONMENT = make_project().environment
RUNS: dict[str, Any] = {"running": {}}
ENDED: dict[str, Any] = {"terminated": {"exitCode": 1}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "POLL_SECONDS", 0.01)


def at(nanoseconds: int) -> str:
    return f"2026-01-01T00:00:07.{nanoseconds:09}Z"


class Node:
    """An API server with one pod, whose container's streams say one after the other ``streams``.

    The last one stays open, and of "" there is no log yet. ``states``: as what the container is
    told at each look, the last one again and again: its state, and how often it was started again;
    ``None``: there is no pod.
    """

    def __init__(self, streams: list[str], states: list[tuple[dict[str, Any], int] | None]) -> None:
        self.streams = streams
        self.states = states
        self.asked: list[dict[str, str]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if not request.path.endswith("/log"):
            return self._pods()
        self.asked.append(dict(request.query))
        if not (told := self.streams.pop(0)):
            return web.json_response({"message": "It is waiting to start."}, status=400)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(told.encode())
        if not self.streams:
            await asyncio.sleep(PATIENCE)
        return response

    def _pods(self) -> web.Response:
        found = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if found is None:
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        state, restarts = found
        status = {"name": AGENTD, "state": state, "restartCount": restarts}
        meta = {"uid": "u", "name": "demo-api-1", "namespace": "user-ada"}
        pod = {"metadata": meta, "status": {"containerStatuses": [status]}}
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": [pod]})


async def heard(lines: AsyncIterator[bytes], last: bytes) -> list[bytes]:
    found: list[bytes] = []
    async with asyncio.timeout(PATIENCE):
        async for line in lines:
            found.append(line)
            if line == last:
                break
    return found


async def test_a_stream_that_ends_while_its_container_runs_is_opened_again_from_there() -> None:
    streams = [
        f"{at(1)} one\n{at(2)} two\n{at(3)} thr",
        f"{at(1)} one\n{at(2)} two\n",
        f"{at(1)} one\n{at(2)} two\n{at(3)} three\n{at(3)} at once\n{at(4)} \n{at(5)} last\n",
    ]
    node = Node(streams, [(RUNS, 0)])
    async with served(node.answer) as (_, api):
        lines = log.followed(api, ENVIRONMENT, 10)
        told = await heard(lines, b"last\n")
        await lines.aclose()
    assert told == [b"one\n", b"two\n", b"three\n", b"at once\n", b"\n", b"last\n"]
    assert [one.get("sinceTime") for one in node.asked] == [None, at(2), at(2)]
    assert [one.get("tailLines") for one in node.asked] == ["10", None, None]


@pytest.mark.parametrize("tail", [0, 2])
@pytest.mark.parametrize("pods", [[(RUNS, 0)], [None, None, (RUNS, 0)]])
async def test_a_log_that_begins_after_it_was_asked_for_is_given_whole(
    tail: int, pods: list[tuple[dict[str, Any], int] | None]
) -> None:
    written = f"{at(1)} one\n{at(2)} two\n{at(3)} last\n"
    node = Node([*([] if pods[0] is None else [""]), written], pods)
    async with served(node.answer) as (_, api):
        lines = log.followed(api, ENVIRONMENT, tail)
        assert await heard(lines, b"last\n") == [b"one\n", b"two\n", b"last\n"]
        await lines.aclose()
    assert node.asked[-1].get("tailLines") is None


@pytest.mark.parametrize("tail", [0, 1])
@pytest.mark.parametrize("cut", ["thr", ""])
async def test_a_stream_that_ends_in_its_first_line_gives_none_before_it(
    tail: int, cut: str
) -> None:
    before = f"{at(1)} one\n{at(2)} two\n"
    streams = [f"{at(3)} {cut}", f"{before}{at(3)} thr", f"{before}{at(3)} three\n{at(4)} last\n"]
    node = Node(streams, [(RUNS, 0)])
    async with served(node.answer) as (_, api):
        lines = log.followed(api, ENVIRONMENT, tail)
        told = await heard(lines, b"last\n")
        await lines.aclose()
    assert told == [b"three\n", b"last\n"]
    assert [one.get("sinceTime") for one in node.asked] == [None, at(3), at(2)]
    assert [one.get("tailLines") for one in node.asked] == [str(tail), None, None]


async def test_a_long_first_line_that_is_given_in_parts_has_nothing_before_it_given() -> None:
    streams = [f"{at(3)} {LONG}", f"{at(1)} one\n{at(3)} {LONG}yy\n{at(4)} last\n"]
    node = Node(streams, [(RUNS, 0)])
    async with served(node.answer) as (_, api):
        lines = log.followed(api, ENVIRONMENT, 1)
        told = b"".join(await heard(lines, b"last\n")).decode()
        await lines.aclose()
    assert told == f"{LONG}yy\nlast\n"


async def test_what_broke_off_before_the_first_line_is_not_given_when_its_container_ends() -> None:
    streams = [f"{at(3)} thr", f"{at(1)} one\n{at(2)} tw", f"{at(4)} another\n"]
    node = Node(streams, [(RUNS, 0), (RUNS, 0), (ENDED, 0), (RUNS, 1)])
    async with served(node.answer) as (_, api):
        lines = log.followed(api, ENVIRONMENT, 1)
        assert await heard(lines, b"another\n") == [b"another\n"]
        await lines.aclose()


@pytest.mark.parametrize("cut", range(1, len(at(3)) + 1))
async def test_a_stream_that_ends_before_it_told_when_its_first_line_was_written_begins_anew(
    cut: int,
) -> None:
    node = Node([at(3)[:cut], f"{at(3)} three\n{at(4)} last\n"], [(RUNS, 0)])
    async with served(node.answer) as (_, api):
        lines = log.followed(api, ENVIRONMENT, 2)
        assert await heard(lines, b"last\n") == [b"three\n", b"last\n"]
        await lines.aclose()
    assert [one.get("tailLines") for one in node.asked] == ["2", "2"]


LONG = "x" * (log._LONGEST_LINE + 64 * 1024)


@pytest.mark.parametrize("before", ["", f"{at(1)} one\n", f"{at(1)} {LONG}one\n"])
@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(LONG, f"{LONG}yy\n{at(2)} at once\n", id="it ends in the line"),
        pytest.param(f"{LONG}yy\n", f"{LONG}yy\n{at(3)} at once\n", id="it ends after the line"),
    ],
)
async def test_a_line_that_is_given_in_parts_is_given_once_by_a_stream_opened_again(
    before: str, first: str, then: str
) -> None:
    begun, again = f"{before}{at(2)} {first}", f"{before}{at(2)} {then}{at(4)} last\n"
    node = Node([begun, begun, again], [(RUNS, 0)])
    async with served(node.answer) as (_, api):
        lines = log.followed(api, ENVIRONMENT, 10)
        told = b"".join(await heard(lines, b"last\n")).decode()
        await lines.aclose()
    assert told == f"{before.removeprefix(f'{at(1)} ')}{LONG}yy\nat once\nlast\n"


async def test_a_container_that_ends_in_a_line_given_in_parts_has_its_end_given_once() -> None:
    streams = [f"{at(2)} {LONG}", f"{at(2)} {LONG}its last wor", f"{at(3)} another\n"]
    node = Node(streams, [(RUNS, 0), (RUNS, 0), (ENDED, 0), (RUNS, 1)])
    async with served(node.answer) as (_, api):
        lines = log.followed(api, ENVIRONMENT, 10)
        told = b"".join(await heard(lines, b"another\n")).decode()
        await lines.aclose()
    assert told == f"{LONG}its last woranother\n"


async def test_a_container_that_ended_is_not_asked_again_and_the_next_one_is_read_whole() -> None:
    streams = [f"{at(1)} one\n{at(2)} its last wor", f"{at(3)} another\n"]
    node = Node(streams, [(RUNS, 0), (ENDED, 0), (ENDED, 0), (RUNS, 1)])
    async with served(node.answer) as (_, api):
        lines = log.followed(api, ENVIRONMENT, 10)
        told = await heard(lines, b"another\n")
        await lines.aclose()
    assert told == [b"one\n", b"its last wor", b"another\n"]
    assert [one.get("sinceTime") for one in node.asked] == [None, None]
    assert [one.get("tailLines") for one in node.asked] == ["10", None]


async def test_a_node_that_does_not_say_when_lines_were_written_doubles_none() -> None:
    node = Node(["one\n", "another\n"], [(RUNS, 0), (RUNS, 0), (RUNS, 0), (RUNS, 1)])
    async with served(node.answer) as (_, api):
        lines = log.followed(api, ENVIRONMENT, 10)
        assert await heard(lines, b"another\n") == [b"one\n", b"another\n"]
        await lines.aclose()


async def test_the_last_lines_are_given_as_they_are() -> None:
    node = Node([f"{at(1)} of its own\nno end", ""], [(RUNS, 0)])
    async with served(node.answer) as (_, api):
        told = [line async for line in log.last_lines(api, ENVIRONMENT, 3)]
    assert told == [f"{at(1)} of its own\n".encode(), b"no end"]
    asked = {"container": AGENTD, "follow": "false", "previous": "false", "tailLines": "3"}
    assert node.asked == [asked]
