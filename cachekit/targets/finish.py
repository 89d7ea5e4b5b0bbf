"""The last steps of a restore, and the first of the next one when a kill came between them."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cachekit.errors import UnfinishedTarget
from cachekit.system.files import open_directory
from cachekit.system.native import sync_filesystem
from cachekit.system.steps import step
from cachekit.targets.commit import Outcome, commit
from cachekit.targets.journal import Journal, pointers
from cachekit.targets.staging import STAGED, Staging, left_behind, open_staging, sync_parent

__all__ = ["Recovered", "finish", "recover", "unfinished"]


def finish(staging: Staging, *, durable: bool = False, same_owner: bool = False) -> Outcome:
    """Commit what is staged, give the directories their modes and times, and remove staging.

    With ``durable`` the filesystem is synced before the commit, so that the promise holds against power loss too.
    """
    journal = staging.journal
    if durable:
        sync_filesystem(staging.fd)
    if journal.phase == "staging":
        info = os.lstat(STAGED, dir_fd=staging.fd)
        journal.new = [info.st_dev, info.st_ino]
        journal.phase = "committing"
        journal.write(staging.fd)
    step("restore.journal-committing")
    outcome = commit(staging)
    _apply_facts(staging, same_owner=same_owner)
    step("commit.root-finished")
    journal.phase = "cleaning"
    journal.write(staging.fd)
    step("commit.journal-removed")
    sync_parent(staging)
    if durable:
        sync_filesystem(staging.parent_fd)
    staging.remove()
    return outcome


def _apply_facts(staging: Staging, *, same_owner: bool) -> None:
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
            try:
                fd = open_directory(path or b".", dir_fd=top)
            except PermissionError:
                # An ordinary user's own directory without permissions, kept from the old tree.
                os.chmod(path, 0o700, dir_fd=top)
                fd = open_directory(path, dir_fd=top)
            try:
                if same_owner:
                    os.fchown(fd, uid, gid)
                os.fchmod(fd, mode)
                os.utime(fd, ns=(os.fstat(fd).st_atime_ns, mtime_ns))
            finally:
                os.close(fd)
    finally:
        os.close(top)


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
    """Return the journals of restores that are not finished: of one target, or of all in the state directory."""
    found = {journal.staging: journal for journal in pointers() if target is None or journal.target == target}
    if target is not None:
        for journal in left_behind(target):
            found[journal.staging] = journal
    return list(found.values())


def recover(target: bytes | None = None) -> list[Recovered]:
    """Finish or roll back what was killed. Raises OSError if the filesystem refuses; then nothing is lost."""
    return [_recover(journal) for journal in unfinished(target)]


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
                current.staging = journal.staging
                staging.journal = journal = current
        if journal.phase == "in-place":
            return Recovered(journal.target, "needs-archive", journal)
        if journal.phase == "staging":
            staging.remove()
            return Recovered(journal.target, "rolled-back", journal)
        if journal.phase == "cleaning":
            staging.remove()
        else:
            finish(staging)
        return Recovered(journal.target, "finished", journal)
    finally:
        staging.close()


def refuse_unfinished(targets: Iterable[bytes]) -> None:
    """Raise UnfinishedTarget if a restore of one of the targets began to move names and did not end."""
    for target in targets:
        parent = os.path.realpath(os.path.dirname(target))
        real = os.path.join(parent, os.path.basename(target))
        for journal in unfinished(real):
            if journal.began and os.path.isdir(journal.staging):
                raise UnfinishedTarget(
                    "an earlier restore of this target was killed before its end", path=target
                )
