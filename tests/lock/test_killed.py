"""The lock lasts exactly as long as the command, whoever is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from cachekit.errors import LockBusy
from cachekit.lock.run import LockRequest, run_locked
from cachekit.model import Key
from tests.support.cli import Cli
from tests.support.processes import Running, wait_until

KINDS = pytest.mark.parametrize("kind", [(), ("--lease", "--lease-length=2s")], ids=["flock", "lease"])


@dataclass
class Scene:
    """A lock run whose command runs until the file `stop` appears."""

    cli: Cli
    running: Running
    kind: tuple[str, ...]

    @property
    def command(self) -> int:
        """The command's process."""
        return int((self.cli.cwd / "pid").read_text())

    @property
    def keeper(self) -> int:
        """The keeper's process."""
        [pid] = [pid for pid in children(self.running.pid) if pid != self.command]
        return pid

    def kill(self, *who: str) -> None:
        """Kill processes by their role: taker, keeper, command."""
        pids = [self.running.pid if one == "taker" else getattr(self, one) for one in who]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        if "taker" in who:
            self.running.wait().expect(-signal.SIGKILL)
        for pid in pids:
            wait_until(lambda pid=pid: gone(pid), "it is dead")  # type: ignore[misc]

    def free(self) -> bool:
        """Whether somebody else gets the lock at once."""
        place = str(self.cli.home / ".cache" / "cachekit" / "v1" / "named-locks")
        request = LockRequest(Key("a"), place, ["true"], timeout=0, lease=bool(self.kind))
        try:
            run_locked(request, tell=print, warn=print)
        except LockBusy:
            return False
        return True

    def stop(self) -> None:
        """Let the command end by itself."""
        pid = self.command
        (self.cli.cwd / "stop").touch()
        wait_until(lambda: gone(pid), "the command has ended")


def children(parent: int) -> list[int]:
    """Find the processes that `parent` started."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(entry))
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return (
            Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
        )
    except OSError:
        return True


COMMAND = "echo $$ > pid.new; mv pid.new pid; while ! [ -e stop ]; do sleep 0.02; done; exit 3"


@contextmanager
def scene(cli: Cli, kind: tuple[str, ...], command: str = COMMAND) -> Iterator[Scene]:
    """Have a lock run whose command has begun and whose keeper is there."""
    with cli.start("lock", "run", "a", *kind, "--", "sh", "-c", command) as running:
        wait_until((cli.cwd / "pid").exists, "the command runs")
        here = Scene(cli, running, kind)
        wait_until(lambda: len(children(running.pid)) == 2, "the keeper is there")
        yield here


@KINDS
@pytest.mark.parametrize("who", [("taker",), ("keeper",), ("taker", "keeper")], ids="-".join)
def test_an_orphaned_command_keeps_the_lock(cli: Cli, kind: tuple[str, ...], who: tuple[str, ...]) -> None:
    """Whichever of ours is killed, nobody slips in while the command runs; afterwards the lock is free at once."""
    with scene(cli, kind) as here:
        here.kill(*who)
        assert not here.free()
        [state] = cli("lock", "ls", "--json").expect().json()
        assert state["held"]
        here.stop()
        if "taker" not in who:
            here.running.wait().expect(3)
        wait_until(here.free, "the lock is free")


@KINDS
def test_a_killed_command(cli: Cli, kind: tuple[str, ...]) -> None:
    """A killed command gives 137 and a free lock."""
    with scene(cli, kind) as here:
        here.kill("command")
        here.running.wait().expect(137)
        assert here.free()


@KINDS
@pytest.mark.parametrize("who", [("taker", "command"), ("taker", "keeper", "command")], ids="-".join)
def test_all_killed(cli: Cli, kind: tuple[str, ...], who: tuple[str, ...]) -> None:
    """When holder and command are killed the lock is free at once: by its kernel, or because they are proven dead."""
    with scene(cli, kind) as here:
        here.kill(*who)
        wait_until(here.free, "the lock is free")
        [state] = cli("lock", "ls", "--json").expect().json()
        assert not state["held"]
        assert state["holders"] == []


def test_the_lease_lives_on_without_the_taker(cli: Cli) -> None:
    """The keeper renews the lease of an orphaned command for as long as it runs."""
    with scene(cli, ("--lease", "--lease-length=1s")) as here:
        here.kill("taker")
        done = cli("lock", "run", "a", "--lease", "--timeout=1.5s", "--", "true").expect(122)
        assert f"pid {here.running.pid}" in done.stderr
        here.stop()
        wait_until(here.free, "the lock is free")


def test_a_killed_keeper_is_replaced(cli: Cli) -> None:
    """A keeper that was killed has a successor, which renews the lease beyond its length."""
    with scene(cli, ("--lease", "--lease-length=1s")) as here:
        first = here.keeper
        here.kill("keeper")
        wait_until(lambda: len(set(children(here.running.pid)) - {first}) == 2, "there is a new one")
        cli("lock", "run", "a", "--lease", "--timeout=1.5s", "--", "true").expect(122)
        here.stop()
        done = here.running.wait().expect(3)
        assert "LOST" not in done.stderr


@KINDS
def test_a_command_that_closes_descriptors(cli: Cli, kind: tuple[str, ...]) -> None:
    """A command that closes what it inherits, as sudo does, keeps the lock through the keeper."""
    (cli.cwd / "command").write_text(COMMAND)
    closing = "import os; os.closerange(3, 1000); os.execvp('sh', ['sh', 'command'])"
    with scene(cli, kind, f'exec {sys.executable} -c "{closing}"') as here:
        here.kill("taker")
        assert not here.free()
        here.stop()
        wait_until(here.free, "the lock is free")


@KINDS
def test_what_is_left_in_the_background(cli: Cli, kind: tuple[str, ...]) -> None:
    """What the command leaves running does not hold the lock after the command has ended, whoever gives it back."""
    for killed in ((), ("taker",)):
        for name in ("pid", "stop"):
            (cli.cwd / name).unlink(missing_ok=True)
        with scene(cli, kind, f"sleep 30 & {COMMAND}") as here:
            if killed:
                here.kill(*killed)
            here.stop()
            wait_until(here.free, "the lock is free")


def test_a_daemon_that_inherited_everything(cli: Cli) -> None:
    """With cachekit and its keeper killed, what the command left in the background holds the lock, and ls says so."""
    with scene(cli, (), f"sleep 30 & echo $! > daemon; {COMMAND}") as here:
        here.kill("taker", "keeper")
        here.stop()
        assert not here.free()
        [state] = cli("lock", "ls", "--json").expect().json()
        [holder] = state["holders"]
        assert holder["gone"]
        assert "something that it started still holds the lock" in cli("lock", "ls").expect().stdout
        daemon = int((cli.cwd / "daemon").read_text())
        os.kill(daemon, signal.SIGKILL)
        wait_until(lambda: gone(daemon), "the daemon is dead")
        assert here.free()


@KINDS
@pytest.mark.parametrize("step", ["lock.taken", "lock.started", "lock.kept", "lock.ended"])
def test_killed_at_every_step(cli: Cli, kind: tuple[str, ...], step: str) -> None:
    """Killed between any two steps: no second one while a command runs, and a free lock when none does."""
    env = {"CACHEKIT_KILL_AT": step}
    script = "touch begun; echo $$ > pid.new; mv pid.new pid; sleep 0.5; touch ended"
    with cli.start("lock", "run", "a", *kind, "--", "sh", "-c", script, env=env) as running:
        running.wait().expect(-signal.SIGKILL)
        # Whoever gets the lock must find the first command ended, or never begun.
        proof = "if [ -e begun ]; then [ -e ended ]; fi"
        if step in ("lock.started", "lock.kept"):
            wait_until((cli.cwd / "begun").exists, "the command runs")
        cli("lock", "run", "a", *kind, "--timeout=20s", "--", "sh", "-c", proof).expect(0)
        assert (cli.cwd / "begun").exists() == (step != "lock.taken")


def test_killed_while_making_a_lease(cli: Cli) -> None:
    """A taker that is killed in the middle of making its lease is proven dead, and its lease taken over at once."""
    env = {"CACHEKIT_KILL_AT": "lock.lease-made"}
    for shared in ((), ("--shared",)):
        with cli.start("lock", "run", "a", "--lease", *shared, "--", "touch", "ran", env=env) as running:
            running.wait().expect(-signal.SIGKILL)
        assert not (cli.cwd / "ran").exists()
        cli("lock", "run", "a", "--lease", "--timeout=0", "--", "true").expect(0)
