"""Goals: when is enough free. Pure arithmetic over what a filesystem says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.clean.goals import Need, needs, parse_amount, parse_goal, parse_percent, words
from cachekit.clean.model import Amount, Goal
from cachekit.errors import InvalidRequest
from cachekit.system.space import Room

GIB = 1 << 30


def room(used: int, available: int, *, inodes: int | None = None, inodes_free: int | None = None) -> Room:
    """A filesystem with some blocks kept for root."""
    return Room(1, used + available + 5, used, available, inodes, inodes_free)


rooms = st.builds(
    room,
    st.integers(0, 10**15),
    st.integers(0, 10**15),
    inodes=st.none() | st.integers(1, 10**9),
    inodes_free=st.integers(0, 10**9),
)


@pytest.mark.parametrize(
    ("free", "below", "until", "inodes"),
    [
        ("20G", "80%", None, None),
        (None, None, "70%", None),
        (None, "70%", "80%", None),
        ("20 bananas", None, None, None),
        (None, "101%", None, None),
        (None, "nan%", None, None),
        (None, "-1", None, None),
        (None, None, None, "many"),
        ("120%", None, None, None),
    ],
)
def test_goals_that_make_no_sense(
    free: str | None, below: str | None, until: str | None, inodes: str | None
) -> None:
    """A goal that contradicts itself, or is no number, is wrong usage and no goal."""
    with pytest.raises(InvalidRequest):
        parse_goal(free, below, until, inodes)


def test_no_goal_at_all() -> None:
    """Without any of the options there is no goal: the plan's holds."""
    assert parse_goal() is None


def test_free_in_bytes() -> None:
    """`--free SIZE` asks for just so many bytes, whatever the filesystem's size."""
    need = needs(Goal(free=parse_amount("20G")), room(50 * GIB, 10 * GIB))
    assert need == Need(20 * GIB)
    assert need.short(room(50 * GIB, 10 * GIB)) == 10 * GIB


def test_free_in_percent() -> None:
    """`--free N%` is a share of what ordinary users can use, as df counts."""
    assert needs(Goal(free=Amount(percent=15)), room(80, 20)).available == 15


def test_watermarks() -> None:
    """Up to the high mark nothing is asked; above it everything down to the low mark."""
    goal = Goal(below=80, until=70)
    assert needs(goal, room(80, 20)) == Need()
    assert needs(goal, room(81, 19)).available == 30


def test_high_watermark_alone() -> None:
    """Without `--until` cleaning ends at the mark at which it began."""
    assert needs(Goal(below=80), room(90, 10)).available == 20


def test_inodes() -> None:
    """Inodes are a goal of their own, met where the filesystem does not count them."""
    goal = Goal(inodes=Amount(percent=10))
    full = room(1, 10, inodes=1000, inodes_free=40)
    assert needs(goal, full).short_inodes(full) == 60
    uncounted = room(1, 10)
    assert needs(goal, uncounted).met(uncounted)


@given(rooms, st.floats(0, 100), st.floats(0, 100))
def test_watermarks_are_consistent(state: Room, high: float, low: float) -> None:
    """A need is never above what ordinary users could use, and one at the low mark is met there."""
    high, low = max(high, low), min(high, low)
    need = needs(Goal(below=high, until=low), state)
    assert 0 <= need.available <= state.used + state.available
    if state.percent <= high:
        assert need.met(state)
    else:
        assert need.short(state) >= 0
        cleaned = room(state.used - need.short(state), state.available + need.short(state))
        assert need.met(cleaned)
        assert cleaned.percent <= low + 1e-6 + 100 / max(1, cleaned.used + cleaned.available)


@given(rooms, st.integers(0, 10**16))
def test_short_by_is_what_is_missing(state: Room, wanted: int) -> None:
    """What is short, added to what is there, is what was asked."""
    need = Need(wanted)
    assert state.available + need.short(state) == max(wanted, state.available)
    assert need.met(state) == (need.short(state) == 0)


@pytest.mark.parametrize(("text", "number"), [("80%", 80.0), (" 7.5 ", 7.5), ("0", 0.0), ("100%", 100.0)])
def test_percentages(text: str, number: float) -> None:
    """A percentage may be written with its sign or without."""
    assert parse_percent(text) == number


def test_in_words() -> None:
    """The goal is told as people would say it."""
    assert words(Goal(free=Amount(20 * GIB))) == "20 GiB free"
    assert words(Goal(below=80, until=70)) == "at most 80% used, if above it until 70%"
    assert words(Goal(free=Amount(percent=15), inodes=Amount(5000))) == "15% free and 5000 inodes free"
