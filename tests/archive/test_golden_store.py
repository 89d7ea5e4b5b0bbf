"""A store that version 1 of the layout wrote long ago is read for ever: listed, verified, restored, used further."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from cachekit.cache.verify import VerifyRequest, verify
from cachekit.model import EntryIdentity, Key, Namespace, Platform, StoreAddress
from cachekit.store import layout
from cachekit.store.directory import DirectoryStore
from cachekit.trust import ANYONE, Trust
from tests.support.archives import restore_tree, save_tree
from tests.support.golden_store import ENTRIES, PLATFORM, SECRET, SERVICE, USED_NS, describe, tree_of
from tests.support.ordinary_user import PROJECT
from tests.support.signing import trust_in
from tests.support.snapshots import assert_same_tree, unchanged

DATA = PROJECT / "tests" / "data"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The store of long ago, unpacked; its directories of locks were left out."""
    with tarfile.open(DATA / "store-1.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "store"


def test_it_is_listed_as_it_was(store: Path) -> None:
    """Namespaces, entries, every field of their seals, signatures and quarantine are what they were."""
    expected = json.loads((DATA / "store-1.json").read_text())
    with unchanged(store):
        found = describe(store, trust_in(SECRET, required=False))
    # A later version may tell more of an entry; what it told then stays.
    for namespace, told in expected.items():
        for name, fields in told["entries"].items():
            now = found[namespace]["entries"][name]
            found[namespace]["entries"][name] = {field: now[field] for field in fields}
    assert found == expected
    assert set(expected) == {"default", SERVICE.text, f"{SERVICE}/@pr-1"}
    assert sum(len(told["entries"]) for told in expected.values()) == len(ENTRIES)


@pytest.mark.parametrize(
    ("namespace", "key", "platform", "signed"), ENTRIES, ids=lambda value: str(value).replace("/", "-")
)
def test_each_entry_is_restored(
    store: Path, tmp_path: Path, namespace: Namespace, key: str, platform: Platform, signed: bool
) -> None:
    """Every entry is whole at every depth and gives the tree that it was saved from; with the key only signed ones."""
    tree = tree_of(tmp_path / "tree", namespace, key, platform)
    for trust, hit in ((ANYONE, True), (trust_in(SECRET), signed)):
        address = StoreAddress(str(store), namespace, trust)
        root = tmp_path / f"out-{trust.mode}"
        report = restore_tree(address, root, key=key, platform=platform)
        assert report.status == ("exact" if hit else "refused"), report.tried
        assert not report.quarantined
        if hit:
            assert_same_tree(tree, root, ignore={"root"})
        path = os.fsdecode(DirectoryStore(address).entry_path(EntryIdentity(Key(key), platform).file_name))
        (verdict,) = verify(VerifyRequest([path], address))
        assert verdict.ok == hit, verdict


def test_prefix_and_platform(store: Path, tmp_path: Path) -> None:
    """A restore key finds the newest of its platform."""
    report = restore_tree(store, tmp_path / "out", key="golden-", restore_keys=["golden-"], platform=PLATFORM)
    assert (report.status, report.matched_key) == ("partial", "golden-2")


def test_when_it_was_used_and_what_is_pinned(store: Path) -> None:
    """The mark of last use and the pin are where they were, under the name of their entry."""
    default = store / "v1" / "default"
    first, second = (EntryIdentity(Key(key), PLATFORM).file_name for key in ("golden-1", "golden-2"))
    assert (default / "used" / first).stat().st_mtime_ns == USED_NS
    assert [path.name for path in (default / "pinned").iterdir()] == [second]
    assert {first, second} <= {path.name for path in (default / "entries").iterdir()}


def test_it_is_used_further(store: Path, tmp_path: Path) -> None:
    """A save into it works, missing locks and all, and leaves what was there as it was."""
    tree = tree_of(tmp_path / "tree", Namespace(), "new", PLATFORM)
    old = [path for path in (store / "v1").rglob("*.tar.zst") if path.parent.name == "entries"]
    assert len(old) == len(ENTRIES)
    with unchanged(*old):
        for namespace in layout.namespaces(str(store)):
            for trust in (Trust(), trust_in(SECRET)):
                address = StoreAddress(str(store), namespace, trust)
                save_tree(address, tree, key=f"new-{trust.mode}")
                assert restore_tree(address, tmp_path / "out", key=f"new-{trust.mode}").hit
    assert (store / "v1" / "default" / "locks" / "store").exists()
