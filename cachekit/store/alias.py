"""Serving one stored entry under a further key: a hard link to its file, and an alias that vouches for the new name."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Literal

from cachekit.archive.alias import Alias, decode_alias, encode_alias
from cachekit.archive.format import MAX_ALIAS
from cachekit.archive.read import Archive
from cachekit.model import EntryIdentity, Key, Namespace
from cachekit.store import layout
from cachekit.system.clock import now_ns
from cachekit.system.files import exists, fsync_directory, pread_exactly, replace_file
from cachekit.system.publish import link_as, temporary_name
from cachekit.system.steps import step
from cachekit.trust import Signed, Trust

__all__ = ["adopt", "link", "sweep_aliases"]

_KEPT_NS = 24 * 3600 * 1_000_000_000


def adopt(archive: Archive, path: str, namespace: Namespace, name: str) -> Signed | None:
    """Give an opened entry the key under which it is filed as ``name``, if an alias vouches for it.

    Return who signed the alias; None if there is none for this entry, which then has the wrong name. Raises Damaged,
    Forged, Untrusted for an alias that is not to be used.
    """
    try:
        directory = layout.open_part(path, namespace, "aliases")
    except OSError:
        return None
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(name, flags, dir_fd=directory)
    except OSError:
        return None
    finally:
        os.close(directory)
    try:
        data = pread_exactly(fd, MAX_ALIAS + 1, 0)
    except OSError:
        return None
    finally:
        os.close(fd)
    alias, signed = decode_alias(data, archive.trust)
    if alias.identity != archive.seal.identity:
        return None  # of an entry that was here before
    if EntryIdentity(Key(alias.key), archive.seal.platform).file_name != name:
        return None
    archive.file_as(alias.key, alias.family, alias.created_ns)
    return signed


def sweep_aliases(entries: int, aliases: int) -> None:
    """Remove aliases whose entry is gone, from open directories. Raises OSError.

    Only what is a day old: an alias is written before its entry is there.
    """
    oldest = now_ns() - _KEPT_NS
    for name in os.listdir(aliases):
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(name, dir_fd=aliases).st_mtime_ns < oldest and not exists(name, dir_fd=entries):
                os.unlink(name, dir_fd=aliases)


def link(
    archive: Archive,
    identity: EntryIdentity,
    alias: Alias,
    trust: Trust,
    path: str,
    namespace: Namespace,
    *,
    replace: bool,
) -> Literal["published", "exists", "impossible"]:
    """Let the store serve an opened entry under a further key as well, without copying it.

    "exists": another entry has the key. "impossible": the filesystem or permissions do not allow another name, or the
    entry is no longer in the store; nothing was changed then. Raises OSError.
    """
    name = os.path.basename(archive.path)
    with contextlib.ExitStack() as stack:
        fds = {}
        for part in ("entries", "tmp", "aliases"):
            fds[part] = layout.open_part(path, namespace, part, make=part == "aliases")
            stack.callback(os.close, fds[part])
        temporary = temporary_name(identity.digest)
        try:
            link_as(name, temporary, fds["entries"], fds["tmp"])
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}:
                raise
            return "impossible"
        step("link.temporary")
        try:
            info = os.lstat(temporary, dir_fd=fds["tmp"])
            if (info.st_dev, info.st_ino) != archive.identity:
                return "impossible"  # another entry has taken the place of the one that was compared
            # First the alias: an entry without it would be taken for one that is filed wrongly.
            replace_file(identity.file_name, encode_alias(alias, trust), fds["aliases"], mode=0o640)
            step("link.alias-written")
            if replace:
                # A sweeper may take the temporary name for one that a killed process left: then nothing has happened.
                os.rename(temporary, identity.file_name, src_dir_fd=fds["tmp"], dst_dir_fd=fds["entries"])  # noqa: TID251
            else:
                try:
                    link_as(temporary, identity.file_name, fds["tmp"], fds["entries"])
                except FileExistsError:
                    return "exists"
            step("link.linked")
            fsync_directory(fds["entries"])
        except FileNotFoundError:
            return "impossible"
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=fds["tmp"])
    return "published"
