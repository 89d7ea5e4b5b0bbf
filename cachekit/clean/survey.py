"""What a rule with paths would remove right now, and what of it stays and why. Changes nothing."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from cachekit.clean.expand import NotSet, expand
from cachekit.clean.look import look
from cachekit.clean.model import Conditions, Found, Paths, Rule, Unit
from cachekit.clean.protect import Protection
from cachekit.system.files import open_to_look
from cachekit.system.holders import Holders
from cachekit.system.keyring import without_keys
from cachekit.system.process import running_programs
from cachekit.system.space import pool_of

__all__ = ["Surroundings", "busy_runner", "on_any", "survey_paths"]

#: Why a unit stays that the rule does not mean.
_NEW, _SMALL = "too new", "too small"

#: From so many units on it pays to know which are small: then those of up to so many names are looked into.
_MANY, _SMALL_NAMES = 8, 500


@dataclass(slots=True)
class Surroundings:
    """What a survey is told. ``devices``: filesystems that are short of space; None for any.

    ``holders``: gives a fresh enough look at who uses what. ``measure``: sizes are wanted even where nothing depends on
    them. ``patience``: how many seconds to wait for a package manager's cache that is in use.
    """

    variables: Mapping[str, tuple[str, ...]]
    protection: Protection
    now_ns: int
    workspace: bytes
    holders: Callable[[], Holders]
    runner_roots: tuple[bytes, ...] = ()
    devices: frozenset[int] | None = None
    measure: Callable[[bytes], int] | None = None
    patience: float = 0.0
    #: Directories in which patterns looked: a killed run's trash may lie there.
    visited: set[bytes] = field(default_factory=set)


def survey_paths(rule: Rule, around: Surroundings) -> Found:
    """Look at the rule's paths; units come oldest first where their age is known."""
    target = rule.target
    assert isinstance(target, Paths)
    try:
        expansion = expand(target, around.variables, around.protection)
    except NotSet as error:
        return Found("not-applicable", str(error))
    around.visited.update(expansion.parents)
    found = Found("ready", left=list(expansion.refused))
    new = small = 0
    for path in expansion.paths:
        verdict: Unit | str | None = _unfit(path, rule.when, around)
        if verdict is None:
            verdict = _look_at(path, rule.when, around, many=len(expansion.paths) > _MANY)
        if isinstance(verdict, Unit):
            found.units.append(verdict)
        elif verdict == _NEW:
            new += 1
        elif verdict == _SMALL:
            small += 1
        elif verdict:
            found.left.append((path, verdict))
    if rule.when.git_ignored and found.units:
        _keep_tracked(found, around.workspace)
    found.units.sort(key=lambda unit: (unit.newest_ns or 0, unit.name))
    # Those that are too new for the rule are newer than all others, so they are the first of those to be kept.
    kept = min(len(found.units), max(0, (rule.when.keep or 0) - new))
    found.units = found.units[: len(found.units) - kept]
    found.paths = [unit.name for unit in found.units]
    if not found.units:
        _say_why_nothing(found, {_NEW: new, _SMALL: small, "to be kept": kept})
    return found


def _say_why_nothing(found: Found, staying: Mapping[str, int]) -> None:
    if found.left:
        path, reason = found.left[0]
        more = f" (and {len(found.left) - 1} more)" if len(found.left) > 1 else ""
        found.state, found.reason = "blocked", f"{os.fsdecode(path)}: {reason}{more}"
    elif any(staying.values()):
        said = ", ".join(f"{number} {why}" for why, number in staying.items() if number)
        found.state, found.reason = "skipped", said
    else:
        found.state, found.reason = "stale", "nothing there"


def _unfit(path: bytes, when: Conditions, around: Surroundings) -> str | None:
    """Return why a unit stays, judged without looking into it; an empty text if it is gone."""
    try:
        info = os.lstat(path)
    except OSError as error:
        return "" if isinstance(error, FileNotFoundError) else f"cannot be looked at: {error.strerror}"
    if os.path.basename(path) == b"lost+found":
        return "lost+found is never cleaned"
    if stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode):
        return "it is a device node"
    if not on_any(path, info, around.devices):
        return "it lies on a filesystem that has enough free"
    if when.unlinked and _linked(path):
        return "a symlink beside it points to it, so it is the version in use"
    if when.idle_runner:
        busy = busy_runner(path, around.runner_roots)
        if busy:
            return busy
    holder = around.holders().of(path)
    return f"in use: {holder}" if holder is not None else None


def on_any(path: bytes, info: os.stat_result, devices: Collection[int] | None) -> bool:
    """Return True if what lies at ``path`` is on one of these filesystems (None: any), as a subvolume of it too."""
    if devices is None or info.st_dev in devices:
        return True
    try:
        return pool_of(os.path.dirname(path)) in devices
    except OSError:
        return False


def _look_at(path: bytes, when: Conditions, around: Surroundings, *, many: bool) -> Unit | str:
    """Return the unit if age and size allow it; else why it stays; an empty text if it is gone."""
    if when.older is None and when.larger is None and when.keep is None:
        # Looking into it costs as much as removing it: the filesystem will tell what it was.
        if around.measure is not None:
            return Unit(path, around.measure(path))
        return Unit(path, _size_of_small(path) if many else None)
    limit = None if when.older is None else around.now_ns - int(when.older * 1e9)
    try:
        seen = look(path, not_after_ns=limit)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    if seen.problem:
        return seen.problem
    if limit is not None and seen.newest_ns > limit:
        return _NEW
    if when.larger is not None and seen.size < when.larger:
        return _SMALL
    return Unit(path, seen.size, seen.newest_ns)


def _size_of_small(path: bytes) -> int | None:
    """Return the size of what is looked through in no time, None for the rest: small units are removed in lots."""
    try:
        seen = look(path, most=_SMALL_NAMES)
    except OSError:
        return None
    return seen.size if seen.complete and not seen.problem else None


def _linked(path: bytes) -> bool:
    """Return True if a symlink in the same directory leads to ``path``."""
    parent = os.path.dirname(path)
    try:
        fd = open_to_look(parent)
        try:
            with os.scandir(fd) as entries:
                links = [os.fsencode(entry.name) for entry in entries if entry.is_symlink()]
        finally:
            os.close(fd)
    except OSError:
        return True  # unknown: better kept
    return any(os.path.realpath(os.path.join(parent, name)) == path for name in links)


def busy_runner(path: bytes, roots: Collection[bytes]) -> str | None:
    """Return why the runner that ``path`` belongs to is not idle: a job's Runner.Worker runs from its directory."""
    root = next((root for root in roots if path.startswith(root + b"/")), None)
    if root is None:
        return "it belongs to no runner that was found"
    for pid, executable in running_programs():
        if os.path.basename(executable) == b"Runner.Worker" and executable.startswith(root + b"/"):
            return f"a job is running on this runner (pid {pid})"
    return None


def _keep_tracked(found: Found, workspace: bytes) -> None:
    """Leave out units that git does not ignore, or in which something is tracked."""
    names = [unit.name for unit in found.units]
    ignored = _git(workspace, [b"check-ignore", b"-z", b"--stdin"], b"\0".join(names) + b"\0", {0, 1})
    tracked = _git(workspace, [b"--literal-pathspecs", b"ls-files", b"-z", b"--", *names], b"", {0})
    if ignored is None or tracked is None:
        found.left += [(name, "git cannot say whether it is ignored") for name in names]
        found.units = []
        return
    top = os.path.realpath(workspace)
    kept = {os.path.join(top, path) for path in tracked}
    fine = set(ignored)
    units, found.units = found.units, []
    for unit in units:
        if unit.name not in fine:
            found.left.append((unit.name, "git does not ignore it"))
        elif any(path == unit.name or path.startswith(unit.name + b"/") for path in kept):
            found.left.append((unit.name, "git tracks something in it"))
        else:
            found.units.append(unit)


def _git(workspace: bytes, arguments: list[bytes], stdin: bytes, fine: set[int]) -> list[bytes] | None:
    """Return the NUL-separated output, None if git is missing or refuses (another user's repository, for one)."""
    # fsmonitor would run a program that the repository names.
    command = [b"git", b"-C", workspace, b"-c", b"core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, timeout=30, check=False, env=without_keys()
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return [name for name in done.stdout.split(b"\0") if name] if done.returncode in fine else None
