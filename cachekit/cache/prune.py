"""Prune: find out what the store holds, plan, remove what has to go, and measure what that freed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cachekit.cache.select import confirmed
from cachekit.errors import CachekitError
from cachekit.model import Namespace, StoreAddress
from cachekit.retention.budget import Budget
from cachekit.retention.plan import Decision, Plan, Shortfall, Space, make_plan
from cachekit.store import layout, upkeep
from cachekit.store.directory import DirectoryStore
from cachekit.store.holdings import Holding, holdings
from cachekit.store.layout import MisplacedPart
from cachekit.system.settle import settle
from cachekit.system.space import Room, filesystem_type, room
from cachekit.telemetry.ledger import sweep as sweep_events

__all__ = ["PruneLine", "PruneReport", "PruneRequest", "prune", "prune_after_save"]

#: Where freed space shows late, it is waited for: so long at most, and so long after a sync has ended.
_SETTLE_SECONDS = 5.0
_AFTER_SYNC = 0.2
_IMMEDIATE = frozenset({"ext2", "ext3", "ext4", "tmpfs", "ramfs"})
#: If free space is still missing after the plan (others write meanwhile), it is planned anew so often.
_ROUNDS = 3


@dataclass(slots=True)
class PruneRequest:
    """What to prune: the store at ``path``, all its namespaces or those named.

    ``budget`` holds over all of them together, ``each`` for a namespace by itself, ``every`` for each that has none
    there. ``just_written``: (namespace, entry)
    that are never removed.
    """

    path: str
    budget: Budget
    each: Mapping[str, Budget] = field(default_factory=dict)
    every: Budget | None = None
    namespaces: Sequence[Namespace] | None = None
    dry_run: bool = False
    just_written: frozenset[tuple[str, str]] = frozenset()
    open_to_all: bool = False


@dataclass(slots=True)
class PruneLine:
    """One file of the store and what became of it. Bytes as allocated on disk, times in ns since 1970.

    ``result``: kept, removed, set-aside, or failed (then ``sentence`` says why); in a dry run what it would be.
    """

    namespace: str
    entry: str
    key: str | None
    kind: str
    bytes: int
    created_ns: int
    used_ns: int
    result: str
    reason: str
    sentence: str


@dataclass(slots=True)
class PruneReport:
    """What a prune did. ``busy``: another one is at it, nothing was done.

    ``removed_bytes`` is the sum over removed files of which no name is left; ``freed`` what the filesystem says, with
    what others wrote in between. ``short``: limits that are not met because the rest is kept.
    ``unreadable``: directories of namespaces that we may not read; what is in them is neither counted nor removed.
    """

    store: str
    dry_run: bool
    busy: bool = False
    lines: list[PruneLine] = field(default_factory=list)
    removed: int = 0
    removed_bytes: int = 0
    failed: int = 0
    freed: int = 0
    available_before: int = 0
    available: int = 0
    short: list[Shortfall] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def met(self) -> bool:
        """True if every limit holds now (in a dry run: would hold)."""
        return not self.short and not self.failed


def prune(request: PruneRequest) -> PruneReport:
    """Remove what the budgets do not allow to stay.

    Guaranteed: what is pinned or just written stays, what was used or replaced since the plan was made stays, and
    readers that have a removed entry open finish. One prune at a time: a second one reports ``busy``. Killed at any
    moment, the store is consistent, and the next prune finishes. Raises StoreUnavailable.
    """
    begin = time.perf_counter()
    report = PruneReport(os.path.abspath(os.path.expanduser(request.path)), request.dry_run)
    stores = _stores(request, report)
    if request.every is not None:
        of_all = dict.fromkeys((store.namespace.text for store in stores), request.every)
        request = replace(request, each={**of_all, **request.each})
    with contextlib.ExitStack() as stack:
        if not request.dry_run:
            for store in stores:
                if not stack.enter_context(upkeep.prune_lock(store)):
                    report.busy = True
                    report.seconds = time.perf_counter() - begin
                    return report
                store.sweep()
        if stores:
            _prune(request, report, stores)
    report.seconds = time.perf_counter() - begin
    return report


def _stores(request: PruneRequest, report: PruneReport) -> list[DirectoryStore]:
    try:
        there = layout.namespaces(report.store, report.unreadable)
    except OSError as error:
        raise DirectoryStore(report.store).explain(error, "read") from None
    for namespace in request.namespaces or ():
        if namespace not in there:
            report.warnings.append(f"the store has no namespace {namespace}")
    chosen = there if request.namespaces is None else [n for n in there if n in request.namespaces]
    return [
        DirectoryStore(StoreAddress(report.store, namespace, open_to_all=request.open_to_all))
        for namespace in chosen
    ]


def _prune(request: PruneRequest, report: PruneReport, stores: list[DirectoryStore]) -> None:
    by_name = {store.namespace.text: store for store in stores}
    before = report_room = _room(stores[0])
    report.available_before = before.available
    went: list[PruneLine] = []
    for number in range(_ROUNDS):
        now = min(upkeep.now(store) for store in stores)
        held = _held(stores, now, request.just_written)
        plan = _plan(request, held, report_room, now)
        lines = [_line(decision, held[decision.item.id]) for decision in plan.decisions]
        if request.dry_run:
            report.removed = len(plan.removed)
            report.removed_bytes = plan.frees
            report.available = before.available + plan.frees
        else:
            changed = _execute(by_name, plan, held, lines)
            for store in stores:
                upkeep.sweep_marks(store)
                with contextlib.suppress(OSError), store.part("events") as ledger:
                    sweep_events(ledger, now)
            removed_now = [line for line in lines if line.result == "removed"]
            report.removed_bytes += changed
            report_room = _settled(stores[0], report_room, changed)
            went += removed_now
            report.removed = len(went)
            report.available = report_room.available
            report.freed = before.used - report_room.used
        report.lines = went + [line for line in lines if line.result != "removed" or request.dry_run]
        report.short = _short(request, plan, report_room, dry_run=request.dry_run)
        report.failed = sum(line.result == "failed" for line in lines)
        late = any(s.limit == "min-free" for s in report.short) and not plan.short
        if request.dry_run or number == _ROUNDS - 1 or not late or not removed_now:
            return


def _held(
    stores: Iterable[DirectoryStore],
    now: int,
    just_written: frozenset[tuple[str, str]],
    *,
    seals: bool = True,
) -> dict[tuple[str, str], Holding]:
    held = {}
    for store in stores:
        own = frozenset(entry for space, entry in just_written if space == store.namespace.text)
        for holding in holdings(store, now, own, seals=seals):
            held[holding.item.id] = holding
    return held


def _plan(request: PruneRequest, held: Mapping[tuple[str, str], Holding], now_free: Room, now: int) -> Plan:
    return make_plan(
        [holding.item for holding in held.values()],
        now,
        request.budget,
        each=request.each,
        space=Space(now_free.available, now_free.used + now_free.available),
    )


def _short(request: PruneRequest, plan: Plan, after: Room, *, dry_run: bool) -> list[Shortfall]:
    """Return the limits that do not hold: free space by what the filesystem says, not by what the plan expected."""
    if dry_run:
        return plan.short
    short = [one for one in plan.short if one.limit != "min-free"]
    usable = after.used + after.available
    wanted = max(limits.must_be_free(usable) for limits in (request.budget, *request.each.values()))
    if wanted > after.available:
        short.append(Shortfall("min-free", None, wanted - after.available))
    return short


def _line(decision: Decision, holding: Holding) -> PruneLine:
    item = decision.item
    result = "kept" if decision.keep else "removed"
    if item.kind == "damaged" and decision.keep and decision.reason == "quarantine":
        result = "set-aside"
    sentence = decision.sentence
    if holding.problem and item.kind in {"damaged", "unreadable"}:
        sentence = f"{sentence} ({holding.problem})"
    return PruneLine(
        item.namespace,
        item.name,
        holding.key,
        item.kind,
        item.allocated,
        item.created_ns,
        item.used_ns,
        result,
        decision.reason,
        sentence,
    )


def _execute(
    stores: Mapping[str, DirectoryStore],
    plan: Plan,
    held: Mapping[tuple[str, str], Holding],
    lines: list[PruneLine],
) -> int:
    """Carry out a plan, each line then saying what became of it; return the bytes of files that have no name left."""
    left: dict[tuple[int, int], int] = {}
    freed = 0
    for decision, line in zip(plan.decisions, lines, strict=True):
        item = decision.item
        if line.result == "kept":
            continue
        try:
            _carry_out(stores[item.namespace], held[item.id], line)
        except MisplacedPart as error:
            what = "what should be a directory of the store is a link, or a file"
            line.result, line.sentence = "failed", f"could not be removed: {what}: {error.filename}"
            continue
        except OSError as error:
            line.result, line.sentence = "failed", f"could not be removed: {error.strerror}"
            continue
        if line.result == "removed":
            left[item.file] = left.get(item.file, item.links) - 1
            if left[item.file] == 0:
                freed += item.allocated
    return freed


def _carry_out(store: DirectoryStore, holding: Holding, line: PruneLine) -> None:
    if holding.directory == "quarantine":
        outcome = upkeep.remove_quarantined(store, line.entry, holding.identity)
    else:
        if line.kind == "damaged":
            path = store.entry_path(line.entry)
            file = (holding.identity.device, holding.identity.inode)
            if not confirmed(store, path, line.entry, file):
                line.result, line.sentence = "kept", "looked damaged once, but not a second time"
                return
            if line.result == "set-aside":
                if not store.set_aside(path, file):
                    line.result, line.sentence = "failed", "is damaged and could not be set aside"
                return
        outcome = store.remove(line.entry, holding.identity, unused_since=holding.mark_ns)
    if outcome == "replaced":
        line.result, line.sentence = "kept", "replaced by another save since the plan was made"
    elif outcome == "spared":
        line.result, line.sentence = "kept", "used or pinned since the plan was made"


def _room(store: DirectoryStore) -> Room:
    try:
        return room(store.path)
    except OSError as error:
        raise store.explain(error, "read") from None


def _settled(store: DirectoryStore, before: Room, expected: int) -> Room:
    """Return how full the filesystem is once it shows what was removed, or has had the time to."""
    path = os.fsencode(store.path)
    if expected and filesystem_type(path) not in _IMMEDIATE:
        settle(
            path,
            lambda: before.used - _room(store).used >= expected,
            seconds=_SETTLE_SECONDS,
            synced=_AFTER_SYNC,
        )
    return _room(store)


def prune_after_save(
    address: StoreAddress,
    budget: Budget,
    entry: str,
    *,
    each: Mapping[str, Budget] | None = None,
) -> PruneReport | None:
    """Prune the store that ``entry`` was just saved to; None if nothing had to be looked at.

    It never fails the save: what goes wrong is in the report's warnings. After a save in a scope (of a job that is not
    trusted) only that scope is pruned, so that such jobs cannot drive out what trusted ones saved.
    """
    if budget.unlimited and not each:
        return None
    request = PruneRequest(
        address.path,
        budget,
        dict(each or {}),
        namespaces=[address.namespace] if address.namespace.scope else None,
        just_written=frozenset({(address.namespace.text, entry)}),
        open_to_all=address.open_to_all,
    )
    report = PruneReport(address.path, dry_run=False)
    try:
        if _nothing_to_do(request, report):
            return None
        report = prune(request)
        if report.failed:
            report.warnings.append(f"{report.failed} entries could not be removed from the store")
    except (CachekitError, OSError) as error:
        report.warnings.append(f"the store could not be pruned after the save: {error}")
    return report


def _nothing_to_do(request: PruneRequest, report: PruneReport) -> bool:
    """Find out from names and sizes alone, without opening an entry, that all limits hold."""
    stores = _stores(request, report)
    if not stores:
        return True
    now = min(upkeep.now(store) for store in stores)
    # The names tell families only roughly, so what those would keep is left out.
    each = {name: replace(limits, keep_last=0) for name, limits in request.each.items()}
    simple = replace(request, budget=replace(request.budget, keep_last=0), each=each)
    plan = _plan(simple, _held(stores, now, request.just_written, seals=False), _room(stores[0]), now)
    return not plan.removed
