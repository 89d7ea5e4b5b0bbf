"""Attacks with aliases: names for good entries that nobody with the key gave them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cachekit.archive.alias import Alias, decode_alias, encode_alias
from cachekit.archive.auth import decode_auth, encode_auth
from cachekit.archive.format import ALIAS_MAGIC, SEAL_MAGIC, SEAL_TRAILER, SEAL_TRAILER_MAGIC
from cachekit.archive.read import open_archive
from cachekit.archive.seal import skippable
from cachekit.errors import Damaged, Refused
from cachekit.model import EntryIdentity, Key, StoreAddress
from cachekit.system.clock import this_platform
from cachekit.trust import ANYONE
from tests.support.archives import restore_tree, save_tree
from tests.support.in_process import Here
from tests.support.signing import OTHER_SECRET, SECRET, signed_store, trust_in
from tests.support.surgery import anatomy
from tests.support.trees import make_tree

EVIL = "evil-1"


def name_of(key: str) -> str:
    """The file name of a key's entry here."""
    return EntryIdentity(Key(key), this_platform()).file_name


def plant_alias(path: Path, data: bytes, key: str = EVIL) -> Path:
    """Link a good entry under another key's name and put an alias beside it, as who may write the store can."""
    namespace = path.parents[1]
    (namespace / "aliases").mkdir(exist_ok=True)
    (namespace / "aliases" / name_of(key)).write_bytes(data)
    place = namespace / "entries" / name_of(key)
    place.unlink(missing_ok=True)
    place.hardlink_to(path)
    return place


def alias_of(path: Path, key: str = EVIL) -> Alias:
    """Say that an entry is that of another key."""
    with open_archive(bytes(path), ANYONE) as archive:
        return Alias(key, "evil", 1_800_000_000_000_000_000, archive.seal.identity)


@pytest.fixture
def entry(here: Here) -> Path:
    """A signed entry of the key `good-1`."""
    return save_tree(signed_store(here.store), here.root, "t", key="good-1")


def test_a_real_alias_is_served(here: Here, entry: Path) -> None:
    """An alias that was signed with the key serves the entry under the further key: the control of these tests."""
    plant_alias(entry, encode_alias(alias_of(entry), trust_in(SECRET).within("default")))
    report = restore_tree(signed_store(here.store), here.home / "out", key=EVIL)
    assert (report.status, report.matched_key) == ("exact", EVIL)


@pytest.mark.parametrize(
    ("secrets", "namespace"), [((), "default"), ((OTHER_SECRET,), "default"), ((SECRET,), "other")]
)
def test_an_alias_by_somebody_without_the_key(
    here: Here, entry: Path, secrets: tuple[str, ...], namespace: str
) -> None:
    """A signed entry is not served under a key for which no job with the key vouched in this namespace."""
    place = plant_alias(entry, encode_alias(alias_of(entry), trust_in(*secrets).within(namespace)))
    address = signed_store(here.store)
    for keys in ([], ["evil"]):
        report = restore_tree(address, here.home / "out", key="none" if keys else EVIL, restore_keys=keys)
        assert (report.status, report.tried[0]["verdict"], report.quarantined) == ("refused", "untrusted", [])
        assert not list((here.home / "out").iterdir())
    assert restore_tree(here.store, here.home / "out", key=EVIL).status == "exact"
    save_tree(address, make_tree(here.home / "new", {"t": {"file": b"new"}}), "t", key=EVIL)
    assert not place.samefile(entry)
    assert restore_tree(address, here.home / "out", key=EVIL).status == "exact"
    assert (here.home / "out" / "t" / "file").read_bytes() == b"new"


def test_an_alias_for_another_entry(here: Here, entry: Path) -> None:
    """A signed alias does not serve another entry than the one that it was made for, be that signed too."""
    address = signed_store(here.store)
    data = encode_alias(alias_of(entry), trust_in(SECRET).within("default"))
    other = save_tree(address, make_tree(here.home / "new", {"t": {"file": b"new"}}), "t", key="good-2")
    plant_alias(other, data)
    report = restore_tree(address, here.home / "out", key=EVIL)
    assert (report.status, report.tried[0]["verdict"]) == ("refused", "damaged")


def test_an_alias_under_another_name(here: Here, entry: Path) -> None:
    """A signed alias is worth nothing under the name of a third key."""
    plant_alias(entry, encode_alias(alias_of(entry), trust_in(SECRET).within("default")), "third-1")
    assert restore_tree(signed_store(here.store), here.home / "out", key="third-1").status == "refused"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("plant", [fifo, folder, link, huge], ids=lambda plant: plant.__name__)
def test_something_else_in_the_place_of_an_alias(
    here: Here, entry: Path, plant: Callable[[Path], None]
) -> None:
    """What is no alias makes nobody wait or run out of memory, and serves nothing."""
    place = plant_alias(entry, b"")
    alias = entry.parents[1] / "aliases" / place.name
    alias.unlink()
    plant(alias)
    for address in (signed_store(here.store), StoreAddress(str(here.store))):
        assert restore_tree(address, here.home / "out", key=EVIL).status in {"refused", "miss"}
    assert not list((here.home / "out").iterdir())
    here("ls").expect()


def test_what_was_signed_as_an_alias_is_no_seal_and_the_other_way_round(here: Here, entry: Path) -> None:
    """The HMAC of an alias makes no entry, and that of an entry no alias, though one key and one scheme sign both."""
    trust = trust_in(SECRET).within("default")
    parts, data = anatomy(entry), entry.read_bytes()
    alias = encode_alias(alias_of(entry), trust)
    digest, json_size, auth_size, _ = SEAL_TRAILER.unpack(alias[-SEAL_TRAILER.size :])
    text, auth = alias[:json_size], alias[json_size : json_size + auth_size]
    assert trust.judge(text, decode_auth(auth, digest)).standing == "valid"
    seal = skippable(
        SEAL_MAGIC, text + auth + SEAL_TRAILER.pack(digest, len(text), len(auth), SEAL_TRAILER_MAGIC)
    )
    forged = Path(shutil.copy(entry, here.home / "forged"))
    forged.write_bytes(data[: parts.seal] + seal + data[parts.seek_table :])
    with pytest.raises(Refused), open_archive(bytes(forged), trust) as archive:
        _ = archive.seal
    text = data[parts.json : parts.auth]
    digest = hashlib.sha256(text).digest()
    auth = encode_auth(decode_auth(data[parts.auth : parts.trailer], digest), digest)
    with pytest.raises(Damaged):
        decode_alias(text + auth + SEAL_TRAILER.pack(digest, len(text), len(auth), ALIAS_MAGIC), trust)
