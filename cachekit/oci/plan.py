"""What a collection of an OCI layout removes and keeps, each with its reason. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cachekit.oci.graph import Graph, Reference
from cachekit.oci.layout import BlobFile, Ingest

__all__ = ["WRITING_NS", "CollectPlan", "Line", "plan_collection"]

#: A blob that grew so lately is being written, whatever the grace time: its writer would fail without its files.
WRITING_NS = 60 * 10**9


@dataclass(frozen=True, slots=True)
class Line:
    """A blob, ingest or reference that goes or stays. ``size`` in bytes; of a reference what nothing else needs."""

    kind: str
    name: str
    size: int
    reason: str


@dataclass(slots=True)
class CollectPlan:
    """``dropped``: positions of references that leave index.json; ``removed`` blobs and ingests; ``kept`` unreferenced.

    ``remaining`` bytes of blobs are still referenced after it; ``short_by`` is what exceeds the size asked for.
    """

    dropped: list[int] = field(default_factory=list)
    references: list[Line] = field(default_factory=list)
    removed: list[Line] = field(default_factory=list)
    kept: list[Line] = field(default_factory=list)
    remaining: int = 0
    short_by: int = 0


def plan_collection(
    graph: Graph,
    files: Mapping[str, BlobFile],
    ingests: Sequence[Ingest],
    *,
    now_ns: int,
    grace_ns: int,
    keep_tags: int | None = None,
    max_size: int | None = None,
) -> CollectPlan:
    """Plan: references that are too many, or too large together, oldest first; then all that nothing leads to.

    The order of index.json is that of the exports. The last reference never goes. What is younger than the grace time
    stays: a build may be about to name it.
    """
    plan = CollectPlan()
    alive = list(range(len(graph.references)))
    if keep_tags is not None:
        while len(alive) > max(1, keep_tags):
            _drop(plan, graph, files, alive, f"older than the last {keep_tags}")
    if max_size is not None:
        while len(alive) > 1 and _size(graph, files, alive) > max_size:
            _drop(plan, graph, files, alive, "the layout is larger than asked for")
    plan.remaining = _size(graph, files, alive)
    plan.short_by = max(0, plan.remaining - max_size) if max_size is not None else 0
    needed = _needed(graph, alive)
    for digest, file in sorted(files.items()):
        if digest in needed:
            continue
        why = "only dropped references lead to it" if digest in graph.blobs else "nothing leads to it"
        line = Line("blob", digest, file.size, why)
        young = now_ns - file.mtime_ns < grace_ns
        # What index.json names until now no build is about to name anew without writing it.
        if young and digest not in graph.blobs:
            plan.kept.append(Line("blob", digest, file.size, "younger than the grace time"))
        else:
            plan.removed.append(line)
    for ingest in ingests:
        if now_ns - ingest.mtime_ns < max(grace_ns, WRITING_NS):
            plan.kept.append(Line("ingest", ingest.name, ingest.size, "younger than the grace time"))
        else:
            plan.removed.append(Line("ingest", ingest.name, ingest.size, "its writer has given up"))
    return plan


def _drop(
    plan: CollectPlan, graph: Graph, files: Mapping[str, BlobFile], alive: list[int], reason: str
) -> None:
    number = alive.pop(0)
    reference: Reference = graph.references[number]
    needed = _needed(graph, alive)
    alone = sum(
        files[blob.digest].size
        for blob in graph.blobs.values()
        if number in blob.references and blob.digest not in needed and blob.digest in files
    )
    plan.dropped.append(number)
    plan.references.append(Line("reference", reference.name, alone, reason))


def _needed(graph: Graph, alive: Iterable[int]) -> set[str]:
    wanted = set(alive)
    return {blob.digest for blob in graph.blobs.values() if wanted & blob.references}


def _size(graph: Graph, files: Mapping[str, BlobFile], alive: Iterable[int]) -> int:
    return sum(files[digest].size for digest in _needed(graph, alive) if digest in files)
