"""Documents as what an archive moves, and back."""

from datetime import UTC, datetime
from typing import Any

import bson
from bson.codec_options import CodecOptions, DatetimeConversion

from greylag.ports import Bundle, Flaw, KeptKey
from greylag.store import sheets
from greylag.store.mongo.client import DocumentError
from greylag.store.mongo.documents import (
    Document,
    from_document,
    key,
    pack,
    tail_of,
    to_document,
    to_event,
    unpack,
)
from greylag.store.mongo.writes import new_tail
from greylag.store.records import KEY_LIFETIME, LOG_LENGTH, Record

OPTIONS: CodecOptions[Document] = CodecOptions(
    # Dates that Python cannot hold are for the check to find, not to fail on.
    tz_aware=True,
    tzinfo=UTC,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)

_OURS = {"claimable_at", "unsettled", "revision", "news", "tail"}


def to_bundle(raw: Document, older: list[Document], keys: list[Document]) -> Bundle | Flaw:
    """Return what a document holds, with the events that stand elsewhere (``older``) and its keys;
    or what is wrong with it.
    """
    if key(str(raw["_id"])) != raw["_id"]:
        return _strange_id(raw["_id"])
    try:
        record = sheets.well_typed(from_document(raw))
    except (DocumentError, TypeError) as error:
        return sheets.unreadable(raw["_id"], raw, error)
    # What was moved out of the tail may stand there still, as the same.
    numbered = {fields["seq"]: fields for fields in [*older, *tail_of(raw)]}
    oldest = record.last_seq - LOG_LENGTH
    try:
        events = [to_event(numbered[seq]) for seq in sorted(numbered) if seq > oldest]
    except (ValueError, TypeError, KeyError) as error:
        return sheets.unreadable_event(raw["_id"], error)
    return Bundle(
        project=record.project,
        claims=record.claims,
        last_seq=record.last_seq,
        events=events,
        keys=[
            KeptKey(
                fields["_id"]["user_id"],
                fields["_id"]["key"],
                fields["fingerprint"],
                fields["expires_at"],
            )
            for fields in keys
        ],
        extra=_extra(raw, record),
    )


def _extra(raw: Document, record: Record) -> bytes:
    """Return what others keep in a document, as BSON."""
    ours = _OURS | set(to_document(record))
    extra = {name: value for name, value in raw.items() if name not in ours}
    metadata = raw.get("metadata")
    if "metadata" in raw and (metadata is None or pack(unpack(metadata)) != metadata):
        # It is richer than what we read of it.
        extra["metadata"] = metadata
    return bson.encode(extra, codec_options=OPTIONS) if extra else b""


def from_bundle(bundle: Bundle) -> Document:
    """Return the document of a project that arrives, its log with it."""
    document = to_document(Record(bundle.project, bundle.claims, bundle.last_seq))
    extra = bson.decode(bundle.extra, OPTIONS) if bundle.extra else {}
    # The whole log goes with the record, so that both arrive in one step; its next event moves it
    # to where older events are kept.
    return document | extra | {"revision": 1, "tail": new_tail(bundle.events)}


def key_document(kept: KeptKey, record_id: Any) -> Document:
    """Return the document of an idempotency key of the project with this ``_id``."""
    return {
        "_id": {"user_id": kept.user_id, "key": kept.key},
        "fingerprint": kept.fingerprint,
        "record_id": record_id,
        "expires_at": kept.expires_at,
        "purge_at": datetime.now(UTC) + 2 * KEY_LIFETIME,
    }


def _strange_id(value: Any) -> Flaw:
    return Flaw(
        "bad_record_id",
        str(value),
        f"The _id of the document is {value!r}, which is no ObjectId.",
        "Insert the document again with an ObjectId as its _id, and remove this one.",
    )
