"""Sixteen processes at one lock, killed at random: never two inside."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.processes import Running, wait_until

#: Adds one in a way that loses turns if two are inside, and leaves "torn" if one finds another one's half.
_TURN = (
    "if [ -e inside ] && kill -0 $(cat inside) 2>/dev/null && [ $(cat inside) != $$ ]; then echo both >> torn; fi; "
    "echo $$ > inside; n=$(cat counter); sleep 0.0$((RANDOM % 4)); echo $((n + 1)) > counter.new; "
    "mv counter.new counter; echo done >> turns; rm -f inside"
)


def _crowd(cli: Cli, kind: tuple[str, ...], seconds: float, *, count: int = 16) -> tuple[int, int]:
    """Keep `count` lock runs going and kill some of those that took or wait; return turns and kills."""
    place = cli.cwd
    (place / "counter").write_text("0\n")
    (place / "turns").touch()
    chance = random.Random()
    kills = 0
    with ExitStack() as stack:
        runs: list[Running] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            runs = [one for one in runs if one.alive]
            while len(runs) < count:
                runs.append(
                    stack.enter_context(
                        cli.start("lock", "run", "a", *kind, "--timeout=30s", "--", "bash", "-c", _TURN)
                    )
                )
            if chance.random() < 0.3:
                # The taker alone: its command goes on, and nobody may come in beside it.
                victim = chance.choice(runs)
                victim.send(signal.SIGKILL)
                kills += 1
            time.sleep(0.02)
        for one in runs:
            one.wait().expect(0, -signal.SIGKILL)
        # Orphaned commands end by themselves.
        cli("lock", "run", "a", *kind, "--timeout=30s", "--", "true").expect()
    return len((place / "turns").read_text().split()), kills


def _proven(place: Path, turns: int) -> None:
    assert not (place / "torn").exists()
    assert int((place / "counter").read_text()) == turns
    assert turns > 0


@pytest.mark.parametrize("kind", [(), ("--lease", "--lease-length=5s")], ids=["flock", "lease"])
def test_a_crowd(cli: Cli, kind: tuple[str, ...]) -> None:
    """For some seconds: every turn counted once, nobody inside with another, whoever is killed."""
    turns, _ = _crowd(cli, kind, 1.5)
    _proven(cli.cwd, turns)


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [(), ("--lease", "--lease-length=5s")], ids=["flock", "lease"])
def test_a_crowd_for_a_minute(cli: Cli, kind: tuple[str, ...]) -> None:
    """The same for a minute."""
    turns, kills = _crowd(cli, kind, 60)
    _proven(cli.cwd, turns)
    assert turns > 100
    assert kills > 100
    wait_until(lambda: not [name for name in os.listdir(cli.cwd) if name == "inside"], "all have left")
