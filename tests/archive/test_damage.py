"""What bit rot, mixed-up files and things that are no entries at all meet: a refusal, before any change."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cachekit.archive.extract import check_contents, check_frames
from cachekit.archive.read import open_archive
from cachekit.errors import Damaged, Refused
from cachekit.trust import ANYONE
from tests.support.archives import file_entry, restore_tree, save_tree
from tests.support.samples import sample_tree
from tests.support.snapshots import unchanged
from tests.support.surgery import anatomy, flip, graft, swap_frames
from tests.support.trees import make_tree

if TYPE_CHECKING:
    from tests.archive.conftest import Whole

FLIPS = 2_000


def refused(path: Path, workers: int = 0) -> Damaged:
    """Verify the whole file, which must be refused as damaged."""
    with pytest.raises(Damaged) as refusal, open_archive(bytes(path), ANYONE) as archive:
        check_contents(archive, workers)
    return refusal.value


def rewrite(path: Path, data: bytes) -> Path:
    """Replace a file, as a new inode."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def places(whole: Whole) -> dict[str, int]:
    """One offset within each structure of an entry."""
    parts = whole.parts
    found = {f"frame {number}": start + 20 for number, start in enumerate(parts.frames[:-1])}
    found |= {"frame magic": parts.frames[1], "frame checksum": parts.frames[1] - 1}
    found |= {"index magic": parts.index, "index size": parts.index + 4, "index": parts.index + 50}
    found |= {"seal magic": parts.seal, "seal size": parts.seal + 4, "seal": parts.json + 50}
    found |= {"digest": parts.trailer, "length": parts.trailer + 32, "auth": parts.trailer + 36}
    found |= {"seal end": parts.seek_table - 1, "table magic": parts.seek_table, "row": parts.seek_table + 8}
    found |= {"frame count": parts.footer, "descriptor": parts.footer + 4, "footer": parts.size - 1}
    return found


def test_one_flipped_bit_anywhere_is_refused(sample: Whole, tmp_path: Path) -> None:
    """A file with one wrong bit, at each of 2,000 random places, does not pass."""
    source = random.Random(30)
    path = tmp_path / "flipped"
    for offset in source.sample(range(sample.parts.size), FLIPS):
        path.write_bytes(flip(sample.data, offset, source.randrange(8)))
        refused(path)


def test_every_bit_of_the_last_bytes_counts(sample: Whole, tmp_path: Path) -> None:
    """In the trailer, the seek table and its footer no single bit may be wrong."""
    path = tmp_path / "flipped"
    rows = range(sample.parts.seek_table + 8, sample.parts.footer)
    for offset in range(sample.parts.trailer, sample.parts.size):
        for bit in range(8):
            path.write_bytes(flip(sample.data, offset, bit))
            refused(path)
            if offset not in rows:  # all but the rows is for the seal alone to find out, without the index
                with pytest.raises(Damaged), open_archive(bytes(path), ANYONE) as archive:
                    _ = archive.seal


def test_a_wrong_byte_is_found_where_it_is(packages: Whole, tmp_path: Path) -> None:
    """The refusal names the rung and the frame, also when another process found it."""
    path = Path(shutil.copy(packages.path, tmp_path))
    for number, start in enumerate(packages.parts.frames[:-1]):
        rewrite(path, flip(packages.data, start + 9))
        for error in (refused(path, 0), refused(path, 2)):
            assert (error.rung, error.fields["frame"]) == ("frames", number)
            assert error.fields["offset"] == start
            assert error.path == bytes(path)
        with pytest.raises(Damaged, match=f"frame {number} "), open_archive(bytes(path), ANYONE) as archive:
            check_frames(archive, 2)


def test_a_flipped_bit_in_any_structure_is_not_restored(packages: Whole, tmp_path: Path) -> None:
    """Restore refuses and sets aside an entry with a wrong bit in any of its structures; the target is not touched."""
    store = tmp_path / "store"
    target = sample_tree(tmp_path / "root" / "packages")
    with unchanged(tmp_path / "root"):
        for name, offset in places(packages).items():
            path = file_entry(store, flip(packages.data, offset))
            report = restore_tree(store, target.parent)
            assert (report.status, report.quarantined) == ("refused", [path.name]), name
            assert not path.exists(), name


def impostors(whole: Whole, other: Whole) -> dict[str, bytes]:
    """Files that are no entry, or not this one."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        tar.add(whole.tree / "text.txt", "text.txt")
    parts = whole.parts
    return {
        "empty": b"",
        "one byte": b"x",
        "zeros": bytes(100_000),
        "html": b"<!DOCTYPE html>\n<html><body><h1>503 Service Unavailable</h1></body></html>\n" * 40,
        "gzip": gzip.compress(plain.getvalue()),
        "tar": plain.getvalue(),
        "tar.zst": zstandard.compress(plain.getvalue()),
        "seekable tar.zst": whole.data[: parts.index] + whole.data[parts.seek_table :],
        "one byte appended": whole.data + b"\0",
        "a newline appended": whole.data + b"\n",
        "a frame appended": whole.data + zstandard.compress(b"more"),
        "a seek table appended": whole.data + whole.data[parts.seek_table :],
        "the entry twice": whole.data * 2,
        "a byte before": b"\0" + whole.data,
        "a frame before": zstandard.compress(b"") + whole.data,
        "a frame missing": whole.data[parts.frames[1] :],
        "a frame twice": whole.data[: parts.frames[1]] + whole.data,
        "body and tail of two": graft(other.data, other.parts, whole.data, parts),
        "tail and body of two": graft(whole.data, parts, other.data, other.parts),
        "no end frame": whole.data[: parts.frames[-2]] + whole.data[parts.index :],
        "no index": whole.data[: parts.index] + whole.data[parts.seal :],
        "index of another": whole.data[: parts.index]
        + other.data[other.parts.index : other.parts.seal]
        + whole.data[parts.seal :],
        "seal of another": whole.data[: parts.seal]
        + other.data[other.parts.seal : other.parts.seek_table]
        + whole.data[parts.seek_table :],
        "seek table of another": whole.data[: parts.seek_table] + other.data[other.parts.seek_table :],
        "a hole in the middle": whole.data[:9000] + bytes(4096) + whole.data[9000 + 4096 :],
    }


def test_what_is_no_entry_is_not_restored(sample: Whole, packages: Whole, tmp_path: Path) -> None:
    """Pages, other archives, entries with too much or too little, and mixtures are refused and set aside."""
    store = tmp_path / "store"
    target = sample_tree(tmp_path / "root" / "tree")
    with unchanged(tmp_path / "root"):
        for name, data in impostors(sample, packages).items():
            path = file_entry(store, data)
            report = restore_tree(store, target.parent)
            assert report.status == "refused", name
            assert report.quarantined == [path.name], name
            assert not path.exists(), name


def test_two_swapped_frames_are_refused(packages: Whole, tmp_path: Path) -> None:
    """Any two data frames in each other's place are found out."""
    store, root = tmp_path / "store", tmp_path / "root"
    count = len(packages.parts.frames) - 1
    for first in range(count - 1):
        file_entry(store, swap_frames(packages.data, packages.parts, first, first + 1))
        report = restore_tree(store, root)
        assert report.status == "refused"
        assert report.tried[0]["error"]["frame"] in {first, first + 1}  # type: ignore[index]
        assert not list(root.iterdir())


def test_two_swapped_frames_of_one_size_are_refused(tmp_path: Path) -> None:
    """Frames that compress to the same number of bytes cannot take each other's place either."""
    store, root = tmp_path / "store", tmp_path / "root"
    source = random.Random(31)
    path = save_tree(
        store, make_tree(tmp_path / "tree", {name: source.randbytes(8 << 20) for name in ("a", "b")})
    )
    parts = anatomy(path)
    sizes = [end - start for start, end in zip(parts.frames, parts.frames[1:], strict=False)]
    first, second = (number for number, size in enumerate(sizes) if size == max(sizes))
    rewrite(path, swap_frames(path.read_bytes(), parts, first, second))
    assert restore_tree(store, root).status == "refused"
    assert not list(root.iterdir())


def test_an_entry_under_another_entrys_name_is_refused(sample: Whole, tmp_path: Path) -> None:
    """A whole entry that lies under the name of another key is not served for that key."""
    store, root = tmp_path / "store", tmp_path / "root"
    path = file_entry(store, sample.data, "other-1")
    report = restore_tree(store, root, key="other-1")
    assert (report.status, report.quarantined) == ("refused", [path.name])
    assert "another entry's name" in str(report.tried[0]["reason"])
    assert not list(root.iterdir())


@pytest.mark.parametrize("kind", ["directory", "fifo", "link to nothing", "link to itself"])
def test_a_name_that_is_no_file_is_not_restored(tmp_path: Path, kind: str) -> None:
    """A directory, a fifo or a broken link named like an entry stops nobody, and nothing waits for a writer."""
    store, root = tmp_path / "store", tmp_path / "root"
    path = file_entry(store, b"")
    path.unlink()
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if kind == "link to nothing" else path.name)
    assert not restore_tree(store, root).hit
    assert not list(root.iterdir())


@given(data=st.one_of(st.binary(max_size=300), st.binary(min_size=300, max_size=5000)))
def test_any_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any byte string given as an archive is refused, with nothing but a refusal."""
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(data)
    with pytest.raises(Refused), open_archive(bytes(path), ANYONE) as archive:
        check_contents(archive, 0)


@given(data=st.data())
def test_any_bytes_put_over_an_entry_are_refused(
    data: st.DataObject, sample: Whole, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any bytes written over, inserted into or taken out of a whole entry make it refused."""
    offset = data.draw(st.integers(0, sample.parts.size))
    taken = data.draw(st.integers(0, 2000))
    given_bytes = data.draw(st.binary(max_size=200))
    altered = sample.data[:offset] + given_bytes + sample.data[offset + taken :]
    path = tmp_path_factory.getbasetemp() / "altered"
    path.write_bytes(altered)
    if altered == sample.data:
        return
    with pytest.raises(Refused), open_archive(bytes(path), ANYONE) as archive:
        check_contents(archive, 0)
