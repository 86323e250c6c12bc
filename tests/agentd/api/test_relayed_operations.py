"""agentd answers every operation that the platform relays, as the one table describes it."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from pydantic import TypeAdapter
from starlette.routing import Match, Route
from tests.agentd.doubles import AgentDouble, Api, serving

from greylag.agentd.agent.types import PromptResult, TurnSink
from greylag.agentd.api.app import create_app
from greylag.agentd.config import AgentdSettings
from greylag.common import agent_api
from greylag.common.agent_api import Operation

EXTENSIONS = "_goose/unstable/config/extensions"


def test_each_operation_has_a_name_of_its_own_and_asks_for_a_path() -> None:
    names = [operation.name for operation in agent_api.OPERATIONS]
    assert len(set(names)) == len(names)
    for operation in agent_api.OPERATIONS:
        assert re.fullmatch(r"(GET|POST|PUT|DELETE) /\S*", operation.request)


@pytest.mark.parametrize("operation", agent_api.OPERATIONS, ids=lambda one: one.name)
async def test_each_operation_has_a_route(operation: Operation[Any], tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        app = create_app(AgentdSettings(folder=tmp_path), api.services)
    scope = {"type": "http", "method": operation.method, "path": f"/api/v1{operation.path}"}
    found = [one for one in app.routes if one.matches(scope)[0] is Match.FULL]
    assert [one.path for one in found if isinstance(one, Route)] == [scope["path"]]


async def ask(api: Api, operation: Operation[Any], body: Any = None, **parts: str) -> Any:
    path = f"/api/v1{operation.path.format_map(parts)}"
    status, found = await api.json(operation.method, path, body)
    assert status == operation.status
    shape = TypeAdapter(operation.answer).validate_json(json.dumps(found), strict=True)
    assert asdict(shape) == found
    return found


async def test_answers_have_the_shapes_of_the_table(tmp_path: Path) -> None:
    async with serving(tmp_path) as api:
        session = (await ask(api, agent_api.CREATE_SESSION))["session_id"]
        turn = await api.turn("hello", session)
        await api.events(turn)
        listed = await ask(api, agent_api.LIST_SESSIONS)
        assert listed["sessions"] == [await ask(api, agent_api.SHOW_SESSION, session=session)]
        said = await ask(api, agent_api.LIST_MESSAGES, session=session)
        assert [one["turn_id"] for one in said["messages"]] == [turn, turn]
        turns = await ask(api, agent_api.LIST_TURNS, session=session)
        assert turns["turns"] == [await ask(api, agent_api.SHOW_TURN, turn=turn)]


async def test_extensions_and_settings_have_the_shapes_of_the_table(tmp_path: Path) -> None:
    extension = {"type": "platform", "name": "developer"}
    kept = {"extension": extension, "enabled": True, "configKey": "developer"}
    agent = AgentDouble(answers={f"{EXTENSIONS}/list": {"extensions": [kept]}})
    async with serving(tmp_path, agent) as api:
        (listed,) = (await ask(api, agent_api.LIST_EXTENSIONS))["extensions"]
        assert (listed["name"], listed["enabled"]) == ("developer", True)
        off = await ask(api, agent_api.SWITCH_EXTENSION, {"enabled": False}, extension="developer")
        assert (off["name"], off["enabled"]) == ("developer", False)
        settings = await ask(api, agent_api.LIST_SETTINGS)
        assert settings["total_count"] == len(settings["settings"]) > 0
        key = "GOOSE_TEMPERATURE"
        changed = await ask(api, agent_api.CHANGE_SETTING, {"value": 0.5}, key=key)
        assert (changed["key"], changed["value"]) == (key, 0.5)
        assert (await ask(api, agent_api.SHOW_SETTING, key=key))["value"] == 0.5
        reset = await ask(api, agent_api.RESET_SETTING, key=key)
        shown = await ask(api, agent_api.SHOW_SETTING, key=key)
        assert shown["value"] == shown["default_value"] == reset["default_value"]


async def test_a_session_s_own_settings_have_the_shapes_of_the_table(tmp_path: Path) -> None:
    models = {"_goose/unstable/providers/supported-models/list": {"models": ["b", "a", 3, "x\n"]}}
    async with serving(tmp_path, AgentDouble(answers=models)) as api:
        session = (await ask(api, agent_api.CREATE_SESSION))["session_id"]
        told = {"session": session, "key": "GOOSE_MODEL"}
        changed = await ask(api, agent_api.CHANGE_SESSION_SETTING, {"value": "a"}, **told)
        assert (changed["value"], changed["restart_required"]) == ("a", False)
        assert (await ask(api, agent_api.SHOW_SESSION, session=session))["model"] == "a"
        assert (await ask(api, agent_api.LIST_MODELS)) == {"models": ["a", "b"]}


async def test_only_a_read_of_a_turn_has_all_of_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def long(agent: AgentDouble, text: str, sink: TurnSink) -> PromptResult:
        for _ in range(3):
            await sink.update(
                {
                    "sessionUpdate": "agent_message_chunk",
                    "content": {"type": "text", "text": "x" * 500},
                    "messageId": "m",
                }
            )
        return PromptResult("end_turn", None)

    async with serving(tmp_path, AgentDouble(long)) as api:
        body = {"message": "y" * 1500, "message_id": "m1"}
        _, started = await api.json("POST", "/api/v1/turns", body)
        one = f"/api/v1/turns/{started['turn_id']}"
        await api.events(started["turn_id"])
        _, again = await api.json("POST", "/api/v1/turns", body)
        _, cancelled = await api.json("POST", f"{one}/cancel")
        _, whole = await api.json("GET", one)
        newest = AsyncMock(wraps=api.services.turns.records.newest)
        monkeypatch.setattr(api.services.turns.records, "newest", newest)
        _, listed = await api.json("GET", f"/api/v1/sessions/{started['session_id']}/turns")
        assert newest.call_args.kwargs == {"most_text": 1001}
        assert again == cancelled
        lengths = [
            (len(shown["message"]), len(shown["answer"]), shown["shortened"])
            for shown in (again, whole, listed["turns"][0])
        ]
        assert lengths == [(1500, 1000, True), (1500, 1500, False), (1000, 1000, True)]
