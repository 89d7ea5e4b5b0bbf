"""The seal: the manifest at the end of an entry, and the tail of the file around it.

The seal holds the digest of the index, the index the digests of all data frames; the sha256 of the seal's JSON is the
identity of the entry. Reading it touches only the last kilobytes of the file, however long that is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cachekit.archive.auth import decode_auth, encode_auth
from cachekit.archive.format import (
    FORMAT,
    KNOWN_FEATURES,
    MAX_AUTH,
    MAX_INDEX,
    MAX_JSON,
    SEAL_MAGIC,
    SEAL_TRAILER,
    SEAL_TRAILER_MAGIC,
    SEEK_FOOTER,
    SEEK_FOOTER_MAGIC,
    SEEK_TABLE_MAGIC,
    SKIPPABLE_HEADER,
)
from cachekit.archive.images import HeldImage, decode_images, encode_images
from cachekit.errors import Damaged, InvalidRequest, Unsupported
from cachekit.model import ROOT_PREFIX, Key, Platform, Target
from cachekit.trust import ANYONE, Signature, Trust

__all__ = ["Seal", "decode_json", "encode", "seek_table", "skippable"]


@dataclass(slots=True)
class Seal:
    """The manifest of an entry. Sizes in bytes, ``created_ns`` since 1970 in UTC.

    ``data_bytes`` is where the index frame begins, ``sealed_bytes`` where the seal frame begins. ``counts`` has files,
    directories, symlinks and hardlinks; ``skipped`` what the walk left out, by reason.
    """

    key: str
    platform: Platform
    family: str
    targets: list[Target]
    roots: dict[str, str]
    created_ns: int
    host: str
    versions: dict[str, str]
    level: int
    data_bytes: int
    sealed_bytes: int
    index_raw_bytes: int
    index_sha256: str
    frames: int
    members: int
    tar_bytes: int
    content_bytes: int
    allocated_bytes: int
    counts: dict[str, int]
    skipped: dict[str, int] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)
    #: What Docker images the entry holds; None for one of files and directories. Goes with the feature ``image``.
    images: list[HeldImage] | None = None
    #: sha256 of the JSON, in hex; set when the seal is encoded or decoded.
    identity: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of docs/format.md."""
        images = {} if self.images is None else {"images": encode_images(self.images)}
        return images | {
            "format": FORMAT,
            "features": self.features,
            "key": self.key,
            "platform": {"os": self.platform.os, "arch": self.platform.arch, "libc": self.platform.libc},
            "family": self.family,
            "targets": [{"root": t.root, "path": t.path.decode("latin-1")} for t in self.targets],
            "roots": self.roots,
            "created_ns": self.created_ns,
            "host": self.host,
            "versions": self.versions,
            "level": self.level,
            "data_bytes": self.data_bytes,
            "sealed_bytes": self.sealed_bytes,
            "index_raw_bytes": self.index_raw_bytes,
            "index_sha256": self.index_sha256,
            "frames": self.frames,
            "members": self.members,
            "tar_bytes": self.tar_bytes,
            "content_bytes": self.content_bytes,
            "allocated_bytes": self.allocated_bytes,
            "counts": self.counts,
            "skipped": self.skipped,
        }


def skippable(magic: int, payload: bytes) -> bytes:
    """Return a zstd skippable frame (RFC 8878, 3.1.2)."""
    return SKIPPABLE_HEADER.pack(magic, len(payload)) + payload


def encode(seal: Seal, trust: Trust = ANYONE) -> bytes:
    """Return the seal frame, signed if ``trust`` has a key, and set ``seal.identity``."""
    text = json.dumps(seal.as_json(), separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode(
        "ascii"
    )
    digest = hashlib.sha256(text).digest()
    seal.identity = digest.hex()
    signature = trust.sign(text)
    auth = encode_auth([signature] if signature else [], digest)
    trailer = SEAL_TRAILER.pack(digest, len(text), len(auth), SEAL_TRAILER_MAGIC)
    return skippable(SEAL_MAGIC, text + auth + trailer)


def seek_table(sizes: Iterable[tuple[int, int]]) -> bytes:
    """Return the seek table frame for (compressed, decompressed) frame sizes, without checksums of its own."""
    rows = b"".join(SKIPPABLE_HEADER.pack(*pair) for pair in sizes)
    footer = SEEK_FOOTER.pack(len(rows) // SKIPPABLE_HEADER.size, 0, SEEK_FOOTER_MAGIC)
    return skippable(SEEK_TABLE_MAGIC, rows + footer)


def _fail(message: str, **facts: object) -> NoReturn:
    raise Damaged(message, rung="seal", **facts)  # type: ignore[arg-type]


def _integer(value: object, name: str, limit: int = 1 << 63) -> int:
    if type(value) is not int or not 0 <= value < limit:
        _fail(f"the seal's {name} is not a number that can be", found=ascii(value))
    return value


def _strings(value: object, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        _fail(f"the seal's {name} is not a table of texts", found=ascii(value))
    return value


def _counts(value: object, name: str) -> dict[str, int]:
    if not isinstance(value, dict):
        _fail(f"the seal's {name} is not a table of numbers", found=ascii(value))
    return {key: _integer(count, name) for key, count in value.items()}


def _key(value: str) -> str:
    try:
        return Key(value).text
    except InvalidRequest as error:
        _fail(f"the seal's key is none: {error.message}", found=ascii(value)[:200])


def _targets(value: object) -> list[Target]:
    targets = []
    if not isinstance(value, list) or not value:
        _fail("the seal names no target")
    for item in value:
        if (
            not isinstance(item, dict)
            or not isinstance(item.get("root"), str)
            or item["root"] not in ROOT_PREFIX
            or not isinstance(item.get("path"), str)
        ):
            _fail("the seal has a target that is none", found=ascii(item))
        try:
            targets.append(Target(item["root"], item["path"].encode("latin-1")))
        except UnicodeEncodeError:
            _fail("the seal has a target that is none", found=ascii(item))
    return targets


def decode_json(text: bytes) -> Seal:
    """Return the seal whose JSON is ``text``; its digest has been checked by the caller.

    Raises Damaged for anything that is not a seal, Unsupported for one that a newer cachekit wrote.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        _fail("the seal is not JSON")
    if not isinstance(data, dict):
        _fail("the seal is not a JSON object")
    try:
        # JSON can write text that no program can print: half of a surrogate pair (but for Python's own escapes).
        json.dumps(data, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError):
        _fail("the seal has text that is none")
    number, features = data.get("format"), data.get("features")
    if isinstance(number, (list, dict)):  # how deep nobody knows: it is not shown
        _fail("the seal's format is neither a number nor a text")
    if type(number) is not int or number != FORMAT:
        raise Unsupported(
            f"the entry has format {number!r}, this cachekit reads format {FORMAT}",
            rung="seal",
            expected=FORMAT,
            found=number,
        )
    if not isinstance(features, list) or not all(isinstance(feature, str) for feature in features):
        _fail("the seal's features are not a list of texts")
    if not KNOWN_FEATURES.issuperset(features):
        raise Unsupported(
            "the entry needs features that this cachekit does not have",
            rung="seal",
            expected=sorted(KNOWN_FEATURES),
            found=features,
        )
    if ("image" in features) != ("images" in data):
        _fail("the seal does not say which images the entry holds")
    platform = _strings(data.get("platform"), "platform")
    digest = data.get("index_sha256")
    if not isinstance(digest, str) or len(digest) != 64:
        _fail("the seal has no digest of the index")
    for name in ("key", "family", "host"):
        if not isinstance(data.get(name), str):
            _fail(f"the seal's {name} is not a text", found=ascii(data.get(name)))
    if set(platform) != {"os", "arch", "libc"} or not all(map(str.isascii, platform.values())):
        _fail("the seal's platform is not one", found=ascii(platform))
    counts = _counts(data.get("counts"), "counts")
    if set(counts) != {"files", "directories", "symlinks", "hardlinks"}:
        _fail("the seal does not count the members by kind", found=ascii(counts)[:200])
    return Seal(
        key=_key(data["key"]),
        platform=Platform(platform["os"], platform["arch"], platform["libc"]),
        family=data["family"],
        targets=_targets(data.get("targets")),
        roots=_strings(data.get("roots"), "roots"),
        created_ns=_integer(data.get("created_ns"), "created_ns"),
        host=data["host"],
        versions=_strings(data.get("versions"), "versions"),
        level=data["level"] if type(data.get("level")) is int else _fail("the seal's level is not a number"),
        data_bytes=_integer(data.get("data_bytes"), "data_bytes"),
        sealed_bytes=_integer(data.get("sealed_bytes"), "sealed_bytes"),
        index_raw_bytes=_integer(data.get("index_raw_bytes"), "index_raw_bytes", MAX_INDEX),
        index_sha256=digest,
        frames=_integer(data.get("frames"), "frames", 1 << 32),
        members=_integer(data.get("members"), "members", 1 << 32),
        tar_bytes=_integer(data.get("tar_bytes"), "tar_bytes"),
        content_bytes=_integer(data.get("content_bytes"), "content_bytes"),
        allocated_bytes=_integer(data.get("allocated_bytes"), "allocated_bytes"),
        counts=counts,
        skipped=_counts(data.get("skipped"), "skipped"),
        features=features,
        images=decode_images(data["images"]) if "images" in data else None,
        identity=hashlib.sha256(text).hexdigest(),
    )


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the tail's pieces lie in the file, as read from its end."""

    seal_offset: int
    seek_table_offset: int
    frames: int
    json: bytes
    signatures: list[Signature]


def parse_tail(size: int, read: Any) -> Tail:
    """Find seal and seek table from the end of a file of ``size`` bytes; ``read(length, offset)`` gives bytes.

    Raises Damaged when any of it is not as written: a cut file ends elsewhere, an appended byte moves the end.
    """
    smallest = SKIPPABLE_HEADER.size * 2 + SEAL_TRAILER.size + SEEK_FOOTER.size
    if size < smallest:
        _fail(
            "the file is too short to be an entry",
            expected=f"at least {smallest} bytes",
            found=size,
            offset=size,
        )
    footer = read(SEEK_FOOTER.size, size - SEEK_FOOTER.size)
    frames, descriptor, magic = SEEK_FOOTER.unpack(footer)
    if magic != SEEK_FOOTER_MAGIC or descriptor != 0:
        _fail(
            "the file does not end as an entry does: it is cut, has bytes appended, or is something else",
            expected="a seek table's end",
            # Not the bytes themselves: under an entry's name there may be a file that is no business of the log's.
            found="other bytes" if any(footer) else "zeros",
            offset=size,
        )
    table_size = SKIPPABLE_HEADER.size * (frames + 1) + SEEK_FOOTER.size
    table = size - table_size
    if table < SKIPPABLE_HEADER.size + SEAL_TRAILER.size:
        _fail(
            "the seek table claims to be longer than the file",
            expected=f"at most {size} bytes",
            found=table_size,
        )
    head = SKIPPABLE_HEADER.unpack(read(SKIPPABLE_HEADER.size, table))
    if head != (SEEK_TABLE_MAGIC, table_size - SKIPPABLE_HEADER.size):
        _fail("the seek table does not begin where its end says", offset=table)
    digest, json_size, auth_size, magic = SEAL_TRAILER.unpack(
        read(SEAL_TRAILER.size, table - SEAL_TRAILER.size)
    )
    if magic != SEAL_TRAILER_MAGIC:
        _fail("there is no seal before the seek table", offset=table - SEAL_TRAILER.size)
    payload = json_size + auth_size + SEAL_TRAILER.size
    seal = table - payload - SKIPPABLE_HEADER.size
    if json_size > MAX_JSON or auth_size > MAX_AUTH or seal < 0:
        _fail("the seal claims to be longer than it can be", found=payload)
    if SKIPPABLE_HEADER.unpack(read(SKIPPABLE_HEADER.size, seal)) != (SEAL_MAGIC, payload):
        _fail("the seal does not begin where its end says", offset=seal)
    text = read(json_size, seal + SKIPPABLE_HEADER.size)
    found = hashlib.sha256(text).digest()
    if found != digest:
        _fail("the seal's digest is wrong", expected=digest.hex(), found=found.hex(), offset=seal)
    auth = read(auth_size, seal + SKIPPABLE_HEADER.size + json_size) if auth_size else b""
    return Tail(seal, table, frames, text, decode_auth(auth, digest))
