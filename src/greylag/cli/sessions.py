"""`greylag sessions`."""

import click

from greylag.cli.access import Access, api_options, with_client
from greylag.cli.api_types import ProjectPlace
from greylag.cli.client import ApiClient
from greylag.cli.output import Output, confirm, moment, visible


@click.command()
@click.argument("project")
@click.argument("session", required=False)
@click.option("--delete", is_flag=True, help="Delete SESSION for good.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@api_options
@with_client
async def sessions(  # noqa: PLR0913 - one argument per option
    access: Access, api: ApiClient, *, project: str, session: str | None, delete: bool, yes: bool
) -> None:
    """List the conversations of PROJECT, or read one: SESSION.

    The project must be active, as its agent keeps them.

    \b
    Examples:
      greylag sessions search
      greylag sessions search 0d6c3a52-7a0f-4a35-a1d5-6b3a7f1f3c11
      greylag sessions search 0d6c3a52-7a0f-4a35-a1d5-6b3a7f1f3c11 --delete
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    if delete and session is None:
        raise click.UsageError("--delete needs a SESSION.")
    place = await access.place(api, project)
    if session is None:
        await _list(access.output, api, place)
    elif delete:
        await confirm(f"Delete session {session}?", yes=yes)
        await api.delete_session(place, session)
        _tell_deleted(access.output, session)
    else:
        await _read(access.output, api, place, session)


async def _list(output: Output, api: ApiClient, place: ProjectPlace) -> None:
    found = await api.sessions(place)
    if output.json:
        output.document({"sessions": found})
        return
    rows = [
        (
            one["session_id"],
            moment(one["updated_at"]),
            str(one["message_count"]),
        )
        for one in found
    ]
    output.table(
        ("SESSION", "LAST MESSAGE", "MESSAGES"),
        rows,
        prose=("LAST MESSAGE",),
        empty="No conversation yet: `greylag chat` begins one.",
    )


async def _read(output: Output, api: ApiClient, place: ProjectPlace, session: str) -> None:
    found = await api.messages(place, session)
    if output.json:
        output.document({"messages": found})
        return
    for message in found:
        output.heading(f"{message['role']}:")
        output.write(visible(message["content"]) + "\n\n")


def _tell_deleted(output: Output, session: str) -> None:
    if output.json:
        output.document({"session_id": session, "deleted": True})
    else:
        output.note(f"Session {session} is deleted.")
