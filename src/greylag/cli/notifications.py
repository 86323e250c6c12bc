"""`greylag notifications`: where a user is told of their turns away from the desk."""

import sys

import click

from greylag.cli.access import Access, api_command
from greylag.cli.errors import CliError
from greylag.cli.output import confirm, moment

COLUMNS = ("ID", "KIND", "NAME", "HOST", "LAST TOLD", "RESULT")


@click.group()
def notifications() -> None:
    """List, add, test and remove what is told when a turn needs an answer, ends or fails."""


@notifications.command("list")
@api_command
async def list_targets(access: Access) -> None:
    """List browsers and webhooks. No address is ever shown."""
    found = (await access.api.get(*await _path(access)))["targets"]
    rows = (
        (
            one["id"],
            one["kind"],
            one["name"],
            one["host"],
            moment(one["last_at"]),
            one["last_result"] or "-",
        )
        for one in found
    )
    empty = "Nothing is told. A browser turns it on in your account; a webhook is added here."
    access.output.listing({"targets": found}, COLUMNS, rows, prose=("NAME", "RESULT"), empty=empty)


@notifications.command("add-webhook", short_help="Tell a webhook of turns; print its secret.")
@click.argument("name")
@api_command
async def add_webhook(access: Access, *, name: str) -> None:
    """Tell a webhook, to be called NAME, by signed POSTs; print the secret for that, this once.

    Its address, which may hold a token, is asked for, or read from stdin: one line.

    Example: greylag notifications add-webhook chat < address.txt
    """
    url = click.prompt("Address", err=True) if sys.stdin.isatty() else sys.stdin.readline()
    body = {"name": name, "url": url.strip()}
    made = await access.api.post(*await _path(access), "webhooks", body=body)
    access.output.made(
        made,
        lambda: (
            f"Webhook {made['id']} at {made['host']}; its secret is shown this once:",
            made["secret"],
        ),
    )


@notifications.command("test", short_help="Tell one something, once.")
@click.argument("target_id", metavar="ID")
@api_command
async def test_target(access: Access, *, target_id: str) -> None:
    """Tell a browser or a webhook something, once, and say what came of it."""
    done = await access.api.post(*await _path(access), "targets", target_id, "test")
    if access.output.json:
        access.output.document(done)
    elif done["delivered"]:
        access.output.note(f"{target_id} was told.")
    if not done["delivered"]:
        raise CliError(f"{target_id} was not told: {done['result']}.")


@notifications.command("remove")
@click.argument("target_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@api_command
async def remove_target(access: Access, *, target_id: str, yes: bool) -> None:
    """Tell a browser or a webhook nothing any more."""
    await confirm(f"Remove {target_id}?", yes=yes)
    await access.api.delete(*await _path(access), "targets", target_id)
    access.output.done({"id": target_id, "removed": True}, f"{target_id} is told nothing any more.")


async def _path(access: Access) -> tuple[str, ...]:
    return ("users", await access.user_id(), "notifications")
