"""The only place where every adapter is chosen and everything is constructed."""

import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from greylag import __version__
from greylag.agent.http import HttpAgents
from greylag.clock import SystemClock
from greylag.cluster.local import LocalCluster
from greylag.config import Settings
from greylag.domain.errors import ConfigError
from greylag.ports.cluster import Cluster
from greylag.ports.store import ProjectStore
from greylag.reconcile.reconciler import Reconciler
from greylag.reconcile.state import Pace
from greylag.reconcile.worker import Worker
from greylag.services.agents import Agents
from greylag.services.messages import Messages
from greylag.services.platform import DEMONSTRATION, Platform
from greylag.services.projects import Projects
from greylag.services.use_cases import UseCases
from greylag.store.sqlite import SqliteStore
from greylag.store.users import StaticUsers


@dataclass(frozen=True, slots=True)
class Parts:
    """What the programs are made of."""

    use_cases: UseCases
    worker: Worker


@asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[Parts]:
    """Construct everything that ``settings`` ask for; it is closed, last first, on leaving.

    Raises ``ConfigError`` for a data folder that cannot be used, ``StoreUnavailableError``.
    """
    _make_folder(settings)
    clock = SystemClock()
    async with AsyncExitStack() as opened:
        store = await _open_store(settings)
        opened.push_async_callback(store.close)
        cluster = LocalCluster(
            settings.data / "environments",
            model=_agent_environment(settings),
            goose=settings.goose,
            sandbox=settings.sandbox,
            hidden=(settings.data.absolute(),),
        )
        opened.push_async_callback(cluster.close)
        gateway = HttpAgents.open()
        opened.push_async_callback(gateway.close)
        projects = Projects(
            store,
            StaticUsers(settings.user_list),
            clock,
            namespace_prefix=settings.namespace_prefix,
            activation_timeout=settings.activation_timeout,
        )
        agents = Agents(projects, cluster, gateway)
        yield Parts(
            use_cases=UseCases(
                projects=projects,
                agents=agents,
                messages=Messages(projects, agents, gateway),
                platform=_platform(settings, cluster),
                store=store,
            ),
            worker=_worker(settings, store, cluster, clock),
        )


async def _open_store(settings: Settings) -> ProjectStore:
    if settings.mongodb_uri is None:
        return await SqliteStore.open(settings.data / "greylag.db")
    # Only where it is used: the driver takes a fifth of a second to import.
    from greylag.store.mongo.client import Limits  # noqa: PLC0415
    from greylag.store.mongo.store import MongoStore  # noqa: PLC0415

    uri = settings.mongodb_uri.get_secret_value()
    limits = Limits(operation=settings.mongodb_timeout, connections=settings.mongodb_connections)
    return await MongoStore.open(uri, settings.mongodb_db, limits=limits)


def _worker(
    settings: Settings, store: ProjectStore, cluster: Cluster, clock: SystemClock
) -> Worker:
    pace = Pace(
        lease=settings.lease_seconds,
        resync=settings.resync_seconds,
        activation_timeout=settings.activation_timeout,
    )
    name = f"{socket.gethostname()}-{os.getpid()}"
    rng = random.Random()  # noqa: S311 - spreads retries, guards nothing
    reconciler = Reconciler(store, cluster, clock, pace, worker=name, rng=rng)
    return Worker(store, cluster, clock, reconciler, concurrency=settings.worker_concurrency)


def _platform(settings: Settings, cluster: Cluster) -> Platform:
    return Platform(
        version=__version__,
        cluster=cluster.kind,
        store="mongodb" if settings.mongodb_uri else "sqlite",
        notice=cluster.notice,
        demonstration=None if settings.model_url else DEMONSTRATION,
    )


def _agent_environment(settings: Settings) -> dict[str, str]:
    """Return what agentd is told by us; the model's key goes to agentd's environment only."""
    key = settings.model_key.get_secret_value() if settings.model_key else None
    given = {
        "GREYLAG_MODEL_URL": settings.model_url,
        "GREYLAG_MODEL_KEY": key,
        "GREYLAG_MODEL": settings.model,
        "GOOSE_MODE": settings.goose_mode,
        "GREYLAG_CONFIRMATION_TIMEOUT": str(settings.confirmation_timeout),
    }
    return {name: value for name, value in given.items() if value}


def _make_folder(settings: Settings) -> None:
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"GREYLAG_DATA: the folder {settings.data} cannot be made: {error.strerror}."
        ) from error
