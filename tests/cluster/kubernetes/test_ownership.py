"""Of two Greylags on one cluster each leaves alone what is in the other's namespaces."""

import asyncio
from contextlib import nullcontext
from dataclasses import replace

import pytest
from aiohttp import web
from tests.cluster.kubernetes.api_server import PATIENCE
from tests.cluster.kubernetes.stateful_api_server import StatefulServer, stateful
from tests.cluster.kubernetes.test_writes import OPTIONS, environment, opened, ours

from greylag.cluster.kubernetes import writes
from greylag.cluster.kubernetes.isolation import shared_objects
from greylag.cluster.kubernetes.options import Template
from greylag.domain.errors import ClusterError
from greylag.domain.lifecycle import Observed
from greylag.ports import FoundEnvironment

NAMESPACE = ("Namespace", "", environment(1).names.namespace)
LABEL = "greylag.dev/instance"


async def theirs() -> str:
    return "instance-2"


def labelled(server: StatefulServer, instance: str | None) -> None:
    """Let the namespace be of this Greylag, or of one that put no id there."""
    there = server.things[NAMESPACE]
    labels = {key: value for key, value in there["metadata"]["labels"].items() if key != LABEL}
    if instance is not None:
        labels[LABEL] = instance
    server.put("Namespace", "", {**there, "metadata": {**there["metadata"], "labels": labels}})


@pytest.mark.parametrize("verb", ["prepare", "start", "stop", "delete"])
async def test_in_a_namespace_of_another_greylag_nothing_is_done(verb: str) -> None:
    async with stateful() as server:
        async with opened(server, OPTIONS, ours) as first:
            await first.prepare(environment(1))
        before = dict(server.things)
        async with opened(server, OPTIONS, theirs) as second:
            with pytest.raises(ClusterError, match="to another Greylag") as refused:
                await getattr(second, verb)(environment(2))
            seen = await second.observe(environment(2))
            assert (refused.value.info.code, refused.value.terminal) == (
                "environment_foreign",
                True,
            )
            assert (seen.state, seen.error) == (Observed.ABSENT, refused.value.info)
            assert await second.inventory() == []
        assert server.things == before


async def test_a_namespace_is_taken_over_from_the_greylag_that_is_named_alone() -> None:
    async with stateful() as server:
        async with opened(server, OPTIONS, ours) as first:
            await first.prepare(environment(1))
        async with opened(server, OPTIONS, theirs) as second:
            (found,) = await second.found()
            assert found.instance == "instance-1"
            labelled(server, "instance-3")
            with pytest.raises(ClusterError, match="instance-3"):
                await second.take_over(found)
            labelled(server, "instance-1")
            await second.take_over(found)
        assert server.things[NAMESPACE]["metadata"]["labels"][LABEL] == "instance-2"


async def test_what_is_found_tells_what_a_lost_record_said() -> None:
    large = OPTIONS.model_copy(update={"templates": {"large": Template()}})
    made = replace(environment(7), name="Größe", template="large")
    async with stateful() as server, opened(server, large, ours) as cluster:
        await cluster.prepare(made)
        (found,) = await cluster.found()
        assert found == FoundEnvironment(
            ref=made.ref,
            names=made.names,
            record_id=made.id,
            claim=7,
            name="Größe",
            template="large",
            wanted=False,
            instance=None,
        )
        await cluster.start(made)
        assert [*await cluster.found()] == [replace(found, wanted=True)]
        server.forget(next(key for key in server.things if key[0] == "Deployment"))
        assert await cluster._informers["Deployment"].reached(str(server.version), PATIENCE)
        nothing = replace(found, record_id=None, claim=0, name="", template="default")
        assert [*await cluster.found()] == [nothing]


@pytest.mark.parametrize(
    ("between", "refused"), [("instance-1", True), (None, False)], ids=["taken", "changed"]
)
async def test_a_namespace_of_nobody_is_taken_in_one_step(
    between: str | None, *, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stateful() as server:
        async with opened(server, OPTIONS) as first:
            await first.prepare(environment(1))
        answered, asked = server._one, []

        async def one(request: web.Request, key: tuple[str, str, str]) -> web.StreamResponse:
            if key == NAMESPACE and request.method == "PATCH":
                asked.append(key)
                if len(asked) == 1:
                    labelled(server, between)
            return await answered(request, key)

        async with opened(server, OPTIONS, theirs) as second:
            monkeypatch.setattr(server, "_one", one)
            with pytest.raises(ClusterError, match="instance-1") if refused else nullcontext():
                await second.stop(environment(2))
        assert server.things[NAMESPACE]["metadata"]["labels"][LABEL] == (between or "instance-2")
        assert len(asked) == (1 if refused else 2)


async def test_a_namespace_that_may_not_be_taken_is_not_written_in() -> None:
    async with stateful() as server:
        async with opened(server, OPTIONS) as first:
            await first.prepare(environment(1))
        before = dict(server.things)
        server.denied["PATCH Namespace"] = 403
        async with opened(server, OPTIONS, theirs) as second:
            with pytest.raises(ClusterError, match="refused a step: Forbidden"):
                await second.stop(environment(2))
        assert server.things == before


def test_a_namespace_is_applied_without_whose_it_is_which_would_take_it_from_another() -> None:
    made = replace(environment(1), instance="instance-1")
    namespace, *rest = shared_objects(made, OPTIONS)
    assert namespace["kind"] == "Namespace"
    assert LABEL not in namespace["metadata"]["labels"]
    assert {thing["metadata"]["labels"][LABEL] for thing in rest} == {"instance-1"}


async def test_in_a_namespace_that_is_not_greylag_s_nothing_is_made() -> None:
    async with stateful() as server, opened(server, OPTIONS, ours) as cluster:
        await cluster.observe(environment(1))
        # No watch tells of it: they select what is ours.
        server.things[NAMESPACE] = {"metadata": {"name": NAMESPACE[2], "resourceVersion": "1"}}
        with pytest.raises(ClusterError, match="is not Greylag's") as refused:
            await cluster.prepare(environment(1))
        assert (refused.value.info.code, refused.value.terminal) == ("namespace_foreign", True)
        assert list(server.things) == [NAMESPACE]


@pytest.mark.parametrize("goes", [True, False])
async def test_a_namespace_that_is_being_removed_is_waited_for_a_little(
    *, goes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "_POLL_SECONDS", 0.01)
    async with stateful() as server, opened(server, OPTIONS, ours) as cluster:
        meta = {"name": NAMESPACE[2], "labels": {"app.kubernetes.io/managed-by": "greylag"}}
        server.put("Namespace", "", {"metadata": meta | {"deletionTimestamp": "2026-01-01"}})
        await cluster.observe(environment(1))
        server.asked.clear()
        if not goes:
            monkeypatch.setattr(writes, "NAMESPACE_GONE_SECONDS", 0.05)
        making = asyncio.create_task(cluster.prepare(environment(1)))
        await asyncio.wait([making], timeout=0.1)
        assert not any(asked.startswith("PATCH") for asked in server.asked[1:])
        if goes:
            server.forget(NAMESPACE)
            await making
        else:
            with pytest.raises(ClusterError, match="removed"):
                await making
