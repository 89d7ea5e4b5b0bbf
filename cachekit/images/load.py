"""Load images: the whole entry is verified before the engine gets a byte, and each frame again as it goes there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from cachekit.archive.check import check_archive
from cachekit.archive.extract import check_frames
from cachekit.archive.images import HeldImage
from cachekit.archive.read import Archive
from cachekit.archive.write import Progress
from cachekit.cache.scoped import after
from cachekit.cache.select import attempt, elsewhere, names_to_try, status_without
from cachekit.engine.client import Engine
from cachekit.errors import EngineFailed, InvalidRequest
from cachekit.images.engine import connected, engine_errors
from cachekit.images.incoming import is_same
from cachekit.images.names import image_platform, name_to_give
from cachekit.images.outgoing import tar_of
from cachekit.images.room import require_room, room_to_load
from cachekit.model import Key, RestoreReport, RestoreStatus, StoreAddress
from cachekit.store.directory import DirectoryStore
from cachekit.system.steps import step
from cachekit.system.workers import worker_count

__all__ = ["ImageLoadReport", "ImageLoadRequest", "load_images", "load_scoped"]

#: What the engine was found to have of an image: nothing, the image but not all its names, all.
Presence = Literal["absent", "unnamed", "present"]


@dataclass(slots=True)
class ImageLoadRequest:
    """Which entry's images to load; as ``cache.restore.RestoreRequest`` where the names are the same.

    ``force`` loads images that are there already, too. ``engine`` gives the engine; tests set it. ``stall``: how many
    seconds it may be silent.
    """

    key: str
    store: StoreAddress | str
    restore_keys: list[str] = field(default_factory=list)
    any_platform: bool = False
    min_free: int = 0
    force: bool = False
    stall: float | None = None
    progress: Progress | None = None
    engine: Callable[[], Engine] = connected


@dataclass(slots=True)
class ImageLoadReport(RestoreReport):
    """What a load did. ``images`` has for each: names, id (what this engine calls it), and ``done``.

    ``done``: loaded, present (it was there, with its names), or named (it was there, and was given its names).
    ``said``: what the engine said when it was done.
    """

    images: list[dict[str, object]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def load_images(request: ImageLoadRequest) -> ImageLoadReport:
    """Load the images of the best whole entry: the exact key's, else the newest of the first restore key that has one.

    A miss, and a refusal that leaves nothing to load, are values of the report, as in a restore. Guaranteed: the engine
    gets no byte of an entry that was not verified as a whole before, and none of a frame that is not the same when it
    is sent; then the connection breaks, and the engine keeps nothing that it would list. After "exact" or "partial" the
    engine has said that each name is the image that was saved. Images that it has already are not sent again.

    Raises NoEngine, EngineFailed, InvalidRequest, NoSpace, StoreUnavailable.
    """
    begin = time.perf_counter()
    key = Key(request.key)
    for prefix in request.restore_keys:
        if not prefix:
            raise InvalidRequest("a restore key is empty: it would match every entry of the store")
    store = DirectoryStore(request.store)
    engine = request.engine()
    store.sweep()
    report = ImageLoadReport("miss", key.text, mode="load")
    if store.trust.required and not store.trust.keys:
        report.warnings.append("trust is hmac, and no key is given: no entry can be used")
    verdicts: set[RestoreStatus] = set()
    platform = image_platform()
    for name, exact, _ in names_to_try(
        store, key, request.restore_keys, platform, any_platform=request.any_platform
    ):
        found = attempt(
            store,
            name,
            platform,
            lambda archive: _load(request, engine, archive, report),
            any_platform=request.any_platform,
            images=True,
        )
        for verdict in found:
            if verdict.certain and store.set_aside(store.entry_path(name), verdict.inode):
                report.quarantined.append(name)
            if verdict.word:
                report.passed_over(name, verdict.word, verdict.reason, verdict.error)
        if found[-1].status == "used":
            report.entry = name
            report.status = "exact" if exact and report.matched_key == key.text else "partial"
            store.mark_used(name)
            break
        verdicts.add(found[-1].status)
    else:
        report.status = status_without(verdicts)
        if report.status == "miss" and not request.any_platform:
            for other in elsewhere(store, key, request.restore_keys, platform, images=True):
                word = "miss" if other.word == "platform" else other.word
                report.passed_over(other.name, word, other.reason)
    report.seconds = time.perf_counter() - begin
    return report


def load_scoped(request: ImageLoadRequest, trusted: StoreAddress) -> ImageLoadReport:
    """Load from the request's store, a scope's; else from ``trusted``, as ``cache.scoped`` restores."""
    first = load_images(request)
    return first if first.hit else after(first, load_images(replace(request, store=trusted)))


def _load(request: ImageLoadRequest, engine: Engine, archive: Archive, report: ImageLoadReport) -> None:
    """Bring the entry's images into the engine, or find them there. Raises Refused before the engine has changed."""
    clock = time.perf_counter
    mark = clock()
    check_archive(archive)
    seal = archive.seal
    images = seal.images or []
    with engine_errors("tell of its images"):
        states = ["absent" if request.force else _presence(engine, image) for image in images]
    if "absent" in states:
        check_frames(archive, worker_count(), request.progress)
        report.phases["verify"] = clock() - mark
        step("load.verified")
        _require_room(request, engine, archive)
        mark = clock()
        report.said = _send(request, engine, archive)
        report.phases["load"] = clock() - mark
    with engine_errors("name an image"):
        for image, state in zip(images, states, strict=True):
            if "absent" not in states and state == "unnamed":
                _give_names(engine, image)
            report.images.append(_confirmed(engine, image, "loaded" if "absent" in states else _DONE[state]))
    report.matched_key, report.identity = seal.key, seal.identity
    report.members, report.files = seal.members, seal.counts["files"]
    report.content_bytes, report.archive_bytes = seal.content_bytes, archive.size


_DONE = {"present": "present", "unnamed": "named"}


def _presence(engine: Engine, image: HeldImage) -> Presence:
    """Look whether the engine has the image, by its names and by its ids."""
    if image.names and all(_is_there(engine, image, name) for name in image.names):
        return "present"
    if any(_is_there(engine, image, identity) for identity in image.ids):
        return "unnamed" if image.names else "present"
    return "absent"


def _is_there(engine: Engine, image: HeldImage, name: str) -> bool:
    details = engine.describe_image(name)
    # By id alone: other images may be made of the same layers, with another command or environment.
    return details is not None and details.id in image.ids


def _give_names(engine: Engine, image: HeldImage) -> None:
    identity = next((one for one in image.ids if _is_there(engine, image, one)), None)
    if identity is None:
        raise EngineFailed("the image went away while it was named", expected=list(image.ids))
    for name in image.names:
        if not _is_there(engine, image, name):
            engine.tag_image(identity, name_to_give(name, podman=engine.info().podman))


def _confirmed(engine: Engine, image: HeldImage, done: str) -> dict[str, object]:
    """Ask the engine for the image under each of its names. Raises EngineFailed if it has another one, or none."""
    found = ""
    for name in image.names or image.ids:
        details = engine.describe_image(name)
        if details is not None and is_same(image.ids, image.diff_ids, details.id, details.diff_ids):
            found = details.id
        elif image.names:
            raise EngineFailed(
                f"the engine took the image {name!r} and has "
                + ("another one under that name" if details is not None else "none of that name"),
                expected=list(image.ids),
                found=details.id if details is not None else None,
            )
    if not found:
        raise EngineFailed(
            "the engine took an image without a name and does not have it", expected=list(image.ids)
        )
    return {"names": list(image.names), "id": found, "platform": image.platform, "done": done}


def _require_room(request: ImageLoadRequest, engine: Engine, archive: Archive) -> None:
    """Look for room where the engine puts the archive as it comes, and its layers unpacked."""
    require_room(room_to_load(engine.info(), archive.seal.tar_bytes), min_free=request.min_free)


def _send(request: ImageLoadRequest, engine: Engine, archive: Archive) -> list[str]:
    total, done = archive.seal.tar_bytes, 0
    with engine_errors("load the image"), engine.load(stall=request.stall) as tar:
        for data in tar_of(archive, worker_count()):
            tar.write(data)
            done += len(data)
            if request.progress is not None:
                request.progress(done, total, archive.seal.members)
        step("load.sent")
        return tar.finish()
