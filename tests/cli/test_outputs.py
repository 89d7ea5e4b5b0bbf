"""What later steps of a job read ($GITHUB_OUTPUT, dotenv, annotations, JSON), and what people see meanwhile."""

from __future__ import annotations

import itertools
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cachekit.cli.progress import ProgressBar
from tests.support.in_process import Here, cut
from tests.support.processes import clean_environment
from tests.support.trees import File, make_tree


@pytest.fixture
def saved(here: Here) -> Here:
    """A store with the entry `npm-1` of the tree `t`."""
    make_tree(here.root, {"t": {"a": b"12345"}})
    here.save("npm-1", "t")
    return here


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that GitHub Actions gives a step for its outputs."""
    path = tmp_path / "outputs"
    path.write_text("earlier=value\n")
    monkeypatch.setenv("GITHUB_OUTPUT", str(path))
    return path


def parsed(path: Path) -> dict[str, str]:
    """Read the outputs as the runner does: NAME<<DELIMITER, lines, DELIMITER; or NAME=value."""
    found: dict[str, str] = {}
    lines = iter(path.read_text().splitlines())
    for line in lines:
        name, heredoc, delimiter = line.partition("<<")
        if not heredoc:
            name, _, found[name] = line.partition("=")
            continue
        found[name] = "\n".join(itertools.takewhile(delimiter.__ne__, lines))
    return found


@pytest.mark.parametrize(
    ("key", "hit", "status", "matched", "content"),
    [
        ("npm-1", "true", "exact", "npm-1", "5"),
        ("npm-2", "false", "partial", "npm-1", "5"),
        ("pip-1", "false", "miss", "", "0"),
    ],
)
def test_github_outputs(
    saved: Here, outputs: Path, key: str, hit: str, status: str, matched: str, content: str
) -> None:
    """A restore appends its outputs; cache-hit is true only for the exact key, else false."""
    prefix = "npm-" if key != "pip-1" else "pip-"
    saved("restore", "--key", key, "--restore-key", prefix).expect()
    found = parsed(outputs)
    assert float(found.pop("seconds")) >= 0
    assert found == {
        "earlier": "value",
        "cache-hit": hit,
        "status": status,
        "matched-key": matched,
        "bytes": content,
        "files": "1" if hit == "true" or status == "partial" else "0",
    }


def test_github_outputs_of_a_refusal(saved: Here, outputs: Path) -> None:
    """A refused entry is no hit: cache-hit false, status refused, as after a miss."""
    cut(saved.entry("npm-1"))
    saved("restore", "--key", "npm-1").expect()
    assert (parsed(outputs)["cache-hit"], parsed(outputs)["status"]) == ("false", "refused")


def test_github_outputs_of_a_failure(saved: Here, outputs: Path) -> None:
    """A restore that failed says cache-hit false too, so that no later step reads an empty text."""
    saved("restore", "--key", "npm-1", "not-in-it", "--soft-fail").expect()
    assert (parsed(outputs)["cache-hit"], parsed(outputs)["status"]) == ("false", "error")


def test_github_outputs_cannot_be_forged(here: Here, outputs: Path) -> None:
    """Each value stands between lines of a random delimiter of its own: a key cannot add outputs."""
    key = "k<<EOF cache-hit=true"
    make_tree(here.root, {"t": {"a": b"1"}})
    here.save(key, "t")
    here("restore", "--key", "k", "--restore-key", "k<").expect()
    assert parsed(outputs)["matched-key"] == key
    assert parsed(outputs)["cache-hit"] == "false"
    delimiters = re.findall(r"<<(cachekit-[0-9a-f]{32})$", outputs.read_text(), re.MULTILINE)
    assert len(delimiters) == len(set(delimiters)) == 6


def test_outputs_that_cannot_be_written(saved: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output file that cannot be written is a warning: what was restored stays restored."""
    monkeypatch.setenv("GITHUB_OUTPUT", "/no/such/file")
    done = saved("restore", "--key", "npm-1").expect()
    assert "$GITHUB_OUTPUT" in done.stderr
    assert "restored npm-1" in done.stderr


@pytest.mark.parametrize("by_environment", [False, True])
def test_dotenv(saved: Here, monkeypatch: pytest.MonkeyPatch, by_environment: bool) -> None:
    """--dotenv, or $CACHEKIT_DOTENV, names a file that gets the outputs as variables, one a line."""
    if by_environment:
        monkeypatch.setenv("CACHEKIT_DOTENV", "report.env")
    saved("restore", "--key", "npm-1", *([] if by_environment else ["--dotenv", "report.env"])).expect()
    lines = dict(line.split("=", 1) for line in Path("report.env").read_text().splitlines())
    assert float(lines.pop("CACHEKIT_SECONDS")) >= 0
    assert lines == {
        "CACHEKIT_CACHE_HIT": "true",
        "CACHEKIT_STATUS": "exact",
        "CACHEKIT_MATCHED_KEY": "npm-1",
        "CACHEKIT_BYTES": "5",
        "CACHEKIT_FILES": "1",
    }


def test_dotenv_that_cannot_be_written(saved: Here) -> None:
    """A dotenv file that cannot be written is exit 2, before anything is restored."""
    Path("t/a").unlink()
    done = saved("restore", "--key", "npm-1", "--dotenv", "no/such/file").expect(2)
    assert "--dotenv" in done.stderr
    assert not Path("t/a").exists()


@pytest.mark.parametrize("value", [None, "false", "1", "true"])
def test_annotations_only_in_github_actions(
    saved: Here, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """Warnings and errors become annotations where GITHUB_ACTIONS is "true", and on stderr: stdout is for data."""
    if value is not None:
        monkeypatch.setenv("GITHUB_ACTIONS", value)
    failed = saved("restore", "--key", "npm-1", "not-in-it", "--json").expect(8)
    cut(saved.entry("npm-1"))
    refused = saved("restore", "--key", "npm-1", "--json").expect()
    assert refused.json()["status"] == "refused"
    assert failed.json()["error"]["id"] == "target-not-named"
    for done, kind in ((failed, "error"), (refused, "warning")):
        annotations = [line for line in done.stderr.splitlines() if line.startswith("::")]
        assert len(annotations) == (value == "true")
        assert all(line.startswith(f"::{kind} title=cachekit::") for line in annotations)


def test_annotation_is_one_line(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name brings cannot end an annotation, nor begin another command: %, line breaks are escaped."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    done = here("save", "--key", "k", "100%\n::add-mask::x").expect(8)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("::")]
    assert "100%25\\n::add-mask::x" in line
    assert "%0Apath: " in line
    assert "%0Ahint: " in line


def test_stdout_has_only_data(saved: Here) -> None:
    """Without --json save, restore and recover print nothing on stdout; ls, show and verify print the data alone."""
    Path("t/a").unlink()
    for arguments in (["save", "--key=k", "t", "--allow-empty"], ["restore", "--key=npm-1"], ["recover"]):
        assert saved(*arguments).expect().out == b""
    assert len(saved("ls").stdout.splitlines()) == 2
    assert len(saved("verify", "--all").stdout.splitlines()) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["save", "--key=k", "t"],
        ["save", "--key=npm-1", "t"],
        ["save", "--key=k", "missing"],
        ["save", "--key=", "t"],
        ["save", "--key=k"],
        ["save", "--key=k", "--no-such-option"],
        ["restore", "--key=npm-1"],
        ["restore", "--key=k"],
        ["restore", "--key=npm-1", "missing"],
        ["verify", "--all"],
        ["verify", "missing"],
        ["verify"],
        ["ls"],
        ["ls", "--quarantine"],
        ["show", "npm-1"],
        ["show", "npm-1", "--files"],
        ["show", "npm-1", "--manifest"],
        ["show", "missing"],
        ["recover"],
    ],
    ids=" ".join,
)
def test_json_is_one_document(saved: Here, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With --json stdout is one JSON document on one line, whatever happens, in GitHub Actions too."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    done = saved(*arguments, "--json")
    report = done.json()
    assert done.out.count(b"\n") == 1
    if done.code not in (0, 3) or (arguments[0] == "show" and done.code):
        assert report["error"]["exit_code"] == done.code
        assert {"id", "message"} <= set(report["error"])


class Clock:
    """A clock that goes on only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_in_a_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a log progress is a line every five seconds at most, without carriage returns or escapes."""
    clock = Clock()
    monkeypatch.setattr("cachekit.cli.progress.time.monotonic", clock)
    bar = ProgressBar("saving")
    for step in range(200):
        clock.now += 0.125
        bar(step << 20, 0 if step < 100 else 200 << 20, step)
    bar.close()
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 5
    assert "\r" not in told
    assert "\x1b" not in told
    assert "members so far" in told.splitlines()[0]
    assert re.search(r"saving: \d+% of 200\.0 MiB", told.splitlines()[-1])


def test_progress_of_something_without_members(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no members are counted, as for a file that is checked, none are told."""
    clock = Clock()
    monkeypatch.setattr("cachekit.cli.progress.time.monotonic", clock)
    bar = ProgressBar("checking")
    clock.now += 6
    bar(5 << 20, 10 << 20, 0)
    told = capsys.readouterr().err
    assert " 50% of 10.0 MiB, " in told
    assert "members" not in told


def test_no_progress_for_a_short_job(saved: Here) -> None:
    """A job that takes less than some seconds prints its closing line only."""
    assert len(saved("restore", "--key", "npm-1").expect().stderr.splitlines()) == 1


def on_a_terminal(here: Here, *args: str, term: str = "xterm", columns: int = 80) -> str:
    """Run a command whose stderr is a terminal; return what that got."""
    master, slave = pty.openpty()
    environment = clean_environment(here.home) | {"TERM": term, "COLUMNS": str(columns)}
    with subprocess.Popen(
        [sys.executable, "-m", "cachekit", *args], cwd=here.root, env=environment, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        told = b""
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            if select.select([master], [], [], 0.2)[0]:
                try:
                    told += os.read(master, 65536)
                except OSError:  # EIO: the last one who had the terminal open closed it
                    break
        assert process.wait(10) == 0, told
    os.close(master)
    return told.decode()


def test_progress_on_a_terminal(here: Here) -> None:
    """On a terminal a bar is drawn over itself, never wider than the terminal, and gone at the end."""
    make_tree(here.root, {"t": {f"{n}": File(os.urandom(1 << 20)) for n in range(16)}})
    told = on_a_terminal(here, "save", "--key=k", "t", "--level=15", columns=60)
    frames = told.split("\r")
    drawn = [frame for frame in frames if frame.startswith("saving [")]
    assert drawn
    assert all(len(frame.removesuffix("\x1b[K")) < 60 for frame in drawn)
    assert told.rstrip().splitlines()[-1].split("\x1b[K")[-1].startswith("saved k: 16 files, 16.0 MiB as ")
    assert "\n" not in told.partition("saved k")[0]


def test_dumb_terminal(here: Here) -> None:
    """A terminal that cannot move its cursor gets lines, as a log does."""
    make_tree(here.root, {"t": {"a": b"1"}})
    assert "\x1b" not in on_a_terminal(here, "save", "--key=k", "t", term="dumb")
