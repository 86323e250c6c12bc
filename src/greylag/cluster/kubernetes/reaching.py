"""How the platform reaches an agent: the address of its environment, and the token it demands."""

import asyncio
import base64
import binascii
from dataclasses import dataclass

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.exposure import ingress_url
from greylag.cluster.kubernetes.identity import PROJECT_LABEL, project_slug, secret_name
from greylag.cluster.kubernetes.manifests import TOKEN_KEY
from greylag.cluster.kubernetes.options import Options
from greylag.cluster.kubernetes.pods import Object, is_ready
from greylag.cluster.kubernetes.refusals import told
from greylag.cluster.kubernetes.service_proxy import ServiceProxy
from greylag.domain.errors import ClusterError, NotActiveError
from greylag.domain.project import Project
from greylag.ports.agent import AgentAddress

KEPT_SECONDS = 10.0
KEPT_MOST = 10_000


@dataclass(frozen=True, slots=True)
class _Kept:
    address: AgentAddress
    until: float


class Reacher:
    """Finds agents, remembering each for some seconds, as every message asks."""

    def __init__(self, api: Api, options: Options, proxy: ServiceProxy) -> None:
        self._api = api
        self._options = options
        self._proxy = proxy
        self._kept: dict[str, _Kept] = {}

    async def reach(self, project: Project) -> AgentAddress:
        """Return a ready environment's address and token, else raise ``NotActiveError``."""
        now = asyncio.get_running_loop().time()
        kept = self._kept.get(project.id)
        if kept is not None and now < kept.until:
            return kept.address
        with told():
            address = await self._found(project)
        if len(self._kept) >= KEPT_MOST:
            self._kept.clear()
        self._kept[project.id] = _Kept(address, now + KEPT_SECONDS)
        return address

    async def url(self, project: Project, service: Object | None) -> str | None:
        """Return where the platform itself finds the agent, ``None`` if that is not known yet."""
        reach, options = self._options.reach, self._options
        if service is None:
            return None
        if reach == "proxy":
            return await self._proxy.url(project)
        if reach == "service" or (reach == "auto" and options.platform_namespace):
            return _inside_url(project, options)
        if reach == "loadbalancer":
            return _balancer_url(options, service)
        if reach == "auto" and not options.ingress_base_domain and _is_inside(service):
            # Nothing leads there from outside of the cluster but the API server.
            return await self._proxy.url(project)
        return endpoint_of(project, options, service)

    def forget(self, project: Project) -> None:
        """Look anew next time."""
        self._kept.pop(project.id, None)

    async def _found(self, project: Project) -> AgentAddress:
        names, api = project.names, self._api
        ours = f"{PROJECT_LABEL}={project_slug(project)}"
        pods, service, secret = await asyncio.gather(
            api.list("Pod", names.namespace, selector=ours),
            api.read("Service", names.namespace, names.service),
            api.read("Secret", names.namespace, secret_name(project)),
        )
        url = await self.url(project, service)
        if url is None or not any(_serves(pod) for pod in pods.items):
            raise NotActiveError("The environment does not run.")
        return AgentAddress(url, token_of(secret))


def endpoint_of(project: Project, options: Options, service: Object | None) -> str | None:
    """Return where users and operators are told that the environment is, ``None`` if unknown yet.

    The Ingress' host where there is one, else the load balancer's address, else the Service.
    """
    if service is None:
        return None
    return ingress_url(project, options) or _service_url(project, options, service)


def token_of(secret: Object | None) -> str:
    """Return the token of an environment from its Secret; ``ClusterError`` when it has none."""
    encoded = ((secret or {}).get("data") or {}).get(TOKEN_KEY)
    try:
        return base64.b64decode(encoded or "", validate=True).decode() or _no_token()
    except (binascii.Error, ValueError) as error:
        raise ClusterError("The environment's token cannot be read.") from error


def _no_token() -> str:
    raise ClusterError(
        "The environment's Secret with its token is missing.",
        code="environment_drifted",
        hint="Deactivate and activate the project, which makes it anew.",
    )


def _service_url(project: Project, options: Options, service: Object) -> str | None:
    if service["spec"].get("type") == "LoadBalancer":
        return _balancer_url(options, service)
    return _inside_url(project, options)


def _inside_url(project: Project, options: Options) -> str:
    return f"http://{project.names.service}.{project.names.namespace}.svc:{options.agent_port}"


def _is_inside(service: Object) -> bool:
    return bool(service["spec"].get("type", "ClusterIP") == "ClusterIP")


def _balancer_url(options: Options, service: Object) -> str | None:
    given = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    for one in given:
        if host := one.get("hostname") or one.get("ip"):
            host = f"[{host}]" if ":" in host else host
            return f"http://{host}:{options.agent_port}"
    return None


def _serves(pod: Object) -> bool:
    return is_ready(pod) and not pod["metadata"].get("deletionTimestamp")
