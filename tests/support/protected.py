"""A machine on which a command may change nothing but the test's own directory, however much it is meant to clean.

`Protected.run` gives the command mounts of its own, as a hardened service has them: everything is read-only but `root`
and what else is named, and the places for temporary files, sockets and locks are empty. ``cachekit`` is on its PATH.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.ordinary_user import PROJECT
from tests.support.processes import TIMEOUT_SECONDS, Arg, Result, Running, start

EMPTY = ("/tmp", "/var/tmp", "/run")

_KERNEL = ("/proc", "/sys", "/dev")

#: What is shown again is held by a descriptor: its path ends when what lies above it is hidden.
_SCRIPT = """
set -e
{hold}
{hide}
{show}
while read -r _ _ _ _ place _; do
    case $(printf '%b.' "$place") in
        {open}) ;;
        *) mount -o remount,bind,ro "$(printf '%b' "$place")" ;;
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


def cachekit_in(folder: Path) -> Path:
    """Put the command line of this checkout into `folder`, as an installation would."""
    command = f'exec {shlex.quote(sys.executable)} -P -m cachekit "$@"'
    return program(folder, "cachekit", f"export PYTHONPATH={shlex.quote(str(PROJECT))}", command)


@dataclass(frozen=True)
class Protected:
    """The machine as commands see it; only root can make one (`requires("bind")`).

    `binds` shows directories of the test in places of the machine: `{Path("/opt"): root / "opt"}`. `writable` are
    places that commands may also write, apart from `root`, what is bound and what is empty; `shows` are others that
    they see although what lies above is empty.
    """

    root: Path
    binds: Mapping[Path, Path] = field(default_factory=dict)
    writable: Sequence[Path] = ()
    shows: Sequence[Path] = ()
    empty: Sequence[str] = EMPTY

    def __post_init__(self) -> None:
        """Install what every machine has."""
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
        tools = {Path(found).parent for name in ("node", "git") if (found := shutil.which(name))}
        path = [self.bin, *tools, *map(Path, ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"))]
        return {"PATH": ":".join(map(str, dict.fromkeys(path))), "HOME": str(self.home), "LANG": "C.UTF-8"}

    def run(
        self, *command: Arg, env: Mapping[str, str], cwd: Path | None = None, seconds: float = TIMEOUT_SECONDS
    ) -> Result:
        """Run a command to its end, with exactly this environment, in `cwd` (else in `root`)."""
        with self.start(*command, env=env, cwd=cwd) as running:
            return running.wait(seconds)

    def start(self, *command: Arg, env: Mapping[str, str], cwd: Path | None = None) -> Running:
        """Start a command, to be watched or killed."""
        own: list[Arg] = ["unshare", "--mount", "--propagation=private", "--"]
        shell: list[Arg] = ["/bin/sh", "-c", self._script(), "sh", cwd or self.root]
        return start([*own, *shell, *command], env=env, cwd=Path("/"))

    def _script(self) -> str:
        shown = {path: path for path in (Path(sys.base_prefix), Path(sys.prefix), PROJECT, self.root)}
        shown |= {path: path for path in (*self.shows, *self.writable)}
        shown |= {place: source.resolve() for place, source in self.binds.items()}
        open_places = [*_KERNEL, *self.empty, *map(str, (self.root, *self.binds, *self.writable))]
        held = dict(enumerate(shown.items(), 3))
        return _SCRIPT.format(
            hold="\n".join(f"exec {fd}<{_quoted(source)}" for fd, (_, source) in held.items()),
            hide="\n".join(f"mount -t tmpfs -o mode=1777 tmpfs {_quoted(place)}" for place in self.empty),
            show="\n".join(
                f"mkdir -p {_quoted(place)}\n"
                f"mount --no-canonicalize --bind /proc/self/fd/{fd} {_quoted(place)}\n"
                f"exec {fd}<&-"
                for fd, (place, _) in held.items()
            ),
            open="|".join(f"{_quoted(place)}.|{_quoted(place)}/*" for place in open_places),
        )


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))
