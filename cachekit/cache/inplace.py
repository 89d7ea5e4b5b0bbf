"""Restore in place: file by file over the old tree, for disks that cannot hold old and new beside each other.

What is right already (``present``) is left alone. Everything that will be written was checked before. The target is
marked as incomplete first; a killed run leaves the mark, saves of the target refuse, and the next restore goes on.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from cachekit.archive.extract import directory_facts, extract
from cachekit.archive.format import DIRECTORY, FILE, HARDLINK, LINK_KINDS, SYMLINK, parts
from cachekit.archive.read import Archive
from cachekit.archive.unpack import Destination, WriteOptions
from cachekit.cache.present import ATTRIBUTES, WRONG, Presence
from cachekit.cache.space import require
from cachekit.model import JOURNAL_NAME, STAGED, STAGING_PREFIX, Target
from cachekit.system.files import exists, open_directory, remove_tree
from cachekit.system.space import free_space
from cachekit.system.steps import step
from cachekit.system.workers import worker_count
from cachekit.targets.finish import finish
from cachekit.targets.merge import merge_batch
from cachekit.targets.staging import make_staging

__all__ = ["LEAST_BATCH_BYTES", "needed_frames", "restore_in_place", "room_in_place"]

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


def needed_frames(archive: Archive, presences: Iterable[Presence]) -> list[int]:
    """Return the frames that hold what is to be written, ascending, and with them the one that ends the archive."""
    index = archive.index
    frames: set[int] = set()
    for presence in presences:
        for row in presence.rows:
            if presence.states[row] == WRONG and index.kinds[row] == FILE:
                frames.update(range(index.frames[row], index.frames[row] + parts(index.sizes[row])))
    if frames:
        frames.add(index.frame_count - 1)
    return sorted(frames)


def one_batch(archive: Archive, presence: Presence) -> bool:
    """Return True if all that is to be written is little enough to be staged at once."""
    index, states = archive.index, presence.states
    size = 0
    for row in presence.rows:
        if states[row] == WRONG and index.kinds[row] == FILE:
            size += index.sizes[row] + _FILE_BYTES
            if size >= BATCH_BYTES:
                return False
    return True


def room_in_place(
    archive: Archive,
    destination: Destination,
    place: bytes,
    block_size: int,
    presence: Presence,
    *,
    remove_extras: bool,
) -> Callable[[int], int]:
    """Return what tells, for a size of batches, how many bytes must be free to restore a target in place.

    Old files make room only for the files that take their place, and only when their batch is complete; files that are
    not in the entry make room if they are to be removed first.
    """
    index = archive.index
    steps: list[tuple[int, int, int]] = []
    extras = _extras(archive, destination, place, presence) if remove_extras and presence.further else 0
    for row in presence.rows:
        kind, size = index.kinds[row], index.sizes[row]
        if presence.states[row] != WRONG or kind == HARDLINK:
            continue
        staged = destination.place(index.paths[row])
        assert staged is not None
        new = -(-size // block_size) if kind == FILE else kind == DIRECTORY
        new += len(index.sparse[row][1]) if row in index.sparse else 0
        old = 0
        with contextlib.suppress(OSError):
            info = os.lstat(os.path.join(place, staged[len(STAGED) + 1 :]) if staged != STAGED else place)
            if kind == DIRECTORY or info.st_nlink == 1:  # a file with further names keeps its room
                old = info.st_blocks * 512
        steps.append((new * block_size, old, size + _FILE_BYTES if kind == FILE else 0))

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


def _touched(archive: Archive, destination: Destination, presence: Presence) -> set[bytes]:
    """Return the directories, relative to the target, that are not right or will have names changed in them."""
    index = archive.index
    touched = set()
    for row in presence.rows:
        if presence.states[row] == WRONG:
            staged = destination.place(index.paths[row])
            assert staged is not None
            relative = staged[len(STAGED) + 1 :]
            if index.kinds[row] == DIRECTORY:
                touched.add(relative)
            # Those above as well: they may have to be opened up on the way.
            while relative and (relative := relative.rpartition(b"/")[0]) not in touched:
                touched.add(relative)
    return touched


def _extras(archive: Archive, destination: Destination, place: bytes, presence: Presence) -> int:
    """Return the bytes on disk of what the entry does not have."""
    own = 0
    for row in presence.rows:
        staged = destination.place(archive.index.paths[row])
        assert staged is not None
        with contextlib.suppress(OSError):
            info = os.lstat(os.path.join(place, staged[len(STAGED) + 1 :]) if staged != STAGED else place)
            if archive.index.kinds[row] == DIRECTORY or info.st_nlink == 1:
                own += info.st_blocks * 512
    return max(0, _allocated(place) - own)


def restore_in_place(
    archive: Archive,
    target: Target,
    place: bytes,
    options: WriteOptions,
    presence: Presence,
    *,
    checked: bool,
    remove_extras: bool,
    durable: bool,
    min_free: int,
) -> int:
    """Make the target what the entry says, replacing only what differs; return how many files were right already.

    ``checked`` if the ``needed_frames`` were; else what is written must be ``one_batch``, which is checked while it is
    staged, and ``remove_extras`` not asked. Raises Refused and NoSpace before the first change, OSError of the
    filesystem later (the target then stays marked as incomplete).
    """
    if presence.complete and not (remove_extras and presence.further):
        return presence.files(archive.index)
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
            room = room_in_place(
                archive, destination, place, free.block_size, presence, remove_extras=remove_extras
            )
            need = room(LEAST_BATCH_BYTES)
            require(free, need, 0, min_free=min_free, what="restore in place", path=place)
            batch_bytes = BATCH_BYTES
            while batch_bytes > LEAST_BATCH_BYTES and room(batch_bytes) + min_free > free.available:
                batch_bytes >>= 1
            touched = None if remove_extras else _touched(archive, destination, presence)
            staging.write_facts(
                [
                    fact
                    for fact in directory_facts(archive, destination, options)
                    if (fact[0] or target.path != b".") and (touched is None or fact[0] in touched)
                ]
            )
            work = _InPlace(archive, destination, place, options, presence)
            early: list[list[int]] = []
            if not checked and batch_bytes < BATCH_BYTES:
                extract(archive, [], options, worker_count(), frames=needed_frames(archive, [presence]))
            elif not checked:
                early = list(work.batches(BATCH_BYTES))
                for batch in early:
                    work.stage(batch)
        except BaseException:
            staging.abandon()
            raise
        staging.journal.same_owner = options.same_owner
        staging.journal.phase = "in-place"
        staging.journal.write(staging.fd)
        step("inplace.marked")
        if remove_extras:
            work.remove_extras()
        work.make_directories()
        for batch in early or work.batches(batch_bytes):
            if not early:
                work.stage(batch)
            _merge(staging, place)
            step("inplace.first-file")
        work.set_attributes()
        work.make_links(staging.fd)
        step("inplace.files-done")
        os.mkdir(STAGED, 0o700, dir_fd=staging.fd)
        info = os.lstat(place)
        staging.journal.new = [info.st_dev, info.st_ino]  # commit finds the new tree in its place
        staging.journal.phase = "committing"
        staging.journal.write(staging.fd)
        finish(staging, durable=durable, same_owner=options.same_owner)
        return presence.files(archive.index)
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
        self,
        archive: Archive,
        destination: Destination,
        place: bytes,
        options: WriteOptions,
        presence: Presence,
    ) -> None:
        self._archive = archive
        self._index = archive.index
        self._presence = presence
        self._destination = destination
        self._place = place
        self._options = options

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

    def _wrong(self, kinds: frozenset[int]) -> Iterator[tuple[int, bytes]]:
        """Yield row and path of the members of these kinds that are not right, in order."""
        index, states = self._index, self._presence.states
        for row in self._presence.rows:
            if states[row] == WRONG and index.kinds[row] in kinds:
                path = self._path(row)
                assert path is not None
                yield row, path

    def make_directories(self) -> None:
        """Make the entry's directories, taking away what is none in their place."""
        for _, path in self._wrong(frozenset({DIRECTORY})):
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
        # Names will change in directories that are right as they are.
        for _, path in self._wrong(frozenset({FILE, SYMLINK, HARDLINK})):
            with contextlib.suppress(FileNotFoundError):
                parent = os.path.dirname(path)
                _open_up(parent, os.lstat(parent))

    def batches(self, limit: int) -> Iterator[list[int]]:
        """Yield rows of files that are not right, in order, ``limit`` bytes and the file that exceeds it at a time."""
        batch: list[int] = []
        size = 0
        for row, _ in self._wrong(frozenset({FILE})):
            batch.append(row)
            size += self._index.sizes[row] + _FILE_BYTES
            if size >= limit:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def stage(self, batch: list[int]) -> None:
        """Write these files into staging, checking the frames in which they lie, and the one that ends the archive."""
        index = self._index
        frames = {
            frame
            for row in batch
            for frame in range(index.frames[row], index.frames[row] + parts(index.sizes[row]))
        }
        frames.add(index.frame_count - 1)
        limited = replace(self._options, wanted=frozenset(batch))
        extract(self._archive, [self._destination], limited, worker_count(), frames=sorted(frames))

    def set_attributes(self) -> None:
        """Give files with the right content the mode, owner and time that they lack."""
        index, options = self._index, self._options
        for row in self._presence.rows:
            if self._presence.states[row] != ATTRIBUTES:
                continue
            path = self._path(row)
            assert path is not None
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                info = os.fstat(fd)
                if options.same_owner:
                    os.fchown(fd, index.uids[row], index.gids[row])
                mode = options.mode(index.modes[row])
                if (
                    stat.S_IMODE(info.st_mode) != mode or mode & 0o6000
                ):  # a change of owner takes these bits away
                    os.fchmod(fd, mode)
                if info.st_mtime_ns != index.mtimes[row]:
                    os.utime(fd, ns=(info.st_atime_ns, index.mtimes[row]))
            finally:
                os.close(fd)

    def make_links(self, staging_fd: int) -> None:
        """Symlinks, then hard links, each made in staging and renamed over what is there."""
        index = self._index
        if not index.links:
            return
        ordinals = index.ordinals(LINK_KINDS)
        wrong = sorted(self._wrong(LINK_KINDS), key=lambda pair: index.kinds[pair[0]] == HARDLINK)
        for row, path in wrong:
            link = index.links[ordinals[row]]
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
