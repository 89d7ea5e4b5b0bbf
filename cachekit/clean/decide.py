"""Which rules of a stage are wanted here. Pure: environment, keeps and free space are told."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from cachekit.clean.environment import Environment
from cachekit.clean.keeps import kept
from cachekit.clean.model import Result, Rule
from cachekit.system.space import Room

__all__ = ["Part", "unwanted"]

#: foreground: only what may not run beside a job. background: only what may. all: both.
Part: TypeAlias = Literal["all", "foreground", "background"]


def unwanted(
    rule: Rule,
    environment: Environment,
    *,
    keep: Sequence[str],
    job_texts: Mapping[str, str],
    rooms: Sequence[Room],
    part: Part = "all",
) -> tuple[Result, str] | None:
    """Return (result, reason) if a rule is not to be carried out here and now, None if it is.

    ``rooms``: the filesystems that are short.
    """
    when = rule.when
    if when.environment and not environment.names.intersection(when.environment):
        return "not-applicable", f"only for {' or '.join(when.environment)}"
    if when.image and not environment.image.startswith(when.image):
        return "not-applicable", f"only on {' or '.join(when.image)}"
    if part == "foreground" and rule.background:
        return "skipped", "left to the background"
    if part == "background" and not rule.background:
        return "skipped", "not in the background"
    reason = kept(rule, keep, job_texts)
    if reason:
        return "skipped", reason
    if when.free_below is not None:
        limit = when.free_below
        if not any(room.available < limit.of(room.used + room.available) for room in rooms):
            return "skipped", "enough is free for this rule"
    if rule.root and os.geteuid() != 0:
        return "blocked", "needs root: run it with sudo"
    return None
