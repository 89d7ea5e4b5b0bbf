"""An entry that is cut anywhere is refused, and the target is not touched."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cachekit.archive.extract import check_contents
from cachekit.archive.read import open_archive
from cachekit.errors import Damaged
from cachekit.trust import ANYONE
from tests.support.archives import KEY, entry_path, file_entry, quarantined, restore_tree
from tests.support.cli import Cli
from tests.support.samples import sample_tree
from tests.support.snapshots import assert_same_tree, unchanged

if TYPE_CHECKING:
    from tests.archive.conftest import Whole

OFFSETS = 2_000
TAIL = 1_100


def structural_cuts(whole: Whole) -> list[tuple[str, int]]:
    """Every edge of a frame or structure with its neighbours, as far as they are cuts at all."""
    return [
        (f"{name}{by:+}", offset + by)
        for name, offset in whole.parts.edges()
        for by in (-1, 0, 1)
        if 0 <= offset + by < whole.parts.size
    ]


def refuse_all(path: Path, cuts: list[int]) -> None:
    """Cut the copy at `path` shorter and shorter; each time it must be refused as damaged."""
    for cut in sorted(cuts, reverse=True):
        os.truncate(path, cut)
        with pytest.raises(Damaged) as refusal, open_archive(bytes(path), ANYONE) as archive:
            check_contents(archive, 0)
        assert refusal.value.rung in {"seal", "index"}, f"cut at {cut}: seen only at {refusal.value.rung}"
        assert refusal.value.path == bytes(path)


@pytest.mark.parametrize("name", ["sample", "packages"])
def test_a_cut_at_or_beside_every_edge_is_refused(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A file that ends at, before or after the edge of any frame or structure is refused by its last bytes."""
    whole: Whole = request.getfixturevalue(name)
    cuts = structural_cuts(whole)
    assert len(cuts) >= 3 * 8
    refuse_all(Path(shutil.copy(whole.path, tmp_path)), [cut for _, cut in cuts])


@pytest.mark.parametrize("name", ["sample", "packages"])
def test_every_cut_of_the_last_kilobyte_is_refused(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A file that lacks 1 to 1,100 bytes is refused, each of these lengths."""
    whole: Whole = request.getfixturevalue(name)
    cuts = list(range(whole.parts.size - TAIL, whole.parts.size))
    refuse_all(Path(shutil.copy(whole.path, tmp_path)), cuts)


@pytest.mark.parametrize("name", ["sample", "packages"])
def test_two_thousand_random_cuts_are_refused(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A file cut at any of 2,000 random lengths is refused."""
    whole: Whole = request.getfixturevalue(name)
    cuts = random.Random(20).sample(range(whole.parts.size), OFFSETS)
    refuse_all(Path(shutil.copy(whole.path, tmp_path)), cuts)


def test_restoring_a_cut_entry_leaves_the_target_alone(packages: Whole, tmp_path: Path) -> None:
    """For every structural cut, restore says refused, sets the entry aside, and the target is the very tree it was."""
    store = tmp_path / "store"
    target = sample_tree(tmp_path / "root" / "packages")
    with unchanged(tmp_path / "root"):
        for name, cut in structural_cuts(packages):
            path = file_entry(store, packages.data[:cut])
            report = restore_tree(store, target.parent)
            assert report.status == "refused", name
            assert report.tried[0]["verdict"] == "damaged", name
            assert report.quarantined == [path.name], name
            assert not path.exists(), name


@pytest.mark.parametrize("mode", ["merge", "replace", "in-place"])
def test_no_mode_of_restoring_uses_a_cut_entry(packages: Whole, tmp_path: Path, mode: str) -> None:
    """Merging, replacing and restoring in place refuse an entry cut at random places, before any change."""
    store = tmp_path / "store"
    target = sample_tree(tmp_path / "root" / "packages")
    with unchanged(tmp_path / "root"):
        for cut in random.Random(21).sample(range(packages.parts.size), 10):
            file_entry(store, packages.data[:cut])
            assert restore_tree(store, target.parent, mode=mode).status == "refused", cut


def test_a_target_that_is_absent_stays_absent(packages: Whole, tmp_path: Path) -> None:
    """Where there was no target, a cut entry leaves not even an empty directory."""
    store, root = tmp_path / "store", tmp_path / "root"
    root.mkdir()
    with unchanged(root):
        for _, cut in structural_cuts(packages)[::5]:
            file_entry(store, packages.data[:cut])
            assert restore_tree(store, root).status == "refused"


def test_a_file_cut_while_it_is_being_read_is_refused(packages: Whole, tmp_path: Path) -> None:
    """An entry that becomes shorter after its seal was checked is refused, and nothing dies of a bus error."""
    path = Path(shutil.copy(packages.path, tmp_path))
    for cut in (packages.parts.frames[1] + 1, packages.parts.index + 1, packages.parts.seal - 1, 0):
        shutil.copy(packages.path, path)
        with open_archive(bytes(path), ANYONE) as archive:
            assert archive.seal.key == KEY
            os.truncate(path, cut)
            with pytest.raises(Damaged, match="shorter"):
                check_contents(archive, 2)


def test_the_commands_refuse_cut_entries_without_a_traceback(packages: Whole, cli: Cli) -> None:
    """Restore, verify, ls and show say in sentences what a cut entry is; verify exits 4, restore --strict 4."""
    store = cli.cwd / "store"
    target = sample_tree(cli.cwd / "packages")
    parts = packages.parts
    with unchanged(target):
        for cut in (0, parts.index - 1, parts.json + 1, parts.size - 1):
            path = file_entry(store, packages.data[:cut])
            cli("verify", path).expect(4)
            cli("ls", "--store", store).expect(0)
            cli("show", path).expect(4)
            cli("restore", "--key", KEY, "--store", store, "--strict").expect(4)
            assert not path.exists()
    assert quarantined(store)


def test_the_same_entry_uncut_is_restored(packages: Whole, tmp_path: Path) -> None:
    """The entry that all of these tests cut is good when it is whole."""
    store = tmp_path / "store"
    file_entry(store, packages.data)
    assert restore_tree(store, tmp_path / "root").status == "exact"
    assert_same_tree(packages.tree, tmp_path / "root", ignore={"root"})
    assert entry_path(store, KEY).exists()
