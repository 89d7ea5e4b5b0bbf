"""Several at once on one key, one target, one store: each gets a whole answer, and nobody waits for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cachekit.model import EntryIdentity, Key
from cachekit.system.clock import this_platform
from cachekit.system.locks import is_held, try_lock
from cachekit.targets.journal import target_lock
from tests.crash.busy import Busy, Sources, in_the_middle
from tests.crash.scene import OLD, Scene, merged
from tests.support.cli import Cli
from tests.support.processes import Running, wait_until
from tests.support.snapshots import assert_same_tree, snapshot, unchanged
from tests.support.trees import make_tree

SLOWLY = ("--level", "13", "--json")


@pytest.fixture
def busy(cli: Cli, tmp_path: Path, large_sources: Sources) -> Busy:
    """An empty store."""
    return Busy.make(cli, tmp_path, large_sources, saved=False)


@pytest.fixture
def saved(cli: Cli, tmp_path: Path, large_sources: Sources) -> Busy:
    """A store with both trees, and the first one in its place."""
    made = Busy.make(cli, tmp_path, large_sources, saved=True)
    made.restore("one")
    return made


def status(running: Running) -> str:
    """Wait for a child that ends with 0, and return the status that it reports."""
    return str(running.wait(40).expect(0).json()["status"])


@contextmanager
def held(running: Running, moment: Callable[[], bool]) -> Iterator[Callable[[], None]]:
    """Stop a child in the middle of its work for the time of a block, or until what is given is called."""
    in_the_middle(running, moment)
    running.send(signal.SIGSTOP)
    yield lambda: running.send(signal.SIGCONT)


def stored(busy: Busy, key: str) -> str:
    """Restore an entry elsewhere, and return which of the two trees it holds as a whole."""
    root = busy.base / f"check-{time.monotonic_ns()}"
    root.mkdir()
    assert busy.restore(key, root).status == "exact"
    found = snapshot(root / "tree")
    [name] = [name for name, tree in busy.trees.items() if tree == found]
    return name


# One key


def test_of_two_saves_of_a_key_one_leaves_it_to_the_other(busy: Busy) -> None:
    """The second one says at once that the first is at it, or that it has done it; the entry is whole."""
    with busy.start_save("one", "key", *SLOWLY) as first, busy.start_save("two", "key", *SLOWLY) as second:
        statuses = [status(first), status(second)]
    assert sorted(statuses) in (["in-progress", "saved"], ["exists", "saved"])
    assert stored(busy, "key") == ("one" if statuses[0] == "saved" else "two")
    assert busy.assert_verifies() == 1
    busy.assert_no_leftovers()


def test_a_save_that_waits_finds_the_entry(busy: Busy) -> None:
    """With --wait, the second save ends after the first and reports that the entry exists."""
    with (
        busy.start_save("one", "key", *SLOWLY) as first,
        held(first, busy.writing) as go_on,
        busy.start_save("two", "key", "--wait", "--json") as second,
    ):
        time.sleep(0.7)
        assert second.alive
        go_on()
        assert (status(first), status(second)) == ("saved", "exists")
    assert stored(busy, "key") == "one"


def test_a_save_that_waits_takes_over_from_a_killed_one(busy: Busy) -> None:
    """With --wait, a save whose predecessor dies does the work itself."""
    with (
        busy.start_save("one", "key", *SLOWLY) as first,
        held(first, busy.writing),
        busy.start_save("two", "key", "--wait", "--json") as second,
    ):
        time.sleep(0.7)
        assert second.alive
        first.kill()
        assert status(second) == "saved"
    assert stored(busy, "key") == "two"


def test_a_wait_has_an_end(busy: Busy) -> None:
    """A save that waited as long as it was told exits 6 and says for what; one that does not wait exits 0 at once."""
    with busy.start_save("one", "key", *SLOWLY) as first, held(first, busy.writing):
        with busy.start_save("two", "key", "--wait", "--wait-timeout", "0.5") as second:
            assert "is still saving" in second.wait(20).expect(6).stderr
        with busy.start_save("two", "key", "--json") as third:
            assert status(third) == "in-progress"


def test_two_forced_saves_leave_one_whole_entry(saved: Busy) -> None:
    """Over an old entry, whichever is last wins as a whole."""
    with (
        saved.start_save("one", "two", "--force", "--json") as first,
        saved.start_save("two", "two", "--force", "--json") as second,
    ):
        assert {status(first), status(second)} <= {"saved", "in-progress"}
    assert stored(saved, "two") in {"one", "two"}
    assert saved.assert_verifies() == 2
    saved.assert_no_leftovers()


# One target


def test_a_save_waits_for_a_restore_as_long_as_it_is_told(scene: Scene) -> None:
    """While a restore holds the target, a save exits 6 after --lock-timeout and names the target."""
    make_tree(scene.target, OLD)
    with target_lock(os.fsencode(scene.target), shared=False, timeout=0):
        options = ("--store", scene.store, "--root", scene.root, "--lock-timeout", "0.3")
        done = scene.cli("save", "--key", "lock", "tree", *options).expect(6)
        assert f"the target {scene.target} is in use" in done.stderr
        assert "--lock-timeout" in done.stderr
    assert scene.leftovers() == []


def test_a_restore_waits_for_a_save_as_long_as_it_is_told(scene: Scene) -> None:
    """While a save reads the target, a restore exits 6 after --lock-timeout and touches nothing."""
    make_tree(scene.target, OLD)
    with target_lock(os.fsencode(scene.target), shared=True, timeout=0), unchanged(scene.target):
        options = ("--store", scene.store, "--root", scene.root, "--lock-timeout", "0.3")
        done = scene.cli("restore", "--key", "new", *options).expect(6)
        assert f"the target {scene.target} is in use" in done.stderr
    assert scene.leftovers() == []


def test_a_target_has_one_lock_whatever_path_leads_to_it(scene: Scene) -> None:
    """A root that is reached through a symlink does not get around the lock."""
    make_tree(scene.target, OLD)
    (scene.root.parent / "link").symlink_to(scene.root)
    with target_lock(os.fsencode(scene.root.parent / "link/tree"), shared=False, timeout=0):
        options = ("--store", scene.store, "--root", scene.root, "--lock-timeout", "0")
        scene.cli("restore", "--key", "new", *options).expect(6)


def test_a_tree_is_saved_as_it_was_before_a_restore(saved: Busy) -> None:
    """A restore that begins during a save of its target waits: the entry is the old tree, the target the new one."""
    options = ("--store", saved.store, "--root", saved.root, "--level", "13", "--json")
    with (
        saved.cli.start("save", "--key", "third", "tree", *options) as saving,
        held(saving, saved.writing) as go_on,
        saved.start_restore("two", "--replace", "--json") as restoring,
    ):
        time.sleep(0.7)
        assert restoring.alive
        go_on()
        assert (status(saving), status(restoring)) == ("saved", "exact")
    assert stored(saved, "third") == "one"
    assert_same_tree(saved.trees["two"], saved.target)
    saved.assert_no_leftovers()


def test_a_tree_is_saved_as_it_is_after_a_restore(saved: Busy) -> None:
    """A save that begins during a restore of its target waits, and does not take it for a killed one."""
    options = ("--store", saved.store, "--root", saved.root, "--json")
    with (
        saved.start_restore("two", "--merge", "--json") as restoring,
        held(restoring, saved.unpacking) as go_on,
        saved.cli.start("save", "--key", "third", *options, "tree") as saving,
    ):
        time.sleep(0.7)
        assert saving.alive
        go_on()
        assert (status(restoring), status(saving)) == ("exact", "saved")
    root = saved.base / "check"
    root.mkdir()
    saved.restore("third", root)
    assert_same_tree(saved.target, root / "tree")


def test_a_restore_killed_while_a_save_waits_is_noticed(scene: Scene) -> None:
    """A save that got the lock only because the restore died refuses the half tree with exit 8."""
    make_tree(scene.target, OLD)
    scene.kill("commit.half", "restore", "--key", "new")
    scene.forget_state()
    [staging] = scene.root.glob(".cachekit-*")
    hidden = scene.root.parent / "hidden"
    staging.rename(hidden)  # as if it were not there yet
    stripe = scene.store / "v1/default/locks" / EntryIdentity(Key("half"), this_platform()).digest[:2]
    with ExitStack() as restoring:
        restoring.enter_context(target_lock(os.fsencode(scene.target), shared=False, timeout=0))
        with scene.cli.start(
            "save", "--key", "half", "--store", scene.store, "--root", scene.root, "tree"
        ) as saving:
            wait_until(lambda: is_held(stripe), "the save to come to the target's lock")
            time.sleep(0.2)
            hidden.rename(staging)
            restoring.close()
            assert "cachekit recover" in saving.wait(20).expect(8).stderr
    assert scene.recover(named=True)[0].result == "finished"


def test_what_holds_an_unfinished_tree_is_not_saved(scene: Scene) -> None:
    """A save of a directory around an unfinished target refuses with exit 8 too."""
    make_tree(scene.target, OLD)
    scene.kill("commit.half", "restore", "--key", "new")
    options = ("--store", scene.store, "--root", scene.root.parent, "--exclude", "source-*")
    done = scene.cli("save", "--key", "around", "root", *options).expect(8)
    assert "cachekit recover" in done.stderr
    scene.cli("recover").expect(0)
    scene.cli("save", "--key", "around", "root", *options).expect(0)


def test_two_restores_of_a_target_come_one_after_the_other(saved: Busy) -> None:
    """Both exit 0, and the tree is whole."""
    with (
        saved.start_restore("two", "--replace", "--json") as first,
        saved.start_restore("two", "--replace", "--json") as second,
    ):
        assert (status(first), status(second)) == ("exact", "exact")
    assert_same_tree(saved.trees["two"], saved.target)
    saved.assert_no_leftovers()


def test_a_restore_waits_for_a_recovery(scene: Scene) -> None:
    """Staging that is in use is neither taken over nor passed by: the restore waits, then says so with exit 6."""
    make_tree(scene.target, OLD)
    scene.kill("commit.half", "restore", "--key", "new")
    [staging] = scene.root.glob(".cachekit-*")
    fd = os.open(staging, os.O_RDONLY)
    options = ("--store", scene.store, "--root", scene.root, "--lock-timeout", "0.3")
    assert try_lock(fd)
    done = scene.cli("restore", "--key", "new", *options).expect(6)
    assert "still running" in done.stderr
    assert "left alone" in scene.cli("recover").expect(0).stderr
    os.close(fd)
    scene.cli("restore", "--key", "new", *options).expect(0)
    assert_same_tree(merged(scene.old, scene.new), scene.target)


# One entry


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_reader_keeps_the_entry_that_it_opened(saved: Busy, how: str) -> None:
    """An entry removed or replaced during a restore is restored as it was opened, whole."""
    [entry] = [
        path for path in (saved.store / "v1/default/entries").iterdir() if path.name.startswith("two-")
    ]
    with (
        saved.start_restore("two", "--replace", "--json") as restoring,
        held(restoring, lambda: bool(saved.staging())) as go_on,
    ):
        if how == "removed":
            entry.unlink()
        else:
            assert saved.save("one", "two", force=True).status == "saved"
        go_on()
        assert status(restoring) == "exact"
    assert_same_tree(saved.trees["two"], saved.target)
    assert saved.restore("two").status == ("miss" if how == "removed" else "exact")
    assert_same_tree(saved.trees["two" if how == "removed" else "one"], saved.target)


def test_a_live_savers_file_is_never_swept(busy: Busy, tmp_path: Path) -> None:
    """Saves, restores and listings beside a slow save leave its temporary file alone."""
    make_tree(tmp_path / "small/two/tree", {"file": b"x"})
    beside = replace(busy, sources=tmp_path / "small")
    with busy.start_save("one", "slow", *SLOWLY) as saving, held(saving, busy.writing) as go_on:
        [temp] = busy.temporary()
        for number in range(5):
            beside.save("two", f"beside-{number}")
            beside.restore(f"beside-{number}")
            busy.sweep()
            busy.cli("ls", "--store", busy.store).expect(0)
            assert busy.temporary() == [temp]
        go_on()
        assert status(saving) == "saved"
    assert stored(busy, "slow") == "one"
    busy.assert_no_leftovers()
