"""`cachekit disk`: what it says of filesystems, and which directories it names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cleaning import MIB, Scene, make_files
from tests.support.cli import Cli, give
from tests.support.ordinary_user import NOBODY
from tests.support.snapshots import unchanged

pytestmark = requires("tmpfs")


def disk(cli: Cli, *arguments: str | Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run `disk --json` and return the document."""
    document = cli("disk", "--json", *arguments, env=env).expect().json()
    assert isinstance(document, dict)
    return document


def du(path: Path) -> int:
    """What du says: allocated bytes."""
    done = subprocess.run(
        ["du", "-sx", "--block-size=1", str(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[0])


def test_facts_of_a_filesystem(scene: Scene) -> None:
    """Each filesystem is told with its mount, kind, bytes, inodes and share used, as statvfs has them."""
    make_files(scene.root / "a", 4, MIB)
    (fact,) = disk(scene.cli, "--filesystem", scene.root)["filesystems"]
    status = os.statvfs(scene.root)
    assert fact["mount"] == str(scene.root)
    assert fact["kind"] == "tmpfs"
    assert fact["total"] == status.f_blocks * status.f_frsize == 64 * MIB
    assert fact["available"] == status.f_bavail * status.f_frsize == 60 * MIB
    assert fact["used"] == 4 * MIB
    assert fact["percent_used"] == round(100 * 4 / 64, 1)
    assert fact["inodes"] is None
    assert fact["state"] == "ok"


@pytest.mark.parametrize(("used", "state"), [(40, "ok"), (56, "nearly full"), (62, "full")])
def test_state(scene: Scene, used: int, state: str) -> None:
    """A filesystem is nearly full from 85 % used on, and full from 95 %."""
    make_files(scene.root / "a", 1, used * MIB)
    assert disk(scene.cli, "--filesystem", scene.root)["filesystems"][0]["state"] == state
    assert scene.cli("disk", "--filesystem", scene.root).expect().stdout.count(f"used: {state}\n") == 1


def test_state_by_inodes(cli: Cli) -> None:
    """A filesystem whose inodes are used up is full, however many bytes are free."""
    with filesystems.tmpfs(64 * MIB, inodes=100) as mounted:
        make_files(mounted.path / "a", 97, 1)
        (fact,) = disk(cli, "--filesystem", mounted.path)["filesystems"]
        assert fact["inodes"] == 100
        assert fact["inodes_free"] == os.statvfs(mounted.path).f_favail
        assert fact["state"] == "full"
        said = " ".join(cli("disk", "--filesystem", mounted.path).expect().stdout.split())
        assert f"{fact['inodes_free']} of 100 inodes free" in said


def test_consumers_equal_du(scene: Scene) -> None:
    """What directories take is what du says, to the block; hard links count once, and holes not at all."""
    make_files(scene.root / "large" / "inner", 5, 1_500_001)
    make_files(scene.root / "small", 3, 70_000)
    (scene.root / "small" / "twin").hardlink_to(scene.root / "small" / "file-0")
    for name in ("one", "two"):
        (scene.root / name).mkdir()
    (scene.root / "one" / "file").write_bytes(b"x" * MIB)
    (scene.root / "two" / "linked").hardlink_to(scene.root / "one" / "file")
    with (scene.root / "small" / "sparse").open("wb") as file:
        file.truncate(20 * MIB)
    (scene.root / "link").symlink_to("large")
    os.mkfifo(scene.root / "pipe")
    with unchanged(scene.root):
        (fact,) = disk(scene.cli, "--filesystem", scene.root)["filesystems"]
    assert fact["scan"]["size"] == du(scene.root)
    assert fact["scan"]["complete"]
    assert fact["scan"]["unreadable"] == 0
    top = {Path(item["path"]).relative_to(scene.root): item for item in fact["top"]}
    assert top[Path("large/inner")]["size"] == du(scene.root / "large" / "inner")
    assert top[Path("small")]["size"] == du(scene.root / "small")
    assert sum(item["size"] for item in fact["top"]) == fact["scan"]["size"]


def test_consumers_stay_on_the_filesystem(scene: Scene) -> None:
    """What is mounted in it is no part of a filesystem's consumers."""
    make_files(scene.root / "a", 1, MIB)
    below = scene.root / "below"
    with filesystems.tmpfs(at=below):
        make_files(below / "other", 1, 8 * MIB)
        (fact,) = disk(scene.cli, "--filesystem", scene.root)["filesystems"]
    assert fact["scan"]["size"] < 2 * MIB
    assert not [item for item in fact["top"] if "other" in item["path"]]


def test_a_directory_that_is_named_is_looked_into(scene: Scene) -> None:
    """With --filesystem DIR the directories below DIR are named, and only those."""
    make_files(scene.root / "a" / "x", 1, MIB)
    make_files(scene.root / "b", 1, 8 * MIB)
    (fact,) = disk(scene.cli, "--filesystem", scene.root / "a")["filesystems"]
    assert fact["mount"] == str(scene.root)
    assert {item["path"] for item in fact["top"]} <= {f"{scene.root}/a", f"{scene.root}/a/x"}


def test_top(scene: Scene) -> None:
    """--top says how many directories are named, the largest first; 0 looks at none."""
    for number in range(6):
        make_files(scene.root / f"d{number}", 1, (number + 1) * MIB)
    (fact,) = disk(scene.cli, "--filesystem", scene.root, "--top=3")["filesystems"]
    assert [Path(item["path"]).name for item in fact["top"]] == ["d5", "d4", "d3"]
    assert [item["size"] for item in fact["top"]] == [6 * MIB, 5 * MIB, 4 * MIB]
    assert "scan" not in disk(scene.cli, "--filesystem", scene.root, "--top=0")["filesystems"][0]


def test_no_scan(scene: Scene) -> None:
    """--scan-seconds 0 looks into no directory and still tells how full the filesystems are."""
    make_files(scene.root / "a", 1, MIB)
    (fact,) = disk(scene.cli, "--filesystem", scene.root, "--scan-seconds=0")["filesystems"]
    assert "top" not in fact
    assert fact["used"] == MIB
    said = scene.cli("disk", "--filesystem", scene.root, "--scan-seconds=0", "--no-clean").expect().stdout
    assert len([line for line in said.splitlines() if not line.startswith(" ")]) == 1


def test_several_filesystems(scene: Scene) -> None:
    """Each filesystem is shown once, in the order given, whatever the number of places on it."""
    with filesystems.tmpfs() as other:
        places = [other.path, scene.root, scene.root]
        arguments = [part for place in places for part in ("--filesystem", place)]
        facts = disk(scene.cli, *arguments)["filesystems"]
        assert [fact["mount"] for fact in facts] == [str(other.path), str(scene.root)]


def test_default_filesystems(scene: Scene) -> None:
    """Without --filesystem the workspace's and the store's are shown, each with why it matters."""
    workspace = scene.root / "checkout"
    workspace.mkdir()
    with filesystems.tmpfs() as other:
        facts = disk(
            scene.cli,
            "--scan-seconds=0",
            "--store",
            other.path / "store",
            env={"GITHUB_WORKSPACE": str(workspace), "DOCKER_ROOT": str(other.path)},
        )["filesystems"]
        assert [(fact["mount"], fact["why"]) for fact in facts] == [
            (str(scene.root), ["workspace"]),
            (str(other.path), ["store", "docker"]),
        ]
        assert not (other.path / "store").exists()


def test_text(scene: Scene) -> None:
    """The text has 80 columns, a line for each directory, and nothing that a log would take for an order."""
    hostile = os.fsencode(scene.root) + b"/" + b"word " * 20 + b"::error::x\n\xff\033[31m"
    make_files(Path(os.fsdecode(hostile)), 1, 3 * MIB)
    make_files(scene.root / "::warning::w", 1, 2 * MIB)
    done = scene.cli("disk", "--filesystem", scene.root, "--filesystem", Path(os.fsdecode(hostile))).expect()
    again = scene.cli("disk", "--filesystem", Path(os.fsdecode(hostile))).expect()
    for line in (done.out + again.out).split(b"\n"):
        assert not line.lstrip().startswith(b"::"), line
        assert b"\033" not in line
    assert "\n    3.0 MiB         1  " in done.stdout
    short = scene.cli("disk", "--filesystem", scene.root).expect().stdout
    assert not [line for line in short.splitlines() if len(line) > 80 and "/" not in line]
    assert "what cachekit clean could free" in done.stdout
    assert done.stderr == ""


def test_json_of_hostile_names(scene: Scene) -> None:
    """A directory whose name is not UTF-8 comes with its bytes."""
    make_files(Path(os.fsdecode(os.fsencode(scene.root) + b"/\xff")), 1, MIB)
    item = disk(scene.cli, "--filesystem", scene.root)["filesystems"][0]["top"][0]
    assert item["path"].endswith("\\xff")
    assert "path_b64" in item


@requires("unprivileged")
def test_what_cannot_be_read(nobody_cli: Cli) -> None:
    """Directories that an ordinary user may not read are counted and said, and the rest is told."""
    place = nobody_cli.cwd / "place"
    make_files(place / "open", 1, MIB)
    make_files(place / "closed", 1, MIB)
    give(place)
    os.chown(place / "closed", 0, 0)
    (place / "closed").chmod(0o700)
    (fact,) = disk(nobody_cli, "--filesystem", place)["filesystems"]
    assert fact["scan"]["unreadable"] == 1
    assert fact["scan"]["files"] == 1
    assert "1 directory could not be read" in nobody_cli("disk", "--filesystem", place).expect().stdout
    assert nobody_cli.user == NOBODY


def test_what_clean_could_free(scene: Scene) -> None:
    """--clean says for each stage what a clean could free, and changes nothing; without an engine, without Docker."""
    make_files(scene.cli.home / ".cache" / "pip", 1, MIB)
    env = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
    with unchanged(scene.cli.home / ".cache" / "pip"):
        stages = disk(scene.cli, "--filesystem", scene.cli.home, "--scan-seconds=0", "--clean", env=env)[
            "clean"
        ]
    assert [stage["stage"] for stage in stages] == ["pre", "post", "emergency", "cron"]
    assert {stage["plan"] for stage in stages} == {"generic"}
    emergency = dict(next(stage["largest"] for stage in stages if stage["stage"] == "emergency"))
    if shutil.which("pip"):
        assert sum(emergency.values()) >= MIB
    said = scene.cli("disk", "--filesystem", scene.cli.home, "--scan-seconds=0", "--clean", env=env).expect()
    assert "what cachekit clean could free with the plan generic:" in said.stdout
    assert all(len(line) <= 80 for line in said.stdout.splitlines() if "MiB" in line and "/" not in line)
    assert said.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--filesystem=/no/such/place"],
        ["--filesystem="],
        ["--top=-1"],
        ["--top=x"],
        ["--scan-seconds=x"],
        ["nonsense"],
    ],
)
def test_wrong_usage(cli: Cli, arguments: list[str]) -> None:
    """What cannot be meant is exit 2, and with --json one JSON document."""
    cli("disk", *arguments).expect(2)
    assert cli("disk", "--json", *arguments).expect(2).json()["error"]["exit_code"] == 2
