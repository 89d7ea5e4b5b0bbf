"""What init knows, what it sees in a repository, and what it proposes. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CIS", "Also", "Ci", "FileChange", "Listing", "Proposal", "ProposedCache", "Tool"]

Ci = Literal["github", "gitlab", "jenkins", "systemd", "cron"]
CIS: tuple[Ci, ...] = ("github", "gitlab", "jenkins", "systemd", "cron")


@dataclass(frozen=True, slots=True)
class Also:
    """A further path of a tool, cached if there is a file of this name, or a lock file that holds this text."""

    path: str
    file: str | None = None
    lock_text: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool of which init knows what to cache: known.toml explains each value."""

    name: str
    locks: tuple[str, ...] = ()
    lock_pattern: str | None = None
    lock_with: str | None = None
    lock_without: str | None = None
    needs: tuple[str, ...] = ()
    needs_dockerfile: bool = False
    manifests: tuple[str, ...] = ()
    without_lock: str = ""
    mentions: tuple[str, ...] = ()
    kind: str | None = None
    paths: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    also: tuple[Also, ...] = ()
    variables: tuple[str, ...] = ()
    moved_by: tuple[str, ...] = ()
    ask: str = ""
    build: str | None = None
    never: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository as init sees it: names relative to its root, in order, and what some of the files hold."""

    files: tuple[str, ...]
    texts: Mapping[str, str] = field(default_factory=dict)

    def named(self, name: str) -> list[str]:
        """Return the files of this name, in any directory."""
        return [file for file in self.files if file.rpartition("/")[2] == name]


@dataclass(frozen=True, slots=True)
class ProposedCache:
    """A cache of cachekit.toml, the lock files that its key follows, and what to say about it."""

    name: str
    key: str
    restore_keys: tuple[str, ...]
    paths: tuple[str, ...]
    excludes: tuple[str, ...]
    kind: str | None
    locks: tuple[str, ...]
    never: str
    source: str


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file as it is (None: it is not there) and as it shall be."""

    path: str
    old: str | None
    new: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """What init would do. ``notes`` are sentences for people: what is missing, what is elsewhere, what else."""

    ci: Ci | None
    caches: tuple[ProposedCache, ...]
    builds: tuple[str, ...]
    notes: tuple[str, ...]
