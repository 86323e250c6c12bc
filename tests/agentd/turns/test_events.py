import json
from pathlib import Path
from typing import Any

import pytest
from tests.agentd.doubles import chunk

from greylag.agentd.agent.types import (
    AgentRefusedError,
    ModelFailure,
    PermissionRequest,
    PromptResult,
)
from greylag.agentd.shortening import mark
from greylag.agentd.turns.errors import TurnError, provider_error, refusal, with_provider_code
from greylag.agentd.turns.events import Translator, TurnEvent

DATA = Path(__file__).parent / "data"


def play(name: str) -> tuple[list[TurnEvent], TurnError | None]:
    """Feed a capture of the real goose to a translator."""
    translator = Translator("s1", lambda: 1.0)
    events: list[TurnEvent] = []
    for line in (DATA / name).read_text().splitlines():
        message = json.loads(line)
        match message.get("method"):
            case "session/update" | "_goose/unstable/session/update":
                events += translator.update(message["params"]["update"])
            case "session/request_permission":
                call = message["params"]["toolCall"]
                request = PermissionRequest(call["toolCallId"], call["title"], call["rawInput"])
                events.append(translator.confirmation("c1", request, 60))
            case None:
                result = message["result"]
                late, error = translator.finish(
                    PromptResult(result["stopReason"], result.get("usage"))
                )
                return events + late, error
    raise AssertionError("the capture has no end")


def test_an_allowed_tool_call_of_the_real_goose() -> None:
    events, error = play("tool_allowed.jsonl")
    assert error is None
    assert [event.type for event in events] == [
        "message",
        "tool_request",
        "tool_confirmation",
        "tool_notification",
        "tool_response",
        *["message"] * 5,
    ]
    assert events[0].content == {
        "role": "Assistant",
        "content": "I will run a tool. ",
        "content_type": "text",
        "timestamp": events[0].content["timestamp"],
        "session_id": "s1",
    }
    assert events[0].content["timestamp"] > 1_700_000_000
    request = events[1].content
    assert (request["tool_name"], request["arguments"]) == (
        "shell",
        {"command": "echo allow_once"},
    )
    assert events[2].content["tool_name"] == "shell"
    assert events[2].content["needs_confirmation"] is True
    assert events[2].content["decisions"] == ["allow_once", "reject_once"]
    assert events[2].content["expires_at"] == 61
    assert events[3].content["method"] == "notifications/live_output"
    assert events[4].content["result"] == {"Ok": [{"type": "text", "text": "allow_once"}]}
    assert events[4].content["is_error"] is False


def test_a_declined_tool_call_of_the_real_goose() -> None:
    events, error = play("tool_declined.jsonl")
    assert error is None
    response = next(event for event in events if event.type == "tool_response")
    assert response.content["is_error"] is True
    assert response.content["result"]["Err"].startswith("The user has declined to run this tool.")


def test_a_provider_failure_of_the_real_goose_is_an_error_and_no_message() -> None:
    events, error = play("provider_500.jsonl")
    assert events == []
    assert error is not None
    assert error.code == "model_unavailable"
    assert error.text.endswith("stub says 500")


def error_chunk(text: str) -> dict[str, Any]:
    return chunk(text, "msg_96baff26-aa47-4064-b0ec-c820621afcd4")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Ran into this error: Rate limit exceeded: slow down.", "model_rate_limited"),
        ("Ran into this error: Server error: 503.", "model_unavailable"),
        ("Ran into this error: Request failed: Bad request (400): no.", "model_failed"),
        ("Network error: Could not connect to 127.0.0.1:1 — check.", "model_unavailable"),
        ("Network error: Stream decode error: eof.", "model_unavailable"),
        ("The model returned an empty response. Please resend.", "model_empty_response"),
        ("Ran into this error trying to compact: Rate limit exceeded: no.", "model_rate_limited"),
        ("Ran into this error trying to compact: Failed to compact: long.", "context_exceeded"),
        ("Ran into this error trying to compact: Execution error: none.", "model_failed"),
        ("Rate limit exceeded: no", "model_rate_limited"),
        ("Failed to compact: the base prompt is too long.", "context_exceeded"),
    ],
)
def test_goose_texts_about_the_provider_become_codes(text: str, code: str) -> None:
    translator = Translator("s1", lambda: 1.0)
    assert translator.update(error_chunk(text)) == []
    late, error = translator.finish(PromptResult("end_turn", None))
    assert late == []
    assert error is not None
    assert error.code == code


def test_a_model_that_only_quotes_such_a_text_is_believed() -> None:
    translator = Translator("s1", lambda: 1.0)
    quoted = "Network error: is what you would see."
    assert translator.update(error_chunk(quoted)) == []
    usage = {"sessionUpdate": "message_usage", "usage": {"totalTokens": 1}}
    assert [event.content["content"] for event in translator.update(usage)] == [quoted]
    assert translator.finish(PromptResult("end_turn", None)) == ([], None)
    ordinary = translator.update(chunk("Network error: said the model"))
    assert [event.type for event in ordinary] == ["message"]


def test_a_held_text_is_not_lost_when_the_turn_is_cancelled() -> None:
    translator = Translator("s1", lambda: 1.0)
    translator.update(error_chunk("Network error: x"))
    late, error = translator.finish(PromptResult("cancelled", None))
    assert [event.type for event in late] == ["message"]
    assert error is None


def test_an_empty_response_is_an_error_even_when_usage_follows() -> None:
    translator = Translator("s1", lambda: 1.0)
    translator.update(error_chunk("The model returned an empty response. Please resend."))
    assert translator.update({"sessionUpdate": "message_usage", "usage": {}}) == []
    _, error = translator.finish(PromptResult("end_turn", None))
    assert error is not None


def test_an_overfull_context_is_told_and_fails_the_turn() -> None:
    translator = Translator("s1", lambda: 1.0)

    def status(kind: str, message: str) -> list[str]:
        update = {"sessionUpdate": "status_message", "status": {"type": kind, "message": message}}
        return [event.type for event in translator.update(update)]

    assert status("notice", "Context limit reached. Compacting to continue conversation...") == [
        "context_exceeded"
    ]
    assert status("progress", "goose is compacting the conversation...") == ["history_update"]
    done = [event.type for event in translator.update(chunk("Compaction complete"))]
    assert done == ["message", "history_update"]
    assert status("notice", "Something else.") == ["status"]
    assert translator.finish(PromptResult("end_turn", None)) == ([], None)
    advice = "Try using a shorter message."  # which the error has a hint for
    assert status("notice", f"Unable to continue: Context limit still exceeded. {advice}") == []
    _, error = translator.finish(PromptResult("end_turn", None))
    assert error is not None
    assert error.code == "context_exceeded"
    assert error.text == "Unable to continue: Context limit still exceeded."


@pytest.mark.parametrize("status", [None, "text", {"message": 1}, {"type": "notice"}])
def test_a_status_without_words_and_a_count_that_is_no_number_tell_nothing(status: Any) -> None:
    translator = Translator("s1", lambda: 1.0)
    for count in (3, "4"):
        update = {"sessionUpdate": "session_info_update", "_meta": {"messageCount": count}}
        assert translator.update(update) == []
    assert translator.update({"sessionUpdate": "status_message", "status": status}) == []
    (told,) = translator.update({"sessionUpdate": "message_usage", "usage": {"isCompaction": True}})
    assert told.content["message_count"] == 3


THOUGHT = {**chunk("Let me "), "sessionUpdate": "agent_thought_chunk"}


@pytest.mark.parametrize("silence", [THOUGHT, chunk(" \n ")])
def test_a_turn_without_a_word_or_a_tool_is_no_silent_success(silence: dict[str, Any]) -> None:
    def ended(*updates: dict[str, Any], reason: str = "end_turn") -> TurnError | None:
        translator = Translator("s1", lambda: 1.0)
        for one in updates:
            translator.update(one)
        return translator.finish(PromptResult(reason, None))[1]

    failed = ended(silence)
    assert failed is not None
    assert failed.code == "model_empty_response"
    assert ended(silence, chunk("Done.")) is None
    assert ended({"sessionUpdate": "tool_call", "toolCallId": "x"}, silence) is None
    assert ended(silence, reason="cancelled") is None


def test_what_goose_adds_to_an_answer_is_a_paragraph_of_its_own() -> None:
    translator = Translator("s1", lambda: 1.0)
    translator.update(chunk("half an answ"))
    added = {**chunk("The limit is reached."), "_meta": {"goose": {"fallbackContent": True}}}
    (event,) = translator.update(added)
    assert event.content["content"] == "\n\nThe limit is reached."
    (alone,) = Translator("s1", lambda: 1.0).update(added)
    assert alone.content["content"] == "The limit is reached."


def test_thinking_has_its_own_event() -> None:
    update = {**chunk("Let me "), "sessionUpdate": "agent_thought_chunk"}
    (event,) = Translator("s1", lambda: 1.0).update(update)
    assert event.type == "thinking"
    assert (event.content["message"], event.content["signature"]) == ("Let me ", "")


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"sessionUpdate": 7},
        {"sessionUpdate": "agent_message_chunk"},
        {"sessionUpdate": "agent_message_chunk", "content": {"type": "image", "data": "x"}},
        {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": None}},
        {"sessionUpdate": "tool_call_update", "toolCallId": "x"},
        {"sessionUpdate": "tool_call_update", "status": "in_progress", "_meta": []},
        {"sessionUpdate": "session_info_update", "_meta": {"messageCount": "many"}},
        {"sessionUpdate": "plan", "entries": []},
    ],
)
def test_updates_that_mean_nothing_to_clients_make_no_event(update: dict[str, Any]) -> None:
    assert Translator("s1", lambda: 1.0).update(update) == []


def test_an_unknown_tool_is_still_a_request_and_a_failed_response() -> None:
    translator = Translator("s1", lambda: 1.0)
    (request,) = translator.update(
        {"sessionUpdate": "tool_call", "toolCallId": "x", "title": "error"}
    )
    assert (request.content["tool_name"], request.content["arguments"]) == ("error", {})
    failed = {"sessionUpdate": "tool_call_update", "toolCallId": "x", "status": "failed"}
    (response,) = translator.update(failed)
    assert response.content["result"] == {"Err": "The tool failed."}


def test_a_long_id_or_name_is_cut_alike_everywhere_and_differs_from_another() -> None:
    translator = Translator("s1", lambda: 1.0)
    about = {"toolCallId": f"call{'x' * 1000}", "title": f"tool{'y' * 1000}"}
    (request,) = translator.update({"sessionUpdate": "tool_call", **about})
    done = {"sessionUpdate": "tool_call_update", "status": "completed", **about}
    (response,) = translator.update(done)
    note = {"status": "in_progress", "_meta": {"toolNotification": {"type": "message"}}}
    (notification,) = translator.update(done | note)
    question = PermissionRequest(about["toolCallId"], about["title"], {})
    asked = translator.confirmation("c", question, 60)
    call_id, name = request.content["id"], request.content["tool_name"]
    assert (len(call_id), len(name)) == (200, 200)
    assert call_id.startswith("callxxx")
    assert response.content["id"] == call_id
    assert notification.content["tool_call_id"] == call_id
    assert (asked.content["tool_call_id"], asked.content["tool_name"]) == (call_id, name)
    other = PermissionRequest(about["toolCallId"] + "z", about["title"] + "z", {})
    asked = translator.confirmation("c", other, 60)
    assert call_id != asked.content["tool_call_id"]
    assert name != asked.content["tool_name"]


def test_the_provider_knows_the_code_better_than_the_text() -> None:
    guessed = TurnError("model_failed", "Ran into something")
    for status, code in [
        (401, "model_unauthorized"),
        (403, "model_unauthorized"),
        (429, "model_rate_limited"),
        (402, "model_rate_limited"),
        (500, "model_unavailable"),
        (None, "model_unavailable"),
        (400, "model_failed"),
    ]:
        assert with_provider_code(guessed, ModelFailure(status, "no")).code == code
    assert with_provider_code(guessed, None) == guessed
    other = TurnError("agent_restarted", "x")
    assert with_provider_code(other, ModelFailure(500, "no")) == other


def test_refusals_of_goose_have_codes() -> None:
    assert refusal(AgentRefusedError(-32000, "Authentication required")) == TurnError(
        "model_unauthorized", "Authentication required"
    )
    assert refusal(AgentRefusedError(-32002, "Resource not found")).code == "session_lost"
    spent = AgentRefusedError(-32603, "Add credits", {"reason": "credits_exhausted"})
    assert refusal(spent) == TurnError("model_rate_limited", "Add credits")
    assert refusal(AgentRefusedError(-32603, "boom")) == TurnError("agent_failed", "boom")


def test_a_failure_is_told_once_and_without_the_relay_s_address() -> None:
    text = (
        "Ran into this error: Server error: Server error (500 Internal Server Error) at "
        "http://127.0.0.1:42721/v1/chat/completions: overloaded.\n\n"
        "Please retry if you think this is a transient or recoverable error."
    )
    error = provider_error({"messageId": "msg_1", "content": {"text": text}})
    assert error is not None
    assert error.text == "Server error (500 Internal Server Error): overloaded"


def update(kind: str, *content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"sessionUpdate": kind, "toolCallId": "t", "content": list(content), **more}


def test_what_is_said_after_a_tool_is_a_paragraph_of_its_own() -> None:
    translator = Translator("s1", lambda: 1.0)
    said = [chunk("Let me "), chunk("look."), update("tool_call"), chunk("The folder "), chunk("x")]
    events = [event for one in said for event in translator.update(one)]
    texts = [event.content["content"] for event in events if event.type == "message"]
    assert "".join(texts) == "Let me look.\n\nThe folder x"


IMAGE = {"type": "image", "data": "aGk=", "mimeType": "image/png"}
LINK = {"type": "resource_link", "uri": "file:///x", "name": "x", "size": 3}
RESOURCE = {"type": "resource", "resource": {"uri": "file:///x", "blob": "aGk="}}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (IMAGE, IMAGE),
        ({"type": "audio", "data": "aGk=", "mimeType": "audio/wav", "x": 1}, None),
        (LINK, LINK),
        (RESOURCE, RESOURCE),
        ({"type": "text", "text": "hi"}, {"type": "text", "text": "hi"}),
        ({"type": "new kind"}, {"type": "text", "text": "[new kind that cannot be shown]"}),
        (
            {**IMAGE, "data": "A" * 100 + mark(40_000_000)},
            {"type": "text", "text": "[image/png of 30000000 bytes, which is too large to keep]"},
        ),
        (
            {"type": "resource", "resource": {"uri": "u", "blob": "A" * 8_000_000}},
            {"type": "text", "text": "[resource of 6000000 bytes, which is too large to keep]"},
        ),
    ],
)
def test_every_content_type_of_a_tool_has_its_form(
    given: dict[str, Any], told: dict[str, Any] | None
) -> None:
    block = {"type": "content", "content": given}
    translator = Translator("s1", lambda: 1.0)
    (event,) = translator.update(update("tool_call_update", block, status="completed"))
    told = told or {name: given[name] for name in ("type", "data", "mimeType")}
    assert event.content["result"] == {"Ok": [told]}


def test_what_a_failed_tool_gives_beside_its_words_is_kept() -> None:
    given = [{"type": "text", "text": "no luck"}, IMAGE, RESOURCE]
    blocks = [{"type": "content", "content": one} for one in given]
    translator = Translator("s1", lambda: 1.0)
    (event,) = translator.update(update("tool_call_update", *blocks, status="failed"))
    assert event.content["is_error"]
    assert event.content["result"] == {"Err": "no luck", "content": [IMAGE, RESOURCE]}
    done = update("tool_call_update", status="failed", rawOutput={"answer": 42})
    (event,) = translator.update(done)
    assert event.content["result"] == {"Err": "The tool failed.", "data": {"answer": 42}}


def test_data_without_a_block_is_told() -> None:
    translator = Translator("s1", lambda: 1.0)
    done = update("tool_call_update", status="completed", rawOutput={"answer": 42})
    (event,) = translator.update(done)
    assert event.content["result"] == {"Ok": [], "data": {"answer": 42}}
