"""Two hosts with one directory: locks that cross, locks that do not, and what the doctors of both find out."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import hosts
from tests.support.capabilities import need, requires
from tests.support.hosts import Host, Pair
from tests.support.processes import Running, wait_until


@pytest.fixture
def over_sshfs() -> Iterator[Pair]:
    """Two hosts with an sshfs mount each; needs `sshfs`."""
    need("sshfs")
    with hosts.sshfs() as pair:
        yield pair


@pytest.fixture
def over_juicefs() -> Iterator[Pair]:
    """Two hosts with a JuiceFS mount each; needs `juicefs`."""
    need("juicefs")
    with hosts.juicefs() as pair:
        yield pair


HOLD = "touch begun; while ! [ -e stop ]; do sleep 0.02; done"


def hold(host: Host, place: Path, name: str, *options: str, kept: Path) -> Running:
    """Have `host` hold a lock in `place` until the file `stop` appears in its own directory `kept`."""
    running = host.cachekit("lock", "run", name, "--dir", place, *options, "--", "sh", "-c", HOLD, cwd=kept)
    wait_until((kept / "begun").exists, "the command runs")
    return running


def doctors(pair: Pair) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let the doctors of both hosts meet; return what both say."""
    command = ("doctor", "--json", pair.shared, "--peer", "--peer-timeout=40s")
    with pair.first.cachekit(*command) as one, pair.second.cachekit(*command) as two:
        return one.wait().expect().json(), two.wait().expect().json()


@pytest.fixture
def kept(open_path: Path) -> Path:
    """A directory that is not shared through a mount."""
    return open_path


@requires("sshfs")
def test_locks_that_do_not_cross(over_sshfs: Pair, kept: Path) -> None:
    """Over sshfs both hosts are granted a flock: the doctors find out, and lock run excludes by a lease."""
    pair = over_sshfs
    for report in doctors(pair):
        assert report["mount"]["kind"] == "fuse.sshfs"
        assert report["peer"]["flock"] is report["peer"]["fcntl"] is report["excludes"] is False
        assert report["peer"]["exclusive_create"] is True
        assert {one["id"]: one["value"] for one in report["findings"]}["flock"] is True  # of one host
        assert "locks: a lease (docs/locking.md), since flock does not exclude here" in report["follows"]
    assert os.listdir(pair.server) == []
    with hold(pair.first, pair.shared, "a", kept=kept) as first:
        done = pair.second.run("lock", "run", "a", "--dir", pair.shared, "--timeout=1s", "--", "true").expect(
            122
        )
        assert "first, pid " in done.stderr
        [state] = pair.second.run("lock", "ls", "--json", "--dir", pair.shared).expect().json()
        assert state["kind"] == "lease"
        assert [one["host"] for one in state["holders"]] == ["first"]
        (kept / "stop").touch()
        first.wait().expect()
    done = pair.second.run("lock", "run", "--json", "a", "--dir", pair.shared, "--", "hostname").expect()
    assert done.stdout.startswith("second\n")


@requires("juicefs")
def test_locks_that_cross(over_juicefs: Pair, kept: Path) -> None:
    """Where flock crosses hosts a lease is used until the doctors measured that, and flock from then on."""
    pair = over_juicefs
    before = (
        pair.first.run("lock", "run", "--json", "before", "--dir", pair.shared, "--", "true").expect().json()
    )
    assert before["kind"] == "lease"
    for report in doctors(pair):
        assert report["peer"]["flock"] is report["peer"]["fcntl"] is report["excludes"] is True
        assert "locks: flock, which excludes everybody who uses this directory" in report["follows"]
    with hold(pair.first, pair.shared, "a", kept=kept) as first:
        [state] = [
            state
            for state in pair.second.run("lock", "ls", "--json", "--dir", pair.shared).expect().json()
            if state["name"] == "a"
        ]
        assert (state["kind"], state["held"]) == ("flock", True)
        assert [one["host"] for one in state["holders"]] == ["first"]
        done = pair.second.run("lock", "run", "a", "--dir", pair.shared, "--timeout=2s", "--", "true").expect(
            122
        )
        assert "first, pid " in done.stderr
        first.kill()
        for pid in ours("a"):
            os.kill(pid, signal.SIGKILL)
        report = (
            pair.second.run("lock", "run", "--json", "a", "--dir", pair.shared, "--", "true").expect().json()
        )
        assert report["kind"] == "flock"


def ours(name: str) -> list[int]:
    """Find the processes of lock run for a lock, the keeper among them."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
            if b"cachekit" in words and words[words.index(b"cachekit") + 1 :][:3] == [
                b"lock",
                b"run",
                name.encode(),
            ]:
                found.append(int(entry))
    return found


@requires("sshfs")
def test_a_host_that_is_gone(over_sshfs: Pair, kept: Path) -> None:
    """The lease of a host that died is taken over once it did not change for its length, and not before."""
    pair = over_sshfs
    with hold(pair.second, pair.shared, "a", "--lease-length=2s", kept=kept) as running:
        os.kill(pair.second.pid, signal.SIGKILL)  # and with it everything on that host
        running.wait()
        report = (
            pair.first.run("lock", "run", "--json", "a", "--dir", pair.shared, "--", "true").expect().json()
        )
    assert report["holders"][0]["host"] == "second"
    assert report["waited"] >= 2


@requires("sshfs")
def test_an_orphaned_command_on_another_host(over_sshfs: Pair, kept: Path) -> None:
    """The keeper of a taker that was killed renews the lease for as long as the command runs, so no host slips in."""
    pair = over_sshfs
    with hold(pair.second, pair.shared, "orphan", "--lease-length=1s", kept=kept):
        wait_until(lambda: len(pythons("orphan")) == 2, "the keeper is there")
        taker = min(pythons("orphan"))
        os.kill(taker, signal.SIGKILL)
        pair.first.run("lock", "run", "orphan", "--dir", pair.shared, "--timeout=2.5s", "--", "true").expect(
            122
        )
        (kept / "stop").touch()
        pair.first.run("lock", "run", "orphan", "--dir", pair.shared, "--timeout=20s", "--", "true").expect(0)


def pythons(name: str) -> list[int]:
    """Find the processes of ours that are cachekit itself, not what enters the host for it."""
    python = os.path.realpath(sys.executable)
    return [pid for pid in ours(name) if os.path.realpath(f"/proc/{pid}/exe") == python]


@requires("sshfs")
def test_equal_pids_on_two_hosts(over_sshfs: Pair, kept: Path) -> None:
    """A holder is not taken for dead because here its number belongs to somebody else, or to nobody."""
    pair = over_sshfs
    command = (
        f"echo 700 > /proc/sys/kernel/ns_last_pid; {sys.executable} -m cachekit lock run --json a --dir {pair.shared}"
        " {} & wait $!"
    )
    holding = command.format(f"-- sh -c 'cd {kept}; {HOLD}'")
    with pair.first.start("sh", "-c", holding) as first:
        wait_until((kept / "begun").exists, "the command runs")
        with pair.second.start("sh", "-c", command.format("--timeout=1s -- true")) as second:
            error = second.wait().expect(122).json()["error"]
        assert (error["holders"][0]["host"], error["holders"][0]["pid"]) == ("first", 701)
        (kept / "stop").touch()
        first.wait().expect()
    with pair.second.start("sh", "-c", command.format("-- sh -c 'echo $PPID'")) as second:
        assert second.wait().expect().stdout.splitlines()[0] == "701"


@requires("sshfs")
def test_a_lost_lease(over_sshfs: Pair, kept: Path) -> None:
    """A host that stood still for too long finds its lease taken over: it says so, stops its command and exits 125."""
    pair = over_sshfs
    with hold(pair.second, pair.shared, "lost", "--lease-length=1s", "--json", kept=kept) as late:
        wait_until(lambda: len(pythons("lost")) == 2, "the keeper is there")
        stopped = pythons("lost")
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        pair.first.run("lock", "run", "lost", "--dir", pair.shared, "--timeout=30s", "--", "true").expect(0)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        late.send(signal.SIGCONT)  # nsenter stops with what it runs
        done = late.wait().expect(125)
    assert "the lock 'lost' is LOST: another host took its lease over; stopping the command" in done.stderr
    assert json.loads(done.stdout)["error"]["id"] == "lock-lost"
    assert json.loads(done.stdout)["error"]["command_exit"] == 128 + signal.SIGTERM


@requires("sshfs")
@pytest.mark.parametrize("holder", ["server", "client"])
def test_the_server_itself(over_sshfs: Pair, kept: Path, holder: str) -> None:
    """The host that has the directory itself, and flock there, and one that mounts it exclude each other."""
    pair = over_sshfs
    server, client = (pair.first, pair.server), (pair.second, pair.shared)
    (one, place), (other, elsewhere) = (server, client) if holder == "server" else (client, server)
    with hold(one, place, "a", kept=kept) as first:
        done = other.run("lock", "run", "a", "--dir", elsewhere, "--timeout=1s", "--", "true").expect(122)
        assert f"{one.name}, pid " in done.stderr
        (kept / "stop").touch()
        first.wait().expect()
    for host, where in (server, client, server):
        host.run("lock", "run", "a", "--dir", where, "--timeout=20s", "--", "true").expect()
