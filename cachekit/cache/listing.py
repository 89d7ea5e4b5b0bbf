"""What a store holds, and what an entry is: from seals and indexes alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cachekit.archive.check import check_archive
from cachekit.archive.format import KIND_NAMES, LINK_KINDS
from cachekit.archive.read import Archive, open_archive
from cachekit.cache.verify import entries_of, is_file_argument, is_path
from cachekit.errors import Missed
from cachekit.model import StoreAddress
from cachekit.store.directory import DirectoryStore
from cachekit.store.upkeep import last_uses
from cachekit.system.clock import image_platform, this_platform
from cachekit.trust import ANYONE, Trust

__all__ = ["EntryLine", "Member", "find_archive", "list_entries", "manifest", "members"]


@dataclass(frozen=True, slots=True)
class EntryLine:
    """One entry of a listing. ``problem`` is why its seal is refused; then most other fields are unknown.

    ``used_ns``: its mark of last use, None if it has none.
    """

    entry: str
    key: str | None
    platform: str | None
    archive_bytes: int
    content_bytes: int
    files: int
    created_ns: int
    targets: list[str]
    problem: str | None = None
    used_ns: int | None = None
    pinned: bool = False
    #: What its signature is worth (``trust.Standing``).
    signature: str | None = None
    #: The same for keys that one stored file serves.
    identity: str | None = None
    #: Names (or the ids of nameless ones) of the Docker images that it holds; None for an entry of files.
    images: list[str] | None = None


def list_entries(store: StoreAddress | str, prefix: str = "") -> list[EntryLine]:
    """Return the entries whose key begins with ``prefix``, newest first. Raises StoreUnavailable."""
    lines = []
    place = DirectoryStore(store)
    used, pins = last_uses(place), place.pins()
    for candidate in place.candidates(prefix, None):
        seal = candidate.seal
        marks = used.get(candidate.name), candidate.name in pins
        if seal is None:
            lines.append(
                EntryLine(
                    candidate.name, None, None, candidate.size, 0, 0, 0, [], str(candidate.error), *marks
                )
            )
            continue
        lines.append(
            EntryLine(
                candidate.name,
                seal.key,
                str(seal.platform),
                candidate.size,
                seal.content_bytes,
                seal.counts.get("files", 0) + seal.counts.get("hardlinks", 0),
                seal.created_ns,
                [str(target) for target in seal.targets],
                None,
                *marks,
                signature=candidate.signed.standing if candidate.signed else None,
                identity=seal.identity,
                images=None
                if seal.images is None
                else [name for i in seal.images for name in i.names or i.ids[:1]],
            )
        )
    return lines


def find_archive(name: str, store: StoreAddress | str) -> bytes:
    """Return the path of the archive that a KEY or FILE argument means. Raises Missed, InvalidRequest."""
    if not is_path(name):
        found = list(entries_of(DirectoryStore(store), name))
        # An entry of this platform first (of files, then of images), then any whole one, then one with a damaged seal.
        here = [this_platform(), image_platform()]
        found.sort(
            key=lambda c: len(here) + 1 if c.seal is None else [*here, c.seal.platform].index(c.seal.platform)
        )
        if found:
            return found[0].path
    if is_file_argument(name):
        return os.fsencode(name)
    raise Missed(
        f"the store has no entry with the key {name!r}, and there is no such file",
        hint="cachekit ls shows the keys of the store",
    )


def manifest(path: bytes, trust: Trust = ANYONE) -> dict[str, Any]:
    """Return the seal's JSON object, with the entry's identity, size and signature. Raises Refused, Unreadable, Missed.

    To look at an entry is not to use it: what is not trusted is shown as such, only what is forged is refused.
    """
    with _opened(path, trust) as archive:
        return {
            "identity": archive.seal.identity,
            "archive_bytes": archive.size,
            "signature": archive.signed,
            **archive.seal.as_json(),
        }


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an entry. Size in bytes (a sparse file's length), time in ns since 1970."""

    path: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    link: bytes | None
    digest: str | None


def members(path: bytes, trust: Trust = ANYONE) -> Iterator[Member]:
    """Yield an entry's members, the index checked before; as ``manifest``. Raises Refused, Unreadable, Missed."""
    with _opened(path, trust) as archive:
        index = archive.index
        check_archive(archive)
        links = iter(index.links)
        ordinal = 0
        for row, kind in enumerate(index.kinds):
            digest = None
            if KIND_NAMES[kind] == "file":
                digest = bytes(index.contents[ordinal : ordinal + 16]).hex()
                ordinal += 16
            yield Member(
                index.paths[row],
                KIND_NAMES[kind],
                index.modes[row],
                index.uids[row],
                index.gids[row],
                index.mtimes[row],
                index.length(row),
                next(links) if kind in LINK_KINDS else None,
                digest,
            )


@contextlib.contextmanager
def _opened(path: bytes, trust: Trust) -> Iterator[Archive]:
    try:
        with open_archive(path, trust.for_looking().within(None), follow=True) as archive:
            yield archive
    except FileNotFoundError:
        raise Missed("there is no such file", path=path) from None
