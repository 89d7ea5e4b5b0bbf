"""What a configuration file says, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cachekit.cache.keys.template import Template
from cachekit.model import Namespace
from cachekit.retention.budget import Budget

__all__ = ["Cache", "Configuration", "Kind", "Mode", "TrustName"]

Kind = Literal["files", "oci"]
Mode = Literal["merge", "replace"]
TrustName = Literal["none", "hmac"]


@dataclass(frozen=True, slots=True)
class Cache:
    """A named cache; None where the file says nothing. Its paths are relative to the file's directory."""

    name: str
    key: Template
    restore_keys: tuple[Template, ...]
    paths: tuple[str, ...]
    excludes: tuple[str, ...] = ()
    mode: Mode = "merge"
    in_place: bool = False
    namespace: Namespace | None = None
    level: int | None = None
    family: str | None = None
    trust: TrustName | None = None
    #: What its paths are: any files, or OCI layouts, which are then verified as such.
    kind: Kind = "files"


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration file: its path, the directory that its relative paths begin in, and what it says."""

    path: str
    directory: str
    store: str | None = None
    namespace: Namespace | None = None
    trust_store: bool = False
    trust: TrustName | None = None
    level: int | None = None
    budget: Budget = field(default_factory=Budget)
    caches: dict[str, Cache] = field(default_factory=dict)
