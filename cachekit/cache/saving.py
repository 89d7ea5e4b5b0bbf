"""What every save does around its work: one at a time for a key, what is stored already, room, the seal's beginning."""

from __future__ import annotations

import time
from collections.abc import Callable

from cachekit._version import __version__
from cachekit.archive.pack import zstd_version
from cachekit.archive.read import open_archive
from cachekit.archive.seal import Seal
from cachekit.cache.space import require
from cachekit.errors import Damaged, LockTimeout, NoSpace, Refused, Unreadable, Untrusted
from cachekit.model import EntryIdentity, SaveReport, Target
from cachekit.store.directory import DirectoryStore
from cachekit.system.clock import host_name, now_ns, python_version
from cachekit.system.publish import TempFile

__all__ = ["is_stored", "new_seal", "save_once", "take_room"]


def save_once(
    store: DirectoryStore,
    identity: EntryIdentity,
    report: SaveReport,
    work: Callable[[], None],
    *,
    force: bool,
    wait_seconds: float,
) -> None:
    """Call ``work`` unless the key is stored already (``force``: in any case), while no other live saver has it.

    Another live saver is waited for, at most ``wait_seconds``; 0 reports it at once. Raises LockTimeout.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        with store.saver(identity) as saver:
            if saver.state != "busy":
                if force or not is_stored(store, identity, report):
                    work()
                return
            if time.monotonic() >= deadline:
                if wait_seconds:
                    raise LockTimeout(
                        f"another process is still saving {identity.key.text!r}",
                        expected=wait_seconds,
                        hint="it may still succeed; try again, or look for a process that hangs",
                    )
                report.status = "in-progress"
                return
        time.sleep(0.2)


def is_stored(store: DirectoryStore, identity: EntryIdentity, report: SaveReport) -> bool:
    """Return True if a whole, trusted entry has the key. One with a damaged seal is set aside; the save goes on."""
    path = store.entry_path(identity.file_name)
    try:
        with open_archive(path, store.trust) as archive:
            try:
                store.check_filing(archive, identity.file_name)
            except Untrusted as error:
                # Others may use it as it is: not set aside, but the new entry takes its name.
                message = f"the stored entry of this key is replaced: {error}"
                if message not in report.warnings:
                    report.warnings.append(message)
                return False
            except Refused as error:
                store.set_aside(path, archive.identity)
                report.warnings.append(f"the stored entry of this key was refused and set aside: {error}")
                return False
            if store.denied(path):  # could not be set aside when it was refused: perhaps it can now
                store.set_aside(path, archive.identity)
                return False
            seal = archive.seal
            report.status = "exists"
            report.identity = seal.identity
            report.archive_bytes, report.content_bytes = archive.size, seal.content_bytes
            report.members, report.files = seal.members, seal.counts["files"] + seal.counts["hardlinks"]
    except FileNotFoundError:
        return False
    except Damaged as error:  # no file at all
        store.set_aside(path, None)
        report.warnings.append(f"what was in the place of this key's entry was set aside: {error}")
        return False
    except Unreadable as error:
        report.warnings.append(f"the stored entry of this key cannot be read and is replaced: {error}")
        return False
    store.mark_used(identity.file_name)
    return True


def take_room(
    store: DirectoryStore,
    temp: TempFile,
    need: int,
    *,
    min_free: int,
    make_room: Callable[[int], None] | None,
) -> None:
    """Check that ``need`` bytes fit beside ``min_free``, and reserve them; if they do not, ``make_room`` is asked once.

    Raises NoSpace; nothing was written then.
    """
    try:
        _take_room(store, temp, need, min_free)
    except NoSpace as error:
        if make_room is None or error.fields.get("unit") == "inodes":
            raise
        # What was reserved before the disk was full must be free again, or the clean would free it for nothing.
        temp.unreserve()
        make_room(need + min_free)
        _take_room(store, temp, need, min_free)


def _take_room(store: DirectoryStore, temp: TempFile, need: int, min_free: int) -> None:
    free = store.free()
    if free is not None:
        require(
            free,
            need,
            2,
            min_free=min_free,
            what="save",
            path=store.path,
            hint="free space there (cachekit save --make-room does), or leave things out with --exclude; "
            "nothing was written",
        )
    try:
        temp.reserve(need)
    except OSError as error:
        problem = store.explain(error, "write to")
        if isinstance(problem, NoSpace):
            problem.fields.update(need=need)
            problem.message += f"; need {need} bytes, nothing was written"
        raise problem from None


def new_seal(
    identity: EntryIdentity, family: str, targets: list[Target], roots: dict[str, str], level: int
) -> Seal:
    """Return a seal with all that does not depend on the bytes written."""
    return Seal(
        key=identity.key.text,
        platform=identity.platform,
        family=family,
        targets=targets,
        roots=roots,
        created_ns=now_ns(),
        host=host_name(),
        versions={
            "cachekit": __version__,
            "python": python_version(),
            "zstd": zstd_version(),
        },
        level=level,
        data_bytes=0,
        sealed_bytes=0,
        index_raw_bytes=0,
        index_sha256="",
        frames=0,
        members=0,
        tar_bytes=0,
        content_bytes=0,
        allocated_bytes=0,
        counts={},
    )
