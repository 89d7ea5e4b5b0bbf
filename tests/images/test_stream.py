"""Entries written from a stream of members: whatever comes, however it comes."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.archive.extract import check_contents
from cachekit.archive.format import DIRECTORY, FILE, FRAME_SIZE, SYMLINK
from cachekit.archive.held import Held
from cachekit.archive.images import HeldImage, HeldLayer
from cachekit.archive.read import Archive, open_archive
from cachekit.archive.stream import StreamMember, write_stream
from cachekit.archive.write import BaseRotten, Written
from cachekit.cache.saving import new_seal
from cachekit.errors import CachekitError, Damaged
from cachekit.model import EntryIdentity, Key, Target
from cachekit.system.clock import image_platform
from cachekit.trust import ANYONE
from tests.support.capabilities import requires
from tests.support.surgery import anatomy

IDENTITY = EntryIdentity(Key("k-1"), image_platform())
LARGE = random.Random(2).randbytes(FRAME_SIZE + 4321) + b"text " * (FRAME_SIZE // 4)
"""A content of three frames."""


@dataclass(frozen=True)
class Item:
    """A member that a test sends."""

    name: bytes
    content: bytes = b""
    kind: int = FILE
    link: bytes = b""

    @property
    def digest(self) -> str:
        """Its digest, as a blob's."""
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"


class Drip:
    """A content that comes in pieces of any size; `short` bytes of it never come."""

    def __init__(self, data: bytes, sizes: Sequence[int], short: int = 0) -> None:
        self._data = memoryview(data)[: len(data) - short]
        self._sizes = sizes
        self._turn = 0

    def readinto(self, buffer: memoryview) -> int:
        """Give a piece."""
        size = self._sizes[self._turn % len(self._sizes)] if self._sizes else len(buffer)
        self._turn += 1
        piece = self._data[: min(size, len(buffer))]
        buffer[: len(piece)] = piece
        self._data = self._data[len(piece) :]
        return len(piece)


def members(
    items: Sequence[Item], sizes: Sequence[int] = (), short: int = 0, *, known: bool = False
) -> Iterator[StreamMember]:
    """Send items; `known`: with their digests beforehand, and contents that nobody may open where a copy would do."""
    for item in items:
        digest = item.digest if known and item.kind == FILE else ""
        yield StreamMember(
            item.name,
            item.kind,
            len(item.content),
            item.link,
            digest,
            open=lambda item=item: Drip(item.content, sizes, short),  # type: ignore[misc]
        )


class Output:
    """A file that is written; from `full` bytes on the disk is full."""

    def __init__(self, path: Path, full: int | None = None) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._full = full
        self.finished: int | None = None

    def write(self, data: bytes, offset: int) -> None:
        """Write."""
        if self._full is not None and offset + len(data) > self._full:
            raise OSError(errno.ENOSPC, "full")
        assert self.finished is None, "what is written after it was made durable is not"
        os.pwrite(self.fd, data, offset)

    def finish(self, size: int) -> None:
        """Cut."""
        os.ftruncate(self.fd, size)
        self.finished = size

    def close(self) -> None:
        """Close."""
        os.close(self.fd)


def write(
    path: Path,
    stream: Iterator[StreamMember],
    *,
    threads: int = 2,
    held: Sequence[Archive] = (),
    full: int | None = None,
    layers: Sequence[Item] = (),
    wants: Callable[[bytes, int], bool] = lambda _, size: size < 100,
    progress: Callable[[int, int, int], None] | None = None,
) -> tuple[Written, dict[bytes, str], dict[bytes, bytes]]:
    """Write an entry; return it, what the contents' digests were, and the small contents. No thread outlives it."""
    digests: dict[bytes, str] = {}
    documents: dict[bytes, bytes] = {}

    def seen(member: StreamMember, digest: str, content: bytes | None) -> None:
        digests[member.name] = digest
        if content is not None:
            documents[member.name] = content

    def seal() -> object:
        described = new_seal(IDENTITY, "k", [Target("root", b".")], {}, 3)
        kept = tuple(HeldLayer(one.name, one.digest, len(one.content), one.digest) for one in layers)
        described.images = [HeldImage(("a:1",), ("sha256:" + "a" * 64,), "sha256:" + "a" * 64, "", kept)]
        return described

    before = threading.active_count()
    output = Output(path, full)
    try:
        written = write_stream(
            stream,
            output,
            level=3,
            threads=threads,
            seal=seal,  # type: ignore[arg-type]
            seen=seen,
            wants=wants,
            held=Held(held),
            progress=progress,
        )
        assert output.finished == written.archive_bytes == os.fstat(output.fd).st_size
    finally:
        output.close()
        assert threading.active_count() == before
    return written, digests, documents


def expected(items: Sequence[Item]) -> list[tuple[str, bytes | str | None]]:
    """What a tar of these items holds, in order, with the directories that they lack."""
    there: dict[str, bytes | str | None] = {}
    for item in items:
        name = os.fsdecode(item.name)
        for parent in list(PurePosixPath(name).parents)[-2::-1]:
            there.setdefault(str(parent), None)
        if item.kind == DIRECTORY:
            there.setdefault(name, None)
        else:
            there[name] = item.content if item.kind == FILE else os.fsdecode(item.link)
    return list(there.items())


def untarred(path: Path) -> list[tuple[str, bytes | str | None]]:
    """What Python's tarfile finds in an entry, all of it normalised."""
    with (
        path.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as raw,
    ):
        tar = tarfile.open(fileobj=io.BytesIO(raw.read()))  # noqa: SIM115 - below
    found: list[tuple[str, bytes | str | None]] = []
    with tar:
        for member in tar:
            assert (member.uid, member.gid, member.mtime) == (0, 0, 0)
            assert member.mode == (0o755 if member.isdir() else 0o777 if member.issym() else 0o644)
            file_of = tar.extractfile(member) if member.isfile() else None
            content = file_of.read() if file_of else member.linkname if member.issym() else None
            found.append((member.name, content))
    return found


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an entry, checked to its last byte."""
    with open_archive(bytes(path), ANYONE) as archive:
        check_contents(archive, 0)
        yield archive


def frames(path: Path) -> list[bytes]:
    """Return the compressed frames of an entry."""
    with opened(path) as archive:
        return [bytes(archive.frame(number)) for number in range(archive.index.frame_count)]


_PARTS = [b"blobs", b"sha256", b"a", b"b" * 101, b"\xff", b"layer.tar", "\u00e4".encode()]
_SIZES = st.one_of(
    st.sampled_from(
        [0, 1, 511, 512, 513, 1 << 20, FRAME_SIZE - 512, FRAME_SIZE - 1, FRAME_SIZE, FRAME_SIZE + 1]
    ),
    st.integers(0, 3000),
    st.integers(0, 3000),
    st.integers(FRAME_SIZE, 3 * FRAME_SIZE),
)


@st.composite
def many_items(draw: st.DrawFn) -> list[Item]:
    """Members with unique names, none below another that is no directory."""
    kinds: dict[bytes, int] = {}
    items = []
    for number in range(draw(st.integers(1, 8))):
        parts = [*draw(st.lists(st.sampled_from(_PARTS), max_size=3)), b"%d" % number]
        name = b"/".join(parts)
        kind = draw(st.sampled_from([FILE, FILE, FILE, DIRECTORY, SYMLINK]))
        kinds[name] = kind
        content = b""
        if kind == FILE:
            size = draw(_SIZES)
            content = (b"%d " % number * (size // 2 + 1))[:size]
        items.append(Item(name, content, kind, b"../x" if kind == SYMLINK else b""))
    return items


@settings(max_examples=25)
@given(
    items=many_items(),
    sizes=st.lists(st.integers(1, 1 << 20).map(lambda n: max(n, 4096)), max_size=4),
    threads=st.integers(1, 4),
)
def test_any_members_make_a_whole_entry(
    items: list[Item], sizes: list[int], threads: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However they come, the entry passes every check and its tar is what came; it is the same each time."""
    place = tmp_path_factory.mktemp("stream")
    _, digests, documents = write(place / "one", members(items, sizes), threads=threads)
    files = [item for item in items if item.kind == FILE]
    assert {name: digest for name, digest in digests.items() if digest} == {f.name: f.digest for f in files}
    assert documents == {f.name: f.content for f in files if len(f.content) < 100}
    with opened(place / "one") as archive:
        assert archive.seal.counts["files"] == len(files)
        assert archive.seal.content_bytes == sum(len(f.content) for f in files)
    assert untarred(place / "one") == expected(items)
    write(place / "two", members(items), threads=1)
    assert frames(place / "one") == frames(place / "two")
    for path in place.iterdir():
        path.unlink()


ITEMS = [
    Item(b"blobs/sha256/small", b"small"),
    Item(b"blobs/sha256/large", LARGE),
    Item(b"index.json", b"{}"),
]


@pytest.fixture
def earlier(tmp_path: Path) -> Iterator[Archive]:
    """An earlier entry that holds a large layer."""
    write(tmp_path / "earlier", members(ITEMS), layers=[ITEMS[1]])
    with ExitStack() as stack:
        yield stack.enter_context(open_archive(bytes(tmp_path / "earlier"), ANYONE))


@requires("gnu_tar", "bsdtar")
def test_tar_programs_read_it(tmp_path: Path, earlier: Archive) -> None:
    """GNU tar and bsdtar extract what came, and zstd finds nothing wrong."""
    path = Path(os.fsdecode(earlier.path))
    subprocess.run(["zstd", "-tq", "--no-progress", path], check=True)
    for command in (["tar", "--zstd", "-xf"], ["bsdtar", "-xf"]):
        out = tmp_path / command[0]
        out.mkdir()
        done = subprocess.run([*command, path, "-C", out], check=True, capture_output=True)
        assert done.stderr.replace(b"implausibly old time stamp", b"").count(b"rror") == 0
        assert (out / "blobs/sha256/large").read_bytes() == LARGE


@pytest.mark.parametrize("known", [False, True])
def test_a_layer_of_an_earlier_entry_is_copied(earlier: Archive, tmp_path: Path, *, known: bool) -> None:
    """Its frames are the same bytes, and a content whose digest is known is not even opened."""

    def stream() -> Iterator[StreamMember]:
        for member in members([Item(b"new", b"new"), *ITEMS], known=known):
            large = member.name.endswith(b"large")
            yield replace(member, open=None) if known and large else member

    written, digests, _ = write(tmp_path / "next", stream(), held=[earlier])
    assert digests[b"blobs/sha256/large"] == ITEMS[1].digest
    assert written.copied_frames == 3
    assert frames(tmp_path / "next")[1:4] == frames(tmp_path / "earlier")[1:4]
    assert untarred(tmp_path / "next") == expected([Item(b"new", b"new"), *ITEMS])


@pytest.mark.parametrize("name", [b"other/layer.tar", b"x" * 150])
def test_a_layer_under_another_name_keeps_all_frames_but_one(
    earlier: Archive, tmp_path: Path, name: bytes
) -> None:
    """Only the frame with the header is packed anew, and the entry is what a save from nothing makes."""
    items = [Item(b"first", b"1"), Item(name, LARGE)]
    written, _, _ = write(tmp_path / "next", members(items, known=True), held=[earlier])
    assert written.copied_frames == 2
    write(tmp_path / "anew", members(items))
    assert frames(tmp_path / "next") == frames(tmp_path / "anew")
    assert untarred(tmp_path / "next") == expected(items)


def test_a_name_alone_does_not_speak_for_a_layer(earlier: Archive, tmp_path: Path) -> None:
    """Another content of the same name and length is noticed before the entry is finished."""
    other = Item(ITEMS[1].name, LARGE[:-1] + b"!")
    with pytest.raises(BaseRotten):
        write(tmp_path / "next", members([other]), held=[earlier])
    written, _, _ = write(tmp_path / "next", members([other], known=True), held=[earlier])
    assert written.copied_frames == 0
    assert untarred(tmp_path / "next") == expected([other])


def test_a_claim_does_not_speak_for_a_layer(earlier: Archive, tmp_path: Path) -> None:
    """A content that claims to be a held layer and is another one is damage: there is nothing to try again."""
    other = replace(next(members([Item(b"x", LARGE[:-1] + b"!")])), claim=ITEMS[1].digest)
    with pytest.raises(Damaged, match="not what its digest says"):
        write(tmp_path / "next", iter([other]), held=[earlier])


@pytest.mark.parametrize("change", [-1, 1])
def test_a_layer_of_another_length_is_not_copied(earlier: Archive, tmp_path: Path, change: int) -> None:
    """A name that is held with another length does not count, and a digest with another length is damage."""
    other = Item(ITEMS[1].name, LARGE[:change] if change < 0 else LARGE + b"!")
    written, _, _ = write(tmp_path / "next", members([other]), held=[earlier])
    assert written.copied_frames == 0
    assert untarred(tmp_path / "next") == expected([other])
    lie = replace(next(members([other])), digest=ITEMS[1].digest)
    with pytest.raises(Damaged, match="not what its digest says"):
        write(tmp_path / "next", iter([lie]), held=[earlier])


def test_only_contents_with_frames_of_their_own_may_be_copied(tmp_path: Path) -> None:
    """A layer that shares its frame with other members is not held; one byte more, and it is."""
    layers = [Item(b"%d" % size, bytes(size)) for size in (5, FRAME_SIZE, FRAME_SIZE + 1)]
    write(tmp_path / "earlier", members(layers), layers=layers)
    with opened(tmp_path / "earlier") as archive:
        assert Held([archive]).sizes() == {layers[2].digest: FRAME_SIZE + 1}


def test_one_layer_twice_is_copied_twice(earlier: Archive, tmp_path: Path) -> None:
    """Two members with the content of an earlier one are two members."""
    items = [ITEMS[1], Item(b"again", LARGE), Item(b"end", b"end")]
    write(tmp_path / "next", members(items, known=True), held=[earlier])
    assert untarred(tmp_path / "next") == expected(items)


@pytest.mark.parametrize("frame", [1, 2, 3])
@pytest.mark.parametrize("name", [ITEMS[1].name, b"other"])
def test_a_damaged_frame_is_never_copied(tmp_path: Path, earlier: Archive, frame: int, name: bytes) -> None:
    """A flipped bit in an earlier entry ends the attempt; without that entry the same members make a whole one."""
    path = tmp_path / "earlier"
    at = anatomy(path).frames[frame] + 20
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(BaseRotten):
        write(tmp_path / "next", members([Item(name, LARGE)], known=True), held=[earlier])


@pytest.mark.parametrize("part", ["index", "seal"])
def test_an_earlier_entry_with_a_damaged_tail_has_nothing(
    tmp_path: Path, earlier: Archive, part: str
) -> None:
    """What cannot be trusted to say what it holds is not asked for layers."""
    path = tmp_path / "earlier"
    data = bytearray(path.read_bytes())
    data[getattr(anatomy(path), part) + 30] ^= 1
    path.write_bytes(data)
    with ExitStack() as stack:
        try:
            held = [stack.enter_context(open_archive(bytes(path), ANYONE))]
        except CachekitError:
            held = []
        written, _, _ = write(tmp_path / "next", members(ITEMS, known=True), held=held)
    assert written.copied_frames == 0
    assert untarred(tmp_path / "next") == expected(ITEMS)


@pytest.mark.parametrize("item", ITEMS, ids=["small", "large", "last"])
@pytest.mark.parametrize("field", ["digest", "claim"])
def test_a_content_that_is_not_what_it_should_be(tmp_path: Path, item: Item, field: str) -> None:
    """Whether known or claimed, a digest that the content has not is damage."""
    wrong = "sha256:" + "0" * 64

    def stream() -> Iterator[StreamMember]:
        for member in members(ITEMS):
            if member.name == item.name:
                lie = replace(member, digest=wrong) if field == "digest" else replace(member, claim=wrong)
                yield lie
            else:
                yield member

    with pytest.raises(Damaged, match="not what its digest says") as caught:
        write(tmp_path / "next", stream())
    assert caught.value.path == item.name


@pytest.mark.parametrize("short", [1, 4321, FRAME_SIZE])
def test_a_content_that_ends_too_early(tmp_path: Path, short: int) -> None:
    """A source that ends before the length that was announced is damage, wherever it ends."""
    with pytest.raises(Damaged, match="shorter than announced"):
        write(tmp_path / "next", members([ITEMS[1]], short=short))


def test_a_copied_content_that_ends_too_early(tmp_path: Path, earlier: Archive) -> None:
    """A source is read to its end also where nothing of it has to be packed."""

    def stream() -> Iterator[StreamMember]:
        for member in members([ITEMS[1]], short=1):
            yield replace(member, claim=ITEMS[1].digest)

    with pytest.raises(Damaged, match="shorter than announced"):
        write(tmp_path / "next", stream(), held=[earlier])


@pytest.mark.parametrize("full", [0, 100, 3 << 20, 8 << 20])
@pytest.mark.parametrize("copy", [False, True])
def test_a_full_disk_ends_it(tmp_path: Path, earlier: Archive, full: int, *, copy: bool) -> None:
    """Whichever write fails, the error arrives, and no thread is left."""
    with pytest.raises(OSError, match="full") as caught:
        write(tmp_path / "next", members(ITEMS, known=True), full=full, held=[earlier] if copy else [])
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("after", range(4))
def test_an_error_of_the_source_ends_it(tmp_path: Path, after: int) -> None:
    """What the source raises arrives as it is, and no thread is left."""

    def stream() -> Iterator[StreamMember]:
        yield from list(members(ITEMS))[:after]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "next", stream())


def test_a_directory_that_comes_late(tmp_path: Path) -> None:
    """A directory that its content had to be given already is not there twice."""
    items = [Item(b"a/b/c", b"1"), Item(b"a", kind=DIRECTORY), Item(b"a/b", kind=DIRECTORY)]
    write(tmp_path / "entry", members(items))
    assert untarred(tmp_path / "entry") == [("a", None), ("a/b", None), ("a/b/c", b"1")]
