"""Which earlier entry a save starts from, and what is remembered of a target for the next save or restore."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence

from cachekit.archive import record as records
from cachekit.archive.base import Base, Known
from cachekit.archive.check import check_archive
from cachekit.archive.pack import zstd_version
from cachekit.archive.read import Archive, open_archive
from cachekit.archive.record import Record
from cachekit.archive.seal import Seal
from cachekit.archive.survey import survey
from cachekit.archive.walk import Walk
from cachekit.archive.write import Written
from cachekit.errors import CachekitError
from cachekit.model import ROOT_PREFIX, EntryIdentity, Target
from cachekit.store.directory import DirectoryStore
from cachekit.system.workers import worker_count

__all__ = ["opened_base", "remember_restored", "remember_saved", "remember_unchanged", "set_base_aside"]


@contextlib.contextmanager
def opened_base(
    store: DirectoryStore,
    identity: EntryIdentity,
    family: str,
    prefix: str,
    places: dict[Target, bytes],
    level: int,
    excludes: list[str],
    excluded: Callable[[bytes], bool] | None,
    *,
    trust_mtime: bool,
) -> Iterator[Base | None]:
    """Open the entry that a save of the targets at ``places`` starts from; None if there is none that would do.

    The one that the targets' records name, if the store still has it, else the family's newest. Only entries of the
    same level, zstd and platform: copied frames are then what compressing would give; and only those that the store's
    trust takes, for what is copied is signed anew. Never raises for an entry that is damaged or cannot be read: then
    there is none.
    """
    known = {target: records.load(place) for target, place in places.items()}
    with contextlib.ExitStack() as stack:
        base = None
        for name, its_identity in _candidates(store, identity, family, prefix, known):
            with contextlib.suppress(CachekitError, OSError):
                archive = stack.enter_context(open_archive(store.entry_path(name), store.trust))
                store.check_filing(archive, name)
                if _fits(archive, store, identity, level) and its_identity in {None, archive.seal.identity}:
                    if its_identity is None:
                        check_archive(archive)
                    base = Base(
                        archive,
                        _surveyed(archive, known, places, excludes, excluded),
                        trust_mtime=trust_mtime,
                    )
                    break
        yield base


def _candidates(
    store: DirectoryStore,
    identity: EntryIdentity,
    family: str,
    prefix: str,
    known: dict[Target, Record | None],
) -> Iterator[tuple[str, str | None]]:
    """Yield (entry file name, the identity that it must have or None) in the order in which they would do best."""
    for record in known.values():
        if record is not None and (record.store, record.namespace) == (store.path, str(store.namespace)):
            yield record.entry, record.identity
            break
    for candidate in store.candidates(prefix, str(identity.platform)):
        seal = candidate.seal
        if seal is not None and candidate.trusted and seal.family == family:
            yield candidate.name, None
            break


def _fits(archive: Archive, store: DirectoryStore, identity: EntryIdentity, level: int) -> bool:
    seal = archive.seal
    return (
        seal.level == level
        and seal.versions.get("zstd") == zstd_version()
        and seal.platform == identity.platform
        and not store.denied(archive.path)
    )


def _surveyed(
    archive: Archive,
    known: dict[Target, Record | None],
    places: dict[Target, bytes],
    excludes: list[str],
    excluded: Callable[[bytes], bool] | None,
) -> dict[Target, Known]:
    """Look at the targets whose record is about this entry."""
    found = {}
    index = archive.index
    for target, record in known.items():
        if (
            record is None
            or record.identity != archive.seal.identity
            or (record.root, record.path) != (target.root, target.path.decode("latin-1"))
            or record.first + len(record.inodes) > len(index)
        ):
            continue
        found[target] = survey(record, index, target, places[target], excluded, worker_count())
        if excluded is not None and record.excludes != excludes:
            # What is left out only now must be met by the walk, which then leaves it out.
            skip = len(ROOT_PREFIX[target.root])
            for at in range(len(record.inodes)):
                if excluded(index.paths[record.first + at][skip:]):
                    found[target].bad[at] |= 1
    return found


def set_base_aside(store: DirectoryStore, base: Base) -> bool:
    """Set aside an entry of which a frame is damaged; True if it will not be served again."""
    return store.set_aside(base.archive.path, base.archive.identity)


def remember_saved(
    store: DirectoryStore,
    entry: str,
    walk: Walk,
    written: Written,
    places: dict[Target, bytes],
    excludes: list[str],
    begun_ns: int,
) -> None:
    """Keep records of targets that were just saved: their files had these stat values and this content.

    ``begun_ns``: when the walk began. Files that were changed after that, or so shortly before that a further change
    may not show, will be read again.
    """
    if written.dropped:
        for place in places.values():
            records.forget(place)
        return
    _remember(store, entry, walk, written.seal, written.packed_index, places, excludes, begun_ns)


def remember_unchanged(
    store: DirectoryStore,
    entry: str,
    walk: Walk,
    places: dict[Target, bytes],
    excludes: list[str],
    begun_ns: int,
) -> None:
    """Keep records of targets that were found to hold just what the walk's base holds."""
    assert walk.base is not None
    archive = walk.base.archive
    _remember(store, entry, walk, archive.seal, archive.packed_index, places, excludes, begun_ns)


def _remember(
    store: DirectoryStore,
    entry: str,
    walk: Walk,
    seal: Seal,
    packed_index: bytes,
    places: dict[Target, bytes],
    excludes: list[str],
    begun_ns: int,
) -> None:
    for target, place in places.items():
        span = walk.spans[target]
        ctimes = walk.layout.ctimes[span.start : span.stop]
        records.forget_unsettled(ctimes, begun_ns)
        record = Record(
            seal.identity,
            store.path,
            str(store.namespace),
            entry,
            target.root,
            target.path.decode("latin-1"),
            excludes,
            walk.devices[target],
            span.start,
            seal.index_raw_bytes,
            seal.index_sha256,
            walk.layout.inodes[span.start : span.stop],
            ctimes,
            packed_index,
        )
        records.store(place, record)


def remember_restored(
    store: DirectoryStore,
    archive: Archive,
    target: Target,
    place: bytes,
    rows: Sequence[int],
    inodes: array[int],
    ctimes: array[int],
    visible_ns: int,
) -> None:
    """Keep the record of a target that was just restored; the columns are of the whole index.

    ``visible_ns``: from when on others could change the files. What was written right before that will be read again.
    """
    first, last = (rows[0], rows[-1] + 1) if rows else (0, 0)
    if not rows or last - first != len(rows):  # members of another target lie between: not an entry of ours
        records.forget(place)
        return
    ctimes = ctimes[first:last]
    records.forget_unsettled(ctimes, visible_ns)
    record = Record(
        archive.seal.identity,
        store.path,
        str(store.namespace),
        os.fsdecode(os.path.basename(archive.path)),
        target.root,
        target.path.decode("latin-1"),
        [],
        os.lstat(place).st_dev,
        first,
        archive.seal.index_raw_bytes,
        archive.seal.index_sha256,
        inodes[first:last],
        ctimes,
        archive.packed_index,
    )
    records.store(place, record)
