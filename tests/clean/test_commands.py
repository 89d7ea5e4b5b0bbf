"""Rules that run a program: its time, its output, what it empties, and what it may not touch."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cachekit.system.process import run_limited
from tests.support.capabilities import requires
from tests.support.cleaning import MIB, Scene, make_files, outcome
from tests.support.cli import Cli
from tests.support.processes import wait_until
from tests.support.snapshots import unchanged

pytestmark = requires("tmpfs")


def script(scene: Scene, text: str) -> str:
    """Make an executable shell script outside of the filesystem; return its path."""
    path = scene.cli.home / "script"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def run(
    scene: Scene, *command: str, code: int = 7, timeout: str = "30s", patience: float = 0, **rule: object
) -> dict[str, object]:
    """Carry out one rule with this command and return its report."""
    scene.rules["it"] = {"command": list(command), "timeout": timeout, **rule}
    return outcome(scene.report(f"--lock-timeout={patience}", code=code), "it")


def test_freed_by_statvfs(scene: Scene) -> None:
    """What a program freed is what the filesystem says, and what it took is told in seconds and a rate."""
    folder = make_files(scene.root / "cache", 4, MIB)
    rule = run(scene, "rm", "-rf", str(folder), frees=[str(folder)])
    assert rule["result"] == "freed"
    assert rule["freed"] == 4 * MIB
    assert rule["removed"] is None
    assert isinstance(rule["seconds"], float)


def test_freed_nothing(scene: Scene) -> None:
    """A program that ran well and freed nothing is stale, not freed."""
    rule = run(scene, "true")
    assert rule["result"] == "stale"
    assert rule["reason"] == "it ran, and nothing became free"


def test_exit_code_and_last_line(scene: Scene) -> None:
    """A program that fails is reported with its exit code and the last line that it wrote, on whichever stream."""
    rule = run(scene, script(scene, "echo first; echo the reason >&2; echo; exit 4"))
    assert rule["result"] == "failed"
    assert rule["reason"] == "exit code 4: the reason"


def test_killed_by_a_signal(scene: Scene) -> None:
    """A program that a signal ends is reported as failed."""
    rule = run(scene, script(scene, "kill -9 $$"))
    assert rule["result"] == "failed"
    assert rule["reason"] == "exit code -9"


def test_failed_rules_do_not_stop_the_others(scene: Scene) -> None:
    """After a program that failed the next rule has its turn, and a half-done program's bytes count."""
    folder = make_files(scene.root / "cache", 4, MIB)
    scene.rules = {
        "half": {
            "command": [script(scene, f"rm {folder}/file-0; exit 1")],
            "expect": {"size": "9M", "seconds": 1},
        },
        "rest": {"paths": [str(folder)]},
    }
    report = scene.report("--free=64M")
    assert outcome(report, "half")["result"] == "failed"
    assert outcome(report, "half")["freed"] == MIB
    assert not folder.exists()
    assert report["filesystems"][0]["unexplained"] == 0


def test_missing_program(scene: Scene) -> None:
    """A program that is not installed makes the rule not applicable."""
    rule = run(scene, "no-such-program-anywhere", "clean")
    assert rule["result"] == "not-applicable"
    assert rule["reason"] == "no-such-program-anywhere is not installed"


def test_program_that_cannot_be_started(scene: Scene) -> None:
    """A program that is there and cannot be started fails with the reason; the clean goes on."""
    path = Path(script(scene, ""))
    path.write_bytes(b"\x7fELF but not really")
    rule = run(scene, str(path))
    assert rule["result"] == "failed"
    assert "cannot be started: Exec format error" in str(rule["reason"])


def test_closed_stdin(scene: Scene) -> None:
    """A program that asks a question reads the end of its input instead of waiting for somebody."""
    rule = run(scene, script(scene, "read answer && exit 1; echo no answer; exit 5"))
    assert rule["reason"] == "exit code 5: no answer"


def test_environment(scene: Scene) -> None:
    """A program is told not to ask, not to colour and not to page, and starts in no directory that may go."""
    text = 'echo "$DEBIAN_FRONTEND $NO_COLOR $PAGER $PIP_NO_INPUT $GIT_TERMINAL_PROMPT $PWD"; exit 1'
    assert run(scene, script(scene, text))["reason"] == "exit code 1: noninteractive 1 cat 1 0 /"


def test_timeout(scene: Scene) -> None:
    """A program that takes too long, does not mind SIGTERM and has left others behind is stopped with all of them."""
    pids = scene.cli.home / "pids"
    text = f"""trap '' TERM
(trap '' TERM; sleep 300 & echo $! >> {pids}; wait) &
sleep 300 &
echo $! >> {pids}
echo $$ >> {pids}
echo still busy
while :; do sleep 1; done"""
    rule = run(scene, script(scene, text), timeout="1s")
    assert rule["result"] == "failed"
    assert rule["reason"] == "stopped after 1 s: still busy"
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 3

    def ended(pid: int) -> bool:
        try:
            return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(lambda: all(map(ended, started)), "all that it started has ended")


def test_program_that_leaves_a_daemon(scene: Scene) -> None:
    """A program that ends and leaves another running with its output open has ended all the same."""
    pid = scene.cli.home / "pid"
    rule = run(scene, script(scene, f"sleep 300 & echo $! > {pid}; echo done; exit 6"), timeout="40s")
    os.kill(int(pid.read_text()), 9)
    assert rule["reason"] == "exit code 6: done"


def test_huge_output(cli: Cli) -> None:
    """Of a program that writes 300 MB only the last words are kept: memory does not grow."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = "head -c 300000000 /dev/zero; echo; echo the end"
    ended = run_limited(["sh", "-c", text], timeout=40, environ=dict(os.environ))
    assert ended.code == 0
    assert ended.tail.endswith("the end")
    assert len(ended.tail) < 10_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_output_without_a_line_end(scene: Scene) -> None:
    """A program's last line is cut to a length that fits a report."""
    rule = run(scene, script(scene, "head -c 5000 /dev/zero | tr '\\0' y; exit 1"))
    assert str(rule["reason"]).startswith("exit code 1: yyy")
    assert len(str(rule["reason"])) < 250


def test_hostile_output(scene: Scene) -> None:
    """Bytes that are no text, escape sequences and workflow commands in a program's output reach nobody as such."""
    text = r"printf 'a\377\376\033[2J\007\r::error::x\000\n'; exit 1"
    rule = run(scene, script(scene, text))
    assert rule["result"] == "failed"
    done = scene.clean().expect(7)
    for line in (done.out + done.err).split(b"\n"):
        assert not line.lstrip().startswith(b"::")
        assert not any(byte < 32 or byte == 127 for byte in line)
    done.out.decode("utf-8")


# ------------------------------------------------------------------------------------------------------ what it empties


def test_frees_that_is_missing(scene: Scene) -> None:
    """A program whose cache is not there is not run: there is nothing."""
    marker = scene.root / "marker"
    rule = run(scene, "touch", str(marker), frees=[f"{scene.root}/nothing"])
    assert rule["result"] == "stale"
    assert not marker.exists()


@pytest.mark.parametrize("category", ["package-cache", "build-cache"])
def test_frees_in_use(scene: Scene, category: str) -> None:
    """A program whose cache somebody has open is not run, and the report says who has it."""
    folder = make_files(scene.root / "cache", 1, MIB)
    with (folder / "file-0").open("rb"), unchanged(folder):
        rule = run(scene, "rm", "-rf", str(folder), frees=[str(folder)], category=category)
    assert rule["result"] == "blocked"
    assert f"(pid {os.getpid()})" in str(rule["reason"])


def test_frees_in_use_for_a_moment(scene: Scene) -> None:
    """A package manager that is at work is waited for, as long as other cleans are, and then its cache is emptied."""
    folder = make_files(scene.root / "cache", 1, MIB)
    holder = [
        sys.executable,
        "-c",
        f"import time; f = open({str(folder / 'file-0')!r}); print(flush=True); time.sleep(1)",
    ]
    with subprocess.Popen(holder, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        rule = run(
            scene, "rm", str(folder / "file-0"), frees=[str(folder)], category="package-cache", patience=40
        )
        assert process.wait() == 0
    assert rule["result"] == "freed"
    assert rule["freed"] == MIB


def test_logs_that_are_open(scene: Scene) -> None:
    """A program that vacuums logs is run although their writer has them open: that is always so."""
    folder = make_files(scene.root / "logs", 2, MIB)
    with (folder / "file-0").open("ab"):
        rule = run(scene, "rm", str(folder / "file-1"), frees=[str(folder)], category="logs")
    assert rule["result"] == "freed"
    assert rule["freed"] == MIB


def test_frees_on_another_filesystem(scene: Scene) -> None:
    """A program whose cache lies where enough is free is not run."""
    folder = make_files(scene.cli.home / "cache", 1, 1000)
    rule = run(scene, "rm", "-rf", str(folder), frees=[str(folder)])
    assert rule["result"] == "skipped"
    assert folder.exists()


@pytest.mark.parametrize("below", ["", "inside"])
def test_frees_what_is_to_be_saved(scene: Scene, below: str) -> None:
    """A program that would empty what --for-save names, or what contains it, is not run."""
    folder = make_files(scene.root / "cache" / "inside", 1, MIB).parent
    scene.rules["it"] = {"command": ["rm", "-rf", str(folder)], "frees": [str(folder)]}
    with unchanged(folder):
        report = scene.report("--stage=post", "--free=1P", "--for-save", folder / below, code=7)
    assert outcome(report, "it")["result"] == "skipped"
    assert "what is to be saved" in outcome(report, "it")["reason"]


def test_frees_the_store(scene: Scene) -> None:
    """A program that would empty cachekit's own store is not run."""
    store = scene.root / "store"
    make_files(store / "v1", 1, MIB)
    scene.rules["it"] = {"command": ["rm", "-rf", str(store)], "frees": [str(store)]}
    with unchanged(store):
        report = scene.report("--store", store, code=7)
    assert "the store" in outcome(report, "it")["reason"]


# ------------------------------------------------------------------------------------------------ real package managers


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_npm(scene: Scene) -> None:
    """The own command of npm empties its cache; what it held is freed."""
    cache = scene.root / "npm"
    make_files(cache / "_cacache" / "content-v2", 8, MIB)
    scene.rules["npm"] = {
        "command": ["npm", "cache", "clean", "--force"],
        "frees": [str(cache)],
        "tools": ["npm"],
        "category": "package-cache",
    }
    rule = outcome(scene.report("--free=60M", env={"npm_config_cache": str(cache)}), "npm")
    assert rule["result"] == "freed"
    assert rule["freed"] >= 7 * MIB


@pytest.mark.skipif(shutil.which("pip") is None, reason="pip is not installed")
def test_pip(scene: Scene) -> None:
    """The own command of pip empties its cache; what it held is freed."""
    cache = scene.root / "pip"
    for name in ("http", "http-v2"):  # before pip 23.3, and since
        make_files(cache / name / "a", 8, MIB)
    scene.rules["pip"] = {
        "command": ["pip", "cache", "purge"],
        "frees": [str(cache)],
        "category": "package-cache",
    }
    report = scene.clean("--json", "--free=60M", env={"PIP_CACHE_DIR": str(cache)}).json()
    rule = outcome(report, "pip")
    assert rule["result"] == "freed", rule
    assert rule["freed"] >= 7 * MIB


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed")
def test_apt(scene: Scene) -> None:
    """The own command of apt empties its archives; what they held is freed."""
    cache = scene.root / "apt"
    make_files(cache / "archives" / "partial", 1, 100)
    for number in range(8):
        (cache / "archives" / f"a_{number}_all.deb").write_bytes(b"x" * MIB)
    config = scene.cli.home / "apt.conf"
    config.parent.mkdir(exist_ok=True)
    config.write_text(f'Dir::Cache "{cache}";\nDir::State "{scene.root}/state";\n')
    scene.rules["apt"] = {"command": ["apt-get", "clean"], "frees": [str(cache)], "category": "package-cache"}
    rule = outcome(scene.report("--free=60M", env={"APT_CONFIG": str(config)}), "apt")
    assert rule["result"] == "freed"
    assert rule["freed"] >= 8 * MIB
