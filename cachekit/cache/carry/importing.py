"""Import: entries that something else carried, checked and filed in the store under their own keys."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from cachekit.archive.check import check_archive
from cachekit.archive.extract import Progress, check_frames
from cachekit.archive.read import Archive, open_archive, read_errors
from cachekit.cache.carry.place import (
    ALIAS_SUFFIX,
    CARRIED,
    alias_for,
    copy_checked,
    default_place,
    name_under,
    read_alias,
)
from cachekit.cache.saving import is_stored, save_once, take_room
from cachekit.errors import (
    Damaged,
    Forged,
    InvalidRequest,
    Refused,
    Unreadable,
    Unsafe,
)
from cachekit.model import EntryIdentity, Key, SaveReport, StoreAddress
from cachekit.store.directory import DirectoryStore, file_name_of
from cachekit.system.workers import worker_count

__all__ = ["ImportReport", "ImportRequest", "ImportedFile", "import_carried"]

_SUFFIX = ".tar.zst"


@dataclass(slots=True)
class ImportRequest:
    """What to import: files, and directories with exported entries; none means the default directory.

    With ``key`` only the entry of this key, or those whose key begins with a restore key. ``force`` replaces an entry
    that the store has under the key.
    """

    store: StoreAddress | str
    places: list[str] = field(default_factory=list)
    key: str | None = None
    restore_keys: list[str] = field(default_factory=list)
    force: bool = False
    min_free: int = 0
    lock_timeout: float = 60.0
    progress: Progress | None = None


FileStatus = Literal[
    "imported",
    "exists",
    "miss",
    "other-key",
    "damaged",
    "forged",
    "unsafe",
    "unsupported",
    "untrusted",
    "refused",
    "unreadable",
]


@dataclass(slots=True)
class ImportedFile:
    """What became of one file. ``removed``: it was refused, and is not carried on."""

    path: str
    status: FileStatus
    key: str | None = None
    entry: str | None = None
    platform: str | None = None
    identity: str | None = None
    archive_bytes: int = 0
    content_bytes: int = 0
    removed: bool = False
    error: dict[str, object] | None = None


ImportStatus = Literal["imported", "exists", "miss", "refused", "unreadable"]


@dataclass(slots=True)
class ImportReport:
    """What an import did. ``status``: the best of its files if any was of use, else the worst."""

    status: ImportStatus = "miss"
    files: list[ImportedFile] = field(default_factory=list)
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """True if a file was not what it should be, whatever became of the others."""
        return any(file.status not in {*_FINE, "unreadable"} for file in self.files)

    @property
    def unreadable(self) -> bool:
        """True if the filesystem failed under a file."""
        return any(file.status == "unreadable" for file in self.files)


_FINE = ("imported", "exists", "miss", "other-key")


def import_carried(request: ImportRequest) -> ImportReport:
    """Import each file by itself. Nothing to import is a miss: a value.

    Guaranteed: an entry appears in the store whole or not at all, and only if seal, index, every frame, and the
    signature where the store's trust requires one, are right; it is filed by what it says of itself. What is damaged,
    forged or unsafe in the place where an export puts its entry is removed, so that nothing carries it on.

    Raises InvalidRequest, NoSpace, LockTimeout, StoreUnavailable; what is wrong with a file stands in the report.
    """
    begin = time.perf_counter()
    key = Key(request.key) if request.key is not None else None
    if "" in request.restore_keys:
        raise InvalidRequest("a restore key is empty: it would match every entry")
    if request.restore_keys and key is None:
        raise InvalidRequest("--restore-key needs --key", hint="without a key every entry is imported")
    store = DirectoryStore(request.store)
    report = ImportReport()
    prepared = False
    for path, own in _files(request.places or [default_place()], report):
        if not prepared:
            store.prepare()
            prepared = True
        report.files.append(_import(request, store, path, report, own=own))
    statuses = {file.status for file in report.files}
    if "imported" in statuses:
        report.status = "imported"
    elif "exists" in statuses:
        report.status = "exists"
    elif report.refused:
        report.status = "refused"
    elif report.unreadable:
        report.status = "unreadable"
    report.seconds = time.perf_counter() - begin
    return report


def _files(places: list[str], report: ImportReport) -> Iterator[tuple[str, bool]]:
    """Yield each archive file, and whether it lies where an export puts its entry and so is ours to remove."""
    for place in places:
        path = os.path.abspath(os.path.expanduser(place))
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                yield path, False
                continue
            names = sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problem = Unreadable(
                f"cannot look into the directory: {error.strerror}",
                path=path,
                hint="the job needs to read what was carried",
            )
            report.files.append(ImportedFile(path, "unreadable", error=problem.as_dict()))
            continue
        for name in names:
            below = os.path.join(path, name)
            if name.endswith(_SUFFIX):
                yield below, name == CARRIED
            elif os.path.lexists(os.path.join(below, CARRIED)) and not os.path.islink(below):
                yield os.path.join(below, CARRIED), True


def _import(
    request: ImportRequest, store: DirectoryStore, path: str, report: ImportReport, *, own: bool
) -> ImportedFile:
    file = ImportedFile(path, "miss")
    for turn in (1, 2):
        try:
            _import_once(request, store, file, report, follow=not own)
        except FileNotFoundError:
            file.status = "miss"
        except Unreadable as error:
            file.status, file.error = "unreadable", error.as_dict()
        except Refused as error:
            # Read once more before it is called damaged: a flipped bit in memory must not cost a good entry.
            if turn == 1:
                continue
            file.status, file.error = error.id, error.as_dict()  # type: ignore[assignment]
            if own and isinstance(error, (Damaged, Forged, Unsafe)):
                file.removed = _remove(path, report)
        break
    return file


def _remove(path: str, report: ImportReport) -> bool:
    try:
        os.unlink(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ALIAS_SUFFIX)
    except OSError as error:
        report.warnings.append(f"the refused file could not be removed ({error.strerror}): {path}")
        return False
    return True


def _import_once(
    request: ImportRequest, store: DirectoryStore, file: ImportedFile, report: ImportReport, *, follow: bool
) -> None:
    """Check one file and publish a copy of it. Raises Refused, Unreadable, FileNotFoundError; else as the import."""
    with open_archive(os.fsencode(file.path), store.trust, follow=follow) as archive:
        file.archive_bytes = archive.size
        alias = _take_alias(store, archive, file.path)
        seal = archive.seal
        identity = EntryIdentity(Key(seal.key), seal.platform)
        file.key, file.platform, file.identity = seal.key, str(seal.platform), seal.identity
        file.content_bytes, file.entry = seal.content_bytes, identity.file_name
        if not _wanted(request, seal.key):
            file.status = "other-key"
            return
        check_archive(archive)
        # Before it is copied: what is refused anyway takes no room, and is not left half in the store.
        check_frames(archive, worker_count(), request.progress)
        saved = SaveReport("saved", seal.key, identity.file_name, str(seal.platform))
        outcome: list[str] = []

        def work() -> None:
            with store.temporary(identity) as temp:
                take_room(store, temp, archive.size, min_free=request.min_free, make_room=None)
                path = os.fsencode(os.path.join(store.directory("tmp"), temp.name))
                try:
                    copy_checked(archive, temp, path, request.progress)
                except OSError as error:
                    raise store.explain(error, "write to") from None
                # First: without it the entry would be taken for one that is filed wrongly.
                if alias is not None:
                    store.keep_alias(identity.file_name, alias)
                done = store.publish(temp, identity, replace=request.force)
                if done == "exists" and not is_stored(store, identity, saved):
                    done = store.publish(temp, identity, replace=store.trust.required)
                outcome.append(done)

        save_once(
            store, identity, saved, work, force=request.force, wait_seconds=max(request.lock_timeout, 0.2)
        )
        report.warnings += [text for text in saved.warnings if text not in report.warnings]
        file.status = "imported" if outcome == ["published"] else "exists"
        if file.status == "imported":
            store.mark_used(identity.file_name)


def _take_alias(store: DirectoryStore, archive: Archive, path: str) -> bytes | None:
    """Give the entry the key of the alias that was carried with it, and return that; None without one of this entry.

    Raises Damaged, Forged, Untrusted for an alias that may not be used: the entry may not have that key then.
    """
    _ = archive.seal
    try:
        with read_errors(path):
            data = read_alias(path)
    except OSError:  # a link, a directory, a fifo
        raise Damaged(
            "what should be the entry's alias is no file", path=path + ALIAS_SUFFIX, rung="seal"
        ) from None
    if data is None:
        return None
    found = alias_for(archive, data, store.trust)
    if found is None or name_under(found[0], archive) == file_name_of(archive.seal):
        return None
    archive.file_as(found[0].key, found[0].family, found[0].created_ns)
    return data


def _wanted(request: ImportRequest, key: str) -> bool:
    return request.key is None or key == request.key or key.startswith(tuple(request.restore_keys))
