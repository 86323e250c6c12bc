"""Reading values that came from outside: JSON, and dataclasses that hold what they declare."""

import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

_LARGEST = 2**63
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_ESCAPED = re.compile(
    r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
"""What begins with a backslash and may be, or be taken for, half a character: the group."""
_SIGNS = (b",", b"[", b"{")
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A text of JSON; one without an end goes to the line's, so that none is looked at twice."""


def parse_json(text: bytes | bytearray | str) -> Any:
    """Return what a JSON text says; bytes are UTF-8 (RFC 8259, section 8.1).

    Raises:
        ValueError: it is none, has a number that is not finite, or is nested deeper than can be
            read.
    """
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _finite(number: str) -> float:
    if math.isinf(found := float(number)):
        raise ValueError(f"{number:.80} is larger than a number can be")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number)


def is_encodable(text: str) -> bool:
    """Tell whether UTF-8 can carry a text: JSON can spell half a character."""
    return encodable(text) == text


def encodable(text: str) -> str:
    """Return a text with ``?`` for what UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode()


def parse_encodable(line: bytes) -> Any:
    """Return what a JSON text says, with ``encodable`` texts alone; raises as ``parse_json``."""
    text = line.decode()
    if _HALF.search(text) is not None:  # hardly ever
        text = _ESCAPED.sub(lambda found: "?" if found[1] else found[0], text)
    return parse_json(text)


def holds_more(line: bytes, most: int) -> bool:
    """Tell whether a JSON text has more than ``most`` texts, lists, objects and commas: reading
    them would take seconds, and a hundred times as much memory as the text.
    """
    if sum(map(line.count, _SIGNS)) <= most:  # those in texts as well: nearly always
        return False
    seen = at = 0
    for text in _TEXT.finditer(line):
        seen += 1 + sum(line.count(sign, at, text.start()) for sign in _SIGNS)
        if seen > most:
            return True
        at = text.end()
    return seen + sum(line.count(sign, at) for sign in _SIGNS) > most


def dig(value: Any, *names: str) -> dict[str, Any]:
    """Return the object that lies at these names, one within another; an empty one if none does."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def check_types(value: Any, path: str = "") -> None:
    """Look into a dataclass, and into those that it holds.

    Args:
        value: the dataclass.
        path: what precedes the names of its fields in an error.

    Raises:
        TypeError: a field is not of the type that it declares; the error names it.
    """
    for name, form in _forms(value.__class__):
        _check(getattr(value, name), form, f"{path}{name}")


def shaped(kind: type[T], members: Any) -> T:
    """Return a dataclass made of a JSON object, with those that it holds itself (not in lists);
    members that it does not know are left out.

    Raises:
        TypeError: it is no object, or a member is missing or not of the type that is declared.
    """
    if not isinstance(members, Mapping):
        raise TypeError(f"{members!r:.80} is no object")
    hints = _hints(cast("Hashable", kind))
    made = kind(
        **{name: _made(hints[name], members[name]) for name in hints.keys() & members.keys()}
    )
    check_types(made)
    return made


def _made(hint: Any, value: Any) -> Any:
    kind = _choices(hint)[0]
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, Mapping):
        return shaped(kind, value)
    return value


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)


class _Form(NamedTuple):
    """What a hint allows, found once: records are many."""

    kind: Any
    optional: bool
    is_dataclass: bool
    of_items: Any


@cache
def _forms(kind: Hashable) -> Sequence[tuple[str, _Form]]:
    return [(name, _form(hint)) for name, hint in _hints(kind).items()]


def _form(hint: Any) -> _Form:
    choices = _choices(hint)
    kind = choices[0]
    plain = get_origin(kind) or kind
    of_items = _form(get_args(kind)[0]) if plain is Sequence else None
    return _Form(plain, type(None) in choices, is_dataclass(kind), of_items)


def _check(value: Any, form: _Form, name: str) -> None:
    if value is None and form.optional:
        return
    if not _is_a(value, form.kind):
        wanted = getattr(form.kind, "__name__", str(form.kind))
        raise TypeError(f"{name} is {value!r:.80}, not {wanted}")
    if form.is_dataclass:
        check_types(value, f"{name}.")
    elif form.of_items is not None:
        for place, one in enumerate(value):
            _check(one, form.of_items, f"{name}[{place}]")


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return what a hint that may be None allows, else the hint alone."""
    return get_args(hint) if type(None) in get_args(hint) else (hint,)


def _is_a(value: Any, kind: Any) -> bool:
    if kind is int:
        # JSON's true is an int to Python; what no store can keep is no number of ours.
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and -_LARGEST <= value < _LARGEST
    if kind is Sequence or kind is Mapping:
        return isinstance(value, kind) and not isinstance(value, str)
    return kind is Any or isinstance(value, kind)
