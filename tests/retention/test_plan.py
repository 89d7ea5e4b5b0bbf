"""The plan of retention: its invariants for any store, and its order for known ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.retention.budget import Budget
from cachekit.retention.entries import JITTER, Item, Kind, last_use
from cachekit.retention.plan import Plan, Space, make_plan
from cachekit.retention.quarantine import PER_FAMILY, outstayed

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
NOW = 1_700_000_000 * SECOND
HARD = {"pinned", "just-written", "keep-last", "unreadable"}
"""Reasons that no limit overrules."""


def item(name: str, days: float = 0.0, size: int = 100, **more: object) -> Item:
    """Make an entry of a file of its own, last used and made so many days ago."""
    moment = NOW - int(days * DAY)
    plain = Item("default", name, "entry", "f", "p", size, (1, hash(name)), 1, moment, moment)
    return replace(plain, **more)  # type: ignore[arg-type]


def removed(plan: Plan) -> dict[str, str]:
    """Return the names that go, in their order, with the reason of each."""
    return {decision.item.name: decision.reason for decision in plan.removed}


# Any store


PLAIN: tuple[Kind, bool, bool] = ("entry", False, False)
KINDS: list[tuple[Kind, bool, bool]] = [
    *[PLAIN] * 6,
    ("entry", True, False),
    ("entry", False, True),
    ("quarantine", False, False),
    ("damaged", False, False),
    ("damaged", True, True),
    ("unreadable", False, False),
]
GROUPS = [(space, family, "linux") for space in ("a", "b/c") for family in "fg"] + [("a", "f", "mac")]
TIMES = [NOW - days * DAY for days in (0, 1, 2, 6, 7, 8, 29)] + [NOW - DAY + 1, 0, -DAY, NOW + 400 * DAY]
ONE = st.tuples(
    st.integers(0, 5),
    st.sampled_from(KINDS),
    st.sampled_from(GROUPS),
    st.sampled_from(TIMES),
    st.sampled_from(TIMES),
)


@st.composite
def stores(draw: st.DrawFn) -> list[Item]:
    """Stores with every kind of file, odd times, and files of several names, here and elsewhere."""
    drawn = draw(st.lists(ONE, min_size=1, max_size=12))
    elsewhere = draw(st.sets(st.integers(0, 5), max_size=2))
    numbers = [number for number, *_ in drawn]
    return [
        Item(
            group[0],
            f"{number}-{position}",
            kind,
            group[1],
            group[2],
            number * 61,
            (1, number),
            numbers.count(number) + (number in elsewhere),
            created,
            used,
            pinned,
            just_written,
        )
        for position, (number, (kind, pinned, just_written), group, created, used) in enumerate(drawn)
    ]


def limits() -> st.SearchStrategy[Budget]:
    """Budgets of every combination of limits."""
    none = st.none()
    return st.builds(
        Budget,
        max_bytes=st.one_of(none, st.integers(0, 2000)),
        max_entries=st.one_of(none, st.integers(0, 20)),
        max_age_seconds=st.one_of(none, st.integers(0, 40 * 86400)),
        min_free_bytes=st.one_of(none, st.integers(0, 2000)),
        min_free_percent=st.one_of(none, st.floats(0, 100)),
        keep_last=st.integers(0, 2),
    )


EACH = st.dictionaries(st.sampled_from(["a", "b/c"]), limits(), max_size=2)
SPACES = st.builds(Space, st.integers(0, 1500), st.just(2000))


def used_bytes(items: list[Item]) -> int:
    """Count each file's bytes once."""
    return sum({one.file: one.allocated for one in items}.values())


def gone(before: list[Item], plan: Plan) -> int:
    """Count the bytes of files all of whose names go."""
    names: dict[tuple[int, int], int] = {}
    for decision in plan.removed:
        names[decision.item.file] = names.get(decision.item.file, 0) + 1
    return used_bytes([one for one in before if names.get(one.file) == one.links])


@given(stores(), limits(), EACH, SPACES)
def test_every_item_has_one_decision(
    items: list[Item], budget: Budget, each: dict[str, Budget], space: Space
) -> None:
    """Kept and removed together are all there is, nothing twice, each with one reason and a sentence."""
    plan = make_plan(items, NOW, budget, each=each, space=space)
    assert sorted(d.item.id for d in plan.decisions) == sorted(one.id for one in items)
    assert len(plan.kept) + len(plan.removed) == len(items)
    removing = {"quarantine", "expired", "max-entries", "max-size", "min-free"}
    assert all(d.reason in removing for d in plan.removed)
    assert all(d.reason in HARD | {"fits", "shared", "quarantine"} for d in plan.kept)
    assert all(d.sentence and not d.sentence.endswith(".") for d in plan.decisions)
    assert plan.frees == gone(items, plan)


@given(stores(), limits(), EACH, SPACES)
def test_what_is_protected_stays(
    items: list[Item], budget: Budget, each: dict[str, Budget], space: Space
) -> None:
    """No limit removes what is pinned, just written, unreadable or among the last of its family."""
    plan = make_plan(items, NOW, budget, each=each, space=space)
    out = {d.item.id for d in plan.removed}
    families: dict[object, list[Item]] = {}
    for one in items:
        aside = one.kind in {"quarantine", "damaged"}
        if one.kind == "unreadable" or (one.pinned and not aside):
            assert one.id not in out
        # The time in quarantine is over whoever wrote it; every other reason spares what was just written.
        if one.just_written and not aside:
            assert one.id not in out
        if one.kind == "entry":
            families.setdefault(one.group, []).append(one)
    for family in families.values():
        keep = max(budget.keep_last, each.get(family[0].namespace, budget).keep_last)
        family.sort(key=lambda one: (one.created_ns, one.used_ns, one.id))
        assert not out.intersection(one.id for one in family[len(family) - keep :])


@given(stores(), limits(), EACH, SPACES)
def test_planning_again_removes_nothing(
    items: list[Item], budget: Budget, each: dict[str, Budget], space: Space
) -> None:
    """Once the plan was carried out there is nothing left to do, and what was short is as short as before."""
    plan = make_plan(items, NOW, budget, each=each, space=space)
    left: dict[tuple[int, int], int] = {}
    for d in plan.removed:
        left[d.item.file] = left.get(d.item.file, 0) + 1
    rest = [replace(d.item, links=d.item.links - left.get(d.item.file, 0)) for d in plan.kept]
    after = Space(space.available + plan.frees, space.usable)
    again = make_plan(rest, NOW, budget, each=each, space=after)
    assert removed(again) == {}
    assert again.short == plan.short


@given(stores(), limits(), SPACES, st.randoms(use_true_random=False))
def test_order_of_the_store_does_not_matter(items: list[Item], budget: Budget, space: Space, random) -> None:  # type: ignore[no-untyped-def]
    """The same files give the same plan, in whatever order a directory lists them, ties included."""
    shuffled = list(items)
    random.shuffle(shuffled)
    assert make_plan(items, NOW, budget, space=space) == make_plan(shuffled, NOW, budget, space=space)


@given(stores(), limits(), EACH, SPACES)
def test_limits_are_met_or_told(
    items: list[Item], budget: Budget, each: dict[str, Budget], space: Space
) -> None:
    """A limit that is not met is in ``short`` by exactly what is missing, and then nothing more could have gone."""
    plan = make_plan(items, NOW, budget, each=each, space=space)
    kept = [d.item for d in plan.kept]
    told = {(s.limit, s.scope): s.short_by for s in plan.short}
    for scope, limit in [(None, budget), *each.items()]:
        here = [one for one in kept if scope in {None, one.namespace}]
        entries = [one for one in here if one.kind not in {"quarantine", "damaged"}]
        if limit.max_bytes is not None:
            assert told.get(("max-size", scope), 0) >= used_bytes(here) - limit.max_bytes
        if limit.max_entries is not None:
            assert told.get(("max-entries", scope), 0) >= len(entries) - limit.max_entries
    wanted = max(b.must_be_free(space.usable) for b in (budget, *each.values()))
    assert told.get(("min-free", None), 0) == max(0, wanted - space.available - plan.frees)
    if told.get(("max-size", None)):
        assert {d.reason for d in plan.kept if d.item.links == 1} <= HARD


@given(stores(), limits(), EACH, SPACES, st.integers(0, 500), st.sampled_from(["bytes", "entries", "free"]))
def test_a_larger_budget_never_removes_more(
    items: list[Item], budget: Budget, each: dict[str, Budget], space: Space, more: int, limit: str
) -> None:
    """Raising a limit over all keeps whatever stayed before."""
    if limit == "bytes":
        looser = replace(budget, max_bytes=None if budget.max_bytes is None else budget.max_bytes + more)
    elif limit == "entries":
        looser = replace(
            budget, max_entries=None if budget.max_entries is None else budget.max_entries + more // 25
        )
    else:
        looser = replace(budget, min_free_bytes=max(0, (budget.min_free_bytes or 0) - more))
    tight = make_plan(items, NOW, budget, each=each, space=space)
    loose = make_plan(items, NOW, looser, each=each, space=space)
    assert {d.item.id for d in loose.removed} <= {d.item.id for d in tight.removed}


@given(stores(), st.integers(0, 40 * 86400), st.integers(0, 40 * 86400))
def test_a_longer_age_never_removes_more(items: list[Item], age: int, more: int) -> None:
    """Without other limits a longer age keeps whatever stayed before."""
    tight = make_plan(items, NOW, Budget(max_age_seconds=age))
    loose = make_plan(items, NOW, Budget(max_age_seconds=age + more))
    assert {d.item.id for d in loose.removed} <= {d.item.id for d in tight.removed}


@given(stores(), limits(), SPACES)
def test_nothing_goes_that_need_not(items: list[Item], budget: Budget, space: Space) -> None:
    """Without the last file that went for space, the limit would not be met."""
    for only in (
        Budget(max_bytes=budget.max_bytes),
        Budget(min_free_bytes=budget.min_free_bytes, min_free_percent=budget.min_free_percent),
    ):
        plan = make_plan(items, NOW, only, space=space)
        went = [d.item for d in plan.removed if d.reason in {"max-size", "min-free"}]
        if not went:
            continue
        back = [one for one in went if one.file == went[-1].file]
        kept = [d.item for d in plan.kept] + back
        if only.max_bytes is not None:
            assert used_bytes(kept) > only.max_bytes
        else:
            assert space.available + plan.frees - back[0].allocated < only.must_be_free(space.usable)


@given(stores(), st.sampled_from([0, -DAY, 1, NOW - 400 * DAY]))
def test_a_clock_set_back_removes_nothing_for_its_age(items: list[Item], now: int) -> None:
    """With a time before everything, nothing is too old, and nothing in quarantine has had its days."""
    later = [replace(one, used_ns=NOW, created_ns=NOW) for one in items if one.kind != "quarantine"]
    assert removed(make_plan(later, now, Budget(max_age_seconds=1))).keys() <= {
        one.name for one in items if one.kind == "damaged"
    }


@given(
    st.integers(NOW - 500 * DAY, NOW),
    st.sampled_from([0, -1, 1, NOW + DAY, NOW + 10_000 * DAY, 86_400 * SECOND]),
    st.integers(NOW - 500 * DAY, NOW),
)
def test_a_clock_that_was_wrong_never_makes_an_entry_older(sane: int, mad: int, changed: int) -> None:
    """Of two times one of which cannot be, the entry is no older than the sane one says, nor from the future."""
    for used, created in ((sane, mad), (mad, sane)):
        assert sane <= last_use(used, created, changed_ns=changed, now_ns=NOW) <= NOW
    assert changed <= last_use(mad, mad, changed_ns=changed, now_ns=NOW) <= NOW
    assert last_use(None, sane, changed_ns=0, now_ns=NOW) == sane
    assert last_use(None, 0, changed_ns=0, now_ns=NOW) == NOW


def test_an_entry_saved_by_a_clock_ahead_ages_by_its_mark() -> None:
    """A time of creation in the future does not keep an entry young for ever, a mark in the future does."""
    ahead, mark = NOW + 9000 * DAY, NOW - 40 * DAY
    assert last_use(mark, ahead, changed_ns=NOW, now_ns=NOW) == mark
    assert last_use(ahead, mark, changed_ns=mark, now_ns=NOW) == NOW


# Known stores


def test_least_recently_used_first() -> None:
    """Over the size the entry goes that was used longest ago, not the oldest one."""
    items = [item("old-used-now", 0, created_ns=NOW - 90 * DAY), item("b", 5), item("c", 3), item("d", 1)]
    assert removed(make_plan(items, NOW, Budget(max_bytes=250))) == {"b": "max-size", "c": "max-size"}
    assert removed(make_plan(items, NOW, Budget(max_entries=3))) == {"b": "max-entries"}


def test_the_last_of_a_family_goes_last_but_a_budget_wins() -> None:
    """The newest entry of a family outlives more recently used ones of others, until the budget leaves no choice."""
    items = [item("only", 30, family="rare"), item("a", 2), item("b", 1), item("c", 0)]
    assert list(removed(make_plan(items, NOW, Budget(max_entries=2)))) == ["a", "b"]
    assert list(removed(make_plan(items, NOW, Budget(max_entries=1)))) == ["a", "b", "only"]
    hard = make_plan(items, NOW, Budget(max_entries=1, keep_last=1))
    assert list(removed(hard)) == ["a", "b"]
    assert [(s.limit, s.short_by) for s in hard.short] == [("max-entries", 1)]


def test_quarantine_goes_first_and_counts() -> None:
    """What was set aside counts in the size, and goes before anything that can be served."""
    aside = item("aside", 1, kind="quarantine", family="q")
    items = [item("a", 9), item("b", 8), aside]
    assert removed(make_plan(items, NOW, Budget(max_bytes=200))) == {"aside": "max-size"}
    assert removed(make_plan(items, NOW, Budget(max_bytes=300))) == {}
    assert removed(make_plan([replace(aside, used_ns=NOW - 8 * DAY)], NOW, Budget())) == {
        "aside": "quarantine"
    }


def test_quarantine_keeps_two_of_a_family() -> None:
    """Of one family the newest two stay, for seven days."""
    aside = [(number, "f", NOW - number * SECOND) for number in range(4)]
    assert outstayed(aside, NOW) == {2, 3}
    assert outstayed(aside[:PER_FAMILY], NOW + 8 * DAY) == {0, 1}


def test_expiry_is_spread() -> None:
    """Entries of one minute do not expire in one minute: none before the age, all within a tenth more, spread."""
    items = [item(f"k{number}", 10) for number in range(200)]
    limit = 10 * 86400
    for share, low, high in ((0.0, 0, 0), (JITTER / 2, 60, 140), (JITTER, 200, 200)):
        now = NOW + int(limit * share) * SECOND
        count = len(removed(make_plan(items, now, Budget(max_age_seconds=limit))))
        assert low <= count <= high, (share, count)


def test_namespaces_have_budgets_of_their_own() -> None:
    """A namespace over its budget loses its own entries first; over all, others are not asked for what it gave."""
    items = [
        item("old", 9, namespace="b"),
        item("x", 3, namespace="a"),
        item("y", 2, namespace="a"),
        item("z", 1, namespace="a"),
    ]
    each = {"a": Budget(max_bytes=200)}
    assert removed(make_plan(items, NOW, Budget(max_bytes=300), each=each)) == {"x": "max-size"}
    assert removed(make_plan(items, NOW, Budget(max_bytes=200), each=each)) == {
        "x": "max-size",
        "y": "max-size",
    }


def test_min_free_counts_names_of_one_file_once() -> None:
    """Two names free their bytes only together, and a name that frees nothing stays and says why."""
    pair = [item("one", 9, file=(1, 7), links=2), item("two", 1, file=(1, 7), links=2)]
    lone = item("lone", 5)
    free = Space(0, 1000)
    assert removed(make_plan([*pair, lone], NOW, Budget(min_free_bytes=100), space=free)) == {
        "lone": "min-free"
    }
    both = make_plan([*pair, lone], NOW, Budget(min_free_bytes=101), space=free)
    assert removed(both).keys() == {"one", "two", "lone"}
    assert both.frees == 200
    pinned = [pair[0], replace(pair[1], pinned=True)]
    kept = make_plan(pinned, NOW, Budget(min_free_bytes=100), space=free)
    assert {d.item.name: d.reason for d in kept.kept} == {"one": "shared", "two": "pinned"}
    assert [(s.limit, s.short_by) for s in kept.short] == [("min-free", 100)]


@pytest.mark.parametrize("percent", [10.0, 50.0])
def test_min_free_in_percent(percent: float) -> None:
    """A percentage is of what can be used of the filesystem, and only as much goes as is missing."""
    items = [item(f"k{number}", 10 - number) for number in range(10)]
    plan = make_plan(items, NOW, Budget(min_free_percent=percent), space=Space(0, 1000))
    assert len(plan.removed) == percent / 10
