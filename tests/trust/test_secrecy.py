"""The key is in no output, report, traceback, file, archive, command line or child's environment."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.processes import wait_until
from tests.support.signing import OTHER_SECRET, SECRET
from tests.support.trees import make_tree

MARK = b"CACHEKIT-TEST-KEY"


def spellings(secret: str) -> list[bytes]:
    """The key as it could be written: itself, in hex, base64 at each offset, reversed, its plain hashes."""
    raw = secret.encode()
    found = [raw, raw.hex().encode(), raw.hex().upper().encode(), raw[::-1], repr(list(raw)).encode()]
    found += [base64.b64encode(b"x" * shift + raw)[4:-4] for shift in range(3)]
    found += [base64.urlsafe_b64encode(raw), base64.b32encode(raw)]
    for algorithm in ("md5", "sha1", "sha256"):
        digest = hashlib.new(algorithm, raw)
        found += [digest.digest(), digest.hexdigest().encode()]
    return found


def assert_absent(where: str, data: bytes) -> None:
    """Fail if either key is in the data, in any spelling."""
    for secret in (SECRET, OTHER_SECRET):
        for spelling in spellings(secret):
            assert spelling not in data, f"{where} has the key as {spelling!r}"


def files_below(*places: Path) -> list[Path]:
    """All files below some directories."""
    return [Path(top, name) for place in places for top, _, names in os.walk(place) for name in names]


def test_the_search_finds_what_it_looks_for() -> None:
    """The search of these tests fails for every spelling of a key."""
    for spelling in spellings(SECRET):
        with pytest.raises(AssertionError):
            assert_absent("this", b"before" + spelling + b"after")
    with pytest.raises(AssertionError):
        assert_absent("this", base64.b64encode(b"abc" + OTHER_SECRET.encode() + b"xyz"))


COMMANDS = (
    ("save", "--key=k", "t"),
    ("save", "--key=k", "t"),
    ("save", "--key=k", "t", "--force", "--json"),
    ("restore", "--key=k", "t", "--json", "--dotenv=dotenv"),
    ("restore", "--key=none", "--restore-key=un", "--json"),
    ("restore", "--key=k", "--in-place", "t"),
    ("restore", "--key=k", "missing"),
    ("restore", "--key=k", "--trust=nonsense"),
    ("verify", "--all", "--json"),
    ("verify", "unsigned"),
    ("ls", "--json"),
    ("show", "k", "--manifest"),
    ("recover",),
    ("save", "--key=", "t"),
    ("save", "--key=k2", "nothing-here"),
    ("disk", "--json"),
    ("clean", "--plan=./plan.toml", "--stage=pre", "--free=1000T", "--json"),
    ("--help",),
)


@pytest.mark.parametrize("source", ["variable", "file"])
def test_the_key_is_nowhere(cli: Cli, source: str, tmp_path: Path) -> None:
    """After all commands, with --debug, good and failing ones, neither outputs nor files have the key in any form."""
    make_tree(tmp_path, {"t": {"file": b"x" * 5000}})
    seen = tmp_path / "seen"
    (tmp_path / "plan.toml").write_text(plan_that_shows_its_environment(tmp_path, seen))
    cli("save", "--key=unsigned", "t").expect()
    env = {"CACHEKIT_HMAC_KEY": f"{SECRET}\n{OTHER_SECRET}", "GITHUB_ACTIONS": "true"}
    if source == "file":
        keys = tmp_path.parent / f"{tmp_path.name}-keys"
        keys.write_text(f"{SECRET}\n{OTHER_SECRET}\n")
        keys.chmod(0o600)
        env = {"CACHEKIT_HMAC_KEY_FILE": str(keys), "GITHUB_ACTIONS": "true"}
    env |= {"GITHUB_OUTPUT": str(tmp_path / "outputs"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    for command in COMMANDS:
        debug = ("--debug",) if command[0] != "--help" else ()
        done = cli(*command, *debug, env=env)
        assert done.code in {0, 2, 4, 7, 8}, str(done)
        assert_absent(str(done), done.out + done.err)
    assert "signed with key" in cli("verify", "k", env=env).expect().stdout
    for path in files_below(tmp_path, cli.home):
        assert_absent(str(path), path.read_bytes())
    assert b"PATH=" in seen.read_bytes()


def plan_that_shows_its_environment(folder: Path, seen: Path) -> str:
    """A plan whose only rule runs a program that writes down its environment and command line."""
    program = folder / "shows-environment"
    program.write_text(f"#!/bin/sh\n{{ env; cat /proc/$PPID/cmdline; }} >> '{seen}'\n")
    program.chmod(0o755)
    return f"""
format = 1
name = "shows"

[stage.pre]
rules = ["shows"]

[[rule]]
id = "shows"
category = "logs"
command = ["{program}"]
"""


def test_a_clean_in_the_background_has_no_key(cli: Cli, tmp_path: Path) -> None:
    """The process that a clean leaves behind has the key neither in its environment nor in that of what it starts."""
    program = tmp_path / "shows-its-parent"
    program.write_text(
        f"#!/bin/sh\ncd '{tmp_path}'\ncat /proc/$PPID/environ > new && env >> new && mv new seen\n"
    )
    program.chmod(0o755)
    plan = plan_that_shows_its_environment(tmp_path, tmp_path / "unused")
    plan = plan.replace("shows-environment", program.name) + "background = true\n"
    (tmp_path / "plan.toml").write_text(plan)
    env = {"CACHEKIT_HMAC_KEY": SECRET, "PROOF": "yes"}
    cli("clean", "--plan=./plan.toml", "--stage=pre", "--free=1000T", "--background", env=env)
    wait_until((tmp_path / "seen").exists, "the clean in the background has run its rule", 20)
    cli("clean", "--wait", env=env)
    seen = (tmp_path / "seen").read_bytes()
    assert seen.count(b"PROOF=yes") == 2
    assert_absent("the environment", seen)


def test_a_plan_does_not_know_the_key(cli: Cli, tmp_path: Path) -> None:
    """A path of a plan that names the variable of the key is one whose variable is not set."""
    plan = plan_that_shows_its_environment(tmp_path, tmp_path / "unused")
    plan = plan[: plan.index("command")] + 'paths = ["$CACHEKIT_HMAC_KEY/x"]\n'
    (tmp_path / "plan.toml").write_text(plan)
    make_tree(tmp_path / "named-like-the-key", {"x": {"file": b"x"}})
    env = {"CACHEKIT_HMAC_KEY": str(tmp_path / "named-like-the-key")}
    done = cli("clean", "--plan=./plan.toml", "--stage=pre", "--free=1000T", "--json", env=env).expect(7)
    assert (tmp_path / "named-like-the-key" / "x").exists()
    assert b"CACHEKIT_HMAC_KEY is not set" in done.out


def test_git_gets_no_key(cli: Cli, tmp_path: Path) -> None:
    """Git, which runs what a repository's configuration names, is started without the key."""
    make_tree(tmp_path / "work", {"build": {"file": b"x"}, ".gitignore": b"build\n"})
    subprocess.run(["git", "init", "-q", tmp_path / "work"], check=True)
    (tmp_path / "bin").mkdir()
    git = tmp_path / "bin" / "git"
    git.write_text(f"#!/bin/sh\nenv >> '{tmp_path}/seen'\nexec {shutil.which('git')} \"$@\"\n")
    git.chmod(0o755)
    (tmp_path / "work" / "plan.toml").write_text(
        """
format = 1
name = "builds"

[stage.pre]
rules = ["builds"]

[[rule]]
id = "builds"
category = "build-cache"
paths = ["$WORKSPACE/build"]
when = { git-ignored = true }
"""
    )
    env = {"CACHEKIT_HMAC_KEY": SECRET, "PROOF": "yes", "PATH": f"{git.parent}:{os.environ['PATH']}"}
    clean = ("clean", "--plan=./plan.toml", "--stage=pre", "--free=1000T", "--dry-run")
    cli(*clean, env=env, cwd=tmp_path / "work").expect(0, 7)
    assert b"PROOF=yes" in (tmp_path / "seen").read_bytes()
    assert_absent("git's environment", (tmp_path / "seen").read_bytes())


@pytest.mark.parametrize("text", [SECRET[:15], SECRET + "\0x", SECRET + "\x1b[31m", f"{SECRET}\nshort"])
def test_a_refused_key_is_not_shown(cli: Cli, text: str) -> None:
    """A key that is refused is not shown either, nor with --debug."""
    if "\0" in text:
        (cli.cwd / "keys").write_text(text)
        (cli.cwd / "keys").chmod(0o600)
        env = {"CACHEKIT_HMAC_KEY_FILE": str(cli.cwd / "keys")}
    else:
        env = {"CACHEKIT_HMAC_KEY": text}
    done = cli("ls", "--debug", "--json", env=env)
    assert done.code == 2
    assert text[:15].encode() not in done.out + done.err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_key_is_on_no_command_line(cli: Cli, tmp_path: Path) -> None:
    """While a save with a key runs, no process of it has the key among its arguments."""
    make_tree(tmp_path, {"t": {f"f{number}": os.urandom(300_000) for number in range(40)}})
    env = {"CACHEKIT_HMAC_KEY": SECRET, "CACHEKIT_WORKERS": "2"}
    seen = 0
    with cli.start("save", "--key=k", "t", "--level=19", env=env) as running:
        while running.alive:
            for entry in os.listdir("/proc"):
                if entry.isdigit():
                    try:
                        line = Path("/proc", entry, "cmdline").read_bytes()
                    except OSError:
                        continue
                    seen += b"cachekit\0save" in line
                    assert_absent(f"process {entry}", line)
        assert running.wait(50).code == 0
    assert seen
