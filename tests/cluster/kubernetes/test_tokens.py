"""Tokens of environments: derived from a key where there is one, and never told twice."""

import asyncio
import base64
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from tests.cluster.kubernetes.stateful_api_server import StatefulServer, stateful
from tests.cluster.kubernetes.test_writes import OPTIONS, deployment, environment, opened

from greylag.cluster.kubernetes.cluster import KubernetesCluster
from greylag.cluster.kubernetes.options import load_options
from greylag.cluster.kubernetes.tokens import AgentKeys, token_of
from greylag.domain.errors import AgentTokenLostError, ClusterError, ConfigError
from greylag.domain.lifecycle import Observed
from greylag.domain.project import Environment

OLD, NEW = SecretStr("old-" * 8), SecretStr("new-" * 8)
KEYED = OPTIONS.model_copy(update={"agent_key": (OLD,)})
PATIENCE = 10


def token_in_secret(server: StatefulServer) -> str:
    secret = next(thing for key, thing in server.things.items() if key[0] == "Secret")
    return base64.b64decode(secret["data"]["GREYLAG_AGENT_TOKEN"]).decode()


@pytest.mark.parametrize(
    ("secret", "refused", "words"),
    [
        (None, AgentTokenLostError, "missing"),
        ({"data": None}, AgentTokenLostError, "missing"),
        ({"data": {"GREYLAG_AGENT_TOKEN": ""}}, AgentTokenLostError, "missing"),
        ({"data": {"GREYLAG_AGENT_TOKEN": "a!bc"}}, ClusterError, "cannot be read"),
        ({"data": {"GREYLAG_AGENT_TOKEN": "/w=="}}, ClusterError, "cannot be read"),
    ],
)
def test_a_secret_without_a_token_that_can_be_read_is_told(
    secret: dict[str, Any] | None, refused: type[ClusterError], words: str
) -> None:
    with pytest.raises(refused, match=words):
        token_of(secret)


def make_pod(server: StatefulServer) -> None:
    """Do what the cluster's controllers do: make the Deployment's pod, which is ready at once."""
    there = deployment(server)
    template = there["spec"]["template"]["metadata"]
    namespace = there["metadata"]["namespace"]
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    pod = {"metadata": {**template, "name": "pod", "namespace": namespace}, "spec": {}}
    server.put("Pod", namespace, {**pod, "status": ready})
    generation = there["metadata"].get("generation", 0)
    status = {"observedGeneration": generation, "replicas": 1}
    server.put("Deployment", namespace, {**there, "status": status})


def end_pod(server: StatefulServer) -> None:
    """Do what they do when no pod is wanted."""
    key, pod = next((key, thing) for key, thing in server.things.items() if key[0] == "Pod")
    server.put("Pod", key[1], {**pod, "status": {"phase": "Succeeded"}})
    server.put("Deployment", key[1], {**deployment(server), "status": {"observedGeneration": 9}})


async def reaches(cluster: KubernetesCluster, of: Environment, state: Observed) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await cluster.observe(of)).state is not state:
            await cluster.changed(of, 1)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_a_token_is_of_one_record_one_start_and_one_key(one: str, other: str, rest: str) -> None:
    old, new = AgentKeys((OLD,)), AgentKeys((NEW,))
    mark = old.mark("1", running=False)
    token = old.token(one, mark)

    assert token is not None
    assert len(token) == 43
    assert old.token(one, mark) == token
    assert (old.token(other, mark) == token) == (one == other)
    assert (old.token(one, mark + rest) == token) == (not rest)
    assert new.token(one, mark) is None
    assert AgentKeys((NEW, OLD)).token(one, mark) == token


def test_a_new_key_is_for_new_starts_and_the_old_one_for_what_runs() -> None:
    both = AgentKeys((NEW, OLD))
    old = AgentKeys((OLD,)).mark("7.3", running=False)

    assert both.mark(old, running=True) == old
    assert both.mark(old, running=False) == AgentKeys((NEW,)).mark("7.3", running=True)
    assert AgentKeys((NEW,)).mark(old, running=True) != old


def test_without_a_key_there_is_no_token_and_no_mark_of_one() -> None:
    none = AgentKeys(())

    assert none.mark("1", running=False) == "1"
    assert none.token("record", "1") is None
    assert not AgentKeys.named("1")


@pytest.mark.parametrize("given_key", ["too-short", f"{'x' * 32},too-short"])
def test_a_key_that_can_be_guessed_is_refused_and_not_told(
    monkeypatch: pytest.MonkeyPatch, given_key: str
) -> None:
    monkeypatch.setenv("GREYLAG_AGENT_KEY", given_key)
    with pytest.raises(ConfigError, match=r"GREYLAG_AGENT_KEY.*at least 32 characters") as refused:
        load_options()
    assert "too-short" not in str(refused.value)


def test_keys_are_not_shown() -> None:
    assert OLD.get_secret_value() not in repr(KEYED)


async def test_with_a_key_web_and_worker_agree_and_neither_reads_a_secret() -> None:
    async with stateful() as server, opened(server, KEYED) as worker, opened(server, KEYED) as web:
        await worker.prepare(environment(1))
        await worker.start(environment(2))
        make_pod(server)
        found = await web.reach(environment(2))

        assert found.token == token_in_secret(server)
        assert "GET Secret" not in server.asked


async def test_a_key_that_is_replaced_reaches_an_environment_at_its_next_start() -> None:
    both = KEYED.model_copy(update={"agent_key": (NEW, OLD)})
    async with stateful() as server:
        async with opened(server, KEYED) as worker:
            await worker.start(environment(1))
            make_pod(server)
            first = token_in_secret(server)
        async with opened(server, both) as worker:
            assert (await worker.reach(environment(1))).token == first
            await worker.stop(environment(2))
            end_pod(server)
            await reaches(worker, environment(2), Observed.STOPPED)
            await worker.start(environment(3))
            make_pod(server)

            assert token_in_secret(server) != first
            assert (await worker.reach(environment(3))).token == token_in_secret(server)


async def test_an_environment_of_before_the_key_is_started_anew_with_it() -> None:
    async with stateful() as server:
        async with opened(server, OPTIONS) as before:
            await before.start(environment(1))
            make_pod(server)
            first = token_in_secret(server)
            assert (await before.reach(environment(1))).token == first
        async with opened(server, KEYED) as worker:
            seen = await worker.observe(environment(1))
            assert seen.state is Observed.FAILED
            assert seen.error is not None
            assert seen.error.code == "environment_drifted"
            assert not seen.terminal
            await worker.start(replace(environment(1), generation=2))
            make_pod(server)

            await reaches(worker, environment(1), Observed.READY)
            assert (await worker.reach(environment(1))).token == token_in_secret(server) != first


@pytest.mark.parametrize(
    ("status", "keys", "error", "words"),
    [
        (403, (NEW,), AgentTokenLostError, "another GREYLAG_AGENT_KEY"),
        (403, (), ClusterError, "refused"),
        (401, (NEW,), ClusterError, "does not know Greylag.s credentials"),
    ],
)
async def test_a_web_without_the_key_of_a_start_says_so_where_it_may_not_read_secrets(
    status: int, keys: tuple[SecretStr, ...], error: type[ClusterError], words: str
) -> None:
    other = KEYED.model_copy(update={"agent_key": keys})
    async with stateful() as server, opened(server, KEYED) as worker, opened(server, other) as web:
        await worker.start(environment(1))
        make_pod(server)
        assert (await web.reach(environment(1))).token == token_in_secret(server)
        web._locator.forget(environment(1))
        server.denied["GET Secret"] = status
        with pytest.raises(ClusterError, match=words) as refused:
            await web.reach(environment(1))
        assert type(refused.value) is error
