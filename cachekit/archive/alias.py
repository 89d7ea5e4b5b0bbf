"""An alias: a further key of an entry whose content nobody has to store twice. The grammar is in docs/format.md.

It says which entry (by identity) is served under the key as well, and is signed as a seal is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import NoReturn

from cachekit.archive.auth import decode_auth, encode_auth
from cachekit.archive.format import ALIAS_MAGIC, MAX_ALIAS, SEAL_TRAILER
from cachekit.errors import Damaged, InvalidRequest
from cachekit.model import Key
from cachekit.trust import Signed, Trust

__all__ = ["Alias", "decode_alias", "encode_alias"]


@dataclass(frozen=True, slots=True)
class Alias:
    """``identity`` of the entry; key, family and creation time (ns since 1970) that it has under the further key."""

    key: str
    family: str
    created_ns: int
    identity: str


def encode_alias(alias: Alias, trust: Trust) -> bytes:
    """Return the alias as bytes, signed if ``trust`` has a key."""
    data = {
        "alias": 1,
        "key": alias.key,
        "family": alias.family,
        "created_ns": alias.created_ns,
        "identity": alias.identity,
    }
    text = json.dumps(data, separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode("ascii")
    digest = hashlib.sha256(text).digest()
    signature = trust.sign(text)
    auth = encode_auth([signature] if signature else [], digest)
    return text + auth + SEAL_TRAILER.pack(digest, len(text), len(auth), ALIAS_MAGIC)


def _fail(message: str) -> NoReturn:
    raise Damaged(message, rung="seal")


def decode_alias(data: bytes, trust: Trust) -> tuple[Alias, Signed]:
    """Return the alias, and who signed it. Raises Damaged; Forged or Untrusted for what ``trust`` refuses."""
    if not SEAL_TRAILER.size < len(data) <= MAX_ALIAS:
        _fail("the alias is not as long as one can be")
    body, trailer = data[: -SEAL_TRAILER.size], data[-SEAL_TRAILER.size :]
    digest, json_size, auth_size, magic = SEAL_TRAILER.unpack(trailer)
    if magic != ALIAS_MAGIC or json_size + auth_size != len(body):
        _fail("the alias does not end as one does")
    text = body[:json_size]
    if hashlib.sha256(text).digest() != digest:
        _fail("the alias's digest is wrong")
    signed = trust.check(text, decode_auth(body[json_size:], digest))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        _fail("the alias is not JSON")
    if not isinstance(value, dict) or value.get("alias") != 1:
        _fail("the alias is not one of this version")
    key, family, created, identity = (value.get(name) for name in ("key", "family", "created_ns", "identity"))
    if not isinstance(key, str) or not isinstance(family, str) or not isinstance(identity, str):
        _fail("the alias names no key or no entry")
    if type(created) is not int or not 0 <= created < 1 << 63:
        _fail("the alias's time is not one")
    try:
        Key(key)
        family.encode("utf-8", "surrogateescape")
    except (InvalidRequest, UnicodeEncodeError):
        _fail("the alias's key is none")
    return Alias(key, family, created, identity), signed
