"""A name for this machine in a shared store: for people and statistics, never used to decide anything."""

from __future__ import annotations

import hashlib
import re

from cachekit.system.clock import host_name

__all__ = ["machine_name"]


def machine_name() -> str:
    """Return the host's name in safe characters and 8 hex digits of its machine id, or of its name if it has none.

    The id is hashed: as it is, it may not leave the machine (machine-id(5)).
    """
    host = host_name()
    try:
        with open("/etc/machine-id", "rb") as file:
            told = file.read(64).strip()
    except OSError:
        told = b""
    digest = hashlib.sha256(b"cachekit\0" + (told or host.encode("utf-8", "replace"))).hexdigest()[:8]
    safe = re.sub(r"[^A-Za-z0-9_]+", "-", host)[:40].strip("-") or "host"
    return f"{safe}-{digest}"
