"""Of two Greylags on one cluster each leaves alone what is in the other's namespaces."""

from contextlib import nullcontext

import pytest
from aiohttp import web
from tests.cluster.kubernetes.stateful_api_server import StatefulServer, stateful
from tests.cluster.kubernetes.test_writes import OPTIONS, environment, opened, ours

from greylag.domain.errors import ClusterError
from greylag.domain.lifecycle import Observed

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
        server.forbidden.add("PATCH Namespace")
        async with opened(server, OPTIONS, theirs) as second:
            with pytest.raises(ClusterError, match="refused a step: Forbidden"):
                await second.stop(environment(2))
        assert server.things == before
