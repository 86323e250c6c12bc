"""What the archives of all stores share: how much one sheet holds, and what a record must be."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from greylag.domain.errors import ErrorInfo
from greylag.domain.project import Desired, Lease, Status
from greylag.ports import Flaw, StoreNotEmptyError
from greylag.store.records import LOG_LENGTH, Record

NAMED = 20
"""How many flaws of one kind a store names."""

_EVENTS_AT_ONCE = 5_000

_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "user_id", "project_id", "name"), (str,)),
    "endpoint": (str, _NONE),
    **dict.fromkeys(("created_at", "updated_at"), (datetime,)),
    **dict.fromkeys(("last_activated_at", "last_deactivated_at"), (datetime, _NONE)),
    **dict.fromkeys(("due_at", "deadline_at"), (datetime, _NONE)),
    **dict.fromkeys(("generation", "observed_generation", "attempts"), (int,)),
    "error_terminal": (bool,),
    "metadata": (Mapping,),
    "error": (ErrorInfo, _NONE),
    "lease": (Lease, _NONE),
}


def fitting(last_numbers: Iterable[object]) -> int:
    """Return how many of these records one sheet takes, so that logs do not fill the memory.

    ``last_numbers`` are the numbers of their last events. It is one at least, if there is one.
    """
    taken = events = 0
    for last in last_numbers:
        events += min(last, LOG_LENGTH) if isinstance(last, int) else 0
        if taken and events > _EVENTS_AT_ONCE:
            break
        taken += 1
    return taken


def well_typed(record: Record) -> Record:
    """Return ``record`` if each field holds what it should, else raise ``TypeError`` naming one."""
    project = record.project
    for name, kinds in _KINDS.items():
        _need(name, getattr(project, name), kinds)
    _need("claims", record.claims, (int,))
    _need("last_seq", record.last_seq, (int,))
    for name, value in asdict(project.names).items():
        _need(name, value, (str,))
    for name, value in (asdict(project.error) if project.error else {}).items():
        _need(f"error.{name}", value, (str,))
    if project.lease is not None:
        _need("lease.worker", project.lease.worker, (str,))
        _need("lease.number", project.lease.number, (int,))
        _need("lease.until", project.lease.until, (datetime,))
    return record


def unreadable(record_id: object, fields: Mapping[str, Any], error: Exception) -> Flaw:
    """Return what is wrong with a record that raised ``error`` when it was read from ``fields``."""
    who = f"The record of project {fields.get('project_id')!r} of user {fields.get('user_id')!r}"
    for name, code, kind in (
        ("status", "unknown_status", Status),
        ("desired", "unknown_wish", Desired),
    ):
        value = fields.get(name)
        if value is not None and value not in list(kind):
            words = ", ".join(kind)
            return Flaw(
                code,
                str(record_id),
                f"{who} has the {name} {value!r}.",
                f"Correct it to one of: {words}.",
            )
    cause = error.__cause__ or error
    return Flaw(
        "unreadable_record",
        str(record_id),
        f"{who} cannot be read ({type(cause).__name__}: {cause}).",
        "Correct the field that the sentence names, or remove the record; until then nobody works "
        "on the project.",
    )


def unreadable_event(record_id: object, error: Exception) -> Flaw:
    """Return what is wrong with a project's log that raised ``error`` when it was read."""
    return Flaw(
        "unreadable_event",
        str(record_id),
        f"An event of its activation log cannot be read ({type(error).__name__}: {error}).",
        "Remove the event; the log is for people, and nothing else depends on it.",
    )


def event_without_project(record_id: object, count: int) -> Flaw:
    """Return the flaw of ``count`` events that belong to no record."""
    return Flaw(
        "event_without_project",
        str(record_id),
        f"{count} events belong to a record that does not exist.",
        "Remove them: they are left from a deletion that was cut off, and nobody can see them.",
    )


def doubles(user_id: object, project_id: object, record_ids: Iterable[object]) -> Flaw:
    """Return the flaw of several records of one project."""
    ids = ", ".join(map(str, record_ids))
    return Flaw(
        "two_records",
        ids,
        f"User {user_id!r} has several records of project {project_id!r}.",
        "Remove all but one of them, or give the others another project_id.",
    )


def unfinished_copy(source: str) -> Flaw:
    """Return the flaw of a store that a copy has not filled to its end."""
    return Flaw(
        "unfinished_copy",
        "-",
        f"The store holds only a part of what is being copied from {source}.",
        "Run the same `greylag store copy` again: it goes on where it was.",
    )


def taken_by_another(user_id: str, project_id: str) -> StoreNotEmptyError:
    """Return the error for a project that the target has under another record id."""
    return StoreNotEmptyError(
        f"The target has another record of project {project_id!r} of user {user_id!r}."
    )


def _need(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        wanted = " or ".join("nothing" if kind is _NONE else kind.__name__ for kind in kinds)
        raise TypeError(f"{name} is {value!r}, not {wanted}")
