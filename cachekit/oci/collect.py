"""Collect an OCI layout: remove what nothing leads to, beside builds that know nothing of us.

An exporter writes blobs first and index.json last, and takes a blob that is there already without touching it. So:

- a layout on which a build is writing right now is left alone (``busy``);
- what goes is first moved aside, all of it, and index.json is read again a moment later: what it names by then is put
  back, and so is everything if anything was written meanwhile;
- on a full disk a few things go before all others, in the same way, for a directory and an index need room;
- references that are dropped leave index.json, under BuildKit's own lock, before any blob of theirs is touched.

Whatever is killed in between, index.json leads to nothing that is not in its place, or that the next collection does
not put back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from dataclasses import dataclass, field
from typing import Literal

from cachekit.errors import Damaged, NoSpace, NothingMatched, Refused, SourceUnreadable, Unsupported
from cachekit.oci.aside import (
    Aside,
    move_single,
    put_singles_back,
    remove_single,
    single_bytes,
)
from cachekit.oci.graph import Graph, walk
from cachekit.oci.layout import ASIDE, WHICH, Layout
from cachekit.oci.plan import WRITING_NS, CollectPlan, Line, plan_collection
from cachekit.system.clock import now_ns
from cachekit.system.publish import TempFile, sweep
from cachekit.system.space import free_space
from cachekit.system.steps import step

__all__ = ["CollectReport", "CollectRequest", "collect"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
#: What a collection needs itself at the most: a directory, a lock, a new index.json.
_ROOM, _INODES = 1 << 20, 4
#: How a new index.json is called until it is whole.
_NEW_INDEX = f"{ASIDE}-index"


@dataclass(frozen=True, slots=True)
class CollectRequest:
    """What to collect. Times in seconds: ``grace``, ``settle`` (between moving aside and removing); sizes in bytes."""

    path: str
    keep_tags: int | None = None
    max_size: int | None = None
    grace: float = 600.0
    settle: float = 3.0
    dry_run: bool = False


@dataclass(slots=True)
class CollectReport:
    """What was done. ``busy``: a build may be writing here, nothing was removed. ``freed`` in bytes of files."""

    path: str
    status: Literal["done", "busy", "dry-run"] = "done"
    freed: int = 0
    removed: list[Line] = field(default_factory=list)
    kept: list[Line] = field(default_factory=list)
    references: list[Line] = field(default_factory=list)
    restored: int = 0
    remaining: int = 0
    short_by: int = 0
    seconds: float = 0.0


def collect(request: CollectRequest) -> CollectReport:
    """Remove what the request says. The caller holds the layout's lock, if all builds take it (``oci lock``).

    Raises Damaged for a layout whose documents are damaged or missing, and for a directory with blobs and no index.json
    (containerd's own store is one); Unsupported if something is named by a type that is not known: what leads to what
    is not known then. Raises NothingMatched, SourceUnreadable, NoSpace.
    """
    begin = time.perf_counter()
    report = CollectReport(request.path)
    with Layout(request.path) as layout:
        if not layout.looks_like_one():
            raise NothingMatched(
                "this is no OCI layout: nothing of one is here", path=layout.path, hint=WHICH
            )
        try:
            _collect(request, layout, report)
        except OSError as error:
            if error.errno in _FULL:
                raise NoSpace(
                    f"there is no room to begin with: {error.strerror}",
                    path=request.path,
                    hint="remove any file on that filesystem and run it again; index.json is as it was",
                ) from None
            raise SourceUnreadable(
                f"cannot collect the layout: {error.strerror}",
                path=request.path,
                hint="it and its files must be yours to change; nothing that index.json leads to was removed",
            ) from None
    report.seconds = time.perf_counter() - begin
    return report


def _collect(request: CollectRequest, layout: Layout, report: CollectReport) -> None:
    if not request.dry_run:
        put_singles_back(layout)
        for name in layout.asides():
            _finish_aside(Aside(layout, name), report)
        sweep(layout.fd, _NEW_INDEX)
    index = layout.read_index()
    if index is None and _is_young(layout, request.grace):
        report.status = "busy"
        return
    graph = _graph(layout, index)
    before = _signs(layout)
    now = now_ns()
    plan = plan_collection(
        graph,
        layout.blobs()[0],
        layout.ingests(),
        now_ns=now,
        grace_ns=int(request.grace * 1e9),
        keep_tags=request.keep_tags,
        max_size=request.max_size,
    )
    report.kept, report.references = plan.kept, plan.references
    report.remaining, report.short_by = plan.remaining, plan.short_by
    if request.dry_run:
        report.status, report.removed = "dry-run", plan.removed
        report.freed = sum(line.size for line in plan.removed)
        return
    if not plan.removed and not plan.dropped:
        return
    if any(now - one.mtime_ns < max(request.grace * 1e9, WRITING_NS) for one in layout.ingests()):
        report.status = "busy"
        report.references = []
        return
    if not _make_room(request, layout, graph, plan, index, before, report):
        report.status = "busy"
        report.references = []
        return
    aside = Aside.make(layout)
    try:
        if plan.dropped and not _rewrite(layout, index, plan):
            report.status = "busy"
            report.references = []
            aside.remove()
            return
    except OSError:
        aside.remove()
        raise
    step("gc.index-written")
    after_rewrite = layout.read_index()
    for line in plan.removed:
        aside.take(line)
    step("gc.aside")
    if plan.removed:
        time.sleep(request.settle)
    if layout.read_index() != after_rewrite or _signs(layout).written_since(before):
        report.status = "busy"
        report.restored += len(aside.put_back(None))
        aside.remove()
        return
    restored = _finish_aside(aside, report)
    report.removed = [line for line in plan.removed if Aside.key(line) not in restored]
    step("gc.removed")


def _make_room(
    request: CollectRequest,
    layout: Layout,
    graph: Graph,
    plan: CollectPlan,
    index: bytes | None,
    before: _Signs,
    report: CollectReport,
) -> bool:
    """On a full disk remove a few things that nothing leads to, for the collection needs some room. False: busy.

    If there is nothing of the kind, what comes next may fail, and says so.
    """
    space = free_space(layout.fd)
    if space.available >= _ROOM and (space.inodes is None or space.inodes >= _INODES):
        return True
    lines = [line for line in plan.removed if line.kind == "ingest" or line.name not in graph.blobs]
    if not lines:
        return True
    # The largest, for one of a few bytes may give no block back.
    largest = sorted(lines, key=lambda line: line.size, reverse=True)[:_INODES]
    names = [move_single(layout, line) for line in largest]
    step("gc.single")
    time.sleep(request.settle)
    if layout.read_index() != index or _signs(layout).written_since(before):
        put_singles_back(layout)
        return False
    for name in names:
        report.freed += single_bytes(layout, name)
        remove_single(layout, name)
    return True


@dataclass(frozen=True, slots=True)
class _Signs:
    """What shows that somebody writes: blobs that appear, ingests that appear or grow."""

    blobs: frozenset[str]
    ingests: frozenset[tuple[str, int, int]]

    def written_since(self, before: _Signs) -> bool:
        return bool(self.blobs - before.blobs or self.ingests - before.ingests)


def _signs(layout: Layout) -> _Signs:
    ingests = frozenset((one.name, one.size, one.mtime_ns) for one in layout.ingests())
    return _Signs(frozenset(layout.blobs()[0]), ingests)


def _graph(layout: Layout, index: bytes | None, aside: Aside | None = None) -> Graph:
    """Walk the layout, and what lies aside. Raises Damaged unless every document that something leads to is itself.

    A document with another digest may be JSON all the same, and then it leads somewhere else.
    """
    if index is None:
        if layout.blobs()[0] or layout.ingests() or aside:
            raise Damaged(
                "there are blobs and no index.json, so nothing is removed: no export has finished here, or this is no "
                "OCI layout",
                path=layout.path,
                rung="index",
                hint="what a killed first export left can be removed as a whole: the next build writes it anew",
            )
        return Graph()

    def read(digest: str, size: int) -> bytes | None:
        data = layout.document(digest, size)
        if data is None and aside is not None:
            data = aside.document(digest, size)
        return data if data is not None and _is_itself(digest, data) else None

    graph = walk(index, read)
    faults = [problem for _, problem in graph.faults]
    there = layout.blobs()[0]
    faults += [
        f"the {blob.role} {blob.digest[:19]} is missing, or has another length or other bytes"
        for blob in graph.blobs.values()
        if blob.role in {"index", "manifest"}
        and not (blob.optional and blob.digest not in there)
        and read(blob.digest, blob.size) is None
    ]
    if faults:
        raise Damaged(
            f"the layout is damaged, so nothing of it is removed: {faults[0]}",
            path=layout.path,
            rung="index",
            faults=faults,
            hint="cachekit oci verify shows all of it; a cache can be removed: the next build writes it anew",
        )
    if graph.opaque:
        raise Unsupported(
            f"something is named by a type that is not known, so nothing is removed: {next(iter(graph.opaque))}",
            path=layout.path,
            rung="index",
            types=list(graph.opaque),
            hint="it may lead to any blob; use the tool that wrote it",
        )
    return graph


def _is_young(layout: Layout, grace: float) -> bool:
    """Return True if something here is younger than the grace time: a first export may be running."""
    since = now_ns() - max(int(grace * 1e9), 0)
    times = [one.mtime_ns for one in layout.blobs()[0].values()]
    times += [one.mtime_ns for one in layout.ingests()]
    return any(one > since for one in times)


def _is_itself(digest: str, data: bytes) -> bool:
    algorithm, _, expected = digest.partition(":")
    return hashlib.new(algorithm, data).hexdigest() == expected


def _rewrite(layout: Layout, index: bytes | None, plan: CollectPlan) -> bool:
    """Write index.json without the dropped references, if it still is what was planned with. False if it is not."""
    assert index is not None
    document = json.loads(index)
    dropped = set(plan.dropped)
    document["manifests"] = [row for number, row in enumerate(document["manifests"]) if number not in dropped]
    data = json.dumps(document, separators=(",", ":")).encode()
    with layout.locked() as held:
        if not held or layout.read_index_as_holder() != index:
            return False
        old = os.stat("index.json", dir_fd=layout.fd, follow_symlinks=False)
        with TempFile(layout.fd, _NEW_INDEX) as temp:
            with contextlib.suppress(OSError):  # only root can; builds of its owner write to it in place
                os.fchown(temp.fd, old.st_uid, old.st_gid)
            os.fchmod(temp.fd, stat.S_IMODE(old.st_mode))
            temp.write(data, 0)
            temp.finish(len(data))
            temp.publish("index.json", layout.fd, replace=True)
    return True


def _finish_aside(aside: Aside, report: CollectReport) -> set[str]:
    """Put back what index.json leads to by now, remove the rest; return what was put back."""
    layout = aside.layout
    try:
        graph = _graph(layout, layout.read_index(), aside)
    except Refused:
        # Nobody can say what leads to what is aside, so all of it goes back.
        aside.put_back(None)
        aside.remove()
        raise
    restored = aside.put_back(set(graph.blobs))
    report.restored += len(restored)
    report.freed += aside.remove()
    return restored
