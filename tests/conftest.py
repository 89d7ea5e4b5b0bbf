"""What every test gets: capabilities in the report, a clean environment, private directories."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.support import capabilities, filesystems
from tests.support.cli import Cli
from tests.support.ordinary_user import NOBODY, PROJECT
from tests.support.processes import clean_environment

_PRIVATE = ("CACHEKIT_", "GITHUB_", "GITLAB_", "CI_", "RUNNER_", "ACTIONS_", "XDG_")
_PRIVATE_NAMES = (
    "CI",
    "HOME",
    "ImageOS",
    "WORKSPACE",
    "CONTAINER_HOST",
    "DOCKER_CERT_PATH",
    "DOCKER_CONFIG",
    "DOCKER_CONTEXT",
    "DOCKER_HOST",
    "DOCKER_ROOT",
    "DOCKER_TLS",
    "DOCKER_TLS_VERIFY",
    "TMPDIR",
    "NO_COLOR",
    "FORCE_COLOR",
    "COLUMNS",
)

MARKERS = (
    "requires(*names): needs these capabilities of the machine (tests/support/capabilities.py)",
    "fs: mounts a real file system",
    "stress: long, random, many processes; off unless asked for",
)

_M_MMAP_THRESHOLD = -3  # of mallopt(3)

_EXAMPLES = DirectoryBasedExampleDatabase(PROJECT / ".hypothesis") if os.access(PROJECT, os.W_OK) else None
_SLOW = (hypothesis.HealthCheck.too_slow,)
hypothesis.settings.register_profile(
    "dev", max_examples=50, deadline=None, database=_EXAMPLES, suppress_health_check=_SLOW
)
hypothesis.settings.register_profile(
    "ci", max_examples=50, deadline=None, database=None, derandomize=True, suppress_health_check=_SLOW
)
hypothesis.settings.register_profile(
    "deep", max_examples=5000, deadline=None, database=_EXAMPLES, suppress_health_check=_SLOW
)
hypothesis.settings.load_profile("ci" if capabilities.everything_required() else "dev")


def pytest_configure(config: pytest.Config) -> None:
    """Know the markers, and clear up what a killed session left mounted."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if os.geteuid() == 0 and not hasattr(config, "workerinput"):
        filesystems.sweep()


def pytest_report_header() -> list[str]:
    """Show what this machine can do."""
    return capabilities.table()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what mounts as `fs`."""
    for item in items:
        if not capabilities.NEEDS_MOUNT.isdisjoint(capabilities.required(item)):
            item.add_marker(pytest.mark.fs)


def pytest_collection_finish() -> None:
    """Keep this process cheap to fork, which thousands of tests do: with 7,000 tests loaded a fork costs twice as much.

    What lives by now lives on, so no collection needs to walk, nor a child to copy it; and large buffers go back
    to the system when they are free, instead of raising glibc's bound for what does.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 << 10)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail, what needs more than there is."""
    capabilities.need(*capabilities.required(item))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count the skips by reason, so that none goes unseen."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section("skipped, by reason")
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{count:5}  {reason}")


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hide CI, the user and their settings from what runs in this process; returns the private home."""
    for name in list(os.environ):
        if (name.startswith(_PRIVATE) or name in _PRIVATE_NAMES) and name != capabilities.REQUIRE_ALL:
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    for name, value in clean_environment(home).items():
        if name in {"HOME", "CACHEKIT_LOCK_DIR"} or name.startswith("XDG_"):
            monkeypatch.setenv(name, value)
    (home / "run").mkdir()
    return home


@pytest.fixture(autouse=True)
def closed_above(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the test that opens what lies above `tmp_path` to other users: all the others in this process see it."""
    yield
    base = tmp_path_factory.getbasetemp()
    for above in (base, base.parent):
        mode = stat.S_IMODE(above.stat().st_mode)
        if above.name.startswith(("popen-", "pytest-")) and mode & 0o077:
            above.chmod(0o700)
            pytest.fail(f"{above} was left with mode {mode:o}: use open_path, or nobody_cli")


@pytest.fixture
def cli(tmp_path: Path, clean_surroundings: Path) -> Cli:
    """The command line in `tmp_path`, with a home outside of it."""
    return Cli(clean_surroundings, tmp_path)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory below which an ordinary user may go, which `tmp_path` is not; removed at the end."""
    base = Path(tempfile.mkdtemp(prefix="cachekit-test-"))
    base.chmod(0o755)
    try:
        yield base
    finally:
        for mount in filesystems.mounts_below(base):
            filesystems.unmount(mount)
        shutil.rmtree(base)


@pytest.fixture
def nobody_cli(open_path: Path) -> Cli:
    """The command line as an ordinary user in `open_path/work`, which is theirs; needs `unprivileged`."""
    capabilities.need("unprivileged")
    work = open_path / "work"
    work.mkdir()
    os.chown(work, NOBODY, NOBODY)
    return Cli(open_path / "home", work, NOBODY)
