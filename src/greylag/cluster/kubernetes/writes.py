"""Writing an environment under a claim, so that of two workers the newer one has its way.

The Deployment carries the newest claim, and each step compares it: ``FencedWrites`` refuses a step
under an older one, and one that was overtaken in between is refused by the API server, for it names
the resourceVersion that it was decided on. It also removes an environment's objects, the Deployment
last. ``Applier`` makes them what they are to be, by server-side apply, the Deployment last.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any

import structlog

from greylag.cluster.kubernetes.api import Api, server_version
from greylag.cluster.kubernetes.cache import ProjectCache, key_of
from greylag.cluster.kubernetes.diagnosis import is_removed
from greylag.cluster.kubernetes.failures import (
    ApiError,
    cause,
    cluster_error,
    of_cause,
    stuck_removal,
    terminating,
    translated,
)
from greylag.cluster.kubernetes.identity import (
    APPLIED_ANNOTATION,
    CLAIM_ANNOTATION,
    FINGERPRINT,
    GENERATION_ANNOTATION,
    INSTANCE_LABEL,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MANIFEST_ANNOTATION,
    NAME_ANNOTATION,
    PROJECT_LABEL,
    RECORD_ANNOTATION,
    REMOVING_ANNOTATION,
    SETTINGS_ANNOTATION,
    START_ANNOTATION,
    UNSTABLE,
    Object,
    annotation_of,
    config_name,
    fingerprint,
    is_edited,
    is_ours,
    label_of,
    missing_signature,
    secret_name,
    signed,
    volume_claim_name,
)
from greylag.cluster.kubernetes.informer import Informers
from greylag.cluster.kubernetes.isolation import shared_objects
from greylag.cluster.kubernetes.manifests import has_pod_limits, project_objects, settings_digest
from greylag.cluster.kubernetes.options import Options, quantity
from greylag.cluster.kubernetes.ownership import Ownership
from greylag.cluster.kubernetes.tokens import AgentKeys, random_token, token_of
from greylag.common.concurrent import beside
from greylag.domain.errors import ClusterError, OvertakenError
from greylag.domain.project import Environment, Fence, ProjectRef

READ_BACK_SECONDS = 3.0
NAMESPACE_GONE_SECONDS = 5.0
GONE_SECONDS = 5.0

_REMEMBERED = 10_000
_TRIES = 5
_REFUSED = frozenset({403, 422})
_VOLUME_FIELDS = ("storageClassName", "accessModes")
_UNWATCHED = frozenset({"ConfigMap", "LimitRange", "ResourceQuota", "Secret", "ServiceAccount"})
_POLL_SECONDS = 0.25
_DIGEST_LENGTH = 16

_log = structlog.get_logger(__name__)

FencedStep = Callable[[Object | None], Awaitable[dict[str, Any] | None]]
"""Takes the Deployment as it was read; returns it as it was written, None where it was not."""


class FencedWrites:
    """Does steps that write an environment's Deployment. The caches must be fresh.

    What steps call, as ``remove``, raises ``ApiError`` and ``ClusterError``.
    """

    def __init__(
        self, api: Api, informers: Informers, cache: ProjectCache, *, keeps_namespaces: bool
    ) -> None:
        self._api = api
        self._informers = informers
        self._cache = cache
        self._keeps_namespaces = keeps_namespaces
        # The newest claims of environments that this process deleted, as they carry them no more.
        self._deleted: OrderedDict[ProjectRef, Fence] = OrderedDict()

    async def do(self, environment: Environment, step: FencedStep) -> None:
        """Do ``step`` with the Deployment as it is now, again when somebody was there between.

        The caches know afterwards what it wrote.

        Raises:
            OvertakenError: the environment has seen a newer claim.
            ClusterError: the cluster refused the step.
        """
        names = environment.names
        found = self._cache.find("Deployment", names.namespace, names.deployment)
        for tried in range(1, _TRIES + 1):
            self._check(environment, found)
            try:
                written = await step(found)
            except ApiError as error:
                if not error.is_conflict or tried == _TRIES:
                    raise cluster_error(error) from error
                with translated():
                    found = await self._api.read("Deployment", names.namespace, names.deployment)
                continue
            if written is not None:
                await self._read_back(written)
            return

    async def stamped(self, environment: Environment, found: Object) -> dict[str, Any]:
        """Put the environment's claim on the Deployment ``found`` and return it."""
        if fence_of(found) == environment.fence:
            return dict(found)
        return await self.patched(environment, {"metadata": stamp(environment, found)})

    async def patched(self, environment: Environment, patch: dict[str, Any]) -> dict[str, Any]:
        """Patch the environment's Deployment and return it."""
        names = environment.names
        return await self._api.patch_merge("Deployment", names.namespace, names.deployment, patch)

    async def remove(self, environment: Environment, deployment: Object | None) -> None:
        """Remove all of an environment that does not run; the Deployment, with the claim, last.

        As long as that is there a removal that was cut off is done again, so the namespace goes
        before it.

        Args:
            environment: which environment.
            deployment: that which was looked at: if it has changed since, or come, ``ApiError``
                409.
        """
        if deployment is None:
            await _check_unmade(self._api, environment)
        else:
            metadata = stamp(environment, deployment)
            metadata["annotations"][REMOVING_ANNOTATION] = environment.fence.record_id
            deployment = await self.patched(environment, {"metadata": metadata})
        await self._remove_parts(environment)
        await self._gone(environment, "PersistentVolumeClaim", volume_claim_name(environment))
        await self._remove_unused_namespace(environment.names.namespace)
        if deployment is not None:
            await self._api.delete(
                "Deployment",
                environment.names.namespace,
                environment.names.deployment,
                uid=deployment["metadata"]["uid"],
                version=deployment["metadata"]["resourceVersion"],
            )
            await self._gone(environment, "Deployment", environment.names.deployment)
        self._deleted[environment.ref] = environment.fence
        self._deleted.move_to_end(environment.ref)
        if len(self._deleted) > _REMEMBERED:
            self._deleted.popitem(last=False)

    def _check(self, environment: Environment, deployment: Object | None) -> None:
        newest = fence_of(deployment) or self._deleted.get(environment.ref)
        fence = environment.fence
        if newest and newest.record_id == fence.record_id and newest.number > fence.number:
            raise OvertakenError(newest.number)

    async def _remove_parts(self, environment: Environment) -> None:
        names = environment.names
        parts = (
            ("Ingress", names.ingress),
            ("Service", names.service),
            ("PersistentVolumeClaim", volume_claim_name(environment)),
            ("ConfigMap", config_name(environment)),
            ("Secret", secret_name(environment)),
        )
        for kind, name in parts:
            # The claim sees to it that nobody makes one of that name anew meanwhile.
            await self._api.delete(kind, names.namespace, name, again=True)

    async def _gone(self, environment: Environment, kind: str, name: str) -> None:
        """Return when the caches know an object no more; raise what holds it up."""
        key = key_of(environment)
        with suppress(TimeoutError):
            async with asyncio.timeout(GONE_SECONDS):
                while self._cache.find(kind, environment.names.namespace, name) is not None:
                    await self._cache.changed(key, self._cache.version(key), GONE_SECONDS)
        left = self._cache.find(kind, environment.names.namespace, name)
        if left is not None:
            raise of_cause(stuck_removal(kind, left))

    async def _remove_unused_namespace(self, name: str) -> None:
        """Remove the user's namespace, which the caches know only if it is ours, if neither we nor
        others need things there, and nothing is left that only the operator can put there again.

        Of several environments that are removed at once each is marked before it looks, so the last
        one sees the marks of all.
        """
        known = self._cache.find("Namespace", "", name)
        if self._keeps_namespaces or known is None or is_removed(known):
            return
        deployments = (await self._api.list("Deployment", name)).items
        going = {_slug(one) for one in deployments if is_being_removed(one)} - {None}
        volumes = (await self._api.list("PersistentVolumeClaim", name)).items
        pods = (await self._api.list("Pod", name)).items
        if any(_slug(one) not in going for one in (*deployments, *volumes, *pods)):
            return
        with suppress(ApiError):
            # Another worker may be ahead, or the account may not remove namespaces: nothing in it
            # is needed, so that is no harm.
            await self._api.delete("Namespace", None, name, uid=known["metadata"]["uid"])

    async def _read_back(self, written: Object) -> None:
        """Wait until the informers know what was written, so that the next look sees it."""
        if not is_ours(written):
            # No watch tells of it, and each look would have it made anew.
            who, name = "something, such as an admission webhook,", written["metadata"]["name"]
            changed = cause("environment_contested", kind="Deployment", name=name, who=who)
            raise of_cause(replace(changed, final=True))
        version = written["metadata"]["resourceVersion"]
        if not await self._informers["Deployment"].reached(version, READ_BACK_SECONDS):
            raise ClusterError(
                "The cluster took a change, but does not show it yet.",
                code="cluster_unavailable",
                hint="Greylag looks again by itself.",
            )


async def _check_unmade(api: Api, environment: Environment) -> None:
    """Raise ``ApiError`` 409 if there is a Deployment though the caches, which may be behind, have
    none: a step that names no resourceVersion would be done whatever claim it carries.
    """
    names = environment.names
    if is_ours(await api.read("Deployment", names.namespace, names.deployment)):
        raise ApiError(409, "Conflict", "No watch has told of the Deployment yet.")


def fence_of(deployment: Object | None) -> Fence | None:
    """Return the newest claim that a Deployment has seen."""
    record = annotation_of(deployment, RECORD_ANNOTATION)
    number = annotation_of(deployment, CLAIM_ANNOTATION) or ""
    return Fence(record, int(number)) if record and number.isdecimal() else None


def stamp(environment: Environment, deployment: Object) -> dict[str, Any]:
    """Return the ``metadata`` of a patch that puts the claim on, if nothing changed since."""
    annotations = {
        RECORD_ANNOTATION: environment.fence.record_id,
        CLAIM_ANNOTATION: str(environment.fence.number),
        NAME_ANNOTATION: json.dumps(environment.name),
    }
    stamped = {
        "resourceVersion": deployment["metadata"]["resourceVersion"],
        "annotations": annotations,
    }
    if environment.instance:
        stamped["labels"] = {INSTANCE_LABEL: environment.instance}
    return stamped


def is_being_removed(deployment: Object) -> bool:
    """Tell whether the removal of this very environment has begun; there is no way back then."""
    removing = annotation_of(deployment, REMOVING_ANNOTATION)
    return removing is not None and removing == annotation_of(deployment, RECORD_ANNOTATION)


def _slug(thing: Object) -> str | None:
    """Return which project's an object is, ``None`` for what is not ours."""
    return label_of(thing, PROJECT_LABEL) if is_ours(thing) else None


def start_mark(deployment: Object | None) -> str:
    """Return the mark under which a Deployment makes its pod."""
    return annotation_of(deployment, START_ANNOTATION) or "1"


class Applier:
    """Applies all objects of environments. Raises ``ApiError`` and ``ClusterError``."""

    def __init__(  # noqa: PLR0913, PLR0917 - each is a part of its own
        self,
        api: Api,
        cache: ProjectCache,
        ownership: Ownership,
        options: Options,
        keys: AgentKeys,
        variables: Mapping[str, str],
    ) -> None:
        self._api = api
        self._ownership = ownership
        self._keys = keys
        self._cache = cache
        # As they were given: what is learned of the cluster meanwhile makes nothing outdated.
        self._configured = self._options = options
        self._variables = variables

    async def apply(
        self, environment: Environment, found: Object | None, *, replicas: int, mark: str
    ) -> dict[str, Any]:
        """Make everything as it is to be, the Deployment last, and return that.

        What is known to be so is not written: the caches' objects, and the Secret where no key
        tells the token, so that it has to be read.

        Args:
            environment: which environment.
            found: the Deployment as it was read; if it has changed since, or come, ``ApiError``
                409.
            replicas: 0 or 1.
            mark: as long as it stays the same, the pod does.
        """
        rules = await self._ready_namespace(environment)
        # One after the other, what a slow API server answers would take longer than a step may.
        async with beside(self._secret(environment, mark), "secret of an environment") as reading:
            await self._all(rules)
            secret, token = await reading
        if token is None:
            token = random_token()
            if found is not None:
                # Whatever runs of it still demands the token that was lost.
                mark = f"{environment.generation}.{environment.fence.number}"
        if self._options.shared_cpu is None:
            shared = has_pod_limits(await server_version(self._api))
            self._options = self._options.model_copy(update={"shared_cpu": shared})
        things = project_objects(
            environment, self._options, self._variables, token=token, replicas=replicas
        )
        deployment = next(thing for thing in things if thing["kind"] == "Deployment")
        await self._all([thing for thing in things if thing is not deployment], secret)
        if all(thing["kind"] != "Ingress" for thing in things):
            await self._remove_ingress(environment)
        deployment["metadata"]["annotations"] |= {
            START_ANNOTATION: mark,
            GENERATION_ANNOTATION: str(environment.generation),
            SETTINGS_ANNOTATION: self._settings(environment, mark),
        }
        deployment["spec"]["template"]["metadata"]["annotations"][START_ANNOTATION] = mark
        if found is None:
            await _check_unmade(self._api, environment)
        else:
            deployment["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        return await self._applied(_fitted(deployment, found))

    async def refreshed(self, environment: Environment, found: Object) -> bool:
        """Set right what no watch tells of, of an environment that runs; tell if that was possible.

        It is not when the Secret alone held the token, and somebody deleted or changed it.
        """
        environment = replace(environment, instance=await self._ownership.instance())
        secret, token = await self._secret(environment, start_mark(found))
        if token is None:
            return False
        things = project_objects(
            environment, self._options, self._variables, token=token, replicas=1
        )
        parts = (*shared_objects(environment, self._options), *things)
        await self._all([thing for thing in parts if thing["kind"] in _UNWATCHED], secret)
        return True

    def outdated(self, environment: Environment, deployment: Object | None) -> str | None:
        """Return the digest of the settings of now if the Deployment was applied with others.

        Where a template does not exist any more nothing can be applied, so nothing is lacking.
        """
        mark = self._keys.mark(start_mark(deployment), running=False)
        try:
            now = self._settings(environment, mark)
        except ClusterError:
            return None
        return None if annotation_of(deployment, SETTINGS_ANNOTATION) == now else now

    def _settings(self, environment: Environment, mark: str) -> str:
        key = self._keys.named(mark)
        return settings_digest(environment, self._configured, self._variables, key)

    async def _secret(
        self, environment: Environment, mark: str
    ) -> tuple[Object | None, str | None]:
        """Return the environment's Secret, if it was read, and the token, unless that is lost."""
        derived = self._keys.token(environment.id, mark)
        if derived is not None:
            return None, derived
        name = secret_name(environment)
        secret = await self._api.read("Secret", environment.names.namespace, name)
        if secret is None or is_edited({**secret, FINGERPRINT: fingerprint("Secret", secret)}):
            return None, None
        return secret, token_of(secret)

    async def _remove_ingress(self, environment: Environment) -> None:
        """Remove the Ingress of a time when there was a domain: it would show the agent still."""
        names = environment.names
        if self._cache.find("Ingress", names.namespace, names.ingress) is not None:
            await self._api.delete("Ingress", names.namespace, names.ingress, again=True)

    async def _ready_namespace(self, environment: Environment) -> Sequence[Object]:
        """See to the namespace; return its rules, which stand before anything can run there."""
        namespace, *rules = shared_objects(environment, self._options)
        await self._not_terminating(environment.names.namespace)
        await self._all([namespace])
        name, ours = environment.names.namespace, environment.instance
        # A watch may tell of a new one before the answer to its making comes.
        if ours and label_of(self._cache.find("Namespace", "", name), INSTANCE_LABEL) != ours:
            await self._ownership.take(name, frm=None)
        return rules

    async def _not_terminating(self, name: str) -> None:
        """Wait a little for a namespace that is being removed; ``ClusterError`` if it lasts."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + NAMESPACE_GONE_SECONDS
        while (known := self._cache.find("Namespace", "", name)) is not None:
            if not is_removed(known):
                return
            if loop.time() >= give_up:
                raise of_cause(terminating(known))
            await asyncio.sleep(_POLL_SECONDS)
        other = await self._ownership.take(name, frm=None)
        if other is not None and not is_ours(other):
            raise ClusterError(
                f"The namespace {name} exists and is not Greylag's.",
                code="namespace_foreign",
                hint="Choose another KUBE_NAMESPACE_PREFIX, or label the namespace "
                f"{MANAGED_BY_LABEL}={MANAGED_BY} to hand it over.",
                terminal=True,
            )

    async def _all(self, things: Sequence[Object], secret: Object | None = None) -> None:
        """Apply what may be applied in any order, all at once; the first refusal ends it."""
        wanted = [_fitted(_with_digest(thing), self._kept(thing)) for thing in things]
        done = await asyncio.gather(
            *(
                self._applied(thing)
                for thing in wanted
                if not is_as_wanted(
                    thing, secret if thing["kind"] == "Secret" else self._kept(thing)
                )
            ),
            return_exceptions=True,
        )
        for one in done:
            if isinstance(one, BaseException):
                raise one

    def _kept(self, thing: Object) -> Object | None:
        """Return what the caches know of an object, None where its kind is not watched."""
        kind, meta = thing["kind"], thing["metadata"]
        if kind in _UNWATCHED:
            return None
        return self._cache.find(kind, meta.get("namespace", ""), meta["name"])

    async def _applied(self, thing: Object) -> dict[str, Any]:
        """Apply one object and return it; it carries the fingerprint of what it is then."""
        try:
            applied = await self._api.apply(signed(thing))
        except ApiError as error:
            there = self._kept(thing) if thing["kind"] == "PersistentVolumeClaim" else None
            if there is None or error.status not in _REFUSED:
                raise
            # Its class, or a quota, does not let it grow.
            applied = await self._api.apply(_unresized(thing, there))
        kind, meta = thing["kind"], thing["metadata"]
        if (mark := missing_signature(kind, applied)) is None:
            return applied
        signature = await self._signature(thing, mark)
        if (again := missing_signature(kind, signature)) is None:
            return signature
        _log.warning("kubernetes_object_unstable", kind=kind, name=meta["name"], mark=again)
        return await self._signature(thing, UNSTABLE)

    async def _signature(self, thing: Object, mark: str) -> dict[str, Any]:
        # Its status may have changed meanwhile, which is no reason to begin anew.
        kind, meta = thing["kind"], thing["metadata"]
        patch = {"metadata": {"annotations": {APPLIED_ANNOTATION: mark}}}
        return await self._api.patch_merge(kind, meta.get("namespace"), meta["name"], patch)


def _with_digest(thing: Object) -> dict[str, Any]:
    """Return a manifest that says what it is: a field that it lacks by now changes that too."""
    whole = json.dumps(thing, sort_keys=True, separators=(",", ":"))
    digest = sha256(whole.encode()).hexdigest()[:_DIGEST_LENGTH]
    annotations = {**(thing["metadata"].get("annotations") or {}), MANIFEST_ANNOTATION: digest}
    return {**thing, "metadata": {**thing["metadata"], "annotations": annotations}}


def is_as_wanted(wanted: Object, there: Object | None) -> bool:
    """Tell whether applying ``wanted`` would change nothing of what is ``there``."""
    if there is None or is_removed(there) or is_edited(there):
        return False
    parts = {key: value for key, value in wanted.items() if key not in {"apiVersion", "kind"}}
    return _holds(there, parts)


def _holds(there: Any, wanted: Any) -> bool:
    """Tell whether all of ``wanted`` is in it; fields beside that are others' or defaults."""
    if isinstance(wanted, dict) and wanted:
        return isinstance(there, Mapping) and all(
            _holds(there.get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list) and wanted:
        return (
            isinstance(there, Sequence)
            and len(there) == len(wanted)
            and all(_holds(one, value) for one, value in zip(there, wanted, strict=True))
        )
    # The API server leaves out what is empty.
    return bool(there == wanted) or (wanted in ({}, []) and not there)


def _fitted(wanted: Object, there: Object | None) -> dict[str, Any]:
    """Return a manifest that the API server takes in place of what is there.

    What it does not let be changed of an object stays as it is, so that the environment goes on
    though a setting has changed: a volume's class and access modes, a size that would shrink or
    that its class cannot grow, a Deployment's selector.

    Args:
        wanted: the manifest as the settings make it.
        there: the object as it is kept by the informers, ``None`` when there is none.
    """
    if there is None:
        return dict(wanted)
    if wanted["kind"] == "PersistentVolumeClaim":
        kept = {name: there["spec"][name] for name in _VOLUME_FIELDS if name in there["spec"]}
        spec = {**wanted["spec"], **kept}
        if _size(wanted) < _size(there):
            spec["resources"] = {
                "requests": {"storage": there["spec"]["resources"]["requests"]["storage"]}
            }
        return {**wanted, "spec": spec}
    if wanted["kind"] == "Deployment" and (selector := there["spec"].get("selector")):
        template = wanted["spec"]["template"]
        chosen = {**template["metadata"]["labels"], **selector["matchLabels"]}
        meta = {**template["metadata"], "labels": chosen}
        changed = {"selector": selector, "template": {**template, "metadata": meta}}
        return {**wanted, "spec": {**wanted["spec"], **changed}}
    return dict(wanted)


def _unresized(claim: Object, there: Object) -> dict[str, Any]:
    """Return the manifest of a volume claim with the size that it has."""
    return {**claim, "spec": {**claim["spec"], "resources": there["spec"]["resources"]}}


def _size(claim: Object) -> Any:
    return quantity(claim["spec"]["resources"]["requests"]["storage"])
