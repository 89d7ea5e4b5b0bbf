"""`cachekit verify`: names, depths, verdicts and exit codes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.in_process import Here, cut
from tests.support.samples import package_tree
from tests.support.snapshots import unchanged
from tests.support.trees import make_tree

DEPTHS = ["seal", "index", "frames", "contents"]


@pytest.fixture
def saved(here: Here) -> Path:
    """The file of an entry `k` of several frames."""
    package_tree(here.root / "t", files=40, large=0)
    here.save("k", "t")
    return here.entry("k")


def flip(path: Path, offset: int) -> None:
    """Change one byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("depth", DEPTHS)
def test_whole(here: Here, saved: Path, depth: str) -> None:
    """A whole entry is ok at every depth, by key, by file and by --all; nothing is changed."""
    with unchanged(saved):
        for arguments in (["k"], [str(saved)], ["--all"]):
            done = here("verify", *arguments, "--depth", depth).expect()
            assert done.stdout.startswith("ok        k: 40 files, ")
            assert done.stderr == f"1 of 1 whole (depth {depth})\n"


@pytest.mark.parametrize("depth", DEPTHS)
def test_cut(here: Here, saved: Path, depth: str) -> None:
    """A cut entry is exit 4 at every depth, names the rung, and stays where it is."""
    cut(saved)
    with unchanged(saved):
        done = here("verify", "k", "--depth", depth).expect(4)
    for part in ("damaged   k: ", f"path: {saved}", "at: rung seal", "expected: ", "found: ", "hint: "):
        assert part in done.stdout
    assert "0 of 1 whole" in done.stderr


@pytest.mark.parametrize(("depth", "code"), list(zip(DEPTHS, (0, 0, 4, 4), strict=True)))
def test_flipped_byte_in_a_frame(here: Here, saved: Path, depth: str, code: int) -> None:
    """A byte that changed in the data is found from depth frames on, which names frame and offset."""
    flip(saved, 1000)
    done = here("verify", "k", "--depth", depth, "--json").expect(code)
    report = done.json()
    assert (report["ok"], report["depth"]) == (code == 0, depth)
    if code:
        error = report["archives"][0]["error"]
        assert (error["id"], error["rung"], error["frame"], error["offset"]) == ("damaged", "frames", 0, 0)
        assert error["expected"] != error["found"]


def test_flipped_byte_in_the_index(here: Here, saved: Path) -> None:
    """A byte that changed in the index is not seen by depth seal, and is by depth index."""
    flip(saved, here("show", "k", "--json").json()["data_bytes"] + 20)
    here("verify", "k", "--depth", "seal").expect()
    assert "rung index" in here("verify", "k", "--depth", "index").expect(4).stdout


def test_lone_file(here: Here, saved: Path, tmp_path: Path) -> None:
    """An archive under any name and without a store verifies, by relative path too."""
    shutil.copy(saved, "copy.bin")
    shutil.rmtree(here.store)
    for name in ("copy.bin", "./copy.bin", str(here.root / "copy.bin")):
        assert here("verify", name, "--json").expect().json()["archives"][0]["key"] == "k"


def test_filed_under_another_name(here: Here, saved: Path) -> None:
    """A whole archive under another entry's file name is damaged: it would be served for the wrong key."""
    make_tree(here.root, {"u": {"a": b"1"}})
    here.save("other", "u")
    other = here.entry("other")
    shutil.copy(saved, other)
    done = here("verify", "--all").expect(4)
    assert "another entry's name" in done.stdout
    assert "1 of 2 whole" in done.stderr


@pytest.mark.parametrize("name", ["missing", "mis/sing", "/no/such/file"])
def test_missing(here: Here, saved: Path, name: str) -> None:
    """What is neither a key nor a file is exit 3 and says both."""
    done = here("verify", name).expect(3)
    assert done.stdout.startswith(f"missing   {name}: ")
    assert "no such file" in done.stdout


def test_key_goes_before_a_file_of_the_same_name(here: Here, saved: Path) -> None:
    """A name that is a key means the entry, whatever lies in the current directory; ./ means the file."""
    make_tree(here.root, {"k": b"no archive", "a": {"b": {}}})
    here.save("a/b", "t")
    here("verify", "k", "a/b").expect()
    here.save("./k", "t")
    here("verify", "./k").expect(4)
    here("show", "./k").expect(4)


@pytest.mark.parametrize(
    ("make", "code"),
    [(lambda path: path.write_bytes(b""), 4), (lambda path: path.mkdir(), 4), (os.mkfifo, 4)],
    ids=["empty file", "directory", "fifo"],
)
def test_what_is_no_archive(here: Here, make: object, code: int) -> None:
    """An empty file, a directory or a fifo is damaged; none of them makes verify wait or fail."""
    assert callable(make)
    make(here.root / "thing")
    assert here("verify", "./thing").expect(code).stdout.startswith("damaged   ")


def test_dangling_link(here: Here) -> None:
    """A link to nothing is missing."""
    Path("link").symlink_to("nowhere")
    here("verify", "./link").expect(3)


def test_worst_verdict_gives_the_code(here: Here, saved: Path) -> None:
    """Among several names damage goes before what is missing, and every name has its line."""
    make_tree(here.root, {"u": {"a": b"1"}})
    here.save("whole", "u")
    cut(saved)
    done = here("verify", "missing", "whole", "k", "--json").expect(4)
    verdicts = [archive["verdict"] for archive in done.json()["archives"]]
    assert verdicts == ["missing", "ok", "damaged"]


def test_nothing_asked(here: Here) -> None:
    """Neither a name nor --all is exit 2; --all on an empty store is exit 0 and says that nothing was there."""
    assert "--all" in here("verify").expect(2).stderr
    assert "no entry" in here("verify", "--all").expect().stderr


def test_depth_that_is_none(here: Here) -> None:
    """An unknown depth is exit 2 and lists the depths."""
    assert "contents" in here("verify", "--all", "--depth", "all").expect(2).stderr


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 600])
def test_what_can_be_no_name(here: Here, name: str) -> None:
    """A name that can be neither key nor file is exit 2."""
    here("verify", "--", name).expect(2)


def test_report(here: Here, saved: Path) -> None:
    """The report has every documented field."""
    (report,) = here("verify", "k", "--json").expect().json()["archives"]
    assert (report["verdict"], report["key"], report["files"], report["error"]) == ("ok", "k", 40, None)
    assert report["path"] == str(saved)
    assert report["archive_bytes"] == saved.stat().st_size
    assert {"content_bytes", "identity", "seconds", "depth"} <= set(report)
