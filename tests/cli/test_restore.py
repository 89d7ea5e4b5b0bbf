"""`cachekit restore`: which entry is found, and why one was not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cachekit.model import Platform
from tests.support.archives import Entry
from tests.support.in_process import Here, cut
from tests.support.snapshots import unchanged
from tests.support.trees import make_tree


def saved(here: Here, key: str, content: bytes = b"1", name: str = "t") -> None:
    """Save a tree `name` with one file under `key`, and remove it."""
    make_tree(here.root, {name: {"a": content}})
    here.save(key, name)
    shutil.rmtree(name)


def foreign(here: Here, key: str) -> None:
    """Make the entry of `key` one of another platform, sealed and filed as such."""
    path = here.entry(key)
    entry = Entry.read(path)
    entry.facts.platform = Platform("linux", "riscv64", "musl")
    sealed = entry.seal()
    path.unlink()
    from cachekit.store.directory import file_name_of

    path.with_name(file_name_of(entry.facts)).write_bytes(sealed)


@pytest.mark.parametrize("key", ["v1", "v1-", "v1-fo", "V1-foo", "v1-foo ", "v1-foo-x"])
def test_exact_is_exact(here: Here, key: str) -> None:
    """A key finds its own entry only, never one that begins with it."""
    saved(here, "v1-foo")
    report = here.restore(key)
    assert (report["status"], report["matched_key"], report["cache_hit"]) == ("miss", None, False)
    assert os.listdir(".") == []


def test_exact_hit(here: Here) -> None:
    """The exact key's entry is restored: status exact, what and how in the report."""
    saved(here, "k")
    report = here.restore("k", "t")
    expected = {"status": "exact", "matched_key": "k", "cache_hit": True, "files": 1, "mode": "merge"}
    assert {name: report[name] for name in expected} == expected
    assert report["targets"] == ["t"]
    assert report["commit"] == {"t": "rename"}
    assert Path("t/a").read_bytes() == b"1"


def test_exact_key_goes_before_restore_keys(here: Here) -> None:
    """A newer entry of a restore key does not hide the exact one."""
    saved(here, "npm-1", b"old")
    saved(here, "npm-2", b"new")
    assert here.restore("npm-1", "--restore-key", "npm-")["matched_key"] == "npm-1"
    assert Path("t/a").read_bytes() == b"old"


def test_restore_key_takes_the_newest(here: Here) -> None:
    """A restore key is a prefix, and takes the newest entry that has it: a partial hit."""
    for number, key in enumerate(["npm-b", "npm-c", "npm-a"]):
        saved(here, key, b"%d" % number)
    report = here.restore("npm-x", "--restore-key", "npm-")
    assert (report["status"], report["matched_key"], report["cache_hit"]) == ("partial", "npm-a", False)
    assert Path("t/a").read_bytes() == b"2"


def test_restore_keys_in_order(here: Here) -> None:
    """The first restore key that finds something wins, however old that is."""
    saved(here, "linux-npm-1", b"first")
    saved(here, "npm-2", b"newer")
    order = ["--restore-key", "none-", "--restore-key", "linux-npm-", "--restore-key", "npm-"]
    assert here.restore("x", *order)["matched_key"] == "linux-npm-1"


def test_restore_key_passes_over_what_is_damaged(here: Here) -> None:
    """A cut entry is set aside, with its reason, and the next newest is restored."""
    saved(here, "npm-1", b"old")
    saved(here, "npm-2", b"new")
    name = here.entry("npm-2").name
    cut(here.entry("npm-2"))
    report = here.restore("x", "--restore-key", "npm-")
    assert (report["status"], report["matched_key"]) == ("partial", "npm-1")
    assert report["quarantined"] == [name]
    assert [(line["entry"], line["verdict"]) for line in report["tried"]] == [(name, "damaged")]
    assert Path("t/a").read_bytes() == b"old"


def test_empty_restore_key(here: Here) -> None:
    """An empty restore key, as of a variable that is not set, is exit 2: it would match everything."""
    saved(here, "k")
    here("restore", "--key", "x", "--restore-key", "").expect(2)
    assert os.listdir(".") == []


def test_damaged_entry_is_refused(here: Here) -> None:
    """A damaged entry is exit 0, status refused, set aside; the target is not touched, and then it is a miss."""
    saved(here, "k")
    cut(here.entry("k"))
    make_tree(here.root, {"t": {"mine": b"stays"}})
    with unchanged(here.root / "t"):
        report = here.restore("k", "t")
    assert (report["status"], report["cache_hit"], report["files"]) == ("refused", False, 0)
    error = report["tried"][0]["error"]
    assert (error["id"], error["rung"], error["exit_code"]) == ("damaged", "seal", 4)
    assert {"expected", "found", "path", "message", "hint"} <= set(error)
    assert here.entries() == []
    assert here.restore("k", "t")["status"] == "miss"


def test_refusal_for_people(here: Here) -> None:
    """A refusal names the key and the file, the rung, what was expected and found, and what to do."""
    saved(here, "k")
    name = here.entry("k").name
    cut(here.entry("k"))
    told = here("restore", "--key", "k", "t").expect().stderr
    for part in (name, "set aside", "at: rung seal", "expected: ", "found: ", "hint: ", "for k;"):
        assert part in told


@pytest.mark.parametrize(
    ("options", "code"),
    [((), 0), (("--fail-on-miss",), 3), (("--strict",), 3), (("--soft-fail", "--fail-on-miss"), 3)],
)
def test_codes_of_a_miss(here: Here, options: tuple[str, ...], code: int) -> None:
    """A miss is exit 0, unless --fail-on-miss or --strict ask for 3, which --soft-fail does not take back."""
    assert here.restore("k", *options, code=code)["status"] == "miss"


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--fail-on-miss",), 3), (("--strict",), 4)])
def test_codes_of_a_refusal(here: Here, options: tuple[str, ...], code: int) -> None:
    """A refusal is exit 0, --fail-on-miss makes it 3 and --strict 4."""
    saved(here, "k")
    cut(here.entry("k"))
    assert here.restore("k", *options, code=code)["status"] == "refused"


def test_strict_tells_of_a_refusal_behind_a_hit(here: Here) -> None:
    """With --strict a partial hit after a refused entry is restored, and still exit 4."""
    saved(here, "npm-1")
    saved(here, "npm-2")
    cut(here.entry("npm-2"))
    report = here.restore("npm-2", "--restore-key", "npm-", "--strict", code=4)
    assert report["status"] == "partial"
    assert Path("t/a").exists()


def test_miss_for_people(here: Here) -> None:
    """A miss names the key, the restore keys and the store that was asked."""
    told = here("restore", "--key", "k", "--restore-key", "npm-", "--restore-key", "n").expect().stderr
    assert told == f"miss: no entry for k, nor one that begins with npm-, n in {here.store}\n"


def test_other_platform_is_a_miss(here: Here) -> None:
    """An entry of another platform is a miss that says so, also where a restore key would have found it."""
    saved(here, "npm-1")
    foreign(here, "npm-1")
    for options in (("--key", "npm-1"), ("--key", "x", "--restore-key", "npm-")):
        done = here("restore", *options, "--json").expect()
        report = done.json()
        assert report["status"] == "miss"
        assert "linux-riscv64-musl" in report["tried"][0]["reason"]
        assert "--any-platform" in done.stderr
    assert os.listdir(".") == []


def test_any_platform(here: Here) -> None:
    """--any-platform takes an entry of another platform, for the key as for a restore key."""
    saved(here, "npm-1")
    foreign(here, "npm-1")
    assert here.restore("npm-1", "--any-platform")["status"] == "exact"
    assert here.restore("x", "--restore-key", "npm-", "--any-platform")["status"] == "partial"
    assert Path("t/a").read_bytes() == b"1"
