"""``cachekit guard``: the command runs if the file is whole, and not otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.images import image_archive, layer, made_image
from tests.support.processes import clean_environment, wait_until

ARCHIVE = image_archive([made_image("app:1", layers=[layer({"a": b"a" * 3000}), layer({"b": b"b"})])])


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line as a child, where images.tar is whole and cut.tar is not."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "images.tar").write_bytes(ARCHIVE)
    (work / "cut.tar").write_bytes(ARCHIVE[:4000])
    return Cli(tmp_path / "home", work)


@pytest.mark.parametrize("code", [0, 1, 4, 121, 255])
def test_the_commands_own_code(cli: Cli, code: int) -> None:
    """The command runs, with its own exit code and output, and options of its own."""
    done = cli("guard", "images.tar", "--", "sh", "-c", f"echo ran --json; exit {code}").expect(code)
    assert done.stdout == "ran --json\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["cut.tar"],
        ["absent.tar"],
        ["."],
        ["images.tar", "--also", "cut.tar"],
        ["--require-seal", "images.tar"],
    ],
)
def test_refused(cli: Cli, arguments: list[str]) -> None:
    """A file that is cut, absent, no file or unsealed, the first or another: 121, and the command is not run."""
    done = cli("guard", *arguments, "--", "touch", "ran").expect(121)
    assert "the command was not run" in done.stderr
    assert not (cli.cwd / "ran").exists()


def test_sealed(cli: Cli) -> None:
    """A sealed file is checked against its manifest: another byte, and the command is not run."""
    cli("seal", "images.tar").expect()
    cli("guard", "--require-seal", "--deep", "images.tar", "--", "true").expect(0)
    (cli.cwd / "images.tar").write_bytes(ARCHIVE[:-1] + b"\1")
    cli("guard", "images.tar", "--", "touch", "ran").expect(121)
    assert not (cli.cwd / "ran").exists()


def test_own_failures(cli: Cli) -> None:
    """Wrong usage is 125, a command that cannot be executed 126, none at all 127."""
    (cli.cwd / "plain").write_text("no program")
    cli("guard", "images.tar").expect(125)
    cli("guard", "--nonsense", "images.tar", "--", "true").expect(125)
    cli("guard", "images.tar", "--", "./plain").expect(126)
    cli("guard", "images.tar", "--", "./absent").expect(127)
    cli("guard", "images.tar", "--", "no-such-command-anywhere").expect(127)


def test_the_very_file_as_standard_input(cli: Cli) -> None:
    """With --stdin the command reads the file that was checked, from its beginning, whatever has its name."""
    done = cli("guard", "--stdin", "images.tar", "--", "sh", "-c", "rm images.tar; echo x >images.tar; cat")
    assert done.expect(0).out == ARCHIVE


def test_the_callers_standard_input(cli: Cli) -> None:
    """Without --stdin the command has the standard input that cachekit was given."""
    done = cli("guard", "images.tar", "--", "cat", stdin=b"what the caller gave").expect(0)
    assert done.out == b"what the caller gave"


def test_standard_input_blocks(cli: Cli) -> None:
    """The descriptor that the command gets has none of the flags that checking needed."""
    script = "import fcntl, os; print(fcntl.fcntl(0, fcntl.F_GETFL) & os.O_NONBLOCK)"
    done = cli("guard", "--stdin", "images.tar", "--", sys.executable, "-c", script).expect(0)
    assert done.stdout == "0\n"


def test_in_its_place(cli: Cli) -> None:
    """The command has cachekit's own process: signals reach it, and no descriptor is left open to it."""
    script = "trap 'exit 42' TERM; ls -1 /proc/$$/fd | wc -l >fds; echo $$ >pid; while :; do sleep 0.05; done"
    with cli.start("guard", "images.tar", "--", "sh", "-c", script) as running:
        pid = cli.cwd / "pid"
        wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"), "the command's start", 30)
        assert int(pid.read_text()) == running.pid
        running.send(signal.SIGTERM)
        assert running.wait().code == 42
    assert int((cli.cwd / "fds").read_text()) <= 4


def test_signals_are_as_they_were(cli: Cli) -> None:
    """The command dies of a broken pipe as it would without cachekit."""
    done = cli("guard", "images.tar", "--", "sh", "-c", "grep SigIgn /proc/self/status").expect(0)
    ignored = int(done.stdout.split()[1], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)


_DIET = """
import sys
for name in {absent!r}:
    sys.modules[name] = None
from cachekit.__main__ import main
sys.argv[1:] = {arguments!r}
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["seal", "images.tar"],
        ["check", "images.tar"],
        ["guard", "images.tar", "--", "true"],
        ["check", "a.gz"],
    ],
)
def test_needs_click_alone(cli: Cli, arguments: list[str]) -> None:
    """Without zstandard, xxhash and psutil all but .zst files are sealed, checked and guarded."""
    subprocess.run(["sh", "-c", "gzip -c images.tar >a.gz"], cwd=cli.cwd, check=True)
    assert _without(cli, arguments).returncode == 0


def test_zstd_without_zstandard(cli: Cli) -> None:
    """Without zstandard a .zst file is refused with a sentence that says what to install."""
    subprocess.run(["zstd", "-q", "images.tar"], cwd=cli.cwd, check=True)
    done = _without(cli, ["check", "images.tar.zst"])
    assert done.returncode not in {0, 1}
    assert b"pip install zstandard" in done.stderr


def _without(cli: Cli, arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    cli.home.mkdir(exist_ok=True)
    script = _DIET.format(absent=["zstandard", "xxhash", "psutil"], arguments=arguments)
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=cli.cwd,
        env=clean_environment(cli.home) | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        capture_output=True,
        check=False,
        timeout=60,
    )
