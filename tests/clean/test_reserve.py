"""The reserve: `cachekit disk reserve` and `cachekit disk release`, on real filesystems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachekit.disk.reserve import NAME, ballasts
from tests.support import filesystems
from tests.support.capabilities import need, requires
from tests.support.cleaning import MIB, Scene, outcome
from tests.support.cli import Cli
from tests.support.filling import free_bytes
from tests.support.snapshots import unchanged


def reserve(cli: Cli, amount: str, place: Path, code: int = 0) -> dict[str, object]:
    """Reserve so much on the filesystem of `place`; return the JSON document."""
    document = cli("disk", "reserve", amount, "--in", place, "--json").expect(code).json()
    assert isinstance(document, dict)
    return document


@pytest.mark.fs
@pytest.mark.parametrize("kind", filesystems.KINDS)
def test_reserve_and_release(cli: Cli, kind: str) -> None:
    """A reserve takes real room, which statvfs shows, and releasing gives all of it back."""
    need(kind)
    with filesystems.of_kind(kind) as mounted:
        before = free_bytes(mounted.path)
        facts = reserve(cli, "16M", mounted.path)
        taken = before - free_bytes(mounted.path)
        assert 16 * MIB <= taken <= 17 * MIB
        assert facts == {
            "path": str(mounted.path / NAME),
            "size": os.lstat(mounted.path / NAME).st_blocks * 512,
        }
        assert os.lstat(mounted.path / NAME).st_size == 16 * MIB
        assert os.lstat(mounted.path / NAME).st_mode & 0o777 == 0o600
        released = cli("disk", "release", "--json").expect().json()
        assert released == {"freed": facts["size"], "reserves": [str(mounted.path / NAME)]}
        assert abs(before - free_bytes(mounted.path)) <= MIB
        assert not (mounted.path / NAME).exists()
        assert "there is no reserve" in cli("disk", "release").expect().stderr


@pytest.mark.fs
@pytest.mark.parametrize("kind", filesystems.KINDS)
def test_reserve_that_does_not_fit(cli: Cli, kind: str) -> None:
    """A reserve that does not fit is exit 5 with need, have and short by; no file is left, and no byte taken."""
    need(kind)
    with filesystems.of_kind(kind) as mounted:
        mounted.fill(20 * MIB)
        before = free_bytes(mounted.path)
        facts = reserve(cli, "64M", mounted.path, 5)["error"]
        assert isinstance(facts, dict)
        assert facts["need"] == 64 * MIB
        assert facts["have"] <= before + MIB
        assert facts["short_by"] == facts["need"] - facts["have"]
        assert not (mounted.path / NAME).exists()
        assert abs(before - free_bytes(mounted.path)) <= MIB


@requires("tmpfs")
def test_reserve_replaces(scene: Scene) -> None:
    """Reserving again replaces the reserve, larger or smaller, and 0 removes it."""
    for amount, size in (("8M", 8), ("20M", 20), ("4M", 4), ("40M", 40)):
        reserve(scene.cli, amount, scene.root)
        assert free_bytes(scene.root) == (64 - size) * MIB
    facts = reserve(scene.cli, "0", scene.root)
    assert facts["size"] == 0
    assert free_bytes(scene.root) == 64 * MIB
    assert list(scene.root.iterdir()) == []
    assert "there is no reserve" in scene.cli("disk", "release").expect().stderr


@requires("tmpfs")
def test_reserve_by_default_in_the_state_directory(scene: Scene) -> None:
    """Without --in the reserve lies in the state directory, and it is shown by `disk`."""
    env = {"CACHEKIT_STATE_DIR": str(scene.root / "state")}
    said = scene.cli("disk", "reserve", "8M", env=env).expect().stderr
    assert f"8.0 MiB reserved in {scene.root}/state/{NAME}" in said
    shown = scene.cli("disk", "--filesystem", scene.root, "--json", env=env).expect().json()
    assert shown["reserves"] == [{"path": f"{scene.root}/state/{NAME}", "size": 8 * MIB}]
    text = scene.cli("disk", "--filesystem", scene.root, env=env).expect().stdout
    assert f"reserve: 8.0 MiB in {scene.root}/state/{NAME}" in text
    assert scene.cli("disk", "release", "--json", env=env).expect().json()["freed"] == 8 * MIB


@requires("tmpfs")
def test_several_reserves(scene: Scene) -> None:
    """Reserves on several filesystems are all known, and all released."""
    with filesystems.tmpfs() as other:
        reserve(scene.cli, "4M", scene.root)
        reserve(scene.cli, "6M", other.path / "below" / "deep")
        assert scene.cli("disk", "release", "--json").expect().json()["freed"] == 10 * MIB
        assert free_bytes(scene.root) == 64 * MIB
        assert free_bytes(other.path) == 32 * MIB


def foreign(root: Path, kind: str) -> Path:
    """Put something that is no reserve where one would be; return what must stay as it is."""
    precious = root / "precious"
    precious.mkdir()
    (precious / "file").write_bytes(b"x" * 5000)
    there = root / NAME
    if kind == "symlink":
        there.symlink_to(precious / "file")
    elif kind == "dangling":
        there.symlink_to(root / "nowhere")
    elif kind == "hard link":
        there.hardlink_to(precious / "file")
    elif kind == "directory":
        there.mkdir()
    else:
        os.mkfifo(there)
    return precious


@requires("tmpfs", "hard_links")
@pytest.mark.parametrize("kind", ["symlink", "dangling", "hard link", "directory", "fifo"])
def test_what_is_no_reserve_is_left_alone(scene: Scene, kind: str) -> None:
    """Something else of the reserve's name is neither followed, nor cut, replaced, removed or shown."""
    foreign(scene.root, kind)
    with unchanged(scene.root):
        for amount in ("4M", "0"):
            done = scene.cli("disk", "reserve", amount, "--in", scene.root).expect(8)
            assert "something else" in done.stderr
        assert ballasts([str(scene.root)]) == []
        assert scene.cli("disk", "--json", "--filesystem", scene.root).expect().json()["reserves"] == []
        scene.cli("disk", "release", cwd=scene.root, env={"GITHUB_WORKSPACE": str(scene.root)}).expect()
        scene.rules = {"none": {"paths": [f"{scene.root}/nothing"]}}
        scene.clean("--stage=emergency").expect(7)


@requires("tmpfs", "unprivileged")
def test_reserve_of_somebody_else(nobody_cli: Cli) -> None:
    """A reserve of another ordinary user is not taken for ours: they may have any file of that name."""
    place = nobody_cli.cwd / "place"
    place.mkdir(mode=0o777)
    (place / NAME).write_bytes(b"x")
    os.chown(place / NAME, 1234, 1234)
    place.chmod(0o777)
    with unchanged(place):
        nobody_cli("disk", "reserve", "1M", "--in", place).expect(8)


@requires("tmpfs", "unprivileged")
def test_reserve_where_one_may_not(nobody_cli: Cli, open_path: Path) -> None:
    """A reserve where the user may not write is exit 8 with the place and what to do."""
    place = open_path / "roots"
    place.mkdir(mode=0o755)
    done = nobody_cli("disk", "reserve", "1M", "--in", place).expect(8)
    assert "Permission denied" in done.stderr
    assert "--in" in done.stderr


@pytest.mark.parametrize("amount", ["-1", "lots", "", "5 bananas"])
def test_amounts_that_make_no_sense(cli: Cli, amount: str) -> None:
    """What is no size is wrong usage, and nothing is made."""
    cli("disk", "reserve", "--in", cli.cwd, "--", amount).expect(2)
    assert list(cli.cwd.iterdir()) == []


@requires("tmpfs")
def test_emergency_uses_the_reserve(scene: Scene) -> None:
    """An emergency gives the reserve back before it removes anything; a dry run says so and keeps it."""
    reserve(scene.cli, "16M", scene.root)
    (scene.root / "kept").write_bytes(b"x" * MIB)
    scene.rules = {"a": {"paths": [f"{scene.root}/kept"]}}
    with unchanged(scene.root):
        report = scene.report("--stage=emergency", "--free=60M", "--dry-run")
    assert outcome(report, "ballast")["result"] == "would-free"
    assert outcome(report, "ballast")["expected"] == 16 * MIB
    assert outcome(report, "a")["result"] == "not-needed"
    report = scene.report("--stage=emergency", "--free=60M")
    assert outcome(report, "ballast")["freed"] == 16 * MIB
    assert (scene.root / "kept").exists()


@requires("tmpfs")
def test_other_stages_keep_the_reserve(scene: Scene) -> None:
    """No other stage than the emergency touches the reserve."""
    reserve(scene.cli, "16M", scene.root)
    scene.rules = {"a": {"paths": [f"{scene.root}/nothing"]}}
    for stage in ("pre", "post", "cron"):
        with unchanged(scene.root):
            scene.report(f"--stage={stage}", code=7)
