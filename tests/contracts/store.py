"""What every store has to keep, wherever its entries lie. A store's tests subclass `StoreContract` and give `driver`.

::

    class TestDirectory(StoreContract):
        @pytest.fixture
        def driver(self, tmp_path): ...

The suite speaks to a store through a `Driver`, since stores differ in how an entry gets there and is opened.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import pytest

from cachekit.model import Platform

HERE = Platform("linux", "x86_64", "glibc")
ELSEWHERE = Platform("linux", "aarch64", "musl")


class Driver(Protocol):
    """A store under test. Contents are those of an entry's only file."""

    def put(
        self, key: str, content: bytes, *, platform: Platform = HERE, namespace: str = "", force: bool = False
    ) -> str:
        """Save an entry; "published", or "exists" if another whole one has the key."""

    def get(self, key: str, *, platform: Platform = HERE, namespace: str = "") -> bytes | None:
        """Return the content of exactly this key, everything checked; None for a miss or a refused entry."""

    def newest(self, prefix: str, *, platform: Platform = HERE, namespace: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, newest first."""

    def reading(self, key: str) -> AbstractContextManager[Callable[[], bytes]]:
        """Open an entry; what it gives reads it to its end."""

    def delete(self, key: str) -> bool:
        """Remove an entry; False if there was none."""

    def damage(self, key: str) -> None:
        """Flip a bit of a stored entry."""

    def refused(self, key: str) -> bool:
        """Whether the stored entry is there and refused; it is set aside then."""


class StoreContract:
    """The contract."""

    @pytest.fixture
    def driver(self) -> Driver:
        """The store under test, empty."""
        raise NotImplementedError

    def test_put_and_find(self, driver: Driver) -> None:
        """What was put is found under its key, to the last byte; other keys miss."""
        data = os.urandom(100_000)
        assert driver.get("k-1") is None
        assert driver.put("k-1", data) == "published"
        assert driver.get("k-1") == data
        assert driver.get("k-2") is None

    def test_a_key_is_exact(self, driver: Driver) -> None:
        """A key never finds an entry whose key only begins with it, nor one that looks alike in a file name."""
        driver.put("v1-foo", b"foo")
        driver.put("a/b", b"slash")
        assert driver.get("v1") is None
        assert driver.get("v1-") is None
        assert driver.get("a_b") is None
        assert driver.get("a/b") == b"slash"

    def test_prefixes_find_the_newest_first(self, driver: Driver) -> None:
        """A prefix finds all keys that begin with it, the one saved last first."""
        for number in (2, 3, 1):
            driver.put(f"npm-{number}", b"x")
        driver.put("pip-1", b"x")
        assert driver.newest("npm-") == ["npm-1", "npm-3", "npm-2"]
        assert driver.newest("npm-2") == ["npm-2"]
        assert driver.newest("") == ["pip-1", "npm-1", "npm-3", "npm-2"]
        assert driver.newest("cargo-") == []

    def test_a_key_is_written_once(self, driver: Driver) -> None:
        """A second save of a key leaves the first; a forced one replaces it."""
        driver.put("k-1", b"first")
        assert driver.put("k-1", b"second") == "exists"
        assert driver.get("k-1") == b"first"
        assert driver.put("k-1", b"third", force=True) == "published"
        assert driver.get("k-1") == b"third"
        assert driver.newest("k-") == ["k-1"]

    def test_platforms_do_not_mix(self, driver: Driver) -> None:
        """The same key of two platforms is two entries, and neither finds the other's."""
        driver.put("k-1", b"here", platform=HERE)
        assert driver.get("k-1", platform=ELSEWHERE) is None
        assert driver.newest("k-", platform=ELSEWHERE) == []
        assert driver.put("k-1", b"elsewhere", platform=ELSEWHERE) == "published"
        assert (driver.get("k-1"), driver.get("k-1", platform=ELSEWHERE)) == (b"here", b"elsewhere")

    def test_namespaces_do_not_mix(self, driver: Driver) -> None:
        """The same key of two namespaces is two entries, and neither finds the other's."""
        driver.put("k-1", b"one", namespace="one")
        assert driver.get("k-1", namespace="two") is None
        assert driver.newest("k-", namespace="one/below") == []
        driver.put("k-1", b"two", namespace="two")
        assert driver.get("k-1", namespace="one") == b"one"

    def test_deleted_while_it_is_read(self, driver: Driver) -> None:
        """A reader that has opened an entry reads it to its end although it is deleted or replaced meanwhile."""
        data = os.urandom(3_000_000)
        driver.put("k-1", data)
        with driver.reading("k-1") as rest:
            assert driver.delete("k-1")
            assert driver.get("k-1") is None
            driver.put("k-1", b"new")
            assert rest() == data
        assert driver.get("k-1") == b"new"
        assert driver.delete("k-1")
        assert not driver.delete("k-1")

    def test_two_writers_of_one_key(self, driver: Driver) -> None:
        """Of writers at once exactly one publishes, the others find it there, and it is whole."""
        for turn in range(5):
            codes = together(
                4,
                lambda number, turn=turn: (  # type: ignore[misc]
                    driver.put(f"k-{turn}", bytes([number]) * 50_000) == "published"
                ),
            )
            assert sorted(codes) == [0, 0, 0, 1]
            content = driver.get(f"k-{turn}")
            assert content == bytes([codes.index(1)]) * 50_000

    def test_forced_writers_of_one_key(self, driver: Driver) -> None:
        """Beside writers that replace an entry again and again, a reader always finds one of theirs, whole."""
        driver.put("k-1", b"\0" * 50_000)

        def work(number: int) -> bool:
            if number:
                for _ in range(15):
                    driver.put("k-1", bytes([number]) * 50_000, force=True)
                return True
            found = [driver.get("k-1") for _ in range(30)]
            return all(data is not None and len(set(data)) == 1 and len(data) == 50_000 for data in found)

        assert together(3, work) == [1, 1, 1]

    def test_a_damaged_entry(self, driver: Driver) -> None:
        """A damaged entry is refused and set aside; the others are served, and its key can be saved anew."""
        driver.put("k-1", b"one" * 10_000)
        driver.put("k-2", b"two")
        driver.damage("k-1")
        assert driver.get("k-1") is None
        assert driver.refused("k-1")
        assert driver.newest("k-") == ["k-2"]
        assert driver.get("k-2") == b"two"
        assert driver.put("k-1", b"again") == "published"
        assert driver.get("k-1") == b"again"

    def test_listing_under_change(self, driver: Driver) -> None:
        """While entries come and go, a listing never fails and always has those that stay."""
        stay = [f"stay-{number}" for number in range(5)]
        for key in stay:
            driver.put(key, b"x")

        def work(number: int) -> bool:
            if number:
                for turn in range(20):
                    driver.put(f"go-{number}-{turn}", b"x")
                    driver.delete(f"go-{number}-{turn}")
                return True
            for _ in range(20):
                found = driver.newest("")
                if not set(stay) <= set(found) or len(set(found)) != len(found):
                    return False
            return True

        assert together(3, work) == [1, 1, 1]
        assert sorted(driver.newest("")) == stay


def together(count: int, work: Callable[[int], bool]) -> list[int]:
    """Do something in so many forked children at once; return 1 for each that says True, 0 for False."""
    begin, go = os.pipe()
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.close(go)
                os.read(begin, 1)  # until all are there
                code = int(work(number))
            except BaseException:  # noqa: BLE001 - the parent sees the code, and the report what happened
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(begin)
    os.close(go)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert set(codes) <= {0, 1}, codes
    return codes
