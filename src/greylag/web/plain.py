"""Values from outside, checked so that every store, log and answer can hold them; and times."""

import math
from datetime import UTC, datetime
from typing import Any, overload

MAX_DEPTH = 32
_INT64 = 2**63


def check_text(value: str) -> str:
    """Return ``value`` if it is text that UTF-8 can carry, else raise ``ValueError``.

    JSON can spell half of a surrogate pair, which no file and no database takes.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must not hold unpaired surrogates") from None
    return value


def check_metadata(value: dict[str, Any]) -> dict[str, Any]:
    """Return ``value`` if it is JSON that everything after us can hold, else raise ``ValueError``.

    That is: nested 32 deep at most, finite numbers, whole ones of 64 bits, text without unpaired
    surrogates.
    """
    # A list of what is left to look at, not recursion: the depth is what is not yet known.
    left: list[tuple[Any, int]] = [(value, 1)]
    while left:
        item, depth = left.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"must not be nested deeper than {MAX_DEPTH}")
        left += [(child, depth + 1) for child in _children(item)]
    return value


def _children(item: Any) -> list[Any]:
    match item:
        case dict():
            return [*item.keys(), *item.values()]
        case list():
            return item
        case str():
            check_text(item)
        case int() if not -_INT64 <= item < _INT64:
            raise ValueError("must not hold whole numbers of more than 64 bits")
        case float() if not math.isfinite(item):
            raise ValueError("must not hold numbers that JSON cannot write")
        case _:
            pass
    return []


@overload
def rfc3339(moment: datetime) -> str: ...
@overload
def rfc3339(moment: datetime | None) -> str | None: ...
def rfc3339(moment: datetime | None) -> str | None:
    """Return ``moment`` (aware) as RFC 3339 has it, in UTC with milliseconds and ``Z``."""
    if moment is None:
        return None
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return f"{text.removesuffix('+00:00')}Z"
