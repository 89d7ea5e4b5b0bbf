"""What later steps of a CI job read: GitHub's output file and annotations, GitLab's dotenv file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

import click

from cachekit.cli.render import error_lines, printable
from cachekit.errors import CachekitError, InvalidRequest

__all__ = ["annotate", "check_dotenv", "error_told", "warn", "write_outputs", "write_summary"]

#: The codes that --soft-fail turns into 0.
_SOFT = range(4, 10)


def check_dotenv(path: str | None) -> None:
    """Raise InvalidRequest if the dotenv file cannot be written: better before a restore than after it."""
    if path is None:
        return
    try:
        with open(path, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise InvalidRequest(
            f"the --dotenv file cannot be written: {error.strerror}",
            path=path,
            hint="name a file in a directory that exists and that the job may write to",
        ) from None


def write_outputs(values: Mapping[str, object], dotenv: str | None = None) -> None:
    """Append to $GITHUB_OUTPUT, and write ``dotenv`` (``NAME=value`` lines) if given.

    GitHub's heredoc form with a random delimiter: no value can end it and add outputs of its own. A file that cannot be
    written is a warning: what was restored stays restored, and without ``cache-hit`` a later step builds anew.
    """
    path = os.environ.get("GITHUB_OUTPUT")
    if path:
        lines = []
        for name, value in values.items():
            delimiter = f"cachekit-{os.urandom(16).hex()}"
            lines.append(f"{name}<<{delimiter}\n{_text(value)}\n{delimiter}\n")
        _write(path, "a", "".join(lines), "$GITHUB_OUTPUT")
    if dotenv:
        pairs = (("CACHEKIT_" + name.upper().replace("-", "_"), value) for name, value in values.items())
        text = "".join(f"{name}={printable(_text(value))}\n" for name, value in pairs)
        _write(dotenv, "w", text, "--dotenv")


def write_summary(markdown: str) -> None:
    """Append to the job's summary page ($GITHUB_STEP_SUMMARY); nothing elsewhere."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        _write(path, "a", markdown, "$GITHUB_STEP_SUMMARY")


def _write(path: str, mode: str, text: str, what: str) -> None:
    try:
        with open(path, mode, encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        warn(f"the outputs could not be written to {what} ({path}): {error.strerror}")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def warn(message: str, *more: str) -> None:
    """Tell people, and GitHub Actions, of something that did not stop the work; ``more`` are lines below it."""
    lines = [printable(message), *more]
    sys.stderr.write("cachekit: warning: " + "\n".join(lines) + "\n")
    annotate("warning", lines)


def annotate(kind: str, lines: list[str]) -> None:
    """Print a warning or error where GitHub Actions shows it beside the job; nothing elsewhere.

    On stderr, which the runner reads for commands as it does stdout: stdout is for data. ``lines`` are printable.
    """
    if os.environ.get("GITHUB_ACTIONS") == "true":
        escaped = "%0A".join(line.strip().replace("%", "%25") for line in lines)
        sys.stderr.write(f"::{kind} title=cachekit::{escaped}\n")
        sys.stderr.flush()


def error_told(name: str, error: CachekitError) -> int:
    """Tell of one failure among several as ``cli.main`` tells of a command's; return its exit code."""
    told = click.get_current_context().find_root().ensure_object(dict)
    soft = bool(told.get("soft-fail")) and error.exit_code in _SOFT
    lines = error_lines(error)
    lines[0] = f"{name}: {lines[0]}"
    kind = "warning" if soft else "error"
    sys.stderr.write(f"cachekit: {kind}: " + "\n".join(lines) + "\n")
    annotate(kind, lines)
    return 0 if soft else error.exit_code
