"""`cachekit prune`: what goes, what stays, and what is said about it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from cachekit.errors import InvalidRequest
from cachekit.store.upkeep import prune_lock
from cachekit.system.space import Room
from tests.support.capabilities import requires
from tests.support.cli import Cli, give
from tests.support.filesystems import KINDS, of_kind
from tests.support.in_process import Here
from tests.support.processes import Result
from tests.support.shelf import Shelf, damage
from tests.support.trees import make_tree

KIB = 1024


def results(result: Result) -> dict[str, tuple[str, str]]:
    """Return what became of each key (or file without one), and why."""
    return {line["key"] or line["entry"]: (line["result"], line["reason"]) for line in result.json()["lines"]}


def test_prune_removes_the_least_recently_used(here: Here, shelf: Shelf) -> None:
    """Over the limit the entries go that were used longest ago, each with its reason; the rest is intact."""
    for number in range(5):
        shelf.put(f"k-{number}", b"x" * number, used_days=number)
    done = here("prune", "--max-entries", "2", "--json").expect()
    assert results(done) == {
        "k-4": ("removed", "max-entries"),
        "k-3": ("removed", "max-entries"),
        "k-2": ("removed", "max-entries"),
        "k-1": ("kept", "fits"),
        "k-0": ("kept", "fits"),
    }
    assert shelf.keys() == ["k-0", "k-1"]
    assert shelf.content("k-1") == b"x"
    assert shelf.names("used") == sorted(shelf.name(f"k-{n}") for n in (0, 1))
    assert shelf.names("tmp") == []


def test_a_dry_run_changes_nothing_and_shows_all(here: Here, shelf: Shelf) -> None:
    """The same plan, every entry in it with a sentence, and the store as before."""
    for number in range(3):
        shelf.put(f"k-{number}", used_days=number)
    done = here("prune", "--max-entries=1", "--dry-run").expect()
    assert len(done.stdout.splitlines()) == 3
    assert "removed" in done.stdout
    assert "would remove 2 files" in done.stderr
    assert shelf.keys() == ["k-0", "k-1", "k-2"]
    again = here("prune", "--max-entries=1", "--dry-run", "--json").expect()
    assert results(again) == results(here("prune", "--max-entries=1", "--json").expect())


def test_pinned_entries_stay_and_the_goal_is_missed(here: Here, shelf: Shelf) -> None:
    """What is pinned stays whatever the limit; then the exit code is 7 and says by how much; --soft-fail makes it 0."""
    shelf.put("a-1", used_days=9)
    shelf.put("a-2", used_days=8)
    here("pin", "a-1").expect()
    missed = here("prune", "--max-entries", "0").expect(7)
    assert "number of entries, by 1 entry" in missed.stderr
    assert "pinned" in missed.stdout
    assert shelf.keys() == ["a-1"]
    here("prune", "--max-entries", "0", "--soft-fail").expect(0)
    here("unpin", "a-1").expect()
    here("prune", "--max-entries", "0").expect()
    assert shelf.keys() == []


def test_age_counts_from_the_last_use(here: Here, shelf: Shelf) -> None:
    """An old entry that was used lately stays; one that nobody used for the age and a tenth of it goes."""
    shelf.put("old-used", used_days=1, made_days=300)
    shelf.put("unused-1", used_days=16, made_days=300)
    shelf.put("no-mark", used_days=None, made_days=20)
    done = here("prune", "--max-age", "14d", "--json").expect()
    assert results(done)["unused-1"] == ("removed", "expired")
    assert results(done)["no-mark"] == ("removed", "expired")
    assert shelf.keys() == ["old-used"]


def test_size_is_what_lies_on_disk(here: Here, shelf: Shelf) -> None:
    """The sum of allocated bytes is brought under the limit, with no entry more than needed."""
    for number in range(6):
        shelf.put(f"k-{number}", os.urandom(20 * KIB), used_days=number)
    each = shelf.path("k-0").stat().st_blocks * 512
    done = here("prune", "--max-size", str(3 * each + 100), "--json").expect().json()
    assert shelf.keys() == ["k-0", "k-1", "k-2"]
    assert done["removed_bytes"] == 3 * each


def test_keep_last_is_hard(here: Here, shelf: Shelf) -> None:
    """The newest of each family stay although the limit is then missed."""
    for family in ("a", "b"):
        for number in range(3):
            shelf.put(f"{family}-{number}", used_days=10 - number)
    done = here("prune", "--max-entries=0", "--keep-last=1", "--json").expect(7)
    assert shelf.keys() == ["a-2", "b-2"]
    assert done.json()["short"] == [{"limit": "max-entries", "scope": None, "short_by": 2}]


def test_namespaces(here: Here, shelf: Shelf) -> None:
    """Limits hold over all namespaces, over those named, or with --each for every one by itself."""
    other = Shelf(shelf.root, "shop/ci")
    for number in range(3):
        shelf.put(f"k-{number}", used_days=number)
        other.put(f"k-{number}", used_days=number + 10)
    here("prune", "--max-entries=5").expect()
    assert (len(shelf.keys()), len(other.keys())) == (3, 2)
    here("prune", "--max-entries=2", "--each").expect()
    assert (len(shelf.keys()), len(other.keys())) == (2, 2)
    here("prune", "--max-entries=1", "--namespace", "shop/ci").expect()
    assert (len(shelf.keys()), other.keys()) == (2, ["k-0"])
    assert "no namespace nowhere" in here("prune", "--namespace=nowhere").expect().stderr


def test_a_damaged_entry_is_set_aside(here: Here, shelf: Shelf) -> None:
    """A file whose seal is refused is moved to quarantine, and counts and goes before everything else."""
    shelf.put("bad-1", used_days=60)
    shelf.put("good-1", used_days=50)
    damage(shelf.path("bad-1"))
    os.utime(shelf.path("bad-1"), (1_700_000_000, 1_700_000_000))  # the disk did it, years after the save
    name = shelf.name("bad-1")
    assert results(here("prune", "--max-age=9w", "--json").expect()) == {
        name: ("set-aside", "quarantine"),
        "good-1": ("kept", "fits"),
    }
    assert [found.startswith(name) for found in shelf.names("quarantine")] == [True]
    done = here("prune", "--max-size", str(shelf.path("good-1").stat().st_blocks * 512), "--json").expect()
    assert [line["kind"] for line in done.json()["lines"] if line["result"] == "removed"] == ["quarantine"]
    assert (shelf.names("quarantine"), shelf.keys()) == ([], ["good-1"])


def test_a_damaged_entry_goes_at_once_if_space_is_short(here: Here, shelf: Shelf) -> None:
    """With a limit that asks for its place, a damaged entry is removed instead of set aside, before whole ones."""
    shelf.put("bad-1")
    shelf.put("good-1", used_days=50)
    damage(shelf.path("bad-1"))
    here("prune", "--max-size", str(shelf.path("good-1").stat().st_blocks * 512)).expect()
    assert (shelf.names("quarantine"), shelf.keys()) == ([], ["good-1"])


def test_what_is_no_entry_is_left_alone(here: Here, shelf: Shelf) -> None:
    """A file of somebody else, a directory and a FIFO in the store are not the store's to remove."""
    shelf.put("k-1", used_days=9)
    (shelf.folder("entries") / "notes.txt").write_text("mine")
    (shelf.folder("entries") / shelf.name("folder")).mkdir()
    os.mkfifo(shelf.folder("entries") / shelf.name("fifo"))
    here("prune", "--max-entries=0", "--max-size=0").expect()
    assert len(shelf.names("entries")) == 3


def test_orphaned_marks_are_swept(here: Here, shelf: Shelf) -> None:
    """A mark of use without an entry goes with the next prune, limits or not."""
    shelf.put("k-1")
    (shelf.folder("used") / shelf.name("gone")).touch()
    here("prune").expect()
    assert shelf.names("used") == [shelf.name("k-1")]


def test_two_names_of_one_file(here: Here, shelf: Shelf) -> None:
    """An entry with a further key counts once in the size; each key goes by itself, and takes its alias with it."""
    make_tree(here.root / "tree", {"a": os.urandom(50_000)})
    here.save("a-1", "tree")
    assert here.save("a-2", "--skip-unchanged", "tree")["status"] == "reused"
    one = shelf.path("a-1").stat().st_blocks * 512
    assert here("prune", "--max-size", str(one), "--json").expect().json()["removed"] == 0
    shelf.age("a-1", 9)
    assert here("prune", "--max-entries=1", "--json").expect().json()["removed_bytes"] == 0
    assert shelf.keys() == ["a-2"]
    assert here.restore("a-2")["status"] == "exact"
    report = here("prune", "--max-size=1", "--json").expect().json()
    assert (report["removed"], report["removed_bytes"]) == (1, one)
    alias = shelf.folder("aliases") / shelf.name("a-2")
    here("prune").expect()
    assert alias.exists()  # perhaps a save is about to link its entry
    os.utime(alias, (1, 1))
    here("prune").expect()
    assert not alias.exists()
    assert shelf.names("tmp") == []


def test_an_alias_in_use_stays(here: Here, shelf: Shelf) -> None:
    """However old it is, an alias goes only when its entry is gone."""
    make_tree(here.root / "tree", {"a": b"1"})
    here.save("a-1", "tree")
    here.save("a-2", "--skip-unchanged", "tree")
    os.utime(shelf.folder("aliases") / shelf.name("a-2"), (1, 1))
    here("prune").expect()
    assert shelf.keys() == ["a-1", "a-2"]


@requires("tmpfs")
def test_min_free_is_proved_by_the_filesystem(here: Here, tmp_path: Path) -> None:
    """Exactly as many entries go as the free space needs, and the filesystem says that it is free."""
    from tests.support.filesystems import tmpfs

    with tmpfs(16 << 20) as disk:
        shelf = Shelf(disk.path / "store")
        for number in range(8):
            shelf.put(f"k-{number}", os.urandom(1 << 20), used_days=number)
        free = os.statvfs(disk.path).f_bavail * 4096
        wanted = free + (5 << 19)
        done = here("prune", "--store", disk.path / "store", "--min-free", str(wanted), "--json").expect()
        assert shelf.keys() == [f"k-{n}" for n in range(5)]
        assert os.statvfs(disk.path).f_bavail * 4096 >= wanted
        assert done.json()["freed"] >= 5 << 19
        assert done.json()["met"] is True
        missed = here("prune", "--store", disk.path / "store", "--min-free", "100%").expect(7)
        assert "free space, by" in missed.stderr
        assert shelf.keys() == []


@requires("btrfs")
def test_late_space_is_waited_for(here: Here) -> None:
    """Where freed space shows only after a sync, the prune syncs, and does not take more entries than needed."""
    from tests.support.filesystems import btrfs

    with btrfs() as disk:
        shelf = Shelf(disk.path / "store")
        for number in range(6):
            shelf.put(f"k-{number}", os.urandom(4 << 20), used_days=number)
        os.sync()
        facts = os.statvfs(disk.path)
        wanted = facts.f_bavail * facts.f_frsize + (6 << 20)
        done = here("prune", "--store", disk.path / "store", "--min-free", str(wanted), "--json").expect()
        assert done.json()["removed"] == 2
        assert done.json()["freed"] >= 6 << 20


def test_space_that_shows_only_after_a_sync(
    here: Here, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If what was removed does not show until a sync, that is done before anything is judged or removed again."""
    from cachekit.cache import prune as module

    for number in range(6):
        shelf.put(f"k-{number}", os.urandom(100_000), used_days=number + 1)
    size = shelf.path("k-0").stat().st_blocks * 512
    synced: list[bool] = []
    usable = 100 * size

    def late(_: object) -> Room:
        gone = 6 - len(shelf.names("entries")) if synced else 0
        return Room(1, usable, usable - gone * size, gone * size, None, None)

    monkeypatch.setattr(module, "room", late)
    monkeypatch.setattr(module, "filesystem_type", lambda _: "btrfs")
    monkeypatch.setattr(module, "settle", lambda *_, **__: synced.append(True))
    done = here("prune", "--min-free", str(2 * size), "--json").expect().json()
    assert (done["removed"], done["freed"], done["met"]) == (2, 2 * size, True)
    assert shelf.keys() == ["k-0", "k-1", "k-2", "k-3"]


def test_others_write_meanwhile(here: Here, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """If somebody takes what was freed, it is planned anew, and exactly the entry more goes that is missing."""
    from cachekit.cache import prune as module

    for number in range(6):
        shelf.put(f"k-{number}", os.urandom(100_000), used_days=number + 1)
    size = shelf.path("k-0").stat().st_blocks * 512

    def taken(_: object) -> Room:
        gone = 6 - len(shelf.names("entries"))
        free = max(0, gone - 1) * size
        return Room(1, 100 * size, 100 * size - free, free, None, None)

    monkeypatch.setattr(module, "room", taken)
    done = here("prune", "--min-free", str(2 * size), "--json").expect().json()
    assert (done["removed"], done["met"]) == (3, True)
    assert sorted(line["key"] for line in done["lines"]) == [f"k-{number}" for number in range(6)]
    assert shelf.keys() == ["k-0", "k-1", "k-2"]


def test_a_second_prune_leaves_it_to_the_first(here: Here, shelf: Shelf) -> None:
    """While another prune holds the store's lock, a prune says so, does nothing and exits 0."""
    shelf.put("k-1", used_days=9)
    with prune_lock(shelf.store) as held:
        assert held
        done = here("prune", "--max-entries=0", "--json").expect()
        assert done.json()["busy"] is True
        assert "another prune" in done.stderr
        assert shelf.keys() == ["k-1"]
    here("prune", "--max-entries=0").expect()
    assert shelf.keys() == []


@pytest.mark.parametrize(
    "option", ["--max-size=lots", "--max-entries=-1", "--max-age=soon", "--min-free=200%", "--keep-last=1.5"]
)
def test_a_limit_that_cannot_be_read(here: Here, shelf: Shelf, option: str) -> None:
    """A limit with a mistake is exit 2, names the option and its variable, and removes nothing."""
    shelf.put("k-1", used_days=9)
    done = here("prune", "--max-entries=0", option).expect(InvalidRequest.exit_code)
    assert option.partition("=")[0] in done.stderr
    assert "CACHEKIT_" in done.stderr
    assert shelf.keys() == ["k-1"]


def test_no_store(here: Here) -> None:
    """Where there is no store there is nothing to prune, and none is made."""
    here("prune", "--max-size=0").expect()
    assert not here.store.exists()


@requires("root")
def test_a_read_only_store(here: Here, tmp_path: Path) -> None:
    """A store that cannot be written is exit 9 with a sentence, and is as it was."""
    from tests.support.filesystems import tmpfs

    with tmpfs() as disk:
        shelf = Shelf(disk.path / "store")
        shelf.put("k-1", used_days=9)
        disk.read_only()
        done = here("prune", "--store", disk.path / "store", "--max-entries=0").expect(9)
        assert "Read-only file system" in done.stderr
        assert shelf.keys() == ["k-1"]
        here("prune", "--store", disk.path / "store", "--max-entries=0", "--dry-run").expect()
        disk.writable()


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=requires(kind)) for kind in KINDS])
def test_a_full_disk_is_pruned(here: Here, kind: str) -> None:
    """With not a byte free, and no inode on those that count them, entries still go: that is when it is needed."""
    with of_kind(kind) as disk:
        shelf = Shelf(disk.path / "store")
        for number in range(4):
            shelf.put(f"k-{number}", os.urandom(200_000), used_days=number + 1)
        disk.fill(0)
        done = here("prune", "--store", disk.path / "store", "--max-entries=2", "--json").expect()
        assert done.json()["removed"] == 2
        assert shelf.keys() == ["k-0", "k-1"]
        assert shelf.names("tmp") == []


def test_no_room_for_one_more_name(here: Here, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even moving a name aside fails for want of space, the entry is removed where it is."""
    shelf.put("k-1", used_days=9)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    assert here("prune", "--max-entries=0", "--json").expect().json()["removed"] == 1
    assert shelf.keys() == []


@requires("unprivileged")
def test_namespaces_of_others_are_left_out(nobody_cli: Cli, open_path: Path) -> None:
    """A namespace that may not be read is named in a warning; the others are pruned."""
    mine, theirs = Shelf(open_path / "store"), Shelf(open_path / "store", "theirs")
    for shelf in (mine, theirs):
        shelf.put("k-1", used_days=9)
    give(open_path / "store")
    theirs_place = open_path / "store/v1/theirs"
    os.chown(theirs_place, 0, 0)
    theirs_place.chmod(0o750)
    done = nobody_cli("prune", "--store", open_path / "store", "--max-entries=0").expect()
    assert "theirs" in done.stderr
    assert (mine.keys(), theirs.keys()) == ([], ["k-1"])


# Pins and listings


def test_pins_show_in_listings(here: Here, shelf: Shelf) -> None:
    """`ls` shows the last use and the pin, as text and as JSON; a pin outlives a forced save."""
    shelf.put("k-1", used_days=3)
    assert "): pinned" in here("pin", "k-1").expect().stderr
    shelf.put("k-1", b"new", used_days=3, force=True)
    listed = here("ls").expect()
    assert ", pinned)" in listed.stdout
    assert ", used 20" in listed.stdout
    (line,) = json.loads(here("ls", "--json").expect().stdout)
    assert line["pinned"] is True
    assert line["used_ns"] == (shelf.folder("used") / shelf.name("k-1")).stat().st_mtime_ns
    assert "): unpinned" in here("unpin", "k-1").expect().stderr
    assert ", pinned)" not in here("ls").expect().stdout


def test_pinning_what_is_not_there(here: Here, shelf: Shelf) -> None:
    """A key without an entry is exit 3 and leaves no pin; unpinning what is not pinned is fine."""
    shelf.put("k-1")
    done = here("pin", "k-1", "k-2", "--json").expect(3)
    assert [line["result"] for line in done.json()] == ["pinned", "no such entry"]
    assert shelf.names("pinned") == [shelf.name("k-1")]
    here("unpin", "k-1").expect()
    assert here("unpin", "k-1", "--json").expect().json()[0]["result"] == "was not pinned"
    here("unpin", "k-2").expect(3)


# After a save


def test_a_save_prunes_by_the_environment(here: Here, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CACHEKIT_MAX_ENTRIES a save removes what is too much, never what it just wrote, and says so."""
    make_tree(here.root / "tree", {"a": b"1"})
    for number in range(3):
        shelf.put(f"k-{number}", used_days=number + 1)
    monkeypatch.setenv("CACHEKIT_MAX_ENTRIES", "2")
    done = here("save", "--key=new-1", "tree").expect()
    assert shelf.keys() == ["k-0", "new-1"]
    assert "removed 2 files" in done.stderr
    monkeypatch.setenv("CACHEKIT_MAX_ENTRIES", "0")
    done = here("save", "--key=new-2", "tree").expect()
    assert shelf.keys() == ["new-2"]
    assert "not inside its limits" in done.stderr
    assert "reused" in here("save", "--key=new-3", "--skip-unchanged", "--json", "tree").expect().stdout
    assert shelf.keys() == ["new-3"]


def test_a_bad_limit_stops_a_save_before_it_begins(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that cannot be read is exit 2, and nothing is saved."""
    make_tree(here.root / "tree", {"a": b"1"})
    monkeypatch.setenv("CACHEKIT_MAX_SIZE", "fifty")
    for command in (
        ("save", "--key=k", "tree"),
        ("image", "save", "--key=k", "app"),
        ("store", "import", "kept"),
    ):
        assert "CACHEKIT_MAX_SIZE" in here(*command).expect(2).stderr
    assert not here.store.exists()


def test_a_failing_prune_does_not_fail_the_save(
    here: Here, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong with the prune after a save is a warning; the save is exit 0 and in the store."""
    make_tree(here.root / "tree", {"a": b"1"})
    shelf.put("k-0", used_days=1)
    shelf.folder("locks").joinpath("store").unlink()
    shelf.folder("locks").joinpath("store").mkdir()
    monkeypatch.setenv("CACHEKIT_MAX_ENTRIES", "1")
    done = here("save", "--key=new-1", "tree").expect()
    assert "could not be pruned after the save" in done.stderr
    assert shelf.keys() == ["k-0", "new-1"]


def test_a_scope_prunes_only_itself(here: Here, shelf: Shelf) -> None:
    """A save of a job that is not trusted drives out nothing that trusted jobs saved."""
    from cachekit.cache.prune import prune_after_save
    from cachekit.retention.budget import Budget

    scope = Shelf(shelf.root, "default/@pr-7")
    shelf.put("k-1", used_days=30)
    scope.put("k-1", used_days=2)
    scope.put("k-2", used_days=0)
    report = prune_after_save(scope.store_address, Budget(max_entries=1), scope.name("k-2"))
    assert report is not None
    assert (shelf.keys(), scope.keys()) == (["k-1"], ["k-2"])


def test_nothing_is_opened_when_nothing_has_to_go(
    here: Here, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a save that leaves the store inside its limits no entry is opened, however many there are."""
    from cachekit.cache.prune import prune_after_save
    from cachekit.retention.budget import Budget
    from cachekit.store.directory import Candidate, DirectoryStore

    shelf.put("k-1", used_days=2)
    opened: list[str] = []
    look = DirectoryStore.look

    def counted(store: DirectoryStore, name: str) -> Candidate | None:
        opened.append(name)
        return look(store, name)

    monkeypatch.setattr(DirectoryStore, "look", counted)
    generous = Budget(max_bytes=1 << 40, max_entries=10, max_age_seconds=30 * 86400, keep_last=1)
    assert prune_after_save(shelf.store_address, generous, shelf.name("k-1")) is None
    assert opened == []
    assert prune_after_save(shelf.store_address, Budget(max_entries=0), "another") is not None
    assert opened == [shelf.name("k-1")]
    assert shelf.keys() == []


@pytest.mark.parametrize("each", [False, True])
def test_families_that_the_file_names_do_not_tell(here: Here, shelf: Shelf, each: bool) -> None:
    """What --keep-last keeps is decided by the seals, also if the names look like other families."""
    from cachekit.cache.prune import prune_after_save
    from cachekit.retention.budget import Budget

    for number, key in enumerate(("a-1", "b-1", "c-1")):
        shelf.put(key, used_days=9 - number, family="one")
    limits = Budget(max_entries=0, keep_last=1)
    report = prune_after_save(
        shelf.store_address,
        Budget() if each else limits,
        "another",
        each={"default": limits} if each else None,
    )
    assert report is not None
    assert shelf.keys() == ["c-1"]


def test_clocks_that_jump(here: Here, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks in the future, entries made in 1970, and a host in the past: the age removes nothing of them."""
    from cachekit.store import upkeep

    shelf.put("future-1", used_days=-4000)
    shelf.put("epoch-1", used_days=None, made_days=None)
    damaged_clock = shelf.path("epoch-1")
    os.utime(damaged_clock, ns=(0, 0))
    shelf.put("old-1", used_days=40)
    here("prune", "--max-age=30d").expect()
    assert shelf.keys() == ["epoch-1", "future-1"]
    shelf.put("old-1", used_days=40)
    for moment in (0, 10**9, 10**18):
        monkeypatch.setattr(upkeep, "now_ns", lambda moment=moment: moment)
        here("prune", "--max-age=1s").expect()
    assert shelf.keys() == ["epoch-1", "future-1", "old-1"]
    # A host ahead of the store's own clock: the store's counts.
    monkeypatch.setattr(upkeep, "now_ns", lambda: 10**18 * 9)
    here("prune", "--max-age=60d").expect()
    assert shelf.keys() == ["epoch-1", "future-1", "old-1"]
