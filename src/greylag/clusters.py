"""Where environments run by the settings: on this machine, or on a cluster of Kubernetes."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from greylag.agentd.agent.types import AgentUnavailableError, find_agent
from greylag.cluster.kubernetes.options import (
    ConnectionOptions,
    Options,
    load_connection_options,
    load_options,
)
from greylag.cluster.local.cluster import LocalCluster
from greylag.cluster.local.sandbox import choose_sandbox, half_the_memory, start_folder
from greylag.config import Settings, agent_environment, authorities, load_settings
from greylag.domain.errors import ConfigError
from greylag.domain.names import check_id, environment_names
from greylag.domain.project import DEFAULT_TEMPLATE, Environment, Fence, ProjectRef
from greylag.ports import Cluster, ProjectStore

if TYPE_CHECKING:
    from greylag.cluster.kubernetes.api import Api

AUTHORITIES = "authorities.pem"
"""In the data folder: whom environments on this machine trust, where settings say so."""


async def open_cluster(settings: Settings, store: ProjectStore) -> Cluster:
    """Open the cluster that the settings choose, for the Greylag of ``store``.

    Raises:
        ConfigError: settings cannot work.
    """
    given = _kubernetes_options(settings)
    if given is None:
        return _local_cluster(settings)
    options, way = given
    return await _kubernetes_cluster(
        settings, _trusting(options, authorities(settings)), way, store
    )


def _local_cluster(settings: Settings) -> LocalCluster:
    try:
        find_agent(settings.goose, os.environ)
    except AgentUnavailableError as error:
        raise ConfigError(str(error), hint="Correct or unset GREYLAG_GOOSE.") from error
    variables, shown, trusted = agent_environment(settings), [], authorities(settings)
    if trusted and settings.data.is_dir():  # what starts environments has made it
        shown = [_written(settings.data.absolute() / AUTHORITIES, trusted)]
        variables["SSL_CERT_FILE"] = str(shown[0])
    return LocalCluster(
        settings.data / "environments",
        model=variables,
        shown=shown,
        authorities=trusted,
        goose=settings.goose,
        sandbox=settings.sandbox,
        network=settings.sandbox_network,
        memory=_memory(settings),
        hidden=(settings.data.absolute(),),
    )


async def _kubernetes_cluster(
    settings: Settings, options: Options, way: ConnectionOptions, store: ProjectStore
) -> Cluster:
    # Only where it is used: reading a kubeconfig needs libraries that take time to import.
    from greylag.cluster.kubernetes.cluster import KubernetesCluster  # noqa: PLC0415

    cluster = KubernetesCluster(
        _api(options, way),
        options,
        agent_environment(settings),
        namespace_prefix=settings.namespace_prefix,
        instance=store.instance,
        lease=settings.lease_seconds,
    )
    try:
        await cluster.check()
    except BaseException:  # who asks for the end of a start has it here
        await cluster.close()
        raise
    return cluster


def _api(options: Options, way: ConnectionOptions) -> "Api":
    from greylag.cluster.kubernetes.api import Api  # noqa: PLC0415
    from greylag.cluster.kubernetes.connection import connect  # noqa: PLC0415

    _need_image(options)
    connection = connect(way, os.environ)
    if connection is None:
        raise ConfigError(
            "Environments are to run on Kubernetes, but no setting says on which cluster: set "
            "KUBECONFIG, KUBE_CONFIG_BASE64, or KUBE_HOST and KUBE_TOKEN."
        )
    return Api(connection)


async def try_cluster(settings: Settings) -> str | None:
    """Ask the cluster that the settings choose who it is, and for a list that every Greylag needs;
    return what it is called, ``None`` where environments run on this machine. Nothing is changed.

    Raises:
        ConfigError: settings cannot work, or lead to what does not take us.
        ClusterError: it does not answer, or gives us no right.
    """
    given = _kubernetes_options(settings)
    if given is None:
        return None
    from greylag.cluster.kubernetes.api import server_version  # noqa: PLC0415
    from greylag.cluster.kubernetes.cluster import CHECK_SECONDS  # noqa: PLC0415
    from greylag.cluster.kubernetes.failures import translated  # noqa: PLC0415
    from greylag.cluster.kubernetes.identity import SELECTOR  # noqa: PLC0415

    whole = _api(*given)
    try:
        api = whole.within(CHECK_SECONDS)
        version = await server_version(api)
        with translated():
            await api.list("Pod", selector=SELECTOR)
    finally:
        await whole.close()
    return f"Kubernetes {version} at {api.connection.server} (by {api.connection.source})"


def _memory(settings: Settings) -> int | None:
    """Return most bytes of memory that a process of an agent may have on this machine."""
    if isinstance(settings.sandbox_memory, int):
        return settings.sandbox_memory
    return half_the_memory() if settings.sandbox_memory == "auto" else None


def _kubernetes_options(settings: Settings) -> tuple[Options, ConnectionOptions] | None:
    """Return what is set for Kubernetes, ``None`` where environments run on this machine.

    By itself it is chosen by the image of environments, which is of use in a cluster only, and by
    what names a cluster to Greylag alone.
    """
    if settings.cluster == "local":
        return None
    options, way = load_options(), load_connection_options()
    chosen = settings.cluster == "kubernetes" or options.image or way.kubeconfig_base64 or way.host
    return (options, way) if chosen else None


def try_sandbox(settings: Settings) -> bool:
    """Try bubblewrap as environments on this machine use it; return whether this machine's loopback
    is out of their reach.

    Raises:
        ConfigError: it does not work here.
    """
    box = choose_sandbox(
        "bubblewrap",
        hidden=(settings.data.absolute(), *start_folder()),
        needed=(),
        network=settings.sandbox_network,
    )
    return box.pasta is not None or box.network == "strict"


def _trusting(options: Options, trusted: str) -> Options:
    return options.model_copy(update={"authorities": options.authorities or trusted})


def _written(path: Path, text: str) -> Path:
    """Write a file whole, so that whoever reads it meanwhile reads the old one or the new one."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(text, "utf-8")
    return fresh.replace(path)


def _need_image(options: Options) -> None:
    if not options.image:
        raise ConfigError("ACR_IMAGE is not set: it names the image of the environments.")


def printed_manifests(
    user_id: str, project_id: str, *, template: str | None = None, replicas: int = 1
) -> str:
    """Return the Kubernetes objects of any project's environment as YAML, without any secret.

    Args:
        user_id: whose project.
        project_id: any id; no record needs to exist.
        template: name of a template; None: the default one.
        replicas: 0 for a sleeping environment.

    Raises:
        GreylagError: an id or a setting is wrong, or the template does not exist.
    """
    from greylag.cluster.kubernetes.manifests import printed  # noqa: PLC0415

    settings = load_settings()
    options = _trusting(load_options(), authorities(settings))
    _need_image(options)
    check_id(user_id, "user id")
    check_id(project_id, "project id")
    environment = Environment(
        "",
        ProjectRef(user_id, project_id),
        environment_names(user_id, project_id, prefix=settings.namespace_prefix),
        Fence("", 0),
        template=template or DEFAULT_TEMPLATE,
    )
    return printed(environment, options, agent_environment(settings), replicas=replicas)
