"""Index and seal as bytes: what is encoded comes back, and whatever else is given is refused, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.archive.check import check_members
from cachekit.archive.format import DIRECTORY, FILE, HARDLINK, SYMLINK
from cachekit.archive.index import Index, compress_index, decode
from cachekit.archive.read import open_archive
from cachekit.archive.seal import decode_json
from cachekit.errors import Refused
from cachekit.trust import ANYONE
from tests.support.archives import (
    KEY,
    Member,
    directory,
    entry_of,
    file_entry,
    restore_tree,
    sealed_json,
    symlink,
)
from tests.support.cli import Cli

U32, U64 = 2**32 - 1, 2**64 - 1
DEEP = json.loads("[" * 600 + "]" * 600)
"""What the parser takes, and whoever walks through it by calls of its own does not."""
NAMES = st.binary(max_size=60).map(lambda name: name.replace(b"\0", b""))


@st.composite
def indexes(draw: st.DrawFn) -> Index:
    """Draw an index of any members: only its structure is as it must be."""
    index = Index()
    frame = 0
    for row in range(draw(st.integers(0, 8))):
        kind = draw(st.sampled_from([FILE, DIRECTORY, SYMLINK, HARDLINK]))
        index.paths.append(draw(NAMES))
        index.kinds.append(kind)
        index.modes.append(draw(st.integers(0, 0o7777)))
        index.uids.append(draw(st.integers(0, U32)))
        index.gids.append(draw(st.integers(0, U32)))
        index.mtimes.append(draw(st.integers(-(2**63), 2**63 - 1)))
        index.sizes.append(draw(st.integers(0, U64)) if kind == FILE else 0)
        frame += draw(st.integers(0, 3))
        index.frames.append(frame)
        index.offsets.append(draw(st.integers(0, U32)))
        if kind == FILE:
            index.contents += draw(st.binary(min_size=16, max_size=16))
            if draw(st.booleans()):
                regions = st.lists(st.tuples(st.integers(0, U64), st.integers(0, U64)), max_size=4)
                index.sparse[row] = (draw(st.integers(0, U64)), draw(regions))
        elif kind in {SYMLINK, HARDLINK}:
            index.links.append(draw(NAMES))
    for _ in range(draw(st.integers(0, 4))):
        index.frame_sizes.append(draw(st.integers(0, U32)))
        index.raw_sizes.append(draw(st.integers(0, U32)))
        index.frame_digests += draw(st.binary(min_size=32, max_size=32))
    return index


@given(index=indexes())
def test_an_index_comes_back_as_it_was(index: Index) -> None:
    """Every column of any index survives encoding and decoding."""
    again = decode(b"".join(index.column_bytes()))
    for name in Index.__slots__:
        assert getattr(again, name) == getattr(index, name), name
    assert compress_index(again) == compress_index(index)


@given(index=indexes(), data=st.data())
def test_an_altered_index_is_refused_or_another(index: Index, data: st.DataObject) -> None:
    """Bytes of an index put elsewhere, cut or added give a refusal, or a whole index that encodes to them again."""
    raw = b"".join(index.column_bytes())
    at = data.draw(st.integers(0, len(raw)))
    altered = raw[:at] + data.draw(st.binary(max_size=9)) + raw[at + data.draw(st.integers(0, 9)) :]
    try:
        again = decode(altered)
    except Refused:
        return
    assert len(b"".join(again.column_bytes())) == len(altered)


@given(raw=st.binary(max_size=400))
def test_any_bytes_given_as_an_index_are_refused(raw: bytes) -> None:
    """A byte string that is no index is refused, with or without an index's beginning."""
    for text in (raw, b"CKINDEX1" + raw):
        with pytest.raises(Refused):
            decode(text)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def honest() -> dict[str, Any]:
    """The JSON of a whole entry's seal."""
    entry = entry_of([directory(b"tree"), Member(b"tree/file", content=b"x"), symlink(b"tree/link", b"x")])
    entry.seal()
    return entry.facts.as_json()


FIELDS = sorted(honest())


@given(field=st.sampled_from(FIELDS), value=JSON)
def test_a_seal_with_any_value_in_a_field_is_read_or_refused(
    field: str, value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever JSON stands in one field of a seal, reading the entry succeeds or is a refusal."""
    entry = entry_of([directory(b"tree"), Member(b"tree/file", content=b"x")])
    path = tmp_path_factory.getbasetemp() / "altered-seal"
    entry.seal()
    truth = json.dumps(entry.facts.as_json()[field], sort_keys=True)
    path.write_bytes(entry.seal(told={field: value}))
    try:
        with open_archive(bytes(path), ANYONE) as archive:
            check_members(archive.seal, archive.index)
    except Refused:
        return
    if json.dumps(value, sort_keys=True) == truth:
        return  # by chance
    assert field in {
        "family",
        "host",
        "versions",
        "roots",
        "level",
        "created_ns",
        "skipped",
        "allocated_bytes",
    } | {
        "key",
        "platform",
        "targets",
        "features",
        "format",
        "counts",
    }


@given(
    field=st.sampled_from(FIELDS),
    within=st.sampled_from(["targets", "platform", "counts", "roots"]),
    value=JSON,
)
def test_a_seal_with_any_value_deeper_down_is_read_or_refused(field: str, within: str, value: object) -> None:
    """Whatever JSON stands inside a field, and whichever field is missing, the seal is read or refused."""
    data = honest()
    inner = data[within]
    if isinstance(inner, list):
        for name in ("root", "path"):
            altered = data | {within: [{**inner[0], name: value}]}
            _read_or_refused(altered)
        _read_or_refused(data | {within: [value]})
    else:
        for name in (*inner, "other"):
            _read_or_refused(data | {within: {**inner, name: value}})
    del data[field]
    with pytest.raises(Refused):
        decode_json(json.dumps(data).encode())


def _read_or_refused(data: dict[str, Any]) -> None:
    try:
        seal = decode_json(json.dumps(data).encode())
    except Refused:
        return
    str(seal.platform).encode()
    assert all(isinstance(target.path, bytes) for target in seal.targets)


@given(text=st.one_of(st.binary(max_size=100), JSON.map(lambda value: json.dumps(value).encode())))
def test_any_bytes_given_as_a_seal_are_refused(text: bytes) -> None:
    """Bytes that are no JSON, and JSON that is no seal, are refused."""
    with pytest.raises(Refused):
        decode_json(text)


def test_json_that_exhausts_the_parser_is_refused() -> None:
    """Nesting and digits without end are refused, not a traceback."""
    for text in (b"[" * 100_000, b'{"x":' * 100_000, b'{"format":' + b"9" * 100_000 + b"}"):
        with pytest.raises(Refused):
            decode_json(text)


@pytest.mark.parametrize(
    "told",
    [
        {"key": "a\n::add-mask::b"},
        {"key": ""},
        {"key": "\ud800"},
        {"key": "k" * 513},
        {"host": "\ud800"},
        {"family": "\udfff"},
        {"platform": {"os": "\ud800", "arch": "x", "libc": "y"}},
        {"platform": {"os": "linüx", "arch": "x", "libc": "y"}},
        {"targets": [{"root": [], "path": "x"}]},
        {"counts": {}},
        {"format": DEEP},
        {"features": [DEEP]},
    ],
    ids=lambda told: ascii(told)[:30],
)
def test_a_seal_that_no_command_could_show_is_damaged(cli: Cli, tmp_path: Path, told: dict[str, Any]) -> None:
    """A key, host or platform that cannot be printed or filed makes an entry damaged, and hurts no other entry."""
    store = tmp_path / "store"
    entry = entry_of([directory(b"tree"), Member(b"tree/file", content=b"x")])
    file_entry(store, entry.seal(), "good-1")
    path = file_entry(store, entry.seal(told=told))
    cli("ls", "--store", store).expect(0)
    assert cli("verify", path, "--json").expect(4).json()["archives"][0]["verdict"] == "damaged"
    assert restore_tree(store, tmp_path / "root", key=KEY).status == "refused"
    assert not path.exists()


def test_the_builder_closes_a_seal_as_cachekit_does() -> None:
    """What the attacks are sealed with is, byte for byte, what a save would write."""
    from cachekit.archive.seal import encode

    entry = entry_of([directory(b"tree")])
    entry.seal()
    assert sealed_json(entry.facts.as_json()) == encode(entry.facts)
