"""agentd in a container's conditions: a read-only root, a nameless user, a disk that fills."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.e2e.agentd_process import Agentd, agentd
from tests.ports import free_port

from greylag.agentd.agent.types import find_agent

BWRAP = shutil.which("bwrap") or "bwrap"
VOLUME = Path("/mnt")
MIB = 1024 * 1024
BOX = (
    *(BWRAP, "--unshare-user", "--uid", "12345", "--gid", "12345", "--cap-drop", "ALL"),
    *("--unshare-pid", "--as-pid-1", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
    *("--size", str(48 * MIB), "--tmpfs", str(VOLUME)),
    # goose's own files have room of their own: it fails on a full disk before we can.
    *("--tmpfs", str(VOLUME / "home")),
)


def works() -> bool:
    """Tell whether bubblewrap can do this here."""
    try:
        tried = subprocess.run([*BOX, "true"], capture_output=True, timeout=20, check=False)  # noqa: S603 - our own arguments
    except OSError:
        return False
    return tried.returncode == 0


pytestmark = [
    pytest.mark.goose,
    pytest.mark.skipif(
        find_agent(None, os.environ).kind != "goose", reason="goose is not installed"
    ),
    pytest.mark.skipif(not works(), reason="bubblewrap does not work here"),
]


async def run(api: Agentd, command: str, session: str) -> tuple[str, list[str]]:
    """Let the agent run a command; return what it printed, and the codes of the turn's errors."""
    events = await api.events(await api.turn(f"[[tool {command}]]", session))
    assert events[-1]["type"] == "complete", events[-3:]
    printed = [json.dumps(e["content"]["result"]) for e in events if e["type"] == "tool_response"]
    return "".join(printed), [e["content"]["code"] for e in events if e["type"] == "error"]


async def test_a_box_of_a_user_without_a_name_is_enough_and_hides_every_secret() -> None:
    settings = {"GOOSE_API_PORT": str(free_port()), "GREYLAG_MODEL_KEY": "sk-very-secret"}
    async with agentd(VOLUME, *BOX, **settings) as api:
        session = await api.session()
        printed, _ = await run(api, "id -u; touch /etc/x || echo refused; touch here; ls", session)
        assert all(word in printed for word in ("12345", "refused", "here"))
        printed, _ = await run(api, "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline", session)
        assert "GREYLAG_PROCESS_GROUP" in printed
        assert "sk-very-secret" not in printed
        assert "test-token" not in printed
        printed, _ = await run(api, "cat /proc/1/environ /proc/1/maps /proc/1/mem", session)
        assert printed.count("denied") == 3


async def test_a_full_disk_ends_the_turn_with_an_error_and_agentd_goes_on() -> None:
    reserve = VOLUME / "state/turns/reserve"
    free = f"$(df --output=avail -B1 {VOLUME} | tail -1)"
    # Given up when the journal meets the full disk; a while later the user makes room.
    make_room = (
        f"(while [ -e {reserve} ]; do sleep 0.1; done; sleep 0.5; rm fill) >/dev/null 2>&1 &"
    )
    async with agentd(VOLUME, *BOX, GOOSE_API_PORT=str(free_port())) as api:
        session = await api.session()
        fill = f"head -c $(({free} - 1500000)) /dev/zero > fill"
        _, errors = await run(api, f"{fill}; {make_room}", session)
        assert errors == []
        events = await api.events(await api.turn("[[bytes 3000000]]", session))
        assert [event["type"] for event in events[-2:]] == ["error", "complete"]
        assert events[-2]["content"]["code"] == "journal_failed"
        assert "No space left" in events[-2]["content"]["error"]
        turn = events[0]["content"]["turn_id"]
        assert [event["id"] for event in events] == [f"{turn}-{n}" for n in range(len(events))]
        assert (await api.json("GET", f"/api/v1/turns/{turn}"))[1]["status"] == "error"
        async with asyncio.timeout(20):
            while not await answers(api, "[[bytes 1000000]]"):  # noqa: ASYNC110 - waits for another process
                await asyncio.sleep(0.2)


async def answers(api: Agentd, message: str) -> bool:
    """Tell whether a message is answered; until there is room, it is refused."""
    status, turn = await api.json("POST", "/api/v1/turns", {"message": message})
    if status != 201:
        assert turn["code"] == "storage_failed"
        return False
    events = await api.events(turn["turn_id"])
    return bool(events[-1]["content"].get("stop_reason") == "end_turn")
