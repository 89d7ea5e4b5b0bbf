"""Whether there is room for images: needs by filesystem, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachekit.engine.objects import Info
from cachekit.errors import NoSpace
from cachekit.images import room
from cachekit.images.room import Need, require_room, room_to_load, room_to_save
from cachekit.system.space import FreeSpace


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """Directories, to be filled: the filesystem of each, and what that has free; any other is not there."""
    known: dict[str, tuple[int, int]] = {}

    def found(path: str) -> tuple[int, int]:
        try:
            return known[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    monkeypatch.setattr(room, "pool_of", lambda path: found(path.decode())[0])
    monkeypatch.setattr(room, "free_space", lambda path: FreeSpace(found(path)[1], None, 4096, 1))
    return known


def test_to_the_byte(disks: dict[str, tuple[int, int]]) -> None:
    """What just fits, fits; one byte more does not, and how many are missing is told."""
    disks["/data"] = (1, 1000)
    require_room([Need("/data", 1000, "a copy")])
    require_room([Need("/data", 900, "a copy")], min_free=100)
    with pytest.raises(NoSpace, match="at /data: need 901 B") as caught:
        require_room([Need("/data", 901, "a copy")], min_free=100)
    assert caught.value.path == "/data"
    assert caught.value.fields == {
        "need": 901,
        "have": 1000,
        "short_by": 1,
        "min_free": 100,
        "unit": "bytes",
    }


def test_needs_of_one_filesystem_are_added(disks: dict[str, tuple[int, int]]) -> None:
    """Two needs that fit one by one, but not together, are refused together; each is told."""
    disks |= {"/data": (1, 1000), "/var/tmp": (1, 1000)}
    needs = [Need("/data", 500, "the image"), Need("/var/tmp", 500, "the copy")]
    require_room(needs)
    with pytest.raises(NoSpace, match=r"the image 500 B, the copy 501 B.*short by 1 B"):
        require_room([needs[0], Need("/var/tmp", 501, "the copy")])


def test_each_filesystem_by_itself(disks: dict[str, tuple[int, int]]) -> None:
    """Needs of different filesystems are not added, and the second one may be the one that is short."""
    disks |= {"/data": (1, 1000), "/var/tmp": (2, 700)}
    require_room([Need("/data", 1000, "the image"), Need("/var/tmp", 700, "the copy")])
    with pytest.raises(NoSpace, match="at /var/tmp"):
        require_room([Need("/data", 1000, "the image"), Need("/var/tmp", 701, "the copy")])


def test_a_place_that_is_not_here(disks: dict[str, tuple[int, int]]) -> None:
    """A directory of another machine cannot be looked at and is left out; the others are looked at."""
    disks["/data"] = (1, 10)
    away = Need("/away", 1 << 60, "the image")
    require_room([away])
    with pytest.raises(NoSpace, match="at /data"):
        require_room([away, Need("/data", 11, "the copy")])


def test_a_place_that_goes_away(disks: dict[str, tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one that is gone when its room is asked for."""
    disks["/data"] = (2, 10)
    monkeypatch.setattr(room, "pool_of", {b"/away": 1, b"/data": 2}.__getitem__)
    with pytest.raises(NoSpace, match="at /data"):
        require_room([Need("/away", 1 << 60, "the image"), Need("/data", 11, "the copy")])


def test_a_real_directory(tmp_path: Path) -> None:
    """A directory of this machine has some room, and not all that there could be."""
    require_room([Need(str(tmp_path), 1, "a byte")])
    with pytest.raises(NoSpace):
        require_room([Need(str(tmp_path), 1 << 62, "everything")])


@pytest.mark.parametrize("podman", [False, True])
def test_an_engine_that_tells_no_root(*, podman: bool) -> None:
    """Where the data root is not known only Podman's copies can be looked for; of several roots the first counts."""
    unknown = Info("x", (), "overlay2", podman=podman)
    copies = ["/var/tmp"] if podman else []
    assert [need.path for need in room_to_save(unknown, 10)] == copies
    assert [need.path for need in room_to_load(unknown, 10)] == copies
    known = Info("x", ("/data", "/more"), "overlay2", podman=podman)
    assert [need.path for need in room_to_load(known, 10)] == [*copies, "/data"]
