"""The only place where every adapter is chosen and everything is constructed (clusters: there)."""

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from urllib.parse import urlsplit

import structlog

from greylag import __version__, clusters
from greylag.agent.http import HttpAgents
from greylag.agentd.agent.types import ModelProvider
from greylag.agentd.config import AgentdConfigError, AgentdSettings
from greylag.agentd.model.provider import problem_of
from greylag.agentd.model.relay import provider
from greylag.archives import DATABASE, place_of, sealing_of, shell
from greylag.common.agent_api import LEGACY_API
from greylag.common.audit_copy import AuditCopy
from greylag.common.clock import SystemClock
from greylag.common.concurrent import cancel_all
from greylag.common.net import proxy_variables
from greylag.config import Settings, agent_environment, authorities, oidc_secret
from greylag.delivery.http import HttpDelivery
from greylag.domain.audit import to_json
from greylag.domain.errors import ConfigError, IdentityProviderUnavailableError
from greylag.domain.project import NewEvent
from greylag.domain.users import SignUp
from greylag.ports import (
    AgentGateway,
    AuthorizationRequest,
    Clock,
    Cluster,
    Delivery,
    IdentityProvider,
    ProjectStore,
)
from greylag.reconcile.reconciler import Pace, Reconciler, World
from greylag.reconcile.worker import Worker
from greylag.services.access import Gate
from greylag.services.accounts import Accounts, AuditReader
from greylag.services.activity import Activities
from greylag.services.agents import Agents
from greylag.services.audit import Audit
from greylag.services.notifications import Notifications
from greylag.services.notifier import Notifier
from greylag.services.orphans import Orphans
from greylag.services.people import People, SignInLimits
from greylag.services.projects import Projects
from greylag.services.secrets import Secrets
from greylag.services.sharing import Members, Shares
from greylag.services.sign_in import SignIn, SignInRules
from greylag.services.tokens import DeviceLogins, Tokens
from greylag.services.transcripts import Transcripts
from greylag.services.use_cases import DEMONSTRATION, OPEN_TO_ALL, ModelInUse, Platform, UseCases
from greylag.store.people import RecentPeople
from greylag.store.sqlite.archive import is_there
from greylag.store.sqlite.store import SqliteStore

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Adapters:
    """What stands behind the ports."""

    store: ProjectStore
    cluster: Cluster
    agents: AgentGateway
    delivery: Delivery
    clock: Clock = field(default_factory=SystemClock)
    provider: IdentityProvider | None = None


@dataclass(frozen=True, slots=True)
class Application:
    """What the programs are made of."""

    use_cases: UseCases
    reconciler: Reconciler
    worker: Worker
    notifier: Notifier


def build(
    settings: Settings,
    adapters: Adapters,
    *,
    worker: str | None = None,
    rng: random.Random | None = None,
) -> Application:
    """Put the use cases and the worker together over ``adapters``; nothing is opened or started.

    Args:
        settings: how long things take, who the users are, and what the platform is called.
        adapters: used by all of it; whoever opened them closes them.
        worker: its name in the store; None: the process's own.
        rng: spreads retries; None: a new one.
    """
    store, cluster, clock = adapters.store, adapters.cluster, adapters.clock
    worker = worker or _process_name()
    use_cases = _use_cases(settings, adapters)
    rng = rng or random.Random()  # noqa: S311 - spreads retries, guards nothing
    reconciler = Reconciler(_world(settings, adapters, use_cases, rng), worker)
    return Application(
        use_cases=use_cases,
        reconciler=reconciler,
        worker=Worker(store, cluster, clock, reconciler, concurrency=settings.worker_concurrency),
        notifier=Notifier(
            use_cases.notifications,
            store,
            use_cases.people,
            use_cases.activities,
            use_cases.agents,
            adapters.agents,
            clock,
            worker,
        ),
    )


def _world(
    settings: Settings, adapters: Adapters, use_cases: UseCases, rng: random.Random
) -> World:
    return World(
        adapters.store,
        adapters.cluster,
        adapters.agents,
        adapters.clock,
        Pace(
            lease=settings.lease_seconds,
            resync=settings.resync_seconds,
            activation_timeout=settings.activation_timeout,
            idle=settings.idle_hours * 3600 if settings.idle_hours else None,
        ),
        rng=rng,
        warnings=lambda: _warnings(use_cases.platform.model),
        git=use_cases.secrets.setup,
        must_sleep=use_cases.accounts.must_sleep,
        sleep=use_cases.projects.sleep_unused,
        wake=use_cases.projects.wake,
        transcripts=settings.transcripts == "on",
    )


def _use_cases(settings: Settings, adapters: Adapters) -> UseCases:
    store, clock = adapters.store, adapters.clock
    recent = RecentPeople(store, clock)
    people = People(recent, settings.user_list, clock, _sign_in_limits(settings))
    gate = Gate(recent, people, store, clock)
    members = Members(recent, people, store, gate, clock)
    projects = Projects(
        store,
        gate,
        members,
        clock,
        namespace_prefix=settings.namespace_prefix,
        activation_timeout=settings.activation_timeout,
        limits=settings.default_limits,
    )
    agents = Agents(
        projects,
        adapters.cluster,
        adapters.agents,
        terminal=settings.terminal == "on",
        transcripts=Transcripts(store) if settings.transcripts == "on" else None,
    )
    sealing = sealing_of(settings)
    notifications = Notifications(
        recent, gate, clock, adapters.delivery, sealing, settings.notification_contact
    )
    tokens = Tokens(recent, people, gate, clock, longest=timedelta(days=settings.token_days))
    return UseCases(
        projects=projects,
        agents=agents,
        activities=Activities(agents, adapters.agents),
        platform=_platform(settings, adapters.cluster),
        store=store,
        people=people,
        accounts=Accounts(people, gate, projects, recent, notifications, clock),
        gate=gate,
        members=members,
        audit_reader=AuditReader(store, gate),
        tokens=tokens,
        shares=Shares(recent, gate, clock),
        secrets=Secrets(recent, people, projects, gate, clock, sealing),
        notifications=notifications,
        device_logins=DeviceLogins(recent, people, tokens, gate, clock),
        sign_in=_sign_in(settings, adapters, people, gate.audit),
    )


def _sign_in(settings: Settings, adapters: Adapters, people: People, audit: Audit) -> SignIn | None:
    if adapters.provider is None:
        return None
    rules, store = _sign_in_rules(settings), adapters.store
    return SignIn(adapters.provider, rules, people, store, adapters.clock, audit=audit)


@asynccontextmanager
async def assembled(
    settings: Settings, *, patient: bool = False, tries_model: bool = True
) -> AsyncIterator[Application]:
    """Construct everything that ``settings`` ask for; it is closed, last first, on leaving.

    With ``tries_model`` the provider of models is tried meanwhile, and holds nothing up. With
    ``patient``, servers of the store that cannot be reached are waited for while everything else is
    there already.

    Raises:
        ConfigError: settings cannot work, or the data folder cannot be used.
        StoreUnavailableError: the store cannot be reached (not when ``patient``).
    """
    named = model_provider(settings)
    tried = named if tries_model else None
    _make_folder(settings)
    async with _opened(settings, patient=patient) as adapters:
        greylag = build(settings, adapters)
        audit = greylag.use_cases.audit
        beside = {
            asyncio.create_task(
                _try_model(tried, greylag.use_cases.platform.model), name="model-provider"
            ),
            asyncio.create_task(audit.run(timedelta(days=settings.audit_days)), name="audit"),
            asyncio.create_task(greylag.use_cases.secrets.seal_anew(), name="sealing"),
        }
        try:
            yield greylag
        finally:
            await cancel_all(beside)
            await greylag.use_cases.close()


@asynccontextmanager
async def assembled_web(settings: Settings) -> AsyncIterator[UseCases]:
    """Construct what a web needs that starts in a moment, anywhere, and keeps nothing: no folder is
    made, no index, and no worker runs. It is closed, last first, on leaving.

    Raises:
        ConfigError: settings cannot work.
        StoreUnavailableError: the store cannot be reached.
    """
    model_provider(settings)
    async with _opened(settings, prepare=False) as adapters:
        use_cases = build(settings, adapters).use_cases
        try:
            yield use_cases
        finally:
            await use_cases.close()


@asynccontextmanager
async def assembled_orphans(settings: Settings) -> AsyncIterator[Orphans]:
    """Construct what looks for environments without a record and removes them, with the store and
    the cluster of a worker with these settings. It is closed, last first, on leaving.

    A database is not made where none is: before an empty one, which may only be the wrong one,
    every environment is without a record.
    """
    path = settings.data / DATABASE
    if settings.mongodb_uri is None and not is_there(path):
        raise ConfigError(
            f"There is no database at {path}, so it cannot be told which environments have a "
            "record.",
            hint="Give the data folder with --data or GREYLAG_DATA. If its records are lost, start "
            "Greylag on it once: that makes a new database.",
        )
    async with _opened(settings) as adapters:
        yield Orphans(
            adapters.store,
            adapters.cluster,
            adapters.clock,
            place=place_of(settings),
            namespace_prefix=settings.namespace_prefix,
            worker=f"{_process_name()}-orphans",
            longest=settings.activation_timeout,
            by=shell(),
        )


@asynccontextmanager
async def _opened(
    settings: Settings, *, prepare: bool = True, patient: bool = False
) -> AsyncIterator[Adapters]:
    async with AsyncExitStack() as opened:
        store = await _open_store(settings, prepare=prepare, patient=patient)
        opened.push_async_callback(store.close)
        if settings.audit_copy:
            copy = _audit_copy(settings.audit_copy)
            opened.callback(copy.close)
            store.on_audit(lambda entry: copy.write(to_json(entry)))
        cluster = await clusters.open_cluster(settings, store)
        opened.push_async_callback(cluster.close)
        agents = HttpAgents()
        opened.push_async_callback(agents.close)
        clock = SystemClock()
        provider = _open_provider(settings, clock)
        if provider is not None:
            opened.push_async_callback(provider.close)
        delivery = HttpDelivery(
            tuple(filter(None, settings.notification_hosts.split(","))),
            authorities(settings),
            proxy_variables(agent_environment(settings)),
        )
        opened.push_async_callback(delivery.close)
        yield Adapters(store, cluster, agents, delivery, clock, provider)


def _audit_copy(where: str) -> AuditCopy:
    try:
        return AuditCopy(where)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"GREYLAG_AUDIT_COPY: {where} takes nothing: {reason}.") from error


def _open_provider(settings: Settings, clock: Clock) -> IdentityProvider | None:
    """Return the identity provider that the settings name; it is not asked anything yet."""
    if settings.oidc_issuer is None:
        return None
    # Only where it is used: what verifies tokens takes a fifth of a second to import.
    from greylag.identity.oidc import OidcOptions, OidcProvider  # noqa: PLC0415

    if settings.oidc_client_id is None:
        raise ConfigError(
            "GREYLAG_OIDC_ISSUER is set, but GREYLAG_OIDC_CLIENT_ID does not say what Greylag is "
            "called there.",
            hint="Register Greylag at the identity provider: docs/sign-in.md tells how.",
        )
    options = OidcOptions(
        issuer=settings.oidc_issuer,
        name=settings.oidc_name or urlsplit(settings.oidc_issuer).hostname or "",
        client_id=settings.oidc_client_id,
        client_secret=oidc_secret(settings),
        scopes=settings.oidc_scopes,
        authorities=authorities(settings),
        proxies=proxy_variables(agent_environment(settings)),
    )
    return OidcProvider(options, clock)


async def identity_provider_fault(settings: Settings) -> str | None:
    """Ask the identity provider what it says of itself; return why it cannot be used, if so.

    Raises:
        ConfigError: settings cannot work.
    """
    provider = _open_provider(settings, SystemClock())
    if provider is None:
        return None
    try:
        await provider.authorization_url(AuthorizationRequest("", "", "", ""))
    except IdentityProviderUnavailableError as error:
        return error.reason
    finally:
        await provider.close()
    return None


def _sign_in_limits(settings: Settings) -> SignInLimits:
    return SignInLimits(
        sign_up=SignUp(settings.sign_up),
        idle=timedelta(hours=settings.session_idle_hours),
        longest=timedelta(days=settings.session_days),
    )


def _sign_in_rules(settings: Settings) -> SignInRules:
    return SignInRules(
        user_claim=settings.oidc_user_claim,
        name_claim=settings.oidc_name_claim,
        groups_claim=settings.oidc_groups_claim,
        allowed_groups=_listed(settings.oidc_allowed_groups),
        allowed_domains=_listed(settings.oidc_allowed_domains.lower().replace("@", "")),
        admin_groups=_listed(settings.oidc_admin_groups),
        user_groups=_listed(settings.oidc_user_groups),
    )


def _listed(names: str) -> frozenset[str]:
    return frozenset(name.strip() for name in names.split(",")) - {""}


def model_provider(settings: Settings) -> ModelProvider | None:
    """Return the model provider that environments are given, None where a script plays the model.

    Raises:
        ConfigError: agentd would refuse what it is given.
    """
    if settings.model_key is not None and settings.model_url is None:
        raise ConfigError(
            "GREYLAG_MODEL_KEY is set, but GREYLAG_MODEL_URL does not say whose key it is.",
            hint="Set GREYLAG_MODEL_URL, as https://api.openai.com, or unset the key.",
        )
    folder = {"GREYLAG_AGENT_FOLDER": str(settings.data)}
    try:
        named = provider(AgentdSettings.from_env({**agent_environment(settings), **folder}))
    except AgentdConfigError as error:
        raise ConfigError(str(error)) from error
    return named and replace(named, authorities=authorities(settings))


async def _try_model(named: ModelProvider | None, model: ModelInUse | None) -> None:
    """Find out what is wrong with the provider, where that can be told, and say so."""
    if named is not None and model is not None:
        model.problem = await problem_of(named)
        if model.problem is not None:
            _log.warning("model_provider_problem", reason=model.problem)


def _warnings(model: ModelInUse | None) -> list[NewEvent]:
    """Return what an activation is to tell of the model provider."""
    if model is None or model.problem is None:
        return []
    hint = "Correct the settings, start Greylag again, and activate the project again."
    return [NewEvent("model_provider_problem", model.problem, hint)]


async def _open_store(
    settings: Settings, *, prepare: bool = True, patient: bool = False
) -> ProjectStore:
    if settings.mongodb_uri is None:
        return await SqliteStore.open(settings.data / DATABASE)
    # Only where it is used: the driver takes a fifth of a second to import.
    from greylag.store.mongo.connection import MongoLimits  # noqa: PLC0415
    from greylag.store.mongo.store import MongoStore  # noqa: PLC0415

    uri = settings.mongodb_uri.get_secret_value()
    limits = MongoLimits(
        operation=settings.mongodb_timeout, connections=settings.mongodb_connections
    )
    return await MongoStore.open(
        uri, settings.mongodb_db, limits=limits, prepare=prepare, patient=patient
    )


def _process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _platform(settings: Settings, cluster: Cluster) -> Platform:
    notices = [OPEN_TO_ALL] if settings.auth == "none" else []
    if settings.legacy_api:
        notices.append(LEGACY_API)
    if cluster.notice:
        notices.append(cluster.notice)
    host = urlsplit(settings.model_url or "").hostname
    return Platform(
        version=__version__,
        cluster=cluster.kind,
        store="mongodb" if settings.mongodb_uri else "sqlite",
        notice=" ".join(notices) or None,
        demonstration=None if settings.model_url else DEMONSTRATION,
        model=ModelInUse(host) if host else None,
    )


def _make_folder(settings: Settings) -> None:
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"GREYLAG_DATA: the folder {settings.data} cannot be made: {error.strerror}."
        ) from error
