"""Our web as it ships, with one active project whose agent is at a given address.

`python relay_ours.py URL` prints the port that it answers on. Only the cluster is a stand-in.
"""

import random
import sys

import uvloop

from greylag.agent.http import HttpAgents
from greylag.cluster.memory import MemoryCluster
from greylag.common.clock import SystemClock
from greylag.common.logs import configure_logging
from greylag.config import Settings
from greylag.domain.project import Desired, Environment
from greylag.domain.users import OPERATOR, User
from greylag.ports import AgentAddress
from greylag.programs import serve_parts
from greylag.reconcile.loop import WorkLoop
from greylag.reconcile.reconciler import Pace, Reconciler
from greylag.services.agents import Agents
from greylag.services.messages import Messages
from greylag.services.projects import NewProject, Projects
from greylag.services.use_cases import Platform, UseCases
from greylag.store.memory import MemoryStore
from greylag.store.users import StaticUsers

STREAMS = 10_000


class _Elsewhere(MemoryCluster):
    """A cluster whose agents are all at one address."""

    def __init__(self, url: str) -> None:
        super().__init__(auto=True)
        self._url = url

    async def reach(self, environment: Environment) -> AgentAddress:
        del environment
        return AgentAddress(self._url, token="any")  # noqa: S106 - it guards nothing


async def main(url: str) -> None:
    """Serve until a signal."""
    store, cluster, clock = MemoryStore(), _Elsewhere(url), SystemClock()
    users = StaticUsers((User("ada", "Ada"),))
    projects = Projects(store, users, clock, namespace_prefix="user-", activation_timeout=10)
    gateway = HttpAgents.open()
    agents = Agents(projects, cluster, gateway)
    await projects.create(OPERATOR, "ada", NewProject("P", "p"))
    await projects.want(OPERATOR, "ada", "p", Desired.ACTIVE)
    pace = Pace(lease=15, resync=3600, activation_timeout=10)
    rng = random.Random(1)  # noqa: S311 - spreads retries
    reconciler = Reconciler(store, cluster, clock, pace, worker="bench", rng=rng)
    await WorkLoop(reconciler, concurrency=4).drain()
    assert (await store.get("ada", "p")).status == "active"
    use_cases = UseCases(
        projects=projects,
        agents=agents,
        messages=Messages(projects, agents, gateway),
        platform=Platform("0", "memory", "memory", notice=None, demonstration=None),
        store=store,
    )
    settings = Settings(port=0, streams_per_project=STREAMS, log_level="error")
    await serve_parts(use_cases, settings, lambda address: print(address, flush=True))
    await gateway.close()


if __name__ == "__main__":
    configure_logging("json", "error")
    uvloop.run(main(sys.argv[1]))
