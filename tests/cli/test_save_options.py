"""`cachekit save`: keys, entries that exist already, and what each option does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cachekit.cache.space import require
from cachekit.model import EntryIdentity, Key
from cachekit.store.directory import DirectoryStore
from cachekit.system.clock import this_platform
from tests.support.in_process import Here, cut
from tests.support.snapshots import assert_same_tree, snapshot
from tests.support.trees import Dir, make_tree


def test_existing_key_is_left_alone(here: Here) -> None:
    """A key that has a whole entry keeps it: exit 0, status "exists"."""
    make_tree(here.root, {"t": {"a": b"old"}})
    first = here.save("k", "t")
    Path("t/a").write_bytes(b"new")
    stored = here.entry("k").read_bytes()
    again = here.save("k", "t")
    assert (again["status"], again["identity"], again["files"]) == ("exists", first["identity"], 1)
    assert here.entry("k").read_bytes() == stored


def test_force(here: Here) -> None:
    """--force puts a new entry in the place of the old one."""
    make_tree(here.root, {"t": {"a": b"old"}})
    here.save("k", "t")
    Path("t/a").write_bytes(b"new")
    assert here.save("k", "t", "--force")["status"] == "saved"
    os.unlink("t/a")
    here.restore("k", "t")
    assert Path("t/a").read_bytes() == b"new"
    assert len(here.entries()) == 1


def test_damaged_existing_entry_is_replaced(here: Here) -> None:
    """A key whose entry was cut gets a new one; the cut one is set aside, with a warning."""
    make_tree(here.root, {"t": {"a": b"1"}})
    name = here.save("k", "t")["entry"]
    cut(here.entry("k"))
    done = here("save", "--key", "k", "t", "--json").expect()
    assert done.json()["status"] == "saved"
    assert "set aside" in done.stderr
    assert [kept.startswith(name) for kept in here.quarantine()] == [True]
    here("verify", "--all").expect()


@pytest.mark.parametrize(
    "key",
    [
        "../x",
        "a/b",
        "/no/such/file",
        "with space",
        "naïve-名前",
        "-x",
        "--",
        ".",
        "..",
        "...",
        "a" * 512,
        "::x::",
    ],
)
def test_odd_keys(here: Here, key: str) -> None:
    """Any text without control characters is a key: it is found again, and its file stays in the store."""
    make_tree(here.root, {"t": {"a": b"1"}})
    before = snapshot(here.root)
    here.save(key, "t")
    assert here.restore(key, "t")["matched_key"] == key
    assert len(here.entries()) == 1
    assert_same_tree(before, here.root, ignore=["root"])
    here("verify", "--", key).expect()
    assert here("show", "--manifest", "--", key).expect().json()["key"] == key


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "empty"),
        ("a" * 513, "513 bytes"),
        ("ü" * 257, "514 bytes"),
        ("line\n", "U+000A"),
        ("tab\t", "U+0009"),
        ("\x1b[31m", "U+001B"),
        ("\x85", "U+0085"),
        ("\u2028", "U+2028"),
        (b"\xff", "UTF-8"),
    ],
)
@pytest.mark.parametrize("command", ["save", "restore"])
def test_what_is_no_key(here: Here, command: str, key: str | bytes, says: str) -> None:
    """Empty, too long, control characters, not UTF-8: exit 2 with the reason, and nothing is done."""
    make_tree(here.root, {"t": {"a": b"1"}})
    done = here(command, b"--key=" + (key if isinstance(key, bytes) else key.encode()), "t").expect(2)
    assert says in done.stderr
    assert "\x1b" not in done.stderr
    assert here.entries() == []


def test_level(here: Here) -> None:
    """--level reaches the compressor: more of it gives a smaller archive, and the manifest names it."""
    make_tree(here.root, {"t": {"a": b"".join(b"%d line of text\n" % (n * n) for n in range(20_000))}})
    sizes = [here.save(f"k{level}", "t", f"--level={level}")["archive_bytes"] for level in (-5, 3, 19)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    assert here("show", "k19", "--manifest").json()["level"] == 19


@pytest.mark.parametrize("level", ["-51", "23", "fast", "3.5"])
def test_level_that_is_none(here: Here, level: str) -> None:
    """A level that zstd does not have is exit 2."""
    make_tree(here.root, {"t": {"a": b"1"}})
    here("save", "--key", "k", "t", f"--level={level}").expect(2)


@pytest.mark.parametrize(("given", "family"), [((), "npm-linux"), (("--family", "mine"), "mine")])
def test_family(here: Here, given: tuple[str, ...], family: str) -> None:
    """The family is the key up to its last dash, unless --family names it."""
    make_tree(here.root, {"t": {"a": b"1"}})
    here.save("npm-linux-4f1c", "t", *given)
    assert here("show", "npm-linux-4f1c", "--json").json()["family"] == family


def test_min_free(here: Here) -> None:
    """Too little free space is exit 5 with need, have and short by; nothing is written."""
    make_tree(here.root, {"t": {"a": b"1"}})
    done = here("save", "--key", "k", "t", "--min-free", "9999T", "--json").expect(5)
    error = done.json()["error"]
    assert error["short_by"] == error["need"] + error["min_free"] - error["have"]
    for word in ("need", "have", "short by", "9999.0 TiB", "hint"):
        assert word in done.stderr
    assert here.entries() == []
    assert list((here.store / "v1/default/tmp").iterdir()) == []


@pytest.mark.parametrize("size", ["12 apples", "-1", "1e9", "", "M", "9" * 400])
def test_size_that_is_none(here: Here, size: str) -> None:
    """A size that cannot be read is exit 2 and says how to write one."""
    make_tree(here.root, {"t": {"a": b"1"}})
    done = here("save", "--key", "k", "t", f"--min-free={size}").expect(2)
    assert "500M" in done.stderr


def changes_while_read(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let a file grow whenever the space for an entry is asked for: after the walk, before it is read."""
    real: Callable[..., None] = require

    def growing(*args: object, **more: object) -> None:
        with path.open("ab") as file:
            file.write(b"more")
        real(*args, **more)

    monkeypatch.setattr("cachekit.cache.saving.require", growing)


def test_changed_file_refuses(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changes between walk and read is never saved torn: as it is then, or exit 8."""
    make_tree(here.root, {"t": {"a": b"1", "b": b"2"}})
    changes_while_read(monkeypatch, here.root / "t" / "a")
    done = here("save", "--key", "k", "t", "--json")
    assert done.code in (0, 8)
    if done.code == 8:
        assert done.json()["error"]["id"] == "source-changed"
        assert here.entries() == []
    else:
        Path("t").rename("u")
        here.restore("k", "t")
        assert Path("t/a").read_bytes() == Path("u/a").read_bytes()


def test_in_progress(here: Here) -> None:
    """While another process saves the key, a save leaves it to that one: exit 0, status "in-progress"."""
    make_tree(here.root, {"t": {"a": b"1"}})
    store = DirectoryStore(str(here.store))
    store.prepare()
    with store.saver(EntryIdentity(Key("k"), this_platform())):
        assert here.save("k", "t")["status"] == "in-progress"
        done = here("save", "--key", "k", "t", "--wait", "--wait-timeout", "0.3").expect(6)
        assert "k" in done.stderr
    assert here.save("k", "t", "--wait")["status"] == "saved"


def test_wait_is_a_plain_flag(here: Here) -> None:
    """--wait takes no value: a PATH may follow it."""
    make_tree(here.root, {"t": {"a": b"1"}})
    assert here("save", "--key", "k", "--wait", "t", "--json").expect().json()["targets"] == ["t"]


@pytest.mark.parametrize("seconds", ["nan", "-1", "soon", ""])
@pytest.mark.parametrize("option", ["--wait-timeout", "--lock-timeout"])
def test_seconds_that_are_none(here: Here, option: str, seconds: str) -> None:
    """A time that is no number, or never comes, is exit 2: nothing may wait forever by mistake."""
    make_tree(here.root, {"t": {"a": b"1"}})
    here("save", "--key", "k", "t", f"{option}={seconds}").expect(2)


def test_store_inside_the_tree(here: Here) -> None:
    """A store that lies inside a target is left out of the entry."""
    make_tree(here.root, {"t": {"a": b"1"}})
    report = here.save("k", "t", "--store", "t/store")
    assert report["skipped"] == {"the store itself": 1}
    assert report["files"] == 1


def test_store_that_cannot_be_made(here: Here) -> None:
    """A store whose place is taken by a file is exit 9, names the place and says what to do."""
    make_tree(here.root, {"t": {"a": b"1"}, "file": b"in the way"})
    done = here("save", "--key", "k", "t", "--store", "file/store").expect(9)
    assert str(here.root / "file" / "store") in done.stderr
    assert "--store" in done.stderr


def test_report(here: Here) -> None:
    """The report has every documented field, with the right numbers."""
    make_tree(here.root, {"t": Dir({"a": b"x" * 1000, "b": b"", "sub": {}})})
    report = here.save("k", "t")
    expected = {"status": "saved", "key": "k", "files": 2, "members": 4, "content_bytes": 1000, "changed": []}
    assert {name: report[name] for name in expected} == expected
    assert report["archive_bytes"] == here.entry("k").stat().st_size
    assert report["ratio"] == round(1000 / report["archive_bytes"], 3)
    assert report["entry"] == here.entry("k").name
    assert report["seconds"] > 0
    assert {"platform", "identity", "targets", "skipped", "phases", "warnings"} <= set(report)


def test_closing_line(here: Here) -> None:
    """The closing line has the key, files, bytes, ratio and seconds, and stdout stays empty."""
    make_tree(here.root, {"t": {"a": b"x" * 10_000}})
    done = here("save", "--key", "k", "t").expect()
    assert done.out == b""
    assert done.stderr.startswith("saved k: 1 file, 9.8 KiB as ")
    assert "ratio " in done.stderr
    assert " s, " in done.stderr
