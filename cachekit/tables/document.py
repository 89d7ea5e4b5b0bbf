"""A TOML file as text and as values: read carefully, for it may be hostile."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from typing import Any

from cachekit.errors import InvalidRequest
from cachekit.tables.lines import Lines
from cachekit.tables.table import Notes, Problem

__all__ = ["MAX_BYTES", "decoded", "read_file", "values_of"]

MAX_BYTES = 1 << 20

#: A key, or a part of one. Whatever could hide one (texts, comments) is matched first.
_PART = r"""(?:[\w-]++|"(?:\\.|[^"\\\n])*+"|'[^'\n]*+')"""
_HIDES = r'''"""(?:\\.|[^\\])*?"{3,5}|'{3}.*?'{3,5}|#[^\n]*+'''
#: tomllib takes time and memory by the square of a key's parts.
_LONG_KEY = re.compile(rf"{_HIDES}|(?P<long>(?:{_PART}[ \t]*+\.[ \t]*+){{16}})|{_PART}", re.DOTALL)
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def read_file(path: str, what: str, invalid: type[InvalidRequest]) -> bytes:
    """Return the content of a regular file of at most MAX_BYTES. ``what`` it should be is for messages.

    Raises FileNotFoundError, NotADirectoryError; ``invalid`` for what cannot be such a file, InvalidRequest for
    one that cannot be read.
    """
    try:
        # Opening a FIFO would wait for a writer.
        fd = os.open(os.fsencode(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequest(f"the {what} file cannot be opened: {reason}", path=path) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise invalid(f"a {what} is a regular file", path=path, hint="write it into a file first")
        parts, left = [], MAX_BYTES + 1
        while left and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise InvalidRequest(f"the {what} file cannot be read: {error.strerror}", path=path) from None
    finally:
        os.close(fd)
    if not left:
        raise invalid(
            f"the file is larger than a {what} can be", path=path, expected=f"at most {MAX_BYTES} bytes"
        )
    return b"".join(parts)


def decoded(raw: bytes) -> str | Problem:
    """Return the text of a file, or what is wrong with it."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Problem(
            raw.count(b"\n", 0, error.start) + 1, None, "it is not UTF-8", "save the file as UTF-8"
        )


def values_of(text: str) -> tuple[dict[str, Any], Notes] | Problem:
    """Return a TOML text's values, with notes that know the line of each; or why it is not TOML."""
    long = next((match for match in _LONG_KEY.finditer(text) if match["long"]), None)
    if long is not None:
        return Problem(text.count("\n", 0, long.start()) + 1, None, "a key of more than 16 parts")
    try:
        return tomllib.loads(text), Notes(Lines(text.replace("\r\n", "\n")))
    except RecursionError:
        return Problem(1, None, "its values are nested too deeply")
    except ValueError as error:  # also a number of more digits than Python converts
        place = _PLACE.search(str(error))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1 if place else 1
        return Problem(line, None, "not TOML: " + _PLACE.sub("", str(error)))
