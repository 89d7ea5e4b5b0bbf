"""The lock of an OCI layout: whoever exports to it, or collects it, takes it; it lies in the layout itself."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from cachekit.errors import LockTimeout
from cachekit.model import LOCKS_NAME, Key
from cachekit.system.locking.lease import LEASE_SECONDS
from cachekit.system.locking.named import NamedLock
from cachekit.system.locking.record import myself

__all__ = ["LAYOUT_LOCK", "layout_locked", "lock_place"]

#: The name of the lock: ``cachekit lock run oci --dir DIR`` takes it as well.
LAYOUT_LOCK = Key("oci")
_PAUSE = 0.1


def lock_place(path: str) -> str:
    """Return the directory of a layout's locks: in the layout itself, where BuildKit ignores it."""
    return os.path.join(os.path.realpath(path), os.fsdecode(LOCKS_NAME))


@contextlib.contextmanager
def layout_locked(path: str, *, shared: bool, timeout: float) -> Iterator[None]:
    """Hold the lock of a layout, shared or alone. Raises LockTimeout, OSError."""
    lock = NamedLock(
        lock_place(path), LAYOUT_LOCK, myself(("cachekit",), shared=shared), lease=False, length=LEASE_SECONDS
    )
    try:
        deadline = time.monotonic() + timeout
        while not lock.try_acquire():
            if time.monotonic() >= deadline:
                held = "; ".join(f"{one.command} (pid {one.pid} on {one.host})" for one in lock.in_the_way())
                raise LockTimeout(
                    "the layout is in use" + (f" by {held}" if held else ""),
                    path=path,
                    expected=timeout,
                    hint="wait longer with --lock-timeout; cachekit lock ls --dir DIR shows who holds it",
                )
            lock.wait()
            time.sleep(_PAUSE)
        yield
    finally:
        lock.release()
