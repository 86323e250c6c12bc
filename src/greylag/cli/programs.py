"""`greylag up`, `serve`, `worker` and `agentd`, which run until they are stopped, and `version`."""

import os
import platform
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from greylag import __version__
from greylag.cli.errors import StartError
from greylag.cli.output import Output, json_option
from greylag.common.loading import loading
from greylag.domain.errors import GreylagError, StoreUnavailableError

if TYPE_CHECKING:
    from greylag.config import Settings
    from greylag.worker_program import Announce

Program = Callable[["Settings", "Announce"], Coroutine[Any, Any, None]]

_STORE_HINT = "`greylag doctor`, started as this was, looks at the store and says what to do."

_host = click.option(
    "--host", metavar="ADDRESS", help="Listen on this address (GREYLAG_HOST; default 127.0.0.1)."
)
_port = click.option(
    "--port", metavar="PORT", type=int, help="Port, 0 for any (GREYLAG_PORT; default 8700)."
)
data_option = click.option(
    "--data",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder of records and environments (GREYLAG_DATA; default ./data).",
)


@click.command()
@_host
@_port
@data_option
def up(host: str | None, port: int | None, data: Path | None) -> None:
    """Run all of Greylag on this machine: web and worker.

    When it is ready it prints its address on standard output and, unless GREYLAG_TOKEN is set, a
    link that signs one browser in; its log goes to standard error. Ctrl-C ends it; active
    environments go on and are found again at the next start.

    Example: greylag up --port 9000 --data ~/greylag
    """
    with loading():
        from greylag import programs

    _run(programs.up, host=host, port=port, data=data)


@click.command()
@_host
@_port
@data_option
def serve(host: str | None, port: int | None, data: Path | None) -> None:
    """Run the web alone: the API and the dashboard.

    It writes what is wanted; a `greylag worker` on the same store makes it so.
    """
    with loading():
        from greylag import programs

    _run(programs.serve, host=host, port=port, data=data)


@click.command()
@data_option
def worker(data: Path | None) -> None:
    """Run the worker alone: it makes environments match their records."""
    with loading():
        from greylag import worker_program

    _run(worker_program.work, data=data)


@click.command()
def agentd() -> int:
    """Run the agent's API inside an environment.

    Greylag starts this itself, in each environment. It reads its settings from environment
    variables (GREYLAG_AGENT_FOLDER, GOOSE_API_PORT, ...).
    """
    with loading():
        from greylag.agentd.config import AgentdConfigError, AgentdSettings
        from greylag.agentd.main import run

    try:
        settings = AgentdSettings.from_env(os.environ)
    except AgentdConfigError as error:
        raise click.UsageError(str(error)) from error
    return run(settings)


@click.command()
@json_option
def version(*, as_json: bool) -> None:
    """Print the version of Greylag and of the Python that runs it."""
    output = Output(as_json=as_json)
    if as_json:
        output.document({"greylag": __version__, "python": platform.python_version()})
    else:
        output.line(f"greylag {__version__} (Python {platform.python_version()})")


def _run(program: Program, **arguments: object) -> None:
    import uvloop

    from greylag.common.logs import configure_logging
    from greylag.config import load_settings

    try:
        settings = load_settings(**arguments)
        configure_logging(settings.log_format, settings.log_level)
        uvloop.run(program(settings, _announce))
    except* GreylagError as group:
        first = _first(group)
        is_store = isinstance(first, StoreUnavailableError)
        hint = _STORE_HINT if is_store else first.info.hint
        raise StartError(first.info.message, hint) from first


def _first(group: BaseExceptionGroup[GreylagError]) -> GreylagError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _announce(address: str, *others: str, link: str | None = None) -> None:
    lines = [f"Greylag is ready: {address}"]
    if others:
        lines.append(f"From other machines: {' '.join(others)}")
    if link is not None:
        lines.append(f"Open it in your browser (the link works once): {link}")
    try:
        # Not by Python's buffer, which would try again at the end.
        os.write(sys.stdout.fileno(), "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:  # a full disk, or nobody reads it: that ends no server
        import structlog

        structlog.get_logger(__name__).warning(
            "not_announced", address=address, error=error.strerror
        )
