"""Carrying out what init proposes: each file whole or as it was, none with other content without being told to."""

from __future__ import annotations

import errno
import os
import stat

from cachekit.errors import InvalidRequest, NoSpace, TargetNotWritable
from cachekit.init.model import FileChange
from cachekit.system.files import open_directory, replace_file

__all__ = ["read_text", "write"]

_MAX_BYTES = 4 << 20


def read_text(root: str, path: str) -> str | None:
    """Return what a file of the repository holds, None if it is not there.

    Raises InvalidRequest for one that is no text file, TargetNotWritable for one that cannot be read.
    """
    place = os.path.join(root, path)
    try:
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _refused(place, error) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidRequest("what is there is no file", path=place)
        with open(fd, "rb", closefd=False) as file:
            data = file.read(_MAX_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise _refused(place, error) from None
    except UnicodeDecodeError:
        raise InvalidRequest("the file is no UTF-8 text", path=place) from None
    finally:
        os.close(fd)
    if len(data) > _MAX_BYTES:
        raise InvalidRequest("the file is too large to be what it should be", path=place)
    return text


def write(root: str, changes: list[FileChange]) -> None:
    """Write the files, each in one atomic step; directories that are missing are made.

    Nothing below the root is reached through a link. A file that is no longer as it was when the change was made is
    refused. Raises TargetNotWritable, NoSpace.
    """
    for change in changes:
        place = os.path.join(root, change.path)
        if read_text(root, change.path) != change.old:
            raise TargetNotWritable(
                "the file has changed meanwhile",
                path=place,
                hint="run cachekit init again, and look at what it shows",
            )
        try:
            _write_one(root, change)
        except OSError as error:
            raise _refused(place, error) from None


def _write_one(root: str, change: FileChange) -> None:
    fd = open_directory(os.fsencode(root), follow=True)
    try:
        *parents, name = change.path.split("/")
        for part in parents:
            try:
                os.mkdir(part, 0o777, dir_fd=fd)
            except FileExistsError:
                pass
            below = open_directory(os.fsencode(part), dir_fd=fd)
            os.close(fd)
            fd = below
        mode = 0o666
        if change.old is not None:
            mode = stat.S_IMODE(os.lstat(name, dir_fd=fd).st_mode)
        replace_file(name, change.new.encode("utf-8"), fd, mode=mode)
    finally:
        os.close(fd)


def _refused(place: str, error: OSError) -> TargetNotWritable | NoSpace:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NoSpace(f"the file cannot be written: {error.strerror}", path=place, errno=error.errno)
    if error.errno in {errno.ELOOP, errno.ENOTDIR}:
        return TargetNotWritable(
            "a link or a file is in the way: nothing is read or written through links",
            path=place,
            errno=error.errno,
            hint="replace it by a file or a directory of your own",
        )
    return TargetNotWritable(
        f"the file cannot be read or written: {error.strerror}",
        path=place,
        errno=error.errno,
        hint="check the permissions of the repository's directories",
    )
