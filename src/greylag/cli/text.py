"""Text from elsewhere, made harmless before it meets a terminal.

An agent's answer, a log or a project's name may hold escape sequences that move the cursor, change
the title, or write to the clipboard, and direction marks that show a command other than the one
that runs. Each such character is replaced by a visible one; nothing else changes.
"""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTROL_PICTURES = 0x2400


def _table() -> dict[int, str | None]:
    table: dict[int, str | None] = {code: chr(_CONTROL_PICTURES + code) for code in range(0x20)}
    table |= dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT)
    table |= dict.fromkeys(range(0xD800, 0xE000), _REPLACEMENT)
    directions = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C, 0x200E, 0x200F]
    table |= dict.fromkeys([*directions, 0x2028, 0x2029], _REPLACEMENT)
    table[0x7F] = "\N{SYMBOL FOR DELETE}"
    # A lone carriage return would let later text overwrite what was shown.
    table[ord("\r")] = None
    del table[ord("\n")], table[ord("\t")]
    return table


_VISIBLE = _table()
_ONE_LINE = {**_VISIBLE, ord("\n"): " ", ord("\t"): " "}


def visible(text: str) -> str:
    """Return ``text`` with nothing in it that a terminal would obey, but newline and tab."""
    return text.translate(_VISIBLE)


def one_line(text: str) -> str:
    """Return ``text`` as ``visible`` does, with spaces for newlines and tabs."""
    return text.translate(_ONE_LINE)


def shortened(text: str, length: int) -> str:
    """Return the first line of ``text`` made harmless, cut to ``length``, saying what is left."""
    lines = text.strip().splitlines() or [""]
    first = one_line(lines[0])
    if len(first) > length:
        first = first[: length - 3] + "..."
    more = len(lines) - 1
    return f"{first} (+{more} more line{'s' if more > 1 else ''})" if more else first


def moment(value: str | None) -> str:
    """Return an RFC 3339 time in UTC for people, to the second; `-` for none."""
    return "-" if value is None else one_line(value)[:19].replace("T", " ") + "Z"
