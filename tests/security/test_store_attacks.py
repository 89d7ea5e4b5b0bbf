"""What somebody who may write the store, but has nothing else, puts there to reach what is outside of it.

Each test is named after the attack. Nothing outside the store may be read out, made, changed, moved or removed, no
command may wait for ever, and once the thing is gone, or set aside, the store works again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cachekit.archive.read import Archive
from cachekit.errors import StoreUnavailable
from cachekit.model import STORE_DIRECTORIES, Namespace, StoreAddress
from cachekit.store import layout
from cachekit.store.directory import DirectoryStore
from tests.support.archives import restore_tree, save_tree
from tests.support.capabilities import requires
from tests.support.filesystems import tmpfs
from tests.support.in_process import Here, cut
from tests.support.signing import signed_store
from tests.support.snapshots import Snapshot, snapshot, unchanged
from tests.support.trees import make_tree

COMMANDS = (
    "save --key=k t",
    "save --key=new t",
    "restore --key=k t",
    "restore --key=x --restore-key=k",
    "verify --all",
    "ls",
    "ls --quarantine",
    "show k",
    "explain --key=k",
    "stats",
    "pin k",
    "unpin k",
    "prune --max-entries=0",
    "save --key=again --skip-unchanged t",
)


def namespace_of(here: Here) -> Path:
    """The directory of the default namespace."""
    return here.store / "v1" / "default"


def link_instead(path: Path, target: Path) -> None:
    """Put a link to the target in the place of a directory, which is moved away."""
    path.rename(path.with_name(f"moved-{path.name}"))
    path.symlink_to(target)


@pytest.mark.parametrize("name", STORE_DIRECTORIES)
@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_a_link_in_the_place_of_a_directory_of_the_store(
    here: Here, victim: Path, name: str, damaged: bool
) -> None:
    """No command follows a directory of the store that became a link: nothing is made or removed where it leads."""
    here.save("k", "t")
    if damaged:
        cut(here.entry("k"))
    link_instead(namespace_of(here) / name, victim)
    with unchanged(victim):
        for command in COMMANDS:
            done = here(*command.split())
            assert done.code in {0, 3, 4, 9}, str(done)
            if done.code == 9:
                assert "is a link, or a file" in done.stderr
                assert str(namespace_of(here) / name) in done.stderr
    if name in {"entries", "tmp", "locks"}:
        here("save", "--key=new", "t").expect(9)


@pytest.mark.parametrize("part", ["v1", "v1/a", "v1/a/b"])
def test_a_link_in_the_place_of_a_namespace(here: Here, victim: Path, part: str) -> None:
    """A version directory or a part of a namespace that became a link is not followed either."""
    address = StoreAddress(str(here.store), Namespace("a/b"))
    save_tree(address, here.root, "t", key="k")
    make_tree(victim, {"a": {"b": {name: {"old": b"x"} for name in STORE_DIRECTORIES}}, "b": {"tmp": {}}})
    link_instead(here.store / part, victim)
    with unchanged(victim):
        assert DirectoryStore(address).sweep() == 0
        with pytest.raises(StoreUnavailable, match="is a link, or a file"):
            DirectoryStore(address).prepare()
        with pytest.raises(StoreUnavailable, match="is a link, or a file"):
            restore_tree(address, here.root, key="x", restore_keys=["k"])


def test_a_link_to_make_a_store_elsewhere(here: Here, victim: Path) -> None:
    """A store that is about to be made is not made through a link that lies there already."""
    (here.store / "v1").mkdir(parents=True)
    for name in ("default", "other"):
        (here.store / "v1" / name).symlink_to(victim)
    with unchanged(victim):
        here("save", "--key=k", "t").expect(9)
    (here.store / "v1" / "default").unlink()
    (here.store / "v1" / "default").mkdir()
    (here.store / "v1" / "default" / "locks").symlink_to(victim)
    with unchanged(victim):
        here("save", "--key=k", "t").expect(9)


def test_lock_files_that_are_there_before_the_store_is_made(here: Here, victim: Path) -> None:
    """Locks that somebody laid out beforehand, as links or fifos, make no file elsewhere and nobody wait."""
    locks = here.store / "v1" / "default" / "locks"
    locks.mkdir(parents=True)
    (locks / "00").symlink_to(victim / "new")
    with unchanged(victim):
        here("save", "--key=k", "t").expect(9)
    (locks / "00").unlink()
    os.mkfifo(locks / "00")
    here("save", "--key=k", "t").expect(9)
    (locks / "00").unlink()
    here("save", "--key=k", "t").expect()


def test_the_path_of_a_store_may_lead_over_links(here: Here, tmp_path: Path) -> None:
    """The store's own path is its owner's to choose: links in it are followed."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for store in (tmp_path / "link", tmp_path / "link" / "new"):
        here.save("k", "t", f"--store={store}")
        assert here.restore("k", "t", f"--store={store}")["status"] == "exact"
        cut(Path(os.fsdecode(DirectoryStore(str(store)).entries()[0].path)))
        assert here.restore("k", "t", f"--store={store}")["quarantined"]


Plant = Callable[[Path], None]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    make_tree(path, {"deep": {"file": b"x"}})


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def to_secret(path: Path) -> None:
    path.symlink_to(secret_of(path))


def to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def hard_link_to_secret(path: Path) -> None:
    path.hardlink_to(secret_of(path))


SECRET_WORDS = "the secret words" * 100


def secret_of(path: Path) -> Path:
    """A file with a secret, on the filesystem of the store."""
    secret = path.parents[4] / "secret"
    if not secret.exists():
        secret.write_text(SECRET_WORDS)
    return secret


PLANTS: list[Plant] = [fifo, folder, dangling, loop, to_secret, to_device, hard_link_to_secret]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("first", ["save", "restore"])
def test_something_else_in_the_place_of_an_entry(here: Here, plant: Plant, first: str) -> None:
    """What is no file is neither read nor waited for; it is set aside, so that the next save is not blocked."""
    here.save("k", "t")
    path = here.entry("k")
    path.unlink()
    plant(path)
    secret = secret_of(path)
    # A hard link's time of change becomes another when it loses or changes a name.
    with contextlib.nullcontext() if plant is hard_link_to_secret else unchanged(secret):
        for command in ("ls", "verify k", "show k", "restore --key=x --restore-key=k-none"):
            done = here(*command.split())
            assert done.code in {0, 3, 4, 9}, str(done)
            assert "secret words" not in done.stdout + done.stderr
            assert b"words".hex() not in done.stdout + done.stderr
        if first == "restore":
            with unchanged(here.root):
                report = here.restore("k", "t")
            assert report["status"] == "refused"
            assert not os.path.lexists(path)
        assert here.save("k", "t")["status"] == "saved"
    assert here.restore("k", "t")["status"] == "exact"
    assert secret.read_text() == SECRET_WORDS
    assert not path.is_symlink()


def test_what_was_set_aside_goes_in_the_end(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a directory in quarantine is removed when its time is over, and no link in it is followed."""
    here.save("k", "t")
    outside = make_tree(here.home / "outside", {"precious": b"x"})
    for number in range(4):
        path = namespace_of(here) / "quarantine" / f"k-{'0' * 32}.tar.zst.{number}"
        make_tree(path, {"sub": {"file": b"x"}})
        (path / "link").symlink_to(outside)
    with unchanged(outside):
        DirectoryStore(str(here.store)).sweep()
    assert len(here.quarantine()) == 2


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("place", ["used", "locks", "tmp", "quarantine"])
def test_something_else_in_the_place_of_a_small_file(here: Here, plant: Plant, place: str) -> None:
    """A mark of use, a lock, a leftover or something in quarantine that is no file changes nothing outside."""
    here.save("k", "t")
    entry = here.entry("k")
    digest = entry.name.rpartition("-")[2][:2]
    name = {"used": entry.name, "locks": digest, "tmp": "x.part", "quarantine": f"{entry.name}.1"}[place]
    path = namespace_of(here) / place / name
    path.unlink(missing_ok=True)
    plant(path)
    secret = secret_of(path)
    before = secret.stat()
    here("restore", "--key=k", "t").expect()
    done = here("save", "--key=k", "t", "--force")
    assert done.code in ({0, 9} if place == "locks" else {0}), str(done)
    here("ls", "--quarantine").expect()
    assert secret.read_text() == SECRET_WORDS
    assert secret.stat().st_mtime_ns == before.st_mtime_ns


def test_what_became_a_file_meanwhile_is_not_set_aside_unread(here: Here) -> None:
    """What could not be opened because it was no file, and is one now, stays: nobody has looked at it."""
    here.save("k", "t")
    path = here.entry("k")
    store = DirectoryStore(str(here.store))
    assert not store.set_aside(bytes(path), None)
    assert path.exists()
    path.unlink()
    assert store.set_aside(bytes(path), None)


def test_an_entry_replaced_between_check_and_use(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is restored are the bytes that were checked, also if another entry takes the name meanwhile."""
    address = signed_store(here.store)
    path = save_tree(address, here.root, "t", key="k")
    evil = make_tree(here.home / "evil", {"t": {"file": b"evil", "sub": {"more": b"evil"}}})
    other = save_tree(here.home / "other-store", evil, "t", key="k")
    real = Archive.seal.fget  # type: ignore[attr-defined]
    done: list[bytes] = []

    def seal_then_swap(archive: Archive) -> object:
        seal = real(archive)
        if not done:
            done.append(archive.path)
            os.replace(shutil.copy(other, path.with_suffix(".new")), path)
        return seal

    with monkeypatch.context() as patch:
        patch.setattr(Archive, "seal", property(seal_then_swap))
        report = restore_tree(address, here.home / "out", key="k")
    assert done == [bytes(path)]
    assert report.status == "exact"
    assert (here.home / "out" / "t" / "file").read_bytes() == b"honest"
    assert restore_tree(address, here.home / "out", key="k").status == "refused"


def test_an_entry_changed_in_place_between_check_and_use(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are written into an entry after its seal was checked are found out before the target changes."""
    address = signed_store(here.store)
    path = save_tree(address, here.root, "t", key="k")
    evil = make_tree(here.home / "evil", {"t": {"file": b"evil", "sub": {"more": b"evil"}}})
    other = save_tree(here.home / "other-store", evil, "t", key="k")
    real = Archive.index.fget  # type: ignore[attr-defined]

    def overwrite_then_index(archive: Archive) -> object:
        _ = archive.seal
        path.write_bytes(other.read_bytes())
        return real(archive)

    with monkeypatch.context() as patch, unchanged(here.root):
        patch.setattr(Archive, "index", property(overwrite_then_index))
        assert restore_tree(address, here.root, key="k").status == "refused"


def test_swapping_a_directory_for_a_link_all_the_time(here: Here, victim: Path) -> None:
    """Also while directories of the store become links and directories again, nothing is done where they lead."""
    here.save("k", "t")
    stop = threading.Event()
    places = [namespace_of(here) / name for name in ("quarantine", "used", "tmp")]

    def swap() -> None:
        while not stop.is_set():
            for place in places:
                away = place.with_name(f"away-{place.name}")
                place.rename(away)
                place.symlink_to(victim)
                place.unlink()
                away.rename(place)

    before: Snapshot = snapshot(victim)
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for number in range(60):
            store = DirectoryStore(str(here.store))
            store.sweep()
            store.mark_used(here.entry("k").name)
            if number % 10 == 0:
                here("save", "--key=k", "t", "--force")
    finally:
        stop.set()
        thread.join()
    assert snapshot(victim) == before


@requires("tmpfs")
def test_a_store_on_a_read_only_mount(here: Here) -> None:
    """On a store that nobody can write, trust decides as anywhere, and what is forged is remembered as refused."""
    from tests.trust.test_policy import forge

    with tmpfs(size=64 << 20) as mounted:
        address = signed_store(mounted.path / "store")
        path = save_tree(address, here.root, "t", key="k")
        save_tree(StoreAddress(str(mounted.path / "store")), here.root, "t", key="unsigned")
        forged = save_tree(address, here.root, "t", key="forged")
        forge(forged)
        mounted.read_only()
        with unchanged(path, forged):
            assert restore_tree(address, here.home / "out", key="k").status == "exact"
            for key in ("unsigned", "forged", "forged"):
                assert restore_tree(address, here.home / "none", key=key).status == "refused"
        assert DirectoryStore(address).denied(bytes(forged))
        assert not list((here.home / "none").iterdir())


def test_a_namespace_in_the_way_of_a_directory(here: Here) -> None:
    """No namespace can be called like a directory of the store, in which it would then lie."""
    for name in STORE_DIRECTORIES:
        with pytest.raises(Exception, match="cannot be part"):
            Namespace(f"a/{name}")
    assert layout.namespaces(str(here.store)) == []


def test_namespaces_that_are_links_are_not_listed(here: Here, victim: Path) -> None:
    """A link among the namespaces is none: no command that goes through all of them goes there."""
    here.save("k", "t")
    make_tree(victim, {"entries": {}})
    (here.store / "v1" / "linked").symlink_to(victim)
    assert layout.namespaces(str(here.store)) == [Namespace("default")]
