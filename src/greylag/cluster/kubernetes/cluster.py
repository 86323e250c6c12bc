"""Environments as pods of a Kubernetes cluster: the adapter of ``ports.Cluster``."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import structlog

from greylag.cluster.kubernetes import log
from greylag.cluster.kubernetes.api import Api, server_version
from greylag.cluster.kubernetes.cache import ProjectCache
from greylag.cluster.kubernetes.diagnosis import wants_pod
from greylag.cluster.kubernetes.failures import translated
from greylag.cluster.kubernetes.identity import (
    NAME_ANNOTATION,
    TEMPLATE_ANNOTATION,
    Object,
    noted,
)
from greylag.cluster.kubernetes.informer import Informers
from greylag.cluster.kubernetes.locator import AddressProbe, AgentLocator, ServiceProxy
from greylag.cluster.kubernetes.observation import EnvironmentObserver
from greylag.cluster.kubernetes.options import Options
from greylag.cluster.kubernetes.ownership import Ownership, foreign
from greylag.cluster.kubernetes.tokens import AgentKeys
from greylag.cluster.kubernetes.writes import (
    Applier,
    FencedWrites,
    fence_of,
    stamp,
    start_mark,
)
from greylag.cluster.shared import ChangeFeed
from greylag.common.concurrent import cancel_all
from greylag.domain.errors import ClusterError
from greylag.domain.lifecycle import Observation, Observed
from greylag.domain.names import EnvironmentNames, environment_names
from greylag.domain.project import DEFAULT_TEMPLATE, Environment, ProjectRef
from greylag.ports import AgentAddress, FoundEnvironment

WATCHED = (
    "Namespace",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "Service",
    "Ingress",
    "Deployment",
    "Pod",
)
CHECK_SECONDS = 3.0
TAKEN_UP_SECONDS = 2.0

_log = structlog.get_logger(__name__)


class KubernetesCluster:
    """Environments as Deployments of one pod, in a namespace for each user.

    Any number of these, in any number of processes, may work on one cluster. The informers begin
    with the first look, so that a web, which only reaches agents, has none. Make it on the running
    loop.

    Args:
        api: the cluster's; it is closed with this.
        options: what environments are like.
        variables: agentd's environment variables, the model provider's key among them.
        namespace_prefix: begins the names of our namespaces.
        instance: gives the id by which our namespaces are told from those of another Greylag with
            the same prefix; ``None``: nobody else's are there.
        lease: how many seconds a worker's claim lasts, by which it looks.
    """

    kind = "kubernetes"

    def __init__(  # noqa: PLR0913 - each is a part of its own
        self,
        api: Api,
        options: Options,
        variables: Mapping[str, str],
        *,
        namespace_prefix: str = "user-",
        instance: Callable[[], Awaitable[str]] | None = None,
        lease: float = math.inf,
    ) -> None:
        self._api = api
        self._options = options
        self.notice = options.open_to_all
        self._variables = variables
        self.namespace_prefix = namespace_prefix
        self._unasked = ChangeFeed()
        self._informers = Informers(api, WATCHED)
        self._cache = ProjectCache(self._informers, self._unasked)
        self._proxy = ServiceProxy(api.connection)
        self._keys = AgentKeys(options.agent_key)
        self._locator = AgentLocator(api, options, self._keys, self._proxy)
        self._probe = AddressProbe()
        self._ownership = Ownership(api, self._cache, instance or _nobody_else)
        self._applier = Applier(api, self._cache, self._ownership, options, self._keys, variables)
        self._observer = EnvironmentObserver(
            api,
            self._informers,
            self._cache,
            options,
            locator=self._locator,
            probe=self._probe,
            refreshed=self._applier.refreshed,
            lease=lease,
        )
        self._writes = FencedWrites(
            api, self._informers, self._cache, keeps_namespaces=options.keeps_namespaces
        )
        self._watching: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def check(self) -> None:
        """Ask the API server whether it takes us.

        One that cannot be reached now is only told of in the log: that may pass.

        Raises:
            ConfigError: the settings lead to what does not take us.
        """
        if self.notice:
            _log.warning("agents_open_to_all", reason=self.notice)
        try:
            version = await server_version(self._api.within(CHECK_SECONDS))
        except ClusterError as error:
            _log.warning("kubernetes_unreachable", error=str(error))
        else:
            _log.info("kubernetes", version=version)

    async def observe(self, environment: Environment) -> Observation:
        """Return how the environment stands, as the informers know it. Where another Greylag has
        its namespace there is none of ours.
        """
        self._begin()
        seen = await self._observer.observe(environment)
        namespace = environment.names.namespace
        if (other := await self._ownership.other(namespace)) is not None:
            return Observation(Observed.ABSENT, error=foreign(namespace, other).info)
        if seen.state is Observed.ABSENT:
            seen = await self._observer.confirmed(environment, seen)
        if seen.state is not Observed.READY:
            return seen
        deployment = self._observer.objects(environment).deployment
        return replace(seen, outdated=self._applier.outdated(environment, deployment))

    async def prepare(self, environment: Environment) -> None:
        """Apply all objects with no pod; an environment that exists only gets the claim."""
        environment = await self._ours(environment)

        async def step(found: Object | None) -> dict[str, Any] | None:
            if found is None:
                return await self._made_asleep(environment)
            return await self._writes.stamped(environment, found)

        await self._writes.do(environment, step)
        await self._taken_up(environment)

    async def start(self, environment: Environment) -> None:
        """Apply all objects with one pod; a failed one gets a new pod."""
        self._begin()
        state = (await self._observer.latest(environment)).state
        environment = await self._ours(environment)

        async def step(found: Object | None) -> dict[str, Any] | None:
            if found is not None and wants_pod(found) and state is not Observed.FAILED:
                return await self._writes.stamped(environment, found)
            if state is Observed.STOPPING:
                raise ClusterError(
                    "The environment is still being stopped.", code="environment_stopping"
                )
            mark = start_mark(found)
            if state is Observed.FAILED and self._observer.objects(environment).failed_itself:
                mark = f"{environment.generation}.{environment.fence.number}"
            mark = self._keys.mark(mark, running=found is not None and wants_pod(found))
            return await self._applier.apply(environment, found, replicas=1, mark=mark)

        await self._writes.do(environment, step)

    async def stop(self, environment: Environment) -> None:
        """Scale to no pod."""
        environment = await self._ours(environment)
        self._locator.forget(environment)

        async def step(found: Object | None) -> dict[str, Any] | None:
            if found is None:
                ownerless = self._observer.objects(environment).is_ownerless
                return await self._made_asleep(environment) if ownerless else None
            patch = {"metadata": stamp(environment, found), "spec": {"replicas": 0}}
            return await self._writes.patched(environment, patch)

        await self._writes.do(environment, step)

    async def delete(self, environment: Environment) -> None:
        """Remove everything, the volume too; an environment that has a pod is refused."""
        environment = await self._ours(environment)
        self._locator.forget(environment)

        async def step(found: Object | None) -> dict[str, Any] | None:
            # One whose removal was cut off is stopping too, and is gone on with.
            if self._observer.objects(environment).is_empty:
                # Annotations count for a Deployment's generation: the mark of the last try, or
                # the controller's own, may be what it has not taken up yet.
                await self._taken_up(environment)
            if not self._observer.objects(environment).is_idle:
                raise ClusterError(
                    "The environment must be stopped before it can be deleted.",
                    code="environment_running",
                )
            await self._writes.remove(environment, found)
            return None

        await self._writes.do(environment, step)

    async def changed(self, environment: Environment, timeout: float) -> None:  # noqa: ASYNC109 - the port's
        """Return once the project's objects changed after the last look, or after ``timeout``."""
        self._begin()
        await self._observer.changed(environment, timeout)

    async def changes(self) -> AsyncIterator[ProjectRef]:
        """Yield projects that are to run and lost a pod or objects, or are ready though nobody here
        waits for that, until ``close``.
        """
        heard = self._unasked.listen()
        self._begin()
        async for ref in heard:
            yield ref
        if self._watching is not None and self._watching.done() and not self._closing.is_set():
            self._watching.result()

    async def reach(self, environment: Environment) -> AgentAddress:
        """Return the agent's address and its token."""
        # Nobody watches in a process that only serves requests.
        watched = self._observer.objects(environment) if self._informers.live else None
        return await self._locator.reach(environment, watched)

    @asynccontextmanager
    async def logs(
        self, environment: Environment, *, follow: bool, tail: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the log of the environment's pod."""
        lines = (log.followed if follow else log.last_lines)(self._api, environment, tail)
        async with aclosing(lines):
            yield lines

    async def inventory(self) -> Sequence[ProjectRef]:
        """Return whose Deployments and volumes there are in namespaces named for them, of ours."""
        return [one.ref for one in await self.found() if one.instance is None]

    async def found(self) -> Sequence[FoundEnvironment]:
        """Return what Deployments and volumes tell, also in namespaces of another Greylag."""
        self._begin()
        await self._observer.fresh()
        return [
            self._described(ref, await self._ownership.other(namespace))
            for ref, namespace in self._cache.refs()
            if namespace == self._names(ref).namespace
        ]

    async def take_over(self, found: FoundEnvironment) -> None:
        """Put our id on the namespace, if it carries that of ``found``."""
        with translated():
            await self._ownership.take(found.names.namespace, frm=found.instance)

    async def close(self) -> None:
        """End the informers and close all connections; the environments go on."""
        self._closing.set()
        if self._watching is not None:
            await cancel_all([self._watching])
        self._unasked.close()
        self._cache.wake()
        await self._proxy.close()
        await self._probe.close()
        await self._api.close()

    def _names(self, ref: ProjectRef) -> EnvironmentNames:
        return environment_names(ref.user_id, ref.project_id, prefix=self.namespace_prefix)

    def _described(self, ref: ProjectRef, instance: str | None) -> FoundEnvironment:
        names = self._names(ref)
        deployment = self._cache.find("Deployment", names.namespace, names.deployment)
        fence = fence_of(deployment)
        return FoundEnvironment(
            ref=ref,
            names=names,
            record_id=fence.record_id if fence else None,
            claim=fence.number if fence else 0,
            name=str(noted(deployment, NAME_ANNOTATION) or ""),
            template=noted(deployment, TEMPLATE_ANNOTATION) or DEFAULT_TEMPLATE,
            wanted=deployment is not None and wants_pod(deployment),
            instance=instance,
        )

    def _begin(self) -> None:
        if self._watching is None and not self._closing.is_set():
            self._watching = asyncio.create_task(self._informers.run(), name="kubernetes informers")
            self._watching.add_done_callback(self._informers_ended)

    def _informers_ended(self, task: "asyncio.Task[None]") -> None:
        """Let whoever hears ``changes`` learn of it; ``observe`` knows nothing from now on."""
        if not task.cancelled() and task.exception() is not None:
            _log.error("kubernetes_informers_died", exc_info=task.exception())
        self._unasked.close()

    async def _ours(self, environment: Environment) -> Environment:
        """Return the environment with our id; ``ClusterError`` when it is another Greylag's."""
        self._begin()
        await self._observer.fresh()
        return await self._ownership.checked(environment)

    async def _made_asleep(self, environment: Environment) -> dict[str, Any]:
        """Apply all objects, and a Deployment that takes over what pods there are and ends them."""
        mark = self._keys.mark(start_mark(None), running=False)
        return await self._applier.apply(environment, None, replicas=0, mark=mark)

    async def _taken_up(self, environment: Environment) -> None:
        """Wait a moment for the cluster's controller to take up what was written last."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + TAKEN_UP_SECONDS
        while (
            not self._observer.objects(environment).is_idle and (left := give_up - loop.time()) > 0
        ):
            seen = await self._observer.observe(environment)
            if seen.state not in {Observed.STOPPING, Observed.STOPPED}:
                return
            await self._observer.changed(environment, min(left, 0.2))


async def _nobody_else() -> str:
    return ""
