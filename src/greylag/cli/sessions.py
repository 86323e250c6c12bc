"""`greylag sessions` and `extensions`: a project's conversations, and what its agent has."""

from dataclasses import asdict
from itertools import zip_longest

import click

from greylag.cli.access import Access, api_command
from greylag.cli.client import ProjectPlace, Wish
from greylag.cli.errors import CliError
from greylag.cli.output import Output, confirm, moment, one_line, visible
from greylag.common.agent_api import AgentExtension, Session

_WHOLE_ID = 36


@click.command()
@click.argument("project")
@click.argument("session", required=False)
@click.option("--delete", is_flag=True, help="Delete SESSION for good.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@api_command
async def sessions(
    access: Access, *, project: str, session: str | None, delete: bool, yes: bool
) -> None:
    """List the conversations of PROJECT, or read one: SESSION.

    While the environment sleeps they are read from a copy, of which is said how old it is. The
    beginning of a SESSION's id will do.

    \b
    Examples:
      greylag sessions search
      greylag sessions search 0d6c3a52
      greylag sessions search 0d6c3a52 --delete
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    if delete and session is None:
        raise click.UsageError("--delete needs a SESSION.")
    place = await access.place(project)
    if session is not None:
        session = await found_session(access, place, session, awake=delete)
    if session is None:
        await _list_sessions(access, place)
    elif delete:
        await confirm(f"Delete session {session}?", yes=yes)
        await access.api.delete(*place.path, "sessions", session)
        access.output.done(
            {"session_id": session, "deleted": True}, f"Session {session} is deleted."
        )
    else:
        await _read_session(access, place, session)


async def _list_sessions(access: Access, place: ProjectPlace) -> None:
    output = access.output
    found, kept_at = await access.api.sessions(place)
    _tell_copy(output, kept_at)
    rows = (
        (one.session_id, moment(one.updated_at), str(one.message_count), visible(one.title))
        for one in found
    )
    output.listing(
        {"sessions": [asdict(one) for one in found], **_copied(kept_at)},
        ("SESSION", "LAST MESSAGE", "MESSAGES", "TITLE"),
        rows,
        prose=("LAST MESSAGE", "TITLE"),
        empty="No conversation yet: `greylag chat` begins one.",
    )


async def _read_session(access: Access, place: ProjectPlace, session: str) -> None:
    output = access.output
    found, kept_at = await access.api.messages(place, session)
    if output.json:
        output.document({"messages": [asdict(one) for one in found], **_copied(kept_at)})
        return
    _tell_copy(output, kept_at)
    if found and found[0].message_index:
        output.note("Older messages than these can be read once it is active.")
    ends = await _ends(access, place, session)
    for message, following in zip_longest(found, found[1:]):
        mark = " (forgotten by the agent)" if message.forgotten else ""
        output.heading(f"{message.role}{mark}:")
        output.write(visible(message.content) + "\n\n")
        if following is None or following.turn_id != message.turn_id:
            output.write(ends.get(message.turn_id or "", ""))
    last = found[-1] if found and kept_at else None
    if last and last.role.lower() == "user" and last.turn_id not in ends:
        output.note("No answer had come by then.")


async def _ends(access: Access, place: ProjectPlace, session: str) -> dict[str, str]:
    """Return what is to be said below the turns that did not end well, by their ids."""
    try:
        turns = await access.api.turns(place, session)
    except CliError:
        return {}  # what was said is told all the same
    failed = {
        one.turn_id: f"error: {one.error or 'The turn failed.'}"
        for one in turns
        if one.status == "error"
    }
    stopped = {one.turn_id: "Stopped." for one in turns if one.status == "cancelled"}
    return {turn: one_line(words) + "\n\n" for turn, words in (failed | stopped).items()}


def _copied(kept_at: str | None) -> dict[str, str]:
    return {} if kept_at is None else {"kept_at": kept_at}


def _tell_copy(output: Output, kept_at: str | None) -> None:
    if kept_at is not None and not output.json:
        output.note(f"The environment is not active: this is a copy as of {moment(kept_at)}.")


@click.command(short_help="List the extensions of a project's agent.")
@click.argument("project")
@api_command
async def extensions(access: Access, *, project: str) -> None:
    """List what extensions the agent of PROJECT has, and how each stands: started or why not.

    The project must be active. One that fails holds nobody back; its last words are shown here.

    Example: greylag extensions search
    """
    place = await access.place(project)
    told = await access.api.get(*place.path, "extensions")
    found = access.api.shaped(AgentExtension, told["extensions"])
    rows = ((one.name, one.type, _standing(one), one.state_detail or "") for one in found)
    access.output.listing(
        {"extensions": [asdict(one) for one in found]},
        ("EXTENSION", "TYPE", "STATE", "DETAIL"),
        rows,
        prose=("DETAIL",),
        empty="The agent has no extensions.",
    )


def _standing(extension: AgentExtension) -> str:
    if not extension.enabled:
        return "off"
    return extension.state or "not started"


async def found_session(
    access: Access, place: ProjectPlace, beginning: str, *, awake: bool = True
) -> str | None:
    """Return the one session whose id begins so; of "" the newest, ``None`` when there is none.

    What is as long as an id is taken for one. A sleeping environment is woken, unless a copy of its
    sessions will do (not ``awake``).
    """
    if len(beginning) >= _WHOLE_ID:
        return beginning
    found: list[Session] = []
    try:
        found, kept_at = await access.api.sessions(place)
        asleep = awake and kept_at is not None
    except CliError as error:
        if getattr(error, "code", "") != "environment_not_active":
            raise
        asleep = True
    if asleep:
        access.output.note("Waking the environment, which keeps the sessions ...")
        await access.api.change(place, "activate", Wish())
        found, _ = await access.api.sessions(place)
    ids = [one.session_id for one in found]
    if not beginning:
        return ids[0] if ids else None
    fitting = [one for one in ids if one.startswith(beginning)]
    if len(fitting) == 1:
        return fitting[0]
    what = f"{len(fitting)} sessions of the project begin"
    begin = what if fitting else "No session of the project begins"
    hint = "`greylag sessions PROJECT` lists them; give more of the id."
    raise CliError(f"{begin} with {beginning!r}.", hint)
