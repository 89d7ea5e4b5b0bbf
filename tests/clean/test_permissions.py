"""What this user may not remove is told, and the rest goes; hostile names are removed and shown escaped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachekit.store.denials import deny
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cleaning import MIB, Scene, make_files, outcome
from tests.support.cli import Cli, give
from tests.support.ordinary_user import NOBODY
from tests.support.snapshots import unchanged

pytestmark = requires("tmpfs")


@pytest.fixture
def users(nobody_cli: Cli) -> Iterator[Scene]:
    """A filesystem that an ordinary user owns and cleans; needs `tmpfs` and `unprivileged`."""
    with filesystems.tmpfs(64 * MIB) as mounted:
        mounted.path.chmod(0o755)
        os.chown(mounted.path, NOBODY, NOBODY)
        nobody_cli.home.mkdir(parents=True, exist_ok=True)
        os.chown(nobody_cli.home, NOBODY, NOBODY)
        yield Scene(nobody_cli, mounted.path)


def test_read_only_directories_of_the_user(users: Scene) -> None:
    """Directories without write permission, as Go's module cache has them, go like all others of their owner."""
    unit = make_files(users.root / "units" / "a")
    make_files(unit / "inner" / "deeper")
    give(users.root)
    for folder in (unit / "inner" / "deeper", unit / "inner", unit):
        folder.chmod(0o555)
    users.rules = {"units": {"paths": [f"{users.root}/units/*"]}}
    report = users.report("--free", "1T", code=7)
    assert outcome(report, "units")["result"] == "freed"
    assert os.listdir(users.root / "units") == []


def test_directories_that_their_owner_may_not_read(users: Scene) -> None:
    """Directories without any permission go too if they are the user's own."""
    unit = make_files(users.root / "units" / "a")
    make_files(unit / "inner")
    give(users.root)
    (unit / "inner").chmod(0o000)
    users.rules = {"units": {"paths": [f"{users.root}/units/*"]}}
    report = users.report("--free", "1T", code=7)
    assert outcome(report, "units")["left"] == []
    assert os.listdir(users.root / "units") == []


def test_files_of_root_as_a_user(users: Scene) -> None:
    """What root put into a user's tree stays and is told of, the rest of the tree goes, and exit 7 follows."""
    unit = make_files(users.root / "units" / "a")
    give(users.root)
    roots = make_files(unit / "of-root")
    users.rules = {"units": {"paths": [f"{users.root}/units/*"]}}
    with unchanged(roots):
        report = users.report("--free", "1T", code=7)
    rule = outcome(report, "units")
    assert {item["path"] for item in rule["left"]} == {str(path) for path in roots.iterdir()}
    assert "permi" in rule["left"][0]["reason"]
    assert os.listdir(unit) == ["of-root"]


def test_a_unit_in_a_directory_of_root_as_a_user(users: Scene) -> None:
    """Where a user may not remove names, the rule is blocked with that reason, nothing is lost, and exit 7 follows."""
    make_files(users.root / "units" / "a")
    users.rules = {"units": {"paths": [f"{users.root}/units/*"]}}
    with unchanged(users.root / "units"):
        report = users.report("--free", "1T", code=7)
    rule = outcome(report, "units")
    assert rule["result"] == "blocked"
    assert "permi" in rule["reason"]


def test_a_directory_of_root_that_cannot_be_read(users: Scene) -> None:
    """A tree that a user may not look into is blocked if its age is wanted."""
    closed = make_files(users.root / "units" / "a")
    closed.chmod(0o700)
    os.chown(users.root / "units", NOBODY, NOBODY)
    users.rules = {"units": {"paths": [f"{users.root}/units/*"], "when": {"older": "1s"}}}
    with unchanged(closed):
        rule = outcome(users.report("--free", "1T", code=7), "units")
    assert rule["result"] in {"blocked", "skipped"}


def test_a_rule_for_root_as_a_user(users: Scene) -> None:
    """A rule that only root can carry out is blocked for everybody else, and says so."""
    unit = make_files(users.root / "units" / "a")
    other = make_files(users.root / "others" / "a")
    give(users.root)
    users.rules = {
        "units": {"paths": [f"{users.root}/units/*"], "root": True},
        "others": {"paths": [f"{users.root}/others/*"]},
    }
    done = users.clean("--free", "1T").expect(7)
    assert "needs root" in done.stdout
    assert unit.exists()
    assert not other.exists()


@requires("root")
def test_what_is_marked_immutable(cli: Cli) -> None:
    """A file that even root may not remove stays and is told of."""
    with filesystems.ext4() as mounted:
        scene = Scene(cli, mounted.path)
        unit = make_files(scene.root / "units" / "a")
        scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
        subprocess.run(["chattr", "+i", str(unit / "file-0")], check=True)
        try:
            report = scene.report("--free", "1T", code=7)
        finally:
            subprocess.run(["chattr", "-i", str(unit / "file-0")], check=True)
        [left] = outcome(report, "units")["left"]
        assert left["path"] == str(unit / "file-0")
        assert "immutable" in left["reason"]
        assert os.listdir(unit) == ["file-0"]


@requires("ext4")
def test_a_read_only_filesystem(cli: Cli) -> None:
    """On a filesystem that is mounted read-only the rule is blocked with that reason, and exit 7 follows."""
    with filesystems.ext4() as mounted:
        scene = Scene(cli, mounted.path)
        unit = make_files(scene.root / "units" / "a")
        scene.rules = {"units": {"paths": [f"{scene.root}/units/*"]}}
        mounted.read_only()
        with unchanged(unit):
            rule = outcome(scene.report("--free", "1T", code=7), "units")
        assert rule["result"] == "blocked"
        assert "read-only" in rule["reason"].lower()


HOSTILE = (
    b"new\nline",
    b"\x1b[31mred\x1b[0m",
    b"::error::injected",
    b"not-utf8-\xff\xfe",
    b"-rf",
    b" spaces ",
    b"*",
    b"[a]",
    b"$HOME",
    b"quote'\"`",
    b"tab\tand\rreturn",
    "\u202egnp.exe".encode(),
    b"x" * 255,
)


@pytest.mark.parametrize("ages", [False, True])
def test_hostile_names_go(scene: Scene, ages: bool) -> None:
    """Names with newlines, escape sequences, bytes that are no UTF-8 or signs of a pattern go like all others."""
    units = os.fsencode(scene.root / "units")
    os.mkdir(units)
    for name in HOSTILE:
        os.makedirs(os.path.join(units, name, name))
        make_files(Path(os.fsdecode(os.path.join(units, name, name))), 1, 10)
    outside = make_files(scene.root / "outside")
    when = {"when": {"larger": "1B"}} if ages else {}
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"], **when}}
    with unchanged(outside):
        report = scene.report("--free", "1T", code=7)
    assert outcome(report, "units")["left"] == []
    assert os.listdir(units) == []


def test_hostile_names_are_shown_escaped(scene: Scene) -> None:
    """No name can bring a line, an escape sequence or a workflow command into what people and CI systems read."""
    units = scene.root / "units"
    units.mkdir()
    holding = []
    for name in HOSTILE[:4]:
        path = os.path.join(os.fsencode(units), name)
        Path(os.fsdecode(path)).write_bytes(b"")
        holding.append(open(path, "rb"))  # noqa: SIM115 - closed below
    scene.rules = {"units": {"paths": [f"{units}/*"]}}
    env = {"GITHUB_ACTIONS": "true", "CI": "true", "GITHUB_STEP_SUMMARY": str(scene.root / "summary")}
    try:
        done = scene.clean("--free", "1T", env=env).expect(7)
        again = scene.clean("--json", "--free", "1T").expect(7)
    finally:
        for file in holding:
            file.close()
    text = done.out + done.err + (scene.root / "summary").read_bytes() + again.out
    assert b"\x1b" not in text
    assert not [line for line in text.splitlines() if line.startswith((b"::error::inj", b"line"))]
    done.out.decode("utf-8")
    left = outcome(again.json(), "units")["left"]
    assert len(left) == 4
    assert any("path_b64" in item for item in left)


def test_root_in_the_home_of_a_user(users: Scene, nobody_cli: Cli) -> None:
    """A clean by root with a user's HOME, as sudo -E runs it, leaves nothing there that the user could not use."""
    make_files(users.root / "units" / "a")
    root = Scene(Cli(nobody_cli.home, nobody_cli.cwd), users.root)
    root.rules = {"units": {"paths": [f"{users.root}/units/*"]}}
    assert outcome(root.report("--free", "1T", code=7), "units")["result"] == "freed"
    state = [nobody_cli.home / ".local", *(nobody_cli.home / ".local").rglob("*")]
    assert {path.name for path in state} >= {"cachekit", "clean-ledger.json"}
    assert [path for path in state if path.is_dir() and path.lstat().st_uid != NOBODY] == []
    (nobody_cli.cwd / "tree").mkdir()
    (nobody_cli.cwd / "tree/a").write_text("1")
    give(nobody_cli.cwd)
    nobody_cli("save", "--key", "k", "tree").expect()
    assert "exact hit" in nobody_cli("restore", "--key", "k", "tree").expect().stderr
    assert (nobody_cli.home / ".local/state/cachekit/records").is_dir(), (
        "the user's own notes find room beside"
    )


@requires("unprivileged")
def test_saves_by_root_in_the_home_of_a_user(nobody_cli: Cli) -> None:
    """After a save, a restore and a reserve by root with a user's HOME the user's own tools still find room there."""
    (nobody_cli.cwd / "tree").mkdir()
    (nobody_cli.cwd / "tree/a").write_text("1")
    give(nobody_cli.cwd)
    nobody_cli.home.mkdir()
    give(nobody_cli.home)
    root = Cli(nobody_cli.home, nobody_cli.cwd)
    root("save", "--key", "k", "tree").expect()
    root("restore", "--key", "k", "--in-place", "tree").expect()
    root("disk", "reserve", "1M").expect()
    made = [nobody_cli.home / ".cache", nobody_cli.home / ".local", *(nobody_cli.home / ".local").rglob("*/")]
    assert {path.name for path in made} >= {"state", "cachekit", "locks", "records"}
    assert [path for path in made if path.is_dir() and path.lstat().st_uid != NOBODY] == []
    own = {"CACHEKIT_STORE": str(nobody_cli.home / ".cache/own")}
    nobody_cli("save", "--key", "k", "tree", env=own).expect()
    assert "exact hit" in nobody_cli("restore", "--key", "k", "tree", env=own).expect().stderr


@requires("unprivileged")
def test_the_list_of_reserves_is_not_written_through_a_link(nobody_cli: Cli, tmp_path: Path) -> None:
    """A link that a user puts in the place of the list does not lead root to another's file."""
    precious = tmp_path / "precious"
    precious.write_text("/other/.cachekit-ballast\n")
    state = nobody_cli.home / ".local/state/cachekit"
    state.mkdir(parents=True)
    (state / "ballasts").symlink_to(precious)
    Cli(nobody_cli.home, nobody_cli.cwd)("disk", "reserve", "1M", "--in", str(nobody_cli.cwd)).expect()
    assert precious.read_text() == "/other/.cachekit-ballast\n"
    assert str(nobody_cli.cwd) in (state / "ballasts").read_text()


def test_a_note_of_a_refusal_is_not_made_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a link lies in the note's place no file is made behind it, and the refusal is not noted."""
    monkeypatch.setenv("CACHEKIT_STATE_DIR", str(tmp_path / "state"))
    entry = tmp_path / "entry"
    entry.touch()
    assert deny(bytes(entry))
    (note,) = (tmp_path / "state/denied").iterdir()
    note.unlink()
    note.symlink_to(tmp_path / "elsewhere")
    assert not deny(bytes(entry))
    assert not (tmp_path / "elsewhere").exists()


def test_a_link_where_the_state_would_lie(users: Scene, nobody_cli: Cli, tmp_path: Path) -> None:
    """A user who puts a link into the place gets nothing of root's: no directory behind it is made or given away."""
    (tmp_path / "roots").mkdir(mode=0o700)
    (nobody_cli.home / ".local").mkdir()
    (nobody_cli.home / ".local/state").symlink_to(tmp_path / "roots/absent")
    give(nobody_cli.home / ".local")
    make_files(users.root / "units" / "a")
    root = Scene(Cli(nobody_cli.home, nobody_cli.cwd), users.root)
    root.rules = {"units": {"paths": [f"{users.root}/units/*"]}}
    assert outcome(root.report("--free", "1T", code=7), "units")["result"] == "freed"
    assert (tmp_path / "roots").stat().st_uid == 0
    assert list((tmp_path / "roots").iterdir()) == []
