"""The directory store keeps the contract of stores, on every kind of filesystem that matters to it."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachekit.archive.extract import check_contents
from cachekit.archive.read import open_archive
from cachekit.cache.select import confirmed
from cachekit.errors import Refused
from cachekit.model import EntryIdentity, Key, Platform
from cachekit.store.removal import FileIdentity
from cachekit.trust import ANYONE
from tests.contracts.store import HERE, StoreContract
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.flaky import flaky
from tests.support.shelf import Shelf, content_of, damage


class DirectoryDriver:
    """A directory store for the contract."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made = itertools.count()

    def _shelf(self, namespace: str = "") -> Shelf:
        return Shelf(self._root, namespace or "default")

    def put(
        self, key: str, content: bytes, *, platform: Platform = HERE, namespace: str = "", force: bool = False
    ) -> str:
        """See `Driver`."""
        made_days = 1 - next(self._made) * 1e-6
        return self._shelf(namespace).put(key, content, made_days=made_days, platform=platform, force=force)

    def get(self, key: str, *, platform: Platform = HERE, namespace: str = "") -> bytes | None:
        """See `Driver`."""
        path = self._shelf(namespace).path(key, platform)
        try:
            with open_archive(bytes(path), ANYONE) as archive:
                self._shelf(namespace).store.check_filing(archive, path.name)
                check_contents(archive, 1)
                return content_of(archive)
        except (FileNotFoundError, Refused):
            return None

    def newest(self, prefix: str, *, platform: Platform = HERE, namespace: str = "") -> list[str]:
        """See `Driver`."""
        found = self._shelf(namespace).store.candidates(prefix, str(platform))
        return [candidate.seal.key for candidate in found if candidate.seal is not None]

    @contextmanager
    def reading(self, key: str) -> Iterator[Callable[[], bytes]]:
        """See `Driver`."""
        with open_archive(bytes(self._shelf().path(key, HERE)), ANYONE) as archive:

            def rest() -> bytes:
                check_contents(archive, 1)
                return content_of(archive)

            yield rest

    def delete(self, key: str) -> bool:
        """See `Driver`."""
        shelf = self._shelf()
        path = shelf.path(key, HERE)
        try:
            planned = FileIdentity.of(path.lstat())
        except FileNotFoundError:
            return False
        return shelf.store.remove(path.name, planned) == "removed"

    def damage(self, key: str) -> None:
        """See `Driver`."""
        damage(self._shelf().path(key, HERE))

    def refused(self, key: str) -> bool:
        """See `Driver`."""
        shelf = self._shelf()
        name = EntryIdentity(Key(key), HERE).file_name
        path = shelf.store.entry_path(name)
        with open_archive(path, ANYONE) as archive:
            identity = archive.identity
        return confirmed(shelf.store, path, name, identity) and shelf.store.set_aside(path, identity)


class TestHere(StoreContract):
    """In the temporary directory."""

    @pytest.fixture
    def driver(self, tmp_path: Path) -> DirectoryDriver:
        """An empty store."""
        return DirectoryDriver(tmp_path / "store")


@requires("ext4")
class TestExt4(StoreContract):
    """On ext4."""

    @pytest.fixture
    def driver(self) -> Iterator[DirectoryDriver]:
        """An empty store."""
        with filesystems.ext4(64 << 20) as disk:
            yield DirectoryDriver(disk.path / "store")


@requires("tmpfs")
class TestTmpfs(StoreContract):
    """In memory."""

    @pytest.fixture
    def driver(self) -> Iterator[DirectoryDriver]:
        """An empty store."""
        with filesystems.tmpfs(64 << 20) as disk:
            yield DirectoryDriver(disk.path / "store")


@requires("fuse")
class TestWithoutHardLinks(StoreContract):
    """On a FUSE filesystem that has no hard links."""

    @pytest.fixture
    def driver(self, tmp_path: Path) -> Iterator[DirectoryDriver]:
        """An empty store."""
        with flaky(tmp_path / "backing") as disk:
            disk.set_fault("link", errno=errno.EPERM)
            yield DirectoryDriver(disk.mount / "store")
