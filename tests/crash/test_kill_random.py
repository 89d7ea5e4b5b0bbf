"""Killed with all its workers at any moment: the store verifies, and a target is one tree or the other."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cachekit.cache.recovery import recover_targets
from tests.crash.busy import Busy, Sources
from tests.crash.scene import assert_each_whole, content, merged, seen
from tests.support.cli import Cli
from tests.support.processes import Running
from tests.support.snapshots import assert_same_tree

PARTS = 6
TRIES = 9
"""In each of the six parts: 54 random moments in all."""
STRESS_TRIES = 167


@pytest.fixture
def busy(cli: Cli, tmp_path: Path, small_sources: Sources) -> Busy:
    """Two trees of a few MiB, both saved."""
    return Busy.make(cli, tmp_path, small_sources, saved=True)


def moments(seed: int, count: int, start: Callable[[], Running]) -> list[float]:
    """Measure a run once, and return as many moments spread over it, in random order."""
    begin = time.monotonic()
    with start() as running:
        running.wait().expect(0)
    whole = time.monotonic() - begin
    source = random.Random(seed)
    print(f"seed {seed}: {count} moments in {whole:.3f} s")
    # Starting the interpreter is a third of it, and nothing can happen there.
    spread = [whole * (0.3 + 0.75 * (number + source.random()) / count) for number in range(count)]
    source.shuffle(spread)
    return spread


def run_saves(busy: Busy, seed: int, count: int) -> None:
    """Kill saves of one tree over the entry of the other."""
    delays = moments(seed, count, lambda: busy.start_save("two", "two", "--force"))
    stored, published = "one", 0
    for delay in delays:
        other = "two" if stored == "one" else "one"
        with busy.start_save(other, "one", "--force") as running:
            time.sleep(delay)
            running.kill()
        assert busy.assert_verifies() == 2
        elsewhere = busy.base / "elsewhere"
        shutil.rmtree(elsewhere, ignore_errors=True)
        elsewhere.mkdir()
        assert busy.restore("one", elsewhere).status == "exact"
        now = content(seen(elsewhere / "tree"))
        assert now in (content(busy.trees["one"]), content(busy.trees["two"]))
        if now == content(busy.trees[other]):
            stored, published = other, published + 1
        busy.assert_no_leftovers()
    print(f"{published} of {count} were published")


def run_restores(busy: Busy, seed: int, count: int, mode: str) -> None:
    """Kill restores of one tree over the other."""
    old, new = busy.trees["one"], busy.trees["two"]
    final = new if mode == "--replace" else merged(old, new)
    busy.restore("one")
    delays = moments(seed, count, lambda: busy.start_restore("two", mode))
    ended: dict[str, int] = {}
    for delay in delays:
        if mode == "--merge":
            shutil.rmtree(busy.target)
        busy.restore("one")
        with busy.start_restore("two", mode) as running:
            time.sleep(delay)
            running.kill()
        now = seen(busy.target)
        if mode == "--replace":
            assert content(now) in (content(old), content(new))
        else:
            assert_each_whole(now, old, new, all_there=True)
        lines = [line.result for line in recover_targets([str(busy.target)])]
        assert lines in ([], ["finished"], ["rolled-back"])
        after = seen(busy.target)
        assert_same_tree(final if after != old else old, after)
        busy.assert_no_leftovers()
        assert recover_targets([]) == []
        ended[",".join(lines)] = ended.get(",".join(lines), 0) + 1
    busy.assert_verifies()
    print(ended)


def run_part(busy: Busy, part: int, seed: int, count: int) -> None:
    """Do one of the kinds of work."""
    if part % 3 == 0:
        run_saves(busy, seed, count)
    else:
        run_restores(busy, seed, count, "--merge" if part % 3 == 1 else "--replace")


@pytest.mark.parametrize("part", range(PARTS))
def test_a_kill_at_a_random_moment(busy: Busy, part: int) -> None:
    """Half a hundred random moments of saves, merges and replaces, whole process groups at once."""
    run_part(busy, part, random.SystemRandom().randrange(2**32), TRIES)


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_a_kill_at_a_thousand_random_moments(busy: Busy, part: int) -> None:
    """The same, a thousand times."""
    run_part(busy, part, random.SystemRandom().randrange(2**32), STRESS_TRIES)
