"""What a clean is asked for: one value, made by ``prepare`` from what the caller said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cachekit.clean.decide import Part
from cachekit.clean.environment import Environment
from cachekit.clean.goals import Need
from cachekit.clean.model import Plan, Rule, Stage
from cachekit.clean.protect import Protection
from cachekit.clean.report import RuleReport
from cachekit.disk.filesystems import Filesystem

__all__ = ["CleanRequest"]


@dataclass(slots=True)
class CleanRequest:
    """What to clean and how far.

    ``needs``: what each filesystem (by device number) is to have free; ``goal`` says it in words. ``protection``: what
    this run must not touch. ``keep``: rules, categories and tools to leave alone; ``keep_images``: patterns of image
    names, ``protected_images``: names or ids that must stay. ``part``: whether rules that may run in the background
    are carried out. ``started`` is told of each rule whose turn comes, ``finished`` its report.
    """

    stage: Stage
    plan: Plan
    plan_why: str
    goal: str
    environment: Environment
    filesystems: Sequence[Filesystem]
    needs: Mapping[int, Need]
    protection: Protection
    environ: Mapping[str, str]
    keep: Sequence[str] = ()
    keep_images: Sequence[str] = ()
    protected_images: frozenset[str] = frozenset()
    dry_run: bool = False
    lock_timeout: float = 60.0
    part: Part = "all"
    ballast_directories: Sequence[str] = ()
    started: Callable[[Rule], None] | None = None
    finished: Callable[[RuleReport], None] | None = None
