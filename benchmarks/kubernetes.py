"""Activation on a real cluster, against `kubectl scale` and `kubectl wait` on the same Deployment.

Interleaved, with the image present. Ours is the request to activate, from its sending to its
answer; kubectl's are its two commands, started one after the other as a script does. Both begin
when no pod is left of the run before. At last the memory of the pod's containers at rest, as the
kubelet tells it.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from benchmarks.support import bearer, console, greylag_up
from rich.table import Table
from tests.cluster import real_cluster

USER = "me"
PROJECT = "measured"
PATH = f"/api/users/{USER}/projects/{PROJECT}"
PATIENCE = 120
WARM_UP = 2
OURS, THEIRS = "POST .../activate", "kubectl scale, kubectl wait"
_FOREVER = "3600"
_REST_SECONDS = 20  # the kubelet looks every ten

Run = Callable[[], Awaitable[None]]


class Kubectl:
    """kubectl in one namespace, as fast as a script can call it."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._environment = dict(real_cluster.cluster_environment())

    async def __call__(self, *arguments: str) -> None:
        """Run it; what it says is dropped."""
        command = ("/usr/bin/env", "kubectl", "--namespace", self._namespace, *arguments)
        process = await asyncio.create_subprocess_exec(
            *command, env=self._environment, stdout=DEVNULL
        )
        assert await process.wait() == 0, f"kubectl {' '.join(arguments)} failed"

    async def memory(self) -> dict[str, float]:
        """Return the megabytes that each container of the namespace's pods uses."""
        nodes = json.loads(real_cluster.kubectl("get", "nodes", "-o", "json").stdout)["items"]
        found: dict[str, float] = {}
        for node in nodes:
            path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary"
            told = await asyncio.to_thread(real_cluster.kubectl, "get", "--raw", path)
            for pod in json.loads(told.stdout)["pods"]:
                if pod["podRef"]["namespace"] == self._namespace:
                    for one in pod["containers"]:
                        found[one["name"]] = one["memory"]["workingSetBytes"] / 1e6
        return found


def main() -> int:
    """Measure and print; without a cluster say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    given = parser.parse_args()
    try:
        settings = real_cluster.settings(GREYLAG_RESYNC_SECONDS=_FOREVER)
    except pytest.skip.Exception as why:
        console.print(f"[bold]SKIPPED[/bold]: {why}")
        return 0
    # kubectl of the cluster's own version comes first.
    settings["PATH"] = real_cluster.cluster_environment().get("PATH", os.environ["PATH"])
    prefix = settings["KUBE_NAMESPACE_PREFIX"]
    try:
        took, memory = asyncio.run(measure(settings, f"{prefix}{USER}", given.runs))
    finally:
        real_cluster.remove_namespaces(prefix)
    show(took)
    parts = ", ".join(f"{name} {used:.0f} MB" for name, used in memory.items())
    console.print(f"At rest: {sum(memory.values()):.0f} MB ({parts})")
    return 0


async def measure(
    settings: dict[str, str], namespace: str, runs: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the seconds of each run, and the megabytes of each container at rest."""
    kubectl = Kubectl(namespace)
    deployment = f"deployment/{PROJECT}-api"
    timeout = f"--timeout={PATIENCE}s"

    async def theirs() -> None:
        await kubectl("scale", "--replicas=1", deployment)
        await kubectl("wait", "--for=jsonpath={.status.readyReplicas}=1", deployment, timeout)

    async def their_end() -> None:
        await kubectl("scale", "--replicas=0", deployment)
        await kubectl("wait", "--for=delete", "pod", "--all", timeout)

    with tempfile.TemporaryDirectory() as folder:
        async with (
            greylag_up(Path(folder) / "data", **settings) as (_, address),
            aiohttp.ClientSession(address, headers=bearer(Path(folder) / "data")) as http,
        ):

            async def asked(verb: str, status: str) -> None:
                async with http.post(f"{PATH}/{verb}") as answer:
                    said = await answer.json()
                    assert said.get("status") == status, said

            async def ours() -> None:
                await asked("activate", "active")

            async def our_end() -> None:
                await asked("deactivate", "inactive")
                await kubectl("wait", "--for=delete", "pod", "--all", timeout)

            body = {"name": "measured", "project_id": PROJECT}
            async with http.post(PATH.rpartition("/")[0], json=body) as answer:
                assert answer.ok, await answer.text()
            kinds: dict[str, tuple[Run, Run]] = {
                OURS: (ours, our_end),
                THEIRS: (theirs, their_end),
            }
            took: dict[str, list[float]] = {name: [] for name in kinds}
            for number in range(WARM_UP + runs):
                for name, (run, end) in kinds.items():
                    began = time.perf_counter()
                    await run()
                    if number >= WARM_UP:
                        took[name].append(time.perf_counter() - began)
                    await end()
            await ours()
            await asyncio.sleep(_REST_SECONDS)
            memory = await kubectl.memory()
            await our_end()
            async with http.delete(PATH) as answer:
                assert answer.ok, await answer.text()
            return took, memory


def show(took: dict[str, list[float]]) -> None:
    """Print the table."""
    table = Table(title=f"Seconds from the wish to the ready environment, {len(took[OURS])} runs")
    for name in ("", "median", "fastest", "slowest", "of kubectl"):
        table.add_column(name, justify="right" if name else "left")
    base = statistics.median(took[THEIRS])
    for name, seconds in took.items():
        middle = statistics.median(seconds)
        figures = (middle, min(seconds), max(seconds), middle / base)
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
