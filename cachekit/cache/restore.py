"""Restore: find, check, stage, commit. Nothing of a target changes before everything about its entry was checked."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from cachekit.archive import record as records
from cachekit.archive.check import check_archive
from cachekit.archive.extract import Noted, Progress, directory_facts, extract, needed_space
from cachekit.archive.format import DIRECTORY
from cachekit.archive.names import Roots, find_roots
from cachekit.archive.read import Archive
from cachekit.archive.record import Record
from cachekit.archive.unpack import Destination, WriteOptions
from cachekit.cache import inplace
from cachekit.cache.config.model import Kind
from cachekit.cache.delta import remember_restored
from cachekit.cache.layouts import require_restored, require_staged
from cachekit.cache.present import look, rows_of
from cachekit.cache.select import attempt, choose_targets, elsewhere, names_to_try, status_without
from cachekit.cache.space import require
from cachekit.errors import (
    InvalidRequest,
    LockTimeout,
    NameConflict,
    NoSpace,
    TargetNotWritable,
    UnfinishedTarget,
)
from cachekit.model import STAGED, Key, Platform, RestoreReport, RestoreStatus, StoreAddress, Target
from cachekit.store.directory import DirectoryStore
from cachekit.system.clock import now_ns, this_platform
from cachekit.system.locks import claim
from cachekit.system.space import free_space, mount_points
from cachekit.system.steps import step
from cachekit.system.workers import worker_count
from cachekit.targets.commit import conflict
from cachekit.targets.finish import Recovered, drop, finish, recover, unfinished
from cachekit.targets.journal import real_place, target_lock
from cachekit.targets.protect import merge_only, mounted_in
from cachekit.targets.staging import Staging, goes_inside, make_staging

__all__ = ["RestoreRequest", "restore"]


@dataclass(slots=True)
class RestoreRequest:
    """What to restore, and how. ``paths`` empty means the entry's targets under the root.

    ``mode``: merge, replace, or in-place (file by file, where old and new do not fit beside each other; with
    ``replace_extras`` files that are not in the entry are removed first). With ``lookup_only`` no target is written: an
    entry is found, its seal and index are checked, its frames are not read.
    """

    key: str
    store: StoreAddress | str
    restore_keys: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    root: str | None = None
    mode: Literal["merge", "replace", "in-place"] = "merge"
    replace_extras: bool = False
    all_targets: bool = False
    any_platform: bool = False
    durable: bool = False
    #: "oci": the targets are OCI layouts, and are restored only if they are whole.
    kind: Kind = "files"
    same_owner: bool = False
    keep_setuid: bool = False
    lookup_only: bool = False
    min_free: int = 0
    lock_timeout: float = 60.0
    progress: Progress | None = None
    #: What this machine is; only tests set it.
    platform: Platform = field(default_factory=this_platform)


def restore(request: RestoreRequest) -> RestoreReport:
    """Restore the best whole entry: the exact key's, else the newest of the first restore key that has one.

    A miss, and a refusal that leaves nothing to restore, are values of the report. Guaranteed: no byte of a target
    changes unless its entry was found whole, and signed where the store's trust requires that; absent and replaced
    targets are at every moment the old or the new tree. Damaged and forged entries are set aside, so that they are not
    served again. Passed over are those that are not trusted, which stay for jobs that ask for no signature, and of what
    a restore key finds those that hold other paths.

    Raises InvalidRequest, TargetNotNamed (of the exact key's entry), NameConflict, TargetNotWritable, NoSpace,
    LockTimeout, StoreUnavailable.
    """
    begin = time.perf_counter()
    key = Key(request.key)
    for prefix in request.restore_keys:
        if not prefix:
            raise InvalidRequest("a restore key is empty: it would match every entry of the store")
    roots = find_roots(request.root)
    store = DirectoryStore(request.store)
    store.sweep()
    report = RestoreReport("miss", key.text, mode=request.mode)
    if store.trust.required and not store.trust.keys:
        report.warnings.append("trust is hmac, and no key is given: no entry can be used")
    verdicts: set[RestoreStatus] = set()
    for name, exact, _ in names_to_try(
        store, key, request.restore_keys, request.platform, any_platform=request.any_platform
    ):
        verdict = _try(request, store, roots, name, report, exact=exact)
        if verdict == "used":
            report.entry = name
            report.status = "exact" if exact and report.matched_key == key.text else "partial"
            store.mark_used(name)
            break
        if verdict != "miss":
            verdicts.add(verdict)
    else:
        report.status = status_without(verdicts)
        if report.status == "miss" and not request.any_platform:
            for found in elsewhere(store, key, request.restore_keys, request.platform):
                word = "miss" if found.word == "platform" else found.word
                report.passed_over(found.name, word, found.reason)
    report.seconds = time.perf_counter() - begin
    return report


def _try(
    request: RestoreRequest,
    store: DirectoryStore,
    roots: Roots,
    name: str,
    report: RestoreReport,
    *,
    exact: bool,
) -> RestoreStatus | Literal["used"]:
    """Restore from one candidate, or say why not."""

    def use(archive: Archive) -> None:
        _restore(request, store, archive, roots, report)

    verdicts = attempt(store, name, request.platform, use, any_platform=request.any_platform, exact=exact)
    for verdict in verdicts:
        if verdict.certain and store.set_aside(store.entry_path(name), verdict.inode):
            report.quarantined.append(name)
        if verdict.word:
            report.passed_over(name, verdict.word, verdict.reason, verdict.error)
    return verdicts[-1].status


def _restore(
    request: RestoreRequest, store: DirectoryStore, archive: Archive, roots: Roots, report: RestoreReport
) -> None:
    clock = time.perf_counter
    mark = clock()
    seal = archive.seal
    targets = choose_targets(seal.targets, request.paths, roots, every=request.all_targets)
    places = {target: real_place(roots.path_of(target)) for target in targets}
    known = (
        {target: records.load(place) for target, place in places.items()}
        if request.mode == "in-place"
        else {}
    )
    # A record is of an entry whose members were checked, and its identity covers every byte of the index.
    if any(record is not None and record.identity == seal.identity for record in known.values()):
        archive.members_checked = True
    check_archive(archive)
    report.phases["index"] = clock() - mark
    if request.lookup_only:
        _describe(report, archive, targets)
        return
    with contextlib.ExitStack() as stack:
        for place in sorted(set(places.values())):
            stack.enter_context(target_lock(place, shared=False, timeout=request.lock_timeout))
            stack.enter_context(claim([place]))
        pending = [p for place in places.values() for p in _recover(place, report, request.lock_timeout)]
        _check_targets(request, archive, roots, places)
        with _errors_of_target(places):
            if request.mode == "in-place":
                _in_place(request, store, archive, roots, places, known, report)
                if request.kind == "oci":
                    for place in places.values():
                        require_restored(place)
            else:
                _staged(request, store, archive, roots, places, report)
        for recovered in pending:
            with contextlib.suppress(OSError):
                drop(recovered.journal)
    _describe(report, archive, targets)
    if not request.keep_setuid:
        cleared = sum(
            1
            for m, k in zip(archive.index.modes, archive.index.kinds, strict=True)
            if m & 0o6000 and k != DIRECTORY
        )
        if cleared:
            report.warnings.append(
                f"{cleared} files were restored without their setuid or setgid bit (--keep-setuid)"
            )


def _describe(report: RestoreReport, archive: Archive, targets: Sequence[Target]) -> None:
    seal = archive.seal
    report.matched_key = seal.key
    report.identity = seal.identity
    report.targets = [str(target) for target in targets]
    report.members, report.files = seal.members, seal.counts["files"] + seal.counts["hardlinks"]
    report.content_bytes, report.archive_bytes = seal.content_bytes, archive.size


def _recover(place: bytes, report: RestoreReport, timeout: float) -> list[Recovered]:
    """Finish or roll back what a killed restore left of a target; return what only our restore can end.

    We hold the target's lock: staging that is still in use belongs to workers that outlived their parent for a
    moment, or to somebody who cannot see our lock.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = recover(place)
        for recovered in found:
            if recovered.result in {"finished", "rolled-back"}:
                report.warnings.append(
                    f"an earlier restore was killed; it was {recovered.result.replace('-', ' ')} first"
                )
        if all(recovered.result != "in-use" for recovered in found):
            return [recovered for recovered in found if recovered.result == "needs-archive"]
        if time.monotonic() >= deadline:
            raise LockTimeout(
                f"another restore of the target is still running; waited {timeout:.0f} s",
                path=place,
                hint="wait for it to end, or raise --lock-timeout",
            )
        time.sleep(0.1)


def _check_targets(
    request: RestoreRequest, archive: Archive, roots: Roots, places: dict[Target, bytes]
) -> None:
    for (outer, _), (inner, target) in pairwise(sorted((place + b"/", t) for t, place in places.items())):
        if inner.startswith(outer):
            raise NameConflict(
                "two targets of the entry mean one place here, or one inside the other", path=str(target)
            )
    index = archive.index
    kinds = dict(zip(index.paths, index.kinds, strict=True))
    mounts = mount_points()
    for target, place in places.items():
        kind = kinds.get(target.member, DIRECTORY)
        conflict(
            place, new_is_directory=kind == DIRECTORY, replace=_mode(request, roots, place)[0] == "replace"
        )
        for mount in mounted_in(place, mounts):
            # Nothing can be renamed across a mount point: better said now than found half-way.
            member = os.path.join(target.member, mount)
            if kinds.get(member, DIRECTORY) != DIRECTORY or any(
                path.startswith(member + b"/") for path in index.paths
            ):
                raise TargetNotWritable(
                    "something is mounted inside the target, where the entry has files; nothing was written",
                    path=os.path.join(place, mount),
                    hint="unmount it, or save and restore what is below it as a target of its own",
                )


def _mode(request: RestoreRequest, roots: Roots, place: bytes) -> tuple[str, str | None]:
    """Return how this target is committed, and why not as asked."""
    reason = merge_only(
        place,
        root=roots.root,
        home=os.path.realpath(roots.home),
        here=os.fsencode(os.path.realpath(os.getcwd())),
        mounts=mount_points(),
    )
    if request.mode == "replace" and reason:
        return "merge", reason
    return request.mode, reason


@contextlib.contextmanager
def _errors_of_target(places: dict[Target, bytes]) -> Iterator[None]:
    """Turn the target filesystem's errors into sentences with exit codes."""
    path = next(iter(places.values()), b"")
    try:
        yield
    except OSError as error:
        begun = [place for place in places.values() if any(journal.began for journal in unfinished(place))]
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            quota = " (a quota)" if error.errno == errno.EDQUOT else ""
            state = "incomplete until a restore or cachekit recover has ended it" if begun else "as it was"
            raise NoSpace(
                f"the target's filesystem became full{quota} while the entry was unpacked; the target is {state}",
                path=begun[0] if begun else path,
                errno=error.errno,
            ) from None
        if begun:
            raise UnfinishedTarget(
                f"cannot write the target: {error.strerror}; it is incomplete",
                path=begun[0],
                errno=error.errno,
            ) from None
        raise TargetNotWritable(
            f"cannot write the target: {error.strerror}", path=path, errno=error.errno
        ) from None


def _staged(
    request: RestoreRequest,
    store: DirectoryStore,
    archive: Archive,
    roots: Roots,
    places: dict[Target, bytes],
    report: RestoreReport,
) -> None:
    clock = time.perf_counter
    mark = clock()
    options = WriteOptions(same_owner=request.same_owner, keep_setuid=request.keep_setuid)
    stagings: dict[Target, Staging] = {}
    entry = {
        "path": archive.path.decode("latin-1"),
        "key": archive.seal.key,
        "identity": archive.seal.identity,
    }
    done: set[Target] = set()
    # Staging inside the target touches it: then all is checked before, at the price of decoding twice.
    checked = any(goes_inside(place) for place in places.values())
    if checked:
        extract(archive, [], options, worker_count())
    try:
        for target, place in places.items():
            mode, reason = _mode(request, roots, place)
            if request.mode == "replace" and mode == "merge":
                report.warnings.append(f"{target} was merged, not replaced: {reason}")
            stagings[target] = make_staging(place, mode, entry)
        destinations = [Destination(target, staging.fd) for target, staging in stagings.items()]
        _require_space(request, archive, destinations, places)
        for destination in destinations:
            if not destination.target.member:
                os.mkdir(STAGED, 0o700, dir_fd=destination.fd)
        if not checked and any(staging.journal.inside for staging in stagings.values()):
            extract(archive, [], options, worker_count())
        noted = Noted(len(archive.index))
        extract(archive, destinations, options, worker_count(), request.progress, noted=noted)
        step("restore.extracted")
        if request.kind == "oci":
            for destination in destinations:
                require_staged(destination.fd, places[destination.target])
        for destination, staging in zip(destinations, stagings.values(), strict=True):
            facts = directory_facts(archive, destination, options)
            if destination.target.path == b".":
                facts = [fact for fact in facts if fact[0]]
            staging.write_facts(facts)
        step("restore.finished-staging")
        report.phases["unpack"] = clock() - mark
        mark = clock()
        for destination, staging in zip(destinations, stagings.values(), strict=True):
            target = destination.target
            visible_ns = now_ns()
            outcome = finish(staging, durable=request.durable, same_owner=request.same_owner)
            done.add(target)
            if outcome.level != "files":  # moving a file by itself changes its ctime
                rows = rows_of(archive, target)
                place = places[target]
                remember_restored(store, archive, target, place, rows, noted.inodes, noted.ctimes, visible_ns)
            report.commit[str(target)] = outcome.level
            report.extra += outcome.extra
        report.phases["commit"] = clock() - mark
    except BaseException:
        for target, staging in stagings.items():
            if target not in done and staging.journal.phase == "staging":
                with contextlib.suppress(OSError):
                    staging.abandon()
        raise
    finally:
        for staging in stagings.values():
            staging.close()


def _require_space(
    request: RestoreRequest, archive: Archive, destinations: list[Destination], places: dict[Target, bytes]
) -> None:
    """Raise NoSpace unless all targets of each filesystem fit on it beside what is there."""
    needs: dict[int, list[int]] = {}
    for destination in destinations:
        space = free_space(destination.fd)
        need = needed_space(archive, destination, space.block_size)
        total = needs.setdefault(space.device, [0, 0, destination.fd])
        total[0] += need.bytes
        total[1] += need.inodes
    for size, inodes, fd in needs.values():
        free = free_space(fd)
        path = next(places[d.target] for d in destinations if d.fd == fd)
        hint = "free space on that filesystem; nothing was written"
        if size + request.min_free > free.available:
            extras = request.mode == "replace"
            in_place = 0
            for one in destinations:
                if free_space(one.fd).device == free.device:
                    place = places[one.target]
                    options = WriteOptions(same_owner=request.same_owner, keep_setuid=request.keep_setuid)
                    room = inplace.room_in_place(
                        archive,
                        one,
                        place,
                        free.block_size,
                        look(archive, one.target, place, options, worker_count()),
                        remove_extras=extras,
                    )
                    in_place += room(inplace.LEAST_BATCH_BYTES)
            if in_place + request.min_free <= free.available:
                hint = "old and new tree do not fit beside each other, but --in-place would: it replaces file by file"
        require(free, size, inodes, min_free=request.min_free, what="restore", path=path, hint=hint)


def _in_place(
    request: RestoreRequest,
    store: DirectoryStore,
    archive: Archive,
    roots: Roots,
    places: dict[Target, bytes],
    known: dict[Target, Record | None],
    report: RestoreReport,
) -> None:
    options = WriteOptions(same_owner=request.same_owner, keep_setuid=request.keep_setuid)
    presences = {
        target: look(archive, target, place, options, worker_count(), known[target])
        for target, place in places.items()
    }
    visible_ns = now_ns()
    frames = inplace.needed_frames(archive, presences.values())
    # A little is checked while it is staged: nothing of the target changes before all of it is.
    early = (
        len(presences) == 1
        and not request.replace_extras
        and not any(goes_inside(place) for place in places.values())
        and all(inplace.one_batch(archive, presence) for presence in presences.values())
    )
    if frames and not early:
        extract(archive, [], options, worker_count(), request.progress, frames)
    for target, place in places.items():
        extras = request.replace_extras and _mode(request, roots, place)[1] is None
        report.unchanged += inplace.restore_in_place(
            archive,
            target,
            place,
            options,
            presences[target],
            checked=not early,
            remove_extras=extras,
            durable=request.durable,
            min_free=request.min_free,
        )
        report.commit[str(target)] = "in-place"
        found = presences[target]
        remember_restored(store, archive, target, place, found.rows, found.inodes, found.ctimes, visible_ns)
