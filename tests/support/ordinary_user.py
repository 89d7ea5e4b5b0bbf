"""Running a child as an ordinary user, even when the interpreter lives where only root may go.

A Python below a closed directory (root's home, say) cannot be started by anyone else. Then the child gets a
mount namespace of its own, in which an empty directory with just what Python needs hides the closed one.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
"""The checkout, from which children import cachekit and tests."""

NOBODY = 65534
"""The user and group id of an ordinary user who owns nothing."""


def command_of(user: int) -> list[str]:
    """Return the beginning of a command line that runs the rest as `user`; needs root."""
    drop = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]
    hidden = _closed()
    if not hidden:
        return drop
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", _opening(hidden), "sh", *drop]


@cache
def _closed() -> dict[Path, list[Path]]:
    """Find the outermost directories that others may not enter, each with what is needed from below it."""
    found: dict[Path, list[Path]] = {}
    for path in sorted({Path(os.path.realpath(path)) for path in (sys.base_prefix, sys.prefix, PROJECT)}):
        for above in reversed(path.parents):
            if not above.stat().st_mode & stat.S_IXOTH:
                found.setdefault(above, []).append(path)
                break
    return found


def _opening(hidden: dict[Path, list[Path]]) -> str:
    """Write the shell script that replaces the closed directories and then runs its arguments.

    What is shown again is held by a descriptor, since its path ends with the first mount; mount(8) must
    therefore take the descriptor's name as it stands.
    """
    lines = ["set -e"]
    for closed, paths in hidden.items():
        lines += [f"exec {fd}<{shlex.quote(str(path))}" for fd, path in enumerate(paths, 3)]
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(closed))}")
        for fd, path in enumerate(paths, 3):
            lines.append(f"(umask 022; mkdir -p {shlex.quote(str(path))})")
            lines.append(f"mount --no-canonicalize --bind /proc/self/fd/{fd} {shlex.quote(str(path))}")
            lines.append(f"exec {fd}<&-")
    return "\n".join([*lines, 'exec "$@"'])
