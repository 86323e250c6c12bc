"""The scripted model's grammar: what a message makes it do."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greylag.agentd.model import scripted
from greylag.agentd.model.scripted import Directive, deltas, plan, tool_calls

CONTEXT = "\n<turn-context>\n<working-directory>/w</working-directory>\n</turn-context>"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def spoken(messages: list[dict[str, Any]]) -> str:
    said = [delta for step in plan(messages) for delta in deltas(step)]
    return "".join(delta.get("content", "") for delta in said)


CALLED = {"role": "assistant", "tool_calls": [{"id": "c"}]}


def test_ordinary_words_get_a_demonstration_that_tells_how_to_set_a_provider() -> None:
    said = spoken([user("What can you do?" + CONTEXT)])
    assert '"What can you do?"' in said
    assert "demonstration" in said
    for name in ("GREYLAG_MODEL_URL", "GREYLAG_MODEL_KEY", "GREYLAG_MODEL"):
        assert name in said


def test_run_calls_the_shell_and_then_tells_the_result() -> None:
    messages = [user("run: ls -la" + CONTEXT)]
    calls = [call for step in plan(messages) for call in tool_calls(step, "shell", "call")]
    assert calls[0]["function"] == {"name": "shell", "arguments": '{"command": "ls -la"}'}
    messages += [CALLED, {"role": "tool", "content": "total 0"}]
    assert "total 0" in spoken(messages)


def test_each_tool_directive_ends_a_stage() -> None:
    script = [user("[[text a]] [[tool ls]] [[text b]] [[tools x ;; y]] [[text c]]")]
    result = {"role": "tool", "content": "out"}
    assert spoken(script) == "a"
    assert spoken([*script, CALLED, result]) == "b"
    assert spoken([*script, CALLED, result, CALLED, result, result]) == "c"


def test_only_the_last_of_joined_messages_is_the_script() -> None:
    assert spoken([user(f"[[hang]]{CONTEXT}\n[[text now]]{CONTEXT}")]) == "now"


def test_words_in_brackets_that_are_no_directive_are_ordinary_words() -> None:
    assert "[[wiki link]]" in spoken([user("see [[wiki link]]")])


def test_content_in_parts_is_read_too() -> None:
    parts = [{"type": "text", "text": "[[text yes]]"}, {"type": "image_url"}]
    assert spoken([{"role": "user", "content": parts}]) == "yes"


def test_sizes_are_exact() -> None:
    assert len(spoken([user("[[bytes 10000]]")])) == 10000
    assert spoken([user("[[chunks n=3 size=4]]")]) == "000 001 002 "


@pytest.mark.parametrize(
    "script",
    [
        "[[bytes 400000000]]",
        "[[bytes 16000000]]" * 1000,
        "[[bytes 16000000]] [[chunks n=100000 size=400]]",
        "[[chunks n=900000000 size=900000000]]",
        "[[chunks n=999999999]]" * 1000,
        f"[[chunks n={'9' * 5000}]]",
    ],
)
def test_an_answer_is_bounded_in_characters_and_in_chunks(script: str) -> None:
    chunks = size = 0
    for step in plan([user(script)]):
        for delta in deltas(step):
            chunks += 1
            size += len(delta["content"])
    assert size <= scripted.MOST_ANSWER
    assert chunks <= 300_000


@pytest.mark.parametrize(
    "script",
    ["[[status x]]", "[[bytes x]]", f"[[bytes {'9' * 5000}]]", "[[chunks n=x size=-1]]"],
)
def test_a_number_that_is_none_counts_as_left_out(script: str) -> None:
    assert len(spoken([user(script)])) <= 50


@pytest.mark.parametrize(
    "piece",
    ["[[a ", "[[a", "<turn-context>", "\n", " \n\n", "run: ", "\n\nrun:", "a", "a=", "[[text ]]"],
)
def test_reading_a_script_is_linear(piece: str) -> None:
    text = "x" + piece * (200_000 // len(piece)) + "x"
    begun = time.process_time()
    plan([user(text)])
    plan([user(f"[[text {text}]]")])
    assert time.process_time() - begun < 2  # squared it is a minute and more


def test_several_tools_are_called_at_once_with_their_own_ids() -> None:
    calls = tool_calls(Directive("tools", "a ;; b"), "developer__shell", "call_1")
    assert [call["id"] for call in calls] == ["call_1_0", "call_1_1"]
    assert {call["function"]["name"] for call in calls} == {"developer__shell"}


@settings(deadline=None)  # a loaded machine may take its time
@given(st.text())
def test_any_text_at_all_has_an_answer(text: str) -> None:
    steps = plan([user(text)])
    assert steps
    assert steps == plan([user(text)])
