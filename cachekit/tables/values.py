"""The values of TOML files and options: durations, sizes, percentages, counts.

The ``read_*`` functions take what tomllib or an option gave, and raise InvalidRequest, with a hint, if it will not do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from cachekit.errors import InvalidRequest
from cachekit.model import parse_size

__all__ = [
    "nearest",
    "read_duration",
    "read_percent",
    "read_seconds",
    "read_size",
    "read_whole",
    "shown",
]

_LISTED = 16
_MAX_BYTES = 1 << 60
_MAX_SECONDS = 100 * 365 * 86400.0
_MAX_WHOLE = 10**12
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([smhdw])")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%")


def shown(value: object) -> str:
    """Return a value as a message quotes it: short."""
    try:
        text = f"'{value}'" if isinstance(value, str) else str(value)
    except ValueError:  # 0xFFF...: more digits than Python prints
        return "a number of thousands of digits"
    if isinstance(value, bool):
        text = text.lower()
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(word: object, words: Iterable[str]) -> str:
    """Return ``did you mean X?``, or which words there are if none is near."""
    import difflib  # only where something is wrong

    words = list(words)
    near = difflib.get_close_matches(str(word)[:100].lower().replace("_", "-"), words, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return "one of: " + ", ".join(words[:_LISTED]) + (", ..." if len(words) > _LISTED else "")


def read_duration(value: object) -> float:
    """Return the seconds that ``90s``, ``30m``, ``24h``, ``7d`` or ``2w`` mean."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidRequest(f"{shown(value)} is not a duration", hint='write "90s", "30m", "24h" or "7d"')
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > _MAX_SECONDS:
        raise InvalidRequest(f"{shown(value)} is longer than 100 years", hint="write a shorter time")
    return seconds


def read_size(value: object) -> int:
    """Return the bytes that ``10M`` or ``2.5G`` mean. A unit is required: ``free = "20"`` would mean 20 bytes."""
    hint = 'write "500M" or "20G"'
    try:
        size = parse_size(value) if isinstance(value, str) else None
    except InvalidRequest:
        size = None
    if size is None:
        raise InvalidRequest(f"{shown(value)} is not a size", hint=hint)
    if str(value).strip()[-1].isdigit():
        raise InvalidRequest(f"the size {shown(value)} has no unit", hint=hint)
    if size > _MAX_BYTES:
        raise InvalidRequest(f"{shown(value)} is more than a disk can hold", hint=hint)
    return size


def read_percent(value: object) -> float:
    """Return the number of ``15%``: above 0 and below 100, for 0% is always met and 100% never."""
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidRequest(f"{shown(value)} is not a percentage", hint='write "80%"')
    percent = float(match[1])
    if not 0 < percent < 100:
        raise InvalidRequest(
            f"{shown(value)} is not between 0% and 100%", hint="0% is always met, 100% never"
        )
    return percent


def read_whole(value: object) -> int:
    """Return a whole number from 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{shown(value)} is not a whole number", hint="write it without quotes: 3")
    if not 0 <= value <= _MAX_WHOLE:
        raise InvalidRequest(f"{shown(value)} is out of range", hint=f"0 to {_MAX_WHOLE}")
    return value


def read_seconds(value: object) -> float:
    """Return a number of seconds from 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequest(
            f"{shown(value)} is not a number of seconds", hint="write it without quotes: 1.5"
        )
    # Compared before it is converted: an int can be too large for a float. Nan compares false.
    if not 0 <= value <= _MAX_SECONDS or not math.isfinite(value):
        raise InvalidRequest(f"{shown(value)} is out of range", hint="0 seconds to 100 years")
    return float(value)
