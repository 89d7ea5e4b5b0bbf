"""Restores of jobs that are not trusted: from their own scope first, then from what trusted jobs saved."""

from __future__ import annotations

from dataclasses import replace

from cachekit.cache.restore import RestoreRequest, restore
from cachekit.cache.select import status_without
from cachekit.model import RestoreReport, StoreAddress

__all__ = ["restore_scoped"]


def restore_scoped(request: RestoreRequest, trusted: StoreAddress) -> RestoreReport:
    """Restore from the request's store, a scope's; else from ``trusted``, which should be read-only.

    All keys are tried in the scope first: a restore key's entry of the scope goes before the exact key's of the trusted
    namespace, as between branches in other caches. Guaranteed and raised: as ``restore``.
    """
    first = restore(request)
    if first.hit:
        return first
    second = restore(replace(request, store=trusted))
    second.tried = first.tried + second.tried
    second.quarantined = first.quarantined + second.quarantined
    second.warnings = first.warnings + second.warnings
    second.seconds += first.seconds
    if not second.hit:
        second.status = status_without({first.status, second.status})
    return second
