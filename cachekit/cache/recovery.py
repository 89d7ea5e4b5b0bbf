"""Recover: end what killed restores left, also those in place, for which the entry is read again."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import cast

from cachekit.archive.extract import extract
from cachekit.archive.read import open_archive
from cachekit.archive.unpack import WriteOptions
from cachekit.cache.inplace import restore_in_place
from cachekit.errors import CachekitError
from cachekit.model import RootName, Target
from cachekit.system.workers import worker_count
from cachekit.targets.finish import Recovered, recover
from cachekit.targets.journal import target_lock
from cachekit.targets.staging import open_staging

__all__ = ["RecoverLine", "recover_targets"]


@dataclass(frozen=True, slots=True)
class RecoverLine:
    """One unfinished restore and what became of it: finished, rolled-back, in-use or unfinished (with a reason)."""

    target: str
    result: str
    reason: str | None = None


def recover_targets(paths: list[str]) -> list[RecoverLine]:
    """End the unfinished restores of these targets, or of all that are known. Raises OSError."""
    targets: list[bytes | None] = [
        os.fsencode(os.path.abspath(os.path.expanduser(path))) for path in paths
    ] or [None]
    lines = []
    for target in targets:
        if target is not None:
            target = os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(target))
        for recovered in recover(target):
            if recovered.result == "gone":
                continue
            reason = None
            result: str = recovered.result
            if result == "needs-archive":
                reason = _in_place(recovered)
                result = "unfinished" if reason else "finished"
            lines.append(RecoverLine(os.fsdecode(recovered.target), result, reason))
    return lines


def _in_place(recovered: Recovered) -> str | None:
    """Go on with a restore in place; return why it cannot be done."""
    entry = recovered.journal.entry
    path = entry["path"].encode("latin-1")
    target = Target(cast("RootName", entry["target_root"]), entry["target_path"].encode("latin-1"))
    options = WriteOptions()
    try:
        with open_archive(path) as archive, target_lock(recovered.target, shared=False, timeout=0):
            if archive.seal.identity != entry["identity"]:
                return f"the entry {entry['key']!r} was replaced since; restore it again"
            extract(archive, [], options, worker_count())
            restore_in_place(
                archive, target, recovered.target, options, remove_extras=False, durable=False, min_free=0
            )
    except FileNotFoundError:
        return f"the entry {entry['key']!r} is not in the store any more; restore another one, or remove the target"
    except CachekitError as error:
        return error.message
    with contextlib.suppress(OSError):
        staging = open_staging(recovered.journal)
        if staging is not None:
            staging.remove()
            staging.close()
    return None
