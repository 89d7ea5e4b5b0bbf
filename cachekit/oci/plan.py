"""What a collection of an OCI layout removes and keeps, each with its reason. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cachekit.oci.graph import Graph
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
    last = graph.last_needed_by()
    # What goes with a reference: all before it have gone by then.
    alone = [0] * len(graph.references)
    for digest, number in last.items():
        if digest in files:
            alone[number] += files[digest].size
    plan.remaining = sum(alone)
    for number, reference in enumerate(graph.references[:-1]):
        left = len(alone) - number
        if keep_tags is not None and left > keep_tags:
            reason = f"older than the last {keep_tags}"
        elif max_size is not None and plan.remaining > max_size:
            reason = "the layout is larger than asked for"
        else:
            break
        plan.dropped.append(number)
        plan.references.append(Line("reference", reference.name, alone[number], reason))
        plan.remaining -= alone[number]
    plan.short_by = max(0, plan.remaining - max_size) if max_size is not None else 0
    first = len(plan.dropped)
    for digest, file in sorted(files.items()):
        if last.get(digest, -1) >= first:
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
