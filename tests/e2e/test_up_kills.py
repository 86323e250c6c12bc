"""kill -9 of each program at random moments of activation, turn, deletion and writing of files.

``GREYLAG_KILL_ROUNDS=7`` for a longer run.
"""

import asyncio
import os
import random
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil
import pytest
from tests.e2e.product import PROJECTS, Event, Product, ids_of, product, real_goose

pytestmark = real_goose

ROUNDS = int(os.environ.get("GREYLAG_KILL_ROUNDS", "0"))  # 0: each victim once
FILE_SIZE = 300_000
LONGEST = 1.2  # seconds from a round's beginning to its kill
SLEEP = "run: sleep 300 & echo started"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("verbs", [("up",), ("serve", "worker")], ids=["up", "serve-and-worker"])
async def test_record_processes_and_answers_agree_after_any_kill(
    tmp_path: Path, verbs: tuple[str, ...]
) -> None:
    rng = random.Random(f"kills {verbs}")  # noqa: S311 - picks victims and moments
    async with product(tmp_path, *verbs, GOOSE_MODE="auto", GREYLAG_LEASE_SECONDS="2") as up:
        victims = [*verbs, "agentd", "execd", "goose"]
        rounds = ROUNDS or len(victims)
        for number in range(rounds):
            await _round(up, number, victims[number % len(victims)], rng.uniform(0, LONGEST))
        _, listed = await up.call("GET", PROJECTS)
        assert {one["project_id"] for one in listed["projects"]} == {
            f"{kind}{number}" for number in range(rounds) for kind in ("wake", "turn")
        }


class Files:
    """Files of a project that are written again and again, each time with another number."""

    def __init__(self, up: Product, path: str) -> None:
        self.ended = False
        self._up = up
        self._url = f"{path}/files/content?path="
        self._acknowledged: dict[str, int] = {}

    async def write(self) -> None:
        """Write until ``ended``, whatever is killed meanwhile."""
        number = 0
        while not self.ended:
            name = f"file{number % 3}"
            content = number.to_bytes(4, "big") * (FILE_SIZE // 4)
            with suppress(aiohttp.ClientError):
                async with self._up.http.put(self._url + name, data=content) as answer:
                    if answer.ok:
                        self._acknowledged[name] = number
            number += 1
            await asyncio.sleep(0.02)

    async def agree(self) -> None:
        """See that each holds what was acknowledged, or something later, and holds it whole."""
        assert self._acknowledged, "nothing was written"
        for name, number in self._acknowledged.items():
            async with self._up.http.get(self._url + name) as answer:
                content = await answer.read()
            assert len(content) == FILE_SIZE
            assert set(memoryview(content).cast("I")) == {int.from_bytes(content[:4], "little")}
            assert int.from_bytes(content[:4], "big") >= number


async def _round(up: Product, number: int, victim: str, moment: float) -> None:
    """Activate one project, message another, delete a third; kill; see that all end well."""
    waking = await up.project(f"wake{number}", active=False)
    talking = await up.project(f"turn{number}")
    leaving = await up.project(f"gone{number}")
    await up.say(leaving, SLEEP)
    marks_were = up.processes()
    assert (await up.call("POST", f"{waking}/activate", prefer="respond-async"))[0] == 202
    message = "[[delay ms=20]] [[chunks n=40 size=5]]"
    turn = asyncio.create_task(up.follow(talking, message, f"m{number}"), name="turn")
    deleting = asyncio.create_task(_delete(up, leaving), name="deletion")
    files = Files(up, talking)
    writing = asyncio.create_task(files.write(), name="writing")
    await asyncio.sleep(moment)
    await _kill(up, victim)
    acknowledged = await deleting
    if not acknowledged:
        assert (await up.call("DELETE", leaving))[0] in {204, 404}
    events = await turn
    files.ended = True
    await writing
    assert await up.settled(waking) == "active"
    assert await up.settled(leaving) is None
    assert await up.settled(talking) == "active"
    await _agrees(up, talking, events)
    await files.agree()
    assert not [one for one in marks_were & up.processes() if "sleep 300" in _command(one.pid)]
    for path in (waking, talking):
        assert (await up.call("POST", f"{path}/deactivate"))[1]["status"] == "inactive"
    assert not up.processes()


async def _delete(up: Product, path: str) -> bool:
    """Ask for a deletion; return whether it was acknowledged."""
    with suppress(aiohttp.ClientError):
        return (await up.call("DELETE", path))[0] == 204
    return False


async def _kill(up: Product, victim: str) -> None:
    if victim in up.programs:
        await up.kill(victim)
        await up.start(victim)
        return
    for one in up.processes():
        command = _command(one.pid)
        if _is_goose(command):
            chosen = victim == "goose"
        elif _is_execd(command):
            chosen = victim in {"agentd", "execd"}
        else:
            chosen = victim == "agentd"
        if chosen and "bwrap" not in command:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(one.pid).kill()


def _is_goose(command: str) -> bool:
    return command.endswith("goose acp")


def _is_execd(command: str) -> bool:
    return "greylag.execd" in command or "greylag/execd" in command


def _command(pid: int) -> str:
    with suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


async def _agrees(up: Product, path: str, events: list[Event]) -> None:
    """The turn is whole, or ended by a clear error, and the history has what was asked."""
    turn = str(events[0].id).rpartition("-")[0]
    assert ids_of(events) == [f"{turn}-{n}" for n in range(len(events))]
    assert events == await up.rest_of(path, turn)
    if events[-1].content["stop_reason"] == "error":
        assert events[-2].type == "error"
        assert events[-2].content["code"] in {"agent_restarted", "agent_unavailable"}
    else:
        assert sum(event.type == "message" for event in events) == 40
    session = events[0].content["session_id"]
    _, history = await up.call("GET", f"{path}/sessions/{session}/messages")
    assert history["messages"][0]["role"] == "User"
    text = await up.follow(path, "[[text and on]]", f"after {turn}")
    assert text[-1].content["stop_reason"] == "end_turn"
