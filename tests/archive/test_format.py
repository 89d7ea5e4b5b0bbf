"""The entry format as others see it: real tar programs, real zstd readers, Python's tarfile; and as it was before."""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from cachekit.archive import format as numbers
from cachekit.archive.extract import check_contents
from cachekit.archive.format import FRAME_SIZE, TAR_END
from cachekit.archive.read import open_archive
from cachekit.cache.listing import members
from cachekit.trust import ANYONE
from tests.support.archives import Entry, file_entry, restore_tree, save_tree
from tests.support.capabilities import requires
from tests.support.ordinary_user import PROJECT
from tests.support.samples import package_tree
from tests.support.snapshots import Snapshot, assert_same_tree, snapshot
from tests.support.surgery import anatomy
from tests.support.trees import Dir, File, HardLink, Sparse, Symlink, make_tree

if TYPE_CHECKING:
    from tests.archive.conftest import Whole

GOLDEN = PROJECT / "tests" / "data" / "format-1.tar.zst"
GOLDEN_KEY = "golden-1"
GOLDEN_TREE: Dir = Dir(
    {
        "a": File(b"a" * 600, 0o755),
        "empty": b"",
        b"\xff\n": b"odd",
        "hard": HardLink("a"),
        "hole": Sparse(200_000, {100_000: b"data" * 512}),
        "link": Symlink("sub/file"),
        "old": File(b"old", mtime_ns=-1),
        "sub": Dir({"file": b"file", "n" * 200: Dir({"m" * 200: b"deep"})}, 0o700),
    }
)


def assert_extracted(whole: Whole, out: Path, *, link_times: bool = True) -> None:
    """Compare what a tool extracted with what was saved, in whole seconds; the top directory is the tool's own."""

    def as_told(tree: Snapshot) -> Snapshot:
        return {
            path: replace(
                node, mtime_ns=node.mtime_ns // 10**9 if link_times or node.kind != "symlink" else 0
            )
            for path, node in tree.items()
        }

    assert_same_tree(as_told(snapshot(whole.tree)), as_told(snapshot(out)), ignore={"root"})


#: What GNU tar has to say about times and about a record that it does not know; anything else is a complaint.
REMARK = re.compile(r"tar: (.*time stamp .*|Ignoring unknown extended header keyword 'hdrcharset')")


def run(*command: str | Path) -> None:
    """Run a tool, which must be content."""
    done = subprocess.run(
        command, capture_output=True, check=False, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    )
    complaints = [line for line in done.stderr.decode().splitlines() if not REMARK.fullmatch(line)]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.parametrize("name", ["sample", "packages"])
@requires("gnu_tar")
def test_gnu_tar_reads_an_entry(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """`tar --zstd -xf` gives the tree that was saved: odd names, long ones, links, holes, modes."""
    whole: Whole = request.getfixturevalue(name)
    run("tar", "--zstd", "-xpf", whole.path, "-C", tmp_path)
    assert_extracted(whole, tmp_path)


@pytest.mark.parametrize("name", ["sample", "packages"])
@requires("bsdtar")
def test_bsdtar_reads_an_entry(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Bsdtar gives the tree that was saved."""
    whole: Whole = request.getfixturevalue(name)
    run("bsdtar", "-xpf", whole.path, "-C", tmp_path)
    assert_extracted(whole, tmp_path)


@pytest.mark.parametrize("name", ["sample", "packages"])
def test_python_reads_an_entry(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Python's tarfile over zstandard gives the tree that was saved (it never sets the times of symlinks)."""
    whole: Whole = request.getfixturevalue(name)
    with (
        whole.path.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        tar.extractall(tmp_path, filter="fully_trusted")
    assert_extracted(whole, tmp_path, link_times=False)


@requires("gnu_tar")
def test_the_zstd_program_finds_nothing_wrong(packages: Whole) -> None:
    """`zstd --test` passes, and decompresses the frames to one tar that ends as a tar ends."""
    run("zstd", "--test", "--quiet", packages.path)
    done = subprocess.run(["zstd", "-dc", packages.path], capture_output=True, check=True)
    assert done.stdout == b"".join(Entry.read(packages.path).frames)
    assert done.stdout.endswith(TAR_END)


@requires("indexed_zstd")
def test_the_seek_table_is_the_one_that_indexed_zstd_reads(packages: Whole) -> None:
    """A reader of the Seekable Format that nobody here wrote finds every frame, and seeks to what a stream gives."""
    from indexed_zstd import IndexedZstdFile

    frames = Entry.read(packages.path).frames
    tar = b"".join(frames)
    source = random.Random(40)
    file = IndexedZstdFile(str(packages.path))
    try:
        offsets = file.block_offsets()
        begin = [sum(map(len, frames[:number])) for number in range(len(frames))]
        assert [offsets[place] for place in packages.parts.frames[:-1]] == begin
        assert file.size() == len(tar)
        for _ in range(50):
            offset = source.randrange(len(tar))
            file.seek(offset)
            assert file.read(1000) == tar[offset : offset + 1000]
    finally:
        file.close()


def test_every_data_frame_tells_its_size_and_has_a_checksum(packages: Whole) -> None:
    """Data frames are independent, tell their content size, have zstd's checksum and a window of at most 8 MiB."""
    entry = Entry.read(packages.path)
    assert len(entry.frames) > 5
    for start, raw in zip(packages.parts.frames, entry.frames, strict=False):
        facts = zstandard.get_frame_parameters(packages.data[start : start + 18])
        assert (facts.content_size, facts.has_checksum, facts.dict_id) == (len(raw), True, 0)
        assert facts.window_size <= FRAME_SIZE + numbers.FRAME_LIMIT


def test_the_same_tree_gives_the_same_frames(packages: Whole, tmp_path: Path) -> None:
    """A tree saved twice, from elsewhere the second time and by one worker, gives identical data frames."""
    again = package_tree(tmp_path / "again", files=400, large=20 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHEKIT_WORKERS", "1")
        path = save_tree(tmp_path / "store", again)
    assert path.read_bytes()[: packages.parts.index] == packages.data[: packages.parts.index]


def test_an_edit_moves_frames_up_to_the_next_cut_only(tmp_path: Path) -> None:
    """When one small file grows, only its frame, and at most those up to the next path cut, differ."""
    store = tmp_path / "store"
    tree = package_tree(tmp_path / "tree", files=3_000, large=0)
    before = Entry.read(save_tree(store, tree, key="before"))
    edited = next(path for path in sorted(tree.rglob("*.js")) if path.stat().st_size > 100)
    edited.write_bytes(edited.read_bytes() + b"\n" * 5000)
    after = Entry.read(save_tree(store, tree, key="after"))
    frames = len(before.frames)
    assert frames > 8
    common = len(set(before.frames) & set(after.frames))
    assert common >= frames - 3
    assert before.frames[-2] == after.frames[-2]


def test_long_paths_beyond_what_one_call_takes(tmp_path: Path) -> None:
    """A tree so deep that its paths are longer than PATH_MAX is saved and restored."""
    spec: Any = {"leaf": b"leaf", "link": Symlink("leaf"), "empty": Dir()}
    for _ in range(25):
        spec = {"d" * 200: Dir(spec)}
    tree = make_tree(tmp_path / "tree", spec)
    save_tree(tmp_path / "store", tree)
    assert restore_tree(tmp_path / "store", tmp_path / "out").status == "exact"
    assert_same_tree(tree, tmp_path / "out", ignore={"root"})


def listing(path: Path) -> list[dict[str, Any]]:
    """Tell all facts of an entry's members that do not depend on who made it."""
    return [
        {
            "path": member.path.decode("latin-1"),
            "kind": member.kind,
            "mode": oct(member.mode),
            "mtime_ns": member.mtime_ns,
            "size": member.size,
            "link": member.link and member.link.decode("latin-1"),
            "digest": member.digest,
        }
        for member in members(bytes(path))
    ]


def test_the_golden_entry_stays_readable(tmp_path: Path) -> None:
    """An entry that version 1 of the format wrote long ago is verified, listed and restored as it was then."""
    with open_archive(bytes(GOLDEN), ANYONE) as archive:
        check_contents(archive, 0)
        assert archive.seal.key == GOLDEN_KEY
    assert listing(GOLDEN) == json.loads(GOLDEN.with_suffix("").with_suffix(".json").read_text())
    path = file_entry(tmp_path / "store", GOLDEN.read_bytes(), GOLDEN_KEY)
    restored = restore_tree(tmp_path / "store", tmp_path / "out", key=GOLDEN_KEY, any_platform=True)
    assert restored.status == "exact", restored.tried
    assert path.exists()
    assert_same_tree(make_tree(tmp_path / "tree", GOLDEN_TREE), tmp_path / "out", ignore={"root"})


def test_the_golden_tree_gives_the_golden_bytes(tmp_path: Path) -> None:
    """This version writes the golden tree as the very tar that the golden entry holds (zstd itself may change)."""
    path = save_tree(tmp_path / "store", make_tree(tmp_path / "tree", GOLDEN_TREE), key=GOLDEN_KEY)
    now, then = b"".join(Entry.read(path).frames), b"".join(Entry.read(GOLDEN).frames)
    if now == then:
        return
    with tarfile.open(fileobj=io.BytesIO(now)) as new, tarfile.open(fileobj=io.BytesIO(then)) as old:
        owners = {(member.uid, member.gid) for member in new} ^ {(member.uid, member.gid) for member in old}
        assert owners, "the tar is another one, and not for its owners"


def test_the_document_has_the_numbers_of_the_code() -> None:
    """docs/format.md names the magic numbers, sizes and kinds that cachekit/archive/format.py has."""
    text = (PROJECT / "docs" / "format.md").read_text()
    for magic in (numbers.INDEX_MAGIC, numbers.SEAL_MAGIC, numbers.SEEK_TABLE_MAGIC):
        assert f"magic 0x{magic:08X}" in text
    assert f'"{numbers.INDEX_PREFIX_MAGIC.decode()}"' in text
    assert '"' + numbers.SEAL_TRAILER_MAGIC.decode().replace("\n", "\\n") + '"' in text
    assert f"{numbers.FRAME_SIZE:,}" in text
    assert f"8 MiB + {(numbers.FRAME_LIMIT - numbers.FRAME_SIZE) >> 10} KiB" in text
    assert f"{len(TAR_END):,} zero bytes" in text
    kinds = re.findall(r"kinds +u8 +x members +(.*)", text)
    assert kinds == ["0 file, 1 directory, 2 symlink, 3 hard link"]
    assert re.search(rf"version {numbers.FORMAT}\b", text)
    for feature in numbers.KNOWN_FEATURES:
        assert f"`{feature}`" in text


def test_the_parts_of_an_entry_touch(packages: Whole) -> None:
    """Between data frames, index, seal and seek table there is no byte that belongs to nothing."""
    parts = anatomy(packages.path)
    assert parts.frames[0] == 0
    assert parts.frames[-1] == parts.index
    offset = parts.index
    for magic in (numbers.INDEX_MAGIC, numbers.SEAL_MAGIC, numbers.SEEK_TABLE_MAGIC):
        found, size = numbers.SKIPPABLE_HEADER.unpack_from(packages.data, offset)
        assert found == magic
        offset += numbers.SKIPPABLE_HEADER.size + size
    assert offset == len(packages.data)
