"""How the real goose ends a turn when the provider fails, and what the relay says of it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from greylag.agentd.agent.agent import Agent
from greylag.agentd.agent.types import AgentCommand, AgentRefusedError, ModelProvider

pytestmark = pytest.mark.goose

StartAgent = Callable[..., Awaitable[Agent]]


@pytest.fixture
async def agent(
    start_agent: StartAgent,
    goose_command: AgentCommand,
    fake_provider: ModelProvider,
) -> Agent:
    pauses = (0.01, 0.01, 0.01)
    return await start_agent(goose_command, provider=fake_provider, model_retries=pauses)


@pytest.fixture
async def session(agent: Agent) -> str:
    return await agent.new_session("A test")


async def test_a_provider_gets_its_key_and_its_answer_comes_through(
    agent: Agent, session: str, make_sink: Any
) -> None:
    sink = make_sink()
    await agent.prompt(session, "[[text hello from the provider]]", sink)
    assert sink.text() == "hello from the provider"
    assert agent.model_failure(session) is None


async def test_an_unauthorized_call_is_refused_with_the_providers_own_words(
    agent: Agent, session: str, make_sink: Any
) -> None:
    with pytest.raises(AgentRefusedError, match="Authentication required"):
        await agent.prompt(session, "[[status 401]]", make_sink())
    failure = agent.model_failure(session)
    assert failure is not None
    assert (failure.status, failure.message) == (401, "the scripted model was told to answer 401")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failing_provider_is_told_by_its_status(
    agent: Agent, session: str, make_sink: Any, status: int
) -> None:
    sink = make_sink()
    await agent.prompt(session, f"[[status {status}]]", sink)
    failure = agent.model_failure(session)
    assert failure is not None
    assert failure.status == status
    assert sink.text().startswith("Ran into this error: ")
    await agent.prompt(session, "[[text well again]]", make_sink())
    assert agent.model_failure(session) is None


async def test_an_answer_that_breaks_off_is_no_whole_answer(
    agent: Agent, session: str, make_sink: Any
) -> None:
    sink = make_sink()
    await agent.prompt(session, "[[cut after=2]] [[text one two three]]", sink)
    failure = agent.model_failure(session)
    assert failure is not None
    assert failure.status is None
    assert "broke its answer off" in failure.message
    assert sink.text().startswith("one two ")


async def test_cancel_does_not_wait_for_the_next_try(
    agent: Agent, session: str, make_sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent._relay, "_retry_seconds", (3600.0,) * 3)
    monkeypatch.setattr("greylag.agentd.agent.prompt.CANCEL_PATIENCE", 3600.0)
    prompt = asyncio.create_task(agent.prompt(session, "[[status 500]]", make_sink()))
    async with asyncio.timeout(60):
        while agent.model_failure(session) is None:  # noqa: ASYNC110 - the relay tells nobody
            await asyncio.sleep(0.02)
    await agent.cancel(session)
    assert (await prompt).stop_reason == "cancelled"


async def test_an_unreachable_provider_is_told_as_such(
    start_agent: StartAgent,
    goose_command: AgentCommand,
    make_sink: Any,
    unused_url: str,
) -> None:
    agent = await start_agent(goose_command, provider=ModelProvider(unused_url))
    agent._relay._retry_seconds = ()
    session = await agent.new_session("A test")
    await agent.prompt(session, "hello", make_sink())
    failure = agent.model_failure(session)
    assert failure is not None
    assert failure.status is None
    assert "Cannot connect" in failure.message


async def test_a_forbidden_call_and_an_error_within_a_stream_keep_the_providers_words(
    agent: Agent, session: str, make_sink: Any
) -> None:
    with pytest.raises(AgentRefusedError):
        await agent.prompt(session, "[[status 403]]", make_sink())
    failure = agent.model_failure(session)
    assert failure is not None
    assert (failure.status, failure.message) == (403, "the scripted model was told to answer 403")
    sink = make_sink()
    await agent.prompt(session, "[[text half an answer]] [[error-in-stream]]", sink)
    failure = agent.model_failure(session)
    assert failure is not None
    assert failure.message == "overloaded mid stream"
    assert sink.text().startswith("half an answer")
    assert "Network error: " in sink.text()


async def test_goose_asks_a_silent_provider_once_and_its_turn_is_told_of_the_wait(
    start_agent: StartAgent,
    goose_command: AgentCommand,
    fake_provider: ModelProvider,
    make_sink: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("greylag.agentd.model.relay.NOTICE_AFTER", (0.01,))
    agent = await start_agent(goose_command, provider=fake_provider, model_timeout=1.0)
    session = await agent.new_session("A test")
    sink = make_sink()
    await agent.prompt(session, "[[hang]]", sink)
    failure = agent.model_failure(session)
    assert failure is not None
    assert failure.final
    told = sink.of("status_message", lambda update: update["status"]["message"])
    assert len([words for words in told if "until the model provider answers" in words]) == 1
    assert sink.text().startswith("Ran into this error: ")


async def test_a_full_context_is_summarised_and_the_turn_goes_on(
    start_agent: StartAgent, goose_command: AgentCommand, serve_app: Any, make_sink: Any
) -> None:
    full = {"error": {"message": "context_length_exceeded", "code": "context_length_exceeded"}}
    asked = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        body = await request.json()
        if "the long one" in json.dumps(body["messages"]):
            asked += 1
            if asked == 1:
                return web.json_response(full, status=400)
        said = {"role": "assistant", "content": "well said"}
        whole = {"index": 0, "message": said, "finish_reason": "stop"}
        if not body.get("stream"):
            return web.json_response({"id": "c", "model": "m", "choices": [whole]})
        piece = {"id": "c", "model": "m", "choices": [{**whole, "delta": said}]}
        text = f"data: {json.dumps(piece)}\n\ndata: [DONE]\n\n"
        return web.Response(text=text, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with serve_app(app) as url:
        agent = await start_agent(goose_command, provider=ModelProvider(url))
        session, sink = await agent.new_session("A test"), make_sink()
        await agent.prompt(session, "hello", make_sink())
        await agent.prompt(session, "the long one", sink)
        assert sink.of("status_message", lambda update: update["status"])
        assert "well said" in sink.text()
        assert agent.state.status == "ready"
