"""Entry point of ``cachekit`` and ``python -m cachekit``."""

from __future__ import annotations

import sys


def main() -> None:
    """Answer ``--version`` before click is imported, refuse Windows, hand everything else to the command line."""
    if sys.argv[1:] == ["--version"]:
        from cachekit._version import __version__

        sys.stdout.write(f"cachekit {__version__}\n")
        return
    if sys.platform == "win32":
        sys.stderr.write("cachekit: Windows is not supported; run it in WSL or in a Linux container\n")
        sys.exit(2)
    from cachekit.cli.main import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
