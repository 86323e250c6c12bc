"""The only place where every adapter is chosen and everything is constructed."""

import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from greylag import __version__
from greylag.agent.http import HttpAgents
from greylag.archives import FILE, place_of_settings, refuse_unfinished
from greylag.cluster.local.cluster import LocalCluster
from greylag.common.clock import SystemClock
from greylag.config import Settings, agent_environment
from greylag.domain.errors import ConfigError
from greylag.ports import Cluster, ProjectStore
from greylag.reconcile.reconciler import Pace, Reconciler
from greylag.reconcile.worker import Worker
from greylag.services.agents import Agents
from greylag.services.messages import Messages
from greylag.services.orphans import Orphans
from greylag.services.projects import Projects
from greylag.services.use_cases import DEMONSTRATION, Platform, UseCases
from greylag.store.archive_sqlite import is_there
from greylag.store.sqlite.store import SqliteStore
from greylag.store.users import StaticUsers


@dataclass(frozen=True, slots=True)
class Parts:
    """What the programs are made of."""

    use_cases: UseCases
    worker: Worker


@asynccontextmanager
async def assembled(settings: Settings, *, patient: bool = False) -> AsyncIterator[Parts]:
    """Construct everything that ``settings`` ask for; it is closed, last first, on leaving.

    Raises ``ConfigError`` for a data folder that cannot be used, and ``StoreUnavailableError``.
    With ``patient``, servers of the store that cannot be reached are waited for while everything
    else is there already.
    """
    _make_folder(settings)
    async with AsyncExitStack() as opened:
        store = await _open_store(settings, patient=patient)
        opened.push_async_callback(store.close)
        cluster = await _open_cluster(settings)
        opened.push_async_callback(cluster.close)
        yield Parts(
            use_cases=_use_cases(settings, store, cluster, opened),
            worker=_worker(settings, store, cluster, SystemClock()),
        )


@asynccontextmanager
async def assembled_web(settings: Settings) -> AsyncIterator[UseCases]:
    """Construct what a web needs that starts in a moment, anywhere, and keeps nothing: no folder is
    made, no index, no worker. It is closed, last first, on leaving.

    Raises ``StoreUnavailableError``.
    """
    async with AsyncExitStack() as opened:
        store = await _open_store(settings, prepare=False)
        opened.push_async_callback(store.close)
        cluster = await _open_cluster(settings)
        opened.push_async_callback(cluster.close)
        yield _use_cases(settings, store, cluster, opened)


@asynccontextmanager
async def assembled_orphans(settings: Settings) -> AsyncIterator[Orphans]:
    """Construct what looks for environments without a record and removes them, with the store and
    the cluster of a worker with these settings. It is closed, last first, on leaving.

    Raises ``ConfigError``, and ``StoreUnavailableError``. A database is not made where none is:
    before an empty one, which may only be the wrong one, every environment is without a record.
    """
    path = settings.data / FILE
    if settings.mongodb_uri is None and not is_there(path):
        raise ConfigError(
            f"There is no database at {path}, so it cannot be told which environments have a "
            "record.",
            hint="Give the data folder with --data or GREYLAG_DATA. If its records are lost, start "
            "Greylag on it once: that makes a new database.",
        )
    async with AsyncExitStack() as opened:
        store = await _open_store(settings)
        opened.push_async_callback(store.close)
        cluster = await _open_cluster(settings)
        opened.push_async_callback(cluster.close)
        yield Orphans(
            store,
            cluster,
            SystemClock(),
            place=place_of_settings(settings).shown,
            namespace_prefix=settings.namespace_prefix,
            worker=f"{_process_name()}-orphans",
            longest=settings.activation_timeout,
        )


def _use_cases(
    settings: Settings, store: ProjectStore, cluster: Cluster, opened: AsyncExitStack
) -> UseCases:
    gateway = HttpAgents.open()
    opened.push_async_callback(gateway.close)
    projects = Projects(
        store,
        StaticUsers(settings.user_list),
        SystemClock(),
        namespace_prefix=settings.namespace_prefix,
        activation_timeout=settings.activation_timeout,
    )
    agents = Agents(projects, cluster, gateway)
    return UseCases(
        projects=projects,
        agents=agents,
        messages=Messages(projects, agents, gateway),
        platform=_platform(settings, cluster),
        store=store,
    )


async def _open_cluster(settings: Settings) -> Cluster:
    if not _on_kubernetes(settings):
        return LocalCluster(
            settings.data / "environments",
            model=agent_environment(settings),
            goose=settings.goose,
            sandbox=settings.sandbox,
            hidden=(settings.data.absolute(),),
        )
    # Only where it is used: reading a kubeconfig needs libraries that take time to import.
    from greylag.cluster.kubernetes.cluster import KubernetesCluster  # noqa: PLC0415
    from greylag.cluster.kubernetes.connection import connect  # noqa: PLC0415
    from greylag.kubernetes_settings import (  # noqa: PLC0415
        ConnectionSettings,
        kubernetes_options,
        load_kubernetes_settings,
    )

    options = kubernetes_options(load_kubernetes_settings(), agent_environment(settings))
    connection = connect(ConnectionSettings().options(), os.environ)
    if connection is None:
        raise ConfigError(
            "Environments are to run on Kubernetes, but no setting says on which cluster: set "
            "KUBECONFIG, KUBE_CONFIG_BASE64, or KUBE_HOST and KUBE_TOKEN."
        )
    cluster = KubernetesCluster.open(
        connection, options, namespace_prefix=settings.namespace_prefix
    )
    try:
        await cluster.check()
    except ConfigError:
        await cluster.close()
        raise
    return cluster


def _on_kubernetes(settings: Settings) -> bool:
    """Tell where environments run: the image of one is of use in a cluster only."""
    if settings.cluster != "auto":
        return settings.cluster == "kubernetes"
    return any(os.environ.get(name) for name in ("ACR_IMAGE", "KUBE_CONFIG_BASE64", "KUBE_HOST"))


async def _open_store(
    settings: Settings, *, prepare: bool = True, patient: bool = False
) -> ProjectStore:
    gate = partial(refuse_unfinished, settings)
    if settings.mongodb_uri is None:
        await gate()
        return await SqliteStore.open(settings.data / FILE)
    # Only where it is used: the driver takes a fifth of a second to import.
    from greylag.store.mongo.client import Limits  # noqa: PLC0415
    from greylag.store.mongo.store import MongoStore  # noqa: PLC0415

    uri = settings.mongodb_uri.get_secret_value()
    limits = Limits(operation=settings.mongodb_timeout, connections=settings.mongodb_connections)
    return await MongoStore.open(
        uri, settings.mongodb_db, limits=limits, prepare=prepare, patient=patient, gate=gate
    )


def _worker(
    settings: Settings, store: ProjectStore, cluster: Cluster, clock: SystemClock
) -> Worker:
    pace = Pace(
        lease=settings.lease_seconds,
        resync=settings.resync_seconds,
        activation_timeout=settings.activation_timeout,
    )
    rng = random.Random()  # noqa: S311 - spreads retries, guards nothing
    reconciler = Reconciler(store, cluster, clock, pace, worker=_process_name(), rng=rng)
    return Worker(store, cluster, clock, reconciler, concurrency=settings.worker_concurrency)


def _process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _platform(settings: Settings, cluster: Cluster) -> Platform:
    return Platform(
        version=__version__,
        cluster=cluster.kind,
        store="mongodb" if settings.mongodb_uri else "sqlite",
        notice=cluster.notice,
        demonstration=None if settings.model_url else DEMONSTRATION,
    )


def _make_folder(settings: Settings) -> None:
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"GREYLAG_DATA: the folder {settings.data} cannot be made: {error.strerror}."
        ) from error
