"""``lock run``: the command's code and signals, waiting, time-outs, and what is wrong with the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachekit.errors import CachekitError, LockBusy
from cachekit.lock import run as use_case
from cachekit.lock.run import LockRequest, run_locked
from cachekit.model import Key
from cachekit.system.locking.record import Holder
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.in_process import Here
from tests.support.ordinary_user import NOBODY
from tests.support.processes import Running, clean_environment, wait_until

KINDS = pytest.mark.parametrize("kind", [(), ("--lease",)], ids=["flock", "lease"])


@contextmanager
def holding(cli: Cli, *options: str, name: str = "a") -> Iterator[Running]:
    """Have another process hold the lock until its file `stop` appears."""
    begun, stop = cli.cwd / f"begun-{os.urandom(4).hex()}", cli.cwd / "stop"
    script = f"touch {begun}; while ! [ -e {stop} ]; do sleep 0.02; done"
    with cli.start("lock", "run", name, *options, "--", "sh", "-c", script) as running:
        wait_until(begun.exists, "the command runs")
        yield running


def stop(cli: Cli) -> None:
    """Let all holders go on."""
    (cli.cwd / "stop").touch()


@KINDS
@pytest.mark.parametrize("code", [0, 1, 2, 6, 122, 125, 255])
def test_the_code_is_passed_on(here: Here, kind: tuple[str, ...], code: int) -> None:
    """The exit code is that of the command, whichever it is."""
    here("lock", "run", "a", *kind, "--", "sh", "-c", f"exit {code}").expect(code)


def test_a_signal_is_told_as_a_shell_does(here: Here) -> None:
    """A command that a signal ended gives 128 + its number."""
    here("lock", "run", "a", "--", "sh", "-c", "kill -KILL $$").expect(137)
    here("lock", "run", "a", "--", "sh", "-c", "kill -SEGV $$").expect(139)


def test_streams_and_arguments(cli: Cli) -> None:
    """The command has our streams, environment, directory and exactly its arguments."""
    script = 'cat; printf "%s|" "$@" "$PWD" "$X"; echo told >&2'
    done = cli(
        *("lock", "run", "a", "--", "sh", "-c", script, "sh", "--json", "", "--", "é\n"),
        stdin=b"given ",
        env={"X": "x"},
    ).expect()
    assert done.stdout == f"given --json||--|é\n|{cli.cwd}|x|"
    assert done.stderr == "told\n"


def test_a_command_has_the_default_signals(cli: Cli) -> None:
    """What Python ignores or we hold back, the command gets as it would from a shell."""
    script = "import signal; print(signal.pthread_sigmask(0, ()), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    done = cli("lock", "run", "a", "--", sys.executable, "-c", script).expect()
    assert done.stdout == "set() True\n"
    cli("lock", "run", "a", "--", "sh", "-c", "kill -PIPE $$; exit 3").expect(128 + signal.SIGPIPE)


@pytest.mark.parametrize(
    ("command", "code", "identifier"),
    [
        (("no-such-command",), 127, "not-found"),
        (("./nothing",), 127, "not-found"),
        (("/",), 126, "not-executable"),
        (("./plain",), 126, "not-executable"),
        (("./binary",), 126, "not-executable"),
    ],
)
def test_a_command_that_cannot_be_run(
    here: Here, command: tuple[str, ...], code: int, identifier: str
) -> None:
    """Not found is 127, not executable 126, and the lock is free again."""
    (here.root / "plain").write_text("#!/bin/sh\n")
    (here.root / "binary").write_bytes(b"\x00\x01\x02")
    (here.root / "binary").chmod(0o755)
    done = here("lock", "run", "--json", "a", "--", *command).expect(code)
    assert done.json()["error"]["id"] == identifier
    assert "hint: " in done.stderr
    here("lock", "run", "a", "--timeout", "0", "--", "true").expect(0)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("a",),
        ("a", "--bad", "--", "true"),
        ("a", "--timeout", "soon", "--", "true"),
        ("a", "--lease-length", "1ms", "--", "true"),
        ("a", "--lease-length", "0.5s", "--", "true"),
        ("a", "--dir", "", "--", "true"),
        ("a\n", "--", "true"),
        ("", "--", "true"),
        ("k" * 513, "--", "true"),
    ],
)
def test_wrong_usage_is_125(here: Here, arguments: tuple[str, ...]) -> None:
    """As env does: our own failures, wrong usage too, have codes that commands hardly use."""
    done = here("lock", "run", "--json", *arguments).expect(125)
    assert done.json()["error"]["id"] == "not-run"


def test_a_bug_is_125(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """An internal error of lock run is 125, never a code that could be the command's."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(use_case, "myself", fail)
    done = here("lock", "run", "a", "--", "true").expect(125)
    assert "ZeroDivisionError: oops" in done.stderr


def test_a_place_that_cannot_be_used(here: Here) -> None:
    """A directory of locks that cannot be made is 125 and names it."""
    (here.root / "file").touch()
    done = here("lock", "run", "a", "--dir", "file", "--", "true").expect(125)
    assert "the lock 'a' cannot be used: Not a directory" in done.stderr
    assert "--dir chooses another one" in done.stderr


@requires("unprivileged")
def test_no_permission(nobody_cli: Cli) -> None:
    """Without the right to write there it is 125 and says so; a lock that others made and let us open works."""
    place = nobody_cli.cwd.parent / "shared"
    place.mkdir(mode=0o755)
    done = nobody_cli("lock", "run", "a", "--dir", place, "--", "true").expect(125)
    assert "Permission denied" in done.stderr
    owner = Cli(nobody_cli.home.parent / "root-home", nobody_cli.cwd)
    owner("lock", "run", "a", "--dir", place, "--", "true").expect()
    for folder, _, files in os.walk(place):
        os.chmod(folder, 0o755)
        for file in files:
            os.chmod(os.path.join(folder, file), 0o644)
    nobody_cli("lock", "run", "a", "--dir", place, "--", "sh", "-c", "id -u; exit 3").expect(3)
    with holding(owner, "--dir", str(place)) as holder:
        told = nobody_cli("lock", "run", "a", "--timeout=0", "--dir", place, "--", "true").expect(122)
        assert f"pid {NOBODY}" not in told.stderr
        stop(owner)
        holder.wait().expect()  # killed, it would leave the lock to its keeper, which gives it back later


@KINDS
def test_one_at_a_time(cli: Cli, kind: tuple[str, ...]) -> None:
    """While one holds the lock a second one is told who, gives up with 122 when told to, and else gets it after."""
    with holding(cli, *kind) as first:
        done = cli("lock", "run", "--json", "a", *kind, "--timeout", "0", "--", "touch", "ran").expect(122)
        error = done.json()["error"]
        assert error["holders"][0]["pid"] == first.pid
        assert error["holders"][0]["host"] == os.uname().nodename
        assert error["holders"][0]["command"].startswith("sh -c touch ")
        assert f"pid {first.pid}" in done.stderr
        with cli.start("lock", "run", "--json", "a", *kind, "--", "touch", "ran") as second:
            wait_until(lambda: len(waiters(cli)) == 1, "the second is seen waiting")
            assert waiters(cli)[0]["pid"] == second.pid
            assert not (cli.cwd / "ran").exists()
            stop(cli)
            done = second.wait().expect(0)
            first.wait().expect(0)
    report = done.json()
    assert report["kind"] == ("lease" if kind else "flock")
    assert report["waited"] > 0
    assert report["holders"][0]["pid"] == first.pid
    assert f"cachekit: the lock 'a' is held by {os.uname().nodename}, pid {first.pid}" in done.stderr
    assert "waiting up to 1 h" in done.stderr
    assert (cli.cwd / "ran").exists()
    assert states(cli)[0] | {"path": ""} == {
        "name": "a",
        "path": "",
        "kind": report["kind"],
        "held": False,
        "holders": [],
        "waiters": [],
    }


def states(cli: Cli, *options: str) -> list[dict[str, object]]:
    """List the locks."""
    found = cli("lock", "ls", "--json", *options).expect().json()
    assert isinstance(found, list)
    return found


def waiters(cli: Cli) -> list[dict[str, object]]:
    """List who waits for the first lock."""
    found = states(cli)[0]["waiters"]
    assert isinstance(found, list)
    return found


@KINDS
def test_shared(cli: Cli, kind: tuple[str, ...]) -> None:
    """Several share the lock; who wants it alone waits for all of them, and excludes those who come later."""
    with holding(cli, *kind, "--shared") as first, holding(cli, *kind, "--shared") as second:
        state = states(cli)[0]
        assert state["held"]
        holders = state["holders"]
        assert isinstance(holders, list)
        assert {one["pid"] for one in holders} == {first.pid, second.pid}
        assert all(one["shared"] for one in holders)
        cli("lock", "run", "a", *kind, "--timeout=0", "--", "true").expect(122)
        cli("lock", "run", "a", *kind, "--timeout=0", "--shared", "--", "true").expect(0)
        with cli.start("lock", "run", "a", *kind, "--", "sh", "-c", "echo alone > order") as alone:
            wait_until(lambda: len(waiters(cli)) == 1, "the exclusive one waits")
            # The gate: whoever shares does not overtake the one that waits to be alone.
            cli("lock", "run", "a", *kind, "--timeout=0", "--shared", "--", "true").expect(122)
            assert not (cli.cwd / "order").exists()
            stop(cli)
            alone.wait().expect(0)
    assert (cli.cwd / "order").read_text() == "alone\n"


def test_names_are_apart(cli: Cli) -> None:
    """Two names are two locks, also where their safe characters are the same."""
    with holding(cli, name="a/b"):
        cli("lock", "run", "a:b", "--timeout=0", "--", "true").expect(0)
        cli("lock", "run", "a/b", "--timeout=0", "--", "true").expect(122)
        assert {state["name"]: state["held"] for state in states(cli)} == {"a/b": True, "a:b": False}
        stop(cli)


def test_another_directory(cli: Cli) -> None:
    """--dir keeps the locks in the shared directory itself, where a save leaves them out."""
    (cli.cwd / "shared").mkdir()
    (cli.cwd / "shared" / "file").touch()
    with holding(cli, "--dir", "shared"):
        cli("lock", "run", "a", "--dir", "shared", "--timeout=0", "--", "true").expect(122)
        cli("lock", "run", "a", "--timeout=0", "--", "true").expect(0)
        assert [state["held"] for state in states(cli, "--dir", "shared")] == [True]
        report = cli("save", "--json", "--key=k", "shared").expect().json()
        assert report["files"] == 1
        stop(cli)


def test_listing_without_locks(here: Here) -> None:
    """Where no lock was ever used there is nothing to list."""
    assert here("lock", "ls", "--json").expect().json() == []
    assert "no lock was ever used here" in here("lock", "ls").expect().stderr


@pytest.mark.parametrize("number", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH"])
def test_signals_are_passed_on(cli: Cli, number: str) -> None:
    """A signal to cachekit alone reaches the command, whose code is passed on; the lock is free then."""
    script = f"trap 'echo got; exit 9' {number}; touch begun; while :; do sleep 0.02; done"
    with cli.start("lock", "run", "a", "--", "sh", "-c", script) as running:
        wait_until((cli.cwd / "begun").exists, "the command runs")
        running.send(signal.Signals[f"SIG{number}"])
        assert running.wait().expect(9).stdout == "got\n"
    cli("lock", "run", "a", "--timeout=0", "--", "true").expect()


def test_a_command_may_ignore_a_signal(cli: Cli) -> None:
    """A command that goes on after SIGTERM is waited for: cachekit does not leave it alone."""
    script = "trap 'touch asked' TERM; touch begun; while ! [ -e stop ]; do sleep 0.02; done; exit 4"
    with cli.start("lock", "run", "a", "--", "sh", "-c", script) as running:
        wait_until((cli.cwd / "begun").exists, "the command runs")
        running.send(signal.SIGTERM)
        wait_until((cli.cwd / "asked").exists, "the command got it")
        cli("lock", "run", "a", "--timeout=0", "--", "true").expect(122)
        stop(cli)
        running.wait().expect(4)


@pytest.mark.parametrize(("group", "times"), [("", 1), ("os.setpgid(0, 0)", 0)], ids=["same", "own"])
def test_ctrl_c_reaches_the_command_once(cli: Cli, group: str, times: int) -> None:
    """From the terminal the whole group gets SIGINT: cachekit does not send it to the command a second time.

    That is seen for certain with a command in a group of its own, which gets only what it is sent.
    """
    script = (
        "import os, signal, time, pathlib\n"
        f"{group}\n"
        "got = []\n"
        "signal.signal(signal.SIGINT, lambda *_: got.append(1))\n"
        "pathlib.Path('begun').touch()\n"
        "end = time.monotonic() + 0.7\n"
        "while time.monotonic() < end: time.sleep(0.05)\n"
        "raise SystemExit(40 + len(got))\n"
    )
    master, slave = os.openpty()
    leader = (
        "import fcntl, os, sys, termios\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "run = [sys.executable, '-m', 'cachekit', 'lock', 'run', 'a', '--', sys.executable, '-c', sys.argv[1]]\n"
        "os.execv(sys.executable, run)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", leader, script],
        stdin=slave,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=cli.cwd,
        env=clean_environment(cli.home),
        start_new_session=True,
    )
    try:
        wait_until((cli.cwd / "begun").exists, "the command runs")
        os.write(master, b"\x03")
        assert child.wait(20) == 40 + times
    finally:
        child.kill()
        child.communicate()
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_waiting(cli: Cli, number: signal.Signals) -> None:
    """Who waits for the lock is stopped by a signal as any command: 128 + n, and the command was not run."""
    with holding(cli):
        with cli.start("lock", "run", "a", "--", "touch", "ran") as waiting:
            wait_until(lambda: len(waiters(cli)) == 1, "it waits")
            waiting.send(number)
            waiting.wait().expect(128 + number)
        assert not waiters(cli)
        stop(cli)
    assert not (cli.cwd / "ran").exists()


def test_nohup(cli: Cli) -> None:
    """Under nohup the command ignores SIGHUP as it would without us."""
    script = "trap > held; touch begun; while ! [ -e stop ]; do sleep 0.02; done; exit 5"
    with cli.start("lock", "run", "a", "--", "nohup", "true") as running:
        running.wait().expect()
    command = ["nohup", sys.executable, "-m", "cachekit", "lock", "run", "a", "--", "sh", "-c", script]
    with subprocess.Popen(
        command,
        cwd=cli.cwd,
        env=clean_environment(cli.home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        wait_until((cli.cwd / "begun").exists, "the command runs")
        child.send_signal(signal.SIGHUP)
        stop(cli)
        assert child.wait(20) == 5


def test_waits_are_values(cli: Cli) -> None:
    """The wait and who was in the way go to the hook, also when it was in vain; without a wait it is not called."""
    place = cli.home / ".cache" / "cachekit" / "v1" / "named-locks"
    told: list[tuple[str, float, Holder | None]] = []
    said: list[str] = []

    def attempt(timeout: float) -> None:
        request = LockRequest(Key("a"), str(place), ["true"], timeout=timeout)
        run_locked(
            request,
            tell=said.append,
            warn=said.append,
            on_wait=lambda name, seconds, holder: told.append((name, seconds, holder)),
        )

    attempt(5)
    assert not told
    assert not said
    with holding(cli) as first:
        with pytest.raises(LockBusy):
            attempt(0.3)
        stop(cli)
    [(name, seconds, holder)] = told
    assert name == "a"
    assert seconds >= 0.3
    assert holder is not None
    assert holder.pid == first.pid
    assert len(said) == 1


def test_who_waits_is_reminded(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits is told again and again who holds the lock."""
    monkeypatch.setattr(use_case, "TELL_SECONDS", 0.2)
    place = cli.home / ".cache" / "cachekit" / "v1" / "named-locks"
    said: list[str] = []
    with holding(cli):
        request = LockRequest(Key("a"), str(place), ["true"], timeout=1.0)
        with pytest.raises(CachekitError):
            run_locked(request, tell=said.append, warn=said.append)
        stop(cli)
    assert len(said) >= 3
    assert all("the lock 'a' is held by" in text for text in said)


def test_hostile_names_are_escaped(cli: Cli) -> None:
    """What a holder's command or a record says is printed without control characters or workflow commands."""
    with cli.start(
        "lock", "run", "::error::x", "--", "sh", "-c", "touch begun; sleep 30", "\x1b[2J\n::stop"
    ) as one:
        wait_until((cli.cwd / "begun").exists, "the command runs")
        told = (
            cli("lock", "ls").expect().stdout
            + cli("lock", "run", "::error::x", "--timeout=0.1", "--", "true").expect(122).stderr
        )
        assert "\x1b" not in told
        assert not [line for line in told.splitlines() if line.lstrip().startswith("::")]
        one.kill()


@pytest.mark.parametrize(
    "junk", [b"", b"{}", b"\xff" * 4096, b"[" * 4095 + b"\n", json.dumps({"version": 1}).encode()]
)
def test_junk_beside_the_lock(here: Here, junk: bytes) -> None:
    """Records that are something else disturb nobody: the lock works, and ls lists it."""
    here("lock", "run", "a", "--", "true").expect()
    [place] = (here.store / "v1" / "named-locks").iterdir()
    (place / "holder.0123456789abcdef").write_bytes(junk)
    (place / "waiter.0123456789abcdef").write_bytes(junk)
    (place / "holder.0123456789abcdee").symlink_to("/etc/passwd")
    os.mkfifo(place / "waiter.0123456789abcdee")
    (place / "lock").write_bytes(junk)
    assert here("lock", "ls", "--json").expect().json()[0]["held"] is False
    here("lock", "run", "a", "--timeout=0", "--", "true").expect()
    assert Path("/etc/passwd").exists()


def test_waits_go_into_the_ledger(cli: Cli) -> None:
    """A wait, and one that was in vain, are told by stats; what was had at once is not."""
    (cli.cwd / "file").write_text("x")
    cli("save", "--key", "k-1", "file").expect(0)
    with holding(cli):
        cli("lock", "run", "a", "--timeout=0.2s", "--", "true").expect(122)
        with cli.start("lock", "run", "a", "--", "true") as waiting:
            wait_until(lambda: len(waiters(cli)) == 1, "the second one waits")
            stop(cli)
            waiting.wait().expect(0)
    cli("lock", "run", "b", "--", "true").expect(0)
    stats = cli("stats", "--json").expect(0).json()["stats"]
    assert (stats["lock_waits"], stats["lock_timeouts"]) == (2, 1)
    assert stats["lock_wait_seconds"] > 0.1
