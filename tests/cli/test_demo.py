"""`cachekit demo`: a story that is true, and that fails when it is not."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cachekit.model import RestoreReport
from cachekit.store.directory import DirectoryStore
from tests.support.cli import Cli
from tests.support.in_process import Here
from tests.support.processes import wait_until


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty temporary directory for the demo, and for nothing else."""
    path = tmp_path / "scratch"
    path.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(path))
    return path


def test_story(here: Here, scratch: Path) -> None:
    """The demo saves, restores, refuses a cut entry and heals, in plain ASCII of 80 columns, and leaves nothing."""
    done = here("demo").expect()
    lines = done.stdout.splitlines()
    assert [line[0] for line in lines if re.match(r"\d\. ", line)] == ["1", "2", "3", "4", "5"]
    assert [line for line in lines if len(line) > 80 and str(scratch) not in line] == []
    assert done.stdout.isascii()
    assert sum(line.startswith("   ok: ") for line in lines) == 7
    for part in (
        "$ cachekit save --key",
        "$ cachekit restore --key",
        "at: rung seal",
        "expected: ",
        "found: ",
    ):
        assert part in done.stdout
    assert "All 7 checks held" in lines[-1]
    assert list(scratch.iterdir()) == []
    assert list(here.root.iterdir()) == []
    assert not here.store.exists()


def test_json(here: Here, scratch: Path) -> None:
    """--json gives the checks instead of the story."""
    report = here("demo", "--json").expect().json()
    assert report["ok"] is True
    assert [check["ok"] for check in report["checks"]] == [True] * 7
    assert report["directory"] is None


def test_keep(here: Here, scratch: Path) -> None:
    """--keep leaves the directory and says how to look around in it."""
    done = here("demo", "--keep").expect()
    (path,) = scratch.iterdir()
    assert f"cd {path}" in done.stdout
    assert here("ls", "--store", path / "store", "--json").expect().json()[0]["key"] == "demo-v1"


def test_settings_and_ci_are_left_alone(
    here: Here, scratch: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The demo writes no outputs of the job that runs it, and does not use the user's store."""
    outputs = tmp_path / "outputs"
    outputs.touch()
    monkeypatch.setenv("GITHUB_OUTPUT", str(outputs))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("CACHEKIT_STORE", str(tmp_path / "mine"))
    before = dict(os.environ)
    done = here("demo").expect()
    assert outputs.read_bytes() == b""
    assert "::" not in done.stdout + done.stderr
    assert not (tmp_path / "mine").exists()
    assert dict(os.environ) == before
    assert Path.cwd() == here.root


def failed(here: Here) -> list[str]:
    """Run the demo, which must fail; return the checks that did not hold."""
    done = here("demo", "--json").expect(1)
    assert done.json()["ok"] is False
    return [check["what"] for check in done.json()["checks"] if not check["ok"]]


def refusal_is(monkeypatch: pytest.MonkeyPatch, broken: Callable[[RestoreReport, Path], object]) -> None:
    """Let a restore do something else with what it refuses."""
    from cachekit.cache.restore import RestoreRequest, restore

    def changed(request: RestoreRequest) -> RestoreReport:
        report = restore(request)
        if report.status == "refused":
            broken(report, Path("node_modules"))
        return report

    monkeypatch.setattr("cachekit.cli.restore.restore_entry", changed)


def test_restore_that_does_not_refuse(here: Here, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore that calls a cut archive a hit makes the demo fail."""

    def call_it_a_hit(report: RestoreReport, _target: Path) -> None:
        report.status = "exact"

    refusal_is(monkeypatch, call_it_a_hit)
    assert any("refused" in what for what in failed(here))
    assert "FAILED: refused" in here("demo").expect(1).stdout


@pytest.mark.parametrize(
    "touch",
    [
        lambda target: (target / "half").write_bytes(b"1"),
        lambda target: (target / "library.so").unlink(),
        lambda target: os.utime(target / "library.so"),
        lambda target: target.rename("x") and Path("x").rename("node_modules"),
    ],
    ids=["a file more", "a file less", "a time", "renamed and back"],
)
def test_target_that_is_touched(
    here: Here, scratch: Path, monkeypatch: pytest.MonkeyPatch, touch: Callable[[Path], object]
) -> None:
    """A refusal that changes the target in the least makes the demo fail."""
    refusal_is(monkeypatch, lambda _report, target: touch(target))
    assert any("not touched" in what for what in failed(here))


def test_entry_that_is_not_set_aside(here: Here, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused entry that stays in the store makes the demo fail."""
    monkeypatch.setattr(DirectoryStore, "set_aside", lambda *_: False)
    assert any("set aside" in what for what in failed(here))


def test_restore_that_loses_a_file(here: Here, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore that is not whole makes the demo fail."""
    from cachekit.cache.restore import RestoreRequest, restore

    def losing(request: RestoreRequest) -> RestoreReport:
        report = restore(request)
        if report.hit:
            Path("node_modules/package-00/lib/part-03.js").unlink()
        return report

    monkeypatch.setattr("cachekit.cli.restore.restore_entry", losing)
    assert [what.split()[0] for what in failed(here)][:1] == ["restored"]


def test_no_temporary_directory(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no temporary directory can be made, a sentence says what to set."""
    monkeypatch.setattr("tempfile.tempdir", "/no/such/directory")
    assert "TMPDIR" in here("demo").expect(2).stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(cli: Cli, number: signal.Signals, code: int) -> None:
    """Ctrl-C or a stop of the job ends the demo at once, and its directory is removed."""
    scratch = cli.home / "tmp"
    with cli.start("demo") as running:
        wait_until(lambda: any(scratch.glob("cachekit-demo-*/project/node_modules/p*")), "the demo's tree")
        running.send(number)
        done = running.wait()
    assert done.code == code
    assert "Traceback" not in done.stderr
    assert list(scratch.iterdir()) == []
