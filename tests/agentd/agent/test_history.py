"""What is kept of an export of goose's when its history is cut, and where it cannot be."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, call

import pytest

from greylag.agentd.agent.history import beginning, restore
from greylag.agentd.agent.types import AgentRefusedError, AgentSetup, HistoryFixedError

SEEN = {"userVisible": True, "agentVisible": True}
CONTEXT = {"userVisible": False, "agentVisible": True, "turnContext": True}
OLD = {"userVisible": True, "agentVisible": False}
SUMMARY = {"userVisible": False, "agentVisible": True}


def said(role: str, text: str, metadata: Any = SEEN) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}], "metadata": metadata}


def turn(text: str, metadata: Any = SEEN) -> list[dict[str, Any]]:
    """Return the messages that goose keeps of a turn: two of them people see."""
    context = CONTEXT if metadata is SEEN else {**CONTEXT, "agentVisible": False}
    return [
        said("user", text, metadata),
        said("user", "<turn-context>", context),
        said("assistant", "yes", metadata),
    ]


class Goose:
    """Answers as goose does for a session with these messages."""

    def __init__(self, *messages: dict[str, Any], **answers: Any) -> None:
        shown = sum(one["metadata"]["userVisible"] for one in messages)
        beside = {"usage": {"total_tokens": 9}, "extension_data": {"todo.v0": {}}, "name": "t"}
        data = json.dumps({"conversation": messages, **beside})
        self.answers: dict[str, Any] = {
            "info": {"session": {"_meta": {"messageCount": shown}}},
            "export": {"data": data},
            **answers,
        }

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        assert params == {"sessionId": "s"}
        return self.answers[method.rpartition("/")[2]]


async def cut(goose: Goose, kept: int) -> list[str] | None:
    """Return the texts that stay, without those that say the time."""
    exported = await beginning(goose, "s", kept)  # type: ignore[arg-type] # all that it calls
    if exported is None:
        return None
    assert not {"usage", "extension_data"} & exported.keys()
    assert exported["name"] == "t"
    texts = [one["content"][0]["text"] for one in exported["conversation"]]
    assert texts.count("<turn-context>") == sum(text.isdigit() for text in texts)
    return [text for text in texts if text != "<turn-context>"]


async def test_what_precedes_a_turn_stays_with_all_that_goes_with_it() -> None:
    goose = Goose(*turn("1"), *turn("2"), *turn("3"))
    assert await cut(goose, 0) == []
    assert await cut(goose, 2) == ["1", "yes"]
    assert await cut(goose, 4) == ["1", "yes", "2", "yes"]
    assert await cut(goose, 6) is None
    assert await cut(goose, 8) is None


async def test_a_summary_stays_when_it_is_from_before_the_turn() -> None:
    summary = said("user", "what was said", SUMMARY)
    goose = Goose(*turn("1", OLD), summary, *turn("2"), *turn("3"))
    assert await cut(goose, 4) == ["1", "yes", "what was said", "2", "yes"]
    with pytest.raises(HistoryFixedError, match="has summarised what was said before this turn"):
        await cut(Goose(*turn("1", OLD), *turn("2", OLD), summary, *turn("3")), 2)
    assert await cut(Goose(*turn("1"), *turn("2"), summary, *turn("3")), 2) == ["1", "yes"]
    # A command's answer is never the model's to see: nothing was summarised.
    assert await cut(Goose(*turn("1", OLD), *turn("2")), 2) == ["1", "yes"]


@pytest.mark.parametrize(
    "answers",
    [
        {"info": None},
        {"info": {"session": {}}},
        {"info": {"session": {"_meta": {"messageCount": "many"}}}},
        {"info": {"session": {"_meta": {"messageCount": -1}}}},
        {"info": {"session": {"_meta": {"messageCount": 10**30}}}},
        {"info": {"session": {"_meta": {"messageCount": float("inf")}}}},
        {"export": {"data": '{"conversation": [{"meta... (shortened)'}},
        {"export": {"data": json.dumps({"conversation": 3})}},
        {"export": {"data": json.dumps({"conversation": [{"metadata": 1}]})}},
        {"export": {"data": json.dumps([])}},
        {"export": {"data": "[" * 100_000}},
        {"export": {}},
        {"export": {"data": None}},
    ],
)
async def test_what_cannot_be_read_is_not_cut(answers: dict[str, Any]) -> None:
    with pytest.raises(HistoryFixedError, match="cannot be read, or is too long"):
        await cut(Goose(*turn("1"), *turn("2"), **answers), 2)


async def test_a_history_that_another_wrote_is_not_cut() -> None:
    messages = [*turn("1"), said("assistant", "not asked"), *turn("2")]
    with pytest.raises(HistoryFixedError, match="not as it was when this turn began"):
        await cut(Goose(*messages), 2)


async def test_what_extensions_keep_of_a_session_is_restored_but_not_which_they_are() -> None:
    goose = AsyncMock()
    goose.request.return_value = {"sessionId": "new"}
    kept = {"todo.v0": {"content": "milk"}, "enabled_extensions.v0": {"extensions": ["a"]}}
    entry = {"extension": {"name": "todo"}}
    setup = AgentSetup(Path(), Path(), Path())
    await restore(goose, setup, {"extension_data": kept}, [entry])
    said = json.loads(goose.request.call_args_list[0].args[1]["input"])
    now = {"enabled_extensions.v0": {"extensions": [{"name": "todo"}]}}
    assert said["extension_data"] == kept | now


@pytest.mark.parametrize(("had", "chosen"), [("b", ["b"]), ("a", []), (None, [])])
async def test_a_session_is_restored_with_the_model_that_it_had(
    had: str | None, chosen: list[str]
) -> None:
    goose = AsyncMock()
    loaded = {"configOptions": [{"id": "mode"}, {"id": "model", "currentValue": "a"}]}
    goose.request.side_effect = [{"sessionId": "new"}, loaded, {}]
    await restore(
        goose, AgentSetup(Path(), Path(), Path()), {"model_config": {"model_name": had}}, []
    )
    calls = [one.args for one in goose.request.call_args_list]
    told = [params for method, params in calls if method == "session/set_config_option"]
    assert told == [{"sessionId": "new", "configId": "model", "value": one} for one in chosen]


async def test_an_import_that_cannot_be_loaded_is_archived() -> None:
    goose = AsyncMock()
    goose.request.side_effect = [{"sessionId": "new"}, AgentRefusedError(-32603, "no"), {}]
    with pytest.raises(AgentRefusedError):
        await restore(goose, AgentSetup(Path(), Path(), Path()), {}, [])
    archive = call("_goose/unstable/session/archive", {"sessionId": "new"})
    assert goose.request.call_args_list[-1] == archive
