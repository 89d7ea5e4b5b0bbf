"""Layers and documents straight from an engine's data root: the same bytes that it would send, without its detours.

An engine hands its images out slowly (measured in docs/adr/0011-data-root.md): containerd in small messages, the
classic image store only after it has put all of it together on disk. Who may read the data root can do without.
Nothing here is trusted: whoever reads checks each content against its digest. Whatever is missing, or not of the shape
that is known, is NotFromHere: then the engine is asked after all.

Layouts: containerd's content store (``io.containerd.content.v1.content``); Docker's overlay2 with the tar-split files
of its layer database (github.com/vbatts/tar-split: JSON lines of segments and files, which give the layer's tar).
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from cachekit.engine.objects import Info

__all__ = ["ClassicStore", "ContentStore", "NotFromHere", "Readable", "store_of"]

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CACHE_ID = re.compile(r"[0-9a-z]{20,64}")
_CONTENT = "io.containerd.content.v1.content/blobs/sha256"
_LONGEST_DOCUMENT = 16 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FILE, _SEGMENT = 1, 2
#: What a damaged recipe makes the libraries raise.
_BROKEN = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error)


class NotFromHere(Exception):
    """The data root does not give what was asked for; the text says why. No error: ask the engine."""


class Readable(Protocol):
    """A content."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer's beginning; 0 at the end. Raises NotFromHere."""
        ...


def store_of(info: Info) -> ContentStore | ClassicStore:
    """Return the engine's store of images on disk. Raises NotFromHere if it cannot be read, or is of another kind."""
    if info.remote:
        raise NotFromHere("the engine may be on another machine")
    if info.containerd:
        for root in info.roots:
            for place in (os.path.join(root, "containerd/daemon", _CONTENT), os.path.join(root, _CONTENT)):
                if os.access(place, os.R_OK | os.X_OK):
                    return ContentStore(place)
        raise NotFromHere("containerd's content cannot be read")
    if info.driver != "overlay2" or not info.roots:
        raise NotFromHere(f"the storage driver is {info.driver}")
    database = os.path.join(info.roots[0], "image/overlay2")
    if not os.access(os.path.join(database, "layerdb/sha256"), os.R_OK | os.X_OK):
        raise NotFromHere("the data root cannot be read")
    return ClassicStore(info.roots[0])


class ContentStore:
    """containerd's blobs, by digest."""

    def __init__(self, place: str) -> None:
        self._place = place

    def size(self, digest: str) -> int | None:
        """Return the length of a blob, None if it is not there."""
        try:
            info = os.lstat(self._path(digest))
        except OSError:
            return None
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def document(self, digest: str) -> bytes:
        """Return a small blob, checked against its digest. Raises NotFromHere."""
        source = self.open(digest)
        return _document(source, digest)

    def open(self, digest: str) -> Readable:
        """Return a blob's content, unchecked. Raises NotFromHere."""
        return _FileContent(self._path(digest))

    def _path(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise NotFromHere(f"{digest!r} is no digest that is known")
        return os.path.join(self._place, digest.removeprefix("sha256:"))


class ClassicStore:
    """Docker's own store with overlay2: configs by image id, layers put together from their files."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._database = os.path.join(root, "image/overlay2")

    def config(self, image: str) -> bytes:
        """Return the config of an image, which its id is the digest of. Raises NotFromHere."""
        if not _DIGEST.fullmatch(image):
            raise NotFromHere(f"{image!r} is no image id that is known")
        name = image.removeprefix("sha256:")
        return _document(_FileContent(os.path.join(self._database, "imagedb/content/sha256", name)), image)

    def layer(self, diff_ids: Sequence[str]) -> Layer:
        """Return the layer that is the last of ``diff_ids`` (one at least), above the others. Raises NotFromHere."""
        chain = ""
        for diff_id in diff_ids:
            if not _DIGEST.fullmatch(diff_id):
                raise NotFromHere(f"{diff_id!r} is no diff id that is known")
            chain = (
                "sha256:" + hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest() if chain else diff_id
            )
        place = os.path.join(self._database, "layerdb/sha256", chain.removeprefix("sha256:"))
        if _text(os.path.join(place, "diff")) != diff_ids[-1]:
            raise NotFromHere("the layer database names another layer")
        cache = _text(os.path.join(place, "cache-id"))
        if not _CACHE_ID.fullmatch(cache):
            raise NotFromHere("the layer database names no directory")
        return Layer(
            os.path.join(place, "tar-split.json.gz"), os.path.join(self._root, "overlay2", cache, "diff")
        )


class Layer:
    """A layer of the classic store, as the tar that it came from."""

    def __init__(self, recipe: str, directory: str) -> None:
        self._recipe, self._directory = recipe, directory

    def size(self) -> int:
        """Return the length of the tar, from its recipe alone. Raises NotFromHere."""
        return sum(len(segment) if name is None else size for segment, name, size in self._steps())

    def open(self) -> Readable:
        """Return the tar, unchecked. Raises NotFromHere."""
        return _LayerContent(self._steps(), self._directory)

    def _steps(self) -> Iterator[tuple[bytes, bytes | None, int]]:
        """Yield what the tar is put together from: (segment, None, 0), or (nothing, name of a file, its size)."""
        try:
            with gzip.open(self._recipe, "rb") as lines:
                for line in lines:
                    step = json.loads(line)
                    kind = step["type"]
                    if kind == _SEGMENT:
                        yield base64.b64decode(step["payload"], validate=True), None, 0
                    elif kind == _FILE:
                        size = step.get("size", 0)
                        if type(size) is not int or size < 0:
                            raise NotFromHere("a layer's recipe has a size that is none")
                        if size:
                            yield b"", _name(step), size
                    else:
                        raise NotFromHere("a layer's recipe has a step that is not known")
        except _BROKEN as error:
            raise NotFromHere(f"a layer's recipe cannot be read: {error}") from None


def _name(step: dict[str, Any]) -> bytes:
    raw = step.get("name_raw")
    name = base64.b64decode(raw, validate=True) if raw else step["name"].encode("utf-8")
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise NotFromHere("a layer's recipe names a file outside the layer")
    return b"/".join(parts)


class _FileContent:
    """A regular file; its descriptor is closed with the object."""

    def __init__(self, path: str) -> None:
        self._fd = -1
        try:
            self._fd = os.open(path, _FLAGS)
        except OSError as error:
            raise NotFromHere(f"a content cannot be opened: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise NotFromHere("a content is no file")

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def readinto(self, buffer: memoryview) -> int:
        try:
            return os.readv(self._fd, [buffer])
        except OSError as error:
            raise NotFromHere(f"a content cannot be read: {error.strerror}") from None


class _LayerContent:
    """A tar, put together while it is read."""

    def __init__(self, steps: Iterator[tuple[bytes, bytes | None, int]], directory: str) -> None:
        self._steps = steps
        self._segment = memoryview(b"")
        self._fd = -1
        self._left = 0
        try:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise NotFromHere(f"a layer's directory cannot be opened: {error.strerror}") from None

    def __del__(self) -> None:
        for fd in (self._fd, getattr(self, "_directory", -1)):
            if fd >= 0:
                with contextlib.suppress(OSError):  # of a network filesystem that went away
                    os.close(fd)

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer as far as there is something: many small files make one piece."""
        done = 0
        while done < len(buffer):
            if self._left:
                count = self._read(buffer[done : done + self._left])
                self._left -= count
            elif self._segment:
                count = min(len(self._segment), len(buffer) - done)
                buffer[done : done + count] = self._segment[:count]
                self._segment = self._segment[count:]
            else:
                step = next(self._steps, None)
                if step is None:
                    break
                segment, name, size = step
                self._segment = memoryview(segment)
                if name is not None:
                    self._open(name, size)
                continue
            done += count
        return done

    def _open(self, name: bytes, size: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        try:
            self._fd = os.open(name, _FLAGS, dir_fd=self._directory)
            info = os.fstat(self._fd)
        except (OSError, ValueError) as error:
            raise NotFromHere(f"a file of a layer cannot be opened: {error}") from None
        if not stat.S_ISREG(info.st_mode) or info.st_size != size:
            raise NotFromHere("a file of a layer is not what its recipe says")
        self._left = size

    def _read(self, buffer: memoryview) -> int:
        try:
            count = os.readv(self._fd, [buffer])
        except OSError as error:
            raise NotFromHere(f"a file of a layer cannot be read: {error.strerror}") from None
        if not count:
            raise NotFromHere("a file of a layer is shorter than its recipe says")
        return count


def _document(source: Readable, digest: str) -> bytes:
    data = bytearray()
    buffer = memoryview(bytearray(1 << 20))
    while count := source.readinto(buffer):
        data += buffer[:count]
        if len(data) > _LONGEST_DOCUMENT:
            raise NotFromHere("a document is too long")
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise NotFromHere("a document is not what its digest says")
    return bytes(data)


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(200).strip()
    except (OSError, ValueError):
        raise NotFromHere("the layer database cannot be read") from None
