"""Writing an entry from members whose contents come as a stream, as an engine sends an image.

The parent reads and hashes; threads compress, which releases the interpreter's lock: no copy goes to another process.
A content of more than 8 MiB that an earlier entry holds is copied frame by frame.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import local
from typing import Protocol, Self

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from cachekit.archive import header
from cachekit.archive.format import (
    DIRECTORY,
    FILE,
    FRAME_LIMIT,
    FRAME_MINIMUM,
    FRAME_SIZE,
    LINK_KINDS,
    padded,
    parts,
)
from cachekit.archive.held import Held, HeldContent
from cachekit.archive.index import Index
from cachekit.archive.layout import CUT_THRESHOLD
from cachekit.archive.pack import compressor
from cachekit.archive.seal import Seal
from cachekit.archive.tail import Output, write_tail
from cachekit.archive.write import BaseRotten, Progress, Written
from cachekit.errors import Damaged, Unreadable
from cachekit.system.steps import step
from cachekit.trust import ANYONE, Trust

__all__ = ["Incoming", "Seen", "StreamMember", "write_stream"]

#: So much is read and hashed at a time: one call of recv gives no more, and the interpreter's lock is free meanwhile.
_PIECE = 1 << 20
#: Frames that wait to be compressed or placed, besides one a thread: their buffers are most of a save's memory.
_WAITING = 2
_MODES = {FILE: 0o644, DIRECTORY: 0o755}
_LINK_MODE = 0o777


class Incoming(Protocol):
    """Where a content comes from."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer's beginning and return how much; 0 only at the end of the content."""
        ...


@dataclass(frozen=True, slots=True)
class StreamMember:
    """A member to be written. ``open`` gives the content of a file, and is called at most once, in the members' order.

    ``digest`` (``sha256:`` and hex) is what the content is known to be beforehand, empty if it is not: what an earlier
    entry holds is then not even read. ``claim`` is what it should turn out to be. What is read and turns out to be
    something else is refused in both cases.
    """

    name: bytes
    kind: int
    size: int = 0
    link: bytes = b""
    digest: str = ""
    claim: str = ""
    open: Callable[[], Incoming] | None = None


#: Called after each member with its digest (``sha256:`` and hex, empty unless a file), and its content if that was
#: wanted.
Seen = Callable[[StreamMember, str, bytes | None], None]


def write_stream(
    members: Iterable[StreamMember],
    output: Output,
    *,
    level: int,
    threads: int,
    seal: Callable[[], Seal],
    seen: Seen,
    wants: Callable[[bytes, int], bool],
    held: Held | None = None,
    progress: Progress | None = None,
    trust: Trust = ANYONE,
) -> Written:
    """Write an entry of ``members`` to ``output``, durable but not published, signed if ``trust`` has a key.

    Headers are normalised: no owners, no times, the same modes. A directory that a name needs and the members lack is
    added. ``seal`` is called when all members are there, and may raise to refuse them. ``wants`` says of which files
    (name, size; at most 8 MiB) ``seen`` gets the content.

    Raises BaseRotten if what an earlier entry holds is not what it should be (try again without), Damaged for a content
    that is not as long as said or not what its digest says, and what ``members``, ``seal`` and the output raise.
    """
    begin = time.perf_counter()
    with _Packing(output, level, threads, held or Held(), progress) as packing:
        for member in members:
            digest, content = packing.add(member)
            wanted = content is not None and wants(member.name, member.size)
            seen(member, digest, content if wanted else None)
        packing.finish()
    step("save.frames-written")
    mark = time.perf_counter()
    phases = {"stream": mark - begin}
    described = seal()
    described.allocated_bytes = packing.index.content_bytes()
    size, packed_index = write_tail(
        packing.index, described, output, packing.position, level=level, trust=trust
    )
    step("save.tail-written")
    phases["index"] = time.perf_counter() - mark
    mark = time.perf_counter()
    output.finish(size)
    step("save.synced")
    phases["fsync"] = time.perf_counter() - mark
    return Written(described, size, [], packing.copied_frames, packing.copied_bytes, packed_index, phases)


class _Packing:
    """Members into frames, frames to threads, and what they give into the file, in order."""

    def __init__(
        self, output: Output, level: int, threads: int, held: Held, progress: Progress | None
    ) -> None:
        self.index = Index()
        self.position = 0
        self.copied_frames = self.copied_bytes = 0
        self._output, self._level, self._held, self._progress = output, level, held, progress
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pack")
        self._local = local()
        self._most = threads + _WAITING
        #: Frames not yet placed, in order: one that is being packed, or one of an earlier entry.
        self._pending: deque[tuple[Future[_Packed], bytearray] | tuple[HeldContent, int]] = deque()
        self._copying: deque[Future[None]] = deque()
        self._free: list[bytearray] = []
        #: For each file its digest, or what will give those of its parts.
        self._contents: list[bytes | list[Future[_Packed]]] = []
        self._directories: set[bytes] = {b""}
        self._frame = 0
        self._small = bytearray()
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, member: StreamMember) -> tuple[str, bytes | None]:
        """Take a member; return the digest of its content, and the content unless it has frames of its own."""
        self._add_parents(member.name)
        if member.kind == DIRECTORY:
            if member.name not in self._directories:  # an engine may name one after we had to
                self._add_directory(member.name)
            return "", None
        if member.kind != FILE:
            self._append(member, b"")
            return "", None
        if member.size > FRAME_SIZE:
            return self._large(member), None
        content = self._read(member)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        _require(member, digest)
        self._append(member, content)
        return digest, content

    def finish(self) -> None:
        """Wait until every frame is in its place."""
        self._cut()
        self._place(0)
        while self._copying:
            self._copying.popleft().result()
        for content in self._contents:
            self.index.contents += (
                content
                if isinstance(content, bytes)
                else xxh3_128_digest(b"".join(part.result().content for part in content))
            )

    def _add_parents(self, name: bytes) -> None:
        position = name.find(b"/")
        while position >= 0:
            if name[:position] not in self._directories:
                self._add_directory(name[:position])
            position = name.find(b"/", position + 1)

    def _add_directory(self, name: bytes) -> None:
        self._directories.add(name)
        self._append(StreamMember(name, DIRECTORY), b"")

    def _append(self, member: StreamMember, content: bytes) -> None:
        """Put a small member into the frame that is being filled, cut as the format says."""
        head = _header(member)
        total = len(head) + padded(len(content))
        if len(self._small) + total > FRAME_SIZE:
            self._cut()
        self._row(member, len(self._small))
        if member.kind == FILE:
            self._contents.append(xxh3_128_digest(content))
        self._small += head
        self._small += content
        self._small += bytes(padded(len(content)) - len(content))
        if len(self._small) >= FRAME_MINIMUM and xxh3_64_intdigest(member.name) < CUT_THRESHOLD:
            self._cut()
        self._tell(len(content))

    def _row(self, member: StreamMember, offset: int) -> None:
        index = self.index
        index.paths.append(member.name)
        index.kinds.append(member.kind)
        index.modes.append(_MODES.get(member.kind, _LINK_MODE))
        index.uids.append(0)
        index.gids.append(0)
        index.mtimes.append(0)
        index.sizes.append(member.size)
        if member.kind in LINK_KINDS:
            index.links.append(member.link)
        index.frames.append(self._frame)
        index.offsets.append(offset)

    def _cut(self) -> None:
        """End the frame that is being filled, if anything is in it."""
        if self._small:
            self._pack(self._small, 0, len(self._small), len(self._small))
            self._small = bytearray()
            self._frame += 1

    def _large(self, member: StreamMember) -> str:
        """Write a content that has frames of its own; return its digest."""
        self._cut()
        expected = member.digest or member.claim
        held = self._held.with_digest(expected) if expected else self._held.called(member.name)
        if held is None or held.layer.size != member.size:
            digest = self._pack_large(member)
        else:
            digest = member.digest or self._hash(member)
            _require(member, digest)
            if digest != held.layer.digest:  # only its name spoke for it, and it is read by now
                raise BaseRotten
            self._copy(member, held)
        self._frame += parts(member.size)
        return digest

    def _copy(self, member: StreamMember, held: HeldContent) -> None:
        """Take over the frames of an earlier entry; the first one only if its header would be the same."""
        self._row(member, 0)
        self._contents.append(_content_digest(held))
        first = held.first
        if held.layer.member != member.name:
            try:
                content = held.first_part()
            except (Damaged, Unreadable):
                raise BaseRotten from None
            raw = bytearray(_header(member) + content)
            self._pack(raw, 0, len(raw), len(raw))
            first += 1
        for frame in range(first, held.frames.stop):
            self._pending.append((held, frame))
            self._place(self._most)
        self._tell(member.size)

    def _pack_large(self, member: StreamMember) -> str:
        head = _header(member)
        digest = hashlib.sha256()
        source = _opened(member)
        self._row(member, 0)
        futures: list[Future[_Packed]] = []
        self._contents.append(futures)
        left = member.size
        while left:
            buffer = self._free.pop() if self._free else bytearray(FRAME_LIMIT)
            start = 0 if futures else len(head)
            buffer[:start] = head[:start]
            end = start + min(left, FRAME_SIZE)
            _fill(source, memoryview(buffer)[start:end], member, digest)
            left -= end - start
            filled = end
            if not left:
                filled = start + padded(end - start)
                buffer[end:filled] = bytes(filled - end)
            futures.append(self._pack(buffer, start, end, filled))
            self._tell(end - start)
        found = f"sha256:{digest.hexdigest()}"
        _require(member, found)
        return found

    def _pack(self, buffer: bytearray, start: int, end: int, filled: int) -> Future[_Packed]:
        """Have a thread compress the buffer up to ``filled``; the content is from ``start`` to ``end``."""
        future = self._pool.submit(self._compress, memoryview(buffer), start, end, filled)
        self._pending.append((future, buffer))
        self._place(self._most)
        return future

    def _compress(self, view: memoryview, start: int, end: int, filled: int) -> _Packed:
        if not hasattr(self._local, "compressor"):
            self._local.compressor = compressor(self._level)
        content = xxh3_128_digest(view[start:end])
        data = self._local.compressor.compress(view[:filled])
        return _Packed(data, filled, hashlib.sha256(data).digest(), content)

    def _place(self, most: int) -> None:
        """Write frames in order until at most ``most`` of them wait, and those that are ready in any case."""
        index = self.index
        while self._pending:
            first, second = self._pending[0]
            if isinstance(first, HeldContent):
                assert isinstance(second, int)
                theirs = first.archive.index
                size = theirs.frame_sizes[second]
                index.raw_sizes.append(theirs.raw_sizes[second])
                index.frame_digests += theirs.frame_digest(second)
                self._copying.append(self._pool.submit(self._copy_frame, first, second, self.position))
                while len(self._copying) > self._most:
                    self._copying.popleft().result()
                self.copied_frames += 1
                self.copied_bytes += size
            else:
                if not first.done() and len(self._pending) <= most:
                    return
                packed = first.result()
                size = len(packed.data)
                index.raw_sizes.append(packed.raw_size)
                index.frame_digests += packed.digest
                self._output.write(packed.data, self.position)
                packed.data = b""
                assert isinstance(second, bytearray)
                if len(second) == FRAME_LIMIT:
                    self._free.append(second)
            index.frame_sizes.append(size)
            self.position += size
            self._pending.popleft()

    def _copy_frame(self, held: HeldContent, frame: int, position: int) -> None:
        try:
            data = held.archive.frame(frame)
        except (Damaged, Unreadable):
            raise BaseRotten from None
        self._output.write(data, position)

    def _hash(self, member: StreamMember) -> str:
        """Read a content that needs no packing."""
        digest = hashlib.sha256()
        source = _opened(member)
        buffer = memoryview(bytearray(_PIECE))
        left = member.size
        while left:
            piece = buffer[: min(left, _PIECE)]
            _fill(source, piece, member, digest)
            left -= len(piece)
        return f"sha256:{digest.hexdigest()}"

    def _read(self, member: StreamMember) -> bytes:
        buffer = bytearray(member.size)
        _fill(_opened(member), memoryview(buffer), member, None)
        return bytes(buffer)

    def _tell(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self._done, 0, len(self.index))


@dataclass(slots=True)
class _Packed:
    """A compressed frame, until it is written; ``content`` is the digest of the part of a content in it."""

    data: bytes
    raw_size: int
    digest: bytes
    content: bytes


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...


def _fill(source: Incoming, view: memoryview, member: StreamMember, digest: _Hash | None) -> None:
    """Fill the view from the source. Raises Damaged if that ends before."""
    done = 0
    while done < len(view):
        count = source.readinto(view[done : done + _PIECE])
        if not count:
            raise Damaged(
                "a member's content is shorter than announced", path=member.name, expected=member.size
            )
        if digest is not None:
            digest.update(view[done : done + count])
        done += count


def _header(member: StreamMember) -> bytes:
    mode = _MODES.get(member.kind, _LINK_MODE)
    return header.build(member.name, member.kind, mode, 0, 0, 0, member.size, member.link)


def _opened(member: StreamMember) -> Incoming:
    assert member.open is not None, "a file with a content can be opened"
    return member.open()


def _require(member: StreamMember, digest: str) -> None:
    """Raise Damaged if the content is not what it was known, or claims, to be."""
    expected = member.digest or member.claim
    if expected and expected != digest:
        raise Damaged(
            "a member's content is not what its digest says",
            path=member.name,
            expected=expected,
            found=digest,
        )


def _content_digest(held: HeldContent) -> bytes:
    """Return the digest of a content as the index of the earlier entry has it."""
    index = held.archive.index
    row = index.paths.index(held.layer.member)
    ordinal = 16 * index.kinds.count(FILE, 0, row)
    return bytes(index.contents[ordinal : ordinal + 16])
