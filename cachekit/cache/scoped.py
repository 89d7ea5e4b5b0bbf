"""Restores of jobs that are not trusted: from their own scope first, then from what trusted jobs saved."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from cachekit.cache.restore import RestoreRequest, restore
from cachekit.cache.select import status_without
from cachekit.model import RestoreReport, StoreAddress

__all__ = ["after", "restore_scoped"]

R = TypeVar("R", bound=RestoreReport)


def restore_scoped(request: RestoreRequest, trusted: StoreAddress) -> RestoreReport:
    """Restore from the request's store, a scope's; else from ``trusted``, which should be read-only.

    All keys are tried in the scope first: a restore key's entry of the scope goes before the exact key's of the trusted
    namespace, as between branches in other caches. Guaranteed and raised: as ``restore``.
    """
    first = restore(request)
    return first if first.hit else after(first, restore(replace(request, store=trusted)))


def after(first: R, second: R) -> R:
    """Return the report of a second attempt with what the first one, which was no hit, met."""
    second.tried = first.tried + second.tried
    second.quarantined = first.quarantined + second.quarantined
    second.warnings = first.warnings + second.warnings
    second.seconds += first.seconds
    if not second.hit:
        second.status = status_without({first.status, second.status})
    return second
