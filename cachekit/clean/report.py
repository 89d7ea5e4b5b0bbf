"""What a clean reports: each rule's outcome, each filesystem before and after. One value, rendered by ``cli``."""

from __future__ import annotations

from dataclasses import dataclass, field

from cachekit.clean.goals import Need
from cachekit.clean.model import Result
from cachekit.disk.filesystems import Filesystem
from cachekit.system.space import Room

__all__ = ["CleanReport", "Consumer", "FilesystemReport", "RuleReport"]

#: How many of the things that stayed are named.
MAX_LEFT = 20


@dataclass(slots=True)
class RuleReport:
    """One rule's outcome. ``freed``: bytes by statvfs; ``removed``: what the removed things had taken, None if unknown.

    ``expected``: what the rule was expected to free, ``measured`` if earlier runs said so; in a dry run what it would.
    ``left``: what stayed and why, at most 20 of ``left_count``.
    """

    id: str
    category: str
    title: str
    result: Result
    reason: str = ""
    freed: int = 0
    removed: int | None = None
    items: int = 0
    seconds: float = 0.0
    expected: int = 0
    measured: bool = False
    left: list[dict[str, object]] = field(default_factory=list)
    left_count: int = 0

    @property
    def rate(self) -> float:
        """Bytes freed a second; 0 if nothing was."""
        return max(0, self.freed) / self.seconds if self.seconds else 0.0

    def leave(self, left: list[tuple[bytes, str]]) -> None:
        """Note what stayed."""
        self.left_count += len(left)
        room = MAX_LEFT - len(self.left)
        self.left += [{"path": path, "reason": reason} for path, reason in left[: max(0, room)]]


@dataclass(slots=True)
class FilesystemReport:
    """One filesystem before and after. Bytes and inodes available to ordinary users; ``need`` 0 where nothing is asked.

    ``unexplained``: how much more (or, negative, less) became free than the rules freed: others write and remove too.
    """

    mount: bytes
    kind: str
    why: list[str]
    total: int
    before: int
    after: int
    used_before: int
    used_after: int
    need: int
    need_inodes: int
    inodes_before: int | None
    inodes_after: int | None
    met: bool
    unexplained: int = 0

    @property
    def short_by(self) -> int:
        """Bytes still missing."""
        return max(0, self.need - self.after)

    @classmethod
    def of(cls, filesystem: Filesystem, before: Room, need: Need) -> FilesystemReport:
        """Compare ``before`` with what ``filesystem`` says now."""
        after = filesystem.room
        return cls(
            filesystem.mount,
            filesystem.kind,
            list(filesystem.why),
            after.total,
            before.available,
            after.available,
            before.used,
            after.used,
            need.available,
            need.inodes,
            before.inodes_free,
            after.inodes_free,
            need.met(after),
        )


@dataclass(slots=True)
class Consumer:
    """A directory that takes much of a filesystem, in allocated bytes."""

    path: bytes
    size: int
    files: int


@dataclass(slots=True)
class CleanReport:
    """What a clean did. ``already_met``: there was nothing to do, and nothing was touched.

    ``waiting``: why it stopped before the goal although rules were left: the filesystem has not shown what was removed.
    ``consumers``: the largest directories that remain, if the goal was not met.
    """

    stage: str
    plan: str
    plan_why: str
    goal: str
    dry_run: bool = False
    met: bool = False
    already_met: bool = False
    waiting: str = ""
    freed: int = 0
    seconds: float = 0.0
    rules: list[RuleReport] = field(default_factory=list)
    filesystems: list[FilesystemReport] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
