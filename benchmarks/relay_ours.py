"""Our web as it ships, with one active project whose agent is at a given address.

`python -m benchmarks.relay_ours URL TOKEN` prints the port that it answers on.
Only the cluster is a stand-in.
"""

import sys

import uvloop
from pydantic import SecretStr
from tests.fakes.cluster import MemoryCluster
from tests.fakes.delivery import MemoryDelivery
from tests.fakes.store import MemoryStore

from greylag.agent.http import HttpAgents
from greylag.common.logs import configure_logging
from greylag.config import Settings
from greylag.domain.project import Desired, Environment, ProjectRef
from greylag.domain.users import OPERATOR
from greylag.ports import AgentAddress
from greylag.programs import serve_parts
from greylag.reconcile.loop import WorkLoop
from greylag.services.projects import NewProject
from greylag.wiring import Adapters, build

STREAMS = 10_000


class _Elsewhere(MemoryCluster):
    """A cluster whose agents are all at one address."""

    def __init__(self, url: str) -> None:
        super().__init__(auto=True)
        self._url = url

    async def reach(self, environment: Environment) -> AgentAddress:
        del environment
        return AgentAddress(self._url, token="any")  # noqa: S106 - it guards nothing


def _ready(address: str, *others: str, link: str | None = None) -> None:
    del others, link
    print(address, flush=True)


async def main(url: str, token: str) -> None:
    """Serve until a signal."""
    settings = Settings(
        port=0,
        token=SecretStr(token),
        users="ada",
        resync_seconds=3600,
        streams_per_project=STREAMS,
        log_level="error",
    )
    gateway = HttpAgents()
    greylag = build(settings, Adapters(MemoryStore(), _Elsewhere(url), gateway, MemoryDelivery()))
    projects = greylag.use_cases.projects
    await projects.create(OPERATOR, "ada", NewProject("P", "p"))
    await projects.want(OPERATOR, ProjectRef("ada", "p"), Desired.ACTIVE)
    await WorkLoop(greylag.reconciler, concurrency=4).drain()
    assert (await greylag.use_cases.store.get("ada", "p")).status == "active"
    await serve_parts(greylag.use_cases, settings, _ready)
    await gateway.close()


if __name__ == "__main__":
    configure_logging("json", "error")
    uvloop.run(main(*sys.argv[1:]))
