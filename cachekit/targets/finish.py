"""The last steps of a restore, and the first of the next one when a kill came between them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cachekit.errors import NameConflict, TargetNotWritable, UnfinishedTarget
from cachekit.model import STAGED
from cachekit.system.files import open_directory
from cachekit.system.native import sync_filesystem
from cachekit.system.steps import step
from cachekit.targets.commit import Outcome, commit
from cachekit.targets.journal import Journal, pointers, real_place
from cachekit.targets.staging import (
    Staging,
    left_behind,
    open_staging,
    set_directory,
    sync_parent,
)

__all__ = ["Recovered", "drop", "finish", "recover", "recover_one", "refuse_unfinished", "unfinished"]


def finish(staging: Staging, *, durable: bool = False, same_owner: bool = False) -> Outcome:
    """Commit what is staged, give the directories their modes and times, and remove staging.

    With ``durable`` the filesystem is synced before the commit, so that the promise holds against power loss too.
    When it raises, the phase of the journal is ``staging`` again if the target is as it was.
    """
    journal = staging.journal
    if durable:
        sync_filesystem(staging.fd)
    fresh = journal.phase == "staging"
    if fresh:
        info = os.lstat(STAGED, dir_fd=staging.fd)
        journal.new = [info.st_dev, info.st_ino]
        journal.same_owner = same_owner
        journal.phase = "committing"
        journal.write(staging.fd)
    step("restore.journal-committing")
    try:
        outcome = commit(staging, fresh=fresh)
    except (OSError, NameConflict):
        if fresh and not staging.touched:
            journal.phase = "staging"
            with contextlib.suppress(OSError):
                journal.write(staging.fd)
        raise
    _apply_facts(staging)
    step("commit.root-finished")
    journal.phase = "cleaning"
    journal.write(staging.fd)
    step("commit.journal-removed")
    sync_parent(staging)
    if durable:
        sync_filesystem(staging.parent_fd)
    staging.remove()
    return outcome


def _apply_facts(staging: Staging) -> None:
    """Modes and times of directories, deepest first: a read-only directory could not be filled before."""
    facts = staging.read_facts()
    if not facts:
        return
    if not staging.name:
        top = os.dup(staging.parent_fd)
    else:
        info = os.lstat(staging.name, dir_fd=staging.parent_fd)
        if not stat.S_ISDIR(info.st_mode):
            return
        top = open_directory(staging.name, dir_fd=staging.parent_fd)
    try:
        for path, mode, mtime_ns, uid, gid in facts:
            if not path and staging.journal.inside:
                continue  # follows when staging has gone
            try:
                fd = open_directory(path or b".", dir_fd=top)
            except PermissionError:
                # An ordinary user's own directory without permissions: of the old tree, or given to it before a kill.
                _open_up(path, top)
                fd = open_directory(path, dir_fd=top)
            try:
                set_directory(fd, mode, mtime_ns, uid, gid, same_owner=staging.journal.same_owner)
            finally:
                os.close(fd)
    finally:
        os.close(top)


def _open_up(path: bytes, top: int) -> None:
    """Make a directory and all above it enterable; those above come later in the facts."""
    parts = path.split(b"/")
    for count in range(1, len(parts) + 1):
        with contextlib.suppress(PermissionError):
            os.chmod(b"/".join(parts[:count]), 0o700, dir_fd=top)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of one unfinished restore.

    finished: the new tree is in place; rolled-back: the old one is, nothing had been moved; in-use: another process is
    at it; gone: staging no longer exists; needs-archive: an in-place restore, which only a restore can end.
    """

    target: bytes
    result: Literal["finished", "rolled-back", "in-use", "gone", "needs-archive"]
    journal: Journal


def unfinished(target: bytes | None = None) -> list[Journal]:
    """Return the journals of restores that are not finished: of one target, or of all in the state directory.

    Those that moved nothing come first: rolling one back puts the target's old time back, if staging was inside.
    """
    found = {journal.staging: journal for journal in pointers() if target is None or journal.target == target}
    if target is not None:
        for journal in left_behind(target):
            found[journal.staging] = journal
    return sorted(found.values(), key=lambda journal: journal.began)


def recover(target: bytes) -> list[Recovered]:
    """Finish or roll back what was killed; the caller holds the target's lock. Raises TargetNotWritable."""
    return [recover_one(journal) for journal in unfinished(target)]


def recover_one(journal: Journal) -> Recovered:
    """Finish or roll back one killed restore. Raises TargetNotWritable if that is refused; then nothing is lost."""
    try:
        return _recover(journal)
    except OSError as error:
        raise TargetNotWritable(
            f"an earlier restore of this target was killed and cannot be ended now: {error.strerror}",
            path=journal.target,
            errno=error.errno,
            hint=f"its files are in {os.fsdecode(journal.staging)}; run cachekit recover when the cause is gone",
        ) from None


def _recover(journal: Journal) -> Recovered:
    try:
        staging = open_staging(journal)
    except (FileNotFoundError, NotADirectoryError):
        journal.forget()
        return Recovered(journal.target, "gone", journal)
    if staging is None:
        return Recovered(journal.target, "in-use", journal)
    try:
        # The copy beside the staged tree is the one that was written first at every step.
        with contextlib.suppress(OSError), open(os.path.join(journal.staging, b"journal.json"), "rb") as file:
            current = Journal.load(file.read())
            if current is not None:
                current.staging, current.target = journal.staging, journal.target
                staging.journal = journal = current
        if journal.phase == "in-place":
            return Recovered(journal.target, "needs-archive", journal)
        if journal.phase == "staging":
            staging.remove()
            return Recovered(journal.target, "rolled-back", journal)
        if journal.phase == "cleaning":
            staging.remove()
        else:
            _refuse_foreign(staging)
            finish(staging)
        return Recovered(journal.target, "finished", journal)
    finally:
        staging.close()


def drop(journal: Journal) -> None:
    """Remove what is left of a restore in place that another restore has ended."""
    try:
        staging = open_staging(journal)
    except (FileNotFoundError, NotADirectoryError):
        journal.forget()
        return
    if staging is not None:
        try:
            staging.remove()
        finally:
            staging.close()


def _refuse_foreign(staging: Staging) -> None:
    """Never move what another user laid down in a shared directory: it is not our restore that was killed."""
    owner = os.fstat(staging.fd).st_uid
    if owner not in {os.geteuid(), os.stat(os.path.dirname(staging.journal.staging)).st_uid}:
        raise PermissionError(errno.EPERM, f"it was begun by another user, {owner}")


def refuse_unfinished(targets: Iterable[bytes]) -> None:
    """Raise UnfinishedTarget if a restore of one of the targets began to move names and did not end."""
    for target in targets:
        for journal in unfinished(real_place(target)):
            if journal.began and os.path.isdir(journal.staging):
                raise UnfinishedTarget(
                    "an earlier restore of this target was killed before its end", path=target
                )
