"""What a store holds, as a number: equal for equal content, in whatever order and kind of store."""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from greylag.domain.project import Project
from greylag.ports import Archive, Bundle, Sheet, StoreUnreadableError

AT_ONCE = 500
"""Records on one sheet at most."""

_MODULUS = 2**256
# Whose turn it is now is no content: it is set anew where the record arrives.
_SAID = [field.name for field in fields(Project) if field.name not in {"lease", "due_at"}]


async def readable_sheets(archive: Archive) -> AsyncIterator[Sheet]:
    """Yield all of a store; ``StoreUnreadableError`` at the first record that cannot be read."""
    async for sheet in all_sheets(archive):
        for flaw in sheet.unreadable:
            raise StoreUnreadableError(f"{archive.place}: {flaw.sentence}")
        yield sheet


async def all_sheets(archive: Archive) -> AsyncIterator[Sheet]:
    """Yield all of a store, sheet by sheet."""
    sheet = await archive.sheet(None, AT_ONCE)
    yield sheet
    while sheet.after is not None:
        sheet = await archive.sheet(sheet.after, AT_ONCE)
        yield sheet


def current(bundle: Bundle, now: datetime) -> Bundle:
    """Return ``bundle`` without the idempotency keys that have expired: stores remove those."""
    keys = [key for key in bundle.keys if key.expires_at > now]
    return replace(bundle, keys=sorted(keys, key=lambda key: key.key))


def content(bundle: Bundle) -> bytes:
    """Return what is said by a project's record, log and keys, as JSON in one canonical form."""
    said = {
        "project": {name: getattr(bundle.project, name) for name in _SAID},
        "claims": bundle.claims,
        "last_seq": bundle.last_seq,
        "events": list(bundle.events),
        "keys": list(bundle.keys),
    }
    return json.dumps(said, sort_keys=True, separators=(",", ":"), default=_plain).encode("ascii")


@dataclass(slots=True)
class Tally:
    """What was counted so far. The digests are sums, so that no order of records matters."""

    projects: int = 0
    events: int = 0
    keys: int = 0
    with_extra: int = 0
    _content: int = 0
    _extra: int = 0

    def add(self, bundle: Bundle) -> None:
        """Count one project."""
        said = content(bundle)
        self.projects += 1
        self.events += len(bundle.events)
        self.keys += len(bundle.keys)
        self.with_extra += bool(bundle.extra)
        self._content = _sum(self._content, said)
        self._extra = _sum(self._extra, said + b"\0" + bundle.extra)

    @property
    def digest(self) -> str:
        """The digest of all records, logs and keys, 64 hexadecimal digits."""
        return f"{self._content:064x}"

    @property
    def digest_with_extra(self) -> str:
        """The same, over what others keep in the records too."""
        return f"{self._extra:064x}"


def _plain(value: Any) -> Any:
    """Return what JSON does not know in words that it knows. Quick, for stores are long."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _sum(so_far: int, said: bytes) -> int:
    return (so_far + int.from_bytes(hashlib.sha256(said).digest())) % _MODULUS
