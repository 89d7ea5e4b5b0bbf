"""Errors: a sentence, a code, a hint; never a traceback for bad input; --debug and internal errors."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.cli.main import COMMANDS
from cachekit.errors import NoSpace, Refused, StoreUnavailable
from tests.support.cli import Cli
from tests.support.in_process import Here
from tests.support.trees import make_tree


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bogus"], "No such command"),
        (["--bogus"], "--bogus"),
        (["save"], "--key"),
        (["save", "t"], "--key"),
        (["save", "t", "--key"], "--key"),
        (["save", "--key", "k", "t", "--changed", "maybe"], "skip"),
        (["save", "--key", "k", "t", "--store", ""], "empty"),
        (["save", "--key", "k", "t", "--root", ""], "empty"),
        (["save", "--key", "k", ""], "path"),
        (["restore"], "--key"),
        (["restore", "--key", "k", "--root="], "empty"),
        (["show"], "KEY|FILE"),
        (["ls", "a", "b"], "extra argument"),
        (["demo", "x"], "extra argument"),
    ],
    ids=" ".join,
)
def test_usage(here: Here, arguments: list[str], says: str) -> None:
    """Wrong usage is exit 2, one sentence, and how to get help."""
    done = here(*arguments).expect(2)
    assert done.stderr.startswith("cachekit: error: ")
    assert says in done.stderr
    assert "hint: " in done.stderr
    assert done.out == b""


def test_no_command(here: Here) -> None:
    """Without a command the help goes to stderr: exit 2."""
    done = here().expect(2)
    assert "Commands:" in done.stderr
    assert done.out == b""


def raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `ls` meet an error."""

    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr("cachekit.cli.listing.list_entries", fail)


def test_internal_error(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """An internal error is exit 1 and says what happened and how to report it, without a traceback."""
    raises(monkeypatch, RuntimeError("wires\ncrossed"))
    done = here("ls", "--json").expect(1)
    assert "internal error: RuntimeError: wires\\ncrossed" in done.stderr
    for part in ("--debug", "--version", "report"):
        assert part in done.stderr
    assert done.json()["error"]["id"] == "internal"


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug(here: Here, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """--debug shows the traceback, before the command's name as after it."""
    raises(monkeypatch, RuntimeError("wires crossed"))
    done = here(*(["--debug", "ls"] if place == "before" else ["ls", "--debug"]))
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "in fail" in done.stderr


def test_debug_of_an_expected_error(here: Here) -> None:
    """--debug shows where an expected error came from, too; the code stays."""
    done = here("show", "missing", "--debug")
    assert done.code == 3
    assert "Traceback (most recent call last)" in done.stderr


def test_out_of_memory(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little memory is called that, with what helps."""
    raises(monkeypatch, MemoryError())
    told = here("ls").expect(1).stderr
    assert "out of memory" in told
    assert "CACHEKIT_WORKERS" in told


def test_fields_of_an_error(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error shows its path, place, both sides and hint, one a line, escaped; JSON has them as fields."""
    error = Refused(
        "wrong",
        path=b"/a\n\xff",
        expected=["x", "y"],
        found={"z": 1},
        hint="try\x1b[31m",
        rung="index",
        frame=3,
    )
    raises(monkeypatch, error)
    done = here("ls", "--json").expect(4)
    assert done.stderr.splitlines() == [
        "cachekit: error: wrong",
        "  path: /a\\n\\xff",
        "  at: rung index, frame 3",
        "  expected: x, y",
        "  found: {'z': 1}",
        "  hint: try\\x1b[31m",
    ]
    told = done.json()["error"]
    assert (told["id"], told["exit_code"], told["frame"]) == ("refused", 4, 3)
    assert told["path_b64"] == "L2EK/w=="


@pytest.mark.parametrize(("kind", "code"), [(NoSpace, 5), (StoreUnavailable, 9), (Refused, 4)])
def test_codes(
    here: Here, monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], BaseException], code: int
) -> None:
    """Each kind of error has its exit code."""
    raises(monkeypatch, kind("so it is"))
    here("ls").expect(code)


def test_interrupt(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is exit 130 and one line."""
    raises(monkeypatch, KeyboardInterrupt())
    done = here("ls").expect(130)
    assert "interrupted" in done.stderr


def filled(path: Path) -> bool:
    """Whether a file is there and has its first bytes."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("command", ["save", "restore"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_stopped_at_work(cli: Cli, command: str, number: signal.Signals, code: int) -> None:
    """A save or restore that is stopped ends at once with the signal's code; nothing of it stays."""
    tree = cli.cwd / "t"
    make_tree(tree, {f"{n}": os.urandom(2 << 20) for n in range(40)})
    cli("save", "--key=k", "t").expect()
    os.rename(tree, cli.cwd / "u")
    where = cli.cwd if command == "restore" else cli.home / ".cache/cachekit/v1/default/tmp"
    before = sorted(os.listdir(where))
    begun = ".cachekit-*/new/*" if command == "restore" else "*"
    arguments = ["restore", "--key=k"] if command == "restore" else ["save", "--key=k2", "u", "--level=12"]
    with cli.start(*arguments) as running:
        deadline = time.monotonic() + 20
        while running.alive and not any(map(filled, where.glob(begun))) and time.monotonic() < deadline:
            time.sleep(0.001)
        running.send(number)
        done = running.wait()
    assert done.code in (code, 0)  # 0: it was done before the signal came
    done.expect(done.code)
    if done.code:
        assert ("interrupted" if code == 130 else f"stopped by {number.name}") in done.stderr
        assert sorted(os.listdir(where)) == before
    cli("verify", "--all", "--depth=frames").expect()


WORDS = st.sampled_from(
    [
        *COMMANDS,
        *"--key --restore-key --store --root --level --exclude --force --wait --wait-timeout --family".split(),
        *"--min-free --changed --allow-empty --lock-timeout --soft-fail --json --debug --replace".split(),
        *"--merge --in-place".split(),
        *"--all-targets --any-platform --fail-on-miss --strict --durable --all --depth --quarantine".split(),
        *"--manifest --files --help -- - k t . .. * [ [! t/ ./t ~ 1 -1 1G skip seal s/x".split(),
        *("--key=k", "--store=s", "--root=r", "--level=3", "\n::x", "\udcff", "é" * 300, ""),
    ]
)


@given(
    command=st.sampled_from([name for name in COMMANDS if name not in {"demo", "guard"}]),
    words=st.lists(WORDS, max_size=7),
)
def test_any_arguments(command: str, words: list[str]) -> None:
    """Whatever the arguments are, the exit code is one of the table and nobody sees a traceback."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", place)
        patch.setenv("CACHEKIT_STORE", f"{place}/store")
        patch.setenv("CACHEKIT_STATE_DIR", f"{place}/state")
        work = Path(place, "work")
        make_tree(work, {"t": {"a": b"1"}})
        os.chdir(work)
        try:
            done = Here(work, Path(place))(command, *(word for word in words if word != "--debug"))
        finally:
            os.chdir(here)
    done.expect(0, 2, 3, 4, 5, 8, 9)
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", done.err)
    assert b"\n::" not in b"\n" + done.err
