"""Numbered steps of everything that must survive being killed between any two of them.

``step("save.publish")`` does nothing, unless CACHEKIT_KILL_AT names that step: then the process kills itself there
with SIGKILL. That is the seam through which the tests prove the promises; it has no other use.
"""

from __future__ import annotations

import os
import signal

__all__ = ["STEPS", "step"]

#: Every step, in the order in which a command reaches them; the tests kill at each of them.
STEPS: tuple[str, ...] = (
    "save.temp-created",
    "save.temp-locked",
    "save.walked",
    "save.reserved",
    "save.first-frame",
    "save.frames-written",
    "save.tail-written",
    "save.synced",
    "save.linked",
    "save.temp-unlinked",
    "save.published",
    "link.temporary",
    "link.alias-written",
    "link.linked",
    "restore.opened",
    "restore.staging-created",
    "restore.journal-staged",
    "restore.extracted",
    "restore.finished-staging",
    "restore.journal-committing",
    "commit.before-rename",
    "commit.first-rename",
    "commit.half",
    "commit.after-rename",
    "commit.old-aside",
    "commit.root-finished",
    "commit.journal-removed",
    "restore.cleaned",
    "inplace.marked",
    "inplace.first-file",
    "inplace.files-done",
    "load.verified",
    "load.sent",
    "prune.aside",
    "prune.put-back",
    "prune.removed",
    "prune.unmarked",
    "prune.marks-swept",
    "pin.created",
    "pin.durable",
    "pin.removed",
    "gc.single",
    "gc.index-written",
    "gc.aside",
    "gc.removed",
    "carry.temporary",
    "carry.alias-written",
    "carry.placed",
    "clean.renamed",
    "clean.looked-again",
    "clean.half-removed",
    "clean.removed",
    "lock.lease-made",
    "lock.taken",
    "lock.started",
    "lock.kept",
    "lock.ended",
)

_KILL_AT = os.environ.get("CACHEKIT_KILL_AT")


def step(name: str) -> None:
    """Mark that ``name`` has been reached."""
    if _KILL_AT is not None and name == _KILL_AT:
        os.kill(os.getpid(), signal.SIGKILL)
