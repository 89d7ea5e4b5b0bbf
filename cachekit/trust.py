"""Who may have written an entry: keys, signatures, and the policy that a reader follows. Pure; no key is ever shown."""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from cachekit.errors import Forged, InvalidRequest, Untrusted

__all__ = [
    "ANYONE",
    "MINIMUM_KEY_BYTES",
    "HmacKey",
    "Signature",
    "Signed",
    "Standing",
    "Trust",
    "TrustMode",
    "parse_keys",
]

TrustMode = Literal["none", "hmac"]

#: Shorter ones can be guessed: whoever has a signed entry can try keys as fast as he computes.
MINIMUM_KEY_BYTES = 16
#: What is authenticated begins with these, so that no HMAC made for one purpose serves another.
_KEY_ID_DOMAIN = b"cachekit key id 1"
_ENTRY_DOMAIN = b"cachekit entry hmac 1"
_KEY_ID_BYTES = 8
_MAC_BYTES = 32


class HmacKey:
    """A secret shared by those who may write entries. ``id`` (16 hex digits) names it without revealing it.

    Not a dataclass on purpose: nothing that walks fields, prints, copies or pickles gets at the secret.
    """

    __slots__ = ("_secret", "id")

    def __init__(self, text: str) -> None:
        """Take the key's text. Raises InvalidRequest, without the text, for one that is too short or no text."""
        if any(unicodedata.category(character) in {"Cc", "Cs"} for character in text):
            raise InvalidRequest(
                "an HMAC key has control characters, or is no UTF-8 text",
                hint="make one with: openssl rand -hex 32",
            )
        secret = text.encode("utf-8")
        if len(secret) < MINIMUM_KEY_BYTES:
            raise InvalidRequest(
                f"an HMAC key is shorter than {MINIMUM_KEY_BYTES} bytes: it could be guessed",
                expected=f"at least {MINIMUM_KEY_BYTES} bytes",
                found=f"{len(secret)} bytes",
                hint="make one with: openssl rand -hex 32",
            )
        self._secret = secret
        self.id = hmac.digest(secret, _KEY_ID_DOMAIN, hashlib.sha256)[:_KEY_ID_BYTES].hex()

    def mac(self, text: bytes, namespace: str) -> bytes:
        """Return the HMAC-SHA256 of a seal's JSON in a namespace (docs/format.md, section 4)."""
        message = b"\0".join((_ENTRY_DOMAIN, namespace.encode("utf-8"), text))
        return hmac.digest(self._secret, message, hashlib.sha256)

    def __repr__(self) -> str:
        return f"<HMAC key {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HmacKey) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an HMAC key is not pickled")


def parse_keys(text: str, *, comments: bool = False) -> tuple[HmacKey, ...]:
    """Return the keys of a text, one a line; blank lines, and spaces around a key, count nothing.

    With ``comments`` (a file) lines that begin with ``#`` are left out. Raises InvalidRequest, naming the line.
    """
    keys: list[HmacKey] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r")
        if not line or (comments and line.startswith("#")):
            continue
        try:
            key = HmacKey(line)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"{error.message} (line {number})",
                expected=error.expected,
                found=error.found,
                hint=error.hint,
                line=number,
            ) from None
        if key not in keys:
            keys.append(key)
    return tuple(keys)


@dataclass(frozen=True, slots=True)
class Signature:
    """One HMAC of an entry, as it is written there: by which key, and for which namespace (empty: outside a store)."""

    key_id: str
    mac: bytes
    namespace: str


#: What is known of an entry's origin. unsigned: it has no HMAC; unchecked: it has, and we have no key; unknown-key:
#: none of its keys is ours; elsewhere: right, but for another namespace; valid: right; forged: wrong under our key.
Standing = Literal["unsigned", "unchecked", "unknown-key", "elsewhere", "valid", "forged"]


@dataclass(frozen=True, slots=True)
class Signed:
    """An entry's standing, with the id of the key and the namespace that it was signed with, if it was."""

    standing: Standing
    key_id: str | None = None
    namespace: str | None = None

    def __str__(self) -> str:
        if self.standing == "unsigned":
            return "not signed"
        if self.standing == "elsewhere":
            return f"signed with key {self.key_id}, for the namespace {self.namespace!r}"
        words = {
            "unchecked": "not checked: no key is given",
            "unknown-key": "which is not among yours",
            "valid": "valid",
            "forged": "wrong",
        }
        return f"signed with key {self.key_id}, {words[self.standing]}"


@dataclass(frozen=True, slots=True)
class Trust:
    """Which entries may be used: any (``required`` False), or only those with a valid HMAC of one of the keys.

    The first key signs, all verify. An HMAC that is wrong under a key of ours is refused in either mode. ``namespace``
    is the one that entries are written to and must have been signed for; None for a file outside of any store.
    """

    required: bool = False
    keys: tuple[HmacKey, ...] = ()
    namespace: str | None = None

    @property
    def mode(self) -> TrustMode:
        return "hmac" if self.required else "none"

    def within(self, namespace: str | None) -> Trust:
        """Return the policy for the entries of a namespace."""
        return replace(self, namespace=namespace)

    def for_looking(self) -> Trust:
        """Return the policy for listing what is there without using it: also what is not trusted, nothing forged."""
        return replace(self, required=False)

    def require_signer(self) -> None:
        """Raise InvalidRequest if what is saved must be signed and cannot be."""
        if self.required and not self.keys:
            raise InvalidRequest(
                "entries must be signed here (trust is hmac), and no key is given; nothing was written",
                hint="set CACHEKIT_HMAC_KEY or CACHEKIT_HMAC_KEY_FILE; a job that may not have the key must not save",
            )

    def sign(self, text: bytes) -> Signature | None:
        """Return the first key's signature of a seal's JSON; None without a key."""
        if not self.keys:
            return None
        key, namespace = self.keys[0], self.namespace or ""
        return Signature(key.id, key.mac(text, namespace), namespace)

    def judge(self, text: bytes, signatures: Sequence[Signature]) -> Signed:
        """Return the standing of an entry whose seal has the JSON ``text``."""
        if not signatures:
            return Signed("unsigned")
        if not self.keys:
            return Signed("unchecked", signatures[0].key_id, signatures[0].namespace)
        found = Signed("unknown-key", signatures[0].key_id, signatures[0].namespace)
        own = {key.id: key for key in self.keys}
        for signature in signatures:
            key = own.get(signature.key_id)
            if key is None:
                continue
            told = signature.key_id, signature.namespace
            if not hmac.compare_digest(key.mac(text, signature.namespace), signature.mac):
                if found.standing == "unknown-key":
                    found = Signed("forged", *told)
            elif self.namespace is None or signature.namespace == self.namespace:
                return Signed("valid", *told)
            else:
                found = Signed("elsewhere", *told)
        return found

    def check(self, text: bytes, signatures: Sequence[Signature]) -> Signed:
        """Return the standing of an entry that may be used. Raises Forged, and Untrusted where trust is required."""
        signed = self.judge(text, signatures)
        if signed.standing == "forged":
            raise Forged(
                f"the entry's HMAC is wrong under your key {signed.key_id}: it was altered, or sealed without the key",
                rung="trust",
            )
        if self.required and signed.standing != "valid":
            raise _untrusted(signed, self)
        return signed


def _untrusted(signed: Signed, trust: Trust) -> Untrusted:
    own = [key.id for key in trust.keys]
    if not own:
        return Untrusted(
            "not trusted: no key is given to check the entry with",
            rung="trust",
            found=signed.key_id,
            hint="set CACHEKIT_HMAC_KEY or CACHEKIT_HMAC_KEY_FILE",
        )
    if signed.standing == "unsigned":
        return Untrusted("not trusted: the entry is not signed", rung="trust", expected=own)
    if signed.standing == "elsewhere":
        return Untrusted(
            f"not trusted: the entry was signed for the namespace {signed.namespace!r}",
            rung="trust",
            expected=trust.namespace,
            found=signed.namespace,
        )
    return Untrusted(
        "not trusted: signed with a key that is not among yours",
        rung="trust",
        expected=own,
        found=signed.key_id,
    )


#: The policy of whoever has no keys and takes any whole entry.
ANYONE = Trust()
