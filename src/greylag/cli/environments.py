"""`greylag manifests`, `orphans` and `rollout`: environments as an operator meets them.

For the first two no server is asked: the settings of the shell say which store and which cluster.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from greylag.cli.access import Access, api_command, place_of, task_group
from greylag.cli.client import ApiClient, ProjectJson
from greylag.cli.errors import CliError, Exit, error_of_settings, starting
from greylag.cli.output import Output, confirm, json_option, moment
from greylag.cli.programs import data_option
from greylag.common.loading import loading
from greylag.domain.errors import ErrorInfo, GreylagError

if TYPE_CHECKING:
    from greylag.config import Settings
    from greylag.domain.project import Orphan

_WORDS = {"delete": ("Deleting", "deleted"), "adopt": ("Adopting", "adopted")}
COLUMNS = ("USER", "PROJECT", "NAMESPACE", "DEPLOYMENT", "OTHER GREYLAG")
FIELDS = ("user_id", "project_id", "namespace", "deployment", "instance")


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
    with loading():
        from greylag.clusters import printed_manifests

    replicas = 0 if stopped else 1
    with starting():
        text = printed_manifests(user, project, template=template, replicas=replicas)
    Output(as_json=False).write(text)


@dataclass(frozen=True, slots=True)
class OrphanWish:
    """What is to be done with which orphans: ``verb`` is none for listing them."""

    verb: Literal["delete", "adopt"] | None
    instance: str | None
    user: str | None
    project: str | None
    yes: bool

    def chooses(self, orphan: "Orphan") -> bool:
        """Tell whether an orphan is one of those."""
        return self.user in {None, orphan.user_id} and self.project in {None, orphan.project_id}

    def concerns(self, orphan: "Orphan") -> bool:
        """Tell whether it is to be touched: another Greylag's only if that one is named."""
        return orphan.instance is None or orphan.instance == self.instance


@click.command(short_help="List, adopt or delete environments without a record.")
@click.option("--delete", is_flag=True, help="Delete them all, with their files; asks first.")
@click.option("--adopt", is_flag=True, help="Make their records anew; they go on as they are.")
@click.option(
    "--instance", metavar="ID", help="With --adopt: take over what this other Greylag has."
)
@click.option("--user", metavar="USER", help="Only of this user.")
@click.option("--project", metavar="PROJECT", help="Only of projects with this id.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_option
@json_option
def orphans(  # noqa: PLR0913 - as many as the command has options
    *,
    delete: bool,
    adopt: bool,
    instance: str | None,
    user: str | None,
    project: str | None,
    yes: bool,
    data: Path | None,
    as_json: bool,
) -> int:
    """List environments without a record, adopt them back, or delete them.

    Records that were lost, or put back from an older copy, leave such environments. Greylag never
    touches them by itself. No server is asked: run this with the settings of a `greylag worker`,
    as with another store every environment seems to be without a record.

    What belongs to another Greylag on the same cluster is shown and never deleted. A new store is
    another Greylag, too: after the loss of one, --instance names the lost one, which the list
    shows. Never name one that runs.

    \b
    Examples:
      greylag orphans
      greylag orphans --adopt --instance 0f3a8c1d2b4e5f60
      greylag orphans --delete --user alice
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    if yes and not delete and not adopt:
        raise click.UsageError("--yes is for --delete and --adopt only.")
    if delete and adopt:
        raise click.UsageError("Either --delete or --adopt.")
    if instance and not adopt:
        raise click.UsageError("--instance is for --adopt only.")
    verb: Literal["delete", "adopt"] | None = "delete" if delete else "adopt" if adopt else None
    wish = OrphanWish(verb, instance, user, project, yes)
    from greylag.common.logs import configure_logging
    from greylag.config import load_settings

    try:
        settings = load_settings(data=data)
        # What a worker logs of its steps is no news here: the command says how each one ends.
        configure_logging(settings.log_format, "error")
        return asyncio.run(_run(settings, Output(as_json=as_json), wish))
    except GreylagError as error:
        raise error_of_settings(error) from error


async def _run(settings: "Settings", output: Output, wish: OrphanWish) -> Exit:
    with loading():
        from greylag.wiring import assembled_orphans

    async with assembled_orphans(settings) as use_case:
        with output.busy("Comparing environments and records ..."):
            found = [one for one in await use_case.found() if wish.chooses(one)]
        chosen = [one for one in found if wish.verb and wish.concerns(one)]
        _list(output, use_case.place, [asdict(one) for one in found], ends=not chosen)
        if wish.verb:
            _say_what_is_left(output, [one for one in found if not wish.concerns(one)], wish)
        if not chosen:
            return Exit.OK
        await confirm(_question(use_case.place, len(chosen), wish), yes=wish.yes)
        doing, done = _WORDS[wish.verb or "delete"]
        rows = []
        for one in chosen:
            row = asdict(one)
            if wish.verb == "adopt":
                work = use_case.adopt(one, wish.instance)
            else:
                work = use_case.remove(one)
            with output.busy(f"{doing} {_called(row)} ..."):
                error = await _error_of(work)
            _say(output, row, error, done)
            rows.append({**row, done: error is None, "error": asdict(error) if error else None})
    if output.json:
        output.document({"store": use_case.place, "orphans": rows})
    return Exit.OK if all(row["error"] is None for row in rows) else Exit.REFUSED


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
        output.table(COLUMNS, [tuple(row[name] or "-" for name in FIELDS) for row in rows])
    else:
        output.line(f"Every environment has a record in {place}.")


def _say_what_is_left(output: Output, left: "list[Orphan]", wish: OrphanWish) -> None:
    for instance in sorted({str(one.instance) for one in left}):
        count = sum(one.instance == instance for one in left)
        what = "1 environment belongs" if count == 1 else f"{count} environments belong"
        output.note(f"Left alone: {what} to another Greylag, {instance}.")
        if wish.verb == "adopt":
            output.note(f"hint: If its records are lost, add --instance {instance}.", "")


def _question(place: str, count: int, wish: OrphanWish) -> str:
    what = "this environment" if count == 1 else f"these {count} environments"
    if wish.verb == "delete":
        return f"Delete {what}, of which {place} has no record, and all files in it?"
    if wish.instance is None:
        return f"Make a record in {place} for {what}?"
    return (
        f"Make a record in {place} for {what}, and take over all that the Greylag {wish.instance} "
        "has of their users? If it still runs, it loses them."
    )


def _say(output: Output, row: dict[str, Any], error: ErrorInfo | None, done: str) -> None:
    if error is None:
        output.note(f"{done.capitalize()}: {_called(row)}.")
        return
    output.note(f"error: {_called(row)} is not {done}: {error.message} [{error.code}]", "red")
    output.note(f"hint: {error.hint}", "")


def _called(row: Mapping[str, object]) -> str:
    return f"the environment of project {row['project_id']} of user {row['user_id']}"


# Giving what runs the settings of now.

POLL_SECONDS = 0.5


@click.command(short_help="Start outdated environments anew, a few at a time.")
@click.option(
    "--at-once",
    metavar="N",
    type=click.IntRange(1, 100),
    default=2,
    help="How many at a time (default 2).",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.IntRange(1, 86400),
    default=900,
    help="How long to wait for each, its agent at work included (default 900).",
)
@click.option("--list", "only_list", is_flag=True, help="Only tell what runs, and with what.")
@api_command
async def rollout(
    access: Access,
    *,
    at_once: int,
    timeout: int,  # noqa: ASYNC109 - for each project
    only_list: bool,
) -> int:
    """Give environments that run the settings of now: image, keys, variables, limits.

    Each that is outdated is started anew once its agent answers nobody; files and conversations are
    kept. Of all users, or with --user of one. The first that fails ends it: those that are on their
    way are waited for, and no other is begun. Sleeping projects have the settings of now when they
    are next activated. Run it again to go on.

    \b
    Examples:
      greylag rollout
      greylag rollout --list
      greylag rollout --at-once 5 --user alice
    """  # noqa: D301 - \b is click's mark: do not wrap this paragraph
    users = [one["id"] for one in await access.api.users()]
    if access.user:
        users = [await access.user_id()]
    active = [one for user_id in users async for one in access.api.projects(user_id, "active")]
    if only_list:
        _show_what_runs(access.output, active)
        return Exit.OK
    waiting = [project for project in active if project["outdated"]]
    rolling = _Rollout(access.output, access.api, waiting, timeout)
    async with task_group() as group:
        for number in range(at_once):
            group.create_task(rolling.work(), name=f"rollout {number}")
    rolling.tell()
    if rolling.failed:
        return Exit.REFUSED
    return Exit.TIMEOUT if rolling.busy else Exit.OK


def _show_what_runs(output: Output, active: list[ProjectJson]) -> None:
    rows = (
        (
            project["user_id"],
            project["project_id"],
            "earlier settings" if project["outdated"] else "the settings of now",
            moment(project["last_activated_at"]),
        )
        for project in active
    )
    output.listing(
        {"active": [{**_place(one), "outdated": one["outdated"]} for one in active]},
        ("USER", "PROJECT", "RUNS", "ACTIVATED"),
        rows,
        empty="No environment runs.",
    )


def _place(project: ProjectJson) -> dict[str, str]:
    return {"user_id": project["user_id"], "project_id": project["project_id"]}


class _Rollout:
    """What is to be started anew, and what came of it; any number of tasks ``work`` on it."""

    def __init__(
        self, output: Output, api: ApiClient, waiting: list[ProjectJson], seconds: float
    ) -> None:
        self._output = output
        self._api = api
        self._waiting = waiting
        self._count = len(waiting)
        self._seconds = seconds
        self._done: list[ProjectJson] = []
        self.busy: list[ProjectJson] = []
        self.failed: list[dict[str, Any]] = []

    async def work(self) -> None:
        """Take one after the other until nothing is left, or one has failed."""
        while self._waiting and not self.failed:
            project = self._waiting.pop(0)
            try:
                async with asyncio.timeout(self._seconds):
                    error = await self._refresh(project)
            except TimeoutError:
                self.busy.append(project)
                self._output.note(f"Still at work, started anew later: {_called(project)}.")
                continue
            except CliError as refused:
                error = ("refused", refused.message)
            self._note(project, error)

    def tell(self) -> None:
        """Print what came of all."""
        if self._output.json:
            told = {"refreshed": self._done, "busy": self.busy, "left": self._waiting}
            named = {what: [_place(one) for one in found] for what, found in told.items()}
            self._output.document({**named, "failed": self.failed})
        elif not self._count:
            self._output.line("No environment that runs is outdated.")
        else:
            self._output.line(
                f"Started anew: {len(self._done)} of {self._count}; still at work: "
                f"{len(self.busy)}; failed: {len(self.failed)}; not begun: {len(self._waiting)}."
            )

    async def _refresh(self, project: ProjectJson) -> tuple[str, str] | None:
        """Return once it runs with the settings of now, or sleeps; what is wrong if it failed."""
        place = place_of(project)
        now: ProjectJson = await self._api.post(*place.path, "refresh")
        while now["outdated"] or now["status"] in {"activating", "deactivating"}:
            if now["status"] == "error":
                break
            await asyncio.sleep(POLL_SECONDS)
            now = await self._api.project(place)
        error = now["error"]
        return (error["code"], error["message"]) if now["status"] == "error" and error else None

    def _note(self, project: ProjectJson, error: tuple[str, str] | None) -> None:
        called = _called(project)
        if error is None:
            self._done.append(project)
            self._output.note(f"Started anew ({len(self._done)} of {self._count}): {called}.")
            return
        code, message = error
        self.failed.append({**_place(project), "error": {"code": code, "message": message}})
        self._output.note(f"error: {called}: {message} [{code}]", "red")
