"""What carries an entry cuts it, changes it, or runs full; whoever carries it is killed, or is not alone."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cachekit.archive.check import check_archive
from cachekit.archive.extract import check_frames
from cachekit.archive.format import FILE
from cachekit.archive.read import open_archive
from cachekit.cache.carry import exporting, importing
from cachekit.cache.carry.exporting import ExportRequest, export
from cachekit.cache.carry.importing import ImportRequest, import_carried
from cachekit.cache.carry.place import CARRIED
from cachekit.errors import CachekitError, Damaged, NoSpace
from cachekit.system.publish import link_as
from cachekit.trust import ANYONE
from tests.carry.conftest import another_machine
from tests.carry.test_round_trip import exported, imported, keys
from tests.crash.scene import die_at
from tests.support import filesystems
from tests.support.archives import Member, directory, entry_of
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.flaky import flaky
from tests.support.in_process import Here
from tests.support.ordinary_user import NOBODY
from tests.support.shelf import Shelf, sealed
from tests.support.surgery import anatomy, flip

MIB = 1 << 20


def take(store: Path, place: Path, **more: object) -> str:
    """Import into a store; return the status of the only file."""
    report = import_carried(ImportRequest(str(store), [str(place)], **more))  # type: ignore[arg-type]
    return report.files[0].status if report.files else report.status


def leftovers(store: Path) -> list[str]:
    """What an import left of its own in a store."""
    return sorted(os.listdir(store / "v1/default/tmp")) if (store / "v1").exists() else []


def whole(path: Path) -> str:
    """Check every frame of an archive file; return its key."""
    with open_archive(bytes(path), ANYONE) as archive:
        check_archive(archive)
        check_frames(archive, 0)
        return archive.seal.key


def test_every_kind_of_cut(here: Here, carry: Path, tmp_path: Path) -> None:
    """Cut at, before or after the edge of any structure, or anywhere else, it is refused, and not carried on."""
    exported(here, "--key=k-1")
    path = carry / CARRIED
    parts, data = anatomy(path), path.read_bytes()
    path.unlink()
    cuts = {offset + by for _, offset in parts.edges() for by in (-1, 0, 1)}
    cuts |= set(random.Random(6).sample(range(parts.size), 20))
    for cut in sorted(cut for cut in cuts if 0 <= cut < parts.size):
        path.write_bytes(data[:cut])
        assert take(tmp_path / "other", carry) == "damaged", cut
        assert not path.exists(), cut
    assert keys(tmp_path / "other") == []
    assert leftovers(tmp_path / "other") == []
    path.write_bytes(data)
    assert take(tmp_path / "other", carry) == "imported"


def test_every_part_changed(here: Here, carry: Path, tmp_path: Path) -> None:
    """One bit the other way round anywhere, or bytes at the end, and it is refused."""
    exported(here, "--key=k-1")
    path = carry / CARRIED
    parts, data = anatomy(path), path.read_bytes()
    offsets = [min(offset, parts.size - 1) for _, offset in parts.edges()]
    for offset in [*offsets, *random.Random(7).sample(range(parts.size), 20)]:
        path.unlink(missing_ok=True)
        path.write_bytes(flip(data, offset))
        assert take(tmp_path / "other", carry) in {"damaged", "unsupported"}, offset
    for tail in (b"\0", data):
        path.unlink(missing_ok=True)
        path.write_bytes(data + tail)
        assert take(tmp_path / "other", carry) == "damaged"
    assert keys(tmp_path / "other") == []


def test_an_unsafe_entry(here: Here, carry: Path, tmp_path: Path) -> None:
    """A whole entry whose members would lead out of the targets is neither imported nor exported."""
    data = entry_of([directory(b"tree"), Member(b"tree/../../x", FILE, b"x")], key="evil").seal()
    carry.mkdir(parents=True)
    (carry / CARRIED).write_bytes(data)
    assert take(tmp_path / "other", carry) == "unsafe"
    assert os.listdir(carry) == []
    (here.entries()[0].parent / Shelf(here.store).name("evil")).write_bytes(data)
    report = exported(here, "--key=evil", code=4)
    assert report["tried"][0]["verdict"] == "unsafe"
    assert os.listdir(carry) == []


def test_a_refusal(here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused file is exit 4 with a sentence, 0 with --soft-fail; a file that was named is left where it is."""
    exported(here, "--key=k-1", "--copy")
    shutil.copy(carry / CARRIED, "copy.tar.zst")
    os.truncate("copy.tar.zst", 500)
    with another_machine(monkeypatch, tmp_path / "other"):
        done = here("store", "import", "copy.tar.zst").expect(4)
        assert "refused (damaged)" in done.stderr
        report = imported(here, "--soft-fail", "copy.tar.zst")
        assert (report["status"], report["files"][0]["removed"]) == ("refused", False)
        assert Path("copy.tar.zst").stat().st_size == 500
        os.truncate(carry / CARRIED, 500)
        report = imported(here, code=4)
        assert report["files"][0]["removed"] is True
        assert imported(here)["status"] == "miss"


def test_one_refusal_of_several(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged file does not keep the others out; the exit code tells of it all the same."""
    exported(here, "--key=k-1", "--to=a.tar.zst")
    Path("b.tar.zst").write_bytes(b"no archive")
    with another_machine(monkeypatch, tmp_path / "other"):
        report = imported(here, "b.tar.zst", "a.tar.zst", code=4)
        assert [file["status"] for file in report["files"]] == ["damaged", "imported"]
    assert keys(tmp_path / "other") == ["k-1"]


@pytest.mark.parametrize("kind", ["fifo", "dir", "link"])
def test_something_else_in_its_place(here: Here, carry: Path, tmp_path: Path, kind: str) -> None:
    """What is no file in the place of the carried entry is refused without waiting for it or following it."""
    exported(here, "--key=k-1", "--to=real.tar.zst")
    carry.mkdir(parents=True)
    if kind == "fifo":
        os.mkfifo(carry / CARRIED)
    elif kind == "dir":
        (carry / CARRIED).mkdir()
    else:
        (carry / CARRIED).symlink_to(here.root / "real.tar.zst")
    assert take(tmp_path / "other", carry) == "damaged"
    assert Path("real.tar.zst").exists()


def test_a_spoilt_alias(here: Here, carry: Path, tmp_path: Path) -> None:
    """An entry whose alias was cut on the way is refused: under which key it belongs is not known."""
    here.save("k-2", "--skip-unchanged", "t")
    exported(here, "--key=k-2")
    os.truncate(carry / (CARRIED + ".alias"), 20)
    assert take(tmp_path / "other", carry) == "damaged"
    assert not list(carry.iterdir())


def test_a_damaged_entry_is_not_exported(here: Here, carry: Path) -> None:
    """A stored entry with a rotten frame is set aside, nothing is exported, and what was there before stays."""
    (here.root / "t/file").write_bytes(os.urandom(2000))
    here.save("k-2", "t")
    exported(here, "--key=k-1")
    path = here.entry("k-2")
    path.write_bytes(flip(path.read_bytes(), 700))
    report = exported(here, "--key=k-2", code=4)
    assert (report["status"], report["tried"][0]["verdict"]) == ("refused", "damaged")
    assert len(here.quarantine()) == 1
    assert whole(carry / CARRIED) == "k-1"
    path.write_bytes(b"cut")
    assert exported(here, "--key=k-2", "--restore-key=k-")["matched_key"] == "k-1"
    exported(here, "--key=k-2", "--soft-fail")


@pytest.mark.parametrize("action", ["export", "import"])
def test_a_source_that_changes_while_it_is_copied(
    here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """What changed between the check and the copy is not published: the copy itself is checked."""
    module = exporting if action == "export" else importing
    exported(here, "--key=k-1", "--copy")
    path = here.entry("k-1") if action == "export" else carry / CARRIED
    checked = module.check_frames

    def spoil(*args: object) -> None:
        checked(*args)
        path.write_bytes(flip(path.read_bytes(), 100))

    monkeypatch.setattr(module, "check_frames", spoil)
    if action == "export":
        report = export(ExportRequest("k-1", str(here.store), to=str(tmp_path / "new"), copy=True))
        assert not report.done
        assert not list(tmp_path.glob("new/*"))
    else:
        # Each look spoils it again: the second makes it whole, so that only the check of the copy can tell.
        assert take(tmp_path / "other", carry) in {"damaged", "imported"}
        for entry in (tmp_path / "other/v1/default/entries").iterdir():
            whole(entry)


def test_a_file_that_becomes_another_entry(
    here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another whole entry is written over meanwhile is not published under the name of the one that was opened."""
    first, second = sealed("first", b"1" * 100), sealed("other", b"2" * 100)
    assert len(first) == len(second)
    carry.mkdir(parents=True)
    (carry / CARRIED).write_bytes(first)

    def become(*args: object) -> None:
        check_frames(*args)  # type: ignore[arg-type]
        (carry / CARRIED).write_bytes(second)

    monkeypatch.setattr(importing, "check_frames", become)
    (file,) = import_carried(ImportRequest(str(tmp_path / "other"))).files
    assert (file.status, file.key) == ("imported", "other")
    assert keys(tmp_path / "other") == ["other"]


def test_an_entry_that_is_replaced_while_it_is_linked(
    here: Here, carry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a save replaces the entry between the check and the link, what was checked is exported, by a copy."""
    path, link = here.entry("k-1"), link_as
    before = path.read_bytes()

    def replaced(*args: object) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_bytes(b"not checked")
        fresh.rename(path)
        link(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "link_as", replaced)
    assert export(ExportRequest("k-1", str(here.store))).how == "copy"
    assert (carry / CARRIED).read_bytes() == before
    assert os.listdir(carry) == [CARRIED]


def test_a_file_that_is_wrong_once(
    here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reads wrong once and right the second time is imported: a bit that flipped in memory is no damage."""
    exported(here, "--key=k-1")
    checked, looks = check_frames, iter([True, False])

    def once(*args: object) -> None:
        if next(looks, False):
            raise Damaged("wrong once", rung="frames")
        checked(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(importing, "check_frames", once)
    assert take(tmp_path / "other", carry) == "imported"


def test_a_damaged_file_takes_no_room(
    here: Here, carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with a wrong frame is refused before anything of it is copied."""
    exported(here, "--key=k-1", "--copy")
    (carry / CARRIED).write_bytes(flip((carry / CARRIED).read_bytes(), 100))

    def never(*_args: object) -> None:
        raise AssertionError("it was copied")

    monkeypatch.setattr(importing, "copy_checked", never)
    assert take(tmp_path / "other", carry) == "damaged"


def test_links_in_the_directory_are_not_followed(here: Here, tmp_path: Path) -> None:
    """A link to a directory of entries, or in the place of an alias, leads nowhere."""
    exported(here, "--key=k-1", "--to=real")
    (here.root / "carried").mkdir()
    (here.root / "carried/link").symlink_to(here.root / "real")
    assert take(tmp_path / "other", here.root / "carried") == "miss"
    (here.root / "real" / (CARRIED + ".alias")).symlink_to("/dev/zero")
    assert take(tmp_path / "other", here.root / "real") == "damaged"


def test_into_the_store_itself(here: Here) -> None:
    """A place in the store is refused: an export is no way to put a file there."""
    for place in (here.store, here.entries()[0].parent, here.store / "new/x.tar.zst"):
        here("store", "export", "--key=k-1", "--to", place).expect(2)


def test_wrong_usage(here: Here) -> None:
    """Empty names and prefixes are wrong usage."""
    here("store", "export", "--key=k-1", "--to=").expect(2)
    here("store", "export", "--key=", "--to=x").expect(2)
    here("store", "export", "--key=k-1", "--restore-key=").expect(2)
    here("store", "import", "--restore-key=k").expect(2)
    here("store", "import", "--key=k", "--restore-key=").expect(2)


def big(here: Here) -> None:
    """Save 3 MiB that no compression makes smaller, as big-1."""
    (here.root / "big").write_bytes(random.Random(8).randbytes(3 * MIB))
    here.save("big-1", "big")


@requires("tmpfs")
@pytest.mark.parametrize("room", [0, 64 << 10, 2 * MIB, 3 * MIB - 4096])
def test_no_room_to_export(here: Here, room: int) -> None:
    """Where a copy does not fit, exit 5 says by how much; what was exported before stays, and nothing is left over."""
    big(here)
    with filesystems.tmpfs(8 * MIB) as disk:
        to = disk.path / "carry"
        exported(here, "--key=k-1", "--to", to)
        disk.fill(room)
        error = here("store", "export", "--json", "--key=big-1", "--to", to).expect(5).json()["error"]
        assert error["short_by"] > 0
        assert os.listdir(to) == [CARRIED]
        assert whole(to / CARRIED) == "k-1"
        (disk.path / ".filler").unlink()
        assert exported(here, "--key=big-1", "--to", to)["how"] == "copy"


@requires("tmpfs")
@pytest.mark.parametrize("room", [0, 64 << 10, 2 * MIB, 3 * MIB - 4096])
def test_no_room_to_import(here: Here, carry: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Where an entry does not fit, exit 5 (0 with --soft-fail); the carried file stays, the store is as it was."""
    big(here)
    exported(here, "--key=big-1")
    with filesystems.tmpfs(8 * MIB) as disk, another_machine(monkeypatch, disk.path / "store"):
        here.save("k-0", "t")
        disk.fill(room)
        if room >= 64 << 10:  # else the store cannot even be opened to write
            error = here("store", "import", "--json").expect(5).json()["error"]
            assert error["need"] >= 3 * MIB
            assert "nothing was written" in f"{error['message']} {error.get('hint')}"
        here("store", "import").expect(5)
        here("store", "import", "--soft-fail").expect()
        assert (carry / CARRIED).exists()
        assert keys(disk.path / "store") == ["k-0"]
        assert leftovers(disk.path / "store") == []
        (disk.path / ".filler").unlink()
        assert imported(here)["status"] == "imported"


@requires("fuse")
@pytest.mark.parametrize("action", ["export", "import"])
@pytest.mark.parametrize("fault", ["full", "error", "lost", "close"])
def test_a_disk_that_fails(here: Here, tmp_path: Path, action: str, fault: str) -> None:
    """Errors of writing, of fsync and of close, and bytes that are lost without one, publish nothing."""
    big(here)
    exported(here, "--key=big-1", "--to=big.tar.zst")
    with flaky(tmp_path / "backing") as disk:
        if fault == "full":
            disk.set_fault("write", errno=errno.ENOSPC, after=MIB, match=".part")
        elif fault == "error":
            disk.set_fault("fsync", errno=errno.EIO, match=".part")
        elif fault == "lost":
            disk.set_fault("write", after=MIB, lie="hole", match=".part")
        else:
            disk.set_fault("flush", errno=errno.EIO, match=".part")
        place = disk.mount / "there"
        done: object
        try:
            if action == "export":
                done = export(ExportRequest("big-1", str(here.store), to=str(place))).status
            else:
                done = take(place, here.root / "big.tar.zst")
        except CachekitError as error:
            done = error
        assert isinstance(done, NoSpace) is (fault == "full")
        assert done not in {"exported", "imported"}
        assert list(place.rglob("*.tar.zst")) == []
        disk.clear()
        assert here.quarantine() == []
        if action == "export":
            assert export(ExportRequest("big-1", str(here.store), to=str(place))).status == "exported"
            assert os.listdir(place) == [CARRIED]
        else:
            assert take(place, here.root / "big.tar.zst") == "imported"
            assert leftovers(place) == []


@requires("fuse")
def test_a_carried_file_that_cannot_be_read(here: Here, carry: Path, tmp_path: Path) -> None:
    """An error of the disk under the carried file is exit 9: the file may be whole, and stays."""
    big(here)
    with flaky(tmp_path / "backing") as disk:
        exported(here, "--key=big-1", "--to", disk.mount)
        disk.set_fault("read", errno=errno.EIO)
        assert take(tmp_path / "other", disk.mount) == "unreadable"
        here("store", "import", disk.mount).expect(9)
        here("store", "import", "--soft-fail", disk.mount).expect()
        disk.clear()
        assert take(tmp_path / "other", disk.mount) == "imported"


def test_a_read_only_store(here: Here, carry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that may only restore exports, and imports nothing: exit 9, 0 with --soft-fail."""
    monkeypatch.setenv("CACHEKIT_READ_ONLY", "1")
    assert exported(here, "--key=k-1")["status"] == "exported"
    (here.root / "other").mkdir()
    with another_machine(monkeypatch, here.root / "other"):
        done = here("store", "import").expect(9)
        assert "read-only" in done.stderr
        here("store", "import", "--soft-fail").expect()
    assert list((here.root / "other").iterdir()) == []
    assert (carry / CARRIED).exists()


def test_places_without_permission(open_path: Path, nobody_cli: Cli) -> None:
    """Nothing is exported to where one may not write (exit 8); nor imported from where one may not look (9)."""
    work = open_path / "work"
    (work / "t").mkdir()
    (work / "t/a").write_bytes(b"a")
    os.chown(work / "t", NOBODY, NOBODY)
    locked = open_path / "locked"
    locked.mkdir(mode=0o755)
    nobody_cli("save", "--key=k-1", "t").expect()
    nobody_cli("store", "export", "--key=k-1", "--to", locked).expect(8)
    nobody_cli("store", "export", "--key=k-1", "--to", locked / "x/y").expect(8)
    assert list(locked.iterdir()) == []
    nobody_cli("store", "export", "--key=k-1").expect()
    closed = open_path / "closed"
    closed.mkdir(mode=0o700)
    nobody_cli("store", "import", closed).expect(9)


EXPORTS = ["carry.temporary", "carry.alias-written", "carry.placed"]


@pytest.mark.parametrize("step", EXPORTS)
@pytest.mark.parametrize("copy", [False, True])
def test_killed_while_it_exports(here: Here, carry: Path, tmp_path: Path, step: str, copy: bool) -> None:
    """Killed at any step, the place has the old entry or the new one, whole; the next export clears up."""
    exported(here, "--key=k-1", "--copy")
    here.save("k-2", "--skip-unchanged", "t")
    request = ExportRequest("k-2", str(here.store), copy=copy)
    assert die_at(step, lambda: export(request)) == -9
    assert whole(carry / CARRIED) == "k-1"  # also the seal of what is served as k-2
    assert take(tmp_path / "other", carry) == "imported"
    assert export(request).done
    assert sorted(os.listdir(carry)) == [CARRIED, CARRIED + ".alias"]
    assert take(tmp_path / "third", carry) == "imported"
    assert keys(tmp_path / "third") == ["k-2"]


@pytest.mark.parametrize(
    "step",
    ["save.temp-created", "save.temp-locked", "save.linked", "save.temp-unlinked", "save.published"],
)
def test_killed_while_it_imports(here: Here, carry: Path, tmp_path: Path, step: str) -> None:
    """Killed at any step, the store has the entry whole or not at all; the next import ends it."""
    exported(here, "--key=k-1")
    other = tmp_path / "other"
    assert die_at(step, lambda: take(other, carry)) == -9
    for path in (other / "v1/default/entries").iterdir():
        assert whole(path) == "k-1"
    assert take(other, carry) in {"imported", "exists"}
    assert keys(other) == ["k-1"]
    assert leftovers(other) == []


def test_other_files_are_left_alone(here: Here, carry: Path) -> None:
    """An export into a directory with other files, unfinished downloads among them, touches none of them."""
    carry.mkdir(parents=True)
    for name in ("film.part", "other.tar.zst", "notes.alias"):
        (carry / name).write_text("mine")
    exported(here, "--key=k-1")
    assert sorted(os.listdir(carry)) == sorted([CARRIED, "film.part", "other.tar.zst", "notes.alias"])


@pytest.mark.parametrize("copy", [False, True])
def test_two_exports_at_once(here: Here, carry: Path, copy: bool) -> None:
    """Of processes that export to one place the last wins, and what is there is whole at every moment."""
    (here.root / "t/file").write_bytes(b"two")
    here.save("k-2", "t")

    def work(key: str) -> Callable[[], None]:
        def many() -> None:
            for _ in range(10):
                assert export(ExportRequest(key, str(here.store), copy=copy)).done

        return many

    pids = [fork(work(key)) for key in ("k-1", "k-2")]
    for _ in range(50):
        if (carry / CARRIED).exists():
            assert whole(carry / CARRIED) in {"k-1", "k-2"}
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    assert os.listdir(carry) == [CARRIED]


def test_a_place_in_use(here: Here, carry: Path) -> None:
    """While another process exports there an export waits, and then gives up with exit 6, or 0 with --soft-fail."""
    exported(here, "--key=k-1")
    fd = os.open(carry, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        here("store", "export", "--key=k-1", "--lock-timeout=0").expect(6)
        here("store", "export", "--key=k-1", "--lock-timeout=0.1", "--soft-fail").expect()
    finally:
        os.close(fd)
    assert exported(here, "--key=k-1", "--lock-timeout=0")["status"] == "unchanged"


def test_two_imports_at_once(here: Here, carry: Path, tmp_path: Path) -> None:
    """Of processes that import one entry one publishes it; the others find it there."""
    big(here)
    exported(here, "--key=big-1")
    other = tmp_path / "other"

    def work() -> None:
        assert take(other, carry) in {"imported", "exists"}

    pids = [fork(work) for _ in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert keys(other) == ["big-1"]
    assert leftovers(other) == []


def fork(work: Callable[[], None]) -> int:
    """Do something in a forked child, whose exit code is 0 if it raises nothing; return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def test_a_store_that_everybody_may_write_to(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither command uses a store that everybody may write to, unless told that its modes mean nothing."""
    here.store.chmod(0o777)
    here("store", "export", "--key=k-1").expect(9)
    here("store", "export", "--key=k-1", "--trust-store").expect()
    (tmp_path / "other").mkdir()
    (tmp_path / "other").chmod(0o777)
    with another_machine(monkeypatch, tmp_path / "other"):
        here("store", "import").expect(9)
        assert imported(here, "--trust-store")["status"] == "imported"
