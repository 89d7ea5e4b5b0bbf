"""Which configuration file holds for a directory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from cachekit.errors import ConfigInvalid

__all__ = ["FILE", "PROJECT_FILE", "find"]

FILE = "cachekit.toml"
PROJECT_FILE = "pyproject.toml"
#: What tells that a pyproject.toml may have something to say, before it is parsed.
_OURS = re.compile(rb"""tool[ \t"']*\.[ \t"']*cachekit|^[ \t]*["']?cachekit["']?[ \t]*[.=]""", re.MULTILINE)


def find(directory: str, home: str) -> str | None:
    """Return the file that holds in ``directory``: the nearest, upwards to the git root or ``home``; None without one.

    Outside of both, only ``directory`` itself counts: above it anybody may have put a file (/tmp). Of two in one
    directory cachekit.toml wins. Raises InvalidRequest if a pyproject.toml on the way cannot be read.
    """
    for place in _upwards(directory, home):
        own = os.path.join(place, FILE)
        if os.path.lexists(own):
            return own
        project = os.path.join(place, PROJECT_FILE)
        if os.path.lexists(project) and _has_table(project):
            return project
    return None


def _upwards(directory: str, home: str) -> Iterator[str]:
    place, places = directory, [directory]
    while not (os.path.lexists(os.path.join(place, ".git")) or place == home):
        above = os.path.dirname(place)
        if above == place:
            return iter(places[:1])
        place = above
        places.append(place)
    return iter(places)


def _has_table(path: str) -> bool:
    from cachekit.tables.document import decoded, read_file, values_of
    from cachekit.tables.table import Problem

    raw = read_file(path, "configuration", ConfigInvalid)
    if not _OURS.search(raw):
        return False
    text = decoded(raw)
    found = text if isinstance(text, Problem) else values_of(text)
    if isinstance(found, Problem):
        return True  # loading it tells the fault
    tool = found[0].get("tool")
    return isinstance(tool, dict) and "cachekit" in tool
