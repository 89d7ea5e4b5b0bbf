"""What a store holds after a snippet ran, and the damage that a full disk or a bad mover does to it."""

from __future__ import annotations

import os
from pathlib import Path

from cachekit.archive.extract import check_contents
from cachekit.archive.read import open_archive
from cachekit.trust import ANYONE


def entries(store: Path) -> list[Path]:
    """Return the entry files of all namespaces, by name."""
    return sorted(path for path in store.glob("v1/**/entries/*") if path.is_file())


def quarantined(store: Path) -> list[Path]:
    """Return the files that were set aside, in all namespaces."""
    return sorted(path for path in store.glob("v1/**/quarantine/*") if path.is_file())


def whole(store: Path) -> int:
    """Return how many entries there are; all of them must be whole, to the last file."""
    found = entries(store)
    for path in found:
        with open_archive(bytes(path), ANYONE) as archive:
            check_contents(archive, 0)
    return len(found)


def cut(path: Path) -> None:
    """Let the end of a file be missing, as after a full disk."""
    os.truncate(path, path.stat().st_size * 2 // 3)
