"""Values to text and JSON. What people read never contains a control character or a workflow command."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from cachekit.errors import CachekitError
from cachekit.model import format_size as size

__all__ = ["count", "details", "error_lines", "plain", "printable", "size", "to_json"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_ORDER = re.compile(r"##(?=\w*\[)")
#: Half of a surrogate pair that stands for no byte of a file name either (PEP 383 uses U+DC80 to U+DCFF).
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
#: No report is nested so deep. JSON of others may be, since Python 3.12 by far more than Python's own calls.
_DEEPEST = 50


def _escape(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]


def _decodable(text: str) -> str:
    """Return ``text`` as UTF-8 can hold it: what stands for a byte that is not UTF-8 becomes ``\\xNN``."""
    text = _LONE_SURROGATE.sub(_escape, text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(value: object, deepest: int = _DEEPEST) -> str:
    """Return text that is safe to print: control characters escaped, undecodable bytes as ``\\xNN``.

    A leading ``::`` (a GitHub Actions workflow command) loses its meaning, and so do ``##[`` (its older form) and
    ``##vso[`` (Azure), which runners look for anywhere in a line.
    """
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(printable(item, deepest - 1) for item in value) if deepest else "..."
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else _decodable(str(value))
    text = _ORDER.sub(r"#\\#", _CONTROL.sub(_escape, text))
    if text.lstrip().startswith("::"):
        text = "\\" + text.lstrip()
    return text


def count(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 file``, ``2 files``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def plain(value: Any, deepest: int = _DEEPEST) -> Any:
    """Return ``value`` as JSON can hold it. A name that is not UTF-8 gets a companion field ``<name>_b64``."""
    if not deepest:
        return "..."
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        facts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return plain(facts, deepest)
    if isinstance(value, dict):
        result: dict[str, Any] = {}
        for key, item in value.items():
            name = _decodable(str(key))
            raw = _undecodable(item)
            if raw is not None:
                result[f"{name}_b64"] = base64.b64encode(raw).decode("ascii")
            result[name] = plain(item, deepest - 1)
        return result
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, deepest - 1) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return _decodable(value)
    return value


def _undecodable(value: object) -> bytes | None:
    """Return the bytes of a name that is not UTF-8, None for anything else."""
    try:
        raw = value if isinstance(value, bytes) else os.fsencode(value) if isinstance(value, str) else None
    except UnicodeEncodeError:  # text that stands for no file name
        return None
    if raw is None:
        return None
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw
    return None


def to_json(value: Any) -> str:
    """Return one line of JSON; ``##`` can only be in a text of it, and is escaped lest a runner find an order there."""
    return json.dumps(plain(value), ensure_ascii=True).replace("##", "#\\u0023")


def details(facts: Mapping[str, object], indent: str = "  ", *, but: str = "") -> list[str]:
    """Return an error's fields (see ``CachekitError.as_dict``) as lines, without those whose text is in ``but``."""
    lines = []
    path = facts.get("path")
    if path is not None and printable(path) not in but:
        lines.append(f"path: {printable(path)}")
    where = [
        f"{name} {printable(facts[name])}"
        for name in ("rung", "frame", "offset", "member")
        if facts.get(name) is not None
    ]
    if where:
        lines.append("at: " + ", ".join(where))
    lines += [
        f"{name}: {printable(facts[name])}"
        for name in ("expected", "found", "hint")
        if facts.get(name) is not None
    ]
    return [indent + line for line in lines]


def error_lines(error: CachekitError) -> list[str]:
    """Return an error as people read it: what, where, expected and found, and what to do."""
    head = printable(error.message)
    return [head, *details(error.as_dict(), but=head)]
