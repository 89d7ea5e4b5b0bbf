"""Recover: end what killed restores left, also those in place, for which the entry is read again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import cast

from cachekit.archive.extract import extract
from cachekit.archive.read import open_archive
from cachekit.archive.unpack import WriteOptions
from cachekit.cache.inplace import needed_frames, restore_in_place
from cachekit.cache.present import look
from cachekit.errors import CachekitError, LockTimeout
from cachekit.model import RootName, Target
from cachekit.system.workers import worker_count
from cachekit.targets.finish import Recovered, drop, recover_one, unfinished
from cachekit.targets.journal import Journal, real_place, target_lock
from cachekit.trust import ANYONE, Trust

__all__ = ["RecoverLine", "recover_targets"]


@dataclass(frozen=True, slots=True)
class RecoverLine:
    """One unfinished restore and what became of it: finished, rolled-back, in-use or unfinished (with a reason)."""

    target: str
    result: str
    reason: str | None = None


def recover_targets(paths: list[str], trust: Trust = ANYONE) -> list[RecoverLine]:
    """End the unfinished restores of these targets, or of all that are known.

    An entry is read again only if ``trust`` takes it, and if it is signed where the killed restore required that.
    """
    targets: list[bytes | None] = [
        real_place(os.fsencode(os.path.abspath(os.path.expanduser(path)))) for path in paths
    ]
    lines = []
    for target in targets or [None]:
        for journal in unfinished(target):
            result, reason = _recover(journal, trust)
            if result != "gone":
                lines.append(RecoverLine(os.fsdecode(journal.target), result, reason))
    return lines


def _recover(journal: Journal, trust: Trust) -> tuple[str, str | None]:
    """End one unfinished restore; return what became of it, and why it could not be ended."""
    try:
        with target_lock(journal.target, shared=False, timeout=0):
            recovered = recover_one(journal)
            if recovered.result != "needs-archive":
                return recovered.result, None
            reason = _in_place(recovered, trust)
            return ("unfinished", reason) if reason else ("finished", None)
    except LockTimeout:
        return "in-use", None
    except OSError as error:
        return "unfinished", f"{error.strerror}: {os.fsdecode(error.filename or journal.target)}"
    except CachekitError as error:
        return "unfinished", error.message


def _in_place(recovered: Recovered, trust: Trust) -> str | None:
    """Go on with a restore in place; return why it cannot be done."""
    entry = recovered.journal.entry
    path = entry["path"].encode("latin-1")
    target = Target(cast("RootName", entry["target_root"]), entry["target_path"].encode("latin-1"))
    asked = entry.get("options", "").split()
    policy = Trust(
        trust.required or entry.get("trust") == "hmac",
        trust.keys,
        entry.get("namespace") or None,
    )
    options = WriteOptions(same_owner="same-owner" in asked, keep_setuid="keep-setuid" in asked)
    try:
        with open_archive(path, policy) as archive:
            if archive.seal.identity != entry["identity"]:
                return f"the entry {entry['key']!r} was replaced since; restore it again"
            presence = look(archive, target, recovered.target, options, worker_count())
            extract(archive, [], options, worker_count(), frames=needed_frames(archive, [presence]))
            restore_in_place(
                archive,
                target,
                recovered.target,
                options,
                presence,
                checked=True,
                remove_extras="remove-extras" in asked,
                durable=False,
                min_free=0,
            )
    except FileNotFoundError:
        return f"the entry {entry['key']!r} is not in the store any more; restore another one, or remove the target"
    drop(recovered.journal)
    return None
