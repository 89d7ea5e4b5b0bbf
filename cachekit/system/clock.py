"""The time of day and the machine's name: asked for here, so that everything else is told."""

from __future__ import annotations

import os
import sys
import time

from cachekit.model import Platform

__all__ = ["host_name", "image_platform", "machine", "now_ns", "python_version", "this_platform"]


def now_ns() -> int:
    """Return the time in nanoseconds since 1970, UTC."""
    return time.time_ns()


def host_name() -> str:
    """Return the host's own name; for people, never used to decide anything."""
    return os.uname().nodename


def this_platform() -> Platform:
    """Return the platform that this process runs on."""
    return Platform(*machine())


def image_platform() -> Platform:
    """Return the platform under which Docker images are filed: an image brings its own C library."""
    here = this_platform()
    return Platform(here.os, here.arch, "any")


def machine() -> tuple[str, str, str]:
    """Return (os, architecture, libc) in the names that entries are filed under."""
    facts = os.uname()
    system = sys.platform if sys.platform != "darwin" else "macos"
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(facts.machine.lower(), facts.machine.lower())
    if system != "linux":
        return system, arch, "none"
    try:
        # One call instead of platform.libc_ver(), which searches the interpreter's binary; musl has no such name.
        glibc = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        glibc = None
    return system, arch, "glibc" if glibc else "musl"


def python_version() -> str:
    return sys.version.split()[0]
