"""Entries as an attacker or a failing disk would make them.

`Entry` is an entry taken apart: the decompressed frames, the index, the seal. `Entry.read` takes one from a real
file, `entry_of` makes one from members that are told. Whatever is then altered, `Entry.seal` closes it again with
right digests, sizes and counts, so that only the intended rule is broken::

    entry = entry_of([Member(b"a", DIRECTORY), Member(b"a/../../x", content=b"evil")], targets=[b"a"])
    path = file_entry(store, entry.seal(), KEY)

Unlike the rest of the support this module knows cachekit.archive, whose format it speaks. What cuts and flips an
entry without closing it again is in surgery.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard
from xxhash import xxh3_128_digest

from cachekit.archive import header, seal
from cachekit.archive.format import (
    BLOCK,
    DIRECTORY,
    FILE,
    FRAME_SIZE,
    HARDLINK,
    INDEX_MAGIC,
    SEAL_MAGIC,
    SEAL_TRAILER,
    SEAL_TRAILER_MAGIC,
    SKIPPABLE_HEADER,
    SYMLINK,
    TAR_END,
)
from cachekit.archive.index import Index
from cachekit.archive.read import open_archive
from cachekit.archive.seal import Seal
from cachekit.cache.restore import RestoreRequest, restore
from cachekit.cache.save import SaveRequest, save
from cachekit.model import EntryIdentity, Key, RestoreReport, StoreAddress, Target
from cachekit.store.directory import DirectoryStore
from cachekit.system.clock import this_platform
from cachekit.trust import ANYONE

KEY = "attack-1"


@dataclass(frozen=True)
class Member:
    """One member, as the index has it and as it lies in the tar; what is None is made to fit."""

    path: bytes
    kind: int = FILE
    content: bytes = b""
    mode: int = 0o644
    mtime_ns: int = 1_600_000_000_000_000_000
    link: bytes = b""
    uid: int = 0
    gid: int = 0
    size: int | None = None
    """The size that the index tells."""
    digest: bytes | None = None
    header: bytes | None = None
    padding: bytes | None = None
    segments: tuple[tuple[int, int], ...] | None = None
    """The data regions of a sparse file of `length` bytes, whose data is `content`."""
    length: int = 0


def directory(path: bytes) -> Member:
    """Make a directory member."""
    return Member(path, DIRECTORY, mode=0o755)


def symlink(path: bytes, target: bytes) -> Member:
    """Make a symlink member."""
    return Member(path, SYMLINK, mode=0o777, link=target)


def hard_link(path: bytes, target: bytes) -> Member:
    """Make a hard-link member."""
    return Member(path, HARDLINK, link=target)


@dataclass
class Entry:
    """An entry taken apart. `frames` are decompressed, the tar's end being the last of them."""

    frames: list[bytes]
    index: Index
    facts: Seal

    @classmethod
    def read(cls, path: Path) -> Entry:
        """Take a real entry apart."""
        with open_archive(bytes(path), ANYONE) as archive:
            index = archive.index
            frames = [
                zstandard.ZstdDecompressor().decompress(archive.frame(number))
                for number in range(index.frame_count)
            ]
            return cls(frames, index, archive.seal)

    def seal(
        self,
        *,
        packed: Mapping[int, bytes] | None = None,
        raw_sizes: Mapping[int, int] | None = None,
        index_bytes: Callable[[bytes], bytes] | None = None,
        index_frame: Callable[[bytes], bytes] | None = None,
        told: Mapping[str, Any] | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> bytes:
        """Close the entry and return the file's bytes.

        All sizes, counts and digests are made right first. Then these lie: `packed` frames, the `raw_sizes` that
        the index tells, the encoded columns (`index_bytes`) or their zstd frame (`index_frame`), and what the
        seal has `told`.
        """
        index, facts = self.index, self.facts
        compressor = zstandard.ZstdCompressor(level=3, write_checksum=True, write_content_size=True)
        stored = [compressor.compress(raw) for raw in self.frames]
        for number, data in (packed or {}).items():
            stored[number] = data
        sizes = [len(raw) for raw in self.frames]
        for number, size in (raw_sizes or {}).items():
            sizes[number] = size
        del index.frame_sizes[:], index.raw_sizes[:], index.frame_digests[:]
        index.frame_sizes.extend(map(len, stored))
        index.raw_sizes.extend(sizes)
        index.frame_digests += b"".join(hashlib.sha256(data).digest() for data in stored)
        columns = b"".join(index.column_bytes())
        if index_bytes is not None:
            columns = index_bytes(columns)
        frame = compressor.compress(columns) if index_frame is None else index_frame(columns)
        data = b"".join(stored)
        facts.data_bytes = len(data)
        facts.sealed_bytes = len(data) + SKIPPABLE_HEADER.size + len(frame)
        facts.index_raw_bytes = len(columns)
        facts.index_sha256 = hashlib.sha256(frame).hexdigest()
        facts.frames = index.frame_count
        facts.members = len(index)
        facts.tar_bytes = sum(index.raw_sizes)
        facts.content_bytes = index.content_bytes()
        facts.counts = {
            "files": index.count(FILE),
            "directories": index.count(DIRECTORY),
            "symlinks": index.count(SYMLINK),
            "hardlinks": index.count(HARDLINK),
        } | dict(counts or {})
        sealed = sealed_json(facts.as_json() | dict(told or {}))
        table = seal.seek_table(zip(index.frame_sizes, index.raw_sizes, strict=True))
        return data + seal.skippable(INDEX_MAGIC, frame) + sealed + table


def sealed_json(data: object, *, auth: bytes = b"") -> bytes:
    """Return a seal frame around any JSON, with its right digest; `auth` is what a signature would be."""
    text = (
        data if isinstance(data, bytes) else json.dumps(data, separators=(",", ":"), sort_keys=True).encode()
    )
    trailer = SEAL_TRAILER.pack(hashlib.sha256(text).digest(), len(text), len(auth), SEAL_TRAILER_MAGIC)
    return seal.skippable(SEAL_MAGIC, text + auth + trailer)


def entry_of(
    members: Sequence[Member] | Sequence[Sequence[Member]],
    targets: Sequence[bytes | Target] = (b"tree",),
    *,
    key: str = KEY,
    end: bytes = TAR_END,
) -> Entry:
    """Make an entry of these members: all in one frame, or a frame for each sequence of them."""
    single = [member for member in members if isinstance(member, Member)]
    groups = [single] if single else [list(group) for group in members if not isinstance(group, Member)]
    index = Index()
    frames = [_frame(index, number, group) for number, group in enumerate(groups)]
    frames.append(end)
    return Entry(frames, index, _facts(key, targets))


def _frame(index: Index, number: int, members: Sequence[Member]) -> bytes:
    raw = b""
    for member in members:
        stored = member.content
        real = -1
        if member.segments is not None:
            stored = header.sparse_map(list(member.segments)) + member.content
            real = member.length
            index.sparse[len(index)] = (real, list(member.segments))
        assert len(stored) <= FRAME_SIZE
        size = len(stored) if member.size is None else member.size
        index.paths.append(member.path)
        index.kinds.append(member.kind)
        index.modes.append(member.mode)
        index.uids.append(member.uid)
        index.gids.append(member.gid)
        index.mtimes.append(member.mtime_ns)
        index.sizes.append(size)
        index.frames.append(number)
        index.offsets.append(len(raw))
        if member.kind == FILE:
            index.contents += member.digest or xxh3_128_digest(stored)
        elif member.kind in {SYMLINK, HARDLINK}:
            index.links.append(member.link)
        raw += member.header or header.build(
            member.path,
            member.kind if member.kind <= HARDLINK else FILE,
            member.mode,
            member.uid,
            member.gid,
            member.mtime_ns // 1_000_000_000,
            size,
            member.link,
            real,
        )
        raw += stored + (bytes(-len(stored) % BLOCK) if member.padding is None else member.padding)
    return raw


def _facts(key: str, targets: Sequence[bytes | Target]) -> Seal:
    return Seal(
        key=key,
        platform=this_platform(),
        family="attack",
        targets=[Target("root", t) if isinstance(t, bytes) else t for t in targets],
        roots={"root": "/somewhere"},
        created_ns=1_700_000_000_000_000_000,
        host="elsewhere",
        versions={"cachekit": "0"},
        level=3,
        data_bytes=0,
        sealed_bytes=0,
        index_raw_bytes=0,
        index_sha256="",
        frames=0,
        members=0,
        tar_bytes=0,
        content_bytes=0,
        allocated_bytes=0,
        counts={},
    )


def file_entry(store: Path, data: bytes, key: str = KEY) -> Path:
    """Put bytes into a store under the file name of a key, and return the file's path."""
    directory_store = DirectoryStore(str(store))
    directory_store.prepare()
    path = entry_path(store, key)
    path.write_bytes(data)
    return path


def entry_path(store: Path, key: str) -> Path:
    """Return where a store keeps the entry of a key."""
    name = EntryIdentity(Key(key), this_platform()).file_name
    return Path(DirectoryStore(str(store)).entry_path(name).decode())


def quarantined(store: Path) -> list[str]:
    """Return the file names in quarantine."""
    return [name for name, _, _ in DirectoryStore(str(store)).quarantined()]


def save_tree(store: Path | StoreAddress, root: Path, *paths: str, key: str = KEY, **more: Any) -> Path:
    """Save paths below `root` (the tree itself, as ".", if none is given) and return the entry's file."""
    address = _address(store)
    request = SaveRequest(key=key, paths=list(paths) or ["."], store=address, root=str(root), **more)
    assert save(request).status == "saved"
    name = EntryIdentity(Key(key), this_platform()).file_name
    return Path(os.fsdecode(DirectoryStore(address).entry_path(name)))


def restore_tree(
    store: Path | StoreAddress, root: Path, *paths: str, key: str = KEY, **more: Any
) -> RestoreReport:
    """Restore an entry's paths below `root`, which need not exist."""
    root.mkdir(exist_ok=True)
    return restore(RestoreRequest(key=key, store=_address(store), root=str(root), paths=list(paths), **more))


def _address(store: Path | StoreAddress) -> StoreAddress:
    return store if isinstance(store, StoreAddress) else StoreAddress(str(store))
