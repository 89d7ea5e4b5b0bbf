"""`cachekit restore`: which targets are written, where, and how they take their place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from cachekit.targets.journal import target_lock
from tests.support.capabilities import requires
from tests.support.cli import give
from tests.support.in_process import Here
from tests.support.ordinary_user import NOBODY
from tests.support.snapshots import assert_same_tree, snapshot, unchanged
from tests.support.trees import Symlink, make_tree


def saved(here: Here, key: str, content: bytes = b"1", name: str = "t") -> None:
    """Save a tree `name` with one file under `key`, and remove it."""
    make_tree(here.root, {name: {"a": content}})
    here.save(key, name)
    shutil.rmtree(name)


def test_only_named_targets(here: Here) -> None:
    """An entry with further targets is exit 8, listing them, and nothing is written."""
    make_tree(here.root, {"a": {"x": b"1"}, "b": {"y": b"2"}})
    make_tree(here.home, {".bashrc": b"evil"})
    here.save("k", "a", "b", "~/.bashrc")
    (here.home / ".bashrc").write_bytes(b"mine")
    for path in ("a", "b"):
        shutil.rmtree(path)
    done = here("restore", "--key", "k", "a").expect(8)
    assert "b, ~/.bashrc" in done.stderr
    assert "--all-targets" in done.stderr
    done = here("restore", "--key", "k").expect(8)
    assert "~/.bashrc" in done.stderr
    assert os.listdir(".") == []
    assert (here.home / ".bashrc").read_bytes() == b"mine"


def test_all_targets(here: Here) -> None:
    """--all-targets writes everything, each target in its own root."""
    make_tree(here.root, {"a": {"x": b"1"}})
    make_tree(here.home, {".npm": {"y": b"2"}})
    here.save("k", "a", "~/.npm")
    shutil.rmtree("a")
    shutil.rmtree(here.home / ".npm")
    assert here.restore("k", "--all-targets")["targets"] == ["a", "~/.npm"]
    assert Path("a/x").read_bytes() == b"1"
    assert (here.home / ".npm/y").read_bytes() == b"2"


def test_unknown_target(here: Here) -> None:
    """A PATH that the entry does not hold is exit 8 and lists what it holds."""
    saved(here, "k", name="node_modules")
    done = here("restore", "--key", "k", "node_module").expect(8)
    assert "'node_module'" in done.stderr
    assert "found: node_modules" in done.stderr


@pytest.mark.parametrize("asked", [["~/.npm"], ["node_modules", "~/.npm"]])
def test_what_a_restore_key_finds(here: Here, asked: list[str]) -> None:
    """An entry of other paths that a restore key finds is passed over: for an older one, else as a miss, with why."""
    make_tree(here.home, {".npm": {"x": b"1"}})
    make_tree(here.root, {"node_modules": {"y": b"2"}})
    here.save("npm-1", *asked)
    here.save("npm-2", "node_modules", "~/.npm/x")
    shutil.rmtree(here.home / ".npm")
    report = here("restore", "--key", "npm-3", "--restore-key", "npm-", "--json", *asked).expect().json()
    assert (report["status"], report["matched_key"]) == ("partial", "npm-1")
    assert (here.home / ".npm/x").read_bytes() == b"1"
    done = here("restore", "--key", "npm-3", "--restore-key", "npm-", "other").expect()
    assert "miss" in done.stderr
    assert "the entry does not hold 'other'" in done.stderr
    here("restore", "--key", "npm-2", *asked).expect(8)


def test_part_of_a_target(here: Here) -> None:
    """A PATH inside a target is not a target: exit 8, for an entry is restored whole."""
    saved(here, "k")
    here("restore", "--key", "k", "t/a").expect(8)


@pytest.mark.parametrize("pattern", ["pkg-*", "pkg-?", "pkg-[ab]", "*", "**"])
def test_glob_on_a_fresh_checkout(here: Here, pattern: str) -> None:
    """A glob names the entry's targets, for a fresh checkout has nothing that it could match."""
    make_tree(here.root, {"pkg-a": {"x": b"1"}, "pkg-b": {"y": b"2"}})
    here.save("k", "pkg-a", "pkg-b")
    for name in ("pkg-a", "pkg-b"):
        shutil.rmtree(name)
    assert here.restore("k", pattern)["targets"] == ["pkg-a", "pkg-b"]


def test_glob_with_characters_beyond_ascii(here: Here) -> None:
    """One `?` stands for one character, on saving as on restoring."""
    make_tree(here.root, {"é-1": {"x": b"1"}})
    here.save("k", "?-1")
    shutil.rmtree("é-1")
    assert here.restore("k", "?-1")["targets"] == ["é-1"]


def test_another_root(here: Here, tmp_path: Path) -> None:
    """An entry saved below one root is restored below another, with or without naming its targets."""
    make_tree(tmp_path / "old", {"t": {"a": b"1"}})
    here.save("k", "--root", tmp_path / "old", "t")
    for number, paths in enumerate(([], ["t"], ["./t/"])):
        root = tmp_path / f"new-{number}"
        here.restore("k", "--root", root, *paths)
        assert_same_tree(tmp_path / "old" / "t", root / "t")


def test_merge(here: Here) -> None:
    """Without options files of the entry replace theirs, others stay and are counted as extra."""
    saved(here, "k")
    make_tree(here.root, {"t": {"a": b"old", "mine": b"stays", "sub": {"also": b"stays"}}})
    done = here("restore", "--key", "k", "t", "--json").expect()
    assert done.json()["extra"] == 2
    assert "extra: 2 files not in the entry" in done.stderr
    assert Path("t/a").read_bytes() == b"1"
    assert Path("t/sub/also").read_bytes() == b"stays"


def test_replace(here: Here) -> None:
    """--replace makes the target the entry: what is not in it goes."""
    make_tree(here.root, {"t": {"a": b"1", "sub": {"b": b"2"}}})
    here.save("k", "t")
    wanted = snapshot(here.root / "t")
    make_tree(here.root / "t", {"mine": b"goes", "more": {"too": b"goes"}})
    Path("t/a").write_bytes(b"changed")
    assert here.restore("k", "t", "--replace")["mode"] == "replace"
    assert_same_tree(wanted, here.root / "t")


def test_in_place(here: Here) -> None:
    """--in-place leaves alone what is right, replaces what differs, and with --replace removes the rest."""
    make_tree(here.root, {"t": {"a": b"1", "b": b"2", "sub": {"c": b"3"}}})
    here.save("k", "t")
    wanted = snapshot(here.root / "t")
    inode = Path("t/b").stat().st_ino
    Path("t/a").write_bytes(b"changed")
    Path("t/mine").write_bytes(b"stays")
    done = here("restore", "--key", "k", "t", "--in-place", "--json").expect()
    assert done.json()["unchanged"] == 2
    assert "2 were right already" in done.stderr
    assert Path("t/mine").exists()
    assert Path("t/b").stat().st_ino == inode
    assert here.restore("k", "t", "--in-place", "--replace")["commit"] == {"t": "in-place"}
    assert_same_tree(wanted, here.root / "t")


@pytest.mark.parametrize("other", ["--replace", "--in-place"])
def test_contradicting_modes(here: Here, other: str) -> None:
    """--merge beside another mode is exit 2."""
    saved(here, "k")
    here("restore", "--key", "k", "--merge", other).expect(2)


def test_root_is_only_merged(here: Here) -> None:
    """The root is never replaced: --replace merges it, keeps what is there, and says why."""
    make_tree(here.root, {"a": b"1"})
    here.save("k", ".")
    make_tree(here.root, {".git": {"config": b"mine"}, "mine": b"stays"})
    done = here("restore", "--key", "k", ".", "--replace").expect()
    assert "merged, not replaced" in done.stderr
    assert Path("mine").exists()
    assert Path(".git/config").exists()


@pytest.mark.parametrize(
    ("entry", "there"),
    [
        ({"t": {"a": b"1"}}, {"t": b"a file"}),
        ({"t": b"a file"}, {"t": {"a": b"1"}}),
        ({"t": {"a": b"1"}}, {"t": Symlink("elsewhere"), "elsewhere": {"b": b"2"}}),
    ],
    ids=["file, not directory", "directory, not file", "symlink, not directory"],
)
def test_kind_in_the_way(here: Here, entry: dict[str, object], there: dict[str, object]) -> None:
    """Another kind in the target's place is exit 8 and left alone; --replace takes it away."""
    make_tree(here.root, entry)  # type: ignore[arg-type]
    here.save("k", "t")
    wanted = snapshot(here.root / "t")
    shutil.rmtree("t") if Path("t").is_dir() else Path("t").unlink()
    make_tree(here.root, there)  # type: ignore[arg-type]
    with unchanged(here.root / "t"):
        done = here("restore", "--key", "k", "t").expect(8)
    assert str(here.root / "t") in done.stderr
    assert "--replace" in done.stderr
    here.restore("k", "t", "--replace")
    assert_same_tree(wanted, here.root / "t")
    if "elsewhere" in there:
        assert os.listdir("elsewhere") == ["b"]


def test_parent_that_is_a_file(here: Here) -> None:
    """A file where a parent of the target must be is exit 8 and left alone."""
    make_tree(here.root, {"sub": {"t": {"a": b"1"}}})
    here.save("k", "sub/t")
    shutil.rmtree("sub")
    make_tree(here.root, {"sub": b"a file"})
    here("restore", "--key", "k").expect(8)
    assert Path("sub").read_bytes() == b"a file"


def test_not_enough_space(here: Here) -> None:
    """Too little free space is exit 5 with need, have and short by; the target is as it was."""
    saved(here, "k")
    make_tree(here.root, {"t": {"mine": b"stays"}})
    with unchanged(here.root / "t"):
        done = here("restore", "--key", "k", "t", "--min-free", "9999T", "--json").expect(5)
    assert {"need", "have", "short_by", "min_free"} <= set(done.json()["error"])
    assert "short by" in done.stderr


def test_soft_fail(here: Here) -> None:
    """--soft-fail turns exit 4 to 9 into a warning and 0, and leaves usage errors alone."""
    saved(here, "k")
    done = here("restore", "--key", "k", "nope", "--soft-fail").expect(0)
    assert "cachekit: warning: " in done.stderr
    here("restore", "--key", "", "--soft-fail").expect(2)


def test_durable(here: Here) -> None:
    """--durable restores the same tree."""
    saved(here, "k")
    assert here.restore("k", "t", "--durable")["status"] == "exact"
    assert Path("t/a").read_bytes() == b"1"


def test_setuid(here: Here) -> None:
    """Setuid bits are dropped with a warning, unless --keep-setuid."""
    make_tree(here.root, {"t": {"a": b"1"}})
    os.chmod("t/a", 0o4755)
    here.save("k", "t")
    done = here("restore", "--key", "k", "t").expect()
    assert "--keep-setuid" in done.stderr
    assert Path("t/a").stat().st_mode & 0o7777 == 0o755
    here.restore("k", "t", "--keep-setuid")
    assert Path("t/a").stat().st_mode & 0o7777 == 0o4755


@pytest.mark.parametrize(
    "place", ["cachekit.targets.staging.open_staging", "cachekit.targets.staging.Journal.write"]
)
def test_interrupted_at_the_first_step(here: Here, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Ctrl-C right after the staging directory was made leaves nothing behind, not even a parent."""
    make_tree(here.root, {"sub": {"t": {"a": b"1"}}})
    here.save("k", "sub/t")
    shutil.rmtree("sub")

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    here("restore", "--key", "k").expect(130)
    assert os.listdir(".") == []


def test_directory_that_is_gone(here: Here) -> None:
    """A current directory that was removed is exit 2 with a sentence, not an internal error."""
    saved(here, "k")
    gone = here.root / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert "--root" in here("restore", "--key", "k").expect(2).stderr


@pytest.mark.parametrize("command", ["save", "restore"])
def test_target_in_use(here: Here, command: str) -> None:
    """While another process restores the target, save and restore wait, then are exit 6 and name it."""
    saved(here, "k")
    make_tree(here.root, {"t": {"a": b"2"}})
    with target_lock(bytes(here.root / "t"), shared=False, timeout=0):
        done = here(command, "--key", "k" if command == "restore" else "k2", "t", "--lock-timeout", "0.2")
        done.expect(6)
        assert str(here.root / "t") in done.stderr
        assert "--lock-timeout" in done.stderr
    here(command, "--key", "k", "t").expect()


@requires("root")
def test_same_owner(here: Here) -> None:
    """Files belong to who restores them, or, for root with --same-owner, to whom they belonged."""
    make_tree(here.root, {"t": {"a": b"1", "sub": {}, "link": Symlink("a")}})
    give(here.root / "t")
    here.save("k", "t")
    for options, owner in (((), 0), (("--same-owner",), NOBODY)):
        here.restore("k", "t", "--replace", *options)
        found = [Path(name).lstat() for name in ("t", "t/a", "t/sub", "t/link")]
        assert {(info.st_uid, info.st_gid) for info in found} == {(owner, owner)}
