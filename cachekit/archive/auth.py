"""The seal's ``auth`` part: signatures as bytes, closed by a digest of their own. The grammar is in docs/format.md."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cachekit.archive.format import AUTH_HMAC, SKIPPABLE_HEADER
from cachekit.errors import Damaged
from cachekit.trust import Signature

__all__ = ["decode_auth", "encode_auth"]

_DOMAIN = b"cachekit auth 1\0"
_ID, _MAC, _DIGEST = 8, 32, 32


def _digest(json_digest: bytes, items: bytes) -> bytes:
    """Bind the items to their JSON, so that a flipped bit is seen without any key. It proves nothing about origin."""
    return hashlib.sha256(_DOMAIN + json_digest + items).digest()


def encode_auth(signatures: Sequence[Signature], json_digest: bytes) -> bytes:
    """Return the auth part for a seal whose JSON has the SHA-256 ``json_digest``; empty without signatures."""
    items = b""
    for signature in signatures:
        body = bytes.fromhex(signature.key_id) + signature.mac + signature.namespace.encode("utf-8")
        items += SKIPPABLE_HEADER.pack(AUTH_HMAC, len(body)) + body
    return items + _digest(json_digest, items) if items else b""


def decode_auth(auth: bytes, json_digest: bytes) -> list[Signature]:
    """Return the signatures of an auth part. Kinds of signature that are not known here are passed over.

    Raises Damaged if a single bit is not as it was written.
    """
    if not auth:
        return []
    items, found = auth[:-_DIGEST], auth[-_DIGEST:]
    expected = _digest(json_digest, items)
    if not items or found != expected:
        raise Damaged(
            "the digest of the seal's signatures is wrong",
            rung="seal",
            expected=expected.hex(),
            found=found.hex(),
        )
    signatures = []
    position = 0
    while position < len(items):
        head = items[position : position + SKIPPABLE_HEADER.size]
        if len(head) < SKIPPABLE_HEADER.size:
            raise Damaged("the seal's signatures end within one", rung="seal")
        kind, length = SKIPPABLE_HEADER.unpack(head)
        position += SKIPPABLE_HEADER.size
        body = items[position : position + length]
        if len(body) != length:
            raise Damaged("the seal's signatures end within one", rung="seal")
        position += length
        if kind == AUTH_HMAC:
            signatures.append(_hmac(body))
    return signatures


def _hmac(body: bytes) -> Signature:
    try:
        namespace = body[_ID + _MAC :].decode("utf-8")
    except UnicodeDecodeError:
        raise Damaged("the seal is signed for a namespace that is no text", rung="seal") from None
    if len(body) < _ID + _MAC or "\0" in namespace:
        raise Damaged("the seal has a signature that is none", rung="seal")
    return Signature(body[:_ID].hex(), body[_ID : _ID + _MAC], namespace)
