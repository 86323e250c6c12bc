"""`greylag changes`, `diff` and `undo`: what turns changed in a workspace, and taking it back."""

from typing import Any

import click

from greylag.cli.access import Access, api_command, paths_option
from greylag.cli.client import ApiClient, ProjectPlace
from greylag.cli.errors import CliError
from greylag.cli.output import confirm
from greylag.cli.transport import LONGEST_WAIT
from greylag.common.agent_api import FileChange, Turn

COLUMNS = ("CHANGE", "LINES", "MODE", "PATH")


@click.command()
@click.argument("project")
@click.argument("turn", required=False)
@api_command
async def changes(access: Access, *, project: str, turn: str | None) -> None:
    """List the files that a turn (by default the newest) changed, and what is not kept."""
    place = await access.place(project)
    turn_id = await _turn(access.api, place, turn)
    found = await access.api.get(*place.path, "turns", turn_id, "changes")
    if access.output.json:
        access.output.document(found)
        return
    _show(access, found)


@click.command()
@click.argument("project")
@click.argument("path")
@click.argument("turn", required=False)
@api_command
async def diff(access: Access, *, project: str, path: str, turn: str | None) -> None:
    """Print what a turn (by default the newest) changed in a file, as a unified diff."""
    place = await access.place(project)
    turn_id = await _turn(access.api, place, turn)
    found = await access.api.get(*place.path, "turns", turn_id, "diff", query={"path": path})
    if access.output.json:
        access.output.document(found)
        return
    for line in str(found["diff"]).splitlines():
        access.output.line(line)
    if not found["diff"] or not found["whole"]:
        change = access.api.shaped_one(FileChange, found["change"])
        about = "It is no text." if change.binary else "There are no lines to compare."
        access.output.note("There is more than this." if found["diff"] else about)


@click.command()
@click.argument("project")
@click.argument("turn", required=False)
@paths_option
@click.option("--override", is_flag=True, help="Take away what others changed since, too.")
@click.option(
    "--history",
    type=click.Choice(["keep", "cut"]),
    default="keep",
    help="cut: the agent forgets the turn and those after it in its session, too.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@api_command
async def undo(  # noqa: PLR0913 - one argument per option
    access: Access,
    *,
    project: str,
    turn: str | None,
    paths: tuple[str, ...],
    override: bool,
    history: str,
    yes: bool,
) -> None:
    """Bring back what a turn (by default the newest), or an undo, changed in the workspace.

    What others changed since, or meanwhile, stays and is named. The undo itself can be undone, by
    the id that is printed; what the agent was made to forget stays forgotten.
    """
    place = await access.place(project)
    turn_id = await _turn(access.api, place, turn)
    more = " and make the agent forget it, and what followed it" if history == "cut" else ""
    await confirm(f"Undo what turn {turn_id} changed in {project}{more}?", yes=yes)
    body: dict[str, Any] = {"override": override, "paths": list(paths) or None}
    if history != "keep":  # an environment of an older version knows no such member
        body["history"] = history
    done = await access.api.post(
        *place.path, "turns", turn_id, "undo", body=body, within=LONGEST_WAIT
    )
    if access.output.json:
        access.output.document(done)
        return
    _show(access, done["changes"])
    for kept in done["kept"]:
        access.output.note(f"Kept as it is: {kept['path']} ({kept['reason']}).")
    if count := done.get("forgotten_turns"):
        access.output.note(f"The agent has forgotten {count} turn{'s' if count > 1 else ''}.")
    elif history == "cut":
        access.output.note("The agent had forgotten this already.")
    access.output.note(f"To take this back: greylag undo {project} {done['undo_id']}")


def _show(access: Access, found: dict[str, Any]) -> None:
    rows = [
        (one.change, _lines(one), one.mode or "-", _path(one))
        for one in access.api.shaped(FileChange, found["changes"])
    ]
    access.output.table(COLUMNS, rows, prose=("PATH",), empty="No file changed.")
    if found["total"] > len(rows):
        access.output.note(f"{found['total'] - len(rows)} more changed.")
    for one in found["left_out"]:
        access.output.note(f"Not kept: {one['path']} ({one['reason']}).")
    if found["left_out_total"] > len(found["left_out"]):
        access.output.note(f"{found['left_out_total'] - len(found['left_out'])} more are not kept.")


def _lines(change: FileChange) -> str:
    if change.binary:
        return "binary"
    if change.added_lines is None:
        return "-"
    return f"+{change.added_lines} -{change.deleted_lines}"


def _path(change: FileChange) -> str:
    name = change.path + ("/" if change.kind == "folder" else "")
    name = f"{change.old_path} -> {name}" if change.old_path else name
    return f"{name} (others worked on it too)" if change.shared else name


async def _turn(api: ApiClient, place: ProjectPlace, turn: str | None) -> str:
    """Return a turn's id, by default the project's newest turn's."""
    if turn is not None:
        return turn
    found, _ = await api.sessions(place)
    newest = max(found, key=lambda session: session.updated_at, default=None)
    if newest is not None:
        told = await api.get(
            *place.path, "sessions", newest.session_id, "turns", query={"limit": "1"}
        )
        if turns := api.shaped(Turn, told["turns"]):
            return turns[0].turn_id
    raise CliError(f"{place.project_id} has no turn yet.", "Send a message by `greylag chat`.")
