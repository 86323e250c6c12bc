"""`greylag doctor`: what is wrong with the server and this machine, and what to do about it."""

import asyncio
import errno
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from greylag import __version__
from greylag.agentd.agent.types import SCRIPTED, AgentCommand, AgentUnavailableError, find_agent
from greylag.cli.access import Access, api_options
from greylag.cli.errors import CliError, Exit
from greylag.cli.output import GAP, Output, counted, one_line
from greylag.cli.transport import Request
from greylag.common.net import is_loopback, proxy_for
from greylag.config import Settings, load_settings
from greylag.domain.errors import ConfigError, GreylagError, StoreUnavailableError

Verdict = Literal["ok", "warn", "fail"]
LEAST_FREE_BYTES = 1024**3
RUN_SECONDS = 15
STORE_FINDINGS = 10
FAILING_SHOWN = 5
MOST_APART_SECONDS = 60
"""What clocks may differ by: sign-ins by an identity provider allow as much."""
_PROBE = bytes(64 * 1024)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
INSTALL_NODE = "Install Node.js 20 or newer (https://nodejs.org), then run `make setup`."
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, and what to do about it (empty: nothing)."""

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""


@click.command()
@api_options
def doctor(access: Access) -> int:
    """Check the server and this machine, and say what to do about each thing that is wrong.

    Exit code 1 says that something is wrong; a warning alone is 0.
    """
    access.tell_withheld()
    checks = asyncio.run(_ask_server(access))
    answered = any(check.name == "server" and check.verdict == "ok" for check in checks)
    if not answered and is_loopback(urlsplit(access.server).hostname or ""):
        checks.extend(_port(_given_folder()))
    checks.extend(_machine(_given_folder(), answered=answered))
    bad = any(check.verdict == "fail" for check in checks)
    if access.output.json:
        access.output.document({"ok": not bad, "checks": [asdict(check) for check in checks]})
    else:
        _print(access.output, checks)
    return Exit.REFUSED if bad else Exit.OK


def _given_folder() -> Path | None:
    """Return what --data says; what the variable says, `.env` may say too."""
    context = click.get_current_context()
    if context.get_parameter_source("data") is not ParameterSource.COMMANDLINE:
        return None
    folder: Path = context.params["data"]
    return folder


async def _ask_server(access: Access) -> list[Check]:
    async with access.api:
        return [check async for check in _server(access)]


async def _server(access: Access) -> AsyncIterator[Check]:
    try:
        _, headers = await access.api.answered(Request("GET", ("readyz",), root=""))
        platform = await access.api.get("platform")
    except CliError as error:
        yield Check("server", "fail", error.message, error.hint)
        return
    where = f"cluster {platform['cluster']}, store {platform['store']}"
    yield Check("server", "ok", f"{access.server} is ready: Greylag {platform['version']}, {where}")
    if platform["version"] != __version__:
        detail = f"The server is {platform['version']}, this command {__version__}."
        yield Check("version", "warn", detail, "Install the same version on both sides.")
    if (apart := _seconds_apart(headers)) is not None:
        detail = f"This machine's clock and the server's are {apart} seconds apart."
        advice = "Set both by NTP: sign-ins, links, tokens and workers' leases go by them."
        yield Check("clock", "warn", detail, advice)
    if platform["notice"]:
        yield Check("notice", "warn", platform["notice"])
    if platform["demonstration"]:
        yield Check("demonstration", "warn", platform["demonstration"])
    if model := platform.get("model"):
        problem = model["problem"]
        said = problem or f"Environments are given the model provider at {model['provider']}."
        yield Check("model", "fail" if problem else "ok", said)


def _seconds_apart(headers: Mapping[str, str]) -> int | None:
    """Return how far the server's clock is from ours, ``None`` where that is of no consequence."""
    try:
        there = parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        return None
    apart = round(abs((datetime.now(UTC) - there).total_seconds()))
    return apart if apart > MOST_APART_SECONDS else None


def _machine(data: Path | None, *, answered: bool) -> Iterator[Check]:
    """Yield one finding after the other. It runs other programs, for a moment each.

    What this shell does not set is none of its business where a server has ``answered``.
    """
    yield Check("python", "ok", f"Python {platform.python_version()}")
    try:
        settings = load_settings(data=data)
    except ConfigError as error:
        yield Check("settings", "fail", error.info.message, error.info.hint)
        yield from _agent(None)
        return
    yield Check("settings", "ok", "The settings of this shell and folder can be read.")
    cluster = _cluster(settings)
    if cluster is None:
        yield from _agent(settings)
        yield _bubblewrap(settings)
    else:
        yield cluster
    if cluster is None or settings.mongodb_uri is None:  # else nothing is kept here
        yield _data_folder(settings.data)
    mongo = _mongodb(settings)
    if mongo is not None:
        yield mongo
    if mongo is None or mongo.verdict == "ok":
        yield from _store(settings, answered=answered)
    if settings.oidc_issuer:
        yield _identity_provider(settings)
    if settings.model_url or settings.model_key or not answered:
        yield _model(settings)


def _port(data: Path | None) -> Iterator[Check]:
    """Try the address that a server of this shell would listen on; it is let go at once."""
    from greylag.common.server import listen

    with suppress(ConfigError):  # which is told of by itself
        settings = load_settings(data=data)
        where = f"{settings.host}:{settings.port}"
        try:
            listen(settings.host, settings.port).close()
        except OSError as error:
            advice = "Choose another with GREYLAG_PORT or --port, or stop what listens there."
            yield Check("port", "fail", f"{where} cannot be used: {error.strerror}.", advice)
        else:
            yield Check("port", "ok", f"A server can be started at {where}.")


def _cluster(settings: Settings) -> Check | None:
    """Ask the cluster that environments run on; ``None`` where they run on this machine."""
    from greylag.clusters import try_cluster

    try:
        cluster = asyncio.run(try_cluster(settings))
    except GreylagError as error:
        return Check("cluster", "fail", error.info.message, error.info.hint)
    if cluster is None:
        return None
    return Check("cluster", "ok", f"Environments run on {cluster}, which takes us.")


def _agent(settings: Settings | None) -> Iterator[Check]:
    node = _version(["node", "--version"])
    try:
        command = find_agent(settings.goose if settings else None, os.environ)
    except AgentUnavailableError as error:
        yield Check("goose", "fail", str(error), "Correct or unset GREYLAG_GOOSE.")
        return
    yield _goose(command)
    if node is not None:
        yield Check("node", "ok", f"Node {node}")
    elif command.kind == SCRIPTED:
        yield Check("node", "warn", "Node was not found; goose is installed with it.", INSTALL_NODE)
    else:
        yield Check("node", "ok", "Node was not found, and is not needed: goose is installed.")


def _goose(command: AgentCommand) -> Check:
    if command.kind == SCRIPTED:
        detail = "goose was not found; a scripted agent stands in for it."
        return Check("goose", "warn", detail, "Run `make setup`, or set GREYLAG_GOOSE to its path.")
    program = command.argv[0]
    version = _version([program, "--version"])
    if version is None:
        advice = "Run `make setup` again, or set GREYLAG_GOOSE to another one."
        return Check("goose", "fail", f"{program} does not start.", advice)
    return Check("goose", "ok", f"goose {version} ({program})")


def _bubblewrap(settings: Settings) -> Check:
    """Run a program in it as environments do: in namespaces of its own, with the filter."""
    from greylag.clusters import try_sandbox

    try:
        apart = try_sandbox(settings)
    except ConfigError as error:
        fault = str(error)
    else:
        rest = "" if apart else ", but reach what listens on this machine's loopback"
        return Check("bubblewrap", "ok", f"bubblewrap works: environments here are isolated{rest}.")
    demanded = settings.sandbox == "bubblewrap" or settings.sandbox_network == "strict"
    detail = f"Environments on this machine are not isolated. {fault}"
    advice = "Install bubblewrap and allow unprivileged user namespaces, or use Kubernetes."
    return Check("bubblewrap", "fail" if demanded else "warn", detail, advice)


def _data_folder(folder: Path) -> Check:
    """Look at the folder, or at the first parent that exists: it is made at the first start."""
    path = folder.absolute()
    try:
        nearest = next(parent for parent in (path, *path.parents) if parent.exists())
        _write_into(nearest)
    except OSError as error:
        advice = "Give your account write access to it, or choose another with GREYLAG_DATA."
        if error.errno in _NO_ROOM:
            advice = "Free some space, or choose another with GREYLAG_DATA."
        detail = f"{path} cannot be written: {error.strerror}."
        return Check("data folder", "fail", detail, advice)
    free = shutil.disk_usage(nearest).free
    if free < LEAST_FREE_BYTES:
        detail = f"{path} has only {free // 1024**2} MiB of free space."
        return Check("data folder", "warn", detail, "Free some space.")
    return Check("data folder", "ok", f"{path} can be written.")


def _store(settings: Settings, *, answered: bool) -> Iterator[Check]:
    """Read all records; nothing is changed.

    That nobody works on them is no news where no server has ``answered``: Greylag is stopped.
    """
    from greylag.archives import examine_store

    try:
        report = asyncio.run(examine_store(settings))
    except GreylagError as error:
        yield Check("store", "fail", error.info.message, error.info.hint)
        return
    if report is None:
        # Of MongoDB any name can be asked, a wrong one too.
        hint = "If there should be some, check MONGODB_URI and MONGODB_DB."
        advice = hint if settings.mongodb_uri is not None else ""
        yield Check("store", "ok", "There are no records yet.", advice)
        return
    for found in report.findings[:STORE_FINDINGS]:
        yield Check("store", "fail", found.sentence, found.hint)
    more = len(report.findings) - STORE_FINDINGS
    if more > 0:
        yield Check(
            "store",
            "fail",
            f"{counted(more, 'more finding')}.",
            "Mend these first, then ask again.",
        )
    if not report.findings:
        sentence = f"{counted(report.projects, 'project')}, and all can be read."
        yield Check("store", "ok", sentence)
    # The server that answers may have another data folder than this shell.
    level: Literal["fail", "warn"] = "fail" if settings.mongodb_uri is not None else "warn"
    for waiting in report.waiting if answered else ():
        yield Check("worker", level, waiting.sentence, waiting.hint)
    for sealed in report.sealed:
        yield Check("secrets", "warn", sealed.sentence, sealed.hint)
    for failing in report.failing[:FAILING_SHOWN]:
        yield Check("project", "warn", failing.sentence, failing.hint)
    if (others := len(report.failing) - FAILING_SHOWN) > 0:
        more_of_them = counted(others, "more project has", "more projects have")
        yield Check("project", "warn", f"{more_of_them} an error.")


def _write_into(folder: Path) -> None:
    """Try it: permissions alone tell of no read-only and no full disk, and mean nothing to root.

    Raises:
        OSError: it takes no file, or nothing into one.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(_PROBE)


def _identity_provider(settings: Settings) -> Check:
    """Ask the provider of this shell's settings what it says of itself, from this machine."""
    from greylag.wiring import identity_provider_fault

    name = "identity provider"
    try:
        fault = asyncio.run(identity_provider_fault(settings))
    except ConfigError as error:
        return Check(name, "fail", error.info.message, error.info.hint)
    if fault is not None:
        detail = f"{settings.oidc_issuer} cannot be used: {fault}."
        return Check(name, "fail", detail, "Check GREYLAG_OIDC_ISSUER; see `docs/sign-in.md`.")
    return Check(name, "ok", f"{settings.oidc_issuer} says how to sign in there.")


def _model(settings: Settings) -> Check:
    """Try the provider of this shell's settings from this machine."""
    from greylag.agentd.model.provider import problem_of
    from greylag.wiring import model_provider

    name = "model of this shell"
    # The host alone: an address may carry a password.
    host = re.sub(r"^.*?//(.*@)?|[/?#].*", "", settings.model_url or "")
    try:
        provider = model_provider(settings)
    except ConfigError as error:
        return Check(name, "fail", f"{error.info.message} ({host})", error.info.hint)
    if provider is None:
        detail = "No model provider is set here: a server that this shell starts has a script."
        advice = "Set GREYLAG_MODEL_URL, GREYLAG_MODEL_KEY and GREYLAG_MODEL."
        return Check(name, "warn", detail, advice)
    proxy = proxy_for(provider.url, provider.proxies)
    problem = asyncio.run(problem_of(provider))
    by = "" if proxy is None else f", by the proxy {proxy.url}"
    if problem is not None:
        return Check(name, "fail", problem, "See `docs/settings.md` on the model provider.")
    return Check(name, "ok", f"Nothing speaks against the model provider at {host}{by}.")


def _version(command: Sequence[str]) -> str | None:
    """Return the last line that a program prints, ``None`` when it is not there or fails."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, and a path the operator has set
            command, capture_output=True, text=True, timeout=RUN_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.strip().splitlines() or ["(no version)"])[-1].strip()


def _mongodb(settings: Settings) -> Check | None:
    """Sign in and ask for a sign of life; ``None`` when records are not kept in MongoDB."""
    if settings.mongodb_uri is None:
        return None
    try:
        asyncio.run(_reach_store(settings))
    except StoreUnavailableError as error:
        advice = (
            "Check MONGODB_URI, its user, password and authSource too, and that MongoDB runs and "
            "can be reached from here."
        )
        return Check("mongodb", "fail", error.info.message, advice)
    except ConfigError as error:
        return Check("mongodb", "fail", error.info.message, error.info.hint)
    return Check(
        "mongodb", "ok", f"MongoDB answers; records are kept in database {settings.mongodb_db}."
    )


async def _reach_store(settings: Settings) -> None:
    from greylag.archives import open_archive

    # One that is not there yet is reached, too; opening it writes nothing.
    async with open_archive(settings, write=True):
        pass


def _print(output: Output, checks: list[Check]) -> None:
    """Print each check; what to do about it stands below what was found."""
    if not output.out:
        columns = ("CHECK", "VERDICT", "FOUND", "ADVICE")
        output.table(columns, [astuple(check) for check in checks])
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, GAP, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for check in checks:
        found = "\n".join(one_line(text) for text in (check.detail, check.advice) if text)
        table.add_row(Text(check.verdict, style=STYLES[check.verdict]), check.name, found)
    output.out.print(table)
