"""The manifest beside a sealed file: what the file was when it was sealed, and a digest of the manifest itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NoReturn

from cachekit.errors import Damaged, Unsupported
from cachekit.trust import Signature, Trust

__all__ = ["SUFFIX", "FileSeal", "decode", "encode"]

#: What is added to a file's name.
SUFFIX = ".cachekit.json"
_VERSION = 1
#: A manifest has some hundred bytes, and a line for each image.
MAX_BYTES = 4 << 20
#: What the HMAC is for, lest one of an entry be taken for one of a file (its JSON has no such first bytes).
_DOMAIN = b"cachekit sealed file 1\0"


@dataclass(frozen=True, slots=True)
class FileSeal:
    """What a file was: size in bytes, sha256 in hex, kind and structure as ``inspect`` found them, when (ns)."""

    size: int
    sha256: str
    kind: str
    structure: dict[str, Any]
    created_ns: int
    host: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the manifest's ``file``."""
        return {
            "size": self.size,
            "sha256": self.sha256,
            "kind": self.kind,
            "structure": self.structure,
            "created_ns": self.created_ns,
            "host": self.host,
        }


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def encode(seal: FileSeal, trust: Trust) -> bytes:
    """Return the manifest, signed if ``trust`` has a key. People may read it; ``check`` covers what it says."""
    text = _canonical(seal.as_json())
    document: dict[str, Any] = {
        "cachekit_file_seal": _VERSION,
        "file": seal.as_json(),
        "check": hashlib.sha256(text).hexdigest(),
    }
    signature = trust.within(None).sign(_DOMAIN + text)
    if signature is not None:
        document["hmac"] = {"key_id": signature.key_id, "sha256": signature.mac.hex()}
    return (json.dumps(document, indent=1, ensure_ascii=True) + "\n").encode("ascii")


def decode(data: bytes, trust: Trust) -> FileSeal:
    """Return what ``encode`` wrote. Raises Damaged, Unsupported, and what ``trust`` raises."""
    try:
        document = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError):
        _wrong("it is not JSON: it may be cut")
    if not isinstance(document, dict) or "cachekit_file_seal" not in document:
        _wrong("it is no manifest")
    if document["cachekit_file_seal"] != _VERSION:
        raise Unsupported(
            "the manifest is of a newer cachekit",
            expected=_VERSION,
            found=str(document["cachekit_file_seal"]),
        )
    facts = document.get("file")
    if not isinstance(facts, dict):
        _wrong("it says nothing of a file")
    try:
        text = _canonical(facts)
    except RecursionError:
        _wrong("it is not JSON as it was written")
    if document.get("check") != hashlib.sha256(text).hexdigest():
        _wrong("its own digest is wrong: it was changed after it was written")
    trust.within(None).check(_DOMAIN + text, _signatures(document.get("hmac")))
    kinds = {"size": int, "sha256": str, "kind": str, "structure": dict, "created_ns": int, "host": str}
    if set(facts) != set(kinds) or any(type(facts[name]) is not kind for name, kind in kinds.items()):
        _wrong("what it says of the file is not complete")
    if not 0 <= facts["size"] < 1 << 63 or not _is_structure(facts["structure"]):
        _wrong("what it says of the file cannot be")
    return FileSeal(**facts)


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)  # NaN and infinity are no JSON


def _is_structure(structure: dict[str, Any]) -> bool:
    """Return True if what is told to people of a structure is of the types that ``inspect`` gives."""
    counts = [structure.get(name, 0) for name in ("members", "encrypted")]
    images = structure.get("images", [])
    return (
        all(type(number) is int and number >= 0 for number in counts)
        and isinstance(images, list)
        and all(isinstance(image, dict) and _are_names(image.get("names", [])) for image in images)
    )


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _signatures(value: object) -> list[Signature]:
    if value is None:
        return []
    try:
        assert isinstance(value, dict)
        return [Signature(str(value["key_id"]), bytes.fromhex(value["sha256"]), "")]
    except (AssertionError, KeyError, TypeError, ValueError):
        _wrong("its signature is none")


def _wrong(reason: str) -> NoReturn:
    raise Damaged(
        f"the manifest is damaged: {reason}",
        rung="seal",
        hint="seal the file again, if it is known to be whole: cachekit seal FILE",
    )
