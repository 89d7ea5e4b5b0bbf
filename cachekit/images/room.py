"""Room for images on each filesystem that takes part: what is needed where, and whether it is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cachekit.engine.objects import Info
from cachekit.errors import NoSpace
from cachekit.model import format_size
from cachekit.system.space import free_space, pool_of

__all__ = ["Need", "require_room", "room_to_load", "room_to_save"]

#: Where Podman's copies go unless its own $TMPDIR says otherwise, which its API does not tell.
_PODMAN_COPIES = "/var/tmp"  # noqa: S108 - nothing is written there


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that something takes below an existing directory; ``what`` says what, for people."""

    path: str
    size: int
    what: str


def room_to_save(info: Info, size: int) -> list[Need]:
    """Return what an engine needs to send images of ``size`` bytes: Docker's classic store and Podman make a copy.

    Podman 4.3 puts the archive together in one file, beside the layer that it is at. What a remote engine has on its
    disk cannot be asked for.
    """
    if info.remote:
        return []
    if info.podman:
        return [Need(_PODMAN_COPIES, 2 * size, "Podman's copies while it saves")]
    if info.containerd or not info.roots:
        return []
    return [Need(info.roots[0], size, "the engine's copy while it saves")]


def room_to_load(info: Info, tar_bytes: int) -> list[Need]:
    """Return what an engine needs to take an archive of images: for the archive as it comes, and for layers unpacked.

    Layers that are compressed in the archive take more when they are unpacked; how much nobody says beforehand.
    """
    if info.remote:
        return []
    root = info.roots[:1]
    if info.podman:  # 4.3 keeps the archive, and unpacks that beside it
        copies = Need(_PODMAN_COPIES, 2 * tar_bytes, "Podman's copies while it loads")
        return [copies, *(Need(place, tar_bytes, "the engine's image") for place in root)]
    return [Need(place, 2 * tar_bytes, "the engine's image") for place in root]


def require_room(needs: Sequence[Need], *, min_free: int = 0) -> None:
    """Raise NoSpace for the first filesystem on which the needs do not fit together, beside ``min_free``.

    A directory that is not on this machine (an engine elsewhere, another mount namespace) cannot be looked at.
    """
    pools: dict[int, list[Need]] = {}
    for need in needs:
        try:
            pools.setdefault(pool_of(os.fsencode(need.path)), []).append(need)
        except OSError:
            continue
    for together in pools.values():
        total = sum(need.size for need in together)
        try:
            have = free_space(together[0].path).available
        except OSError:
            continue
        if total + min_free > have:
            parts = ", ".join(f"{need.what} {format_size(need.size)}" for need in together)
            short = total + min_free - have
            raise NoSpace(
                f"not enough space at {together[0].path}: need {format_size(total)} ({parts}), have "
                f"{format_size(have)}, short by {format_size(short)}",
                path=together[0].path,
                hint="free space there (cachekit clean does); nothing was written",
                need=total,
                have=have,
                short_by=short,
                min_free=min_free or None,
                unit="bytes",
            )
