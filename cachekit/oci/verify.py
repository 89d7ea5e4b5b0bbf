"""Verify an OCI layout: all that index.json leads to is there, has its length and its digest. Changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import local

from cachekit.errors import NothingMatched
from cachekit.oci.graph import Blob, Graph, walk
from cachekit.oci.layout import BlobFile, Layout

__all__ = ["BlobFault", "LayoutReport", "verify_layout"]

#: Called now and then with (bytes hashed, bytes in all).
Progress = Callable[[int, int], None]

_PIECE = 1 << 20
#: A build that writes beside us may be caught between two of its steps: then look again.
_LOOKS = 3
_PAUSE = 0.3
#: So many references are told as text for each fault; one layer may be needed by thousands.
_MOST_NAMES = 20

#: What BuildKit does about it (measured with 0.13 and 0.25).
_CONSEQUENCE = {
    "index": "a build goes on without this cache",
    "manifest": "a build goes on without this cache",
    "config": "a build goes on without this cache",
    "layer": "a build that needs this layer fails",
}


@dataclass(frozen=True, slots=True)
class BlobFault:
    """What is wrong with a blob or document, which references it spoils, and what a build would do."""

    digest: str
    problem: str
    names: list[str] = field(default_factory=list)
    consequence: str = ""

    def __str__(self) -> str:
        short = self.digest[:19]
        about = f"{short} " if short and short not in self.problem else ""
        names = ", ".join(self.names[:_MOST_NAMES])
        if (more := len(self.names) - _MOST_NAMES) > 0:
            names += f" and {more} more"
        needed = f" (needed by {names}: {self.consequence})" if names else ""
        return f"{about}{self.problem}{needed}"


@dataclass(slots=True)
class LayoutReport:
    """What a layout holds. Sizes in bytes. ``unreferenced`` and ``ingest`` (name, size) are no faults (``oci gc``)."""

    path: str
    ok: bool = True
    kind: str = "oci"
    references: list[dict[str, object]] = field(default_factory=list)
    blobs: int = 0
    bytes: int = 0
    faults: list[BlobFault] = field(default_factory=list)
    unreferenced: list[tuple[str, int]] = field(default_factory=list)
    ingest: list[tuple[str, int]] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    #: Something of a layout is here; if not, nobody should be told to remove the directory.
    recognised: bool = True
    seconds: float = 0.0


def verify_layout(
    path: str,
    *,
    threads: int = 2,
    quick: bool = False,
    progress: Progress | None = None,
    within: int | None = None,
) -> LayoutReport:
    """Verify the layout at ``path``; with ``quick`` existence and sizes only. Raises NothingMatched, SourceUnreadable.

    A blob is hashed by one thread, blobs by several, the largest first. ``within``: see ``Layout``; what lies there
    came out of an entry, so what nobody could put right is a fault, and no error of who named the directory.
    """
    begin = time.perf_counter()
    known: dict[str, BlobFile] = {}
    try:
        opened = Layout(path, within)
    except NothingMatched as error:
        if within is None:
            raise
        return LayoutReport(path, ok=False, faults=[BlobFault("", error.message)], recognised=False)
    with opened as layout:
        if within is not None and (links := layout.links()):
            told = [
                BlobFault("", f"{name} is a link, and links in a layout are not followed") for name in links
            ]
            return LayoutReport(path, ok=False, faults=told)
        for look in range(1, _LOOKS + 1):
            report, index = _look(layout, known, threads=threads, quick=quick, progress=progress)
            # Damage stays; what a build is about to put right does not. Nobody else writes to what is in staging.
            if report.ok or within is not None or look == _LOOKS:
                break
            if look > 1 and layout.read_index() == index:
                break
            time.sleep(_PAUSE)
    report.seconds = time.perf_counter() - begin
    return report


def _look(
    layout: Layout,
    known: dict[str, BlobFile],
    *,
    threads: int,
    quick: bool,
    progress: Progress | None,
) -> tuple[LayoutReport, bytes | None]:
    """Look once. ``known``: blobs whose digest was found right, as they were then."""
    report = LayoutReport(layout.path, recognised=layout.looks_like_one())
    index = layout.read_index()
    faults = report.faults
    faults += _version_faults(layout.read_version())
    if index is None:
        faults.append(BlobFault("", "there is no index.json: no build has finished an export here"))
    graph = walk(index, layout.document) if index is not None else Graph()
    files, report.odd = layout.blobs()
    for digest, problem in graph.faults:
        faults.append(_fault(graph, digest, problem))
    there = []
    for blob in graph.blobs.values():
        file = files.get(blob.digest)
        if file is None:
            if not (blob.elsewhere or blob.optional):
                faults.append(_fault(graph, blob.digest, f"is missing ({blob.role}, {blob.size} bytes)"))
        elif file.size != blob.size:
            lacks = f"{file.size} bytes instead of {blob.size}"
            faults.append(_fault(graph, blob.digest, f"has another length ({blob.role}): {lacks}"))
        else:
            there.append((blob, file))
    if not quick:
        for blob, problem in _hash(layout, there, known, threads, progress):
            faults.append(_fault(graph, blob.digest, problem))
    report.kind = "buildkit-cache" if any(one.cache for one in graph.references) else "oci"
    spoiled = {name for fault in faults for name in fault.names}
    report.references = [
        {"name": one.name, "digest": one.digest, "cache": one.cache, "ok": one.name not in spoiled}
        for one in graph.references
    ]
    report.blobs = len(graph.blobs)
    report.bytes = sum(file.size for _, file in there)
    report.unreferenced = sorted((d, file.size) for d, file in files.items() if d not in graph.blobs)
    report.ingest = [(one.name, one.size) for one in layout.ingests()]
    report.ok = not faults
    return report, index


def _version_faults(data: bytes | None) -> list[BlobFault]:
    if data is None:
        return [
            BlobFault(
                "", "there is no file oci-layout: this is no OCI layout, or no export has finished here"
            )
        ]
    try:
        version = json.loads(data).get("imageLayoutVersion")
    except (ValueError, AttributeError, RecursionError):
        return [BlobFault("", "the file oci-layout is damaged")]
    if not isinstance(version, str) or not version.startswith("1."):
        return [BlobFault("", "the file oci-layout names a version that is not known")]
    return []


def _fault(graph: Graph, digest: str, problem: str) -> BlobFault:
    blob = graph.blobs.get(digest)
    consequence = _CONSEQUENCE[blob.role] if blob is not None else ""
    return BlobFault(digest, problem, graph.needed_by(digest), consequence)


def _hash(
    layout: Layout,
    blobs: list[tuple[Blob, BlobFile]],
    known: dict[str, BlobFile],
    threads: int,
    progress: Progress | None,
) -> list[tuple[Blob, str]]:
    """Hash blobs, several at a time; return those that are not what they are called, with the reason."""
    todo = [(blob, file) for blob, file in blobs if known.get(blob.digest) != file]
    todo.sort(key=lambda pair: pair[1].size, reverse=True)
    total, done = sum(file.size for _, file in todo), 0
    here = local()
    found = []
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="hash") as pool:
        work = pool.map(lambda pair: _problem(layout, pair[0], here), todo)
        for (blob, file), problem in zip(todo, work, strict=True):
            if problem:
                found.append((blob, problem))
            else:
                known[blob.digest] = file
            done += file.size
            if progress is not None:
                progress(done, total)
    return found


def _problem(layout: Layout, blob: Blob, here: local) -> str:
    """Return why a blob is not what it is called; empty if it is."""
    algorithm, _, expected = blob.digest.partition(":")
    digest = hashlib.new(algorithm)
    if not hasattr(here, "buffer"):
        here.buffer = memoryview(bytearray(_PIECE))
    buffer: memoryview = here.buffer
    try:
        fd = layout.open_blob(blob.digest)
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "is no file"
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := os.readv(fd, [buffer]):
            digest.update(buffer[:count])
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    finally:
        os.close(fd)
    found = digest.hexdigest()
    return "" if found == expected else f"has other bytes than its digest says ({blob.role})"
