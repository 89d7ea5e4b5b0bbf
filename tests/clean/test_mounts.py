"""What is mounted in, or as, something to be cleaned stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cleaning import Scene, make_files, outcome
from tests.support.snapshots import unchanged

pytestmark = requires("tmpfs", "bind")


@pytest.fixture
def unit(scene: Scene) -> Path:
    """A unit with files beside and in the directory on which something will be mounted, and a rule for it."""
    unit = make_files(scene.root / "units" / "a")
    make_files(unit / "above" / "point")
    make_files(unit / "above" / "beside")
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
    return unit


def all_but_the_mount(unit: Path) -> bool:
    """Whether nothing is left of a unit but the mount point and what is above it."""
    return os.listdir(unit) == ["above"] and os.listdir(unit / "above") == ["point"]


def test_a_bind_mount_in_a_unit_stays(scene: Scene, unit: Path, tmp_path: Path) -> None:
    """What is bind-mounted in a unit stays untouched, the rest of the unit goes, and the report says so."""
    outside = make_files(tmp_path / "outside")
    with filesystems.bind(outside, unit / "above" / "point"):
        with unchanged(outside):
            report = scene.report("--free", "1T", code=7)
        [left] = [item for item in outcome(report, "units")["left"] if item["path"].endswith("/point")]
        assert "mount" in left["reason"]
        assert all_but_the_mount(unit)


def test_a_bind_mount_of_the_same_filesystem_stays(scene: Scene, unit: Path) -> None:
    """A bind mount from elsewhere on the very same filesystem, which no device number tells, stays too."""
    outside = make_files(scene.root / "precious")
    with filesystems.bind(outside, unit / "above" / "point"):
        with unchanged(outside):
            report = scene.report("--free", "1T", code=7)
        assert "mount" in str(outcome(report, "units")["left"])
        assert all_but_the_mount(unit)


def test_a_mounted_file_in_a_unit_stays(scene: Scene, unit: Path, tmp_path: Path) -> None:
    """A file that is bind-mounted on a file in a unit stays, as containers do with resolv.conf."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    with filesystems.bind(outside, unit / "file-0"):
        scene.report("--free", "1T", code=7)
        assert (unit / "file-0").read_bytes() == b"precious"
        assert os.listdir(unit) == ["file-0"]
    assert outside.read_bytes() == b"precious"


def test_a_filesystem_in_a_unit_stays(scene: Scene, unit: Path) -> None:
    """Another filesystem mounted in a unit stays untouched, the rest of the unit goes."""
    with filesystems.tmpfs(at=unit / "above" / "point") as mounted:
        precious = make_files(mounted.path / "precious")
        with unchanged(precious):
            report = scene.report("--free", "1T", code=7)
        assert "mount" in str(outcome(report, "units")["left"])
        assert all_but_the_mount(unit)


@pytest.mark.parametrize("how", ["bind", "tmpfs"])
def test_a_unit_that_is_a_mount_point_is_refused(scene: Scene, unit: Path, tmp_path: Path, how: str) -> None:
    """A unit on which something is mounted is refused as a whole, and its neighbour goes."""
    other = make_files(scene.root / "units" / "other")
    source = make_files(tmp_path / "outside")
    mount = filesystems.bind(source, unit) if how == "bind" else filesystems.tmpfs(at=unit)
    with mount:
        make_files(unit / "precious")
        with unchanged(unit):
            report = scene.report("--free", "1T", code=7)
        [left] = outcome(report, "units")["left"]
        assert left == {"path": str(unit), "reason": "it is a mount point"}
    assert not other.exists()


def test_lost_and_found_stays(scene: Scene, unit: Path) -> None:
    """A lost+found is left alone, as a unit and within one."""
    make_files(scene.root / "units" / "lost+found")
    make_files(unit / "lost+found")
    report = scene.report("--free", "1T", code=7)
    assert "lost+found" in str(outcome(report, "units")["left"])
    assert len(os.listdir(scene.root / "units" / "lost+found")) == 4
    assert os.listdir(unit) == ["lost+found"]


@requires("root")
def test_a_device_node_stays(scene: Scene, unit: Path) -> None:
    """A device node is left alone, as a unit and within one; a FIFO goes."""
    device = os.makedev(1, 3)
    os.mknod(scene.root / "units" / "null", 0o020666, device)
    os.mknod(unit / "null", 0o020666, device)
    os.mkfifo(unit / "fifo")
    report = scene.report("--free", "1T", code=7)
    assert str(outcome(report, "units")["left"]).count("device") == 2
    assert os.listdir(unit) == ["null"]
    assert (scene.root / "units" / "null").is_char_device()
