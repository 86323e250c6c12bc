"""`greylag whoami`, `login`, `logout` and `tokens`, by what the command line comes in;
`notifications`: where a user is told of their turns.
"""

import asyncio
import os
import socket
import sys
from typing import Any
from urllib.parse import urlencode

import click

from greylag.cli.access import Access, api_command, api_options
from greylag.cli.client import ApiClient
from greylag.cli.errors import CliError, ServerRefusedError, StartError, starting
from greylag.cli.kept_token import SERVICE, KeptToken, KeyringError, has_desktop
from greylag.cli.output import confirm, given_line, moment, open_in_browser
from greylag.common.token_file import FORM, can_be_token

SCOPES = ("projects:read", "projects:write", "messages", "files", "admin")
TOKEN_COLUMNS = ("ID", "USER", "NAME", "SCOPES", "PROJECTS", "EXPIRES", "LAST USED", "FROM")


@click.command()
@api_command
async def whoami(access: Access) -> None:
    """Say who the server takes you for, and by what."""
    _show_me(access, await access.api.get("me"))


@click.command(short_help="Sign in, and keep a token for the commands to come.")
@click.option("--token", "by_token", is_flag=True, help="Read a token from standard input.")
@click.option("--admin", is_flag=True, help="Ask for the scope `admin` too.")
@api_options
def login(access: Access, *, by_token: bool, admin: bool) -> None:
    """Keep a token in the system's keyring, or in ~/.config/greylag/token, which only you can read.

    The server says a code and an address: open that in any browser, on this machine or another,
    sign in and confirm the code. Where nobody signs in by an identity provider, the token is
    asked for; with --token it is read from standard input, since on the command line others on
    this machine could see it.

    \b
    Examples:
      greylag login
      greylag login --token < token.txt
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    if by_token or not sys.stdin.isatty():
        token = sys.stdin.readline().strip()
    else:
        scopes = SCOPES if admin else SCOPES[:-1]
        token = asyncio.run(_by_code(access, scopes)) or click.prompt(
            "Token", hide_input=True, err=True
        )
        token = token.strip()
    if not can_be_token(token):
        raise click.UsageError(f"The token must be {FORM}.")

    async def ask() -> dict[str, Any]:
        async with ApiClient(access.server, token) as api:
            found: dict[str, Any] = await api.get("me")
            return found

    me = asyncio.run(ask())
    with starting():
        where, why_not = KeptToken.of(os.environ).write(token, access.server)
    if why_not is not None:
        access.output.note(f"warning: the token is in a file: {why_not}.", "yellow")
    access.output.note(f"The token is kept in {where}.")
    if access.token not in {None, token}:
        access.output.note("GREYLAG_TOKEN or the data folder's token is taken before it.")
    _show_me(access, me)


async def _by_code(access: Access, scopes: tuple[str, ...]) -> str | None:
    """Return the token that a person has confirmed; ``None`` where no code is to be had."""
    name = f"greylag login on {socket.gethostname()}"[:100]
    async with ApiClient(access.server, None) as api:
        try:
            begun = await api.post("device-logins", body={"name": name, "scopes": list(scopes)})
        except ServerRefusedError as error:
            if error.problem.code in {"not_found", "unauthorized"}:  # an earlier Greylag's is 401
                return None
            raise
        url = str(begun["url"])
        access.output.note(f"Open {url} and confirm the code {begun['code']}")
        if has_desktop():
            await open_in_browser(f"{url}?{urlencode({'code': begun['code']})}")
        while True:
            await asyncio.sleep(min(max(begun["interval"], 1), 60))
            asked = {"secret": begun["secret"]}
            made = await api.post("device-logins", "token", body=asked)
            if made:  # somebody has answered
                return str(made["token"])


@click.command(short_help="Forget the kept token, and revoke it.")
@api_options
def logout(access: Access) -> None:
    """Revoke the token that `greylag login` keeps, if it is one of your tokens, and forget it."""
    kept = KeptToken.of(os.environ)
    try:
        with starting():
            token = kept.read()
        if token is None:
            access.output.note(f"No token is kept in {kept.file}.")
            return
        server = kept.server_of(token) or access.server
        known = asyncio.run(_revoke_itself(server, token))
        kept.forget()
    except KeyringError as error:
        raise StartError(
            f"The token stays where it is: {error}.",
            f"Unlock the keyring and try again; its entry is called {SERVICE}.",
        ) from error
    access.output.note("The kept token is forgotten.")
    if not known:
        access.output.note(f"It was not revoked: {server} does not know it, or not any more.")


async def _revoke_itself(server: str, token: str) -> bool:
    """Revoke a token, unless it is none that could be; tell whether the server knows it."""
    async with ApiClient(server, token) as api:
        try:
            kind, _, token_id = (await api.get("me"))["via"].partition(" ")
            if kind == "token":
                await api.delete("tokens", token_id)
        except ServerRefusedError as error:
            if error.problem.code != "unauthorized":
                raise
            return False
    return True


def _show_me(access: Access, me: dict[str, Any]) -> None:
    access.output.fields(
        me,
        lambda: {
            "user": me["id"] or "the operator",
            "name": me["display_name"],
            "email": me["email"],
            "role": me["role"],
            "via": me["via"] or "the operator's token",
        },
    )


@click.group()
def tokens() -> None:
    """List, create and revoke tokens for programs."""


@tokens.command("list", short_help="List tokens.")
@api_command
async def list_tokens(access: Access) -> None:
    """List your tokens, or with --user a user's; to the operator all users'."""
    found = await access.api.tokens(access.user)
    rows = (
        (
            one["id"],
            one["user_id"],
            one["name"],
            " ".join(one["scopes"]),
            " ".join(one["projects"] or ()) or "-",
            moment(one["expires_at"]),
            moment(one["used_at"]),
            one["address"] or "-",
        )
        for one in found
    )
    access.output.listing(
        {"tokens": found}, TOKEN_COLUMNS, rows, prose=("USER", "NAME"), empty="There are no tokens."
    )


@tokens.command("create", short_help="Make a token and print it, this once.")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(SCOPES),
    help="What it is for; repeatable.",
)
@click.option(
    "--project", "projects", multiple=True, metavar="ID", help="Only for this one; repeatable."
)
@click.option(
    "--days",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    help="How long it counts.  [default: 90, or as long as may be]",
)
@api_command
async def create_token(
    access: Access,
    *,
    name: str,
    scopes: tuple[str, ...],
    projects: tuple[str, ...],
    days: float | None,
) -> None:
    """Make a token and print it, this once; with --user for a service account.

    Example: greylag tokens create nightly --scope projects:read --scope messages --days 30
    """
    body = {
        "name": name,
        "scopes": list(scopes),
        "projects": list(projects) or None,
        "expires_in_days": days,
        "user": access.user,
    }
    made = await access.api.post("tokens", body=body)
    access.output.made(
        made,
        lambda: (
            f"Token {made['id']}, until {moment(made['expires_at'])}; shown this once:",
            made["token"],
        ),
    )


@tokens.command("revoke")
@click.argument("token_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@api_command
async def revoke_token(access: Access, *, token_id: str, yes: bool) -> None:
    """End a token: what uses it comes in no more."""
    await confirm(f"Revoke token {token_id}?", yes=yes)
    await access.api.delete("tokens", token_id)
    access.output.done({"id": token_id, "revoked": True}, f"Token {token_id} is revoked.")


# `greylag notifications`: where a user is told of their turns away from the desk.

TARGET_COLUMNS = ("ID", "KIND", "NAME", "HOST", "LAST TOLD", "RESULT")


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
    access.output.listing(
        {"targets": found}, TARGET_COLUMNS, rows, prose=("NAME", "RESULT"), empty=empty
    )


@notifications.command("add-webhook", short_help="Tell a webhook of turns; print its secret.")
@click.argument("name")
@api_options
def add_webhook(access: Access, *, name: str) -> None:
    """Tell a webhook, to be called NAME, by signed POSTs; print the secret for that, this once.

    Its address, which may hold a token, is asked for, or read from stdin: one line.

    Example: greylag notifications add-webhook chat < address.txt
    """
    body = {"name": name, "url": given_line("Address")}

    async def add() -> None:
        made = await access.api.post(*await _path(access), "webhooks", body=body)
        access.output.made(
            made,
            lambda: (
                f"Webhook {made['id']} at {made['host']}; its secret is shown this once:",
                made["secret"],
            ),
        )

    access.run(add)


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
