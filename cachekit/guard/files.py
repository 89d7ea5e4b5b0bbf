"""Seal files that nobody saved with cachekit, and check them, with a manifest beside them or without."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from cachekit.errors import (
    CachekitError,
    Damaged,
    NothingMatched,
    SourceChanged,
    SourceUnreadable,
    TargetNotWritable,
    Unreadable,
    Unsealed,
)
from cachekit.guard.inspect import Findings, Progress, digest_of, inspect
from cachekit.guard.manifest import MAX_BYTES, SUFFIX, FileSeal, decode, encode
from cachekit.system.clock import host_name, now_ns
from cachekit.system.files import open_directory
from cachekit.system.publish import TempFile, sweep
from cachekit.trust import ANYONE, Trust

__all__ = ["FileReport", "check_file", "checked_file", "seal_file"]

#: Names of files whose format tells whether they are whole.
_ARCHIVES = (".tar", ".tgz", ".txz", ".tbz2", ".gz", ".zst", ".tzst", ".xz", ".bz2", ".zip", ".whl", ".jar")
_MAKE_AGAIN = "make it again: nothing can be done with the rest"
_PUT_RIGHT = "remove it, and seal the file again if it is known to be whole: cachekit seal FILE"
#: What helps where a manifest cannot be written.
_HINTS = {
    errno.ENOSPC: "make room (cachekit disk shows what fills the disk)",
    errno.EDQUOT: "make room below your quota",
    errno.EISDIR: "remove it",
}


@dataclass(slots=True)
class FileReport:
    """What was found of a file: ``verdict`` is ok, sealed, or why it is refused; ``sealed``: a manifest vouches for it.

    ``size`` in bytes, as it is now; of a file that is refused the other facts are not told.
    """

    path: str
    verdict: str = "ok"
    size: int = 0
    sha256: str = ""
    kind: str = "unknown"
    structure: dict[str, object] = field(default_factory=dict)
    sealed: bool = False
    manifest: str | None = None
    error: dict[str, object] | None = None
    seconds: float = 0.0


def seal_file(path: str, *, trust: Trust = ANYONE, progress: Progress | None = None) -> FileReport:
    """Write the manifest of a file beside it, atomically and durably, over an older one.

    A file that is not whole as its format promises is not sealed; one of a format that promises nothing is, by size and
    sha256. Raises Damaged, Unsupported, NothingMatched, SourceUnreadable, SourceChanged, TargetNotWritable.
    """
    begin = time.perf_counter()
    trust.require_signer()
    directory = os.path.realpath(os.path.dirname(path) or ".")
    if directory == "/dev" or f"{directory}/".startswith("/proc/"):
        raise SourceUnreadable(
            "this is the name of a descriptor or device: no manifest can lie beside it",
            path=path,
            hint="seal the file by its own name",
        )
    with _opened(path) as file:
        before = os.fstat(file.fileno())
        found = inspect(file, progress)
        _require_same(path, before, os.fstat(file.fileno()), found.size)
    _require_kind(path, found)
    if found.problem is not None:
        raise _about(found.problem, path)
    seal = FileSeal(found.size, found.sha256, found.kind, found.structure, now_ns(), host_name())
    _publish(path + SUFFIX, encode(seal, trust))
    report = _report(path, found)
    report.verdict, report.sealed, report.manifest = "sealed", True, path + SUFFIX
    report.seconds = time.perf_counter() - begin
    return report


def check_file(
    path: str,
    *,
    trust: Trust = ANYONE,
    require_seal: bool = False,
    deep: bool = False,
    progress: Progress | None = None,
) -> FileReport:
    """Check a file against its manifest, or without one for what its format promises. Raises as ``checked_file``."""
    with checked_file(path, trust=trust, require_seal=require_seal, deep=deep, progress=progress) as (
        _,
        report,
    ):
        return report


@contextlib.contextmanager
def checked_file(
    path: str,
    *,
    trust: Trust = ANYONE,
    require_seal: bool = False,
    deep: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[BinaryIO, FileReport]]:
    """Check a file, and give it open at its beginning: the very file that was checked, whatever has its name by then.

    With a manifest: size and sha256, and with ``deep`` what the format promises as well. Without: what the format
    promises; Unsealed if that is nothing, with ``require_seal`` or a ``trust`` that asks for signatures in any case.

    Raises Damaged, Unsupported, Unsealed, Forged, Untrusted, NothingMatched, SourceUnreadable, SourceChanged.
    """
    begin = time.perf_counter()
    seal = _manifest(path, trust)
    if seal is None and (require_seal or trust.required):
        raise Unsealed("the file has no manifest, and one is required", path=path, expected=path + SUFFIX)
    with _opened(path) as file:
        before = os.fstat(file.fileno())
        if seal is None or deep or before.st_size != seal.size:
            found = inspect(file, progress)
        else:
            size, digest = digest_of(file, progress)
            found = Findings(size, digest, seal.kind, dict(seal.structure))
        _require_same(path, before, os.fstat(file.fileno()), found.size)
        if seal is not None:
            _compare(path, seal, found, before.st_mtime_ns)
        if seal is None:
            _require_kind(path, found)
        if found.problem is not None:
            raise _about(found.problem, path)
        if seal is None and found.kind == "unknown":
            raise Unsealed(
                "the file is of no format that tells whether it is whole, and it is not sealed", path=path
            )
        report = _report(path, found)
        report.sealed = seal is not None
        report.manifest = path + SUFFIX if seal is not None else None
        report.seconds = time.perf_counter() - begin
        file.seek(0)
        yield file, report


def _require_kind(path: str, found: Findings) -> None:
    """Raise Damaged for a file whose name promises a format, and whose bytes are of none that is known."""
    name = os.path.basename(path)
    if found.kind == "unknown" and found.problem is None and name.lower().endswith(_ARCHIVES):
        raise Damaged(
            f"the file is called {name} and is no archive: it ends too early, or is something else",
            path=path,
            rung="structure",
            found=found.size,
            hint=_MAKE_AGAIN,
        )


def _compare(path: str, seal: FileSeal, found: Findings, mtime_ns: int) -> None:
    hint = _MAKE_AGAIN
    if mtime_ns > seal.created_ns:
        hint = "make it again; or, if it was made anew after it was sealed, seal it again"
    if found.size != seal.size:
        missing = seal.size - found.size
        what = f"{missing} bytes are missing" if missing > 0 else f"{-missing} bytes are too many"
        why = f"; {found.problem}" if found.problem is not None else ""
        raise Damaged(
            f"the file ends at byte {found.size}, it was sealed with {seal.size}: {what}{why}",
            path=path,
            rung="seal",
            expected=seal.size,
            found=found.size,
            hint=hint,
        )
    if found.sha256 != seal.sha256:
        raise Damaged(
            "the file has its size, and other bytes than when it was sealed",
            path=path,
            rung="seal",
            expected=seal.sha256,
            found=found.sha256,
            hint=hint,
        )


def _report(path: str, found: Findings) -> FileReport:
    return FileReport(path, "ok", found.size, found.sha256, found.kind, found.structure)


def _about(error: CachekitError, path: str) -> CachekitError:
    """Say which file a refusal is about; a member that it named goes into its sentence."""
    if error.path is not None:
        member = os.fsdecode(error.path)
        error.message += f": {member!r}"
    error.path = path
    if isinstance(error, Damaged):
        error.hint = _MAKE_AGAIN
    return error


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    """Open a regular file, following links: people name files. Raises NothingMatched, SourceUnreadable."""
    try:
        # O_NONBLOCK: a fifo must not make us wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NothingMatched(
            "there is no such file", path=path, hint="did the step that makes it run, and end well?"
        ) from None
    except OSError as error:
        raise SourceUnreadable(f"cannot open the file: {error.strerror}", path=path, hint="") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        if stat.S_ISFIFO(mode):
            raise SourceUnreadable(
                "this is a pipe, whose content is gone once it is read",
                path=path,
                hint="write it to a file first, and check that",
            )
        raise SourceUnreadable("this is no regular file", path=path, hint="name a file")
    with open(fd, "rb", buffering=0) as file:
        os.set_blocking(fd, True)  # a command may be given this very descriptor
        try:
            yield file
        except OSError as error:
            raise Unreadable(
                f"cannot read the file: {error.strerror}",
                path=path,
                hint="check the disk or mount that holds the file",
            ) from None


def _require_same(path: str, before: os.stat_result, after: os.stat_result, size: int) -> None:
    same = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    if not same or size != after.st_size:
        raise SourceChanged(
            "the file changed while it was read", path=path, hint="seal or check it when its writer has ended"
        )


def _manifest(path: str, trust: Trust) -> FileSeal | None:
    """Return what the file's manifest says, None if there is none. Raises Damaged, Unreadable and of ``trust``."""
    place = path + SUFFIX
    try:
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if os.path.lexists(place):
            raise Damaged(
                "the manifest is a link that leads nowhere", path=place, rung="seal", hint=_PUT_RIGHT
            ) from None
        return None
    except OSError as error:
        if error.errno in {errno.ENAMETOOLONG, errno.ENOTDIR}:
            return None  # none can be there; of the file itself its own opening tells
        raise Unreadable(f"cannot open the manifest: {error.strerror}", path=place, hint="") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Damaged("the manifest is no regular file", path=place, rung="seal", hint=_PUT_RIGHT)
    with open(fd, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        if len(data) > MAX_BYTES:
            raise Damaged("the manifest is longer than one can be", rung="seal")
        return decode(data, trust)
    except CachekitError as error:
        error.path = place
        raise


def _publish(place: str, data: bytes) -> None:
    directory, name = os.path.split(place)
    try:
        fd = open_directory(os.fsencode(directory or "."), follow=True)
        try:
            sweep(fd, f".{name}.")  # of a seal that was killed
            with TempFile(fd, f".{name}") as temp:
                os.fchmod(temp.fd, 0o644)
                temp.write(data, 0)
                temp.finish(len(data))
                temp.publish(name, fd, replace=True)
        finally:
            os.close(fd)
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "seal where the job may write")
        raise TargetNotWritable(
            f"the manifest cannot be written: {error.strerror}",
            path=place,
            hint=f"{hint}; the file itself is as it was",
        ) from None
