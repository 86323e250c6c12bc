"""The scripted model as an OpenAI-compatible server on a port."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from greylag.agentd.agent.types import ModelProvider


@pytest.fixture
async def client(fake_provider: ModelProvider) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fake_provider.url) as session:
        yield session


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


async def stream(client: aiohttp.ClientSession, text: str, **more: Any) -> list[dict[str, Any]]:
    body = chat(text, stream=True, **more)
    async with client.post("/v1/chat/completions", json=body) as answer:
        assert answer.content_type == "text/event-stream"
        lines = (await answer.read()).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_it_lists_its_model(client: aiohttp.ClientSession) -> None:
    async with client.get("/v1/models") as answer:
        assert [m["id"] for m in (await answer.json())["data"]] == ["greylag-scripted"]


async def test_a_stream_ends_with_its_reason_and_the_usage_that_was_asked_for(
    client: aiohttp.ClientSession,
) -> None:
    chunks = await stream(client, "[[text hi you]]", stream_options={"include_usage": True})
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "hi you"
    assert choices[-1]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["total_tokens"] > 0


async def test_without_streaming_the_answer_is_one_object(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/chat/completions", json=chat("[[tool ls]] [[length]]")) as answer:
        whole = await answer.json()
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    assert whole["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "shell"


@pytest.mark.parametrize("status", [401, 429, 500])
async def test_it_fails_as_it_is_told(client: aiohttp.ClientSession, status: int) -> None:
    async with client.post("/v1/chat/completions", json=chat(f"[[status {status}]]")) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]["code"] == str(status)


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"messages": 3}', b'{"messages": [3]}'])
async def test_nonsense_is_a_bad_request(client: aiohttp.ClientSession, body: bytes) -> None:
    async with client.post("/v1/chat/completions", data=body) as answer:
        assert answer.status == 400


async def test_a_cut_stream_has_no_end(client: aiohttp.ClientSession) -> None:
    body = chat("[[cut after=1]] [[text one two]]", stream=True)
    async with client.post("/v1/chat/completions", json=body) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
