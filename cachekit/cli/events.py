"""Writing down what a command did, after its report. Best effort: see ``telemetry.ledger``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

from cachekit.cache.prune import PruneReport
from cachekit.errors import CachekitError, Refused
from cachekit.model import Namespace, RestoreReport, SaveReport, StoreAddress
from cachekit.system.clock import this_platform
from cachekit.telemetry import events
from cachekit.telemetry.ledger import record

__all__ = ["failures", "record_lock_wait", "record_prune", "record_restore", "record_save"]


def record_save(store: StoreAddress | str, report: SaveReport, cache: str | None = None) -> None:
    """Write down a save; ``cache`` is its name or family, if it is not that of the key."""
    address = StoreAddress.of(store)
    record(address, [events.saved(report, address.namespace.text, cache=cache, job=_job())])


def record_restore(store: StoreAddress | str, report: RestoreReport, cache: str | None = None) -> None:
    """Write down a restore, and each entry that it refused."""
    address = StoreAddress.of(store)
    platform = str(this_platform())
    record(address, events.restored(report, address.namespace.text, platform, cache=cache, job=_job()))


def record_prune(report: PruneReport) -> None:
    """Write down each entry that a prune removed, in the ledger of its namespace."""
    if report.dry_run:
        return
    job = _job()
    for space in sorted({line.namespace for line in report.lines if line.result == "removed"}):
        gone = (
            events.evicted(space, line.entry, line.key, line.bytes, line.reason, job=job)
            for line in report.lines
            if line.namespace == space and line.result == "removed" and line.kind == "entry"
        )
        record(StoreAddress(report.store, Namespace(space)), gone)


def record_lock_wait(
    store: StoreAddress | str, name: str, seconds: float, outcome: Literal["got", "timeout"]
) -> None:
    """Write down that a lock was waited for."""
    address = StoreAddress.of(store)
    record(address, [events.lock_waited(address.namespace.text, name, seconds, outcome, job=_job())])


@contextlib.contextmanager
def failures(
    kind: Literal["save", "restore"], key: str, store: StoreAddress | str, cache: str | None = None
) -> Iterator[None]:
    """Write down an error that ends the block, if it is one of the store's or the machine's (exit code 4 and more)."""
    try:
        yield
    except CachekitError as error:
        if Refused.exit_code <= error.exit_code < 100:
            address = StoreAddress.of(store)
            event = events.failed(kind, key, error, address.namespace.text, cache=cache, job=_job())
            record(address, [event])
        raise


def _job() -> str | None:
    return events.job_of(os.environ)
