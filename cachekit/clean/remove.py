"""Removing a rule's units: each is looked at again after it was renamed, and before anything in it is removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from cachekit.clean.model import Done, Unit
from cachekit.system.holders import Holders
from cachekit.system.removal.trash import discard_all, finish, leftovers

__all__ = ["finish_leftovers", "remove_units"]


#: Units are removed in lots: a look at all processes costs ten milliseconds, and a small tree less. The goal is looked
#: at after each lot, so a lot is small; one whose size is unknown is a lot of its own.
_LOT_UNITS = 64
_LOT_BYTES = 64 << 20


def remove_units(
    units: Sequence[Unit],
    *,
    enough: Callable[[int], bool],
    missing: Callable[[], int],
    known: Callable[[], Holders],
    holders: Callable[[], Holders],
) -> Done:
    """Remove the units in their order until ``enough(bytes removed)``; return what went and what stayed.

    ``missing``: the bytes that are still to be freed, 0 if that is not known: no more than needed goes at a time.
    ``holders`` gives a new look at who uses what, ``known`` one that may be some seconds old.
    """
    done = Done(size=0)
    begin = time.monotonic()

    def look() -> Callable[[bytes], str | None]:
        now = holders()

        def look_again(path: bytes) -> str | None:
            holder = now.of(path)
            return f"in use: {holder}" if holder is not None else None

        return look_again

    for number, lot in enumerate(_lots(units, missing)):
        if number and enough(done.size or 0):
            break
        going = []
        for unit in lot:
            # The survey may be long ago, and a file, unlike a directory, is not looked at again under another name.
            holder = known().of(unit.name)
            if holder is not None:
                done.left.append((unit.name, f"in use: {holder}"))
            else:
                going.append(unit.name)
        removed = discard_all(going, look=look)
        done.items += removed.items
        done.size = (done.size or 0) + removed.size
        done.left += removed.left
    done.seconds = time.monotonic() - begin
    return done


def _lots(units: Sequence[Unit], missing: Callable[[], int]) -> Iterator[list[Unit]]:
    lot: list[Unit] = []
    size = 0
    most = min(_LOT_BYTES, missing() or _LOT_BYTES)
    for unit in units:
        if lot and (
            unit.size is None or size + unit.size > _LOT_BYTES or size >= most or len(lot) == _LOT_UNITS
        ):
            yield lot
            lot, size = [], 0
            most = min(_LOT_BYTES, missing() or _LOT_BYTES)
        lot.append(unit)
        size += _LOT_BYTES if unit.size is None else unit.size
    if lot:
        yield lot


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
