"""Which namespaces are ours: in those of another Greylag on the same cluster nothing is changed."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from greylag.cluster.kubernetes.api import Api
from greylag.cluster.kubernetes.cache import ProjectCache
from greylag.cluster.kubernetes.failures import ApiError, translated
from greylag.cluster.kubernetes.identity import INSTANCE_LABEL, Object, is_ours, label_of
from greylag.domain.errors import ClusterError
from greylag.domain.project import Environment


class Ownership:
    """Which namespaces are ours. What a namespace says counts for all that is in it.

    It carries the id of the Greylag that first wrote in it, put there in one atomic step. One that
    an earlier version made has none, and is ours once a project in our records leads to it.
    """

    def __init__(
        self, api: Api, cache: ProjectCache, instance: Callable[[], Awaitable[str]]
    ) -> None:
        self._api = api
        self._cache = cache
        self._ask = instance
        self._own = ""

    async def instance(self) -> str:
        """Return our id. Raises ``StoreUnavailableError``."""
        self._own = self._own or await self._ask()
        return self._own

    async def other(self, namespace: str) -> str | None:
        """Return the id of the other Greylag whose namespace this is; ``None`` for all else."""
        owner = label_of(self._cache.find("Namespace", "", namespace), INSTANCE_LABEL)
        own = await self.instance()
        return owner if own and owner != own else None

    async def checked(self, environment: Environment) -> Environment:
        """Return the environment with our id, and with its namespace made ours if that is nobody's.

        Raises:
            ClusterError: it is another Greylag's (terminal), or nothing is known.
            StoreUnavailableError: our id is not known.
        """
        name = environment.names.namespace
        with translated():
            await self._take(name, self._cache.find("Namespace", "", name), frm=None)
        return replace(environment, instance=await self.instance())

    async def take(self, name: str, *, frm: str | None) -> Object | None:
        """Make a namespace ours that is nobody's, or the other Greylag's with the id ``frm``.

        Returns it as it was, ``None`` where it is not there. Raises as ``checked``, but
        ``ApiError``.
        """
        found = await self._api.read("Namespace", None, name)
        await self._take(name, found, frm=frm)
        return found

    async def _take(self, name: str, known: Object | None, *, frm: str | None) -> None:
        own = await self.instance()
        while known is not None and own and is_ours(known):
            owner = label_of(known, INSTANCE_LABEL)
            if owner == own:
                return
            if owner not in {None, frm}:
                raise foreign(name, str(owner))
            version = known["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version, "labels": {INSTANCE_LABEL: own}}}
            try:
                known = await self._api.patch_merge("Namespace", None, name, patch)
            except ApiError as error:
                if not error.is_conflict:
                    raise
                known = await self._api.read("Namespace", None, name)


def foreign(namespace: str, instance: str) -> ClusterError:
    """Return the refusal of what another Greylag has in a namespace."""
    return ClusterError(
        f"The namespace {namespace} belongs to another Greylag on this cluster, {instance}.",
        code="environment_foreign",
        hint="Give one of the two another KUBE_NAMESPACE_PREFIX. If the records of that one are "
        f"lost, `greylag orphans --adopt --instance {instance}` takes its environments over.",
        terminal=True,
    )
