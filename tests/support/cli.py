"""The command line as a child process, with a home of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ordinary_user import NOBODY
from tests.support.processes import TIMEOUT_SECONDS, Arg, Result, Running, clean_environment, start


@dataclass(frozen=True)
class Cli:
    """The command line with a home of its own, in which its store is unless a test says otherwise."""

    home: Path
    cwd: Path
    user: int | None = None

    def __call__(
        self,
        *args: Arg,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes = b"",
        seconds: float = TIMEOUT_SECONDS,
    ) -> Result:
        """Run it to its end; `env` adds to the clean environment."""
        with self.start(*args, env=env, cwd=cwd, stdin=stdin) as running:
            return running.wait(seconds)

    def start(
        self, *args: Arg, env: Mapping[str, str] | None = None, cwd: Path | None = None, stdin: bytes = b""
    ) -> Running:
        """Start it, to be watched or killed."""
        for folder in (self.home, self.home / "tmp", self.home / "run"):
            if not folder.exists():
                folder.mkdir(mode=0o700, parents=True)
                if self.user is not None:
                    os.chown(folder, self.user, self.user)
        environment = clean_environment(self.home) | dict(env or {})
        command: list[Arg] = [sys.executable, "-m", "cachekit", *args]
        return start(command, env=environment, cwd=cwd or self.cwd, stdin=stdin, user=self.user)


def run_cli(*args: Arg, home: Path, cwd: Path | None = None, user: int | None = None, **more: Any) -> Result:
    """Run the command line once; see `Cli`."""
    return Cli(home, cwd or home.parent, user)(*args, **more)


def give(root: Path, user: int = NOBODY) -> None:
    """Make `user` the owner of everything at and below `root`."""
    os.lchown(root, user, user)
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in (*folders, *files):
            os.lchown(os.path.join(folder, name), user, user)
