"""Save: walk, reserve, write, publish. An entry appears whole under its key, or the store is as it was."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from cachekit.archive.base import Base
from cachekit.archive.format import DIRECTORY
from cachekit.archive.names import Roots, anchored, compile_patterns, find_roots, targets_of
from cachekit.archive.seal import Seal
from cachekit.archive.walk import Walk
from cachekit.archive.write import BaseRotten, FileChanged, Progress, Written, write_entry
from cachekit.cache.config.model import Kind
from cachekit.cache.delta import opened_base, remember_saved, remember_unchanged, set_base_aside
from cachekit.cache.estimate import family_ratio, room_for
from cachekit.cache.layouts import layouts_held, require_layouts
from cachekit.cache.saving import is_stored, new_seal, save_once, take_room
from cachekit.cache.select import confirmed
from cachekit.cache.unchanged import NothingChanged, same_as_base
from cachekit.errors import (
    CachekitError,
    InvalidRequest,
    NothingMatched,
    SourceChanged,
)
from cachekit.model import LEVELS, EntryIdentity, Key, SaveReport, StoreAddress, Target
from cachekit.store.directory import DirectoryStore
from cachekit.system.clock import now_ns, this_platform
from cachekit.system.locks import claim
from cachekit.system.publish import TempFile
from cachekit.system.workers import worker_count
from cachekit.targets.finish import refuse_unfinished
from cachekit.targets.journal import real_place, target_lock

__all__ = ["SaveRequest", "save"]

_ATTEMPTS = 3


@dataclass(slots=True)
class SaveRequest:
    """What to save, and how. ``paths`` as given by the user; ``root`` None means the current directory.

    ``wait_seconds``: how long to wait for another live saver of the key (0: report it at once).
    """

    key: str
    paths: list[str]
    store: StoreAddress | str
    root: str | None = None
    level: int = 3
    excludes: list[str] = field(default_factory=list)
    force: bool = False
    wait_seconds: float = 0.0
    family: str | None = None
    min_free: int = 0
    changed: Literal["skip", "refuse"] = "refuse"
    allow_empty: bool = False
    #: "oci": the paths are OCI layouts, and are saved only if they are whole.
    kind: Kind = "files"
    #: Write everything anew instead of starting from an earlier entry.
    full: bool = False
    #: Take a file for unchanged if its size, mode, owner and mtime are, without knowing when its content was read.
    trust_mtime: bool = False
    #: If nothing changed, let the store serve the earlier entry under the key as well, without copying it.
    skip_unchanged: bool = False
    lock_timeout: float = 60.0
    progress: Progress | None = None
    #: Called with the bytes that must be free in the store when there is too little; then the check is made once more.
    make_room: Callable[[int], None] | None = None


def save(request: SaveRequest) -> SaveReport:
    """Save the paths under the key.

    Guaranteed: when this returns "saved", the entry is whole, durable and published; on any error or kill the store
    serves what it served before. "exists" is said only of an entry whose size and seal were checked, and its signature
    where the store's trust requires one. With a key the new entry is signed.

    Raises InvalidRequest, NothingMatched, NoSpace, SourceChanged, SourceUnreadable, UnfinishedTarget, LockTimeout,
    StoreUnavailable.
    """
    begin = time.perf_counter()
    key = Key(request.key)
    if request.level not in LEVELS:
        raise InvalidRequest(
            f"there is no compression level {request.level}", expected="-50 to 22", found=request.level
        )
    if not request.paths:
        raise InvalidRequest("no path to save was given", hint="cachekit save --key KEY PATH...")
    identity = EntryIdentity(key, this_platform())
    roots = find_roots(request.root)
    excluded = compile_patterns(anchored(request.excludes, roots)) if request.excludes else None
    try:
        targets = targets_of(request.paths, roots, excluded)
    except NothingMatched:
        # Where names cannot be exchanged, a killed restore may have left no target at all.
        refuse_unfinished(os.path.join(roots.root, os.fsencode(path)) for path in request.paths)
        raise
    store = DirectoryStore(request.store)
    store.trust.require_signer()
    places = [roots.path_of(target) for target in targets]
    store.prepare()
    report = SaveReport(
        "saved",
        key.text,
        identity.file_name,
        str(identity.platform),
        targets=[str(target) for target in targets],
    )

    def work() -> None:
        with _locked(places, request.lock_timeout):
            # Only now: before, a restore that still holds the lock would look like one that was killed,
            # and one that is killed while it is waited for would go unseen.
            refuse_unfinished(places)
            if request.kind == "files":
                _save(request, store, identity, roots, targets, excluded, report)
                return
            with layouts_held(places, request.lock_timeout):
                require_layouts(places)
                _save(request, store, identity, roots, targets, excluded, report)

    save_once(store, identity, report, work, force=request.force, wait_seconds=request.wait_seconds)
    report.seconds = time.perf_counter() - begin
    return report


class _locked:  # noqa: N801 - used as a context manager
    """Hold the shared locks of several targets: other saves may read them, a restore may not write them, no cleaner
    removes them.
    """

    def __init__(self, places: list[bytes], timeout: float) -> None:
        self._locks = [target_lock(place, shared=True, timeout=timeout) for place in sorted(places)]
        self._locks.append(claim(places))
        self._held: list[object] = []

    def __enter__(self) -> None:
        try:
            for lock in self._locks:
                lock.__enter__()
                self._held.append(lock)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        while self._held:
            self._held.pop().__exit__(None, None, None)  # type: ignore[attr-defined]


def _save(
    request: SaveRequest,
    store: DirectoryStore,
    identity: EntryIdentity,
    roots: Roots,
    targets: list[Target],
    excluded: Callable[[bytes], bool] | None,
    report: SaveReport,
) -> None:
    left_out: set[bytes] = set()
    places = {target: real_place(roots.path_of(target)) for target in targets}
    full, skip = request.full, request.skip_unchanged
    attempts = _ATTEMPTS
    while attempts:
        attempts -= 1
        with _base(request, store, identity, places, excluded, full=full) as base:
            begun_ns = now_ns()
            walk = Walk(targets, roots, excluded, _identities(store), frozenset(left_out), base)
            try:
                with store.temporary(identity) as temp:
                    written = _write(request, store, identity, walk, temp, places if skip else None)
                    outcome = store.publish(temp, identity, replace=request.force)
                    if outcome == "exists" and not is_stored(store, identity, report):
                        # The entry in the way was damaged and is gone now; or it is still there, and not trusted.
                        outcome = store.publish(temp, identity, replace=store.trust.required)
            except NothingChanged:
                assert base is not None
                if _reuse(request, store, identity, base, report):
                    remember_unchanged(store, identity.file_name, walk, places, request.excludes, begun_ns)
                    return
                skip = False
                attempts += 1
                continue
            except BaseRotten:
                assert base is not None
                _drop_base(store, base, report)
                full = True
                attempts += 1
                continue
            except FileChanged as error:
                if request.changed == "refuse" and error.member not in left_out:
                    raise SourceChanged(error.message, path=error.path) from None
                left_out.add(error.member)
                continue
        if outcome == "published":
            report.status = "saved"
            _fill(report, written, walk, left_out)
            store.mark_used(identity.file_name)
            if not left_out:
                remember_saved(store, identity.file_name, walk, written, places, request.excludes, begun_ns)
        elif report.status == "saved":
            report.status = "in-progress"  # another saver holds the claim and has not renamed yet
        return
    raise SourceChanged("files keep changing faster than they can be saved", path=next(iter(left_out)))


def _base(
    request: SaveRequest,
    store: DirectoryStore,
    identity: EntryIdentity,
    places: dict[Target, bytes],
    excluded: Callable[[bytes], bool] | None,
    *,
    full: bool,
) -> contextlib.AbstractContextManager[Base | None]:
    """Return what opens the entry that the save starts from, None without one."""
    if full:
        return contextlib.nullcontext()
    family, prefix = _family(request, identity)
    return opened_base(
        store,
        identity,
        family,
        prefix,
        places,
        request.level,
        request.excludes,
        excluded,
        trust_mtime=request.trust_mtime,
    )


def _drop_base(store: DirectoryStore, base: Base, report: SaveReport) -> None:
    """Set aside an entry whose frames are not what its seal says, twice; the save goes on without it in any case."""
    archive, key = base.archive, base.archive.seal.key
    if not confirmed(store, archive.path, os.fsdecode(os.path.basename(archive.path)), archive.identity):
        report.warnings.append(
            f"the entry of {key!r}, from which this save started, could not be read; all is new"
        )
        return
    aside = "and set aside" if set_base_aside(store, base) else "but could not be set aside"
    report.warnings.append(f"the entry of {key!r}, from which this save started, is damaged {aside}")


def _family(request: SaveRequest, identity: EntryIdentity) -> tuple[str, str]:
    """Return the family and what its keys begin with.

    A family that is not named is the beginning of its keys, which spares reading every seal of the store.
    """
    family = request.family or identity.key.family
    return family, "" if request.family else family


def _identities(store: DirectoryStore) -> frozenset[tuple[int, int]]:
    info = os.stat(store.path)
    return frozenset({(info.st_dev, info.st_ino)})


def _reuse(
    request: SaveRequest, store: DirectoryStore, identity: EntryIdentity, base: Base, report: SaveReport
) -> bool:
    """Serve the base under the key as well; False if that is not possible here."""
    seal = base.archive.seal
    outcome = store.link(base.archive, identity, _family(request, identity)[0], replace=request.force)
    if outcome == "impossible":
        return False
    report.status = "reused" if outcome == "published" else "in-progress"
    if outcome == "exists" and not is_stored(store, identity, report):
        return False  # the entry in the way was damaged and is gone now
    if outcome == "published":
        report.identity, report.base, report.unchanged = seal.identity, seal.key, True
        report.members, report.files = seal.members, seal.counts["files"] + seal.counts["hardlinks"]
        report.content_bytes, report.archive_bytes = seal.content_bytes, base.archive.size
        store.mark_used(identity.file_name)
    return True


def _write(
    request: SaveRequest,
    store: DirectoryStore,
    identity: EntryIdentity,
    walk: Walk,
    temp: TempFile,
    places: dict[Target, bytes] | None,
) -> Written:
    """Write the entry. With ``places`` raise NothingChanged instead, if the base holds just this."""
    family, prefix = _family(request, identity)
    ratio = family_ratio(store, family, prefix, identity.platform)

    def reserve(walked: Walk) -> None:
        if not request.allow_empty and not _has_content(walked):
            raise NothingMatched(
                "there is nothing to save: no file is in the tree", path=walked.targets[0].path
            )
        if places is not None and same_as_base(walked, places):
            raise NothingChanged
        need = room_for(walked, ratio)
        take_room(store, temp, need, min_free=request.min_free, make_room=request.make_room)

    def describe(walked: Walk) -> Seal:
        return _describe(request, identity, family, walked)

    try:
        return write_entry(
            walk,
            temp,
            level=request.level,
            workers=worker_count(),
            skip_changed=request.changed == "skip",
            describe=describe,
            before_writing=reserve,
            progress=request.progress,
            trust=store.trust,
        )
    except CachekitError:
        raise
    except OSError as error:
        raise store.explain(error, "write to") from None


def _has_content(walk: Walk) -> bool:
    """Return True if there is anything but directories."""
    return walk.index.count(DIRECTORY) < len(walk.index)


def _describe(request: SaveRequest, identity: EntryIdentity, family: str, walk: Walk) -> Seal:
    used = {target.root for target in walk.targets}
    roots: dict[str, str] = {name: walk.roots.directory(name).decode("latin-1") for name in sorted(used)}
    return new_seal(identity, family, walk.targets, roots, request.level)


def same_members(walk: Walk, written: Written) -> bool:
    """Return True if the entry holds exactly what its base holds."""
    base = walk.base
    return base is not None and base.archive.seal.index_sha256 == written.seal.index_sha256


def _fill(report: SaveReport, written: Written, walk: Walk, left_out: set[bytes]) -> None:
    seal = written.seal
    report.identity = seal.identity
    report.members = seal.members
    report.files = seal.counts["files"] + seal.counts["hardlinks"]
    report.content_bytes = seal.content_bytes
    report.archive_bytes = written.archive_bytes
    report.skipped = dict(walk.skipped)
    report.copied_bytes = written.copied_bytes
    if walk.base is not None and written.copied_frames:
        report.base = walk.base.archive.seal.key
        report.unchanged = same_members(walk, written)
    report.phases = written.phases
    dropped = [path for path, _ in written.dropped] + sorted(left_out)
    report.changed = [os.fsdecode(path) for path in dropped]
    if dropped:
        report.warnings.append(f"{len(dropped)} files kept changing or vanished and were left out")
