"""Starts agentd and ends it: the one place where its parts are put together."""

import asyncio
import os
import signal
import socket
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path

import structlog
import uvloop
from starlette.types import ASGIApp

from greylag.agentd.agent.agent import Agent
from greylag.agentd.agent.types import (
    AgentCommand,
    AgentPort,
    AgentSetup,
    AgentUnavailableError,
    find_agent,
    harmless_variables,
    name_agent,
)
from greylag.agentd.api.app import Services, create_app
from greylag.agentd.api.preview import Previews
from greylag.agentd.changes.capture import Capture
from greylag.agentd.changes.service import ChangeService
from greylag.agentd.changes.store import SnapshotStore
from greylag.agentd.config import AgentdConfigError, AgentdSettings
from greylag.agentd.execution import ExecdProcess, Execution
from greylag.agentd.extensions import ExtensionService
from greylag.agentd.files import WorkspaceFiles
from greylag.agentd.git.relay import GitRelay
from greylag.agentd.git.service import GitService
from greylag.agentd.journal.folder import Journals
from greylag.agentd.model.relay import demonstration, provider, tell_problem
from greylag.agentd.records import Records, StorageError
from greylag.agentd.sessions import SessionService
from greylag.agentd.settings import GOOSE_SETTINGS, SettingsService
from greylag.agentd.terminals import Terminals
from greylag.agentd.turns.engine import TurnEngine
from greylag.agentd.turns.running import TurnPolicy
from greylag.agentd.volume import Volume
from greylag.common.agent_api import LEGACY_API
from greylag.common.concurrent import cancel_all
from greylag.common.logs import configure_logging
from greylag.common.public_hosts import NamedHosts
from greylag.common.server import HttpServer, ServerLimits, listen
from greylag.execd.processes import guard_memory

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2

_TURNS_END_WITHIN = 2.5
_KILLED_TURNS_END_WITHIN = 1.0
_LIMITS = ServerLimits(connections=512)
_CONNECTIONS_END_WITHIN = 1
_VOLUME_SECONDS = 10.0

_log = structlog.get_logger(__name__)


def run(settings: AgentdSettings) -> int:
    """Run agentd until SIGTERM or SIGINT.

    Returns:
        the exit code: 0 after a signal, 1 after a defect, 2 for settings that cannot work.
    """
    configure_logging(settings.log_format, "info")
    guard_memory()
    volume = Volume(settings.folder)
    try:
        settings.check()
        command = _agent_command(settings)
        volume.prepare(whole=settings.execd_socket is None)
        lock = volume.claim()
        os.chdir(volume.state)  # for a socket's path, which must be short
        listener = _listen(settings)
    except (AgentdConfigError, AgentUnavailableError) as error:
        _log.error("cannot_start", error=str(error))
        return EXIT_CONFIG
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, command, volume, listener))
    except StorageError as error:
        _log.error("cannot_start", error=str(error))
        return EXIT_FAILED
    except Exception:  # noqa: BLE001 - the outermost frame: it logs all of it and says so by its exit code
        _log.exception("agentd_failed")
        return EXIT_FAILED
    finally:
        os.close(lock)
    return EXIT_OK


def _agent_command(settings: AgentdSettings) -> AgentCommand:
    if settings.execd_socket is not None:
        return name_agent(settings.goose)
    return find_agent(settings.goose, os.environ)


async def _run_execd(settings: AgentdSettings, socket_path: Path) -> None:
    """Keep execd running, unless another does that."""
    if settings.execd_socket is None:
        mark = {"GREYLAG_ENVIRONMENT": settings.environment_id} if settings.environment_id else {}
        environment = {**harmless_variables(os.environ), **mark}
        await ExecdProcess(settings.execd, socket_path, environment).run()


async def _serve(
    settings: AgentdSettings, command: AgentCommand, volume: Volume, listener: socket.socket
) -> None:
    stop = _stop_signal()
    journals = Journals(volume.journals, settings.turn_journal_limit, settings.journal_limit)
    journals.reserve.release()  # to start on a full disk too; the first turn takes it up again
    store = SnapshotStore(volume.snapshots, settings.snapshot_limit)
    async with aclosing(store), aclosing(await Records.open(volume.database)) as records:
        socket_path = settings.execd_socket or volume.execd_socket.relative_to(volume.state)
        execution = Execution(socket_path)
        agent = Agent(command, agent_setup(settings, volume), execution)
        tasks = asyncio.TaskGroup()
        services = build_services(
            settings, volume, agent, execution, store, records, journals, tasks
        )
        await services.turns.recover()
        await services.changes.cut_left()
        async with tasks:
            # Before the agent: its socket is there as soon as the task has begun.
            execd_task = tasks.create_task(_run_execd(settings, socket_path), name="execd")
            agent_task = tasks.create_task(agent.run(), name="agent")
            beside = [
                tasks.create_task(services.git.run(), name="git"),
                tasks.create_task(services.changes.recover(), name="recovery of changes"),
                tasks.create_task(tell_problem(settings), name="model-provider"),
                tasks.create_task(end_without_volume(records, stop), name="volume"),
            ]
            server = http_server(create_app(settings, services))
            server_task = tasks.create_task(server.serve([listener]), name="http server")
            volume.announce(listener.getsockname()[1], datetime.now(UTC).isoformat())
            try:
                if settings.legacy_api:
                    _log.warning("legacy_api_open", meaning=LEGACY_API)
                _log.info("listening", port=listener.getsockname()[1], agent=command.kind)
                await stop.wait()
            finally:
                volume.withdraw()
            await asyncio.gather(
                _end(services.turns, services.changes, agent_task),
                services.terminals.close(),
                services.previews.close(),
            )
            for task in beside:
                task.cancel()
            execd_task.cancel()
            server.finish()
            await server_task
    _log.info("stopped")


async def end_without_volume(records: Records, stop: asyncio.Event) -> None:
    """Ask for agentd's end once the volume was deleted or moved: nobody finds it there any more,
    to use or to stop it.
    """
    while True:
        try:
            await records.execute("SELECT 1")
        except StorageError as error:
            _log.error("volume_gone", error=str(error))
            stop.set()
            return
        await asyncio.sleep(_VOLUME_SECONDS)


async def _end(turns: TurnEngine, changes: ChangeService, agent_task: asyncio.Task[None]) -> None:
    """End the turns, then the agent; a turn that does not end loses its agent, and then does, or
    the state of the workspace that it waits for.
    """
    _log.info("stopping")
    await turns.stop()
    await turns.wait_all_ended(_TURNS_END_WITHIN)
    await cancel_all([agent_task])
    await turns.wait_all_ended(_KILLED_TURNS_END_WITHIN)
    await changes.stop()
    await turns.wait_all_ended(_KILLED_TURNS_END_WITHIN)


def http_server(app: ASGIApp) -> HttpServer:
    """Return the server that is to answer for agentd; its signals are agentd's own."""
    return HttpServer(app, ends_within=_CONNECTIONS_END_WITHIN, limits=_LIMITS)


def _listen(settings: AgentdSettings) -> socket.socket:
    try:
        return listen(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AgentdConfigError(
            f"Cannot listen on {settings.host}:{settings.port} (GOOSE_API_PORT): {reason}."
        ) from error


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def agent_setup(settings: AgentdSettings, volume: Volume) -> AgentSetup:
    """Return what the agent is given."""
    defaults = {one.key: str(one.default) for one in GOOSE_SETTINGS.values() if one.pinned}
    if settings.models:
        defaults["GOOSE_MODEL"] = settings.models[0]
    return AgentSetup(
        workspace=volume.workspace,
        home=volume.home,
        tmp=volume.tmp,
        model=settings.models[0] if len(settings.models) == 1 else None,
        provider=provider(settings),
        model_retries=settings.model_retries,
        model_timeout=settings.model_timeout,
        settings=settings.goose_settings,
        defaults=defaults,
        environment_id=settings.environment_id,
    )


def build_services(  # noqa: PLR0913, PLR0917 - what there is one of in each process
    settings: AgentdSettings,
    volume: Volume,
    agent: AgentPort,
    execution: Execution,
    store: SnapshotStore,
    records: Records,
    journals: Journals,
    tasks: asyncio.TaskGroup,
) -> Services:
    """Put together what the routes call; nothing is started by it."""
    setup = agent_setup(settings, volume)
    capture = Capture(execution, volume.workspace, store)
    changes = ChangeService(store, capture, records.turns.forget)
    relay = GitRelay(NamedHosts(settings.git_hosts), settings.proxies)
    goose_settings = SettingsService(agent, records, settings.goose_settings, settings.models)
    policy = TurnPolicy(
        confirmation_timeout=settings.confirmation_timeout,
        demonstration=lambda: demonstration(settings, agent.state.kind),
        configure=goose_settings.configure,
    )
    turns = TurnEngine(agent, records, journals, tasks, policy, changes)
    return Services(
        agent=agent,
        sessions=SessionService(agent, records, turns),
        turns=turns,
        extensions=ExtensionService(agent),
        settings=goose_settings,
        files=WorkspaceFiles(execution, volume.workspace, changes.touched),
        terminals=Terminals(execution, setup),
        previews=Previews(execution),
        changes=changes,
        git=GitService(execution, setup, relay, volume.git, changes.touched),
    )
