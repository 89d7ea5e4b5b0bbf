"""Entries that would write elsewhere than asked, and what they can make a log or a later step believe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cachekit.errors import Damaged
from cachekit.model import Target
from tests.support.archives import (
    KEY,
    Member,
    directory,
    entry_of,
    file_entry,
    quarantined,
    restore_tree,
    save_tree,
    symlink,
)
from tests.support.cli import Cli
from tests.support.processes import Result
from tests.support.refusals import HONEST, TREE, refuse
from tests.support.snapshots import unchanged
from tests.support.trees import make_tree


@pytest.mark.parametrize(
    "target", [b"..", b"tree/../..", b"/etc", b"", b"./tree", b"tree//x", b"tree/", b"a\0b"]
)
def test_a_target_that_leads_out_of_its_root(place: Path, target: bytes) -> None:
    """A target with `..`, an absolute one or one with an empty part is refused."""
    refuse(place, entry_of([directory(b"tree"), HONEST], [target]).seal(), "target's name")


def test_nested_targets(place: Path) -> None:
    """A target inside another, which two restores would write at once, is refused."""
    members = [TREE, HONEST, directory(b"tree/sub")]
    for targets in ([b"tree", b"tree/sub"], [b"tree", b"tree"], [b".", b"tree"]):
        refuse(place, entry_of(members, targets).seal(), "inside another")


def test_a_target_in_the_place_of_another_root(place: Path) -> None:
    """A target of the root named as the other roots' members are is refused."""
    members = [directory(b".cachekit-home/x"), Member(b".cachekit-home/x/file")]
    for name in (b".cachekit-home/x", b".cachekit-abs"):
        refuse(place, entry_of(members, [name]).seal(), "reserved")


def test_a_member_in_the_place_of_another_root(place: Path) -> None:
    """An entry of the whole root cannot bring members for the home directory."""
    members = [directory(b".cachekit-home"), Member(b".cachekit-home/.bashrc", content=b"evil")]
    refuse(place, entry_of(members, [b"."]).seal(), "reserved")


@pytest.mark.parametrize(
    "name", [b"other", b"tree2/file", b"tre", b".cachekit-home/.bashrc", b".cachekit-abs/x"]
)
def test_a_member_outside_all_targets(place: Path, name: bytes) -> None:
    """A member that no target covers is refused."""
    refuse(place, entry_of([TREE, HONEST, Member(name, content=b"evil")]).seal(), "outside the targets")


def test_a_target_without_a_member(place: Path) -> None:
    """A target that is promised and not there is refused."""
    refuse(place, entry_of([TREE, HONEST], [b"tree", b"two"]).seal(), "a target has no member", Damaged)


@pytest.mark.parametrize("beside", [False, True])
def test_an_entry_that_brings_a_bashrc(cli: Cli, beside: bool) -> None:
    """A target in the home directory is written only if it is named or all are asked for; else exit 8 lists it."""
    store, bashrc = cli.cwd / "store", cli.home / ".bashrc"
    members = [Member(b".cachekit-home/.bashrc", content=b"evil")]
    targets = [Target("home", b".bashrc")]
    if beside:
        members, targets = [TREE, HONEST, *members], [Target("root", b"tree"), *targets]
    path = file_entry(store, entry_of(members, targets).seal())
    command: list[str | Path] = ["restore", "--key", KEY, "--store", store]
    for arguments in ([], ["tree"], ["--replace"], ["--in-place"]):
        result = cli(*command, *arguments).expect(8)
        assert (
            "~/.bashrc" in result.stderr
        )  # as what would be written too, or as what the entry holds instead
        assert not bashrc.exists()
        assert not (cli.cwd / "tree").exists()
    assert path.exists()
    cli(*command, *(["tree"] if beside else []), "~/.bashrc").expect(0)
    assert bashrc.read_bytes() == b"evil"
    bashrc.unlink()
    cli(*command, "--all-targets").expect(0)
    assert bashrc.read_bytes() == b"evil"


def test_an_entry_that_brings_a_file_of_etc(cli: Cli) -> None:
    """An absolute target is written only if it is named or all are asked for; else exit 8 lists it."""
    store, etc = cli.cwd / "store", cli.cwd.parent / f"{cli.cwd.name}-etc"
    victim = bytes(etc / "x")
    members = [TREE, HONEST, Member(b".cachekit-abs" + victim, content=b"evil")]
    file_entry(store, entry_of(members, [Target("root", b"tree"), Target("abs", victim[1:])]).seal())
    command: list[str | Path] = ["restore", "--key", KEY, "--store", store]
    for arguments in ([], ["tree"]):
        assert str(etc / "x") in cli(*command, *arguments).expect(8).stderr
        assert not etc.exists()
    cli(*command, "tree", etc / "x").expect(0)
    assert (etc / "x").read_bytes() == b"evil"


@pytest.mark.parametrize("mode", ["--merge", "--replace", "--in-place"])
def test_an_entry_saved_from_the_root_over_a_checkout_with_git(cli: Cli, mode: str) -> None:
    """An entry of `.` is merged into a checkout, never put in its place: .git and the rest stay."""
    store, checkout = cli.cwd / "store", cli.cwd / "checkout"
    save_tree(store, make_tree(cli.cwd / "tree", {"built": "new", "sub": {"more": "new"}}))
    git: dict[Any, Any] = {"HEAD": "ref: refs/heads/main", "objects": {"pack": {"p": b"x"}}}
    make_tree(checkout, {".git": git, "README": "mine", "built": "old", "sub": {"mine": "mine"}})
    with unchanged(checkout / ".git", checkout / "README", checkout / "sub" / "mine"):
        cli("restore", "--key", KEY, "--store", store, mode, cwd=checkout).expect(0)
    assert (checkout / "built").read_text() == (checkout / "sub" / "more").read_text() == "new"
    assert not [name for name in os.listdir(checkout) if name.startswith(".cachekit")]


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_target_that_became_a_checkout(cli: Cli, kind: str) -> None:
    """A target that holds a .git here (a submodule's is a file) is only merged, with a warning that says why."""
    store = cli.cwd / "store"
    save_tree(store, make_tree(cli.cwd / "saved", {"lib": {"built": "new"}}), "lib")
    git: Any = {"HEAD": "ref: refs/heads/main"} if kind == "directory" else "gitdir: ../.git/modules/lib"
    make_tree(cli.cwd / "lib", {".git": git, "mine": "mine"})
    with unchanged(cli.cwd / "lib" / ".git", cli.cwd / "lib" / "mine"):
        result = cli("restore", "--key", KEY, "--store", store, "--replace").expect(0)
    assert "merged, not replaced" in result.stderr
    assert (cli.cwd / "lib" / "built").read_text() == "new"


def test_two_targets_in_one_place(cli: Cli) -> None:
    """Targets of two roots of which one lies inside the other on this machine are refused: one would undo the other."""
    store = cli.cwd / "store"
    members = [directory(b"job/tree"), Member(b"job/tree/a", content=b"a")]
    members += [directory(b".cachekit-home/job"), Member(b".cachekit-home/job/b", content=b"b")]
    targets = [Target("root", b"job/tree"), Target("home", b"job")]
    file_entry(store, entry_of(members, targets).seal())
    cli.home.mkdir(exist_ok=True)
    (cli.home / "job").mkdir()
    result = cli(
        "restore",
        "--key",
        KEY,
        "--store",
        store,
        "--all-targets",
        "--replace",
        "--lock-timeout",
        "3",
        cwd=cli.home,
    )
    result.expect(8)
    assert os.listdir(cli.home / "job") == []


MASK, OUTPUT = b"\n::add-mask::x", b"\ncache-hit=true\n"


def commands_in(result: Result) -> list[bytes]:
    """Every line of output that a runner would take for an order; the older forms count anywhere in a line."""
    lines = (result.out + b"\n" + result.err).replace(b"\r", b"\n").split(b"\n")
    return [
        line
        for line in lines
        if line.lstrip().startswith((b"::", b"cache-hit=")) or b"##[" in line or b"##vso[" in line
    ]


def outputs(file: Path) -> dict[str, str]:
    """Read GitHub's output file as the runner does; nothing may be between the outputs."""
    found, lines = {}, file.read_text().splitlines()
    while lines:
        name, delimiter = lines.pop(0).split("<<")
        value = []
        while (line := lines.pop(0)) != delimiter:
            value.append(line)
        assert name not in found
        found[name] = "\n".join(value)
    return found


NAMES = [
    MASK,
    OUTPUT,
    b"\r::error::x",
    b"::add-mask::x",
    b"\x1b[2J",
    b"\xff\n::x::",
    b"a##[add-mask]x##vso[task.x]y",
]


def orderly(result: Result) -> Result:
    """Fail on a traceback, a control character, or an order that is not our own annotation."""
    assert "Traceback" not in result.stderr
    assert not {0x1B, 0x0D} & set(result.out + result.err)
    orders = commands_in(result)
    assert all(line.startswith((b"::warning title=", b"::error title=")) for line in orders), orders
    return result


@pytest.mark.parametrize(
    ("attack", "code", "hit"),
    [("whole", 0, True), ("foreign", 8, False), ("lying", 0, False), ("double", 0, False)],
)
def test_names_that_give_orders_to_the_runner(cli: Cli, attack: str, code: int, hit: bool) -> None:
    """Names of targets, members, links and hosts with workflow commands or outputs in them inject nothing anywhere."""
    store, output = cli.cwd / "store", cli.cwd / "output"
    github = {"GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(output)}
    members: list[Member] = []
    for name in NAMES:
        file = Member(name + b"/" + name, content=b"x", digest=bytes(16) if attack == "lying" else None)
        members += [directory(name), file, symlink(name + b"/link", name)]
        members += [file] if attack == "double" else []
    targets: list[bytes | Target] = list(NAMES)
    if attack == "foreign":
        members = [Member(b".cachekit-home/" + name) for name in NAMES]
        targets = [Target("home", name) for name in NAMES]
    entry = entry_of(members, targets)
    entry.facts.host = entry.facts.family = os.fsdecode(b"".join(NAMES))
    path = file_entry(store, entry.seal())
    for command in ("ls", "verify --all", "restore --strict --key attack-1 --json"):
        orderly(cli(*command.split(), "--store", store, env=github))
        output.unlink(missing_ok=True)
        file_entry(store, entry.seal())
    for option in ("--files", "--manifest", "--json"):
        orderly(cli("show", path, option, env=github))
    orderly(cli("restore", "--key", KEY, "--store", store, env=github)).expect(code)
    if output.exists():
        assert outputs(output)["cache-hit"] == str(hit).lower()


def newer(**told: object) -> bytes:
    return entry_of([TREE, HONEST]).seal(told=told)


@pytest.mark.parametrize(
    "data",
    [
        newer(features=["sparse", "teleport"]),
        newer(format=2),
        newer(format="1"),
        newer(format=None),
    ],
    ids=["feature", "format", "text", "none"],
)
def test_an_entry_from_the_future(place: Path, cli: Cli, data: bytes) -> None:
    """An unknown feature or a newer format is unsupported: not restored, but left for who knows it."""
    path = file_entry(cli.cwd / "store", data)
    with unchanged(place):
        report = restore_tree(cli.cwd / "store", place / "root")
    assert (report.status, report.quarantined) == ("unsupported", [])
    assert path.exists()
    assert not quarantined(cli.cwd / "store")
    assert "unsupported" in cli("verify", path).expect(4).stdout
    cli("restore", "--key", KEY, "--store", cli.cwd / "store", cwd=place).expect(0)
    assert path.exists()
