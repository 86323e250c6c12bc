"""Finding what breaks a rule in a store, and explaining it. Nothing is changed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from greylag.domain.errors import InvalidRequestError
from greylag.domain.names import EnvironmentNames, check_id, check_name, environment_names
from greylag.domain.project import Desired, Project, Status
from greylag.ports import Archive, Bundle, Flaw
from greylag.services.store_digest import all_sheets

_LONG = timedelta(hours=1)
"""After this time, what should have gone on has stopped."""

_CLOCKS_DIFFER = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Report:
    """How many records were looked at in the store at ``place``, and what was found."""

    place: str
    projects: int
    flaws: Sequence[Flaw]


async def check_store(
    archive: Archive, now: datetime, prefix: str, tell: Callable[[int], None]
) -> Report:
    """Walk the whole store; ``prefix`` begins each namespace, ``tell`` hears how many were read."""
    flaws = list(await archive.flaws())
    count = 0
    async for sheet in all_sheets(archive):
        flaws += sheet.unreadable
        for bundle in sheet.bundles:
            flaws += record_flaws(bundle, now, prefix)
        count += len(sheet.bundles) + len(sheet.unreadable)
        tell(count)
    return Report(archive.place, count, flaws)


def record_flaws(bundle: Bundle, now: datetime, prefix: str) -> Iterator[Flaw]:
    """Yield each rule that one record breaks."""
    project = bundle.project
    yield from _ids(project)
    yield from _names(project, prefix)
    yield from _states(project)
    yield from _dates(project, now)
    yield from _stuck(project, now)
    yield from _log(bundle)


def _ids(project: Project) -> Iterator[Flaw]:
    for value, field in ((project.user_id, "user_id"), (project.project_id, "project_id")):
        try:
            check_id(value, field)
        except InvalidRequestError as error:
            yield _flaw(
                project,
                "bad_id",
                error.info.message,
                "Such a project cannot be asked for by its URL: give it another id.",
            )
    try:
        check_name(project.name)
    except InvalidRequestError as error:
        yield _flaw(
            project, "bad_name", error.info.message, "Rename it: `greylag projects rename`."
        )


def _names(project: Project, prefix: str) -> Iterator[Flaw]:
    derived = environment_names(project.user_id, project.project_id, prefix=prefix)
    if project.names != derived:
        yield _flaw(
            project,
            "names_differ",
            f"Its names ({_shown(project.names)}) are not those that its ids and the prefix "
            f"{prefix!r} give ({_shown(derived)}).",
            "Leave them if another system or prefix gave them: its environment is found by them. "
            "Else check KUBE_NAMESPACE_PREFIX in this shell, and that no other project has them.",
        )


def _states(project: Project) -> Iterator[Flaw]:
    if project.status is Status.ACTIVE and project.endpoint is None:
        yield _flaw(
            project,
            "active_without_endpoint",
            "It is active, but has no endpoint, so its agent cannot be asked.",
            "Deactivate and activate it; a worker then writes the endpoint.",
        )
    if project.observed_generation > project.generation:
        yield _flaw(
            project,
            "generation_behind",
            f"Its observed_generation ({project.observed_generation}) is above its generation "
            f"({project.generation}), so the next wish would count as fulfilled.",
            "Set generation to observed_generation.",
        )


def _dates(project: Project, now: datetime) -> Iterator[Flaw]:
    moments = {
        name: moment
        for name in ("created_at", "updated_at", "last_activated_at", "last_deactivated_at")
        if (moment := getattr(project, name)) is not None
    }
    for name, moment in moments.items():
        if moment < project.created_at:
            told = f"Its {name} ({moment:%Y-%m-%d %H:%M:%S}) is before its created_at"
            yield _flaw(
                project,
                "dates_out_of_order",
                f"{told} ({project.created_at:%Y-%m-%d %H:%M:%S}).",
                "Correct the one that is wrong.",
            )
        if moment > now + _CLOCKS_DIFFER:
            yield _flaw(
                project,
                "date_in_the_future",
                f"Its {name} ({moment:%Y-%m-%d %H:%M:%S}) is in the future.",
                "Check the clocks of the machines that run Greylag, then correct it.",
            )


def _stuck(project: Project, now: datetime) -> Iterator[Flaw]:
    since = max(project.updated_at, project.deadline_at or project.updated_at)
    if project.desired is Desired.DELETED and now - since > _LONG:
        yield _flaw(
            project,
            "deletion_stuck",
            f"It is to be deleted since {project.updated_at:%Y-%m-%d %H:%M:%S} and is still there.",
            "See that a `greylag worker` runs on this store and can reach the cluster; the "
            "project's events say what it met.",
        )
    lease = project.lease
    if lease is not None and now - lease.until > _LONG:
        yield _flaw(
            project,
            "lease_long_past",
            f"The lease of worker {lease.worker} ran out at {lease.until:%Y-%m-%d %H:%M:%S}, and "
            "nobody has gone on.",
            "Start a `greylag worker` on this store: it takes over what a dead one has left.",
        )


def _log(bundle: Bundle) -> Iterator[Flaw]:
    last = max((event.seq for event in bundle.events), default=0)
    if last > bundle.last_seq:
        yield _flaw(
            bundle.project,
            "events_out_of_step",
            f"Its log has an event {last}, but its last_seq is {bundle.last_seq}, so the next "
            "event's number would be one that is taken.",
            f"Set last_seq to {last}.",
        )


def _flaw(project: Project, code: str, sentence: str, hint: str) -> Flaw:
    who = f"Project {project.project_id!r} of user {project.user_id!r}: "
    return Flaw(code, project.id, who + sentence, hint)


def _shown(names: EnvironmentNames) -> str:
    return ", ".join(asdict(names).values())
