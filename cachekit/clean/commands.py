"""Rules that let a program clean up after itself: a package manager knows best what of its cache may go."""

from __future__ import annotations

import os
import shutil
import time

from cachekit.clean.expand import NotSet, substitute
from cachekit.clean.model import Command, Done, Found, Rule, Unit
from cachekit.clean.survey import Surroundings, on_any
from cachekit.system.holders import Holder
from cachekit.system.keyring import without_keys
from cachekit.system.process import run_limited

__all__ = ["run_command", "survey_command"]

#: What a build may be using: emptying Go's cache under a running build breaks it (golang/go#31948).
_CACHES = frozenset({"package-cache", "build-cache"})

_PAUSE = 0.25

#: No questions, no colours, no pager: nobody is there.
_QUIET = {
    "DEBIAN_FRONTEND": "noninteractive",
    "NO_COLOR": "1",
    "PAGER": "cat",
    "PIP_NO_INPUT": "1",
    "GIT_TERMINAL_PROMPT": "0",
}


def survey_command(rule: Rule, around: Surroundings) -> Found:
    """Say whether the program is there, and whether what it empties is neither protected nor in use."""
    target = rule.target
    assert isinstance(target, Command)
    program = target.arguments[0]
    if shutil.which(program) is None:
        return Found("not-applicable", f"{program} is not installed")
    found = Found("ready")
    existing = []
    for pattern in target.frees:
        try:
            places = substitute(pattern, around.variables)
        except (NotSet, ValueError) as error:
            found.left.append((os.fsencode(pattern), str(error)))
            continue
        existing += [os.fsencode(os.path.realpath(place)) for place in places if os.path.lexists(place)]
    if target.frees and not existing:
        return Found("stale", "nothing there", left=found.left)
    found.paths = existing
    for place in existing:
        reason = around.protection.needed(place)
        if reason:
            return Found("skipped", f"{os.fsdecode(place)}: {reason}")
        # Not for logs: their writer always has them open, and journalctl knows what it may take away.
        holder = _user_of(place, around) if rule.category in _CACHES else None
        if holder is not None:
            return Found("blocked", f"{os.fsdecode(place)} is in use: {holder}")
    if around.devices is not None and existing and not _any_on(existing, around.devices):
        return Found("skipped", "what it frees lies on a filesystem that has enough free")
    size = sum(map(around.measure, existing)) if around.measure is not None and existing else None
    found.units = [Unit(" ".join(target.arguments).encode("utf-8", "surrogateescape"), size)]
    return found


def _user_of(place: bytes, around: Surroundings) -> Holder | None:
    """Return who uses a cache, after waiting a while for its lock and files to be let go (apt-get waits for no one)."""
    deadline = time.monotonic() + around.patience
    while True:
        holder = around.holders().of(place)
        if holder is None or time.monotonic() >= deadline:
            return holder
        time.sleep(_PAUSE)


def _any_on(places: list[bytes], devices: frozenset[int]) -> bool:
    for place in places:
        try:
            if on_any(place, os.lstat(place), devices):
                return True
        except OSError:
            continue
    return False


def run_command(rule: Rule) -> Done:
    """Run the program to its end or its timeout. Never raises for what the program does."""
    target = rule.target
    assert isinstance(target, Command)
    try:
        ended = run_limited(target.arguments, timeout=target.timeout, environ={**without_keys(), **_QUIET})
    except OSError as error:
        return Done(problem=f"{target.arguments[0]} cannot be started: {error.strerror}")
    if ended.code is None:
        return Done(problem=f"stopped after {target.timeout:g} s{_last_line(ended.tail)}")
    if ended.code != 0:
        return Done(problem=f"exit code {ended.code}{_last_line(ended.tail)}")
    return Done(items=1)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return f": {lines[-1].strip()[:200]}" if lines else ""
