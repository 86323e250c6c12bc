"""`greylag users`, `projects`, `activate` and `deactivate`: whose projects, and their life."""

import asyncio
import functools
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import click

from greylag.cli.access import Access, api_command, place_of, task_group
from greylag.cli.client import ProjectJson, ProjectPlace, StateChange, Wish
from greylag.cli.errors import CliError
from greylag.cli.logs import event_line
from greylag.cli.output import Output, confirm, counted, moment
from greylag.cli.transport import Request
from greylag.common.typed import parse_json
from greylag.domain.errors import InvalidRequestError
from greylag.domain.names import check_id, check_name

R = TypeVar("R")

STATUSES = ("inactive", "activating", "active", "deactivating", "error")
COLUMNS = ("PROJECT", "NAME", "STATUS", "ENDPOINT", "LAST ACTIVATED", "ERROR")
# The answer and the log come over two connections: the log's last line may be a moment behind.
LAST_LINE_SECONDS = 1.0
WISHED = {"activate": "active", "deactivate": "inactive"}


def wait_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command --no-wait and --timeout, as one argument ``wish``."""

    @click.option("--no-wait", is_flag=True, help="Return at once; it goes on in the background.")
    @click.option(
        "--timeout",
        metavar="SECONDS",
        type=click.IntRange(1, 3600),
        help="Wait at most so long (default: the server's, 120).",
    )
    @functools.wraps(command)
    def with_wish(*args: Any, no_wait: bool, timeout: int | None, **kwargs: Any) -> R:
        if no_wait and timeout is not None:
            raise click.UsageError("--no-wait and --timeout exclude each other.")
        return command(*args, wish=Wish(wait=not no_wait and (timeout or True)), **kwargs)

    return with_wish


def _checked(check: Callable[[str, str], str]) -> Callable[..., str | None]:
    """Return a callback that refuses what ``check`` does; what was left out stays so."""

    def callback(_context: click.Context, _given: click.Parameter, value: str | None) -> str | None:
        try:
            return None if value is None else check(value, "it")
        except InvalidRequestError as error:
            raise click.BadParameter(error.info.message) from error

    return callback


@click.command()
@api_command
async def users(access: Access) -> None:
    """List the users whom projects can belong to."""
    found = await access.api.users()
    rows = ((user["id"], user["display_name"]) for user in found)
    access.output.listing({"users": found}, ("ID", "NAME"), rows, prose=("NAME",))


@click.group()
def projects() -> None:
    """List, create, rename, show and delete projects.

    PROJECT is a project's id; its name will do as well when no other project has it.
    """


@projects.command(name="list")
@click.option("--status", type=click.Choice(STATUSES), help="Only projects of this status.")
@api_command
async def list_projects(access: Access, *, status: str | None) -> None:
    """List the user's projects, newest first."""
    user_id = await access.user_id()
    found = [project async for project in access.api.projects(user_id, status)]
    access.output.listing(
        {"projects": found},
        COLUMNS,
        (_row(project) for project in found),
        prose=("NAME", "LAST ACTIVATED", "ERROR"),
        empty="No such project." if status else "No project yet: `greylag projects create NAME`.",
    )


@projects.command(short_help="Create a project.")
@click.argument("name", callback=_checked(check_name))
@click.option(
    "--id",
    "project_id",
    metavar="ID",
    callback=_checked(check_id),
    help="The project's id; without it one is made from the name.",
)
@click.option("--metadata", metavar="JSON", help='A JSON object, such as \'{"team": "search"}\'.')
@click.option("--git", "url", metavar="URL", help="A repository that it starts from.")
@click.option("--ref", metavar="REF", help="The branch, tag or commit of it.")
@click.option(
    "--depth", metavar="N", type=click.IntRange(min=1), help="How many commits of its history."
)
@click.option(
    "--idempotency-key", metavar="KEY", help="Repeat with the same key to create only one project."
)
@api_command
async def create(  # noqa: PLR0913 - one argument per option
    access: Access,
    *,
    name: str,
    project_id: str | None,
    metadata: str | None,
    url: str | None,
    ref: str | None,
    depth: int | None,
    idempotency_key: str | None,
) -> None:
    """Create a project; it is inactive until it is activated or gets a message.

    \b
    Examples:
      greylag projects create "Search engine"
      greylag projects create Hello --git https://github.com/octocat/hello-world.git --ref main
      greylag projects create "Search engine" --id search --metadata '{"team": "search"}'
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    new: dict[str, Any] = {"name": name}
    if project_id is not None:
        new["project_id"] = project_id
    if metadata is not None:
        new["metadata"] = _metadata(metadata)
    if url is not None:
        git = {"url": url, "ref": ref, "depth": depth}
        new["source"] = {"git": {name: said for name, said in git.items() if said is not None}}
    elif ref is not None or depth is not None:
        raise click.UsageError("--ref and --depth are of a repository: name it by --git.")
    user_id = await access.user_id()
    created = await access.api.create(user_id, new, idempotency_key or uuid.uuid4().hex)
    show_project(access.output, created)


@projects.command()
@click.argument("project")
@click.argument("name", callback=_checked(check_name))
@api_command
async def rename(access: Access, *, project: str, name: str) -> None:
    """Give PROJECT another name; its id stays."""
    place = await access.place(project)
    renamed = await access.api.call(Request("PATCH", place.path, body={"name": name}))
    show_project(access.output, renamed)


@projects.command("hand-over", short_help="Give PROJECT to another user.")
@click.argument("project")
@click.argument("owner", metavar="USER", callback=_checked(check_id))
@click.option("--yes", is_flag=True, help="Do not ask.")
@api_command
async def hand_over(access: Access, *, project: str, owner: str, yes: bool) -> None:
    """Give PROJECT, which must be inactive, to USER, with its files and conversations.

    For administrators; --user says whose it is now.
    """
    found = await access.project(project)
    await confirm(f"Hand project {found['name']} over to {owner}?", yes=yes)
    path = (*place_of(found).path, "hand-over")
    show_project(access.output, await access.api.post(*path, body={"user": owner}))


@projects.command()
@click.argument("project")
@api_command
async def show(access: Access, *, project: str) -> None:
    """Show all that is known of PROJECT."""
    show_project(access.output, await access.project(project))


@projects.command(short_help="Delete PROJECT and all of its files.")
@click.argument("project")
@click.option("--yes", is_flag=True, help="Do not ask.")
@wait_options
@api_command
async def delete(access: Access, *, project: str, yes: bool, wish: Wish) -> None:
    """Delete PROJECT: its environment, its workspace and its record.

    Asks first on a terminal; a script says --yes.
    """
    found = await access.project(project)
    question = f"Delete project {found['name']} for good, with its files and conversations?"
    await confirm(question, yes=yes)
    left = await access.api.delete_project(place_of(found), wish)
    stands = "is deleted" if left is None else "is being deleted"
    access.output.done(
        {"project_id": found["project_id"], "deleted": left is None},
        f"Project {found['project_id']} {stands}.",
    )


@click.command()
@click.argument("project")
@wait_options
@api_command
async def activate(access: Access, *, project: str, wish: Wish) -> None:
    """Start PROJECT's environment and wait until its agent answers.

    The activation log is shown on the way. A project that is active already stays as it is.
    Exit code 4 says that the wait ended first, and that it goes on.
    """
    found = await access.project(project)
    await _change(access, found, "activate", wish)


@click.command()
@click.argument("project")
@wait_options
@api_command
async def deactivate(access: Access, *, project: str, wish: Wish) -> None:
    """Stop PROJECT's environment and wait until it is down; its files and history are kept."""
    found = await access.project(project)
    await _change(access, found, "deactivate", wish)


async def _change(access: Access, before: ProjectJson, action: StateChange, wish: Wish) -> None:
    if wish.wait is False:
        after = await access.api.change(place_of(before), action, wish)
    else:
        words = f"{'Activating' if action == 'activate' else 'Deactivating'} ..."
        with access.output.busy(words):
            after = await _while_showing(access, before, action, wish)
    show_project(access.output, after)


async def _while_showing(
    access: Access, before: ProjectJson, action: StateChange, wish: Wish
) -> ProjectJson:
    api, place = access.api, place_of(before)
    same_wish = before["desired"] == WISHED[action] and before["status"] != "error"
    settled = before["observed_generation"] >= before["generation"]
    if same_wish and settled:
        return await api.change(place, action, wish)
    # What is already on its way is the change that we join; else ours will be the next one.
    first = before["generation"] + (0 if same_wish else 1)
    async with task_group() as group:
        log = group.create_task(
            _show_log(access, place, first, WISHED[action]), name="activation log"
        )
        try:
            return await api.change(place, action, wish)
        except asyncio.CancelledError:
            log.cancel()
            raise
        finally:
            await asyncio.wait({log}, timeout=LAST_LINE_SECONDS)
            log.cancel()


async def _show_log(access: Access, place: ProjectPlace, first: int, wished: str) -> None:
    """Print the log from generation ``first`` on, until it tells the end."""
    try:
        async with access.api.events(place) as events:
            async for event in events:
                generation = event.content.get("generation")
                if isinstance(generation, int) and generation >= first:
                    access.output.note(event_line(event))
                    # Its code, not its status: steps written with the last event share that.
                    if event.text("code") == wished or event.text("status") == "error":
                        return
    except CliError as error:
        # The log is an extra: the change itself tells how it ends.
        access.output.note(f"The activation log cannot be shown: {error.message}")


def show_project(output: Output, project: ProjectJson) -> None:
    """Print one project."""
    output.fields(project, lambda: _told(project))


def _told(project: ProjectJson) -> dict[str, Any]:
    error = project["error"]
    return {
        "project": project["project_id"],
        "name": project["name"],
        "user": project["user_id"],
        "status": project["status"],
        "wanted": project["desired"] if project["desired"] != project["status"] else None,
        "endpoint": project["endpoint"],
        "outdated": "yes: `greylag rollout` starts it anew" if project["outdated"] else None,
        "error": f"{error['message']} [{error['code']}]" if error else None,
        "hint": error["hint"] if error else None,
        "metadata": project["metadata"],
        "source": _source(project["source"]["git"]) if project["source"] else None,
        "namespace": project["namespace"],
        "deployment": project["deployment"],
        "activated": project["last_activated_at"],
        "deactivated": project["last_deactivated_at"],
        "created": project["created_at"],
        "updated": project["updated_at"],
    }


def _row(project: ProjectJson) -> tuple[str, ...]:
    return (
        project["project_id"],
        project["name"],
        project["status"],
        project["endpoint"] or "-",
        moment(project["last_activated_at"]),
        project["error_message"] or "-",
    )


def _source(git: dict[str, Any]) -> str:
    depth = f" (the last {counted(git['depth'], 'commit')})" if git["depth"] else ""
    return f"{git['url']}{' at ' + git['ref'] if git['ref'] else ''}{depth}"


def _metadata(text: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError as error:
        raise click.BadParameter(f"it is not JSON ({error}).", param_hint="--metadata") from error
    if not isinstance(found, dict):
        raise click.BadParameter("it must be a JSON object.", param_hint="--metadata")
    return found
