"""Frozen values of the cleaner: plans, rules, goals, what was found and what was done. No I/O in here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

__all__ = [
    "CATEGORIES",
    "DOCKER_ACTIONS",
    "STAGES",
    "Amount",
    "Category",
    "Command",
    "Conditions",
    "Docker",
    "DockerAction",
    "Done",
    "Found",
    "Goal",
    "Paths",
    "Plan",
    "Result",
    "Rule",
    "Stage",
    "StagePlan",
    "State",
    "Unit",
]

#: pre: before a job. post: after its tests, before the cache is saved. emergency: the disk is full. cron: between jobs.
Stage = Literal["pre", "post", "emergency", "cron"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Category = Literal[
    "temp", "toolchain", "logs", "test-data", "docker", "package-cache", "runner", "build-cache"
]
CATEGORIES: tuple[Category, ...] = get_args(Category)

DockerAction = Literal["containers", "dangling-images", "images", "build-cache", "volumes"]
DOCKER_ACTIONS: tuple[DockerAction, ...] = get_args(DockerAction)


@dataclass(frozen=True, slots=True)
class Amount:
    """A part of a filesystem: bytes (or inodes) if ``percent`` is None, else that share of its size."""

    number: int = 0
    percent: float | None = None

    def of(self, total: int) -> int:
        """Return the amount on a filesystem with ``total`` bytes (or inodes)."""
        return self.number if self.percent is None else int(total * self.percent / 100)


@dataclass(frozen=True, slots=True)
class Goal:
    """When a clean has done enough, for each filesystem.

    ``free``: so much is to be available. ``below`` and ``until``, in percent used: nothing is done while use is at most
    ``below``; above it, cleaning goes on down to ``until`` (high and low watermark). ``inodes``: so many
    are to be free.
    """

    free: Amount | None = None
    below: float | None = None
    until: float | None = None
    inodes: Amount | None = None


@dataclass(frozen=True, slots=True)
class Conditions:
    """When a rule applies, and to which of its units. Ages in seconds, sizes in allocated bytes.

    A unit is one match of a pattern: it goes whole or not at all. Its age is that of the newest thing in it.
    """

    older: float | None = None
    larger: int | None = None
    #: The newest so many units stay.
    keep: int | None = None
    #: Any of these (see ``environment.Environment.names``), for example github-hosted; empty for everywhere.
    environment: tuple[str, ...] = ()
    #: Any of these runner images, by the start of $ImageOS, for example ubuntu24; empty for all.
    image: tuple[str, ...] = ()
    #: Only while less than this is free.
    free_below: Amount | None = None
    #: Only while no job runs in the runner's directory that the unit belongs to.
    idle_runner: bool = False
    #: Not what a symlink in the same directory points to: the version in use.
    unlinked: bool = False
    #: Only what git ignores: what the repository tracks, or could, stays.
    git_ignored: bool = False


@dataclass(frozen=True, slots=True)
class Paths:
    """Files and directories: patterns with ``*``, ``?``, ``[]`` and ``**``, ``~`` and ``$NAME``.

    ``exclude``: names, or paths with the same signs, that stay. ``within``: the directories that a unit must lie in,
    links resolved; if empty, what stands in a pattern before its first sign.
    """

    patterns: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    within: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """A program that cleans up after itself. ``timeout`` in seconds; ``frees``: the directories that it empties."""

    arguments: tuple[str, ...]
    timeout: float = 120.0
    frees: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Docker:
    """Something that the Docker engine does. ``timeout`` in seconds for each call.

    ``containers``: those stopped for longer than ``older``. ``dangling-images``: those without a name.
    ``images``: the least recently used ones, unused for longer than ``older``, that no container references.
    ``build-cache``: BuildKit's, down to ``reserved`` / ``max_used`` / up to ``min_free`` bytes.
    ``volumes``: anonymous ones that no container uses.
    """

    action: DockerAction
    older: float = 0.0
    reserved: int | None = None
    max_used: int | None = None
    min_free: int | None = None
    timeout: float = 120.0


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing to clean. ``expect_bytes`` and ``expect_seconds`` are the prior until the ledger knows better.

    ``tools``: what no longer works afterwards, for ``--keep`` and inferred keeps. ``root``: only root can do it.
    ``background``: nothing that a job starts with depends on it, so it may go on beside the job.
    """

    id: str
    category: Category
    target: Paths | Command | Docker
    title: str = ""
    when: Conditions = Conditions()
    expect_bytes: int = 100 << 20
    expect_seconds: float = 1.0
    tools: tuple[str, ...] = ()
    root: bool = False
    background: bool = False
    line: int = 0


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What a stage does: its rules by id, in the author's order, and the goal unless the caller has one."""

    rules: tuple[str, ...] = ()
    goal: Goal | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan file. ``source`` is its path, or the name of a shipped one."""

    name: str
    source: str
    title: str
    rules: Mapping[str, Rule]
    stages: Mapping[Stage, StagePlan]

    def of_stage(self, stage: Stage) -> Iterator[Rule]:
        """Yield the rules of a stage in the author's order."""
        plan = self.stages.get(stage)
        for name in plan.rules if plan is not None else ():
            yield self.rules[name]


@dataclass(slots=True)
class Unit:
    """One thing that goes whole or not at all: a path, an image, a container.

    ``size`` in allocated bytes and ``newest_ns`` (since 1970) are None where nobody had to look.
    """

    name: bytes
    size: int | None = None
    newest_ns: int | None = None
    #: What the action needs to find it again (an image id); not shown.
    handle: str = ""


#: ready: there is something to do. The others are why there is nothing.
State: TypeAlias = Literal["ready", "stale", "not-applicable", "skipped", "blocked"]


@dataclass(slots=True)
class Found:
    """What a look at one rule's target found, before anything is changed.

    ``path``: a place on the filesystem that the rule frees (None: unknown). ``left``: units that stay, with the reason.
    ``size``: allocated bytes of the units, if all were measured.
    """

    state: State
    reason: str = ""
    units: list[Unit] = field(default_factory=list)
    left: list[tuple[bytes, str]] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)

    @property
    def size(self) -> int | None:
        """Allocated bytes of all units, None unless each is known."""
        sizes = [unit.size for unit in self.units if unit.size is not None]
        return sum(sizes) if len(sizes) == len(self.units) else None


@dataclass(slots=True)
class Done:
    """What carrying out one rule did. ``size``: bytes of what was removed as its owner counts them, None if unknown.

    ``items``: names, images, containers. ``left``: what stayed although it was to go, with the reason.
    """

    items: int = 0
    size: int | None = None
    left: list[tuple[bytes, str]] = field(default_factory=list)
    #: It did not do what it should: a command's exit code, a timeout.
    problem: str = ""
    seconds: float = 0.0


#: freed: something went. stale: nothing was there. blocked: it could not go. deferred: it went, but files are still
#: open, so its space comes back when they are closed. skipped: the plan or the caller did not want it.
#: not-applicable: not on this machine. not-needed: the goal was met before its turn. failed: its command failed.
#: would-free: a dry run.
Result = Literal[
    "freed",
    "stale",
    "blocked",
    "deferred",
    "skipped",
    "not-applicable",
    "not-needed",
    "failed",
    "would-free",
]
