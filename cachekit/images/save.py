"""Save images: out of the engine straight into an entry, checked on the way; whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from cachekit.archive.check import check_archive
from cachekit.archive.held import Held
from cachekit.archive.read import Archive, open_archive
from cachekit.archive.seal import Seal
from cachekit.archive.stream import StreamMember, write_stream
from cachekit.archive.write import BaseRotten, Progress, Written
from cachekit.cache.estimate import family_ratio
from cachekit.cache.saving import is_stored, new_seal, save_once, take_room
from cachekit.engine.client import Engine
from cachekit.engine.objects import Info
from cachekit.errors import CachekitError, Damaged, EngineFailed, InvalidRequest, Refused
from cachekit.images.direct import NotFromHere, members_from_data_root
from cachekit.images.engine import connected, engine_errors
from cachekit.images.incoming import Look, members_of
from cachekit.images.names import Wanted, image_platform, resolve
from cachekit.images.room import require_room, room_to_save
from cachekit.model import LEVELS, EntryIdentity, Key, SaveReport, StoreAddress, Target
from cachekit.store.directory import DirectoryStore
from cachekit.system.publish import TempFile
from cachekit.system.workers import worker_count

__all__ = ["ImageSaveReport", "ImageSaveRequest", "save_images"]

_TARGETS = [Target("root", b".")]
#: So many earlier entries are looked at for layers: the family's first, then the newest.
_EARLIER = 4
#: With and without earlier entries, from the data root and from the engine.
_ATTEMPTS = 4
#: What index, seal and a frame begun take at most besides the contents.
_OVERHEAD = 1 << 20


@dataclass(slots=True)
class ImageSaveRequest:
    """Which images to save, and how; as ``cache.save.SaveRequest`` where the names are the same.

    ``engine`` gives the engine; tests set it. ``stall``: how many seconds it may be silent.
    """

    key: str
    images: list[str]
    store: StoreAddress | str
    level: int = 3
    force: bool = False
    wait_seconds: float = 0.0
    family: str | None = None
    min_free: int = 0
    #: Pack every layer anew instead of copying those that an earlier entry holds.
    full: bool = False
    #: "auto": read the engine's data root where that is possible; "engine": only what it sends.
    source: Literal["auto", "engine"] = "auto"
    stall: float | None = None
    progress: Progress | None = None
    make_room: Callable[[int], None] | None = None
    engine: Callable[[], Engine] = connected


@dataclass(slots=True)
class ImageSaveReport(SaveReport):
    """What a save of images did. ``images`` has for each: names, id (of the config), platform, layers, bytes."""

    images: list[dict[str, object]] = field(default_factory=list)
    #: Where the images came from: data-root or engine.
    source: str = ""


def save_images(request: ImageSaveRequest) -> ImageSaveReport:
    """Save images under the key.

    Guaranteed: when this returns "saved", the entry is whole, durable and published, it holds exactly the images that
    the names meant when this was called, each layer and config with its digest, and its decompressed tar is an archive
    that ``docker load`` reads. On any error or kill, also of the engine, the store serves what it served before.

    Raises NoEngine, EngineFailed, InvalidRequest, NothingMatched, NoSpace, SourceChanged, LockTimeout,
    StoreUnavailable.
    """
    begin = time.perf_counter()
    key = Key(request.key)
    if request.level not in LEVELS:
        raise InvalidRequest(
            f"there is no compression level {request.level}", expected="-50 to 22", found=request.level
        )
    identity = EntryIdentity(key, image_platform())
    store = DirectoryStore(request.store)
    store.trust.require_signer()
    engine = request.engine()
    with engine_errors("tell of its images"):
        wanted = resolve(engine, request.images)
    store.prepare()
    report = ImageSaveReport("saved", key.text, identity.file_name, str(identity.platform))

    def work() -> None:
        _save(request, store, identity, engine, wanted, report)

    save_once(store, identity, report, work, force=request.force, wait_seconds=request.wait_seconds)
    report.seconds = time.perf_counter() - begin
    return report


def _save(
    request: ImageSaveRequest,
    store: DirectoryStore,
    identity: EntryIdentity,
    engine: Engine,
    wanted: list[Wanted],
    report: ImageSaveReport,
) -> None:
    full = request.full
    report.source = "data-root" if request.source == "auto" else "engine"
    for _ in range(_ATTEMPTS):
        with _earlier(request, store, identity, full=full) as earlier, store.temporary(identity) as temp:
            try:
                written = _write(request, store, identity, engine, wanted, temp, Held(earlier), report)
            except BaseRotten:
                report.warnings.append("a layer of an earlier entry is damaged, or another; all is new")
                full = True
                continue
            except NotFromHere:
                report.source = "engine"
                continue
            _check(temp, store)
            outcome = store.publish(temp, identity, replace=request.force)
            if outcome == "exists" and not is_stored(store, identity, report):
                outcome = store.publish(temp, identity, replace=store.trust.required)
            if outcome == "published":
                report.status = "saved"
                _fill(report, written, earlier)
                store.mark_used(identity.file_name)
            elif report.status == "saved":
                report.status = "in-progress"  # another saver holds the claim and has not renamed yet
            return
    raise EngineFailed("the layers of the image are not the same twice")


@contextlib.contextmanager
def _earlier(
    request: ImageSaveRequest, store: DirectoryStore, identity: EntryIdentity, *, full: bool
) -> Iterator[list[Archive]]:
    """Open entries whose layers may be copied: the family's newest first. One that cannot be read is left out."""
    with contextlib.ExitStack() as stack:
        archives: list[Archive] = []
        if not full:
            family = _family(request, identity)
            found = [c for c in store.candidates("", str(identity.platform)) if c.trusted and c.seal]
            found.sort(key=lambda c: c.seal is not None and c.seal.family == family, reverse=True)
            for candidate in found[:_EARLIER]:
                with contextlib.suppress(CachekitError, OSError):
                    path = store.entry_path(candidate.name)
                    archive = stack.enter_context(open_archive(path, store.trust))
                    store.check_filing(archive, candidate.name)
                    if not store.denied(path) and archive.seal.level == request.level:
                        archives.append(archive)
        yield archives


def _family(request: ImageSaveRequest, identity: EntryIdentity) -> str:
    return request.family or identity.key.family


def _write(
    request: ImageSaveRequest,
    store: DirectoryStore,
    identity: EntryIdentity,
    engine: Engine,
    wanted: list[Wanted],
    temp: TempFile,
    held: Held,
    report: ImageSaveReport,
) -> Written:
    family = _family(request, identity)
    ratio = family_ratio(store, family, "" if request.family else family, identity.platform)
    with engine_errors("tell of itself"):
        info = engine.info()
    direct = members_from_data_root(info, wanted, held.sizes()) if report.source == "data-root" else None
    _reserve(request, store, info, wanted, temp, ratio, copied=direct is None)
    look = Look()

    def seal() -> Seal:
        described = new_seal(identity, family, list(_TARGETS), {}, request.level)
        described.images = look.images(wanted)
        return described

    def write(members: Iterator[StreamMember]) -> Written:
        return write_stream(
            members,
            temp,
            level=request.level,
            threads=worker_count(),
            seal=seal,
            seen=look.seen,
            wants=look.wants,
            held=held,
            progress=request.progress,
            trust=store.trust,
        )

    try:
        if direct is not None:
            try:
                return write(direct)
            except (Damaged, EngineFailed) as error:  # the engine may know better
                raise NotFromHere(str(error)) from None
        with (
            engine_errors("send the image"),
            engine.export([w.reference for w in wanted], stall=request.stall) as tar,
        ):
            try:
                return write(members_of(tar))
            except Damaged as error:
                said = f"it says: {tar.last_words}" if tar.last_words else str(error)
                raise EngineFailed(f"the engine sent no whole image: {said}") from None
    except CachekitError:
        raise
    except OSError as error:
        raise store.explain(error, "write to") from None


def _reserve(
    request: ImageSaveRequest,
    store: DirectoryStore,
    info: Info,
    wanted: list[Wanted],
    temp: TempFile,
    ratio: float,
    *,
    copied: bool,
) -> None:
    """Look for room in the store, and for the copy that the engine makes; then take the store's."""
    total = sum(one.details.size for one in wanted)
    needs = room_to_save(info, total) if copied else []
    require_room(needs, min_free=0)
    entry = int(total * ratio) + _OVERHEAD
    take_room(store, temp, entry, min_free=request.min_free, make_room=request.make_room)
    # What the entry takes is taken by now: what is left must do for the engine.
    require_room(needs, min_free=0)


def _check(temp: TempFile, store: DirectoryStore) -> None:
    """Read the entry's seal and index back as a reader will. Raises EngineFailed if that would refuse it."""
    try:
        with Archive(os.fsencode(temp.name), os.dup(temp.fd), store.trust) as archive:
            check_archive(archive)
    except Refused as error:
        what = (
            f" ({error.path.decode('utf-8', 'backslashreplace')!r})" if isinstance(error.path, bytes) else ""
        )
        raise EngineFailed(f"the engine sent what no entry may hold: {error.message}{what}") from None


def _fill(report: ImageSaveReport, written: Written, earlier: list[Archive]) -> None:
    seal = written.seal
    report.identity = seal.identity
    report.members, report.files = seal.members, seal.counts["files"]
    report.content_bytes, report.archive_bytes = seal.content_bytes, written.archive_bytes
    report.copied_bytes, report.phases = written.copied_bytes, written.phases
    if written.copied_frames:
        report.base = earlier[0].seal.key
    report.images = [
        {
            "names": list(image.names),
            "id": image.config,
            "platform": image.platform,
            "layers": len(image.layers),
            "bytes": sum(layer.size for layer in image.layers),
        }
        for image in seal.images or []
    ]
