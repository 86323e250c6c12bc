"""Values that BSON cannot hold as they are: JSON is wider in text, whole numbers and key names."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

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
            return _is_unicode(value)
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
        and _is_unicode(name)
        and _fits(member, depth)
        for name, member in value.items()
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
