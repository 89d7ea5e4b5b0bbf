"""Frozen values that all rooms share: keys, platforms, targets, sizes and reports. No I/O in here."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Literal

from cachekit.errors import CachekitError, InvalidRequest
from cachekit.trust import ANYONE, Trust

__all__ = [
    "JOURNAL_NAME",
    "LEVELS",
    "LOCKS_NAME",
    "NAMED_LOCKS",
    "ROOT_PREFIX",
    "STAGED",
    "STAGING_PREFIX",
    "EntryIdentity",
    "Key",
    "Namespace",
    "Platform",
    "RestoreReport",
    "RestoreStatus",
    "RootName",
    "SaveReport",
    "SaveStatus",
    "StoreAddress",
    "Target",
    "VerifyReport",
    "format_duration",
    "format_size",
    "parse_duration",
    "parse_size",
]

RootName = Literal["root", "home", "abs"]
#: What stands before a member's name in the archive, by root. Plain relative names belong to ``root``.
ROOT_PREFIX: dict[RootName, bytes] = {"root": b"", "home": b".cachekit-home/", "abs": b".cachekit-abs/"}

MAX_KEY_BYTES = 512

#: The levels that zstd has, from fast to small.
LEVELS = range(-50, 23)

#: Names around a target that is being restored: the staging directory's beginning, the journal in it, the new tree in
#: it. A walk leaves such directories out, an entry may not bring them.
STAGING_PREFIX = b".cachekit-"
JOURNAL_NAME = "journal.json"
STAGED = b"new"

#: The directory of named locks in a shared directory (``lock run --dir``): a walk leaves it out, locks are no content.
LOCKS_NAME = b".cachekit-locks"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A cache key: 1 to 512 bytes of UTF-8 without control characters. Two keys are equal if their bytes are."""

    text: str

    def __post_init__(self) -> None:
        """Refuse what cannot be a key, saying why."""
        try:
            raw = self.text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidRequest(
                "the key is not valid UTF-8", found=ascii(self.text), hint="use printable characters"
            ) from None
        if not raw:
            raise InvalidRequest(
                "the key is empty", hint="give a key such as node-linux-<hash of the lock file>"
            )
        if len(raw) > MAX_KEY_BYTES:
            raise InvalidRequest(
                f"the key is {len(raw)} bytes long, at most {MAX_KEY_BYTES} are allowed",
                expected=MAX_KEY_BYTES,
                found=len(raw),
                hint="put a hash of the long part into the key",
            )
        bad = next((c for c in self.text if unicodedata.category(c) in {"Cc", "Zl", "Zp"}), None)
        if bad is not None:
            raise InvalidRequest(
                f"the key contains the control character U+{ord(bad):04X}",
                found=ascii(self.text),
                hint="a trailing newline from a command substitution is the usual cause",
            )

    @property
    def raw(self) -> bytes:
        return self.text.encode("utf-8")

    @property
    def family(self) -> str:
        """The key up to its last ``-``: entries of one family are expected to resemble each other."""
        return self.text.rpartition("-")[0] or self.text


#: Directories of a namespace: no namespace may be called like one, for it would lie among them.
STORE_DIRECTORIES = ("entries", "used", "tmp", "quarantine", "locks", "events", "pinned", "aliases")
#: The locks of ``cachekit lock run``, which lie beside the namespaces.
NAMED_LOCKS = "named-locks"
_NAMESPACE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_MAX_NAMESPACE_PARTS = 8


@dataclass(frozen=True, slots=True, order=True)
class Namespace:
    """A part of a store with entries of its own, like ``project/env/service``: 1 to 8 names between slashes.

    A last name that begins with ``@`` is a scope: a part of the namespace before it for jobs that are not trusted. Only
    ``scoped`` makes one, so no job reads or writes it by naming a namespace.
    """

    text: str = "default"

    def __post_init__(self) -> None:
        """Refuse what cannot be a namespace, saying why."""
        plain, _, scope = self.text.partition("/@")
        parts = plain.split("/")
        for part in [*parts, scope] if "/@" in self.text else parts:
            if not _NAMESPACE_PART.fullmatch(part) or part in {*STORE_DIRECTORIES, NAMED_LOCKS}:
                raise InvalidRequest(
                    f"{part!r} cannot be part of a namespace",
                    found=self.text,
                    expected="names of letters, digits, '.', '_' and '-', at most 64 of them, between slashes; none of "
                    + ", ".join([*STORE_DIRECTORIES, NAMED_LOCKS]),
                )
        if len(parts) > _MAX_NAMESPACE_PARTS:
            raise InvalidRequest(
                "the namespace has too many parts",
                found=self.text,
                expected=f"at most {_MAX_NAMESPACE_PARTS}",
            )

    @classmethod
    def named(cls, text: str) -> Namespace:
        """Return the namespace that somebody wrote: never a scope. Raises InvalidRequest."""
        if "@" in text:
            raise InvalidRequest(
                f"{text!r} cannot be a namespace",
                found=text,
                hint="a scope is chosen with --scope, not named",
            )
        return cls(text)

    @property
    def scope(self) -> str | None:
        """The scope's name, None for a namespace of trusted jobs."""
        plain, at, scope = self.text.partition("/@")
        return scope if at and plain else None

    def scoped(self, scope: str) -> Namespace:
        """Return the part of this namespace that ``scope`` writes to. Raises InvalidRequest for a bad name."""
        return Namespace(f"{self.text}/@{scope}")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Which store is meant and which part of it: a directory and a namespace; and how it may be used.

    ``open_to_all``: it is used although others than its owner and group may write to it. ``read_only``: nothing in it
    is changed, not even marks of use. ``trust``: whose entries are used.
    """

    path: str
    namespace: Namespace = Namespace()
    trust: Trust = ANYONE
    open_to_all: bool = False
    read_only: bool = False

    @classmethod
    def of(cls, address: StoreAddress | str) -> StoreAddress:
        """Return the address; a bare path means its default namespace."""
        return address if isinstance(address, StoreAddress) else cls(address)


@dataclass(frozen=True, slots=True)
class Platform:
    """Where an entry was made: part of its identity, because binaries in it run only there."""

    os: str
    arch: str
    libc: str

    def __str__(self) -> str:
        return f"{self.os}-{self.arch}-{self.libc}"


@dataclass(frozen=True, slots=True)
class EntryIdentity:
    """Key and platform together: what one entry of a store is filed under."""

    key: Key
    platform: Platform

    @property
    def digest(self) -> str:
        """32 hex digits of ``sha256(key NUL platform)``: see docs/format.md, "Entry file names"."""
        return hashlib.sha256(self.key.raw + b"\0" + str(self.platform).encode()).hexdigest()[:32]

    @property
    def file_name(self) -> str:
        return f"{safe_characters(self.key.text)}-{self.digest}.tar.zst"


def safe_characters(text: str) -> str:
    """Return at most 60 characters of ``text`` that are safe in a file name, for people to recognise an entry by."""
    return safe_prefix(text) or "_"


def safe_prefix(text: str) -> str:
    """Return what the safe characters of every key that begins with ``text`` begin with; empty for no restriction."""
    return re.sub(r"[^A-Za-z0-9._+=@-]", "_", text)[:60].lstrip(".-")


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One tree (or file) that an entry holds: a root and a path relative to it, ``b"."`` for the root itself."""

    root: RootName
    path: bytes

    @property
    def member(self) -> bytes:
        """The name of the target's own member in the archive, without a trailing slash; empty for ``root`` itself."""
        prefix = ROOT_PREFIX[self.root]
        return prefix.rstrip(b"/") if self.path == b"." else prefix + self.path

    def __str__(self) -> str:
        text = self.path.decode("utf-8", "backslashreplace")
        if self.root == "home":
            return "~" if text == "." else f"~/{text}"
        if self.root == "abs":
            return "/" if text == "." else f"/{text}"
        return text


_SIZE = re.compile(r"\s*([0-9]{1,18})(?:\.([0-9]{1,9}))?\s*(?:([KMGTP])i?)?B?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` means: ``512``, ``10M``, ``2.5GiB``. Units are powers of 1024 (``kB`` too).

    Raises InvalidRequest for anything else.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise InvalidRequest(f"{text!r} is not a size", expected="a number with K, M, G or T", found=text)
    whole, fraction, unit = match.groups(default="")
    factor: int = 1024 ** " KMGTP".index(unit.upper() or " ")
    # Whole numbers only: a float would round what is above 8 PiB.
    part = int(fraction or "0") * factor // int("1" + "0" * len(fraction))
    return int(whole) * factor + part


def format_size(value: float) -> str:
    """Return bytes as people read them, in powers of 1024: ``512 B``, ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


_DURATION = re.compile(r"\s*([0-9]{1,9})(?:\.([0-9]{1,9}))?\s*([smhdw]?)\s*", re.IGNORECASE)
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}


def parse_duration(text: str) -> float:
    """Return the seconds that ``text`` means: ``30``, ``30s``, ``5m``, ``1.5h``, ``14d``, ``2w``. A day has 24 hours.

    Raises InvalidRequest for anything else. The result is finite and not negative.
    """
    match = _DURATION.fullmatch(text)
    if not match:
        raise InvalidRequest(
            f"{text!r} is not a duration", expected="a number with s, m, h, d or w", found=text
        )
    whole, fraction, unit = match.groups(default="")
    return float(f"{whole}.{fraction or '0'}") * _UNIT_SECONDS[unit.lower()]


def format_duration(seconds: float) -> str:
    """Return seconds as people read them, in at most two units: ``0.3 s``, ``45 s``, ``2 min 5 s``, ``1 d 4 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rest = round(seconds)
    parts = []
    for unit, length in (("d", 24 * 3600), ("h", 3600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, length)
        if number:
            parts.append(f"{number} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


SaveStatus = Literal["saved", "reused", "exists", "in-progress"]


@dataclass(slots=True)
class SaveReport:
    """What a save did. Sizes in bytes, times in seconds. ``files`` counts regular files and hard links.

    ``base`` is the key of the entry from which the save started, ``copied_bytes`` how much of the archive was taken
    over from it; ``unchanged`` says that it holds the same members, times and contents.
    """

    status: SaveStatus
    key: str
    entry: str
    platform: str
    identity: str | None = None
    targets: list[str] = field(default_factory=list)
    files: int = 0
    members: int = 0
    content_bytes: int = 0
    archive_bytes: int = 0
    base: str | None = None
    copied_bytes: int = 0
    unchanged: bool = False
    skipped: dict[str, int] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Content bytes for each archive byte; 0 when nothing was written."""
        return self.content_bytes / self.archive_bytes if self.archive_bytes else 0.0


RestoreStatus = Literal["exact", "partial", "miss", "refused", "unreadable", "unsupported"]


@dataclass(slots=True)
class RestoreReport:
    """What a restore did.

    ``status``: exact (the key itself), partial (a restore key's entry), miss, or why the only candidates were not used.
    ``tried`` has one line for every candidate that was looked at and not used, with its reason.
    ``commit`` says for each target how the new tree came into place: rename, exchange, children, files or in-place.
    """

    status: RestoreStatus
    key: str
    matched_key: str | None = None
    entry: str | None = None
    identity: str | None = None
    targets: list[str] = field(default_factory=list)
    mode: str = "merge"
    commit: dict[str, str] = field(default_factory=dict)
    files: int = 0
    members: int = 0
    content_bytes: int = 0
    archive_bytes: int = 0
    unchanged: int = 0
    extra: int = 0
    tried: list[dict[str, object]] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def passed_over(self, entry: str, verdict: str, reason: str, error: CachekitError | None = None) -> None:
        """Take note of an entry that was looked at and not used."""
        line: dict[str, object] = {"entry": entry, "verdict": verdict, "reason": reason}
        if error is not None:
            line["error"] = error.as_dict()
        self.tried.append(line)

    @property
    def hit(self) -> bool:
        """True when a tree was restored, from the exact key or from a restore key."""
        return self.status in {"exact", "partial"}


@dataclass(slots=True)
class VerifyReport:
    """The verdict on one archive: ``ok``, or the error that the first failing rung raised."""

    path: str
    key: str | None
    ok: bool
    depth: str
    verdict: Literal["ok", "damaged", "forged", "unsafe", "unsupported", "untrusted", "unreadable", "missing"]
    error: dict[str, object] | None = None
    archive_bytes: int = 0
    content_bytes: int = 0
    files: int = 0
    identity: str | None = None
    #: What its signature is worth (``trust.Standing``), and the id of the key; unknown if the seal is damaged.
    signature: str | None = None
    key_id: str | None = None
    seconds: float = 0.0
