"""Where in a TOML text a value stands: tomllib tells lines for syntax errors only."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from typing import TypeAlias

__all__ = ["Lines", "Place"]

#: Keys and positions in arrays, from the top: ("rule", 2, "when", "older").
Place: TypeAlias = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*+")
_SPACE = re.compile(r"[ \t]*+")
_PART = re.compile(r"""[A-Za-z0-9_-]++|"(?:\\.|[^"\\\n])*+"|'[^'\n]*+'""")
_BARE = re.compile(r"[^,\]}\n#]++")
_TEXT = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|"(?:\\.|[^"\\\n])*+"'''  # up to two quotes may stand before the last three
    r"""|'{3}.*?'{3,5}|'[^'\n]*+'""",
    re.DOTALL,
)
#: Nothing deeper is asked for, and a key of thousands of parts is not to cost their square.
_DEEPEST = 6


class Lines:
    """The lines of everything in ``text``, which tomllib must have accepted."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._found: dict[Place, int] = {}
        self._tables: dict[Place, int] = {}  # place of an array of tables -> how many there are so far
        table: Place = ()
        while self._skip(_BLANK) < len(text):
            if text[self._at] == "[":
                table = self._header()
            elif not self._pair(table):
                break  # not TOML after all: what was found until here stands

    def of(self, place: Place) -> int:
        """Return the line, from 1, of ``place``; where it is not in the text, that of what it would be in."""
        while place and place not in self._found:
            place = place[:-1]
        return self._found.get(place, 1)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
        return self._at

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _note(self, place: Place, at: int) -> None:
        if len(place) <= _DEEPEST:
            self._found.setdefault(place, bisect_left(self._ends, at) + 1)

    def _header(self) -> Place:
        at = self._at
        several = self._text.startswith("[[", at)
        self._at += 2 if several else 1
        place: Place = ()
        for part in self._parts():
            if place in self._tables:
                place += (self._tables[place] - 1,)
            place += (part,)
            self._note(place, at)
        if several:
            self._tables[place] = self._tables.get(place, 0) + 1
        if place in self._tables:
            place += (self._tables[place] - 1,)
        self._note(place, at)
        self._skip(_SPACE)
        self._at += 2 if several else 1
        return place

    def _parts(self) -> list[str]:
        """Read a dotted key."""
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            match = _PART.match(self._text, self._at)
            if match is None:
                return parts
            self._at = match.end()
            if len(parts) <= _DEEPEST:
                parts.append(_unquoted(match[0]))
            self._skip(_SPACE)
            if self._next() != ".":
                return parts
            self._at += 1

    def _pair(self, table: Place) -> bool:
        """Read ``key = value``; False if there is none."""
        at = self._at
        parts = self._parts()
        if not parts or self._next() != "=":
            return False
        for n in range(len(parts)):
            self._note((*table, *parts[: n + 1]), at)
        self._at += 1
        self._skip(_SPACE)
        return self._value((*table, *parts))

    def _value(self, place: Place) -> bool:
        opening = self._next()
        if opening not in {"[", "{"}:
            before = self._at
            return self._skip(_TEXT if opening in {'"', "'"} else _BARE) > before
        closing = "]" if opening == "[" else "}"
        self._at += 1
        n = 0
        while True:
            self._skip(_BLANK)
            found = self._next()
            if found in {closing, ","}:
                self._at += 1
                n += 1
                if found == closing:
                    return True
            elif closing == "}":
                if not self._pair(place):
                    return False
            else:
                self._note((*place, n), self._at)
                if not self._value((*place, n)):
                    return False


def _unquoted(key: str) -> str:
    if key[0] not in "\"'":
        return key
    value = tomllib.loads(f"k = {key}")["k"]
    assert isinstance(value, str)
    return value
