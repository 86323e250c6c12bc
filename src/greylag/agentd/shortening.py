"""Shortening of what is too large to keep: texts in a line of JSON as it comes, and in its values.

A tool may answer with anything: a picture of 36 MB is one line of JSON, and one text in it. Such a
text is cut where it enters, and ends in words that tell how long it was (``true_size``). Everything
around it stays as it was.
"""

import re
from typing import Any

KEPT = 256 * 1024
"""How many bytes of a text that is too long are kept."""

_MARK = re.compile(r"\u2026 \(shortened: (\d+) bytes in all\)\Z")
# None of these goes back over what it has passed, however a line is made.
_INSIDE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_TEXT = re.compile(rb'"%b"' % _INSIDE.pattern, re.DOTALL)
_WHOLE = re.compile(rb'(?:[^"]*+%b)*+[^"]*+' % _TEXT.pattern, re.DOTALL)
"""Texts that have their end, and what is around them."""
_VALUES = (b'"', b",", b"[", b"{")
_HALF_ESCAPE = re.compile(rb"(?<!\\)((?:\\\\)*)\\(?:u[0-9a-fA-F]{0,3})?\Z")
_HALF_CHARACTER = re.compile(rb"[\xc0-\xff][\x80-\xbf]{0,2}\Z")
_LONGEST_UNIT = 64


def mark(size: int) -> str:
    """Return how a text ends that was ``size`` bytes long."""
    return f"\u2026 (shortened: {size} bytes in all)"


def true_size(text: str) -> int | None:
    """Return how long a text was that was shortened, ``None`` for one that is whole."""
    found = _MARK.search(text[-100:])
    return None if found is None else int(found[1])


class LineShortener:
    """Cuts the texts of one line of JSON while it comes, in memory that they do not grow.

    Attributes:
        line: what the line is so far.
        values: how many texts, lists, objects and commas it has had so far.
    """

    def __init__(self) -> None:
        self.line = bytearray()
        self.values = 0
        self._in_text = False
        self._escaped = False
        self._size = 0
        self._began = 0

    def feed(self, data: bytes) -> None:
        """Take more of the line, which may be cut anywhere."""
        # So no text that begins and ends in a piece is too long, and they are taken all at once.
        for at in range(0, len(data), KEPT):
            self._take(data[at : at + KEPT])

    def _take(self, piece: bytes) -> None:
        start = self._go_on(piece, 0) if self._in_text else 0
        end = _end(_WHOLE, piece, start)
        whole = piece[start:end]
        self.line += whole
        self.values += sum(map(_TEXT.sub(b'"', whole).count, _VALUES))
        if end < len(piece):
            self.line += b'"'
            self.values += 1
            self._in_text, self._size, self._began = True, 0, len(self.line)
            self._go_on(piece, end + 1)

    def _go_on(self, piece: bytes, start: int) -> int:
        """Take what is left of a text; return where in the piece that which follows it begins."""
        end = _end(_INSIDE, piece, start + self._escaped)
        self._escaped = piece.startswith(b"\\", end)
        end += self._escaped
        room = KEPT - (len(self.line) - self._began)
        self.line += piece[start : min(end, start + max(room, 0))]
        self._size += end - start
        if end == len(piece):
            return end
        if self._size > len(self.line) - self._began:
            self._repair()
            self.line += mark(self._size).encode()
        self.line += b'"'
        self._in_text = False
        return end + 1

    def _repair(self) -> None:
        """Take the half of an escape or of a character away that the cut has left."""
        tail = bytes(self.line[max(self._began, len(self.line) - _LONGEST_UNIT) :])
        whole = _HALF_ESCAPE.sub(rb"\1", tail)
        whole = _HALF_CHARACTER.sub(b"", whole)
        del self.line[len(self.line) - len(tail) :]
        self.line += whole


def _end(pattern: re.Pattern[bytes], data: bytes, start: int) -> int:
    """Return where that ends which begins there, and may be nothing."""
    found = pattern.match(data, start)
    return start if found is None else found.end()


def shortened(value: Any, most_text: int, most_items: int, depth: int = 16) -> Any:
    """Return a JSON value with its texts, lists and objects cut to so many bytes and items."""
    if isinstance(value, str):
        return _cut(value, most_text)
    if not isinstance(value, list | dict):
        return value
    if depth == 0:
        return mark(0)
    if isinstance(value, list):
        return [shortened(one, most_text, most_items, depth - 1) for one in value[:most_items]]
    return {
        _cut(str(name), most_text): shortened(one, most_text, most_items, depth - 1)
        for name, one in list(value.items())[:most_items]
    }


def _cut(text: str, most: int) -> str:
    if len(text) * 4 <= most or len(raw := text.encode("utf-8", "replace")) <= most:
        return text
    size = true_size(text) or len(raw)
    return raw[:most].decode("utf-8", "ignore") + mark(size)
