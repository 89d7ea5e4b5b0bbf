"""What no plan may remove, whatever it says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cachekit
from cachekit.clean.environment import look_around
from cachekit.clean.prepare import protection
from cachekit.clean.protect import Protection, refuse_pattern

NEVER = (
    "/ /bin /boot /boot/grub /dev /dev/shm /etc /etc/passwd /home /home/alice /lib /lib/x86_64-linux-gnu /lib64 /media "
    "/mnt /mnt/data /opt /proc /proc/1 /root /root/project /run /run/user /sbin /snap /srv /srv/git /sys /tmp /usr "
    "/usr/bin /usr/bin/python3 /usr/lib /usr/lib/python3 /usr/lib/jvm /usr/local /usr/local/bin /usr/local/lib "
    "/usr/local/lib/python3.11 /usr/local/share /usr/sbin /usr/share /var /var/cache /var/lib /var/lib/docker "
    "/var/lib/docker/overlay2 /var/lib/docker/tmp /var/lib/dpkg/status /var/lib/postgresql /var/log /var/spool/cron "
    "/var/tmp /data/project/.git /data/project/.git/objects"
).split()
MAY = (
    "/home/alice/project/dist /opt/hostedtoolcache/CodeQL /tmp/old /usr/local/.ghcup /usr/local/lib/android "
    "/usr/local/share/powershell /usr/share/dotnet /usr/share/swift /var/cache/apt /var/lib/apt/lists/x "
    "/var/lib/docker/tmp/docker-export-12 /var/lib/jenkins/workspace /var/log/old.gz /var/tmp/x "
    "/usr/lib/jvm/temurin-11-jdk"
).split()


@pytest.mark.parametrize("path", NEVER)
def test_never(path: str) -> None:
    """The system, home directories, and what holds them together are refused."""
    assert Protection().refuse(path.encode())


@pytest.mark.parametrize("path", MAY)
def test_may(path: str) -> None:
    """What plans are made for is not refused."""
    assert Protection().refuse(path.encode()) is None


@pytest.mark.parametrize("path", ["tmp/x", "", "/tmp/../etc/passwd", "/tmp//x", "/tmp/./x", "/tmp/x/"])
def test_only_plain_absolute_paths(path: str) -> None:
    """A path that could mean another one is refused."""
    assert Protection().refuse(path.encode())


@given(
    st.sampled_from(["/etc", "/usr/bin", "/boot", "/var/lib/dpkg", "/lib"]),
    st.lists(
        st.from_regex(r"[a-z.]{1,8}", fullmatch=True).filter(lambda n: n not in {".", ".."}), max_size=4
    ),
)
def test_whole_system_trees(place: str, names: list[str]) -> None:
    """What the system is made of is protected to any depth."""
    path = "/".join([place, *names])
    refused = Protection().refuse(path.encode())
    assert refused or path.startswith("/etc/skel/.ghcup")


@pytest.mark.parametrize(
    "pattern",
    [
        "/*",
        "/*/x",
        "/usr/*",
        "/home/*",
        "/etc/*",
        "/var/lib/*",
        "/usr/bin/*",
        "/",
        "/**",
        "/var/lib/dpkg/**",
        "/usr/*/x",
        "/home/*/.ssh/*",
        "/root/.gnupg/x",
    ],
)
def test_patterns_that_reach_the_system(pattern: str) -> None:
    """A pattern that would match protected places is refused before anything is looked at."""
    assert refuse_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "/tmp/*",
        "/usr/share/gradle-*",
        "/var/log/*.gz",
        "/home/*/actions-runner/_diag/*",
        "/opt/hostedtoolcache/*/x",
        "/usr/lib/jvm/temurin-*",
        "/var/lib/docker/tmp/docker-export-*",
        "/usr/local/julia*",
    ],
)
def test_patterns_of_plans(pattern: str) -> None:
    """The patterns that plans need are fine."""
    assert refuse_pattern(pattern) is None


def test_homes_and_their_secrets() -> None:
    """A home directory is kept, what contains it too, and its secrets; the caches in it may go."""
    protected = Protection(homes=frozenset({b"/data/people/ann"}))
    for path in (
        b"/data/people/ann",
        b"/data/people",
        b"/data/people/ann/.ssh",
        b"/data/people/ann/.ssh/id",
        b"/data/people/ann/.config/x",
    ):
        assert protected.refuse(path), path
    assert protected.refuse(b"/data/people/ann/.cache/pip") is None
    assert protected.refuse(b"/data/people/anna") is None


def test_mount_points() -> None:
    """What something is mounted on is kept."""
    assert Protection(mounts=frozenset({b"/data/disk"})).refuse(b"/data/disk")


def test_workspace_and_store(
    tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workspace and its parents are kept, not what lies in it; the store is kept with all that lies in it."""
    workspace, store, saved = tmp_path / "work", tmp_path / "store", tmp_path / "work" / "node_modules"
    for folder in (workspace, store, saved):
        folder.mkdir(exist_ok=True)
    (workspace / ".git").mkdir()
    monkeypatch.chdir(workspace)
    protected = protection(look_around({}), str(store), {str(saved): "what is to be saved"})
    kept = [workspace, tmp_path, store, store / "v1", saved, saved / "left-pad", workspace / ".git" / "x"]
    for path in kept:
        assert protected.refuse(os.fsencode(path)), path
    assert protected.refuse(os.fsencode(workspace / "build")) is None


def test_links_to_what_is_protected(tmp_path: Path) -> None:
    """What is protected by a link is protected under its real name too."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    protected = Protection()
    protected.add([str(link)], "the store", whole=True)
    assert protected.refuse(os.fsencode(real / "x"))
    assert protected.refuse(os.fsencode(link))


def test_the_interpreter(clean_surroundings: Path) -> None:
    """The Python that runs cachekit, and cachekit itself, are never removed."""
    protected = protection(look_around({}), "", {})
    for path in (os.path.realpath(sys.executable), os.path.dirname(cachekit.__file__), pytest.__file__):
        assert protected.refuse(os.fsencode(path)), path
