"""Room for a save: `clean --for-save` before it, `save --make-room` in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import filesystems
from tests.support.capabilities import need
from tests.support.cleaning import MIB, Scene, make_files, outcome
from tests.support.cli import Cli
from tests.support.filling import FILLER, fill, free_bytes
from tests.support.snapshots import assert_same_tree, snapshot, unchanged


@pytest.fixture(params=["tmpfs", "ext4", "btrfs"])
def full(request: pytest.FixtureRequest, cli: Cli) -> Iterator[Scene]:
    """A full filesystem with the store on it, and three rules that free 6 MiB each; what is saved lies elsewhere."""
    kind = request.param
    need(kind)
    with filesystems.ext4(64 * MIB) if kind == "ext4" else filesystems.of_kind(kind) as mounted:
        scene = Scene(cli, mounted.path)
        make_files(cli.cwd / "wanted", 4, 2 * MIB)
        (mounted.path / "store").mkdir()
        for number, name in enumerate("abc"):
            make_files(mounted.path / name, 3, 2 * MIB)
            scene.rules[name] = {
                "paths": [f"{mounted.path}/{name}"],
                "expect": {"size": f"{900 - 100 * number}M", "seconds": 1},
            }
        mounted.fill(2 * MIB)
        yield scene


def save(scene: Scene, *arguments: str | Path, code: int = 0) -> str:
    """Save the wanted files into the store on the full filesystem; return what was said on stderr."""
    base: list[str | Path] = ["save", "--key=k-1", "--store", scene.root / "store", "--plan", scene.plan]
    return scene.cli(*base, *arguments, "wanted").expect(code).stderr


def left(scene: Scene) -> list[str]:
    """The names of the directories that are left of those that rules remove."""
    return [name for name in "abc" if (scene.root / name).exists()]


@pytest.mark.fs
def test_without_make_room(full: Scene) -> None:
    """Without --make-room a save that does not fit is exit 5, says how room can be made, and cleans nothing."""
    with unchanged(full.root / "a", full.root / "b"):
        said = save(full, code=5)
    assert "short by" in said or "is full" in said  # btrfs takes nothing more with 2 MiB free


@pytest.mark.fs
def test_make_room(full: Scene) -> None:
    """With --make-room exactly as many rules as are necessary are carried out, and the save succeeds."""
    before = snapshot(full.cli.cwd / "wanted")
    said = save(full, "--make-room")
    # 8 MiB that do not compress, with 2 MiB free: 6 MiB and a little more, so two rules of three.
    assert left(full) == ["c"]
    assert "made room: freed" in said
    assert "saved k-1" in said
    (full.cli.cwd / "wanted").rename(full.cli.cwd / "old")
    full.cli("restore", "--key=k-1", "--store", full.root / "store").expect()
    assert_same_tree(before, full.cli.cwd / "wanted")


@pytest.mark.fs
def test_make_room_where_nothing_is_free(full: Scene) -> None:
    """On a disk without a single free block, on which the store cannot even be made, --make-room saves all the same."""
    fill(full.root, 0)
    save(full, "--make-room")
    assert len(list((full.root / "store/v1/default/entries").iterdir())) == 1


@pytest.mark.fs
def test_make_room_that_is_not_needed(full: Scene) -> None:
    """With room enough --make-room cleans nothing."""
    (full.root / FILLER).unlink()
    save(full, "--make-room")
    assert left(full) == ["a", "b", "c"]


@pytest.mark.fs
def test_make_room_that_cannot_make_enough(full: Scene) -> None:
    """When cleaning does not free enough, the save is exit 5 with need, have and short by, and publishes nothing."""
    make_files(full.cli.cwd / "wanted", 4, 8 * MIB)
    with unchanged(full.cli.cwd / "wanted"):
        done = full.cli(
            "save",
            "--key=k-1",
            "--json",
            "--make-room",
            "--store",
            full.root / "store",
            "--plan",
            full.plan,
            "wanted",
        ).expect(5)
    facts = done.json()["error"]
    assert facts["need"] > 32 * MIB
    assert facts["short_by"] == facts["need"] - facts["have"]
    assert 18 * MIB <= facts["have"] <= 21 * MIB
    assert left(full) == []
    assert list((full.root / "store/v1/default/entries").iterdir()) == []
    assert list((full.root / "store/v1/default/tmp").iterdir()) == []
    full.cli("restore", "--key=k-1", "--store", full.root / "store", "--fail-on-miss").expect(3)


@pytest.mark.fs
def test_make_room_keeps_min_free(full: Scene) -> None:
    """--min-free counts too: what must stay free besides is made as well."""
    save(full, "--make-room", "--min-free=6M")
    assert left(full) == []
    assert free_bytes(full.root) >= 5 * MIB


def scene_with_wanted(scene: Scene) -> Path:
    """Put what is to be saved on the filesystem itself, with rules that name it, its parent and something in it."""
    wanted = make_files(scene.root / "job" / "wanted" / "deep", 4, MIB).parent
    scene.rules = {
        "itself": {"paths": [str(wanted)]},
        "parent": {"paths": [f"{scene.root}/job"]},
        "inside": {"paths": [f"{wanted}/*/*"]},
        "everything": {"paths": [f"{scene.root}/**/file-*"]},
        "other": {"paths": [f"{scene.root}/other"], "expect": {"size": "1K", "seconds": 1}},
    }
    make_files(scene.root / "other", 4, 2 * MIB)
    return wanted


def test_for_save_never_touches_what_is_to_be_saved(scene: Scene) -> None:
    """Rules that name what is to be saved, what contains it or what is in it do not touch it, and say why."""
    wanted = scene_with_wanted(scene)
    with unchanged(wanted):
        report = scene.report("--stage=post", "--free=1P", "--for-save", wanted, code=7)
    for name in ("itself", "parent", "inside"):
        assert outcome(report, name)["result"] == "blocked"
        assert "what is to be saved" in outcome(report, name)["reason"]
    assert not list((scene.root / "other").glob("file-*"))


def test_make_room_never_touches_what_is_to_be_saved(scene: Scene) -> None:
    """A save that makes room does not remove what it is about to save, nor a file in it, whatever rules name."""
    wanted = scene_with_wanted(scene)
    make_files(scene.root / "filler", 1, 50 * MIB)
    store, saved = scene.root / "store", snapshot(wanted)
    arguments: list[str | Path] = ["--make-room", "--plan", scene.plan, "--store", store, "--min-free=60M"]
    with unchanged(wanted):
        scene.cli("save", "--key=k", *arguments, wanted).expect(5)
    assert not list((scene.root / "other").glob("file-*"))
    scene.cli("save", "--key=k", *arguments[:-1], wanted).expect()
    assert_same_tree(saved, wanted)


@pytest.mark.parametrize("written", ["relative", "root", "glob", "symlink", "file"])
def test_for_save_however_it_is_written(scene: Scene, written: str) -> None:
    """What is to be saved is kept by whatever name it is given: relative, below --root, a glob, through a link."""
    wanted = scene_with_wanted(scene)
    arguments: list[str | Path] = ["--for-save", "wanted"]
    cwd = wanted.parent
    kept = wanted
    if written == "root":
        arguments += ["--root", wanted.parent]
        cwd = scene.cli.cwd
    elif written == "glob":
        arguments = ["--for-save", "wan*"]
    elif written == "symlink":
        cwd = scene.cli.cwd
        (cwd / "link").symlink_to(wanted.parent)
        arguments = ["--for-save", str(cwd / "link" / "wanted")]
    elif written == "file":
        arguments = ["--for-save", "wanted/deep/file-2"]
        kept = wanted / "deep" / "file-2"
    with unchanged(kept):
        scene.cli(*scene.arguments("--stage=post", "--free=1P", *arguments), cwd=cwd).expect(7)
    assert kept.exists()


def test_for_save_is_the_goal(scene: Scene) -> None:
    """The goal of --for-save is what saving those paths takes in the store, without the plan's own goal."""
    make_files(scene.cli.cwd / "wanted", 4, 2 * MIB)
    for name in "ab":
        make_files(scene.root / name, 1, 6 * MIB)
        scene.rules[name] = {"paths": [f"{scene.root}/{name}"], "expect": {"size": "9M", "seconds": 1}}
    make_files(scene.root / "filler", 1, 49 * MIB)
    report = scene.report("--stage=post", "--for-save=wanted", "--store", scene.root / "store")
    need = next(item["need"] for item in report["filesystems"] if item["mount"] == str(scene.root))
    assert 8 * MIB < need < 8.2 * MIB
    assert report["goal"] == f"{need / MIB:.1f} MiB free for the save"
    assert [(scene.root / name).exists() for name in "ab"] == [False, True]
    assert scene.report("--stage=post", "--for-save=wanted", "--store", scene.root / "store")["already_met"]


def test_for_save_and_free(scene: Scene) -> None:
    """--for-save and --free both hold: the larger of the two is what must be free."""
    make_files(scene.cli.cwd / "wanted", 1, MIB)
    make_files(scene.root / "a", 1, 6 * MIB)
    scene.rules["a"] = {"paths": [f"{scene.root}/a"]}
    both = ["--for-save=wanted", "--store", str(scene.root / "store")]
    assert scene.report(*both, "--free=2K")["already_met"]
    report = scene.report(*both, "--free=64M", code=0)
    assert "64 MiB free and" in report["goal"]
    assert not (scene.root / "a").exists()


def test_for_save_judges_by_the_last_entry(scene: Scene) -> None:
    """With --key the family's last entry says how well it compresses, so less room is asked for."""
    folder = scene.cli.cwd / "wanted"
    folder.mkdir()
    (folder / "zeros").write_bytes(bytes(8 * MIB))
    store = scene.root / "store"
    scene.rules["a"] = {"paths": [f"{scene.root}/a"]}
    scene.cli("save", "--key=node-1", "--store", store, "wanted").expect()

    def asked(*more: str) -> int:
        report = scene.report("--dry-run", "--for-save=wanted", "--store", store, *more)
        return max(int(item["need"]) for item in report["filesystems"])

    assert asked() > 8 * MIB
    assert asked("--key=node-2") < MIB
    assert asked("--key=other-2") > 8 * MIB


def test_for_save_of_nothing(scene: Scene) -> None:
    """A path that matches nothing needs nothing: the cache may not have been made."""
    make_files(scene.root / "a", 1, MIB)
    scene.rules["a"] = {"paths": [f"{scene.root}/a"]}
    with unchanged(scene.root / "a"):
        assert scene.report("--for-save=nothing", "--store", scene.root / "store")["already_met"]


def test_for_save_of_a_store_elsewhere(scene: Scene) -> None:
    """The room is made where the store is, not where the paths lie."""
    wanted = make_files(scene.root / "wanted", 1, 5 * MIB)
    make_files(scene.root / "a", 1, 56 * MIB)
    scene.rules["a"] = {"paths": [f"{scene.root}/a"]}
    with filesystems.tmpfs() as other, unchanged(scene.root):
        report = scene.report("--for-save", wanted, "--store", other.path / "store")
    assert report["already_met"]
    assert [item["need"] > 0 for item in report["filesystems"]] == [False, True]


@pytest.mark.parametrize("command", ["clean", "save"])
def test_a_plan_that_is_wrong(scene: Scene, command: str) -> None:
    """A wrong plan is told before anything is cleaned; what is to be saved stays."""
    folder = make_files(scene.cli.cwd / "wanted", 1, 5 * MIB)
    make_files(scene.root / "filler", 1, 60 * MIB)
    bad = scene.cli.home / "bad.toml"
    bad.parent.mkdir(exist_ok=True)
    bad.write_text("format = 1\nname = 7\n")
    arguments = ["--plan", str(bad), "--store", str(scene.root / "store")]
    more = ["--for-save", "wanted"] if command == "clean" else ["--key=k", "--make-room", "wanted"]
    with unchanged(folder, scene.root / "filler"):
        assert f"{bad}:" in scene.cli(command, *arguments, *more).expect(2).stderr


def test_names_that_are_no_text(scene: Scene) -> None:
    """What is to be saved may have any name, newlines and bytes that are no UTF-8 among them."""
    name = os.fsdecode(b"new\nline\xff [x]*")
    wanted = make_files(scene.root / name, 1, MIB)
    scene.rules["a"] = {"paths": [f"{scene.root}/new*"]}
    with unchanged(wanted):
        escaped = name.replace("[", "[[]").replace("*", "[*]")
        scene.report("--free=1P", "--for-save", wanted.parent / escaped, code=7)
