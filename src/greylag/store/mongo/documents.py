"""Records, events and idempotency keys as MongoDB documents, and back.

A project's document has the fields that are documented for other programs, and ours beside them:
``claimable_at`` and ``unsettled`` are what the indexes look for (absent: no), ``revision`` counts
the writes and guards them, ``news`` names the last write that others should hear of, ``tail``
holds the newest events, and ``environment_user`` is there for the owner's own environment too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId

from greylag.common.typed import check_types, is_encodable
from greylag.domain.errors import ErrorInfo
from greylag.domain.names import EnvironmentNames, environment_names
from greylag.domain.project import (
    Desired,
    Event,
    GitSource,
    Lease,
    Project,
    ProjectRecord,
    Status,
    unsettled,
)
from greylag.ports import AnyKept, StoredKey
from greylag.store.people import expires_at, to_body
from greylag.store.records import KEY_LIFETIME, LOG_LENGTH, MALFORMED, cannot_be_read

Document = dict[str, Any]

WITHOUT_TAIL = {"tail": False}
_LOSSY = "backslashreplace"
_ELSEWISE = {"id", "names", "metadata", "status", "error", "desired", "source", "lease"}
_AS_THEY_ARE = [
    field.name for field in fields(Project) if field.name not in {*_ELSEWISE, "environment_user"}
]


def id_of(record_id: str) -> ObjectId | str:
    """Return the ``_id`` of the record with this id."""
    return ObjectId(record_id) if ObjectId.is_valid(record_id) else record_id


def to_document(record: ProjectRecord) -> Document:
    """Return all that is kept of ``record`` but its events; what is absent must not be there."""
    project, lease = record.project, record.project.lease
    document: Document = {
        "_id": id_of(project.id),
        **{name: getattr(project, name) for name in _AS_THEY_ARE},
        **asdict(project.names),
        **_error_fields(project.error),
        "metadata": pack(project.metadata),
        "status": project.status.value,
        "desired": project.desired.value,
        "lease": asdict(lease) if lease else None,
        "claims": record.claims,
        "woken": record.woken,
        "environment_user": project.made_for.user_id,
    }
    if project.source is not None:
        document["git_source"] = asdict(project.source)
    if record.claimable_at is not None:
        document["claimable_at"] = record.claimable_at
    if unsettled(project):
        document["unsettled"] = True
    return document


def revision_of(raw: Mapping[str, Any]) -> Any:
    """Return how often a document was written; a number in each that can be read."""
    found = raw.get("revision")
    return 0 if found is None else found


def difference(raw: Document, before: ProjectRecord, after: ProjectRecord) -> Document:
    """Return the update that makes ``raw``, which was read as ``before``, into ``after``.

    It names only fields of ours that differ, so that what others keep in the document stays.
    """
    wanted = to_document(after)
    if after.project.metadata == before.project.metadata:
        # What others wrote there may be richer than what we read of it.
        wanted.pop("metadata")
    absent = object()
    changed = {name: value for name, value in wanted.items() if raw.get(name, absent) != value}
    gone = {
        name: "" for name in ("claimable_at", "unsettled") if name in raw and name not in wanted
    }
    update: Document = {"$set": changed} if changed else {}
    return update | ({"$unset": gone} if gone else {})


def from_document(raw: Mapping[str, Any]) -> ProjectRecord:
    """Return the record that a document holds; what an older system left out is derived.

    Raises:
        RecordUnreadableError: it is no project.
    """
    try:
        record = _record(raw)
        check_types(record)
    except MALFORMED as error:
        whose = raw.get("user_id"), raw.get("project_id")
        raise cannot_be_read(raw.get("_id"), *whose, error) from error
    return record


def event_fields(event: Event) -> Document:
    """Return an event as part of a document."""
    return {
        "seq": event.seq,
        "at": event.at,
        "status": event.status.value,
        "generation": event.generation,
        "text": pack({"code": event.code, "message": event.message, "hint": event.hint}),
    }


def to_event(fields: Mapping[str, Any]) -> Event:
    """Return the event of ``event_fields``.

    Raises:
        ValueError: or another of ``records.MALFORMED``: it is none.
    """
    event = Event(
        seq=_whole(fields["seq"]),
        at=fields["at"],
        status=Status(fields["status"]),
        generation=_whole(fields["generation"]),
        **unpack(fields["text"]),
    )
    check_types(event)
    return event


def new_tail(events: Sequence[Event]) -> list[Document]:
    """Return the events of one outcome as the project's document holds them."""
    return [event_fields(event) for event in events[-LOG_LENGTH:]]


def tail_of(raw: Mapping[str, Any]) -> Sequence[Document]:
    """Return the newest events of a project, as ``event_fields``.

    Raises:
        TypeError: it has something else there.
    """
    tail = raw.get("tail") or []
    if not isinstance(tail, list):
        raise TypeError(f"tail is {tail!r:.80}, not a list")
    return tail


def key_document(record_id: str, kept: StoredKey) -> Document:
    """Return the document of an idempotency key of the record with this id."""
    return {
        "_id": {"user_id": kept.user_id, "key": kept.key},
        "fingerprint": kept.fingerprint,
        "record_id": id_of(record_id),
        "expires_at": kept.expires_at,
        # The server goes by the real time. It comes later, so that both clocks may differ.
        "purge_at": datetime.now(UTC) + 2 * KEY_LIFETIME,
    }


def document_of(one: AnyKept) -> Document:
    """Return what is written of one of ``greylag.store.people``."""
    document = to_body(one) | {"_id": one.key, "labels": list(one.labels)}
    until = expires_at(one)
    return document if until is None else document | {"purge_at": until}


def _record(raw: Mapping[str, Any]) -> ProjectRecord:
    if id_of(str(raw["_id"])) != raw["_id"]:
        raise TypeError(f"its _id is {raw['_id']!r}, which is no ObjectId")
    revision = revision_of(raw)
    if not isinstance(revision, int | float):
        raise TypeError(f"its revision is {revision!r:.80}, which is no number")
    status = Status(raw["status"])
    created = raw.get("created_at") or _born(raw["_id"])
    user_id, project_id = _text(raw["user_id"]), _text(raw["project_id"])
    given: Document = {
        **{name: _whole(raw[name]) for name in _AS_THEY_ARE if name in raw},
        "name": _text(raw.get("name") or project_id),
        "created_at": created,
        "updated_at": raw.get("updated_at") or created,
    }
    project = Project(
        **{"observed_generation": _observed(status), **given},
        id=str(raw["_id"]),
        names=_names(raw, user_id, project_id),
        metadata=unpack(raw.get("metadata") or {}),
        status=status,
        error=_error(raw),
        desired=_desired(raw, status),
        source=GitSource(**raw["git_source"]) if raw.get("git_source") else None,
        environment_user=None if (made := raw.get("environment_user")) == user_id else made,
        lease=_lease(raw["lease"]) if raw.get("lease") else None,
    )
    return ProjectRecord(project, _whole(raw.get("claims", 0)), bool(raw.get("woken", False)))


def _lease(raw: Mapping[str, Any]) -> Lease:
    return Lease(**{name: _whole(value) for name, value in raw.items()})


def _whole(value: Any) -> Any:
    """Return a whole number as one: some shells write each number that is edited as a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _desired(raw: Mapping[str, Any], status: Status) -> Desired:
    if "desired" in raw:
        return Desired(raw["desired"])
    runs = status in {Status.ACTIVE, Status.ACTIVATING}
    return Desired.ACTIVE if runs else Desired.INACTIVE


def _observed(status: Status) -> int:
    return 0 if status in {Status.ACTIVATING, Status.DEACTIVATING} else 1


def _names(raw: Mapping[str, Any], user_id: str, project_id: str) -> EnvironmentNames:
    derived = asdict(environment_names(user_id, project_id))
    return EnvironmentNames(**{part: raw.get(part) or name for part, name in derived.items()})


def _error_fields(error: ErrorInfo | None) -> Document:
    if error is None:
        return {"error_message": None, "error": None}
    shown = error.message.encode(errors=_LOSSY).decode()
    more = {"code": error.code, "hint": error.hint}
    if shown != error.message:
        more["message"] = error.message
    return {"error_message": shown, "error": pack(more)}


def _error(raw: Mapping[str, Any]) -> ErrorInfo | None:
    shown = raw.get("error_message")
    if not shown and not raw.get("error"):
        return None
    more = unpack(raw.get("error") or {})
    return ErrorInfo(
        more.get("code", "internal_error"), more.get("message", shown or ""), more.get("hint", "")
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _born(record_id: Any) -> datetime:
    moment: datetime = record_id.generation_time
    return moment.astimezone(UTC)


# Values that BSON cannot hold as they are: JSON is wider in text, whole numbers and key names.

_AS_TEXT = "_json"
_DEEPEST = 80
_LARGEST = 2**63


def pack(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object as a document; as it is, if BSON can hold it, else as JSON text."""
    plain = dict(value)
    return plain if _fits(plain, 0) else {_AS_TEXT: json.dumps(plain, separators=(",", ":"))}


def unpack(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``pack`` was given. What others wrote and JSON does not know becomes text."""
    text = document.get(_AS_TEXT)
    if len(document) == 1 and isinstance(text, str):
        found: dict[str, Any] = json.loads(text)
        return found
    return {str(name): _plain(value) for name, value in document.items()}


def _fits(value: Any, depth: int) -> bool:
    match value:
        case None | bool() | float():
            return True
        case int():
            return -_LARGEST <= value < _LARGEST
        case str():
            return is_encodable(value)
        case list() | tuple():
            return depth < _DEEPEST and all(_fits(one, depth + 1) for one in value)
        case dict():
            return depth < _DEEPEST and set(value) != {_AS_TEXT} and _members_fit(value, depth + 1)
        case _:
            return False


def _members_fit(value: dict[Any, Any], depth: int) -> bool:
    # Older servers and the update language read dots and dollars in names as something else.
    return all(
        isinstance(name, str)
        and not name.startswith("$")
        and not {"\0", "."} & set(name)
        and is_encodable(name)
        and _fits(member, depth)
        for name, member in value.items()
    )


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | float() | str():
            return value
        case int():
            return int(value)
        case list():
            return [_plain(one) for one in value]
        case dict():
            return {str(name): _plain(member) for name, member in value.items()}
        case datetime():
            return value.isoformat()
        case _:
            return str(value)
