"""`greylag manifests` and `greylag orphans`: environments as an operator meets them in the cluster.

No server is asked: the settings of the shell say which store and which cluster.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from greylag.cli.errors import Exit, StartError, error_of_settings
from greylag.cli.output import Output, confirm
from greylag.cli.programs import data_option
from greylag.domain.errors import ErrorInfo, GreylagError

if TYPE_CHECKING:
    from greylag.config import Settings

COLUMNS = ("USER", "PROJECT", "NAMESPACE", "DEPLOYMENT")
FIELDS = ("user_id", "project_id", "namespace", "deployment")


@click.command()
@click.argument("user")
@click.argument("project")
@click.option("--template", metavar="NAME", help="Use this template, not the default one.")
@click.option("--stopped", is_flag=True, help="Print them as of a sleeping project: with no pod.")
def manifests(user: str, project: str, template: str | None, *, stopped: bool) -> None:
    """Print the Kubernetes objects of a project's environment as YAML.

    The settings of this shell decide, as those of the server do there; no server is asked and no
    record is needed. Secrets are not printed: placeholders stand in their place.

    Example: ACR_IMAGE=goose-api-server:1 greylag manifests alice search
    """
    from greylag.wiring import printed_manifests

    replicas = 0 if stopped else 1
    try:
        text = printed_manifests(user, project, template=template, replicas=replicas)
    except GreylagError as error:
        raise StartError(error.info.message, error.info.hint) from error
    Output(as_json=False).write(text)


@click.command(short_help="List, or delete, environments without a record.")
@click.option("--delete", is_flag=True, help="Delete them all, with their files; asks first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_option
@click.option("--json", "as_json", is_flag=True, help="Output for programs.")
def orphans(*, delete: bool, yes: bool, data: Path | None, as_json: bool) -> int:
    """List environments without a record, or delete them.

    Records that were lost, or put back from an older copy, leave such environments. Greylag never
    touches them by itself. No server is asked: run this with the settings of a `greylag worker`,
    as with another store every environment seems to be without a record.

    \b
    Examples:
      greylag orphans
      greylag orphans --delete
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    if yes and not delete:
        raise click.UsageError("--yes is for --delete only.")
    from greylag.common.logs import configure_logging
    from greylag.config import load_settings

    try:
        settings = load_settings(data=data)
        # What a worker logs of its steps is no news here: the command says how each one ends.
        configure_logging(settings.log_format, "error")
        return asyncio.run(_run(settings, Output(as_json=as_json), delete=delete, yes=yes))
    except GreylagError as error:
        raise error_of_settings(error) from error


async def _run(settings: "Settings", output: Output, *, delete: bool, yes: bool) -> Exit:
    from greylag.wiring import assembled_orphans

    async with assembled_orphans(settings) as use_case:
        with output.busy("Comparing environments and records ..."):
            found = await use_case.found()
        _list(output, use_case.place, [asdict(one) for one in found], ends=not delete)
        if not delete or not found:
            return Exit.OK
        await confirm(_question(use_case.place, len(found)), yes=yes)
        rows = []
        for one in found:
            row = asdict(one)
            with output.busy(f"Deleting {_called(row)} ..."):
                error = await _error_of(use_case.remove(one))
            _say(output, row, error)
            rows.append(
                {**row, "deleted": error is None, "error": asdict(error) if error else None}
            )
    if output.json:
        output.document({"store": use_case.place, "orphans": rows})
    return Exit.OK if all(row["deleted"] for row in rows) else Exit.REFUSED


async def _error_of(work: Coroutine[Any, Any, None]) -> ErrorInfo | None:
    """Return why the work failed, so that the next one can go on."""
    try:
        await work
    except GreylagError as error:
        return error.info
    return None


def _list(output: Output, place: str, rows: list[dict[str, Any]], *, ends: bool) -> None:
    if output.json:
        if ends or not rows:
            output.document({"store": place, "orphans": rows})
    elif rows:
        output.table(COLUMNS, [tuple(row[name] for name in FIELDS) for row in rows])
    else:
        output.line(f"Every environment has a record in {place}.")


def _question(place: str, count: int) -> str:
    what = "this environment" if count == 1 else f"these {count} environments"
    return f"Delete {what}, of which {place} has no record, and all files in it?"


def _say(output: Output, row: dict[str, Any], error: ErrorInfo | None) -> None:
    if error is None:
        output.note(f"Deleted: {_called(row)}.")
        return
    output.note(f"error: {_called(row)} is not deleted: {error.message} [{error.code}]", "red")
    output.note(f"hint: {error.hint}", "")


def _called(row: dict[str, Any]) -> str:
    return f"the environment of project {row['project_id']} of user {row['user_id']}"
