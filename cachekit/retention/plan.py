"""Which entries go: a pure plan with one reason for each entry, kept or removed.

In this order, each step counting what the steps before it take: what outstayed the quarantine; what is too old; what
is too much in a namespace; what is too much in all; what must go for the free space. What has to go for a limit goes in
one fixed order: quarantine first, then the least recently used, and the newest entry of each family last. So raising a
limit over all never removes an entry that stayed before. (Raising the age, or one namespace's limit, spares what it
spares; a limit over all may then take others for it.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cachekit.model import format_duration, format_size
from cachekit.retention.budget import Budget
from cachekit.retention.entries import Item
from cachekit.retention.quarantine import DAYS, PER_FAMILY, outstayed

__all__ = ["Decision", "Plan", "Reason", "Shortfall", "Space", "make_plan"]

Reason = Literal[
    "fits",
    "pinned",
    "just-written",
    "keep-last",
    "shared",
    "unreadable",
    "quarantine",
    "expired",
    "max-entries",
    "max-size",
    "min-free",
]
Limit = Literal["max-entries", "max-size", "min-free"]

_KEPT: dict[str, str] = {
    "fits": "no limit asks for its place",
    "pinned": "pinned: stays until it is unpinned",
    "just-written": "just written: never removed by the save that wrote it",
    "keep-last": "among the newest of its family that are kept in any case",
    "shared": "another name of the same file stays, so nothing would be freed",
    "unreadable": "the filesystem does not let it be read: it may be whole, so it is left alone",
    "quarantine": f"set aside as damaged: kept for {DAYS} days, {PER_FAMILY} of a family",
}
_OUTSTAYED = f"set aside as damaged more than {DAYS} days ago, or before {PER_FAMILY} others of its family"


@dataclass(frozen=True, slots=True)
class Space:
    """The filesystem under the store, in bytes: what is ``available`` to ordinary users of what is ``usable``."""

    available: int
    usable: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one item: its one reason, and the sentence that people read."""

    item: Item
    keep: bool
    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A limit that cannot be met because the rest is kept: by how many bytes or entries. ``scope`` None: over all."""

    limit: Limit
    scope: str | None
    short_by: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision for every item, in the order in which they go or would go. ``frees``: bytes on disk, as foreseen."""

    decisions: list[Decision] = field(default_factory=list)
    short: list[Shortfall] = field(default_factory=list)
    frees: int = 0

    @property
    def removed(self) -> list[Decision]:
        return [decision for decision in self.decisions if not decision.keep]

    @property
    def kept(self) -> list[Decision]:
        return [decision for decision in self.decisions if decision.keep]


def make_plan(
    items: Iterable[Item],
    now_ns: int,
    budget: Budget,
    *,
    each: Mapping[str, Budget] | None = None,
    space: Space | None = None,
) -> Plan:
    """Return what has to go so that the items fit ``budget``, and every namespace the budget that ``each`` has for it.

    Guaranteed: every item has one decision; one that is pinned, just written, unreadable or among the last
    ``keep_last`` is kept, whatever the limits say (``Plan.short`` tells what that costs); what is removed for a limit
    is no more than it needs; planning again after the removal removes nothing. ``space`` None: min-free is not asked.
    """
    planner = _Planner(list(items), now_ns)
    budgets = dict(each or {})
    for name in planner.namespaces:
        planner.protect(max(budget.keep_last, budgets.get(name, budget).keep_last), name)
    planner.quarantine()
    for name in planner.namespaces:
        ages = [b.max_age_seconds for b in (budget, budgets.get(name)) if b and b.max_age_seconds is not None]
        if ages:
            planner.expire(min(ages), name)
    for name, limits in sorted(budgets.items()):
        planner.fit(limits, name)
    planner.fit(budget, None)
    if space is not None:
        wanted = max(limits.must_be_free(space.usable) for limits in (budget, *budgets.values()))
        planner.free(wanted, space.available)
    return planner.plan()


class _Planner:
    """The state of one plan: who is protected, who goes and why."""

    def __init__(self, items: list[Item], now_ns: int) -> None:
        self._now_ns = now_ns
        newest: dict[tuple[str, str, str], Item] = {}
        self._families: dict[tuple[str, str, str], list[Item]] = {}
        for item in sorted(items, key=_newness, reverse=True):
            if item.kind == "entry":
                newest.setdefault(item.group, item)
                self._families.setdefault(item.group, []).append(item)

        def turn(item: Item) -> tuple[int, int, int, tuple[str, str]]:
            rank = 1 if item.kind in {"entry", "unreadable"} else 0
            if newest.get(item.group) is item:
                rank = 2
            return rank, item.used_ns, item.created_ns, item.id

        self._order = sorted(items, key=turn)
        self.namespaces = sorted({item.namespace for item in items})
        self._kept: dict[tuple[str, str], Reason] = {}
        self._gone: dict[tuple[str, str], tuple[Reason, str]] = {}
        self._short: list[Shortfall] = []
        #: Names of each file that the plan knows; a file with more names than that has some elsewhere.
        self._names: dict[tuple[int, int], int] = {}
        for item in items:
            self._names[item.file] = self._names.get(item.file, 0) + 1

    def protect(self, keep_last: int, namespace: str) -> None:
        """Note what must stay whatever the limits say."""
        last = {
            item.id
            for group, family in self._families.items()
            if group[0] == namespace
            for item in family[:keep_last]
        }
        for item in self._order:
            if item.namespace != namespace:
                continue
            if item.just_written:
                self._kept[item.id] = "just-written"
            elif item.pinned and item.kind not in {"quarantine", "damaged"}:
                self._kept[item.id] = "pinned"
            elif item.kind == "unreadable":
                self._kept[item.id] = "unreadable"
            elif item.id in last:
                self._kept[item.id] = "keep-last"

    def _left(self, namespace: str | None = None) -> Iterator[Item]:
        """Yield what has not gone so far, in order."""
        for item in self._order:
            if item.id not in self._gone and namespace in {None, item.namespace}:
                yield item

    def _remove(self, item: Item, reason: Reason, sentence: str) -> None:
        self._gone[item.id] = (reason, sentence)

    def quarantine(self) -> None:
        """Let go what has been in quarantine for long enough."""
        aside = [(i.id, i.group, i.used_ns) for i in self._order if i.kind in {"quarantine", "damaged"}]
        gone = outstayed(aside, self._now_ns)
        for item in self._order:
            if item.id in gone:
                self._remove(item, "quarantine", _OUTSTAYED)

    def expire(self, max_age_seconds: float, namespace: str) -> None:
        """Let go what was not used for too long."""
        for item in list(self._left(namespace)):
            if item.id in self._kept or item.kind != "entry":
                continue
            if item.expires_ns(max_age_seconds) < self._now_ns:
                unused = (self._now_ns - item.used_ns) / 1e9
                text = (
                    f"not used for {format_duration(unused)}; the limit is {format_duration(max_age_seconds)}"
                )
                self._remove(item, "expired", text)

    def fit(self, budget: Budget, namespace: str | None) -> None:
        """Let go what is over the limits of number and size."""
        where = f" in {namespace}" if namespace else ""
        if budget.max_entries is not None:
            over = self._entries(namespace) - budget.max_entries
            for item in list(self._left(namespace)):
                if over <= 0:
                    break
                if item.kind == "entry" and item.id not in self._kept:
                    over -= 1
                    text = (
                        f"{budget.max_entries} entries are allowed{where}, and others were used more recently"
                    )
                    self._remove(item, "max-entries", text)
            self._note("max-entries", namespace, over)
        if budget.max_bytes is not None:
            over = self._bytes(namespace) - budget.max_bytes
            text = f"{format_size(budget.max_bytes)} are allowed{where}, and others were used more recently"
            over = self._take(over, "max-size", text, namespace, outside=lambda _: False)
            self._note("max-size", namespace, over)

    def free(self, wanted: int, available: int) -> None:
        """Let go what is needed for so many free bytes, given that so many were ``available`` before the plan."""
        if not wanted:
            return
        missing = wanted - available - self.frees()
        text = f"{format_size(wanted)} must be free on the filesystem, and others were used more recently"
        missing = self._take(
            missing, "min-free", text, None, outside=lambda item: item.links > self._names[item.file]
        )
        self._note("min-free", None, missing)

    def _take(
        self,
        over: int,
        reason: Reason,
        text: str,
        namespace: str | None,
        *,
        outside: Callable[[Item], bool],
    ) -> int:
        """Let files go until ``over`` bytes are; return what is still over. Names of one file go together or not.

        A file's turn is that of its last name. One with a name that stays would free nothing, so its others stay too.
        """
        if over <= 0:
            return over
        files: dict[tuple[int, int], list[Item]] = {}
        for item in self._left(namespace):
            names = files.pop(item.file, [])
            files[item.file] = [*names, item]  # a dict keeps the order of the last insertion
        for names in files.values():
            if over <= 0:
                break
            if any(item.id in self._kept for item in names):
                continue
            if not any(outside(item) for item in names):
                for item in names:
                    self._remove(item, reason, text)
                over -= names[0].allocated
        return over

    def _note(self, limit: Limit, namespace: str | None, over: int) -> None:
        if over > 0:
            self._short.append(Shortfall(limit, namespace, over))

    def _entries(self, namespace: str | None) -> int:
        return sum(item.kind not in {"quarantine", "damaged"} for item in self._left(namespace))

    def _bytes(self, namespace: str | None) -> int:
        return _allocated(self._left(namespace))

    def frees(self) -> int:
        """Return the bytes of files of which no name is left, here or elsewhere."""
        left: dict[tuple[int, int], int] = {}
        for item in self._order:
            if item.id in self._gone:
                left[item.file] = left.get(item.file, item.links) - 1
        return _allocated(item for item in self._order if left.get(item.file, 1) <= 0)

    def plan(self) -> Plan:
        decisions = [self._decide(item) for item in self._order]
        return Plan(decisions, self._short, self.frees())

    def _decide(self, item: Item) -> Decision:
        if item.id in self._gone:
            reason, text = self._gone[item.id]
            return Decision(item, keep=False, reason=reason, sentence=text)
        reason = self._kept.get(item.id, "fits")
        if reason == "fits" and item.kind in {"quarantine", "damaged"}:
            reason = "quarantine"
        elif reason == "fits" and self._in_vain(item):
            reason = "shared"
        return Decision(item, keep=True, reason=reason, sentence=_KEPT[reason])

    def _in_vain(self, item: Item) -> bool:
        """Return True if a limit of bytes is not met, and would not be nearer to it without this name."""
        return item.links > 1 and any(
            short.limit != "max-entries" and short.scope in {None, item.namespace} for short in self._short
        )


def _newness(item: Item) -> tuple[int, int, tuple[str, str]]:
    """What orders a family: restore keys take the newest."""
    return item.created_ns, item.used_ns, item.id


def _allocated(items: Iterable[Item] | Sequence[Item]) -> int:
    """Return the bytes of the items' files, each counted once."""
    return sum({item.file: item.allocated for item in items}.values())
