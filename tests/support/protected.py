"""A machine on which a command may change nothing but the test's own directory, however much it is meant to clean.

`Protected.run` gives the command mounts of its own, as a hardened service has them: everything is read-only but `root`
and what else is named, and the places for temporary files, sockets and locks are empty. ``cachekit`` is on its PATH.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import tools
from tests.support.ordinary_user import PROJECT
from tests.support.processes import TIMEOUT_SECONDS, Arg, Result, Running, start

EMPTY = ("/tmp", "/var/tmp", "/run")

_KERNEL = ("/proc", "/sys", "/dev")

#: For bash, since what is shown again is held by many descriptors: a path ends when what lies above it is hidden.
_SCRIPT = """
set -e
{mounts}
seen_at() {{ # prints the id of the mount that a path leads to
    if [ -d "$1" ] || [ -f "$1" ]; then
        while read -r name value; do
            if [ "$name" = mnt_id: ]; then echo "$value"; fi
        done 3<"$1" </proc/self/fdinfo/3
    fi
}}
while read -r id _ _ _ place _; do
    place=$(printf '%b' "$place")
    case $place/ in
        {open}) ;;
        *) if [ "$(seen_at "$place")" = "$id" ]; then mount -o remount,bind,ro "$place"; fi ;; # else another hides it
    esac
done </proc/self/mountinfo
cd "$1"
shift
exec "$@"
"""


def program(folder: Path, name: str, *lines: str) -> Path:
    """Write an executable shell script into `folder`, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def cachekit_in(folder: Path, *, days_later: int = 0) -> Path:
    """Put the command line of this checkout into `folder`, as an installation would; its clock may be ahead."""
    start_it = "-m cachekit"
    if days_later:
        shift = (
            f"import time; now = time.time_ns; time.time_ns = lambda: now() + {days_later * 86_400 * 10**9}"
        )
        start_it = "-c " + shlex.quote(f"{shift}; from cachekit.__main__ import main; main()")
    return program(
        folder,
        "cachekit",
        f"export PYTHONPATH={shlex.quote(str(PROJECT))} PYTHONDONTWRITEBYTECODE=1",
        f'exec {shlex.quote(sys.executable)} -P {start_it} "$@"',
    )


@dataclass(frozen=True)
class Protected:
    """The machine as commands see it; only root can make one (`requires("bind")`).

    `binds` shows directories of the test in places of the machine: `{Path("/opt"): root / "opt"}`. What may be written
    is `root`, what is bound and what is empty, unless `sandbox` names all of it, as ``ReadWritePaths=`` of a unit does.
    """

    root: Path
    binds: Mapping[Path, Path] = field(default_factory=dict)
    sandbox: Sequence[Path] | None = None

    def __post_init__(self) -> None:
        """Install what every machine has."""
        if not (self.bin / "cachekit").exists():
            cachekit_in(self.bin)
        self.home.mkdir(exist_ok=True)

    @property
    def bin(self) -> Path:
        """A directory on the PATH, for programs of the test."""
        return self.root / "bin"

    @property
    def home(self) -> Path:
        """The user's home directory."""
        return self.root / "home"

    def environment(self) -> dict[str, str]:
        """Make the environment of a user of this machine."""
        path = tools.environment(self.home)["PATH"]
        return {"PATH": f"{self.bin}:{path}", "HOME": str(self.home), "LANG": "C.UTF-8"}

    def run(
        self, *command: Arg, env: Mapping[str, str], cwd: Path | None = None, seconds: float = TIMEOUT_SECONDS
    ) -> Result:
        """Run a command to its end, with exactly this environment, in `cwd` (else in `root`)."""
        with self.start(*command, env=env, cwd=cwd) as running:
            return running.wait(seconds)

    def start(self, *command: Arg, env: Mapping[str, str], cwd: Path | None = None) -> Running:
        """Start a command, to be watched or killed."""
        own: list[Arg] = ["unshare", "--mount", "--propagation=private", "--"]
        shell: list[Arg] = ["/bin/bash", "-c", self._script(), "bash", cwd or self.root]
        return start([*own, *shell, *command], env=env, cwd=Path("/"))

    def _script(self) -> str:
        shown = [Path(sys.base_prefix), Path(sys.prefix), PROJECT, *filter(Path.exists, (tools.NPM,))]
        if self.sandbox is None:
            shown.append(self.root)
        covered = [Path(place) for place in EMPTY]
        for place in self.binds:
            # Made on the machine itself, it would stay there.
            inside = any(place.is_relative_to(above) for above in covered)
            assert inside or place.is_dir(), f"{place} is no directory of this machine"
            covered.append(place)
        # In order of their names: what is mounted above another hides it.
        places = sorted((place, source.resolve()) for place, source in self.binds.items())
        places += [(place, place) for place in shown]
        mounts = [f"exec {fd}<{_quoted(source)}" for fd, (_, source) in enumerate(places, 3)]
        mounts += [f"mount -t tmpfs -o mode=1777 tmpfs {_quoted(place)}" for place in EMPTY]
        mounts.append("mkdir -m 1777 /run/lock")
        for fd, (place, _) in enumerate(places, 3):
            mounts.append(f"mkdir -p {_quoted(place)}")
            mounts.append(f"mount --no-canonicalize --bind /proc/self/fd/{fd} {_quoted(place)}")
            mounts.append(f"exec {fd}<&-")
        writable: Sequence[Path] = [*covered, self.root] if self.sandbox is None else self.sandbox
        if self.sandbox is not None:
            mounts += [f"mount --rbind {_quoted(place)} {_quoted(place)}" for place in writable]
        patterns = [f"{_quoted(place)}/*" for place in (*map(Path, _KERNEL), *writable)]
        return _SCRIPT.format(mounts="\n".join(mounts), open="|".join(patterns))


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))
