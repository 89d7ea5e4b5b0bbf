"""How old and how large a unit is: by the newest thing in it, without disturbing access times."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from cachekit.system.files import open_to_look
from cachekit.system.locks import try_lock

__all__ = ["Look", "look"]


@dataclass(slots=True)
class Look:
    """What was seen. ``newest_ns``: latest change of content or metadata; ``size``: allocated bytes.

    ``complete`` is False if the look ended early because something newer than the limit was found: then neither is
    whole. ``problem``: why the unit may not go (a lock, another filesystem, a directory that cannot be read).
    """

    newest_ns: int
    size: int
    complete: bool = True
    problem: str = ""


def look(path: bytes, *, not_after_ns: int | None = None, most: int | None = None) -> Look:
    """Look at a file or a whole tree; stop at the first thing changed after ``not_after_ns``, or after ``most`` names.

    The time that counts is the later of mtime and ctime: an archive that was unpacked just now brings old mtimes. Never
    follows a link, never leaves the filesystem. Raises OSError if ``path`` itself cannot be looked at.
    """
    info = os.lstat(path)
    result = Look(max(info.st_mtime_ns, info.st_ctime_ns), info.st_blocks * 512)
    if not stat.S_ISDIR(info.st_mode):
        return result
    if not_after_ns is not None and result.newest_ns > not_after_ns:
        result.complete = False
        return result
    seen: set[tuple[int, int]] = set()
    pending = [path]
    names = 0
    while pending and not result.problem:
        here = pending.pop()
        try:
            fd = open_to_look(here)
        except FileNotFoundError:
            continue
        except OSError as error:
            result.problem = f"{os.fsdecode(here)} cannot be read: {error.strerror}"
            break
        try:
            if os.fstat(fd).st_dev != info.st_dev:
                continue  # a mount: it stays, and so does what is in it
            if not try_lock(fd):
                result.problem = f"{os.fsdecode(here)} is locked by another process"
                break
            with os.scandir(fd) as entries:
                for entry in entries:
                    names += 1
                    if most is not None and names > most:
                        result.complete = False
                        return result
                    try:
                        facts = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    newest = max(facts.st_mtime_ns, facts.st_ctime_ns)
                    result.newest_ns = max(result.newest_ns, newest)
                    if not_after_ns is not None and newest > not_after_ns:
                        result.complete = False
                        return result
                    if stat.S_ISDIR(facts.st_mode):
                        pending.append(here + b"/" + os.fsencode(entry.name))
                    elif facts.st_nlink > 1:
                        identity = (facts.st_dev, facts.st_ino)
                        if identity in seen:
                            continue
                        seen.add(identity)
                    result.size += facts.st_blocks * 512
        finally:
            os.close(fd)
    return result
