"""Builds with a real BuildKit that export to and import from a local cache directory."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from tests.support.docker import DockerHost

DOCKERFILE = """FROM scratch AS first
COPY first /first
FROM scratch
COPY --from=first /first /first
COPY second /second
"""


class Builder:
    """A build of two steps; the content of the second is `change`d."""

    def __init__(self, host: DockerHost, context: Path) -> None:
        self.host, self.context = host, context
        (context / "Dockerfile").write_text(DOCKERFILE)
        (context / "first").write_bytes(random.Random(0).randbytes(300_000))
        self.change(1)

    def change(self, seed: int, size: int = 200_000) -> None:
        """Give the second step another content."""
        (self.context / "second").write_bytes(random.Random(seed).randbytes(size))

    def command(self, *, to: Path | None = None, source: Path | None = None) -> list[str]:
        """Return the command of a build."""
        options = []
        if to is not None:
            options.append(f"--cache-to=type=local,dest={to},mode=max")
        if source is not None:
            options.append(f"--cache-from=type=local,src={source}")
        return [self.host.command, "buildx", "build", "--progress=plain", *options, str(self.context)]

    def build(self, *, to: Path | None = None, source: Path | None = None) -> str:
        """Build, and return the log."""
        done = self.run(to=to, source=source)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def run(self, *, to: Path | None = None, source: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Build, however it ends."""
        return subprocess.run(
            self.command(to=to, source=source),
            env=self.host.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def forget(self) -> None:
        """Empty the engine, as if on another machine."""
        self.host.empty()
