"""The tree that ``cachekit demo`` works on, and what tells two trees apart."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass

__all__ = ["Fingerprint", "differences", "fingerprint", "make_project"]

_PACKAGES = 40
_FILES = 12
_LIBRARY_BYTES = 6 << 20
_WORDS = b"module.exports = function (value, index) { return value === undefined ? index : value };\n"


@dataclass(frozen=True, slots=True)
class _Facts:
    """One name of a tree. ``identity`` (inode, change time) only where it was asked for."""

    kind: str
    mode: int
    size: int
    mtime_ns: int
    content: str
    identity: tuple[int, int] | None


Fingerprint = dict[str, _Facts]


def make_project(path: str) -> None:
    """Make a tree like that of a package manager: some hundred small files, a large one, links, an empty directory."""
    os.makedirs(os.path.join(path, ".bin"))
    for number in range(_PACKAGES):
        package = os.path.join(path, f"package-{number:02}")
        os.makedirs(os.path.join(package, "lib"))
        for ordinal in range(_FILES):
            digest = hashlib.sha256(b"%d/%d" % (number, ordinal)).digest()
            name = os.path.join(package, "lib", f"part-{ordinal:02}.js")
            with open(name, "wb") as file:
                file.write(b"// %s\n" % digest.hex().encode() + _WORDS * (1 + digest[0] % 64))
            # Times of long ago, with nanoseconds: both are kept.
            moment = 1_600_000_000_000_000_000 + int.from_bytes(digest[:6], "big")
            os.utime(name, ns=(moment, moment))
        os.chmod(os.path.join(package, "lib", "part-00.js"), 0o744)
        os.symlink(f"../package-{number:02}/lib/part-00.js", os.path.join(path, ".bin", f"run-{number:02}"))
    with open(os.path.join(path, "library.so"), "wb") as file:
        file.write(hashlib.shake_128(b"demo").digest(_LIBRARY_BYTES // 2) + _WORDS * 30_000)
    os.mkdir(os.path.join(path, "package-00", "empty"))


def fingerprint(path: str, *, identity: bool = False) -> Fingerprint:
    """Return the facts of every name at and below ``path``; empty if there is nothing.

    With ``identity`` also what only an untouched tree keeps: inode numbers and change times.
    """
    found: Fingerprint = {}
    stack = [""]
    while stack:
        name = stack.pop()
        full = os.path.join(path, name) if name else path
        try:
            info = os.lstat(full)
        except FileNotFoundError:
            continue
        content, kind, length = "", "other", 0
        if stat.S_ISREG(info.st_mode):
            kind, length = "file", info.st_size
            with open(full, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        elif stat.S_ISLNK(info.st_mode):
            kind, content = "symlink", os.readlink(full)
        elif stat.S_ISDIR(info.st_mode):
            kind = "directory"
            stack += [os.path.join(name, below) for below in os.listdir(full)]
        found[name or "."] = _Facts(
            kind,
            stat.S_IMODE(info.st_mode),
            length,
            info.st_mtime_ns,
            content,
            (info.st_ino, info.st_ctime_ns) if identity else None,
        )
    return found


def differences(old: Fingerprint, new: Fingerprint) -> str:
    """Tell in a few words how two trees differ."""
    missing, extra = sorted(set(old) - set(new)), sorted(set(new) - set(old))
    changed = sorted(name for name in set(old) & set(new) if old[name] != new[name])
    parts = [
        f"{len(names)} {word} ({names[0]})"
        for word, names in (("missing", missing), ("extra", extra), ("changed", changed))
        if names
    ]
    return ", ".join(parts) or "the trees are the same"
