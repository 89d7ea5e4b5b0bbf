"""The frames of an entry written from a stream: where they are cut, many of them at once, and what is told of them."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from cachekit.archive.format import DIRECTORY, FILE, FRAME_SIZE, SYMLINK
from cachekit.archive.pack import compressor
from cachekit.archive.read import Archive, open_archive
from cachekit.archive.stream import StreamMember
from cachekit.archive.write import BaseRotten
from cachekit.trust import ANYONE
from tests.images.test_stream import Item, expected, frames, members, opened, untarred, write
from tests.support.ordinary_user import PROJECT
from tests.support.surgery import anatomy, flip

MIB = 1 << 20
HEAD = 512
MANY = 9
"""More frames than wait for anything."""
NAME = b"blobs/layer"


@pytest.fixture(scope="module")
def layer() -> Item:
    """A layer of many frames."""
    return Item(NAME, b"".join(b"%d " % part * (FRAME_SIZE // 2) for part in range(MANY)))


def names(*, cutting: bool) -> Iterator[bytes]:
    """Make names, all of whose XXH3-64 say that a frame of 1 MiB is to be cut behind them, or all do not."""
    for number in itertools.count():
        if (xxh3_64_intdigest(b"%d" % number) < 1 << 56) == cutting:
            yield b"%d" % number


def test_where_frames_are_cut(tmp_path: Path) -> None:
    """Before a member that does not fit in 8 MiB, from 1 MiB on behind a name that says so, and around large ones."""
    plain, cutting = names(cutting=False), names(cutting=True)
    wanted = [
        [(next(cutting), MIB - HEAD)],
        [(next(cutting), MIB - 2 * HEAD), (next(plain), 2 * MIB - HEAD), (next(plain), 5 * MIB)],
        [(next(plain), 0)],
        [(next(plain), FRAME_SIZE)],
        [(next(plain), 0), (next(plain), 3 * MIB)],
        [(next(plain), FRAME_SIZE + 1)],
        [],
        [(next(plain), 0)],
        [(next(cutting), FRAME_SIZE)],
        [(next(plain), 0), (next(cutting), 0), (next(plain), 0)],
    ]
    # The second frame is filled to its last byte.
    assert sum(HEAD + size for _, size in wanted[1]) == FRAME_SIZE
    write(tmp_path / "entry", members([Item(name, bytes(size)) for frame in wanted for name, size in frame]))
    with opened(tmp_path / "entry") as archive:
        found: list[list[bytes]] = [[] for _ in wanted]
        for name, frame in zip(archive.index.paths, archive.index.frames, strict=True):
            found[frame].append(name)
        assert archive.index.frame_count == len(wanted) + 1
    assert found == [[name for name, _ in frame] for frame in wanted]


@pytest.fixture
def earlier(layer: Item, tmp_path: Path) -> Iterator[Archive]:
    """An earlier entry that holds a layer of many frames."""
    write(tmp_path / "earlier", members([layer]), layers=[layer])
    with open_archive(bytes(tmp_path / "earlier"), ANYONE) as archive:
        yield archive


@pytest.mark.parametrize("name", [NAME, b"blobs/other"])
@pytest.mark.parametrize("claimed", [False, True])
def test_many_frames_are_copied(
    layer: Item, tmp_path: Path, earlier: Archive, name: bytes, *, claimed: bool
) -> None:
    """All frames are the earlier ones, or all but the one with the name, and it says how many bytes that were.

    A claim finds them as a known digest does.
    """
    items = [Item(b"blobs/first", b"1"), Item(name, layer.content), Item(b"last", b"2")]
    stream = members(items, known=True)
    if claimed:
        stream = (replace(member, digest="", claim=member.digest) for member in stream)
    written, _, _ = write(tmp_path / "next", stream, held=[earlier], threads=1)
    sizes = list(earlier.index.frame_sizes)[1 if name == NAME else 2 : MANY + 1]
    assert (written.copied_frames, written.copied_bytes) == (len(sizes), sum(sizes))
    assert untarred(tmp_path / "next") == expected(items)


@pytest.mark.parametrize("frame", range(1, MANY + 1))
def test_one_damaged_frame_of_many(layer: Item, tmp_path: Path, earlier: Archive, frame: int) -> None:
    """Whichever of them is damaged, the attempt ends, and no entry is finished without it."""
    path = tmp_path / "earlier"
    path.write_bytes(flip(path.read_bytes(), anatomy(path).frames[frame] + 20))
    with pytest.raises(BaseRotten):
        write(tmp_path / "next", members([layer], known=True), held=[earlier], threads=1)


@pytest.mark.parametrize("name", [NAME, b"blobs/other"])
def test_frames_that_cannot_be_read(
    layer: Item, tmp_path: Path, earlier: Archive, name: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier entry that cannot be read any more ends the attempt as a damaged one does."""
    pread = os.pread

    def fail(fd: int, size: int, offset: int) -> bytes:
        if fd == earlier.fd:
            raise OSError(errno.EIO, "broken")
        return pread(fd, size, offset)

    def stream() -> Iterator[StreamMember]:
        monkeypatch.setattr(os, "pread", fail)
        yield from members([Item(name, layer.content)], known=True)

    with pytest.raises(BaseRotten):
        write(tmp_path / "next", stream(), held=[earlier])


def test_a_disk_that_is_full_at_the_first_of_many(layer: Item, tmp_path: Path, earlier: Archive) -> None:
    """A frame that could not be written is not forgotten over those that follow."""
    room = 1 + sum(len(frame) for frame in frames(tmp_path / "earlier")[:2])
    with pytest.raises(OSError, match="full"):
        write(tmp_path / "next", members([layer], known=True), held=[earlier], threads=1, full=room)


def test_buffers_leave_nothing_behind(layer: Item, tmp_path: Path) -> None:
    """A content that ends in the middle of a block is the same frames whatever was packed before it."""
    last = Item(b"blobs/last", b"x" * (FRAME_SIZE + 5))
    write(tmp_path / "alone", members([Item(b"blobs/first", b"1"), last]))
    write(tmp_path / "behind", members([Item(b"blobs/first", b"1"), layer, last]), threads=1)
    assert frames(tmp_path / "behind")[-3:] == frames(tmp_path / "alone")[-3:]


@pytest.mark.parametrize("known", [False, True])
def test_progress(layer: Item, tmp_path: Path, earlier: Archive, *, known: bool) -> None:
    """It is told as it goes on, and in the end has counted every byte and member, packed or copied."""
    items = [
        Item(b"blobs", kind=DIRECTORY),
        Item(b"small", b"1" * 1000),
        layer,
        Item(b"link", b"", SYMLINK, b"small"),
        Item(b"packed", bytes(FRAME_SIZE + 1)),
    ]
    told: list[tuple[int, int, int]] = []
    write(
        tmp_path / "next",
        members(items, known=known),
        held=[earlier] if known else [],
        progress=lambda done, total, count: told.append((done, total, count)),
    )
    content = sum(len(item.content) for item in items)
    assert told == sorted(told)
    assert told[-1] == (content, 0, len(items))
    assert {1000, 1000 + len(layer.content), content - 1} <= {done for done, _, _ in told}
    with opened(tmp_path / "next") as archive:
        assert archive.seal.allocated_bytes == archive.seal.content_bytes == content


def test_which_contents_are_shown(tmp_path: Path) -> None:
    """A content that is wanted is shown if it has no frames of its own; nothing else is even asked for."""
    items = [
        Item(b"directory", kind=DIRECTORY),
        Item(b"directory/link", b"", SYMLINK, b"there"),
        Item(b"empty"),
        Item(b"just", bytes(FRAME_SIZE)),
        Item(b"over", bytes(FRAME_SIZE + 1)),
        Item(b"unwanted", b"1"),
    ]
    asked: list[tuple[bytes, int]] = []

    def wants(name: bytes, size: int) -> bool:
        asked.append((name, size))
        return name != b"unwanted"

    _, digests, shown = write(tmp_path / "entry", members(items), wants=wants)
    assert asked == [(b"empty", 0), (b"just", FRAME_SIZE), (b"unwanted", 1)]
    assert shown == {b"empty": b"", b"just": bytes(FRAME_SIZE)}
    assert digests == {item.name: item.digest if item.kind == 0 else "" for item in items}


def test_no_more_is_read_than_can_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no frame gets packed a frame for each thread is read, and three more."""
    threads, taken = 2, 0
    full, go_on, over = threading.Event(), threading.Event(), threading.Event()

    class Stuck:
        def compress(self, data: memoryview) -> bytes:
            assert go_on.wait(20)
            return compressor(3).compress(data)

    class Source:
        def readinto(self, buffer: memoryview) -> int:
            nonlocal taken
            if not go_on.is_set():
                taken += len(buffer)
                if taken == (threads + 3) * FRAME_SIZE:
                    full.set()
                if taken > (threads + 3) * FRAME_SIZE:
                    go_on.set()
            return len(buffer)

    def let_go() -> None:
        full.wait(20)
        go_on.wait(0.3)
        go_on.set()
        over.wait(20)  # the threads are counted before and after

    monkeypatch.setattr("cachekit.archive.stream.compressor", lambda level: Stuck())
    waiter = threading.Thread(target=let_go)
    waiter.start()
    try:
        large = StreamMember(b"large", FILE, 2 * MANY * FRAME_SIZE, open=Source)
        write(tmp_path / "entry", iter([large]), threads=threads)
    finally:
        full.set()
        over.set()
        waiter.join()
    assert taken == (threads + 3) * FRAME_SIZE


_MEASURE = """
import os, resource, sys
from pathlib import Path
from tests.images.test_stream import StreamMember, write

class Source:
    def __init__(self, size):
        self.left = size
        self.piece = os.urandom(2 << 20)  # a quarter of a frame: what is packed is large, too
        self.at = 0
    def readinto(self, buffer):
        count = min(len(buffer), len(self.piece) - self.at, self.left)
        buffer[:count] = self.piece[self.at : self.at + count]
        self.at = (self.at + count) % len(self.piece)
        self.left -= count
        return count

size = int(sys.argv[2])
def stream():
    source = Source(size)
    yield StreamMember(b"large", 0, size, open=lambda: source)
write(Path(sys.argv[1]), stream(), threads=4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""


def test_memory_does_not_grow_with_the_layer(tmp_path: Path) -> None:
    """A layer of 600 MB takes what one of 150 MB does, and less than 160 MiB, with four threads."""
    peaks = []
    for size in (150 << 20, 600 << 20):
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, tmp_path / "entry", str(size)],
            cwd=PROJECT,
            capture_output=True,
            check=True,
        )
        peaks.append(int(done.stdout))
        (tmp_path / "entry").unlink()
    base = int(
        subprocess.run(
            [sys.executable, "-c", _MEASURE, tmp_path / "entry", "0"],
            cwd=PROJECT,
            capture_output=True,
            check=True,
        ).stdout
    )
    assert peaks[1] - peaks[0] < 16 << 20
    assert peaks[1] - base < 120 << 20
