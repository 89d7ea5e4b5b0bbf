"""Somebody changes the tree while it is cleaned: nothing outside of it is ever touched."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.capabilities import requires
from tests.support.cleaning import Scene, go_on, make_files, outcome, pausing
from tests.support.cli import give
from tests.support.ordinary_user import NOBODY
from tests.support.processes import start, wait_until
from tests.support.snapshots import unchanged

pytestmark = requires("tmpfs")

SWAP = """
import os, sys
place, outside, mark = sys.argv[1:]
link, aside = place + ".link", place + ".aside"
if not os.path.islink(link):
    os.symlink(outside, link)
number = 0
while True:
    number += 1
    if number == 100:
        open(mark, "w").close()
    try:
        # The directory, then the link, then the directory again; made anew when the cleaner has taken it.
        os.rename(place, aside)
        os.rename(link, place)
        os.rename(place, link)
        os.rename(aside, place)
    except OSError:
        for old in (place, link):
            if os.path.islink(old):
                os.unlink(old)
        os.makedirs(place + "/x", exist_ok=True)
        open(place + "/x/file", "w").close()
        if not os.path.islink(link):
            os.symlink(outside, link)
        if os.path.isdir(aside):
            os.rename(aside, aside + str(number))
"""


@requires("unprivileged")
@pytest.mark.parametrize("depth", ["the unit", "its parent", "inside"])
def test_a_directory_swapped_for_a_symlink(scene: Scene, depth: str) -> None:
    """A user who keeps swapping a directory with a symlink to another's tree while root cleans does not touch that."""
    outside = make_files(scene.root / "precious" / "x", 10, 100).parent
    make_files(outside / "units" / "x")
    top = scene.root / "top"
    make_files(top / "units" / "a" / "inner", 5, 100)
    place = {"the unit": top / "units" / "a", "its parent": top / "units", "inside": top / "units/a/inner"}[
        depth
    ]
    scene.rules = {"units": {"paths": [f"{top}/units/*", f"{top}/*/a", f"{top}/**/x"]}}
    give(top)  # a plan names a directory of an ordinary user, and it is root who cleans
    mark = top / "mark"
    with start([sys.executable, "-c", SWAP, place, outside, mark], user=NOBODY, cwd=Path("/")) as swapping:
        wait_until(mark.exists, "it swaps")
        with unchanged(outside):
            for _ in range(10):
                scene.clean("--free", "1T").expect(7)
            assert swapping.alive


def test_a_unit_replaced_after_the_renaming(scene: Scene) -> None:
    """Whoever makes the path anew while the old directory is removed keeps what they made."""
    unit = make_files(scene.root / "units" / "a")
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
    with pausing(scene.cli, "clean.renamed", *scene.arguments("--json", "--free", "1T")) as running:
        assert not unit.exists()
        make_files(unit, 2, 10)
        with unchanged(unit):
            go_on(running)
            report = running.wait().expect(7).json()
    assert outcome(report, "units")["items"] == 5
    assert os.listdir(scene.root / "units") == ["a"]


def test_a_symlink_in_place_of_the_trash(scene: Scene) -> None:
    """A symlink that somebody puts in the place of the renamed directory leads nowhere."""
    make_files(scene.root / "units" / "a")
    outside = make_files(scene.root / "precious")
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
    with pausing(scene.cli, "clean.looked-again", *scene.arguments("--json", "--free", "1T")) as running:
        [trash] = (scene.root / "units").iterdir()
        trash.rename(scene.root / "units" / "moved")
        trash.symlink_to(outside)
        with unchanged(outside):
            go_on(running)
            running.wait().expect(7)


def test_symlinks_are_removed_and_not_followed(scene: Scene) -> None:
    """Symlinks in a unit and as a unit go, and what they lead to stays."""
    outside = make_files(scene.root / "precious")
    unit = make_files(scene.root / "units" / "a")
    (unit / "link").symlink_to(outside)
    (scene.root / "units" / "link").symlink_to(outside)
    (scene.root / "units" / "dangling").symlink_to(scene.root / "nowhere")
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
    with unchanged(outside):
        scene.report("--free", "1T", code=7)
    assert os.listdir(scene.root / "units") == []


def test_a_unit_that_disappears_meanwhile(scene: Scene) -> None:
    """A unit that somebody else removes before its turn is nobody's trouble."""
    make_files(scene.root / "units" / "a")
    second = make_files(scene.root / "units" / "b")
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
    with pausing(scene.cli, "clean.renamed", *scene.arguments("--json", "--free", "1T")) as running:
        shutil.rmtree(second)
        go_on(running)
        report = running.wait().expect(7).json()
    assert outcome(report, "units")["result"] == "freed"
    assert outcome(report, "units")["left"] == []


@requires("root")
@pytest.mark.parametrize("pattern", ["home/alice/cache/*", "home/*/cache/*", "home/*/*/file-*"])
def test_a_link_of_another_user_is_not_followed(scene: Scene, pattern: str) -> None:
    """A link that an ordinary user made leads root only to what is that user's: not to another's, not to root's."""
    home = scene.root / "home" / "alice"
    home.mkdir(parents=True)
    precious = make_files(scene.root / "home" / "bob" / "precious")
    make_files(scene.root / "home" / "alice" / "own")
    (home / "cache").symlink_to(precious)
    (home / "more").symlink_to("own")
    give(home)
    scene.rules = {"units": {"paths": [f"{scene.root}/{pattern}"], "exclude": [f"{scene.root}/home/bob/*"]}}
    with unchanged(precious):
        report = scene.report("--free", "1T", code=7)
    assert "a link of another user leads there" in str(outcome(report, "units")["left"])
    assert (len(os.listdir(home / "own")) == 0) == pattern.endswith("file-*")


@requires("root")
def test_links_of_root_and_own_links_are_followed(scene: Scene) -> None:
    """Where root, or who cleans, has moved a directory elsewhere by a link, it is cleaned there."""
    real = make_files(scene.root / "disk" / "cache")
    (scene.root / "one").symlink_to("disk")
    (scene.root / "two").symlink_to(scene.root / "one" / ".." / "one")
    scene.rules = {"units": {"paths": [f"{scene.root}/two/cache/*"]}}
    report = scene.report("--free", "1T", code=7)
    assert outcome(report, "units")["result"] == "freed"
    assert os.listdir(real) == []


def test_a_chain_of_links_without_an_end(scene: Scene) -> None:
    """Links that lead to each other are refused with that reason."""
    (scene.root / "one").symlink_to("two")
    (scene.root / "two").symlink_to("one")
    scene.rules = {"units": {"paths": [f"{scene.root}/one/*"]}}
    report = scene.report("--free", "1T", code=7)
    assert "without an end" in outcome(report, "units")["reason"]
