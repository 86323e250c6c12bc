"""`greylag git` and `greylag secrets`: a workspace's repository, and what its hosts are told."""

from dataclasses import asdict
from typing import Any

import click

from greylag.cli.access import Access, api_command, api_options, paths_option
from greylag.cli.output import confirm, given_line, moment
from greylag.cli.transport import LONGEST_WAIT, Request
from greylag.common.agent_api import GitStatus

COLUMNS = ("NAME", "HOST", "USERNAME", "CREATED", "CHANGED")


@click.group()
def git() -> None:
    """Say how a workspace's git repository stands, fetch, commit and push."""


@git.command(short_help="Say which branch it is on, and what changed.")
@click.argument("project")
@api_command
async def status(access: Access, *, project: str) -> None:
    """Say which branch is checked out in PROJECT's workspace, and what changed."""
    place = await access.place(project)
    _tell(access, await access.api.get(*place.path, "git"))


@git.command(short_help="Fetch what the remote has.")
@click.argument("project")
@api_command
async def fetch(access: Access, *, project: str) -> None:
    """Fetch what the remote has, and say how far ahead and behind PROJECT's branch is."""
    place = await access.place(project)
    _tell(access, await access.api.post(*place.path, "git", "fetch", within=LONGEST_WAIT))


def _tell(access: Access, found: Any) -> None:
    one = access.api.shaped_one(GitStatus, found)
    if not one.repository and not access.output.json:
        access.output.note("The workspace is no git repository.")
        return
    more = "" if one.whole else " or more"
    counts = {"changed": one.changed, "untracked": one.untracked, "conflicted": one.conflicted}
    access.output.fields(
        asdict(one),
        lambda: {
            "branch": one.branch or "none: a commit is checked out",
            "commit": one.commit or "none yet",
            "follows": one.upstream,
            "ahead": str(one.ahead) if one.upstream else None,
            "behind": str(one.behind) if one.upstream else None,
            **{name: f"{count}{more}" for name, count in counts.items()},
            "remote": one.remote,
        },
    )


@git.command()
@click.argument("project")
@click.option("--message", "-m", required=True, metavar="TEXT", help="What the commit says.")
@paths_option
@api_command
async def commit(access: Access, *, project: str, message: str, paths: tuple[str, ...]) -> None:
    """Commit all that changed in PROJECT's workspace."""
    place = await access.place(project)
    body = {"message": message, "paths": list(paths) or None}
    made = await access.api.post(*place.path, "git", "commit", body=body, within=LONGEST_WAIT)
    access.output.made(
        made, lambda: (f"Committed to {made['branch'] or 'no branch'}:", made["commit"])
    )


@git.command(short_help="Push what is checked out, never by force.")
@click.argument("project")
@click.option("--branch", metavar="NAME", help="The remote's; by default of the same name.")
@api_command
async def push(access: Access, *, project: str, branch: str | None) -> None:
    """Push what is checked out in PROJECT's workspace, as a branch, never by force."""
    place = await access.place(project)
    body = {"branch": branch}
    done = await access.api.post(*place.path, "git", "push", body=body, within=LONGEST_WAIT)
    access.output.done(done, f"Pushed to {done['branch']} of {done['remote']}.")


@click.group()
def secrets() -> None:
    """List, set and delete the tokens that git tells hosts."""


@secrets.command("list")
@api_command
async def list_secrets(access: Access) -> None:
    """List names, hosts and times. No value is ever shown."""
    found = (await access.api.get("users", await access.user_id(), "secrets"))["secrets"]
    rows = (
        (
            one["name"],
            one["host"],
            one["username"],
            moment(one["created_at"]),
            moment(one["updated_at"]),
        )
        for one in found
    )
    access.output.listing({"secrets": found}, COLUMNS, rows, empty="There are no secrets.")


@secrets.command("set")
@click.argument("name")
@click.option(
    "--host", metavar="HOST", required=True, help="The only host that is told it, as github.com."
)
@click.option(
    "--username",
    metavar="NAME",
    help="Whom the host is told; for most tokens it does not matter.",
)
@api_options
def set_secret(access: Access, *, name: str, host: str, username: str | None) -> None:
    """Keep a token or password under NAME. It is asked for, or read from stdin: one line.

    Example: greylag secrets set github --host github.com < token.txt
    """
    value = given_line("Value", hidden=True)
    body = {"host": host, "value": value, **({"username": username} if username else {})}

    async def keep() -> None:
        path = ("users", await access.user_id(), "secrets", name)
        kept = await access.api.call(Request("PUT", path, body=body))
        access.output.done(kept, f"The secret {kept['name']} for {kept['host']} is kept.")

    access.run(keep)


@secrets.command("delete", short_help="Delete the secret NAME.")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@api_command
async def delete_secret(access: Access, *, name: str, yes: bool) -> None:
    """Delete the secret NAME: environments that run forget it within moments."""
    await confirm(f"Delete the secret {name}?", yes=yes)
    await access.api.delete("users", await access.user_id(), "secrets", name)
    access.output.done({"name": name, "deleted": True}, f"The secret {name} is deleted.")
