"""What is taken for a part of a layout, and what is not, whatever lies in its directories."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachekit.errors import Damaged, NothingMatched, SourceUnreadable
from cachekit.oci import layout as layouts
from cachekit.oci.collect import CollectRequest, collect
from cachekit.oci.graph import DOCUMENT_BYTES
from cachekit.oci.layout import ASIDE, Layout
from cachekit.oci.verify import verify_layout
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.layouts import MadeLayout, content

HEX = "0123456789abcdef" * 4


@pytest.fixture
def made(tmp_path: Path) -> MadeLayout:
    """A layout with one image."""
    layout = MadeLayout(tmp_path / "layout")
    layout.image("app", [content(1)])
    return layout


def test_what_is_no_blob(made: MadeLayout) -> None:
    """Only regular files with a whole digest as their name, below a known algorithm, are blobs; the rest is told."""
    before = made.digests()
    place = made.path / "blobs"
    (place / "sha256" / HEX).mkdir()
    (place / "sha256" / ("f" * 64)).symlink_to(HEX)
    for name in (HEX[1:], HEX + "0", HEX.upper(), "x"):
        (place / "sha256" / name).touch()
    (place / "md5").mkdir()
    (place / "sha512").touch()
    with Layout(str(made.path)) as layout:
        found, odd = layout.blobs()
    assert set(found) == before
    names = (HEX, "f" * 64, HEX[1:], HEX + "0", HEX.upper(), "x")
    assert sorted(odd) == sorted(["blobs/md5", *(f"blobs/sha256/{name}" for name in names)])


def test_how_long_a_digest_is(made: MadeLayout) -> None:
    """A blob's name has as many digits as its own algorithm gives."""
    place = made.path / "blobs" / "sha512"
    place.mkdir()
    for name in (HEX, HEX * 2, HEX * 3):
        (place / name).touch()
    with Layout(str(made.path)) as layout:
        found, odd = layout.blobs()
    assert set(found) == {*made.digests(), f"sha512:{HEX * 2}"}
    assert sorted(odd) == [f"blobs/sha512/{HEX}", f"blobs/sha512/{HEX * 3}"]


def test_what_is_being_written(made: MadeLayout) -> None:
    """An ingest is a directory; its size is its data's, its age that of the youngest in it, itself included."""
    old = made.ingest(1000, 500)
    (made.path / "ingest" / "file").touch()
    with Layout(str(made.path)) as layout:
        (one,) = layout.ingests()
        assert (one.name, one.size) == (old.name, 1000)
        before = one.mtime_ns
        for young in (old / "ref", old):
            made.age(young, 100)
            (one,) = layout.ingests()
            assert one.mtime_ns == young.stat().st_mtime_ns > before
            made.age(young, 500)
        names = sorted([old.name, *(made.ingest(size, 500).name for size in range(10))])
        assert [one.name for one in layout.ingests()] == names


def test_what_a_killed_collection_left(made: MadeLayout) -> None:
    """It is a directory of ours; a file of that name, or a directory of another, is not."""
    for name in (f"{ASIDE}-b", f"{ASIDE}-a", f"{ASIDE}x", "other"):
        (made.path / name).mkdir()
    (made.path / f"{ASIDE}-file").touch()
    (made.path / f"{ASIDE}-link").symlink_to("other")
    with Layout(str(made.path)) as layout:
        assert layout.asides() == [f"{ASIDE}-a", f"{ASIDE}-b"]


def test_documents(made: MadeLayout) -> None:
    """A document is given if it is there and as long as said; what is no file is none, and nobody waits for it."""
    one = made.blob(b"{}")
    with Layout(str(made.path)) as layout:
        assert layout.document(one["digest"], 2) == b"{}"
        assert layout.document(one["digest"], 1) is layout.document(one["digest"], 3) is None
        made.file(one).unlink()
        assert layout.document(one["digest"], 2) is None
        os.mkfifo(made.file(one))
        assert layout.document(one["digest"], 0) is None
        made.file(one).unlink()
        (made.path / "there").write_bytes(b"{}")
        made.file(one).symlink_to(made.path / "there")
        assert layout.document(one["digest"], 2) is None


@pytest.mark.parametrize("name", ["index.json", "blobs", "blobs/sha256", "ingest"])
def test_links_are_told(made: MadeLayout, name: str, tmp_path: Path) -> None:
    """A link in the place of a directory or of index.json is not followed; whoever asks is told which."""
    (made.path / name).rename(tmp_path / "elsewhere")
    (made.path / name).symlink_to(tmp_path / "elsewhere")
    with Layout(str(made.path)) as layout:
        if name == "blobs/sha256":
            assert layout.blobs() == ({}, [])
            return
        look = {"index.json": layout.read_index, "blobs": layout.blobs, "ingest": layout.ingests}[name]
        with pytest.raises(SourceUnreadable, match="is a link"):
            look()


def test_a_link_that_is_no_part(made: MadeLayout, tmp_path: Path) -> None:
    """Of what was restored, a link in the place of a part is a fault; one that lies beside the parts is none."""
    (made.path / "latest").symlink_to("index.json")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert verify_layout("layout", within=fd).ok
        (made.path / "index.json.lock").symlink_to("elsewhere")
        (fault,) = verify_layout("layout", within=fd).faults
    finally:
        os.close(fd)
    assert str(fault).startswith("index.json.lock is a link")


@pytest.mark.parametrize("name", ["blobs", "ingest"])
def test_files_in_the_place_of_directories(made: MadeLayout, name: str) -> None:
    """They hold nothing."""
    (made.path / name).rename(made.path / "elsewhere")
    (made.path / name).touch()
    with Layout(str(made.path)) as layout:
        assert layout.ingests() == []
        assert bool(layout.blobs()[0]) == (name == "ingest")


def test_a_link_that_goes_while_it_is_looked_at(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be opened as a directory, and is gone when it is asked why, is not there, and no error."""
    place, lstat = made.path / "ingest", os.lstat
    place.rename(made.path / "elsewhere")
    place.symlink_to("elsewhere")

    def gone(name: str, *, dir_fd: int) -> os.stat_result:
        place.unlink()
        return lstat(name, dir_fd=dir_fd)

    with Layout(str(made.path)) as layout, monkeypatch.context() as patch:
        patch.setattr("cachekit.oci.layout.os.lstat", gone)
        assert layout.ingests() == []
    assert not place.is_symlink()


def test_what_looks_like_a_layout(tmp_path: Path) -> None:
    """Any part of one does, and a directory with nothing in it; one with other things does not."""
    with Layout(str(tmp_path)) as layout:
        assert layout.looks_like_one()
        (tmp_path / "other").touch()
        assert not layout.looks_like_one()
        for name in ("index.json", "index.json.lock", "oci-layout", "blobs", "ingest"):
            (tmp_path / name).touch()
            assert layout.looks_like_one()
            (tmp_path / name).unlink()


def descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_descriptor_is_left(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in the place of something, each look at it gives its descriptors back."""
    monkeypatch.setattr(layouts, "_LOCK_SECONDS", 0.05)
    one = made.blob(b"{}")
    other = made.blob(b"[]")
    made.file(other).unlink()
    os.mkfifo(made.file(other))
    before = descriptors()
    with Layout(str(made.path)) as layout, open(made.path / "index.json.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with layout.locked() as held:
            assert not held
        fcntl.flock(lock, fcntl.LOCK_UN)
        with layout.locked():
            pass
        layout.blobs()
        layout.ingests()
        assert layout.document(one["digest"], 2) == b"{}"
        assert layout.document(other["digest"], 2) is None
        assert layout.read_index()
        (made.path / "index.json").unlink()
        os.mkfifo(made.path / "index.json")
        assert layout.read_index() is None
    assert descriptors() == before


def test_documents_have_an_end(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is read of index.json, or of a blob that is said to be a document, than a document may have."""
    one = made.blob(bytes(1000))
    monkeypatch.setattr(layouts, "DOCUMENT_BYTES", 50)
    with Layout(str(made.path)) as layout:
        for name, read in (("index.json", layout.read_index), ("oci-layout", layout.read_version)):
            (made.path / name).write_bytes(b"{}".ljust(50))
            assert read() == b"{}".ljust(50)
            (made.path / name).write_bytes(b"{}".ljust(51))
            assert read() == b""
            os.truncate(made.path / name, 1 << 24)
            tracemalloc.start()
            try:
                assert read() == b""
                assert tracemalloc.get_traced_memory()[1] < 1 << 20
            finally:
                tracemalloc.stop()
        assert layout.document(one["digest"], 1000) is None
        assert layout.document(one["digest"], 1 << 61) is None


def test_an_index_that_only_begins_well(made: MadeLayout) -> None:
    """An index.json longer than a document may be is damage, also if as much of it as is read is whole JSON."""
    index = made.path / "index.json"
    index.write_bytes(index.read_bytes().ljust(DOCUMENT_BYTES) + b"}")
    (fault,) = verify_layout(str(made.path)).faults
    assert "index.json is no index" in str(fault)
    with pytest.raises(Damaged, match=r"index\.json is no index"):
        collect(CollectRequest(str(made.path), grace=0, settle=0))


def test_a_name_that_cannot_be(tmp_path: Path) -> None:
    """A directory that cannot be opened is told with the reason, and one that is a file as no directory."""
    with pytest.raises(SourceUnreadable, match="cannot open the directory: File name too long"):
        Layout(str(tmp_path / ("x" * 300)))
    (tmp_path / "file").touch()
    with pytest.raises(NothingMatched, match="this is no directory"):
        Layout(str(tmp_path / "file"))


def test_a_layout_behind_a_link(made: MadeLayout, tmp_path: Path) -> None:
    """Who names a layout may name a link to it; below a directory that was opened none is followed."""
    (tmp_path / "link").symlink_to(made.path)
    with Layout(str(tmp_path / "link")) as layout:
        assert layout.read_index()
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(NothingMatched):
                Layout("link", fd)
            with Layout("layout", fd) as within:
                assert within.read_index() == layout.read_index()
        finally:
            os.close(fd)


def test_what_goes_while_it_is_listed(made: MadeLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob or ingest that is gone before it is looked at is not there, and no error."""
    gone = made.blob(content(2))
    whole = made.digests() - {gone["digest"]}
    ingest = made.ingest(100, 500)
    listed: list[Path] = []
    scandir = os.scandir

    @contextlib.contextmanager
    def scanned(fd: int) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(fd) as entries:
            found = list(entries)
        for place in (made.file(gone), ingest):
            if place.name in {entry.name for entry in found}:
                place.rename(made.path / place.name)
                listed.append(place)
        yield found

    with Layout(str(made.path)) as layout, monkeypatch.context() as patch:
        patch.setattr("cachekit.oci.layout.os.scandir", scanned)
        assert set(layout.blobs()[0]) == whole
        assert layout.ingests() == []
    assert listed == [made.file(gone), ingest]


@requires("root")
@pytest.mark.parametrize("name", ["index.json", "oci-layout", "blobs", "blobs/sha256", "ingest"])
def test_what_may_not_be_looked_at(nobody_cli: Cli, name: str) -> None:
    """A part of the layout that belongs to somebody else is no damage and not taken for empty: it is told so (8)."""
    layout = MadeLayout(nobody_cli.cwd / "cache")
    layout.image("app", [content(1)])
    (layout.path / name).chmod(0)
    for command in (["verify"], ["gc", "--dry-run"]):
        if name == "oci-layout" and command[0] == "gc":
            continue  # it does not read it
        done = nobody_cli("oci", *command, "cache").expect(8)
        assert "Permission denied" in done.stderr
        assert "fix its permissions" in done.stderr
