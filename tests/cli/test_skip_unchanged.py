"""``save --skip-unchanged``: one stored entry under several keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.in_process import Here
from tests.support.trees import Dir, HardLink, Symlink, make_tree

TREE = Dir({"a": b"one", "b": Dir({"c": b"two" * 1000, "link": Symlink("c"), "hard": HardLink("a")})})


@pytest.fixture
def tree(here: Here) -> Path:
    """A tree that was saved as k-1."""
    make_tree(here.root / "tree", TREE)
    here.save("k-1", "tree")
    return here.root / "tree"


def test_it_serves_both_keys(here: Here, tree: Path) -> None:
    """Nothing is copied: both names lead to one file, and the new key is a hit, also when the old one is gone."""
    done = here("save", "--key=k-2", "--skip-unchanged", "tree").expect()
    assert "nothing changed since k-1" in done.stderr
    first, second = here.entry("k-1"), here.entry("k-2")
    assert os.path.samefile(first, second)
    here("verify", "k-2").expect()
    first.unlink()
    report = here.restore("k-2", "--in-place")
    assert (report["status"], report["matched_key"]) == ("exact", "k-2")


def test_the_report(here: Here, tree: Path) -> None:
    """The status is reused; identity and sizes are those of the entry that serves both keys."""
    report = here.save("k-2", "--skip-unchanged", "tree")
    assert (report["status"], report["base"], report["unchanged"]) == ("reused", "k-1", True)
    assert report["archive_bytes"] == here.entry("k-1").stat().st_size
    assert here.save("k-2", "--skip-unchanged", "tree")["status"] == "exists"


def test_show_tells_both_keys(here: Here, tree: Path) -> None:
    """Shown under its other key an entry tells which key it was saved with, and which it also serves."""
    here.save("k-2", "--skip-unchanged", "tree")
    shown = here("show", "k-2").expect().stdout
    assert "also serves  k-2" in shown
    assert "k-1" in shown
    assert "also serves" not in here("show", "k-1").expect().stdout


def test_ls_counts_it_once(here: Here, tree: Path) -> None:
    """Both keys are listed with the entry's identity, and its bytes are in the total once."""
    before = here("ls").expect().stderr.split(", ")[1]
    here.save("k-2", "--skip-unchanged", "tree")
    after = here("ls").expect()
    assert after.stderr.startswith("2 entries, ")
    assert after.stderr.split(", ")[1] == before
    first, second = here("ls", "--json").expect().json()
    assert first["identity"] == second["identity"]


@pytest.mark.parametrize("change", ["content", "mode", "time", "further", "gone", "link"])
def test_a_change_is_saved(here: Here, tree: Path, change: str) -> None:
    """Whatever differs, the save writes an entry of its own."""
    if change == "content":
        info = (tree / "b/c").stat()
        (tree / "b/c").write_bytes(b"TWO" * 1000)
        os.utime(tree / "b/c", ns=(info.st_atime_ns, info.st_mtime_ns))
    elif change == "mode":
        (tree / "b/c").chmod(0o600)
    elif change == "time":
        os.utime(tree / "b/c", ns=(1, 1))
    elif change == "further":
        (tree / "d").write_bytes(b"three")
    elif change == "gone":
        (tree / "b/c").unlink()
    else:
        (tree / "b/hard").unlink()
        (tree / "b/hard").write_bytes(b"one")
    report = here.save("k-2", "--skip-unchanged", "tree")
    assert report["status"] == "saved"
    assert not os.path.samefile(here.entry("k-1"), here.entry("k-2"))


def test_force_replaces(here: Here, tree: Path) -> None:
    """With --force the key's old entry goes, and the other one serves it."""
    (tree / "a").write_bytes(b"old")
    here.save("k-2", "tree")
    (tree / "a").write_bytes(b"one")
    here.save("k-3", "tree")
    report = here.save("k-2", "--force", "--skip-unchanged", "tree")
    assert report["status"] == "reused"
    assert os.path.samefile(here.entry("k-3"), here.entry("k-2"))


def test_without_hard_links(here: Here, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the entry cannot have another name, the save copies it as any other does."""

    def refused(*_args: object, **_more: object) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr("cachekit.store.alias.link_as", refused)
    report = here.save("k-2", "--skip-unchanged", "tree")
    assert (report["status"], report["unchanged"]) == ("saved", True)
    here("verify", "--all").expect()


@pytest.mark.parametrize("spoil", ["gone", "cut", "other", "empty"])
def test_without_its_alias_the_name_is_wrong(here: Here, tree: Path, spoil: str) -> None:
    """A link under another name that nothing vouches for is refused and set aside, as any misfiled entry is."""
    here.save("k-2", "--skip-unchanged", "tree")
    name = here.entry("k-2").name
    alias = here.store / "v1/default/aliases" / name
    if spoil == "gone":
        alias.unlink()
    elif spoil == "cut":
        os.truncate(alias, alias.stat().st_size - 1)
    elif spoil == "empty":
        os.truncate(alias, 0)
    else:
        here.save("k-3", "--skip-unchanged", "tree")
        alias.write_bytes((alias.parent / here.entry("k-3").name).read_bytes())
    assert here.restore("k-2")["status"] == "refused"
    assert here.restore("k-1")["status"] == "exact"
    assert here.save("k-2", "--skip-unchanged", "tree")["status"] == "reused"
