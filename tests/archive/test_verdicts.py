"""What follows from a refusal: the next candidate, the quarantine, the exit code; and what is no reason for one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cachekit.archive.extract import check_contents
from cachekit.archive.read import open_archive
from cachekit.errors import Damaged
from cachekit.trust import ANYONE
from tests.support.archives import KEY, entry_path, file_entry, quarantined, restore_tree, save_tree
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.flaky import Flaky, flaky
from tests.support.samples import sample_tree
from tests.support.snapshots import assert_same_tree
from tests.support.surgery import anatomy, flip
from tests.support.trees import make_tree

if TYPE_CHECKING:
    from tests.archive.conftest import Whole


def rewrite(path: Path, data: bytes) -> Path:
    """Replace a file, as a new inode."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def test_strict_exits_4_and_without_it_the_job_goes_on(sample: Whole, cli: Cli) -> None:
    """A refused entry is exit 0 with status refused, exit 4 with --strict, and a plain miss the next time."""
    store = cli.cwd / "store"
    for options, code in (((), 0), (("--strict",), 4)):
        file_entry(store, flip(sample.data, 5000))
        result = cli("restore", "--key", KEY, "--store", store, "--json", *options).expect(code)
        assert result.json()["status"] == "refused"
        assert result.json()["tried"][0]["error"]["rung"] == "frames"
    assert cli("restore", "--key", KEY, "--store", store, "--json").expect(0).json()["status"] == "miss"
    cli("restore", "--key", KEY, "--store", store, "--strict").expect(3)
    assert len(quarantined(store)) == 2
    cli("verify", "--all", "--store", store).expect(0)


def test_a_restore_key_helps_after_a_refusal(sample: Whole, tmp_path: Path) -> None:
    """When the exact entry is refused, the newest whole entry of the restore key is restored, as a partial hit."""
    store, root = tmp_path / "store", tmp_path / "root"
    older = make_tree(tmp_path / "older", {"which": "older"})
    save_tree(store, older, key="attack-0")
    exact = file_entry(store, flip(sample.data, 5000))
    report = restore_tree(store, root, restore_keys=["attack-"])
    assert (report.status, report.matched_key) == ("partial", "attack-0")
    assert report.quarantined == [exact.name]
    assert_same_tree(older, root, ignore={"root"})


def test_all_of_a_restore_keys_damaged_entries_are_passed_over(sample: Whole, tmp_path: Path) -> None:
    """Damaged entries, newer than the whole one, are each refused until the whole one is reached."""
    store, root = tmp_path / "store", tmp_path / "root"
    for number in range(1, 4):
        tree = make_tree(tmp_path / f"tree-{number}", {"which": str(number)})
        save_tree(store, tree, key=f"cache-{number}")
    for number in (2, 3):
        path = entry_path(store, f"cache-{number}")
        rewrite(path, flip(path.read_bytes(), 12))
    report = restore_tree(store, root, key="cache-4", restore_keys=["cache-"])
    assert (report.status, report.matched_key) == ("partial", "cache-1")
    assert [line["verdict"] for line in report.tried] == ["damaged", "damaged"]
    assert len(report.quarantined) == 2


def test_a_restore_over_a_refused_entry_can_be_saved_again(sample: Whole, tmp_path: Path) -> None:
    """After a refusal, a save of the same key publishes, and is restored."""
    store = tmp_path / "store"
    file_entry(store, sample.data[:-1])
    assert restore_tree(store, tmp_path / "root").status == "refused"
    save_tree(store, sample.tree)
    assert restore_tree(store, tmp_path / "root").status == "exact"


def test_a_save_replaces_a_damaged_entry(sample: Whole, tmp_path: Path) -> None:
    """A save does not say "exists" of an entry that is cut or misfiled: it sets it aside and goes on."""
    store = tmp_path / "store"
    for data in (sample.data[:-1], b"", flip(sample.data, sample.parts.json + 9)):
        file_entry(store, data)
        save_tree(store, sample.tree)  # asserts "saved"
        assert restore_tree(store, tmp_path / "root").status == "exact"
    assert quarantined(store)


def _is_refused(disk: Flaky, path: Path, offset: int, skip: int) -> bool:
    """Whether the entry is refused when one read, after `skip` right ones, gives a wrong bit at the offset."""
    disk.set_fault("read", flip=offset, match=path.name, skip=skip, times=1)
    try:
        with open_archive(bytes(path), ANYONE) as archive:
            check_contents(archive, 0)
    except Damaged:
        return True
    return False


@requires("fuse")
def test_a_read_that_is_wrong_once_costs_no_good_entry(tmp_path: Path) -> None:
    """Wrong bytes on one read, right ones on the next: the entry is restored, and is not set aside."""
    tree = sample_tree(tmp_path / "tree")
    backing = tmp_path / "backing"
    path = save_tree(backing / "store", tree)
    parts = anatomy(path)
    with flaky(backing) as disk:
        for offset in (parts.size - 2, parts.index + 60, parts.frames[0] + 60):
            mounted = disk.mount / path.relative_to(backing)
            wrong = [skip for skip in range(9) if _is_refused(disk, mounted, offset, skip)]
            assert wrong
            for skip in wrong:
                disk.set_fault("read", flip=offset, match=path.name, skip=skip, times=1)
                root = tmp_path / f"root-{offset}-{skip}"
                report = restore_tree(disk.mount / "store", root)
                assert (report.status, report.quarantined) == ("exact", [])
                assert_same_tree(tree, root, ignore={"root"})
    assert path.exists()


@requires("fuse")
def test_a_read_that_is_always_wrong_is_refused(tmp_path: Path) -> None:
    """Wrong bytes on every read: the entry is refused, as damaged by whatever damages it, and nothing is written."""
    tree = sample_tree(tmp_path / "tree")
    backing, root = tmp_path / "backing", tmp_path / "root"
    path = save_tree(backing / "store", tree)
    offset = anatomy(path).frames[0] + 60
    with flaky(backing) as disk:
        disk.set_fault("read", flip=offset, match=path.name)
        assert restore_tree(disk.mount / "store", root).status == "refused"
    assert not list(root.iterdir())
