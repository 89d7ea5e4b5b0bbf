"""Export: one entry, as it is stored, to where something else carries it from (actions/cache, GitLab's cache)."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from cachekit.archive.check import check_archive
from cachekit.archive.extract import Progress, check_frames
from cachekit.archive.read import Archive
from cachekit.cache.carry.place import (
    ALIAS_SUFFIX,
    Place,
    alias_for,
    copy_checked,
    default_place,
    errors_of_place,
    locked,
    name_under,
    place_of,
    refuse_store,
)
from cachekit.cache.select import attempt, status_without
from cachekit.cache.space import require
from cachekit.cache.verify import entries_of
from cachekit.errors import CachekitError, InvalidRequest
from cachekit.model import Key, Platform, RestoreStatus, StoreAddress
from cachekit.store.directory import Candidate, DirectoryStore
from cachekit.system.clock import this_platform
from cachekit.system.files import fsync_directory, rename_file, replace_file
from cachekit.system.publish import TempFile, link_as, sweep, temporary_name
from cachekit.system.space import free_space
from cachekit.system.steps import step
from cachekit.system.workers import worker_count

__all__ = ["ExportReport", "ExportRequest", "export"]

#: What temporary files beside an exported entry begin with: the directory may be one where other files are.
_LABEL = ".cachekit-carry"
_STOP = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


@dataclass(slots=True)
class ExportRequest:
    """What to export, and where to. ``copy``: never by a hard link. ``to``: see ``place.place_of``."""

    key: str
    store: StoreAddress | str
    restore_keys: list[str] = field(default_factory=list)
    to: str | None = None
    copy: bool = False
    any_platform: bool = False
    min_free: int = 0
    lock_timeout: float = 60.0
    progress: Progress | None = None
    #: What this machine is; only tests set it.
    platform: Platform = field(default_factory=this_platform)


ExportStatus = Literal["exported", "unchanged", "miss", "refused", "unreadable", "unsupported"]


@dataclass(slots=True)
class ExportReport:
    """What an export did. ``how`` is link or copy; unchanged: this very entry was there already.

    ``tried`` has a line for every entry that was looked at and not used; without one that was, nothing was changed.
    """

    status: ExportStatus
    key: str
    matched_key: str | None = None
    entry: str | None = None
    path: str | None = None
    identity: str | None = None
    how: Literal["link", "copy"] | None = None
    archive_bytes: int = 0
    content_bytes: int = 0
    tried: list[dict[str, object]] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """True if the entry is where it is carried from."""
        return self.status in {"exported", "unchanged"}


def export(request: ExportRequest) -> ExportReport:
    """Export the key's entry, else the newest of the first restore key that has one; of files, or of Docker images.

    Guaranteed: every frame of what appears was checked, the file has at every moment the old entry or the new one, and
    if there is none to export it is as it was. Damaged entries are set aside in the store, as by a restore.

    Raises InvalidRequest, TargetNotWritable, NoSpace, LockTimeout, StoreUnavailable.
    """
    begin = time.perf_counter()
    key = Key(request.key)
    if "" in request.restore_keys:
        raise InvalidRequest("a restore key is empty: it would match every entry of the store")
    store = DirectoryStore(request.store)
    place = place_of(request.to or default_place())
    refuse_store(place, store.path)
    report = ExportReport("miss", key.text)
    verdicts: set[RestoreStatus] = set()
    for candidate in _candidates(store, key, request):
        status = _try(request, store, place, candidate, report)
        if status == "used":
            break
        if status != "miss":
            verdicts.add(status)
    else:
        report.status = status_without(verdicts)  # type: ignore[assignment]
    report.seconds = time.perf_counter() - begin
    return report


def _candidates(store: DirectoryStore, key: Key, request: ExportRequest) -> Iterator[Candidate]:
    """Yield what may be exported: the key's own entry first, this machine's before images, before other platforms'."""
    seen = set()
    found = [list(entries_of(store, key.text))]
    found += [store.candidates(prefix, None) for prefix in request.restore_keys]
    for group in found:
        # A damaged seal tells no platform. It goes first: it is set aside and told, not passed over build after build.
        for candidate in sorted(group, key=lambda c: (c.seal is not None, _distance(c, request.platform))):
            near = _distance(candidate, request.platform) < _ELSEWHERE or request.any_platform
            if near and candidate.name not in seen:
                seen.add(candidate.name)
                yield candidate


_ELSEWHERE = 2


def _distance(candidate: Candidate, here: Platform) -> int:
    """Return 0 for an entry of this platform, 1 for images of this architecture, ``_ELSEWHERE`` for others."""
    seal = candidate.seal
    if seal is None or seal.platform == here:
        return 0
    same = (seal.platform.os, seal.platform.arch) == (here.os, here.arch)
    return 1 if seal.images is not None and same else _ELSEWHERE


def _try(
    request: ExportRequest, store: DirectoryStore, place: Place, candidate: Candidate, report: ExportReport
) -> RestoreStatus | Literal["used"]:
    name = candidate.name

    def use(archive: Archive) -> None:
        check_archive(archive)
        check_frames(archive, worker_count(), request.progress)
        with locked(place, request.lock_timeout) as directory:
            _put(request, store, archive, name, place, directory, report)
        report.entry, report.path = name, place.path
        report.matched_key, report.identity = archive.seal.key, archive.seal.identity
        report.archive_bytes, report.content_bytes = archive.size, archive.seal.content_bytes

    images = candidate.seal is not None and candidate.seal.images is not None
    verdicts = attempt(store, name, request.platform, use, any_platform=True, images=images)
    for verdict in verdicts:
        if verdict.certain and store.set_aside(store.entry_path(name), verdict.inode):
            report.quarantined.append(name)
        if verdict.word:
            line: dict[str, object] = {"entry": name, "verdict": verdict.word, "reason": verdict.reason}
            if verdict.error is not None:
                line["error"] = verdict.error.as_dict()
            report.tried.append(line)
    return verdicts[-1].status


def _put(
    request: ExportRequest,
    store: DirectoryStore,
    archive: Archive,
    name: str,
    place: Place,
    directory: int,
    report: ExportReport,
) -> None:
    """Give an entry that was checked its place in the locked directory, with its alias if it has one."""
    alias = _alias(store, archive, name)
    with errors_of_place(place.path):
        sweep(directory, _LABEL)
        beside = place.name + ALIAS_SUFFIX
        if alias is not None:
            replace_file(beside, alias, directory, mode=0o640)
            step("carry.alias-written")
        with contextlib.suppress(FileNotFoundError):
            info = os.lstat(place.name, dir_fd=directory)
            if (info.st_dev, info.st_ino) == archive.identity:
                report.status, report.how = "unchanged", "link"
        if report.status != "unchanged":
            if request.copy or not _link(store, archive, name, place, directory):
                _copy(request, archive, place, directory)
                report.how = "copy"
            else:
                report.how = "link"
            report.status = "exported"
        step("carry.placed")
        if alias is None:
            # Of the entry that was here before: it names another one, and so was of no use from the rename on.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=directory)
        fsync_directory(directory)


def _alias(store: DirectoryStore, archive: Archive, name: str) -> bytes | None:
    """Return the alias by which the entry has its name in the store, None if it has it by its own key."""
    data = store.alias_of(name)
    if data is None:
        return None
    try:
        found = alias_for(archive, data, archive.trust)
    except CachekitError:
        return None  # the filing was checked: then the name is right without it
    return data if found is not None and name_under(found[0], archive) == name else None


def _link(store: DirectoryStore, archive: Archive, name: str, place: Place, directory: int) -> bool:
    """Give the stored file a further name at the place; False where that is not possible, or not allowed."""
    temporary = temporary_name(_LABEL)
    try:
        with store.part("entries") as entries:
            link_as(name, temporary, entries, directory)
    except OSError as error:
        if error.errno in _STOP:
            raise
        return False
    step("carry.temporary")
    try:
        info = os.lstat(temporary, dir_fd=directory)
        if (info.st_dev, info.st_ino) != archive.identity:
            return False  # replaced in the store just now: what was checked is still open, and is copied
        rename_file(temporary, place.name, directory)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
    return True


def _copy(request: ExportRequest, archive: Archive, place: Place, directory: int) -> None:
    require(
        free_space(directory),
        archive.size,
        1,
        min_free=request.min_free,
        what="export the entry",
        path=place.directory,
        hint="free space there, or export to another filesystem with --to; nothing was written",
    )
    with TempFile(directory, _LABEL) as temp:
        step("carry.temporary")
        temp.reserve(archive.size)
        copy_checked(archive, temp, os.fsencode(os.path.join(place.directory, temp.name)), request.progress)
        temp.publish(place.name, directory, replace=True)
