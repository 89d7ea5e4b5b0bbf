"""Signatures as bytes: as the document has them, covered to the last bit, and no hindrance to who has no key."""

from __future__ import annotations

import hashlib
import hmac
import random
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.archive import format as numbers
from cachekit.archive.auth import decode_auth, encode_auth
from cachekit.archive.extract import check_contents
from cachekit.archive.read import open_archive
from cachekit.errors import Damaged, Refused
from cachekit.trust import ANYONE, Signature, Trust
from tests.archive.test_truncation import refuse_all, structural_cuts
from tests.support.archives import entry_of, file_entry, restore_tree, sealed_json
from tests.support.ordinary_user import PROJECT
from tests.support.refusals import HONEST, TREE
from tests.support.signing import OTHER_SECRET, SECRET, signed_store, trust_in
from tests.support.snapshots import assert_same_tree
from tests.support.surgery import flip

if TYPE_CHECKING:
    from tests.archive.conftest import Whole

JSON_DIGEST = hashlib.sha256(b"{}").digest()
SIGNATURES = st.lists(
    st.builds(
        Signature,
        st.binary(min_size=8, max_size=8).map(bytes.hex),
        st.binary(min_size=32, max_size=32),
        st.text(max_size=30).map(lambda text: text.replace("\0", "")),
    ),
    max_size=3,
)


def refused(path: Path, trust: Trust = ANYONE) -> None:
    """Read all of an entry: it must be damaged."""
    with pytest.raises(Damaged) as refusal, open_archive(bytes(path), trust) as archive:
        check_contents(archive, 0)
    assert refusal.value.path == bytes(path)


@given(signatures=SIGNATURES)
def test_signatures_come_back_as_they_were(signatures: list[Signature]) -> None:
    """Any signatures survive encoding and decoding; none are no bytes at all."""
    auth = encode_auth(signatures, JSON_DIGEST)
    assert decode_auth(auth, JSON_DIGEST) == signatures
    assert bool(auth) == bool(signatures)


@given(signatures=SIGNATURES, data=st.data())
def test_altered_signatures_are_damaged(signatures: list[Signature], data: st.DataObject) -> None:
    """Bytes put over, into or taken out of the signatures, and those of another entry, are damaged without any key."""
    auth = encode_auth(signatures, JSON_DIGEST)
    at = data.draw(st.integers(0, len(auth)))
    altered = auth[:at] + data.draw(st.binary(max_size=9)) + auth[at + data.draw(st.integers(0, 9)) :]
    if altered not in (auth, b""):
        with pytest.raises(Damaged):
            decode_auth(altered, JSON_DIGEST)
    if auth:
        with pytest.raises(Damaged):
            decode_auth(auth, hashlib.sha256(b"[]").digest())


def closed(items: bytes, digest: bytes = JSON_DIGEST) -> bytes:
    """Close items with the check of docs/format.md."""
    return items + hashlib.sha256(b"cachekit auth 1\0" + digest + items).digest()


def item(kind: int, body: bytes, length: int | None = None) -> bytes:
    """Make an item of docs/format.md, whose length may lie."""
    return struct.pack("<II", kind, len(body) if length is None else length) + body


@pytest.mark.parametrize(
    "items",
    [
        b"",
        b"x" * 7,
        item(1, b"x" * 39),
        item(1, b"x" * 40, 41),
        item(1, b"x" * 40, 39),
        item(2, b"", 2**32 - 1),
        item(1, b"x" * 40 + b"\xff"),
        item(1, b"x" * 40 + b"a\0b"),
        item(1, b"x" * 40) + b"\0",
    ],
    ids=["none", "stub", "short", "too long", "too short", "huge", "namespace", "nul", "rest"],
)
def test_items_that_are_none_are_damaged(items: bytes) -> None:
    """Items that end within one, or hold no HMAC, are damaged though their check is right."""
    with pytest.raises(Damaged):
        decode_auth(closed(items), JSON_DIGEST)


@given(auth=st.binary(min_size=1, max_size=200))
def test_any_bytes_given_as_signatures_are_damaged(auth: bytes) -> None:
    """Any bytes in the place of signatures, closed or not, are signatures or damaged."""
    with pytest.raises(Damaged):
        decode_auth(auth, JSON_DIGEST)
    try:
        decode_auth(closed(auth), JSON_DIGEST)
    except Damaged:
        return
    assert struct.unpack_from("<I", auth, 4)[0] <= len(auth) - 8


def test_a_signature_of_the_future_is_no_signature_and_no_hindrance(place: Path) -> None:
    """A kind of signature that is not known here does not keep anybody from an entry, nor is it worth anything."""
    entry = entry_of([TREE, HONEST])
    data = entry.seal()
    honest = sealed_json(entry.facts.as_json())
    assert data.count(honest) == 1
    text = honest[8 : -numbers.SEAL_TRAILER.size]
    auth = closed(item(77, b"from the future"), hashlib.sha256(text).digest())
    path = file_entry(place / "store", data.replace(honest, sealed_json(entry.facts.as_json(), auth=auth)))
    report = restore_tree(signed_store(place / "store"), place / "root")
    assert (report.status, report.tried[0]["verdict"], report.quarantined) == ("refused", "untrusted", [])
    assert restore_tree(place / "store", place / "root").status == "exact"
    assert path.exists()


def test_what_signs_is_what_the_document_says(signed: Whole) -> None:
    """Key id, HMAC and check are those of docs/format.md, computed here from the file's bytes alone."""
    parts, key = signed.parts, SECRET.encode()
    text = signed.data[parts.json : parts.auth]
    auth = signed.data[parts.auth : parts.trailer]
    mac = hmac.new(key, b"cachekit entry hmac 1\0default\0" + text, "sha256").digest()
    name = hmac.new(key, b"cachekit key id 1", "sha256").digest()[:8]
    assert auth == closed(item(1, name + mac + b"default"), hashlib.sha256(text).digest())
    document = (PROJECT / "docs" / "format.md").read_text()
    for words in ('"cachekit auth 1"', '"cachekit entry hmac 1"', '"cachekit key id 1"'):
        assert words in document
    assert f"kind {numbers.AUTH_HMAC}\n" in document


def test_an_unsigned_entry_has_no_place_for_signatures(sample: Whole) -> None:
    """An entry saved without a key has nothing between its JSON and its trailer, as ever."""
    assert sample.parts.auth == sample.parts.trailer


def test_a_signed_entry_is_read_without_a_key(signed: Whole, tmp_path: Path) -> None:
    """Whoever requires no signature restores a signed entry as any other."""
    file_entry(tmp_path / "store", signed.data)
    assert restore_tree(tmp_path / "store", tmp_path / "root").status == "exact"
    assert_same_tree(signed.tree, tmp_path / "root", ignore={"root"})


def test_a_signed_entry_that_is_cut_is_refused(signed: Whole, tmp_path: Path) -> None:
    """A signed entry cut at or beside any edge, or anywhere from its seal on, is refused by its last bytes."""
    cuts = {cut for _, cut in structural_cuts(signed)} | set(range(signed.parts.seal, signed.parts.size))
    refuse_all(Path(shutil.copy(signed.path, tmp_path)), list(cuts))


def test_one_flipped_bit_anywhere_in_a_signed_entry_is_refused(signed: Whole, tmp_path: Path) -> None:
    """A signed entry with one wrong bit, at each of 1,000 random places, is damaged for who has no key."""
    source = random.Random(33)
    path = tmp_path / "flipped"
    for offset in source.sample(range(signed.parts.size), 1000):
        path.write_bytes(flip(signed.data, offset, source.randrange(8)))
        refused(path)


@pytest.mark.parametrize("keys", [(), (SECRET,), (OTHER_SECRET,)], ids=["no key", "the key", "another key"])
def test_every_bit_of_signature_and_trailer_counts(
    signed: Whole, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    """No bit of the signature and the trailer may be wrong, whatever key the reader has; the seal alone finds out."""
    path = tmp_path / "flipped"
    trust = trust_in(*keys)
    for offset in range(signed.parts.auth, signed.parts.seek_table):
        for bit in range(8):
            path.write_bytes(flip(signed.data, offset, bit))
            with pytest.raises(Damaged), open_archive(bytes(path), trust) as archive:
                _ = archive.seal


def test_a_refused_seal_gives_no_access_to_the_rest(signed: Whole) -> None:
    """Index and frames of an entry that is not trusted cannot be read through an opened archive."""
    with open_archive(bytes(signed.path), trust_in(OTHER_SECRET)) as archive:
        for reach in (lambda: archive.seal, lambda: archive.index, lambda: archive.frame(0)):
            with pytest.raises(Refused, match="not among yours"):
                reach()
