"""A store filled quickly: whole, verifiable entries of chosen size, age and platform, published as a save does."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import zstandard

from cachekit.archive.extract import check_contents
from cachekit.archive.format import BLOCK, FILE
from cachekit.archive.read import Archive, open_archive
from cachekit.model import EntryIdentity, Key, Namespace, Platform, StoreAddress
from cachekit.store.directory import DirectoryStore
from cachekit.system.clock import now_ns, this_platform
from cachekit.trust import ANYONE
from tests.support.archives import Member, directory, entry_of

DAY_NS = 86_400 * 10**9


def sealed(
    key: str, content: bytes, *, platform: Platform | None = None, family: str = "", created_ns: int = 0
) -> bytes:
    """Return the bytes of an entry whose only target `tree` holds one file `data`."""
    entry = entry_of([directory(b"tree"), Member(b"tree/data", FILE, content)], key=key)
    entry.facts = replace(
        entry.facts,
        platform=platform or this_platform(),
        family=family or Key(key).family,
        created_ns=created_ns or now_ns(),
    )
    return entry.seal()


@dataclass(frozen=True)
class Shelf:
    """One namespace of a store."""

    root: Path
    namespace: str = "default"

    @property
    def store_address(self) -> StoreAddress:
        """Where it is."""
        return StoreAddress(str(self.root), Namespace(self.namespace))

    @property
    def store(self) -> DirectoryStore:
        """The store, opened anew."""
        return DirectoryStore(self.store_address)

    def put(
        self,
        key: str,
        content: bytes = b"content",
        *,
        used_days: float | None = 0.0,
        made_days: float | None = None,
        platform: Platform | None = None,
        family: str = "",
        force: bool = False,
    ) -> Literal["published", "exists"]:
        """Save an entry that was made, and used, so many days ago (`used_days` None: it has no mark of use)."""
        made = now_ns() - int((made_days if made_days is not None else used_days or 0.0) * DAY_NS)
        data = sealed(key, content, platform=platform, family=family, created_ns=made)
        store = self.store
        store.prepare()
        identity = EntryIdentity(Key(key), platform or this_platform())
        with store.saver(identity), store.temporary(identity) as temp:
            temp.write(data, 0)
            temp.finish(len(data))
            outcome = store.publish(temp, identity, replace=force)
        if outcome == "published" and used_days is not None:
            store.mark_used(identity.file_name)
            self.age(key, used_days, platform)
        return outcome

    def age(self, key: str, days: float, platform: Platform | None = None) -> None:
        """Let the entry be used last so many days ago."""
        moment = now_ns() - int(days * DAY_NS)
        os.utime(self.folder("used") / self.name(key, platform), ns=(moment, moment))

    def name(self, key: str, platform: Platform | None = None) -> str:
        """The file name of a key's entry."""
        return EntryIdentity(Key(key), platform or this_platform()).file_name

    def folder(self, name: str) -> Path:
        """One of the namespace's directories."""
        return Path(self.store.directory(name))

    def path(self, key: str, platform: Platform | None = None) -> Path:
        """Where a key's entry lies."""
        return self.folder("entries") / self.name(key, platform)

    def keys(self) -> list[str]:
        """The keys of all entries that can be served, sorted."""
        return sorted(c.seal.key for c in self.store.entries() if c.seal is not None)

    def content(self, key: str, platform: Platform | None = None) -> bytes:
        """What the file `data` of an entry holds, everything before checked."""
        with open_archive(bytes(self.path(key, platform)), ANYONE) as archive:
            check_contents(archive, 1)
            return content_of(archive)

    def names(self, folder: str) -> list[str]:
        """What is in one of the namespace's directories."""
        there = self.folder(folder)
        return sorted(os.listdir(there)) if there.is_dir() else []


def content_of(archive: Archive) -> bytes:
    """Return the content of the file `data` of an opened entry."""
    raw = zstandard.ZstdDecompressor().decompress(archive.frame(0))
    begin = archive.index.offsets[1] + BLOCK
    return raw[begin : begin + archive.index.sizes[1]]


def damage(path: Path) -> None:
    """Break an entry's seal, so that its damage shows without reading the whole."""
    with path.open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        byte = file.read(1)
        file.seek(-40, os.SEEK_END)
        file.write(bytes([byte[0] ^ 0xFF]))
