"""The meter of a run: how full the filesystems are, what is missing, what each rule freed. By statvfs, not by sums."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from cachekit.clean.goals import Need
from cachekit.clean.report import FilesystemReport
from cachekit.disk.filesystems import Filesystem
from cachekit.system.holders import Holders
from cachekit.system.settle import settle
from cachekit.system.space import Room

__all__ = ["Meter"]

_SETTLE_SECONDS = 5.0
#: Commands and engines do not say what they removed: a short wait for filesystems that show it late.
_SETTLE_UNKNOWN = 1.0
#: After a sync there is little left to wait for (xfs gives inodes back in the background).
_AFTER_SYNC = 0.2
#: These show what was freed at once.
_IMMEDIATE = frozenset({"ext2", "ext3", "ext4", "tmpfs", "ramfs"})
#: Less than this, or than a tenth of what was removed, may be missing without a doubt: others write too.
_TOLERANCE = 16 << 20


class Meter:
    """The filesystems of a run. ``measure`` looks again; everything else speaks of the last look."""

    def __init__(self, filesystems: Sequence[Filesystem], needs: Mapping[int, Need]) -> None:
        self._filesystems = list(filesystems)
        self._needs = needs
        self._credit: dict[int, int] = {}
        self._before: list[Room] = []
        #: What the rules so far removed, and what of it was seen to be free.
        self._removed = self._shown = 0
        self.start()

    def start(self) -> None:
        """Take what is free now as the beginning."""
        self.measure()
        self._before = [filesystem.room for filesystem in self._filesystems]

    def measure(self) -> None:
        """Look at all filesystems again; one that cannot be looked at stays as it was."""
        for filesystem in self._filesystems:
            try:
                filesystem.measure()
            except OSError:
                continue

    def need(self, filesystem: Filesystem) -> Need:
        """Return what a filesystem is to have free."""
        return self._needs.get(filesystem.room.device, Need())

    def short(self) -> list[Filesystem]:
        """Return the filesystems that have less than they need."""
        return [
            filesystem for filesystem in self._filesystems if not self.need(filesystem).met(filesystem.room)
        ]

    def short_devices(self) -> frozenset[int]:
        """Return the device numbers of those, and those of ``pool_of``."""
        short = self.short()
        return frozenset(item.room.device for item in short) | {item.pool for item in short}

    def short_rooms(self) -> list[Room]:
        """Return how full those are; all, if none is short (a dry run looks at everything then)."""
        return [filesystem.room for filesystem in self.short() or self._filesystems]

    def met(self, foreseen: int = 0) -> bool:
        """Return True if nothing is missing, or no more than the ``foreseen`` bytes (of a dry run)."""
        short = self.short()
        if not foreseen:
            return not short
        if any(self.need(filesystem).short_inodes(filesystem.room) for filesystem in short):
            return False  # bytes say nothing of them
        missing = sum(self.need(filesystem).short(filesystem.room) for filesystem in short)
        return missing <= foreseen

    def met_now(self) -> bool:
        """Look again and return True if nothing is missing."""
        self.measure()
        return not self.short()

    def used(self) -> int:
        """Return the bytes used on all filesystems together, after a new look.

        Used, not available: of the first gigabyte freed on a full ext4, the part kept for root shows in no one's hands.
        """
        self.measure()
        return sum(filesystem.room.used for filesystem in self._filesystems)

    def settle(self, before: int, removed: int | None, paths: Iterable[bytes]) -> bool:
        """Wait until what was ``removed`` shows (None: unknown); return False if it does not within five seconds.

        Where filesystems show it at once there is nothing to wait for: what is missing then, others have written, or
        hold open.
        """
        late = self._late(paths) if removed != 0 else []
        self._show(before, removed, late)
        if not late or not removed or self.met_now():
            return True
        for filesystem in late if self.unseen(before, removed) else ():
            settle(filesystem.path, lambda: self.unseen(before, removed) == 0, seconds=_SETTLE_SECONDS)
        return self._believe(removed, before - self.used()) or not self.short()

    def _late(self, paths: Iterable[bytes]) -> list[Filesystem]:
        return [item for item in self._touched(paths) if item.kind not in _IMMEDIATE]

    def _show(self, before: int, removed: int | None, late: list[Filesystem]) -> None:
        """Have filesystems show what was removed, or as much of it as they can a moment after a sync.

        However little it is: what does not show yet may be all that the goal lacks, and the next rule would go for it.
        """
        seconds = _SETTLE_UNKNOWN if removed is None else _SETTLE_SECONDS
        for filesystem in late:
            settle(
                filesystem.path,
                lambda: before - self.used() >= (removed or 1) or not self.short(),
                seconds=seconds,
                synced=_AFTER_SYNC,
            )

    def missing(self) -> int:
        """Return the bytes that are missing, by the last look; 0 also where only inodes are."""
        return sum(self.need(filesystem).short(filesystem.room) for filesystem in self.short())

    def watch(self, before: int, paths: Iterable[bytes]) -> Callable[[int], bool]:
        """Return a function that says, told the bytes removed since ``before``, whether nothing is missing any more.

        Where freed space shows late it is waited for when that much should be enough, and then ever more seldom.
        """
        late = self._late(paths)
        due = self.missing()

        def enough(removed: int) -> bool:
            nonlocal due
            if not self.met_now() and removed >= due:
                due = 2 * removed
                self._show(before, removed, late)
            return not self.short()

        return enough

    def _believe(self, removed: int, freed: int) -> bool:
        """Return whether enough shows of what this rule removed, and of all that was removed where it shows late.

        Half of it is proof that the filesystem shows things; the rest others may have taken.
        """
        self._removed += removed
        self._shown += freed
        return self.owed <= max(_TOLERANCE, self._removed // 2) and removed - freed <= max(
            _TOLERANCE, removed // 2
        )

    @property
    def owed(self) -> int:
        """Bytes that were removed so far from filesystems that show it late, and are not seen to be free."""
        return max(0, self._removed - self._shown)

    def unseen(self, before: int, removed: int) -> int:
        """Return how many of the ``removed`` bytes do not show; 0 if that may be chance, since others write too."""
        missing = min(removed, removed - (before - self.used()))
        return missing if missing > max(_TOLERANCE, removed // 10) else 0

    def _touched(self, paths: Iterable[bytes]) -> list[Filesystem]:
        """Return the filesystems that the paths lay on; the first one if none can be told any more."""
        devices = set()
        for path in paths:
            parent = os.path.dirname(path)
            try:
                devices.add(os.stat(path if os.path.isdir(path) else parent).st_dev)
            except OSError:
                continue
        return [item for item in self._filesystems if item.room.device in devices] or self._filesystems[:1]

    def credit(self, freed: int, paths: Iterable[bytes]) -> None:
        """Note what a rule freed, so that the rest of the change can be called unexplained."""
        touched = self._touched(paths)
        if touched:
            device = touched[0].room.device
            self._credit[device] = self._credit.get(device, 0) + freed

    def freed(self) -> int:
        """Return how many bytes fewer are used than at the beginning."""
        return sum(
            before.used - filesystem.room.used
            for before, filesystem in zip(self._before, self._filesystems, strict=True)
        )

    def open_deleted(self, holders: Holders) -> int:
        """Return the bytes of removed files that processes still have open, on the filesystems that are short."""
        return sum(holders.open_deleted(device) for device in self.short_devices())

    def reports(self) -> list[FilesystemReport]:
        """Return each filesystem before and after."""
        lines = []
        for before, filesystem in zip(self._before, self._filesystems, strict=True):
            line = FilesystemReport.of(filesystem, before, self.need(filesystem))
            change = before.used - filesystem.room.used
            line.unexplained = change - self._credit.get(filesystem.room.device, 0)
            lines.append(line)
        return lines
