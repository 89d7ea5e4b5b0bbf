"""Tables of a TOML file, read key by key: every fault is noted with its line, and reading goes on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cachekit.errors import InvalidRequest
from cachekit.tables.lines import Lines, Place
from cachekit.tables.values import nearest, shown

__all__ = ["NAME", "Notes", "Problem", "Table"]

#: What a plan or a rule may be called: it is typed in options and printed in tables.
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")

#: A file that is no plan at all is not to be told of line by line.
_MOST = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a file. A warning lets it be used.

    ``rule``: the id of a plan's rule that it is in, if any; ``key``: the dotted name of the key or table it is about.
    """

    line: int
    rule: str | None
    message: str
    hint: str = ""
    warning: bool = False
    key: str = ""


@dataclass(slots=True)
class Notes:
    """The problems found so far, each with the line of its place."""

    lines: Lines
    problems: list[Problem] = field(default_factory=list)
    _counts: list[int] = field(default_factory=lambda: [0, 0])

    def add(
        self, place: Place, rule: str | None, message: str, hint: str = "", *, warning: bool = False
    ) -> None:
        """Note a problem at ``place``, unless there are so many that one more helps nobody."""
        key = ".".join(itertools.takewhile(lambda part: isinstance(part, str), place))  # type: ignore[arg-type]
        self.at(self.lines.of(place), rule, message, hint, warning=warning, key=key)

    def at(
        self,
        line: int,
        rule: str | None,
        message: str,
        hint: str = "",
        *,
        warning: bool = False,
        key: str = "",
    ) -> None:
        """Note a problem in ``line``."""
        self._counts[warning] += 1  # apart: warnings must not hide a fault
        if self._counts[warning] <= _MOST:
            self.problems.append(Problem(line, rule, message, hint, warning, key))


class Table:
    """A table of the file. Each key that is asked for is known; ``finish`` notes those that nobody asked for."""

    def __init__(self, notes: Notes, values: dict[str, Any], place: Place, rule: str | None = None) -> None:
        self.place = place
        self.rule = rule
        self._notes = notes
        self._values = values
        self._known: dict[str, None] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        """Yield the keys as they stand in the file."""
        return iter(self._values)

    def take(self, key: str) -> Any:
        """Return the value of ``key``, None without one, and know the key from now on."""
        self._known[key] = None
        return self._values.get(key)

    def note(self, key: str | None, message: str, hint: str = "", *, warning: bool = False) -> None:
        """Note a problem with ``key``, or with the table itself."""
        place = self.place if key is None else (*self.place, key)
        self._notes.add(place, self.rule, message, hint, warning=warning)

    def value(self, key: str, read: Callable[[object], T]) -> T | None:
        """Return what ``read`` makes of ``key``; None without one, or if it will not do."""
        value = self.take(key)
        if value is None:
            return None
        try:
            return read(value)
        except InvalidRequest as error:
            self.note(key, f"{key}: {error.message}", error.hint or "")
            return None

    def flag(self, key: str) -> bool:
        """Return true or false (also without a value)."""
        value = self.take(key)
        if not isinstance(value, bool | None):
            self.note(key, f"{key}: {shown(value)} is not true or false")
        return value is True

    def text(self, key: str) -> str:
        """Return a text of one line; empty without one."""
        value = self.take(key)
        if value is None:
            return ""
        if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 200:
            self.note(key, f"{key}: {shown(value)} is not a line of text", "quote it, at most 200 characters")
            return ""
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """Return a list of texts, without those that are none or empty; None without one."""
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, list):
            self.note(key, f"{key}: {shown(value)} is not a list", f'write {key} = ["...", "..."]')
            return None
        for n, item in enumerate(value):
            if not isinstance(item, str) or not item:
                what = "an empty text" if item == "" else f"{shown(item)}, not a text"
                self._notes.add((*self.place, key, n), self.rule, f"{key}: it contains {what}")
        return tuple(item for item in value if isinstance(item, str) and item)

    def words(self, key: str, allowed: Iterable[str] | re.Pattern[str]) -> tuple[str, ...]:
        """Return a list of words, noting each that is not ``allowed``, or there twice."""
        found = self.texts(key) or ()
        seen: set[str] = set()
        for place, item in self._items(key):
            if isinstance(allowed, re.Pattern):
                if not allowed.fullmatch(item):
                    self._notes.add(place, self.rule, f"{key}: {shown(item)} is not a name")
            elif item not in allowed:
                self._notes.add(place, self.rule, f"{key}: there is no {shown(item)}", nearest(item, allowed))
            if item in seen:
                self._notes.add(place, self.rule, f"{key}: {shown(item)} is there twice")
            seen.add(item)
        return found

    def each(self, key: str, fault: Callable[[str], tuple[str, str] | None]) -> tuple[str, ...]:
        """Return a list of texts, noting for each what ``fault`` (message and hint) has against it."""
        found = self.texts(key) or ()
        for place, item in self._items(key):
            wrong = fault(item)
            if wrong is not None:
                self._notes.add(place, self.rule, f"{key}: {shown(item)}: {wrong[0]}", wrong[1])
        return found

    def _items(self, key: str) -> Iterator[tuple[Place, str]]:
        values = self._values.get(key)
        for n, item in enumerate(values if isinstance(values, list) else ()):
            if isinstance(item, str) and item:
                yield (*self.place, key, n), item

    def table(self, key: str) -> Table:
        """Return the table under ``key``, an empty one without it."""
        value = self.take(key)
        if not isinstance(value, dict | None):
            self.note(key, f"{key}: {shown(value)} is not a table", f"write {key} = {{ ... }}")
            value = None
        return Table(self._notes, value or {}, (*self.place, key), self.rule)

    def finish(self) -> None:
        """Note the keys that nobody asked for."""
        for key in self._values:
            if key not in self._known:
                self.note(key, f"unknown key {shown(key)}", nearest(key, self._known))
