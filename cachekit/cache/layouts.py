"""Caches of kind ``oci``: whole OCI layouts, when they are saved and when they are restored."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from cachekit.errors import Damaged, WrongContent
from cachekit.model import STAGED
from cachekit.oci.held import layout_locked
from cachekit.oci.layout import WHICH
from cachekit.oci.verify import LayoutReport, verify_layout
from cachekit.system.files import opened
from cachekit.system.workers import worker_count

__all__ = ["layouts_held", "require_layouts", "require_restored", "require_staged"]

_HINT = "cachekit oci verify shows all of it; remove the directory and build again"


@contextlib.contextmanager
def layouts_held(places: Iterable[bytes], timeout: float) -> Iterator[None]:
    """Hold the locks of the layouts, shared: builds under ``oci lock`` wait. Raises LockTimeout.

    Where none can be made (a layout that is only read) builds write nothing either.
    """
    with contextlib.ExitStack() as stack:
        for place in sorted(places):
            if os.path.isdir(place):
                with contextlib.suppress(OSError):
                    stack.enter_context(layout_locked(os.fsdecode(place), shared=True, timeout=timeout))
        yield


def require_layouts(places: Iterable[bytes]) -> None:
    """Raise Damaged for a directory that is no whole layout: nothing of it is saved."""
    for place in places:
        report = verify_layout(os.fsdecode(place), threads=worker_count())
        if not report.ok:
            raise Damaged(
                f"this is no whole OCI layout, and was not saved: {report.faults[0]}",
                path=place,
                rung="oci",
                faults=[str(fault) for fault in report.faults],
                hint=_HINT if report.recognised else f"nothing of a layout is here: {WHICH}",
            )


def require_staged(fd: int, place: bytes) -> None:
    """Raise WrongContent if what lies in staging (``fd``) for ``place`` is no whole layout: nothing was changed yet."""
    _require(verify_layout(os.fsdecode(STAGED), threads=worker_count(), within=fd), place)


def require_restored(place: bytes) -> None:
    """Raise WrongContent if what was restored in place is no whole layout."""
    # Below its parent: what came out of an entry is no error of who named it, and a link is not followed.
    parent, name = os.path.split(os.path.abspath(place))
    with opened(parent, follow=True) as fd:
        _require(verify_layout(os.fsdecode(name), threads=worker_count(), within=fd), place)


def _require(report: LayoutReport, place: bytes) -> None:
    if not report.ok:
        raise WrongContent(
            f"the entry holds no whole OCI layout: {report.faults[0]}",
            path=place,
            rung="oci",
            faults=[str(fault) for fault in report.faults],
        )
