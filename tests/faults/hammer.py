"""A file that is changed without pause, by another process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.scenes import polled
from tests.support.processes import Running, start

HAMMER = """
import os, sys, time
path, way, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
number = 0
if way in ("append", "rewrite"):
    fd = os.open(path, os.O_WRONLY | (os.O_APPEND if way == "append" else 0))
while True:
    number += 1
    state = b"%09d\\n" % number
    if way == "append":
        os.write(fd, state)
        time.sleep(0.0005)
    elif way == "rewrite":
        os.pwrite(fd, state * (size // 10), 0)
    elif way == "replace":
        with open(path + ".new", "wb") as file:
            file.write(state * (size // 10))
        os.replace(path + ".new", path)
    elif way == "flicker":
        os.rename(path, path + ".away")
        time.sleep(0.0002)
        os.rename(path + ".away", path)
        time.sleep(0.0002)
"""


@contextmanager
def hammering(path: Path, way: str, size: int = 0) -> Iterator[Running]:
    """Change a file without pause, from another process, for the length of a block."""
    before = path.stat().st_mtime_ns, path.stat().st_ino
    with start([sys.executable, "-c", HAMMER, path, way, str(size)]) as running:
        if way != "flicker":
            polled(
                lambda: (path.stat().st_mtime_ns, path.stat().st_ino) != before,
                "the first change",
                lambda: running.alive,
            )
        yield running
        assert running.alive
