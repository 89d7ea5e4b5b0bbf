"""A directory mounted once more through a file system whose calls fail on command.

::

    with flaky(tmp_path / "backing") as disk:
        disk.set_fault("write", errno=errno.ENOSPC, after=1 << 20)      # a short write, then ENOSPC
        ...                                                             # work below disk.mount
        disk.clear()

Needs the capability `fuse`. What is written through the mount is found in the backing directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tests.support import filesystems
from tests.support.faults import Fault, Operation
from tests.support.ordinary_user import PROJECT


class Flaky:
    """A running flaky mount: `mount` is where it shows what `backing` holds."""

    def __init__(self, mount: Path, backing: Path, faults: Path) -> None:
        self.mount, self.backing = mount, backing
        self._file = faults
        self._faults: dict[str, Fault] = {}
        self._publish()

    def set_fault(
        self,
        operation: Operation,
        *,
        errno: int | None = None,
        match: str = "",
        skip: int = 0,
        times: int | None = None,
        delay: float = 0,
        after: int | None = None,
        lie: Literal["cut", "hole"] | None = None,
        flip: int | None = None,
        short: int | None = None,
    ) -> None:
        """Replace the fault of one operation, from the next call on; its counts begin anew. See `Fault`."""
        self._faults[operation] = Fault(errno, match, skip, times, delay, after, lie, flip, short)
        self._publish()

    def clear(self) -> None:
        """Make everything work again."""
        self._faults.clear()
        self._publish()

    def _publish(self) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps({name: asdict(fault) for name, fault in self._faults.items()}))
        fresh.replace(self._file)


@contextmanager
def flaky(backing: Path) -> Iterator[Flaky]:
    """Mount `backing` (made if missing) flaky, without a fault to begin with; unmount at the end."""
    backing.mkdir(parents=True, exist_ok=True)
    with filesystems.private_directory() as base:
        mount = base / "mount"
        mount.mkdir()
        disk = Flaky(mount, backing, base / "faults.json")
        log = base / "log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.support.passthrough", backing, mount, base / "faults.json"],
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(PROJECT)},
            )
        try:
            _await_mount(server, mount, log)
            yield disk
        finally:
            _stop(server, mount)


def _await_mount(server: subprocess.Popen[bytes], mount: Path, log: Path) -> None:
    deadline = time.monotonic() + 20
    while mount not in filesystems.mounts_below(mount):
        if server.poll() is not None or time.monotonic() > deadline:
            raise filesystems.CannotMountError(f"the flaky server did not mount: {log.read_text()[-2000:]}")
        time.sleep(0.01)


def _stop(server: subprocess.Popen[bytes], mount: Path) -> None:
    if mount in filesystems.mounts_below(mount):
        filesystems.unmount(mount)
    try:
        server.wait(1)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
