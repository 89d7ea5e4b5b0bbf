"""A clean that goes on beside the job: started by ``clean --background``, joined by ``clean --wait``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Any

import click

from cachekit.clean.decide import Part
from cachekit.clean.report import CleanReport, Consumer, FilesystemReport, RuleReport
from cachekit.cli.outputs import warn
from cachekit.cli.render import plain
from cachekit.errors import InvalidRequest, LockTimeout
from cachekit.system import process
from cachekit.system.files import replace_file
from cachekit.system.keyring import without_keys
from cachekit.system.state import make_as_owner, state_directory

__all__ = ["begin", "finish", "go_on", "part", "wait_for"]

_NAME = "clean-background.json"
#: Set for the process in the background, so that it knows what it is.
_VARIABLE = "CACHEKIT_CLEAN_BACKGROUND"
_OF_THE_STEP = frozenset({"GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"})


def part(*, background: bool) -> Part:
    """Return which rules this process carries out."""
    if os.environ.get(_VARIABLE):
        return "background"
    return "foreground" if background else "all"


def go_on(report: CleanReport) -> bool:
    """Start the rest of a clean in the background; return False if no rule is left to it."""
    left = [rule.id for rule in report.rules if rule.reason == "left to the background"]
    if not left:
        return False
    arguments = click.get_current_context().find_root().ensure_object(dict).get("arguments", [])
    again = [argument for argument in arguments if argument not in {"--background", "--json"}]
    _write({"state": "started"})
    # The step whose files these are has ended by then; --wait writes to its own step's.
    environ = {name: value for name, value in without_keys().items() if name not in _OF_THE_STEP}
    environ[_VARIABLE] = "1"
    child = subprocess.Popen(
        [sys.executable, "-m", "cachekit", *again],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environ,
        start_new_session=True,
    )
    child.returncode = 0  # it outlives us: no warning that nobody waited for it
    click.echo(
        f"going on in the background with {', '.join(left)}; cachekit clean --wait waits for it", err=True
    )
    return True


def finish(report: CleanReport) -> None:
    """Keep the report of a clean in the background for whoever waits; nothing in any other process."""
    if os.environ.get(_VARIABLE):
        _write({"state": "ended", "report": plain(report)})


def begin() -> None:
    """Say that the clean in the background runs, and who it is; nothing in any other process."""
    if os.environ.get(_VARIABLE):
        _write({"state": "running", "process": str(process.current())})


def _write(data: dict[str, Any]) -> None:
    directory = state_directory()
    try:
        make_as_owner(directory)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            replace_file(_NAME, json.dumps(data).encode(), fd)
        finally:
            os.close(fd)
    except OSError as error:
        # Cleaning matters more than telling of it, on a full disk above all.
        warn(f"cachekit clean --wait will not know of this clean: {directory}: {error.strerror}")


def _read() -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError), open(os.path.join(state_directory(), _NAME), "rb") as file:
        data = json.load(file)
        return data if isinstance(data, dict) else None
    return None


def wait_for(timeout: float) -> CleanReport:
    """Wait for the clean in the background and return its report, once.

    Raises InvalidRequest if none was started, or if it ended without a report; LockTimeout after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    grace = time.monotonic() + 10
    while True:
        data = _read()
        if data is None:
            raise InvalidRequest(
                "no clean was started in the background", hint="cachekit clean --background starts one"
            )
        if data.get("state") == "ended":
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(state_directory(), _NAME))
            return _report(data["report"])
        who = process.parse(str(data.get("process", "")))
        if (who is not None and who.proven_dead()) or (who is None and time.monotonic() > grace):
            raise InvalidRequest(
                "the clean in the background ended without a report",
                hint="it was killed; run cachekit clean again",
            )
        if time.monotonic() > deadline:
            raise LockTimeout(
                f"the clean in the background is still running; waited {timeout:.0f} s",
                hint="raise --lock-timeout",
            )
        time.sleep(0.1)


def _report(data: dict[str, Any]) -> CleanReport:
    report: CleanReport = _made(CleanReport, data)
    report.rules = [_made(RuleReport, row) for row in data["rules"]]
    report.filesystems = [_made(FilesystemReport, row) for row in data["filesystems"]]
    report.consumers = [_made(Consumer, row) for row in data["consumers"]]
    return report


def _made(kind: Any, data: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in data.items() if name in names})
