"""Whether enough is free. Pure: how full a filesystem is, is told."""

from __future__ import annotations

from dataclasses import dataclass

from cachekit.clean.model import Amount, Goal
from cachekit.errors import InvalidRequest
from cachekit.model import format_size, parse_size
from cachekit.system.space import Room

__all__ = ["Need", "in_words", "needs", "parse_amount", "parse_goal", "parse_percent", "words"]


def parse_percent(text: str) -> float:
    """Return the number of ``80%`` or ``80``. Raises InvalidRequest unless it is 0 to 100."""
    try:
        number = float(text.strip().removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:  # also NaN
        raise InvalidRequest(f"{text!r} is not a percentage", expected="0% to 100%", found=text)
    return number


def parse_amount(text: str) -> Amount:
    """Return what ``20G`` or ``15%`` means. Raises InvalidRequest."""
    return Amount(percent=parse_percent(text)) if text.strip().endswith("%") else Amount(parse_size(text))


def parse_goal(
    free: str | None = None, below: str | None = None, until: str | None = None, inodes: str | None = None
) -> Goal | None:
    """Return the goal that these texts describe, None if all are None. Raises InvalidRequest."""
    if until is not None and below is None:
        raise InvalidRequest("--until needs --below: the two watermarks belong together")
    if free is not None and below is not None:
        raise InvalidRequest("--free and --below are two ways to say the goal: give one")
    high = None if below is None else parse_percent(below)
    low = None if until is None else parse_percent(until)
    if high is not None and low is not None and low > high:
        raise InvalidRequest(
            "--until is above --below: cleaning would never begin", expected=below, found=until
        )
    goal = Goal(
        None if free is None else parse_amount(free),
        high,
        low,
        None if inodes is None else parse_amount(inodes),
    )
    return None if goal == Goal() else goal


@dataclass(frozen=True, slots=True)
class Need:
    """What one filesystem is to have free: bytes and inodes; 0 where nothing is asked."""

    available: int = 0
    inodes: int = 0

    def short(self, room: Room) -> int:
        """Return the missing bytes, 0 if none."""
        return max(0, self.available - room.available)

    def short_inodes(self, room: Room) -> int:
        """Return the missing inodes, 0 if none or if the filesystem does not count them."""
        return 0 if room.inodes_free is None else max(0, self.inodes - room.inodes_free)

    def met(self, room: Room) -> bool:
        """Return True if nothing is missing."""
        return not self.short(room) and not self.short_inodes(room)


def needs(goal: Goal, room: Room) -> Need:
    """Return what the goal asks of a filesystem that is as full as ``room`` says now.

    With watermarks: nothing while use is at most ``below``; above it, what ``until`` asks. Percentages of what ordinary
    users can use, as df counts.
    """
    usable = room.used + room.available
    available = goal.free.of(usable) if goal.free is not None else 0
    if goal.below is not None and room.percent > goal.below:
        low = goal.below if goal.until is None else goal.until
        available = max(available, usable - int(usable * low / 100))
    inodes = goal.inodes.of(room.inodes or 0) if goal.inodes is not None else 0
    return Need(available, inodes)


def words(goal: Goal) -> str:
    """Return the goal in words, for people."""
    parts = []
    if goal.free is not None:
        parts.append(f"{_amount(goal.free)} free")
    if goal.below is not None:
        low = f", if above it until {goal.until:g}%" if goal.until is not None else ""
        parts.append(f"at most {goal.below:g}% used{low}")
    if goal.inodes is not None:
        inodes = goal.inodes
        number = f"{inodes.percent:g}%" if inodes.percent is not None else str(inodes.number)
        parts.append(
            f"{number} of the inodes free" if inodes.percent is not None else f"{number} inodes free"
        )
    return " and ".join(parts) or "nothing"


def _amount(amount: Amount) -> str:
    return in_words(amount.number) if amount.percent is None else f"{amount.percent:g}%"


def in_words(number: int) -> str:
    """Return bytes as people say a goal: ``20 GiB``, not ``20.0 GiB``."""
    return format_size(number).replace(".0 ", " ")
