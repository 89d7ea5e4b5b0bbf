"""Removing a rule's units: each is looked at again after it was renamed, and before anything in it is removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from cachekit.clean.model import Done, Unit
from cachekit.system.holders import Holders
from cachekit.system.trash import discard, finish, leftovers
from cachekit.system.workers import worker_count

__all__ = ["finish_leftovers", "remove_units"]


def remove_units(
    units: Sequence[Unit],
    *,
    enough: Callable[[], bool],
    known: Callable[[], Holders],
    holders: Callable[[], Holders],
) -> Done:
    """Remove the units in their order until ``enough()``; return what went and what stayed.

    ``holders`` gives a new look at who uses what, ``known`` one that may be some seconds old.
    """
    done = Done(size=0)
    begin = time.monotonic()
    workers = worker_count()

    def look_again(path: bytes) -> str | None:
        holder = holders().of(path)
        return f"in use: {holder}" if holder is not None else None

    for number, unit in enumerate(units):
        if number and enough():
            break
        # The survey may be long ago, and a file, unlike a directory, is not looked at again once it has another name.
        holder = known().of(unit.name)
        if holder is not None:
            done.left.append((unit.name, f"in use: {holder}"))
            continue
        removed = discard(unit.name, look_again=look_again, workers=workers)
        done.items += removed.items
        done.size = (done.size or 0) + removed.size
        done.left += removed.left
    done.seconds = time.monotonic() - begin
    return done


def finish_leftovers(parents: Iterable[bytes], *, holders: Callable[[], Holders]) -> Done:
    """Remove what killed runs have renamed: in ``parents``, and where they noted it. What is in use stays."""
    done = Done(size=0)
    for path in leftovers(parents):
        holder = holders().of(path)
        if holder is not None:
            done.left.append((path, f"in use: {holder}"))
            continue
        removed = finish(path)
        done.items += removed.items
        done.size = (done.size or 0) + removed.size
        done.left += removed.left
    return done
