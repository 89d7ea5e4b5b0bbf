"""What later steps of a CI job read: GitHub's output file and annotations, GitLab's dotenv file."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping

from cachekit.cli.render import printable

__all__ = ["annotate", "write_outputs"]


def write_outputs(values: Mapping[str, object], dotenv: str | None = None) -> None:
    """Append to $GITHUB_OUTPUT, and write ``dotenv`` (``NAME=value`` lines) if given.

    GitHub's heredoc form with a random delimiter: no value can end it and add outputs of its own. Raises OSError.
    """
    path = os.environ.get("GITHUB_OUTPUT")
    if path:
        lines = []
        for name, value in values.items():
            delimiter = f"cachekit-{secrets.token_hex(16)}"
            lines.append(f"{name}<<{delimiter}\n{_text(value)}\n{delimiter}\n")
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(lines))
    if dotenv:
        with open(dotenv, "w", encoding="utf-8", errors="backslashreplace") as file:
            for name, value in values.items():
                variable = "CACHEKIT_" + name.upper().replace("-", "_")
                file.write(f"{variable}={printable(_text(value))}\n")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def annotate(kind: str, message: str) -> None:
    """Print a warning or error where GitHub Actions shows it beside the job; nothing elsewhere."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        escaped = printable(message).replace("%", "%25")
        sys.stderr.flush()
        sys.stdout.write(f"::{kind}::{escaped}\n")
        sys.stdout.flush()
