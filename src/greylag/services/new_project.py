"""What a client asks when it creates a project, and what of it is refused."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from greylag.domain.errors import InvalidRequestError
from greylag.ports.store import IdempotencyKey

MAX_METADATA_BYTES = 16_384
MAX_KEY_LENGTH = 255


@dataclass(frozen=True, slots=True)
class NewProject:
    """What a client asks to create; without ``project_id`` one is made from the name."""

    name: str
    project_id: str | None = None
    metadata: Mapping[str, Any] | None = None


def check_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``metadata``; raises ``InvalidRequestError`` if it is too big or no plain JSON."""
    try:
        size = len(json.dumps(metadata, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError("metadata must be an object of plain JSON.") from error
    if size > MAX_METADATA_BYTES:
        raise InvalidRequestError(f"metadata must be at most {MAX_METADATA_BYTES} bytes of JSON.")
    return metadata


def idempotency_key(key: str | None, new: NewProject) -> IdempotencyKey | None:
    """Return the key with the digest of what was asked; raises ``InvalidRequestError``."""
    if key is None:
        return None
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not key.isprintable():
        raise InvalidRequestError(
            f"Idempotency-Key must have 1 to {MAX_KEY_LENGTH} printable characters."
        )
    content = json.dumps([new.name, new.project_id, new.metadata or {}], sort_keys=True)
    return IdempotencyKey(key, hashlib.sha256(content.encode()).hexdigest())
