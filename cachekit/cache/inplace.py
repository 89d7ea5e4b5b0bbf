"""Restore in place: file by file over the old tree, for disks that cannot hold old and new beside each other.

The whole entry was checked before. The target is marked as incomplete first; a killed run leaves the mark, saves of the
target refuse, and the next restore goes on: what is right already is left alone.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator

from cachekit.archive.content import content_digest
from cachekit.archive.extract import directory_facts, extract
from cachekit.archive.format import DIRECTORY, FILE, HARDLINK, SYMLINK, parts
from cachekit.archive.read import Archive
from cachekit.archive.unpack import Destination, WriteOptions
from cachekit.cache.space import require
from cachekit.model import JOURNAL_NAME, STAGED, STAGING_PREFIX, Target
from cachekit.system.files import exists, open_directory, remove_tree
from cachekit.system.space import free_space
from cachekit.system.steps import step
from cachekit.system.workers import worker_count
from cachekit.targets.finish import finish
from cachekit.targets.merge import merge_batch
from cachekit.targets.staging import make_staging

__all__ = ["LEAST_BATCH_BYTES", "restore_in_place", "room_in_place"]

#: So many bytes of new files stand beside the old ones at a time; less where there is less room, down to the least.
BATCH_BYTES = 32 << 20
LEAST_BATCH_BYTES = 1 << 20
#: What a file counts in a batch beside its bytes: a block that is not full, so that tiny files do not take megabytes.
_FILE_BYTES = 4096


def _allocated(path: bytes) -> int:
    """Return the bytes on disk of everything below ``path``; 0 if it is absent. Unreadable parts count nothing."""
    try:
        info = os.lstat(path)
    except OSError:
        return 0
    total = info.st_blocks * 512
    if not stat.S_ISDIR(info.st_mode):
        return total
    stack = [path]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
    return total


def room_in_place(
    archive: Archive, destination: Destination, place: bytes, block_size: int, *, remove_extras: bool
) -> Callable[[int], int]:
    """Return what tells, for a size of batches, how many bytes must be free to restore a target in place.

    Old files make room only for the files that take their place, and only when their batch is complete; files that are
    not in the entry make room if they are to be removed first.
    """
    index = archive.index
    steps: list[tuple[int, int, int]] = []
    for row, (path, kind, size) in enumerate(zip(index.paths, index.kinds, index.sizes, strict=True)):
        staged = destination.place(path)
        if staged is None or kind == HARDLINK:
            continue
        new = -(-size // block_size) if kind == FILE else kind == DIRECTORY
        new += len(index.sparse[row][1]) if row in index.sparse else 0
        old = 0
        with contextlib.suppress(OSError):
            info = os.lstat(os.path.join(place, staged[len(STAGED) + 1 :]) if staged != STAGED else place)
            if kind == DIRECTORY or info.st_nlink == 1:  # a file with further names keeps its room
                old = info.st_blocks * 512
        steps.append((new * block_size, old, size + _FILE_BYTES if kind == FILE else 0))
    extras = max(0, _allocated(place) - sum(old for _, old, _ in steps)) if remove_extras else 0

    def room(batch_bytes: int) -> int:
        most = before = -extras
        batch = come = gone = 0
        for new, old, weight in steps:
            batch += weight
            come += new
            gone += old
            most = max(most, before + come)
            if batch >= batch_bytes:
                before += come - gone
                batch = come = gone = 0
        return max(0, most)

    return room


def restore_in_place(
    archive: Archive,
    target: Target,
    place: bytes,
    options: WriteOptions,
    *,
    remove_extras: bool,
    durable: bool,
    min_free: int,
) -> int:
    """Make the target what the entry says, replacing only what differs; return how many files were right already.

    Raises NoSpace before the first change if even this way does not fit, OSError of the filesystem later (the target
    then stays marked as incomplete).
    """
    entry = {
        "path": archive.path.decode("latin-1"),
        "key": archive.seal.key,
        "identity": archive.seal.identity,
        "target_root": target.root,
        "target_path": target.path.decode("latin-1"),
        "trust": archive.trust.mode,
        "namespace": archive.trust.namespace or "",
        "options": " ".join(
            name
            for name, asked in (
                ("remove-extras", remove_extras),
                ("same-owner", options.same_owner),
                ("keep-setuid", options.keep_setuid),
            )
            if asked
        ),
    }
    staging = make_staging(place, "merge", entry)
    try:
        destination = Destination(target, staging.fd)
        try:
            free = free_space(staging.fd)
            room = room_in_place(archive, destination, place, free.block_size, remove_extras=remove_extras)
            need = room(LEAST_BATCH_BYTES)
            require(free, need, 0, min_free=min_free, what="restore in place", path=place)
            batch_bytes = BATCH_BYTES
            while batch_bytes > LEAST_BATCH_BYTES and room(batch_bytes) + min_free > free.available:
                batch_bytes >>= 1
            staging.write_facts(
                [
                    fact
                    for fact in directory_facts(archive, destination, options)
                    if fact[0] or target.path != b"."
                ]
            )
        except BaseException:
            staging.abandon()
            raise
        staging.journal.same_owner = options.same_owner
        staging.journal.phase = "in-place"
        staging.journal.write(staging.fd)
        step("inplace.marked")
        work = _InPlace(archive, destination, place, options)
        if remove_extras:
            work.remove_extras()
        work.make_directories()
        right = 0
        for batch in work.batches(batch_bytes):
            right += work.kept
            work.kept = 0
            if batch:
                frames = archive.index.frames
                last = frames[batch[-1]] + parts(archive.index.sizes[batch[-1]])
                limited = WriteOptions(
                    options.same_owner, options.keep_setuid, frozenset(batch), options.atime_ns
                )
                extract(archive, [destination], limited, worker_count(), span=range(frames[batch[0]], last))
                _merge(staging, place)
                step("inplace.first-file")
        work.make_links(staging.fd)
        step("inplace.files-done")
        os.mkdir(STAGED, 0o700, dir_fd=staging.fd)
        info = os.lstat(place)
        staging.journal.new = [info.st_dev, info.st_ino]  # commit finds the new tree in its place
        staging.journal.phase = "committing"
        staging.journal.write(staging.fd)
        finish(staging, durable=durable, same_owner=options.same_owner)
        return right
    except OSError:
        if staging.journal.phase == "in-place":
            with contextlib.suppress(OSError):  # what is staged would take the room that the next run needs
                remove_tree(STAGED, dir_fd=staging.fd)
        raise
    finally:
        staging.close()


def _merge(staging: object, place: bytes) -> None:
    from cachekit.targets.staging import Staging

    assert isinstance(staging, Staging)
    if stat.S_ISDIR(os.lstat(STAGED, dir_fd=staging.fd).st_mode):
        merge_batch(staging)
    else:
        if exists(place) and stat.S_ISDIR(os.lstat(place).st_mode):
            remove_tree(place)
        os.rename(STAGED, staging.name, src_dir_fd=staging.fd, dst_dir_fd=staging.parent_fd)


def _open_up(path: bytes, info: os.stat_result) -> None:
    """Give ourselves all permissions in a directory of ours."""
    if stat.S_ISDIR(info.st_mode) and info.st_mode & 0o700 != 0o700 and info.st_uid == os.geteuid():
        os.chmod(path, stat.S_IMODE(info.st_mode) | 0o700)


def _is_staging(path: bytes) -> bool:
    name = os.path.basename(path)
    return name.startswith(STAGING_PREFIX) and exists(os.path.join(path, os.fsencode(JOURNAL_NAME)))


class _InPlace:
    """The comparison of an entry's target with what is there."""

    def __init__(
        self, archive: Archive, destination: Destination, place: bytes, options: WriteOptions
    ) -> None:
        self._index = archive.index
        self._destination = destination
        self._place = place
        self._options = options
        self.kept = 0

    def _path(self, row: int) -> bytes | None:
        """Return the member's path in the target; None if it belongs to another target."""
        staged = self._destination.place(self._index.paths[row])
        if staged is None:
            return None
        relative = staged[len(STAGED) + 1 :]
        return os.path.join(self._place, relative) if relative else self._place

    def remove_extras(self) -> None:
        """Remove what the entry does not have. Staging directories and mount points stay."""
        keep = {path for row in range(len(self._index)) if (path := self._path(row)) is not None}
        keep.add(self._place)
        stack = [self._place]
        while stack:
            directory = stack.pop()
            with contextlib.suppress(NotADirectoryError, FileNotFoundError):
                _open_up(directory, os.lstat(directory))
            with (
                contextlib.suppress(NotADirectoryError, FileNotFoundError),
                os.scandir(directory) as entries,
            ):
                for entry in entries:
                    if entry.path in keep:
                        if entry.is_dir(follow_symlinks=False):
                            stack.append(entry.path)
                    elif not _is_staging(entry.path):
                        remove_tree(entry.path)

    def make_directories(self) -> None:
        """Make the entry's directories, taking away what is none in their place."""
        index = self._index
        for row, kind in enumerate(index.kinds):
            if kind != DIRECTORY or (path := self._path(row)) is None:
                continue
            try:
                info = os.lstat(path)
            except FileNotFoundError:
                os.mkdir(path, 0o700)
                continue
            if not stat.S_ISDIR(info.st_mode):
                os.unlink(path)
                os.mkdir(path, 0o700)
            else:
                _open_up(path, info)

    def batches(self, limit: int) -> Iterator[list[int]]:
        """Yield rows of files that are not right, in order, ``limit`` bytes and the file that exceeds it at a time.

        The others are counted in ``kept``.
        """
        index = self._index
        batch: list[int] = []
        size = 0
        ordinal = 0
        for row, kind in enumerate(index.kinds):
            if kind != FILE:
                continue
            digest = bytes(index.contents[ordinal : ordinal + 16])
            ordinal += 16
            path = self._path(row)
            if path is None:
                continue
            if self._is_right(row, path, digest):
                self.kept += 1
                continue
            batch.append(row)
            size += index.sizes[row] + _FILE_BYTES
            if size >= limit:
                yield batch
                batch, size = [], 0
        yield batch

    def _is_right(self, row: int, path: bytes, digest: bytes) -> bool:
        """Compare by content, never by time; mode and mtime of a right file are set straight on the way."""
        index = self._index
        if row in index.sparse:
            return False
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size != index.sizes[row] or info.st_nlink != 1:
                return False
            if content_digest(fd, info.st_size) != digest:
                return False
            mode = self._options.mode(index.modes[row])
            if stat.S_IMODE(info.st_mode) != mode:
                os.fchmod(fd, mode)
            if self._options.same_owner:
                os.fchown(fd, index.uids[row], index.gids[row])
            if info.st_mtime_ns != index.mtimes[row]:
                os.utime(fd, ns=(info.st_atime_ns, index.mtimes[row]))
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def make_links(self, staging_fd: int) -> None:
        """Symlinks, then hard links, each made in staging and renamed over what is there."""
        index = self._index
        rows = [row for row, kind in enumerate(index.kinds) if kind in (SYMLINK, HARDLINK)]
        linked = sorted(
            zip(rows, index.links, strict=True), key=lambda pair: index.kinds[pair[0]] == HARDLINK
        )
        for row, link in linked:
            path = self._path(row)
            if path is None:
                continue
            if index.kinds[row] == SYMLINK:
                os.symlink(link, b"link", dir_fd=staging_fd)
                if self._options.same_owner:
                    uid, gid = index.uids[row], index.gids[row]
                    os.chown(b"link", uid, gid, dir_fd=staging_fd, follow_symlinks=False)
                os.utime(
                    b"link",
                    ns=(self._options.atime_ns, index.mtimes[row]),
                    dir_fd=staging_fd,
                    follow_symlinks=False,
                )
            else:
                source = self._destination.place(link)
                assert source is not None
                first = os.path.join(self._place, source[len(STAGED) + 1 :])
                os.link(first, b"link", dst_dir_fd=staging_fd, follow_symlinks=False)
            if exists(path) and stat.S_ISDIR(os.lstat(path).st_mode):
                remove_tree(path)
            parent_fd = open_directory(os.path.dirname(path), follow=True)
            try:
                os.rename(b"link", os.path.basename(path), src_dir_fd=staging_fd, dst_dir_fd=parent_fd)
                # Renaming one name of a file over another name of it does nothing, and leaves both.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(b"link", dir_fd=staging_fd)
            finally:
                os.close(parent_fd)
