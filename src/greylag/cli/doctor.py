"""`greylag doctor`."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import astuple

import click

from greylag import __version__
from greylag.cli.access import Access, api_options
from greylag.cli.checks import Check
from greylag.cli.client import ApiClient
from greylag.cli.errors import CliError, Exit
from greylag.cli.machine_checks import machine_checks
from greylag.cli.output import Output
from greylag.cli.text import one_line

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@click.command()
@api_options
def doctor(access: Access) -> int:
    """Check the server and this machine, and say what to do about each thing that is wrong.

    Exit code 1 says that something is wrong; a warning alone is 0.
    """
    checks = asyncio.run(_server(access))
    checks.extend(machine_checks())
    bad = any(check.verdict == "fail" for check in checks)
    if access.output.json:
        access.output.document({"ok": not bad, "checks": [check.as_json() for check in checks]})
    else:
        _print(access.output, checks)
    return Exit.REFUSED if bad else Exit.OK


async def _server(access: Access) -> list[Check]:
    async with access.client() as api:
        return [check async for check in _server_checks(access.server, api)]


async def _server_checks(server: str, api: ApiClient) -> AsyncIterator[Check]:
    try:
        await api.check_ready()
        platform = await api.platform()
    except CliError as error:
        yield Check("server", "fail", error.message, error.hint)
        return
    where = f"cluster {platform['cluster']}, store {platform['store']}"
    yield Check("server", "ok", f"{server} is ready: Greylag {platform['version']}, {where}")
    if platform["version"] != __version__:
        detail = f"The server is {platform['version']}, this command {__version__}."
        yield Check("version", "warn", detail, "Install the same version on both sides.")
    if platform["notice"]:
        yield Check("notice", "warn", platform["notice"])
    if platform["demonstration"]:
        yield Check("demonstration", "warn", platform["demonstration"])


def _print(output: Output, checks: list[Check]) -> None:
    """Print each check; what to do about it stands below what was found."""
    if output.out:
        output.out.findings([_row(check) for check in checks])
        return
    columns = ("CHECK", "VERDICT", "FOUND", "ADVICE")
    output.table(columns, [astuple(check) for check in checks])


def _row(check: Check) -> tuple[str, str, str, str]:
    found = one_line(check.detail)
    if check.advice:
        found += f"\n{one_line(check.advice)}"
    return check.verdict, STYLES[check.verdict], check.name, found
