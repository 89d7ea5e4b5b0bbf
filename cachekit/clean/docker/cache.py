"""BuildKit's cache inside the engine."""

from __future__ import annotations

import os
import time

from cachekit.clean.docker.state import GoneError, StaysError, Task
from cachekit.clean.model import Docker, Found, Unit
from cachekit.engine.client import Engine, EngineRefused
from cachekit.engine.outcome import EngineUnavailable
from cachekit.model import format_size
from cachekit.system.space import free_space

__all__ = ["remove_build_cache", "survey_build_cache"]

#: Measuring a large cache can take minutes; nothing depends on its size.
_MEASURING_SECONDS = 20.0


def survey_build_cache(task: Task) -> Found:
    """Look at the cache, which is one unit: the engine knows best what of it is least useful."""
    engine, target = task.engine, task.target
    name = b"BuildKit's cache"
    try:
        records = engine.build_cache(timeout=min(target.timeout, _MEASURING_SECONDS))
    except EngineUnavailable:
        records = None  # measuring can take minutes; removing need not
    if records is None:
        return Found("ready", units=[Unit(name)])
    busy = sum(record.in_use for record in records)
    found = Found("ready", left=[(name, f"{busy} records are in use")] if busy else [])
    free = [record.size for record in records if not record.in_use]
    if free:
        bound = max(target.reserved or 0, target.max_used or 0)
        held = sum(record.size for record in records)
        if target.min_free is None and bound and held <= bound:
            found.left.append((name, f"{format_size(held)}, which may stay"))
        else:
            size = sum(record.size for record in records if not record.in_use and not record.shared)
            found.units.append(Unit(name, max(0, size - bound)))
    return found


def remove_build_cache(task: Task, _unit: Unit) -> int | None:
    """Remove the cache down to the rule's bounds, and return the bytes that the engine says it freed.

    Raises StaysError, GoneError.
    """
    engine, target, around = task.engine, task.target, task.around
    reserved, max_used, min_free = target.reserved, target.max_used, target.min_free
    if min_free is not None:
        bound = _bound_for(engine, target, min_free)
        if bound is not None:
            max_used, min_free = bound if max_used is None else min(bound, max_used), None
    for pause in (*around.pauses, None):
        try:
            freed = engine.prune_build_cache(
                unused_seconds=target.older, reserved=reserved, max_used=max_used, min_free=min_free
            )
        except EngineRefused as error:
            if error.status != 409:
                raise
            if pause is None:
                raise StaysError(error.message) from None
            time.sleep(pause)
        else:
            if not freed:
                raise GoneError
            return freed
    raise AssertionError


def _bound_for(engine: Engine, target: Docker, min_free: int) -> int | None:
    """Return how much cache may stay for ``min_free`` bytes to be free, None if only the engine can tell.

    It is not left to the engine where its disk is here: before API 1.48 it cannot, and what it calls free includes the
    blocks that the filesystem keeps for root. Raises StaysError if nothing needs to go, or nobody can tell.
    """
    roots = [root for root in engine.info().roots if os.path.isdir(root)]
    if not roots:
        if engine.api >= (1, 48):
            return None
        raise StaysError("this engine knows no min_free, and its disk is not here")
    missing = min_free - free_space(roots[0]).available
    if missing <= 0:
        raise StaysError("enough is free without it")
    try:
        records = engine.build_cache(timeout=min(target.timeout, _MEASURING_SECONDS), thorough=True)
    except EngineUnavailable:
        raise StaysError("the engine cannot tell its cache's size in time") from None
    return max(target.reserved or 0, sum(record.size for record in records or []) - missing, 1)
