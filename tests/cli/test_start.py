"""How the command line starts: what it imports, what it helps with, and the streams that it is given."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cachekit import __version__
from cachekit.cli.main import COMMANDS
from cachekit.cli.main import cli as group
from tests.support.cli import Cli
from tests.support.in_process import Here, cut
from tests.support.layouts import MadeLayout
from tests.support.processes import clean_environment
from tests.support.trees import make_tree

_PROBE = """
import sys
from cachekit.__main__ import main
sys.argv[1:] = {arguments!r}
code = 0
try:
    main()
except SystemExit as error:
    code = error.code or 0
import json, os
sys.stdout.flush()
os.write(3, json.dumps([code, sorted(sys.modules)]).encode())
"""


def loaded(here: Here, *arguments: str) -> tuple[int, set[str]]:
    """Run a command in a fresh interpreter; return its exit code and the modules that it has imported."""
    reading, writing = os.pipe()
    script = f"import os; os.dup2({writing}, 3)\n" + _PROBE.format(arguments=list(arguments))
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=here.root,
        env=clean_environment(here.home),
        pass_fds=[writing],
        capture_output=True,
        check=False,
        timeout=40,
    )
    os.close(writing)
    with open(reading, "rb") as pipe:
        code, modules = json.loads(pipe.read())
    return code, set(modules)


def test_version_loads_nothing(here: Here) -> None:
    """--version is answered before click is imported."""
    code, modules = loaded(here, "--version")
    assert code == 0
    assert not modules & {"click", "zstandard", "xxhash", "psutil", "cachekit.cli.main", "cachekit.errors"}


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ()])
def test_help_loads_no_command(here: Here, arguments: tuple[str, ...]) -> None:
    """--help imports neither a command nor zstandard, xxhash or psutil."""
    _, modules = loaded(here, *arguments)
    assert "click" in modules
    commands = {module for module, _, _ in COMMANDS.values()}
    assert not modules & ({"zstandard", "xxhash", "psutil", "tempfile", "cachekit.cache"} | commands)


@pytest.mark.parametrize(
    "arguments", [("restore", "--key=k", "--strict"), ("verify", "k", "--depth=contents")]
)
def test_refusing_loads_no_zstandard(here: Here, arguments: tuple[str, ...]) -> None:
    """A cut entry is refused from its last bytes: nothing is loaded that could decompress it."""
    make_tree(here.root, {"t": {"a": b"1" * 1000}})
    here.save("k", "t")
    cut(here.entry("k"))
    code, modules = loaded(here, *arguments)
    assert code == 4
    assert not modules & {"zstandard", "psutil"}


@pytest.mark.parametrize("arguments", [("ls",), ("show", "k"), ("verify", "k", "--depth=seal"), ("recover",)])
def test_reading_seals_loads_no_zstandard(here: Here, arguments: tuple[str, ...]) -> None:
    """Commands that read seals alone load no zstandard."""
    make_tree(here.root, {"t": {"a": b"1"}})
    here.save("k", "t")
    code, modules = loaded(here, *arguments)
    assert code == 0
    assert "zstandard" not in modules


@pytest.mark.parametrize(
    "arguments",
    [
        ("lock", "run", "a", "--lease", "--", "true"),
        ("lock", "ls"),
        ("doctor", "."),
        ("seal", "file.gz"),
        ("check", "file.gz"),
        ("oci", "verify", "layout"),
        ("oci", "gc", "layout", "--settle=0s"),
        ("oci", "lock", "layout", "--", "true"),
    ],
)
def test_what_needs_the_standard_library_only(here: Here, arguments: tuple[str, ...]) -> None:
    """Locks, the doctor, sealed files and OCI layouts: nothing but click is loaded that Python does not bring."""
    (here.root / "file.gz").write_bytes(gzip.compress(b"content"))
    MadeLayout(here.root / "layout").cache("latest", [b"layer"])
    code, modules = loaded(here, *arguments)
    assert code == 0
    assert not modules & {"zstandard", "xxhash", "psutil", "tempfile"}


def test_version(cli: Cli) -> None:
    """--version prints the version, with other options too."""
    for arguments in (["--version"], ["--debug", "--version"]):
        assert cli(*arguments).expect().stdout == f"cachekit {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(here: Here, command: str) -> None:
    """Every command explains itself on 80 columns: what it does, its options, an example that can be typed."""
    for option in ("--help", "-h"):
        told = here(command, option).expect().stdout
        assert told.startswith(f"Usage: cachekit {command} ")
        assert f"    cachekit {command}" in told
        assert max(map(len, told.splitlines())) <= 80
    assert "--json" in told
    assert "--debug" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_explained(command: str) -> None:
    """Every option has a help text, and the list of commands says what the command itself says."""
    with group.make_context("cachekit", [], resilient_parsing=True) as context:
        found = group.get_command(context, command)
        assert found is not None
        for parameter in found.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), parameter.name
        assert found.short_help == COMMANDS[command][2]


def test_head(cli: Cli) -> None:
    """A reader that stops reading ends the listing quietly."""
    root = cli.cwd
    make_tree(root, {"t": {f"{n:04}-{'x' * 80}": b"" for n in range(3000)}})
    cli("save", "--key=k", "t").expect()
    command = f"{sys.executable} -m cachekit show k --files | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=root,
        env=clean_environment(cli.home),
        capture_output=True,
        text=True,
        check=True,
        timeout=40,
    )
    assert done.stdout.splitlines()[-1] in ("141", "0")  # 0: all of it fitted into the pipe
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == ""


def shell(process: Cli, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell line in which CACHEKIT stands for the command."""
    return subprocess.run(
        ["sh", "-c", command.replace("CACHEKIT", f"{sys.executable} -m cachekit")],
        cwd=process.cwd,
        env=clean_environment(process.home),
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(cli: Cli, closed: str) -> None:
    """A caller that closed stdin, stdout or stderr still gets its cache and the right code."""
    make_tree(cli.cwd, {"t": {"a": b"1"}})
    assert shell(cli, f"CACHEKIT save --key k t {closed}").returncode == 0
    assert shell(cli, f"CACHEKIT restore --key k t {closed}").returncode == 0
    assert shell(cli, f"CACHEKIT restore --key k nope {closed}").returncode == 8
    cli("verify", "k").expect()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_is_full(cli: Cli) -> None:
    """An output that cannot be written is exit 1 and a sentence, not a traceback."""
    done = shell(cli, "CACHEKIT ls --json > /dev/full")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "could not be written" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding(cli: Cli, encoding: str) -> None:
    """A locale that cannot print a name does not stop a command."""
    make_tree(cli.cwd, {"t": {"naïve-名前": b"1", b"\xff": b"2"}})
    cli("save", "--key=ключ", "t").expect()
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    for arguments in (
        ["ls", "кл"],
        ["show", "ключ", "--files"],
        ["verify", "ключ"],
        ["restore", "--key=ключ"],
    ):
        cli(*arguments, env=environment).expect()


@pytest.mark.parametrize("group", ["oci", "lock", "store"])
def test_a_group_without_its_command(cli: Cli, group: str) -> None:
    """A group without a command names its commands in one sentence, as wrong usage."""
    done = cli(group).expect(2)
    assert done.stderr.startswith("cachekit: error: a command is missing: ")
    assert "Usage" not in done.stderr
    assert done.stderr.count("\n") == 2
