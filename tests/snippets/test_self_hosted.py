"""The snippets for one's own machines: the unit in its sandbox, cron's lines as cron runs them, the runner's hooks."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.snippets.unit_file import Unit
from tests.support.capabilities import requires
from tests.support.cleaning import MIB
from tests.support.filesystems import Filesystem, ext4
from tests.support.ordinary_user import NOBODY, PROJECT, command_of
from tests.support.processes import Result, wait_until
from tests.support.protected import Protected, cachekit_in, program
from tests.support.shelf import Shelf

FOLDER = PROJECT / "ci-snippets" / "self-hosted"
SERVICE = FOLDER / "cachekit-clean.service"
CRONTAB = FOLDER / "crontab"

#: What the plan may remove, by where it lies, in MiB; all of it belongs to an ordinary user.
OLD = {
    "home/runner/actions-runner/bin.2.300.0/Runner": 2,
    "home/runner/actions-runner/_work/shop/object": 2,
    "tmp/left-over/file": 2,
    "var/log/syslog.2.gz": 1,
    "var/cache/apt/archives/old_1.0_all.deb": 1,
    "var/lib/systemd/coredump/core.1": 1,
    "var/lib/docker/tmp/docker-export-1/layer": 1,
}
#: The rest is root's to remove.
OF_THE_USER = {name for name in OLD if name.startswith(("home/", "tmp/"))}
YOUNG = ("home/runner/actions-runner/bin.2.301.0/Runner", "home/runner/data", "home/runner/.ssh/id")
PLACES = ("/home", "/opt", "/tmp", "/var/tmp", "/var/log", "/var/cache", "/var/lib", "/run/lock")


@dataclass(frozen=True)
class CiMachine:
    """A machine whose directories of users, logs, caches and temporary files lie on one small disk."""

    root: Path
    disk: Filesystem
    bin: Path

    def machine(self, sandbox: list[Path] | None = None) -> Protected:
        """The machine for a command, which may write anywhere on the disk unless a sandbox says otherwise."""
        binds = {Path(place): self.disk.path / place[1:] for place in PLACES}
        return Protected(self.root, {**binds, Path("/usr/local/bin"): self.bin}, sandbox=sandbox)

    def service(self) -> Result:
        """Run the unit's command with its variables, in its sandbox."""
        unit = Unit.read(SERVICE)
        (self.disk.path / "var/lib/cachekit").mkdir(exist_ok=True)
        named = {word.removeprefix("-") for word in unit.words("ReadWritePaths")} | {"/var/lib/cachekit"}
        there = {path for path in named if (self.disk.path / path[1:]).exists()}
        machine = self.machine(unit.writable(there))
        return machine.run(*unit.drop, *unit.command, env=unit.environment, cwd=Path("/"))

    def cron(self, line: str) -> Result:
        """Run a line of the crontab as cron does: its settings, its own variables, the user's home, /bin/sh."""
        own = {"HOME": "/home/runner", "LOGNAME": "runner", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
        settings = re.findall(r"^(\w+)=(.*)$", CRONTAB.read_text(), re.MULTILINE)
        environment = own | dict(settings)
        return self.machine().run(
            *command_of(NOBODY), "/bin/sh", "-c", line, env=environment, cwd=Path("/home/runner")
        )

    def hook(self, name: str, **more: str) -> Result:
        """Run a hook as the runner does: bash -e, the job's variables."""
        work = "/home/runner/actions-runner/_work"
        job = {
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_WORKSPACE": f"{work}/shop/shop",
            "HOME": "/home/runner",
            "PATH": "/usr/bin:/bin",
            "RUNNER_TEMP": f"{work}/_temp",
        }
        return self.machine().run("bash", "-e", FOLDER / name, env=job | more, cwd=Path("/home/runner"))

    def old(self) -> set[str]:
        """What of OLD is there still."""
        return {name for name in OLD if (self.disk.path / name).exists()}

    def fill(self, percent: int) -> None:
        """Use so much of the disk with what no plan names."""
        info = os.statvfs(self.disk.path)
        free = info.f_blocks * info.f_frsize * (100 - percent) // 100
        used = self.disk.path / "home/runner/data"
        with used.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, file.tell() + info.f_bavail * info.f_frsize - free)

    def used_percent(self) -> float:
        """How full the disk is."""
        info = os.statvfs(self.disk.path)
        return 100 - 100 * info.f_bavail / info.f_blocks


@pytest.fixture
def ci_machine(tmp_path: Path) -> Iterator[CiMachine]:
    """A machine whose runner, logs and temporary files are a month old by the clock of its cachekit."""
    with ext4(64 * MIB, at=tmp_path / "disk") as disk:
        for name, mib in OLD.items():
            _file(disk.path / name, mib * MIB)
        for name in YOUNG:
            _file(disk.path / name, 1000)
        runner = disk.path / "home/runner/actions-runner"
        (runner / ".runner").write_text("{}")
        (runner / "bin").symlink_to("bin.2.301.0")
        for place in PLACES:
            (disk.path / place[1:]).mkdir(parents=True, exist_ok=True)
        (disk.path / "var/cache/apt/archives/partial").mkdir()
        for folder, folders, files in os.walk(disk.path / "home/runner"):
            for name in (".", *folders, *files):
                os.lchown(os.path.join(folder, name), NOBODY, NOBODY)
        os.chown(disk.path / "tmp/left-over", NOBODY, NOBODY)
        (disk.path / "tmp").chmod(0o1777)
        (runner / "_work/shop").chmod(0o1777)
        (disk.path / "var/cache/cachekit").mkdir(mode=0o750)
        bin_ = tmp_path / "usr-local-bin"
        cachekit_in(bin_, days_later=30)
        yield CiMachine(tmp_path, disk, bin_)


def _file(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))


@requires("bind", "ext4")
def test_the_service_can_remove_all_that_its_plan_names(ci_machine: CiMachine) -> None:
    """In its sandbox, as root without most capabilities, every rule works; short of the goal the unit fails with 7."""
    ci_machine.fill(99)
    done = ci_machine.service().expect(7)
    assert ci_machine.old() == set(), done.stdout + done.stderr
    assert "blocked" not in done.stdout
    assert any((ci_machine.disk.path / "var/lib/cachekit").iterdir()), "nothing is remembered"
    [lock] = (ci_machine.disk.path / "run/lock").iterdir()
    assert lock.stat().st_mode & 0o777 == 0o666, "hooks could not take the lock"
    for name in YOUNG:
        assert (ci_machine.disk.path / name).exists(), name


@requires("bind", "ext4")
def test_the_service_stops_at_its_goal(ci_machine: CiMachine) -> None:
    """Above 80 % used it cleans down to 70 % and no further; below it touches nothing."""
    ci_machine.fill(75)
    ci_machine.service().expect(0)
    assert ci_machine.old() == set(OLD)
    ci_machine.fill(81)
    ci_machine.service().expect(0)
    assert 60 < ci_machine.used_percent() < 70.1  # the filesystem's own bookkeeping


@requires("bind", "ext4")
def test_the_service_sees_what_others_have_open(ci_machine: CiMachine) -> None:
    """What another user's process has open stays, although root has lost most of its capabilities."""
    script = "exec 5</tmp/left-over/file; touch /tmp/opened; exec sleep 60"
    ci_machine.fill(99)
    with ci_machine.machine().start(
        *command_of(NOBODY), "sh", "-c", script, env={"PATH": "/usr/bin:/bin"}, cwd=Path("/")
    ):
        wait_until((ci_machine.disk.path / "tmp/opened").exists, "it has the file open")
        ci_machine.service().expect(7)
        assert ci_machine.old() == {"tmp/left-over/file"}


@requires("bind", "ext4")
def test_the_sandbox_is_one(ci_machine: CiMachine) -> None:
    """Where the plan names nothing, the unit's command could not write, nor become another user."""
    unit = Unit.read(SERVICE)
    (ci_machine.disk.path / "var/lib/cachekit").mkdir()
    machine = ci_machine.machine(
        unit.writable({"/run/lock", "/tmp", "/var/tmp", "/home", "/var/lib/cachekit"})
    )
    for command in (
        "touch /usr/local/bin/x",
        "touch /var/lib/x",
        "touch /etc/x",
        "chown 1 /tmp",
        "chroot / true",
    ):
        assert machine.run(*unit.drop, "sh", "-c", command, env=unit.environment, cwd=Path("/")).code != 0
    machine.run(*unit.drop, "touch", "/home/x", env=unit.environment, cwd=Path("/")).expect()


@requires("bind", "ext4", "systemd_analyze")
def test_systemd_takes_the_units(ci_machine: CiMachine, tmp_path: Path) -> None:
    """systemd-analyze finds nothing to say, rates the sandbox as fine, and refuses a bad calendar."""
    for name in ("cachekit-clean.service", "cachekit-clean.timer"):
        shutil.copy(FOLDER / name, tmp_path / name)
    machine = Protected(tmp_path, {Path("/usr/local/bin"): ci_machine.bin})
    units = (tmp_path / "cachekit-clean.timer", tmp_path / "cachekit-clean.service")
    verify = ("systemd-analyze", "verify", "--man=no", *units)
    done = machine.run(*verify, env=machine.environment()).expect()
    assert (done.stdout, done.stderr) == ("", "")
    rated = ("systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager", units[1])
    machine.run(*rated, env=machine.environment()).expect()
    for unit, good, bad in (
        (units[0], "*:0/15", "*:0/99"),
        (units[1], "ProtectSystem=strict", "ProtectSystem=vary"),
    ):
        unit.write_text(unit.read_text().replace(good, bad))
        assert bad.partition("=")[2] in machine.run(*verify, env=machine.environment()).stderr


def cron_lines() -> list[str]:
    """The commands of the crontab; a per cent sign would end them."""
    lines = CRONTAB.read_text().splitlines()
    commands = [line.split(None, 5)[5] for line in lines if re.match(r"[0-9*]", line)]
    assert len(commands) == 2
    assert not any("%" in command for command in commands)
    return commands


@requires("bind", "ext4", "unprivileged")
def test_cron_is_silent_until_there_is_trouble(ci_machine: CiMachine) -> None:
    """Nothing is printed, and so mailed, when enough is free or was freed; short of the goal the report is."""
    clean, _ = cron_lines()
    assert ci_machine.cron(clean).expect().out == b""
    ci_machine.fill(81)
    done = ci_machine.cron(clean).expect()
    assert done.out + done.err == b"", done.stdout
    assert ci_machine.used_percent() < 79
    ci_machine.fill(99)
    report = ci_machine.cron(clean).expect().stdout
    assert "the goal was not met" in report
    assert ci_machine.old() == OLD.keys() - OF_THE_USER


@requires("bind", "ext4", "unprivileged")
def test_cron_prunes_the_store(ci_machine: CiMachine) -> None:
    """An entry that nothing used for a month goes, but for the newest of its family; a store that is gone is mailed."""
    _, prune = cron_lines()
    store = ci_machine.disk.path / "var/cache/cachekit"
    shelf = Shelf(store)
    shelf.put("npm-1", used_days=40)
    shelf.put("npm-2", used_days=30)
    for folder, folders, files in os.walk(store):
        for name in (".", *folders, *files):
            os.lchown(os.path.join(folder, name), NOBODY, NOBODY)
    assert ci_machine.cron(prune).expect().out == b""
    assert shelf.keys() == ["npm-2"]
    store.chmod(0o000)
    assert "error" in ci_machine.cron(prune).expect().stdout


@requires("bind", "ext4")
@pytest.mark.parametrize("name", ["job-started.sh", "job-completed.sh"])
def test_hooks_clean(ci_machine: CiMachine, name: str) -> None:
    """Before and after a job the runner's hook makes room, each with its stage; the job goes on, however that ends."""
    ci_machine.fill(99)
    done = ci_machine.hook(name).expect()
    assert f"stage {'pre' if name == 'job-started.sh' else 'post'}" in done.stdout
    assert "var/lib/docker/tmp/docker-export-1/layer" not in ci_machine.old()
    assert "::warning title=cachekit::" in done.stderr


@requires("bind", "ext4")
@pytest.mark.parametrize("name", ["job-started.sh", "job-completed.sh"])
def test_hooks_never_fail_a_job(ci_machine: CiMachine, name: str) -> None:
    """A cachekit that crashes, or is missing, is a warning beside the job."""
    program(ci_machine.bin, "cachekit", "kill -SEGV $$")
    done = ci_machine.hook(name).expect()
    assert re.search(
        r"^::warning title=cachekit::the disk was not cleaned .* this job \(exit code 139\)$",
        done.stdout,
        re.MULTILINE,
    )
    (ci_machine.bin / "cachekit").unlink()
    assert "(exit code 127)" in ci_machine.hook(name).expect().stdout


def test_hooks_are_executable() -> None:
    """The runner starts them by their path."""
    assert all(os.access(FOLDER / name, os.X_OK) for name in ("job-started.sh", "job-completed.sh"))
