"""The ledger: whole lines beside others, nothing that stops a build, nothing believed on reading."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cachekit.store.layout import MisplacedPart
from cachekit.system import machine
from cachekit.system.files import opened
from cachekit.telemetry import events, ledger
from cachekit.telemetry.ledger import Reader, record, sweep
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.processes import start
from tests.support.shelf import Shelf

NOW = 1_780_000_000 * 10**9


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A store that has been made."""
    made = Shelf(tmp_path / "store")
    made.store.prepare()
    return made


def an_event(**more: Any) -> events.Event:
    """Make an event."""
    return {"v": 1, "event": "save", "namespace": "default", "status": "saved", "key": "k-1", **more}


def read(shelf: Shelf) -> tuple[list[dict[str, Any]], Reader]:
    """Read all events, and how it went."""
    reader = Reader()
    try:
        with shelf.store.part("events") as folder:
            return list(reader.events(folder)), reader
    except MisplacedPart:
        return [], reader


def the_file(shelf: Shelf) -> Path:
    """The one file of the ledger."""
    (found,) = shelf.folder("events").iterdir()
    return found


def test_an_event_is_a_line_and_comes_back(shelf: Shelf) -> None:
    """What is recorded is read again, with its time; the file is that of machine and month."""
    assert record(shelf.store_address, [an_event(bytes=5), an_event(bytes=6)]) == 2
    found, reader = read(shelf)
    assert [event["bytes"] for event in found] == [5, 6]
    assert (reader.damaged, reader.unreadable) == (0, 0)
    assert the_file(shelf).name.startswith(machine.machine_name() + "-20")
    assert the_file(shelf).read_bytes().count(b"\n") == 2


def test_without_a_store_nothing_is_made(tmp_path: Path) -> None:
    """A miss where there is no store leaves none behind."""
    assert record(str(tmp_path / "nowhere"), [an_event()]) == 0
    assert list(tmp_path.iterdir()) == []


def test_it_can_be_switched_off(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """CACHEKIT_EVENTS=off writes nothing."""
    monkeypatch.setenv(ledger.OFF, "off")
    assert record(shelf.store_address, [an_event()]) == 0
    assert shelf.names("events") == []


def test_a_store_made_before_there_were_events(shelf: Shelf) -> None:
    """The directory is made if it is missing."""
    shelf.folder("events").rmdir()
    assert record(shelf.store_address, [an_event()]) == 1


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "linked directory"])
def test_what_is_in_its_place(shelf: Shelf, tmp_path: Path, kind: str) -> None:
    """A FIFO, a link or a directory in the ledger's place is not written to, not waited for, and no error."""
    record(shelf.store_address, [an_event()])
    place, outside = the_file(shelf), tmp_path / "outside"
    place.unlink()
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "link":
        outside.write_bytes(b"")
        place.symlink_to(outside)
    elif kind == "directory":
        place.mkdir()
    else:
        outside.mkdir()
        shelf.folder("events").rmdir()
        shelf.folder("events").symlink_to(outside)
    assert record(shelf.store_address, [an_event()]) == 0
    if outside.is_file():
        assert outside.read_bytes() == b""
    elif outside.is_dir():
        assert list(outside.iterdir()) == []
    assert read(shelf)[0] == []


def test_a_fifo_that_somebody_reads_is_not_written_to(shelf: Shelf) -> None:
    """Also with a reader at its other end a FIFO gets nothing."""
    record(shelf.store_address, [an_event()])
    place = the_file(shelf)
    place.unlink()
    os.mkfifo(place)
    fd = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert record(shelf.store_address, [an_event()]) == 0
        assert os.read(fd, 100) == b""
    finally:
        os.close(fd)


def test_a_file_does_not_grow_for_ever(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its limit nothing is appended."""
    record(shelf.store_address, [an_event()])
    monkeypatch.setattr(ledger, "_LARGEST", 10)
    assert record(shelf.store_address, [an_event()]) == 0
    assert len(read(shelf)[0]) == 1


def test_a_cut_line_costs_itself_only(shelf: Shelf) -> None:
    """After a line that a full disk cut, the next one is whole; the cut one is counted as damaged."""
    record(shelf.store_address, [an_event(bytes=1)])
    os.truncate(the_file(shelf), the_file(shelf).stat().st_size - 9)
    record(shelf.store_address, [an_event(bytes=2), an_event(bytes=3)])
    found, reader = read(shelf)
    assert [event["bytes"] for event in found] == [2, 3]
    assert reader.damaged == 1


@example("k" * 512, {f"{number}" * 100: 1.0 for number in range(40)})
@example("\N{SNOWMAN}" * 600, {f"{number}": 1.0 for number in range(40)})
@given(st.text(max_size=600), st.dictionaries(st.text(max_size=300), st.floats(0, 1), max_size=40))
def test_a_line_is_bounded_and_one_line(text: str, phases: dict[str, float]) -> None:
    """Whatever an event holds, it is one line of UTF-8 of at most 4096 bytes that reads back."""
    event = an_event(key=text, matched=text, cache=text, phases=phases, time=1.5)
    line = ledger._line(dict(event))
    assert len(line) <= 4096
    assert line.count(b"\n") == 1
    read_back = ledger._parse(line)
    assert read_back is not None
    assert read_back["event"] == "save"
    if "key" in read_back:
        assert read_back["key"] == text.encode("utf-8", "backslashreplace").decode()


@given(st.binary(max_size=300))
def test_reading_any_bytes(data: bytes) -> None:
    """No content of a line makes reading fail, and what comes out has its types."""
    event = ledger._parse(data)
    assert event is None or isinstance(event["time"], int | float)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[1]",
        b"null",
        b'{"v":1,"event":"save"}',
        b'{"v":2,"event":"save","namespace":"n"}',
        b'{"v":1,"event":"save","namespace":"n","bytes":NaN}',
        b'{"v":1,"event":"save","namespace":"n","bytes":1e999}',
        b'{"v":1,"event":"save","namespace":"n","bytes":-1}',
        b'{"v":1,"event":"save","namespace":"n","bytes":true}',
        b'{"v":1,"event":"save","namespace":"n","seconds":"1"}',
        b'{"v":1,"event":"save","namespace":"n","key":7}',
        b'{"v":1,"event":"save","namespace":"n","bytes":' + b"9" * 4000 + b"}",
        b"[" * 4000,
        b"\xff\xfe",
        b"x" * 100_000,
    ],
)
def test_damaged_lines_are_counted(shelf: Shelf, line: bytes) -> None:
    """A line that is no event is passed over and counted once; its neighbours are read."""
    record(shelf.store_address, [an_event(bytes=1)])
    with the_file(shelf).open("ab") as file:
        file.write(line + b"\n")
    record(shelf.store_address, [an_event(bytes=2)])
    found, reader = read(shelf)
    assert [event["bytes"] for event in found] == [1, 2]
    assert reader.damaged == (1 if line else 0)


def test_lines_of_many_writers_stay_whole(shelf: Shelf) -> None:
    """Eight processes that write at once lose no line and cut none in two."""
    script = (
        "import sys; from cachekit.telemetry.ledger import record\n"
        "for n in range(200): record(sys.argv[1],"
        " [{'v': 1, 'event': 'save', 'namespace': 'n', 'key': sys.argv[2] * 300, 'bytes': n}])"
    )
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(start([sys.executable, "-c", script, str(shelf.root), name]))
            for name in "abcdefgh"
        ]
        for writer in writers:
            writer.wait().expect()
    found, reader = read(shelf)
    assert reader.damaged == 0
    assert len(found) == 8 * 200
    for name in "abcdefgh":
        assert [e["bytes"] for e in found if e["key"] == name * 300] == list(range(200))


def test_old_months_go(tmp_path: Path) -> None:
    """Files of months that ended more than 13 months ago go, others and what is no ledger stay."""
    names = ["a-2025-03.jsonl", "a-2025-04.jsonl", "b-c-2026-05.jsonl", "notes-2001.txt", "a-1999-13.jsonl"]
    for name in names:
        (tmp_path / name).touch()
    with opened(bytes(tmp_path)) as folder:
        assert sweep(folder, NOW) == 1  # NOW is in May 2026
        assert sorted(os.listdir(tmp_path)) == sorted(names[1:])
        assert sweep(folder, 0) == 0


def test_months_before_are_not_even_opened(shelf: Shelf) -> None:
    """With a limit in time, files of months before it are passed over, and so are older lines."""
    folder = shelf.folder("events")
    (folder / "a-2020-01.jsonl").write_bytes(b"damaged\n")
    lines = [json.dumps(an_event(time=moment)) for moment in (1000.0, 1_700_000_000.0)]
    (folder / "a-2023-11.jsonl").write_text("\n".join(lines) + "\n")
    reader = Reader()
    with opened(bytes(folder)) as there:
        assert [e["time"] for e in reader.events(there, 1_699_999_999.0)] == [1_700_000_000.0]
    assert reader.damaged == 0


def test_a_job_is_named_by_its_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job of each CI system is known, and nothing else of the environment is taken."""
    assert events.job_of({}) is None
    assert events.job_of({"CI_JOB_ID": "7", "SECRET": "s"}) == "7"
    github = {"GITHUB_RUN_ID": "1", "GITHUB_RUN_ATTEMPT": "2", "GITHUB_JOB": "build", "GITHUB_TOKEN": "t"}
    assert events.job_of(github) == "1.2.build"
    assert events.job_of({"BUILD_TAG": "x" * 500}) == "x" * 100


# The commands


def test_commands_record(cli: Cli, tmp_path: Path) -> None:
    """A save, a hit, a miss, a refusal and a failure are in the ledger, without anything of the environment."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_text("1")
    secret = {"SECRET_TOKEN": "hunter2", "CI_JOB_ID": "job-9"}
    cli("save", "--key=k-1", "tree", env=secret).expect()
    cli("save", "--key=k-1", "tree", env=secret).expect()
    cli("restore", "--key=k-1", env=secret).expect()
    cli("restore", "--key=k-9", "--restore-key=k-", env=secret).expect()
    cli("restore", "--key=none", env=secret).expect()
    shelf = Shelf(cli.home / ".cache/cachekit")
    os.truncate(shelf.path("k-1"), 100)
    cli("restore", "--key=k-1", env=secret).expect()
    cli("save", "--key=k-2", "missing", env=secret).expect(8)
    found, reader = read(shelf)
    assert [(e["event"], e["status"]) for e in found] == [
        ("save", "saved"),
        ("save", "exists"),
        ("restore", "exact"),
        ("restore", "partial"),
        ("restore", "miss"),
        ("refusal", "damaged"),
        ("restore", "refused"),
        ("save", "error"),
    ]
    assert reader.damaged == 0
    first = found[0]
    assert (first["key"], first["cache"], first["files"], first["job"]) == ("k-1", "k", 1, "job-9")
    assert first["bytes"] > 0
    assert first["phases"]
    assert found[-1]["error"] == "nothing-matched"
    text = the_file(shelf).read_text()
    assert "hunter2" not in text
    assert str(tmp_path) not in text


def test_a_prune_records_what_it_removed(cli: Cli, shelf: Shelf) -> None:
    """Each entry that a prune removed is an eviction with its bytes and reason; a dry run writes nothing."""
    shelf.put("k-1", used_days=9)
    shelf.put("k-2", used_days=1)
    cli("prune", "--store", shelf.root, "--max-entries=1", "--dry-run").expect()
    assert read(shelf)[0] == []
    size = shelf.path("k-1").stat().st_blocks * 512
    cli("prune", "--store", shelf.root, "--max-entries=1").expect()
    (event,) = read(shelf)[0]
    assert (event["event"], event["status"], event["key"], event["bytes"]) == (
        "eviction",
        "max-entries",
        "k-1",
        size,
    )


@requires("tmpfs")
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_no_exit_code_changes(cli: Cli, tmp_path: Path, trouble: str) -> None:
    """On a store's full or read-only disk a restore is what it was, exit 0, though nothing can be written down."""
    from tests.support.filesystems import tmpfs

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_text("1")
    with tmpfs() as disk:
        store = disk.path / "store"
        cli("save", "--key=k-1", "--store", store, "tree").expect()
        shelf = Shelf(store)
        the_file(shelf).unlink()
        if trouble == "full":
            disk.use_up_inodes() if os.statvfs(disk.path).f_files else disk.fill(0)
        else:
            disk.read_only()
        cli("restore", "--key=k-1", "--store", store, "tree").expect(0)
        cli("restore", "--key=none", "--store", store, "tree").expect(0)
        assert read(shelf)[0] == []
        if trouble == "read-only":
            disk.writable()


@requires("unprivileged")
def test_no_permission(nobody_cli: Cli, open_path: Path) -> None:
    """Who may read a store but not write it restores as before, exit 0, and nothing is written down."""
    shelf = Shelf(open_path / "store")
    shelf.put("k-1")
    for folder, _, _ in os.walk(shelf.root):
        os.chmod(folder, 0o755)
    shelf.path("k-1").chmod(0o644)
    nobody_cli("restore", "--key=k-1", "--store", shelf.root).expect(0)
    assert read(shelf)[0] == []
