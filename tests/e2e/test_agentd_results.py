"""What tools give that is not text, or too large, with the real goose and a real MCP server."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.agentd_process import Agentd, agentd
from tests.e2e.data.results_server import PNG

from greylag.agentd.agent.types import find_agent

pytestmark = [
    pytest.mark.goose,
    pytest.mark.skipif(
        find_agent(None, os.environ).kind != "goose", reason="goose is not installed"
    ),
]
SERVER = Path(__file__).parent / "data/results_server.py"
RESULTS = {
    "image": {"Ok": [{"type": "image", "data": PNG, "mimeType": "image/png"}]},
    "embedded": {"Ok": [{"type": "resource", "resource": {"uri": "file:///a", "text": "inside"}}]},
    "data": {"Ok": [], "data": {"answer": 42}},
    "failed": {
        "Err": "no luck",
        "content": [{"type": "image", "data": PNG, "mimeType": "image/png"}],
    },
    "36000000": {
        "Ok": [
            {"type": "text", "text": "[image/png of 27000000 bytes, which is too large to keep]"}
        ]
    },
}


async def given(api: Agentd, session: str, kind: str) -> dict[str, Any]:
    words = f'[[text Let me look.]] [[call results__give {{"kind":"{kind}"}}]]'
    events = await api.events(await api.turn(words, session))
    assert events[-1]["content"]["stop_reason"] == "end_turn", events[-2:]
    (result,) = [e["content"]["result"] for e in events if e["type"] == "tool_response"]
    return dict(result)


async def test_every_result_has_its_form_and_36_megabytes_harm_nobody(tmp_path: Path) -> None:
    async with agentd(tmp_path) as api:
        server = {"name": "results", "type": "stdio", "description": "", "enabled": True}
        server |= {"cmd": sys.executable, "args": [str(SERVER)]}
        assert (await api.json("POST", "/api/v1/extensions", server))[0] == 201
        other = await api.turn("[[delay ms=30]] [[chunks n=150 size=5]]")
        goose = api.goose().pid
        for kind, result in RESULTS.items():
            assert await given(api, await api.session(), kind) == result
        beside = await api.events(other)
        assert beside[-1]["content"]["stop_reason"] == "end_turn"
        assert api.goose().pid == goose


async def test_what_is_said_after_a_tool_is_a_paragraph_in_all_that_is_read(
    tmp_path: Path,
) -> None:
    async with agentd(tmp_path) as api:
        session = await api.session()
        words = "[[text Let me look.]] [[tool true]] [[text Nothing there.]]"
        await api.events(await api.turn(words, session))
        _, history = await api.json("GET", f"/api/v1/sessions/{session}/messages")
        assert history["messages"][1]["content"] == "Let me look.\n\nNothing there."
        async with api.http.get(f"{api.base}/api/v1/sessions/{session}/export") as answer:
            assert "Let me look.\n\nNothing there." in await answer.text()
        body = {"message": words}
        _, sent = await api.json("POST", f"/api/v1/sessions/{session}/send", body)
        assert sent["assistant_response"] == "Let me look.\n\nNothing there."
