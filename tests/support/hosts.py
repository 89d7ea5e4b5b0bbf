"""Two hosts on this machine, for what only happens between hosts.

A `Host` is a set of namespaces: a host name, a network, a pid space and mounts of its own, so equal pids on two hosts
are usual, and whatever is mounted or started on one ends with it. `sshfs` and `juicefs` give both hosts a mount of one
directory, each by its own process, as two machines would have.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.filesystems import private_directory
from tests.support.processes import Arg, Result, Running, clean_environment, start

ADDRESSES = ("10.77.0.1", "10.77.0.2")
_PORT = 2222
_PATIENCE_SECONDS = 20.0


class CannotStartError(Exception):
    """The machine refused to make a host, or a server on it did not start."""


@dataclass(frozen=True)
class Host:
    """A host; `pid` is its first process, and `home` is where the command line run on it keeps its own things."""

    name: str
    pid: int
    home: Path

    @property
    def enter(self) -> list[Arg]:
        """What stands before a command that shall run on this host."""
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-n", "-p", "--"]

    def start(self, *args: Arg, cwd: Path = Path("/")) -> Running:
        """Start a program on this host in `cwd`."""
        command: list[Arg] = [*self.enter, "sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", cwd, *args]
        return start(command, env=clean_environment(self.home))

    def cachekit(self, *args: Arg, cwd: Path = Path("/")) -> Running:
        """Start the command line on this host."""
        return self.start(sys.executable, "-m", "cachekit", *args, cwd=cwd)

    def run(self, *args: Arg, cwd: Path = Path("/")) -> Result:
        """Run the command line on this host to its end."""
        with self.cachekit(*args, cwd=cwd) as running:
            return running.wait()


@dataclass(frozen=True)
class Pair:
    """Two hosts, and where each has the shared directory; `server` is the directory itself, not through a mount."""

    first: Host
    second: Host
    shared: Path
    server: Path


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host, Path]]:
    """Make two hosts that reach each other, and a directory for what they need; all of it ends with the block."""
    with ExitStack() as stack:
        base = stack.enter_context(private_directory())
        hosts = []
        for name in ("first", "second"):
            home = base / f"home-{name}"
            (home / "tmp").mkdir(parents=True)
            (home / "run").mkdir()
            hosts.append(stack.enter_context(_host(name, home)))
        one, two = (str(host.pid) for host in hosts)
        _run("ip", "link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", two)
        for host, address in zip(hosts, ADDRESSES, strict=True):
            _run(*host.enter, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            _run(*host.enter, "ip", "link", "set", "eth0", "up")
            _run(*host.enter, "ip", "link", "set", "lo", "up")
        yield hosts[0], hosts[1], base


@contextmanager
def _host(name: str, home: Path) -> Iterator[Host]:
    namespaces = ["--uts", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    try:
        outer = subprocess.Popen(
            ["unshare", *namespaces, "sh", "-c", f"hostname {name} && echo ready && exec sleep infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise CannotStartError(f"unshare: {error}") from error
    try:
        assert outer.stdout is not None
        said = outer.stdout.readline()
        if said != b"ready\n":
            raise CannotStartError(f"unshare: {said!r}")
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        yield Host(name, int(children[0]), home)
    finally:
        outer.kill()
        outer.communicate()


@contextmanager
def sshfs() -> Iterator[Pair]:
    """Give two hosts an sshfs mount of one directory: its locks are each host's own."""
    with two_hosts() as (first, second, base), ExitStack() as stack:
        server, shared = base / "server", base / "shared"
        server.mkdir()
        shared.mkdir()
        _keys(base)
        Path("/run/sshd").mkdir(exist_ok=True)
        daemon = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin") or "sshd"
        stack.enter_context(first.start(daemon, "-D", "-e", "-f", base / "sshd.conf"))
        options = [
            f"IdentityFile={base}/key",
            *("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "BatchMode=yes"),
        ]
        # The server reaches itself without the link, which ends with the other host.
        for host, address in ((first, "127.0.0.1"), (second, ADDRESSES[0])):
            source = f"root@{address}:{server}"
            command: list[Arg] = ["sshfs", "-f", source, shared, "-p", str(_PORT), "-o", ",".join(options)]
            _mount(stack, host, shared, command)
        yield Pair(first, second, shared, server)


def _keys(base: Path) -> None:
    for name in ("host", "key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / name))
    (base / "sshd.conf").write_text(
        f"Port {_PORT}\nListenAddress 0.0.0.0\nHostKey {base}/host\nAuthorizedKeysFile {base}/key.pub\n"
        f"PidFile {base}/sshd.pid\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
        "StrictModes no\nSubsystem sftp internal-sftp\n"
    )


def juicefs_program() -> str | None:
    """Find JuiceFS: on $PATH, or beside the Python that runs the tests."""
    return shutil.which("juicefs") or shutil.which("juicefs", path=str(Path(sys.executable).parent))


@contextmanager
def juicefs() -> Iterator[Pair]:
    """Give two hosts a JuiceFS mount of one volume: its locks cross."""
    program = juicefs_program()
    if program is None:
        raise CannotStartError("juicefs is not installed")
    with two_hosts() as (first, second, base), ExitStack() as stack:
        shared, meta = base / "shared", f"sqlite3://{base}/meta.db"
        shared.mkdir()
        _run(
            program,
            "format",
            "--storage",
            "file",
            "--bucket",
            f"{base}/data",
            "--trash-days",
            "0",
            meta,
            "tests",
        )
        for host in (first, second):
            quiet = ["--no-usage-report", "--no-bgjob", "--backup-meta", "0"]
            command: list[Arg] = [
                program,
                "mount",
                *quiet,
                "--cache-dir",
                base / f"cache-{host.name}",
                meta,
                shared,
            ]
            _mount(stack, host, shared, command)
        yield Pair(first, second, shared, base / "data")


def _mount(stack: ExitStack, host: Host, place: Path, command: list[Arg]) -> None:
    """Run what serves a mount, and start it again for as long as its server is not ready."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        running = stack.enter_context(host.start(*command))
        while running.alive:
            if subprocess.run([*host.enter, "mountpoint", "-q", place], check=False).returncode == 0:
                return
            if time.monotonic() > deadline:
                raise CannotStartError(f"{command[0]!s} did not mount: {running.kill().stderr}")
            time.sleep(0.05)
        if time.monotonic() > deadline:
            raise CannotStartError(f"{command[0]!s}: {running.wait().stderr}")
        time.sleep(0.1)


def _run(*command: Arg) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CannotStartError(f"{command[0]!s} is not installed") from error
    if done.returncode != 0:
        raise CannotStartError(f"{command}: {(done.stderr or done.stdout).strip()}")
