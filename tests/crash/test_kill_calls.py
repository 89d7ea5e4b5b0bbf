"""Killed before any single call that changes the file system, not only at the numbered steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from cachekit.targets import commit as committing
from tests.crash.scene import PLACES, Scene, content, die_at, seen
from tests.crash.test_kill_steps import WAYS, Way, assert_ended
from tests.support.capabilities import requires

CALLS = "rename replace unlink rmdir mkdir link symlink chmod fchmod utime ftruncate pwrite".split()


def die_before_call(number: int, action: Callable[[], object]) -> int:
    """Do something in a forked child that dies before its `number`-th changing call; 0 if there are fewer."""
    left = [number]

    def armed(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **named)

        return call

    def act() -> None:
        for name in CALLS:
            setattr(os, name, armed(getattr(os, name)))
        for name in ("exchange", "rename_noreplace"):
            setattr(committing, name, armed(getattr(committing, name)))
        action()

    return die_at("", act)


def check(way: Way, placed: Scene) -> None:
    """Recover, and see the old tree or the new one and nothing else; the root's time aside if only that is lost."""
    old = placed.old if way.place != "absent" else {}
    before = seen(placed.target)
    if way.whole:
        assert content(before) in (content(old), content(placed.new))
    lines = placed.recover(named=True)
    assert {line.result for line in lines} <= {"finished", "rolled-back"}, lines
    new = not old or content(seen(placed.target)) == content(way.final(old, placed.new))
    if way.place == "absent" and not seen(placed.target):
        new = False
    if way.place == "mounted":
        # Removing staging inside the target touches it last of all: a kill just then leaves that mark, and no more.
        assert content(seen(placed.target)) == content(way.final(old, placed.new) if new else old)
        assert placed.leftovers() == []
        return
    assert_ended(way, placed, old, "" if new else "restore.opened")


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(name, marks=requires(*one.needs) if one.needs else ())
        for name, one in WAYS.items()
        if name != "replace-no-exchange"
    ],
)
def test_killed_before_every_call(scene: Scene, way: str) -> None:
    """Wherever it is killed, `recover` makes the target the old tree or the new one, whole."""
    one, number = WAYS[way], 0
    while True:
        number += 1
        root = scene.root / str(number)
        root.mkdir()
        with PLACES[one.place](scene.at(root)) as placed:
            code = die_before_call(number, lambda: placed.restore(one.mode, extras=one.extras))
            assert code in (0, -9)
            if code == 0:
                break
            check(one, placed)
    print(f"{number} calls")
    assert number > 50
