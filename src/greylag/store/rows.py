"""Records and events as SQLite rows, and back."""

import json
import sqlite3
from dataclasses import asdict
from datetime import datetime
from typing import Any

from greylag.domain.errors import ErrorInfo
from greylag.domain.events import Event
from greylag.domain.names import EnvironmentNames
from greylag.domain.project import Desired, Lease, Project, Status
from greylag.store.cursor import from_millis, millis
from greylag.store.records import Record

_FIXED = (
    *("id", "user_id", "project_id", "created_at"),
    *("namespace", "deployment", "service", "ingress"),
)
_CHANGING = (
    *("name", "metadata", "updated_at", "status", "endpoint", "error", "error_terminal"),
    *("last_activated_at", "last_deactivated_at"),
    *("desired", "generation", "observed_generation", "attempts", "due_at", "deadline_at"),
    *("lease_worker", "lease_number", "lease_until", "claims", "last_seq", "woken"),
)
_COLUMNS = _FIXED + _CHANGING

SELECT = f"SELECT {', '.join(_COLUMNS)} FROM projects"  # noqa: S608 - only the names above
INSERT = (
    f"INSERT INTO projects ({', '.join(_COLUMNS)}) "  # noqa: S608 - only the names above
    f"VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"
)
UPDATE = (
    f"UPDATE projects SET {', '.join(f'{name} = :{name}' for name in _CHANGING)} "  # noqa: S608 - only the names above
    "WHERE id = :id"
)


def to_row(record: Record) -> dict[str, Any]:
    """Return the values of ``INSERT`` and ``UPDATE`` for ``record``."""
    project, lease = record.project, record.project.lease
    return {
        "id": project.id,
        "user_id": project.user_id,
        "project_id": project.project_id,
        "created_at": millis(project.created_at),
        **asdict(project.names),
        "name": project.name,
        "metadata": _dump(dict(project.metadata)),
        "updated_at": millis(project.updated_at),
        "status": project.status.value,
        "endpoint": project.endpoint,
        "error": _dump(asdict(project.error)) if project.error else None,
        "error_terminal": project.error_terminal,
        "last_activated_at": _maybe_millis(project.last_activated_at),
        "last_deactivated_at": _maybe_millis(project.last_deactivated_at),
        "desired": project.desired.value,
        "generation": project.generation,
        "observed_generation": project.observed_generation,
        "attempts": project.attempts,
        "due_at": _maybe_millis(project.due_at),
        "deadline_at": _maybe_millis(project.deadline_at),
        "lease_worker": lease.worker if lease else None,
        "lease_number": lease.number if lease else None,
        "lease_until": millis(lease.until) if lease else None,
        "claims": record.claims,
        "last_seq": record.last_seq,
        "woken": record.woken,
    }


def from_row(row: sqlite3.Row) -> Record:
    """Return the record that a row of ``SELECT`` holds."""
    project = Project(
        id=row["id"],
        user_id=row["user_id"],
        project_id=row["project_id"],
        created_at=from_millis(row["created_at"]),
        names=EnvironmentNames(
            namespace=row["namespace"],
            deployment=row["deployment"],
            service=row["service"],
            ingress=row["ingress"],
        ),
        name=row["name"],
        metadata=json.loads(row["metadata"]),
        updated_at=from_millis(row["updated_at"]),
        status=Status(row["status"]),
        endpoint=row["endpoint"],
        error=ErrorInfo(**json.loads(row["error"])) if row["error"] else None,
        error_terminal=bool(row["error_terminal"]),
        last_activated_at=_maybe_moment(row["last_activated_at"]),
        last_deactivated_at=_maybe_moment(row["last_deactivated_at"]),
        desired=Desired(row["desired"]),
        generation=row["generation"],
        observed_generation=row["observed_generation"],
        attempts=row["attempts"],
        due_at=_maybe_moment(row["due_at"]),
        deadline_at=_maybe_moment(row["deadline_at"]),
        lease=_lease(row),
    )
    return Record(project, row["claims"], row["last_seq"], bool(row["woken"]))


def event_body(event: Event) -> str:
    """Return all of ``event`` but its number, as JSON."""
    body = asdict(event) | {"at": millis(event.at)}
    del body["seq"]
    return _dump(body)


def to_event(row: sqlite3.Row) -> Event:
    """Return the event that a row with ``seq`` and ``body`` holds."""
    body = json.loads(row["body"])
    changed = {"at": from_millis(body["at"]), "status": Status(body["status"])}
    return Event(seq=row["seq"], **(body | changed))


def _lease(row: sqlite3.Row) -> Lease | None:
    if row["lease_until"] is None:
        return None
    return Lease(row["lease_worker"], row["lease_number"], from_millis(row["lease_until"]))


def _dump(value: dict[str, Any]) -> str:
    # ASCII only, so that any text can be kept, with unpaired surrogates too.
    return json.dumps(value, separators=(",", ":"))


def _maybe_millis(moment: datetime | None) -> int | None:
    return None if moment is None else millis(moment)


def _maybe_moment(value: int | None) -> datetime | None:
    return None if value is None else from_millis(value)
