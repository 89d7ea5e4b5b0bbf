"""One pass over a file: its size and sha256, what it is, and whether it is whole as far as its format promises that."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from cachekit.errors import CachekitError, Damaged, Unsupported
from cachekit.formats.detect import HEAD_BYTES, detect
from cachekit.formats.packed import PACKED, unpacked
from cachekit.formats.tar import Source, TarReader
from cachekit.formats.zips import check_zip
from cachekit.oci.docker import Inventory

__all__ = ["Findings", "Progress", "digest_of", "inspect"]

#: Called now and then with (bytes read, bytes in all).
Progress = Callable[[int, int], None]

_PIECE = 1 << 20
#: A tar without members: its two blocks of zeros, at most filled up as tar does. Longer zeros are what a crash leaves.
_EMPTY_TAR = range(1024, 10240 + 1, 512)
#: How the first member of an archive of images is called, in each layout that there is.
_IMAGE_NAMES = (b"blobs", b"oci-layout", b"index.json", b"manifest.json", b"repositories")


@dataclass(slots=True)
class Findings:
    """What a file is. ``sha256`` in hex, of all its bytes; ``problem`` is why it is not whole, None if it is.

    ``kind``: tar, zip, gzip, zstd, xz, bzip2, docker-archive, oci-archive, ``tar in gzip`` and so on, or unknown.
    ``structure``: what is in it, as plain values.
    """

    size: int
    sha256: str = ""
    kind: str = "unknown"
    structure: dict[str, object] = field(default_factory=dict)
    problem: CachekitError | None = None


class _Hashing:
    """A file as a source; what is read is hashed and counted."""

    def __init__(self, file: BinaryIO, size: int, progress: Progress | None) -> None:
        self._file, self._size, self._progress = file, size, progress
        self._digest = hashlib.sha256()
        self.read = 0

    def readinto(self, buffer: memoryview) -> int:
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self._digest.update(buffer[:count])
        self.read += count
        if self._progress is not None:
            self._progress(self.read, self._size)
        return count

    def finish(self) -> str:
        """Read what is left; return the digest of all."""
        scratch = memoryview(bytearray(_PIECE))
        while self.readinto(scratch):
            pass
        return self._digest.hexdigest()


class _Peeked:
    """A source whose first bytes were looked at."""

    def __init__(self, source: Source, head: bytes) -> None:
        self._source, self._head = source, head

    def readinto(self, buffer: memoryview) -> int:
        if self._head:
            count = min(len(buffer), len(self._head))
            buffer[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        return self._source.readinto(buffer)


class _Part:
    """A member of an archive of images as a source; what is read is hashed, and kept if it may be a document."""

    def __init__(self, reader: TarReader, *, keep: bool) -> None:
        self._reader = reader
        self._problem: CachekitError | None = None
        self.digest = hashlib.sha256()
        self.document = bytearray() if keep else None

    def readinto(self, buffer: memoryview) -> int:
        try:
            count = self._reader.readinto(buffer)
        except CachekitError as error:
            self._problem = error
            raise
        self.digest.update(buffer[:count])
        if self.document is not None:
            self.document += buffer[:count]
        return count

    def digest_inside(self, scratch: memoryview) -> str | None:
        """Read all of it; return the sha256 of what it holds if it is compressed, else its own.

        Empty if what it holds is damaged, None if that cannot be told here.
        """
        head = _head(self)
        content: Source = _Peeked(self, head)
        kind = detect(head)
        if kind not in PACKED:
            while self.readinto(scratch):
                pass
            return self.digest.hexdigest()
        try:
            inner, digest = unpacked(content, kind), hashlib.sha256()
            while count := inner.readinto(scratch):
                digest.update(scratch[:count])
            return digest.hexdigest()
        except (Damaged, Unsupported) as error:
            if self._problem is not None:
                raise self._problem from None  # it is not what the member holds that is damaged, but the archive
            found = "" if isinstance(error, Damaged) else None
        while self.readinto(scratch):
            pass
        return found


def digest_of(file: BinaryIO, progress: Progress | None = None) -> tuple[int, str]:
    """Return how many bytes are in an unbuffered file, and their sha256 in hex."""
    source = _Hashing(file, os.fstat(file.fileno()).st_size, progress)
    digest = source.finish()
    return source.read, digest


def inspect(file: BinaryIO, progress: Progress | None = None) -> Findings:
    """Read an unbuffered file once, from its beginning to its end, whatever is wrong with it. Raises OSError."""
    source = _Hashing(file, os.fstat(file.fileno()).st_size, progress)
    findings = Findings(0)
    try:
        _look(source, file, findings)
    except CachekitError as error:
        findings.problem = error
    findings.sha256 = source.finish()
    findings.size = source.read
    return findings


def _look(source: _Hashing, file: BinaryIO, findings: Findings) -> None:
    head = _head(source)
    kind = detect(head)
    if kind == "empty":
        findings.kind = "empty"
        raise Damaged("the file is empty", rung="structure", found=0)
    findings.kind = kind
    if kind == "zip":
        source.finish()
        file.seek(0)
        # zipfile reads where the directory says, not from the beginning to the end: a second reader, as it were.
        try:
            with io.BufferedReader(open(os.dup(file.fileno()), "rb", buffering=0)) as again:
                summary = check_zip(again)
        finally:
            file.seek(0, os.SEEK_END)  # both descriptors have one position, and nothing is to be hashed twice
        findings.structure = {
            "members": summary.members,
            "content_bytes": summary.content_bytes,
            "encrypted": summary.encrypted,
        }
        return
    content: Source = _Peeked(source, head)
    if kind in PACKED:
        inner = unpacked(content, kind)
        head = _head(inner)
        content = _Peeked(inner, head)
        if detect(head) != "tar":
            drain(content)
            findings.structure = {"content_bytes": inner.offset, "streams": inner.streams}
            return
    elif kind == "unknown":
        if _is_empty_tar(content):
            findings.kind, findings.structure = "tar", {"members": 0, "content_bytes": 0}
        return
    if kind in PACKED or kind == "tar":
        _look_at_tar(content, findings, "" if kind == "tar" else f" in {kind}")


def _head(source: Source) -> bytes:
    """Return the first bytes of a source, as many as tell what it is."""
    buffer = bytearray(HEAD_BYTES)
    done = 0
    while done < HEAD_BYTES and (count := source.readinto(memoryview(buffer)[done:])):
        done += count
    return bytes(buffer[:done])


def _is_empty_tar(source: Source) -> bool:
    """Read as much of a source as tells a tar without members from a disk image, which may begin with zeros."""
    buffer = memoryview(bytearray(_EMPTY_TAR.stop))
    done = 0
    while done < len(buffer) and (count := source.readinto(buffer[done:])):
        done += count
    return done in _EMPTY_TAR and not any(buffer[:done])


def drain(source: Source) -> None:
    """Read a source to its end, for what it finds wrong."""
    scratch = memoryview(bytearray(_PIECE))
    while source.readinto(scratch):
        pass


def _look_at_tar(source: Source, findings: Findings, inside: str) -> None:
    findings.kind = f"tar{inside}"
    reader = TarReader(source)
    inventory: Inventory | None = None
    members = content = 0
    scratch = memoryview(bytearray(_PIECE))
    while (member := reader.next()) is not None:
        name = member.name.removeprefix(b"./")
        if not content and inventory is None and _of_images(name):
            inventory = Inventory()
        members += 1
        content += member.size if member.kind == "file" else 0
        if inventory is None:
            continue
        if member.kind != "file":
            inventory.add(name, member.kind, member.size, "", member.link)
            continue
        part = _Part(reader, keep=inventory.wants(name, member.size))
        held = part.digest_inside(scratch)
        kept = bytes(part.document) if part.document is not None else None
        inventory.add(name, "file", member.size, part.digest.hexdigest(), b"", kept, held)
    findings.structure = {"members": members, "content_bytes": content}
    drain(source)  # what lies behind the tar, in the file that holds it
    if inventory is not None:
        _look_at_images(inventory, findings, inside)


def _look_at_images(inventory: Inventory, findings: Findings, inside: str) -> None:
    found = inventory.contents()
    if not found.recognised:
        return  # a tar of something else, with a name or two that images have as well
    findings.kind = found.kind + inside
    findings.structure["images"] = [
        {
            "names": list(image.names),
            "id": image.config,
            "platform": image.platform,
            "layers": len(image.layers),
        }
        for image in found.images
    ]
    if found.faults:
        more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
        raise Damaged(
            f"the archive of images is not whole: {found.faults[0]}{more}",
            rung="structure",
            faults=list(found.faults),
        )


def _of_images(name: bytes) -> bool:
    """Return True if an archive of images may begin with this name."""
    first = name.split(b"/", 1)[0]
    stem = first.removesuffix(b".json").removesuffix(b".tar")
    return first in _IMAGE_NAMES or (len(stem) == 64 and not stem.strip(b"0123456789abcdef"))
