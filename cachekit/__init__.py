"""cachekit: CI caches that are whole or absent, and disks that stay clean."""

from cachekit._version import __version__

__all__ = ["__version__"]
