"""Values to text and JSON. What people read never contains a control character or a workflow command."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
from typing import Any

from cachekit.errors import CachekitError

__all__ = ["error_lines", "plain", "printable", "size", "to_json"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(value: object) -> str:
    """Return text that is safe to print: control characters escaped, undecodable bytes as ``\\xNN``.

    A leading ``::`` (a GitHub Actions workflow command) or ``##[`` (the same in other systems) loses its meaning.
    """
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
    if text.lstrip().startswith(("::", "##[")):
        text = "\\" + text.lstrip()
    return text


def size(value: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def plain(value: Any) -> Any:
    """Return ``value`` as JSON can hold it. A name that is not UTF-8 gets a companion field ``<name>_b64``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, dict):
        result: dict[str, Any] = {}
        for key, item in value.items():
            raw = _undecodable(item)
            if raw is not None:
                result[f"{key}_b64"] = base64.b64encode(raw).decode("ascii")
            result[str(key)] = plain(item)
        return result
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value


def _undecodable(value: object) -> bytes | None:
    raw = value if isinstance(value, bytes) else os.fsencode(value) if isinstance(value, str) else None
    if raw is None:
        return None
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw
    return None


def to_json(value: Any) -> str:
    """Return one line of JSON."""
    return json.dumps(plain(value), ensure_ascii=True)


def error_lines(error: CachekitError) -> list[str]:
    """Return an error as people read it: what, where, expected and found, and what to do."""
    head = printable(error.message)
    if error.path is not None and printable(error.path) not in head:
        head += f": {printable(error.path)}"
    lines = [head]
    fields = error.fields
    where = [
        f"{name} {printable(fields[name])}"
        for name in ("rung", "frame", "offset", "member")
        if name in fields
    ]
    if where:
        lines.append("  at " + ", ".join(where))
    if error.expected is not None or error.found is not None:
        parts = []
        if error.expected is not None:
            parts.append(f"expected {printable(error.expected)}")
        if error.found is not None:
            parts.append(f"found {printable(error.found)}")
        lines.append("  " + ", ".join(parts))
    if error.hint:
        lines.append(f"  hint: {printable(error.hint)}")
    return lines
