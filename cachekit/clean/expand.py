"""From patterns to the paths that they mean, each checked against what is protected. Changes nothing."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
import stat
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cachekit.clean.model import Paths
from cachekit.clean.protect import Protection, literal_prefix, refuse_pattern
from cachekit.model import STAGING_PREFIX
from cachekit.system.files import open_to_look

__all__ = ["Expansion", "NotSet", "expand", "substitute"]

#: As many as the kernel follows in one path.
_MAX_LINKS = 40
_NAME = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class NotSet(Exception):
    """A pattern uses a variable that has no value here: the rule does not apply."""


@dataclass(slots=True)
class Expansion:
    """What patterns came to. ``refused``: paths (or patterns) that may not be cleaned, with the reason."""

    paths: list[bytes] = field(default_factory=list)
    refused: list[tuple[bytes, str]] = field(default_factory=list)
    #: Directories in which a pattern looked: there a killed run's trash may lie.
    parents: list[bytes] = field(default_factory=list)


def substitute(pattern: str, variables: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the pattern with ``~`` and ``$NAME`` replaced; several if a name has several values.

    A sign in a value means itself. Raises NotSet, and ValueError (saying why) for a value that is empty or relative:
    ``$CACHE/*`` must not become ``/*``.
    """
    if pattern == "~" or pattern.startswith("~/"):
        pattern = "$HOME" + pattern[1:]
    names = list(dict.fromkeys(match[1] or match[2] for match in _NAME.finditer(pattern)))
    choices = []
    for name in names:
        values = variables.get(name)
        if not values:
            raise NotSet("there is no checkout here" if name == "WORKSPACE" else f"${name} is not set")
        for value in values:
            if not value.strip("/") or (
                pattern.startswith("$") and name == names[0] and not value.startswith("/")
            ):
                raise ValueError(f"${name} is {value!r}, which is no directory to clean in")
        choices.append(values)
    results = []
    for combination in itertools.product(*choices):
        chosen = dict(zip(names, combination, strict=True))
        results.append(_filled(pattern, chosen))
    return results


def _filled(pattern: str, values: Mapping[str, str]) -> str:
    return _NAME.sub(lambda match: glob.escape(values[match[1] or match[2]]), pattern)


def expand(target: Paths, variables: Mapping[str, tuple[str, ...]], protection: Protection) -> Expansion:
    """Return every existing path that the target means, links in its parents resolved, each once, none in another.

    Raises NotSet if no pattern applies here.
    """
    result = Expansion()
    seen: dict[bytes, None] = {}
    unset: NotSet | None = None
    applies = False
    for pattern in target.patterns:
        try:
            plain = substitute(pattern, variables)
            applies = True
            within = [
                os.path.realpath(root) for text in target.within for root in _unescaped(text, variables)
            ]
        except NotSet as error:
            unset = error
            continue
        except ValueError as error:
            applies = True
            result.refused.append((pattern.encode("utf-8", "surrogateescape"), str(error)))
            continue
        for text in plain:
            reason = refuse_pattern(_unescape(text))
            if reason is not None:
                result.refused.append((os.fsencode(_unescape(text)), reason))
                continue
            for path in _matches(text, within, target, protection, result):
                seen.setdefault(path)
    if not applies and unset is not None:
        raise unset
    result.paths = list(_outermost(sorted(seen)))
    return result


def _unescape(text: str) -> str:
    """Undo glob.escape: what people and checks see."""
    return re.sub(r"\[([*?\[])\]", r"\1", text)


def _unescaped(text: str, variables: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [_unescape(item) for item in substitute(text, variables)]


def _prefix(pattern: str) -> str:
    """Return the directory above the first sign; escaped signs are part of names."""
    marked = re.sub(r"\[([*?\[])\]", lambda match: f"\x00{ord(match[1]):02x}", pattern)
    fixed = literal_prefix(marked)
    return re.sub("\x00(..)", lambda match: chr(int(match[1], 16)), fixed)


def _matches(
    pattern: str, within: list[str], target: Paths, protection: Protection, result: Expansion
) -> Iterator[bytes]:
    prefix, problem = _resolve(_prefix(pattern))
    if problem is not None:
        result.refused.append((os.fsencode(_prefix(pattern)), problem))
        return
    roots = [os.fsencode(root) for root in (within or [prefix])]
    parents: dict[str, tuple[str, str | None]] = {}
    for match in _glob(pattern):
        place = match.rstrip("/")
        parent, name = os.path.split(place)
        if not name or name in {".", ".."}:
            continue
        real = parents.get(parent)
        if real is None:
            real = parents[parent] = _resolve(parent)
        path = os.fsencode(os.path.join(real[0], name))
        if os.path.basename(path).startswith(STAGING_PREFIX) or _excluded(place, name, target.exclude):
            continue
        reason = real[1]
        if reason is None and not any(path.startswith(root.rstrip(b"/") + b"/") for root in roots):
            reason = "it lies outside of " + ", ".join(os.fsdecode(root) for root in roots)
        reason = reason or protection.refuse(path)
        if reason is not None:
            result.refused.append((path, reason))
            continue
        yield path
    result.parents += [os.fsencode(real) for real, _ in parents.values()] or [os.fsencode(prefix)]


def _resolve(path: str) -> tuple[str, str | None]:
    """Return an absolute path with its links resolved, and why it is not to be cleaned; None if nothing is against it.

    A link of somebody who is neither root nor this user may lead only to what is theirs: else whoever may write into
    ``~/.cache`` chooses what root removes. What does not exist is taken as it stands.
    """
    here, links = "/", 0
    parts = deque(path.split("/"))
    #: Of each such link: how many parts are left when it has been followed, and who made it.
    watched: list[tuple[int, int]] = []
    while parts or watched:
        while watched and len(parts) <= watched[-1][0]:
            _, uid = watched.pop()
            try:
                if os.lstat(here).st_uid != uid:
                    return here, "a link of another user leads there"
            except OSError:
                return here, "a link leads there that cannot be followed"
        if not parts:
            break
        name = parts.popleft()
        if name == "..":
            here = os.path.dirname(here)
        if name in {"", ".", ".."}:
            continue
        place = os.path.join(here, name)
        try:
            info = os.lstat(place)
            target = os.readlink(place) if stat.S_ISLNK(info.st_mode) else None
        except OSError:
            info, target = None, None
        if info is None or target is None:
            here = place
            continue
        links += 1
        if links > _MAX_LINKS:
            return place, "a chain of links without an end"
        if info.st_uid not in {0, os.geteuid()}:
            watched.append((len(parts), info.st_uid))
        if target.startswith("/"):
            here = "/"
        parts.extendleft(reversed(target.split("/")))
    return here, None


def _glob(pattern: str) -> Iterator[str]:
    """Yield what matches an absolute pattern, hidden names too.

    Not glob.glob: that changes access times of the directories it lists, and a dry run is to change nothing.
    """
    places = ["/"]
    parts = [part for part in pattern.split("/") if part]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        places = list(_step(places, part, last=last))
    yield from places


def _step(places: list[str], part: str, *, last: bool) -> Iterator[str]:
    if part == "**":
        for place in places:
            yield from _below(place, directories=not last)
        return
    if not glob.has_magic(part):
        for place in places:
            path = os.path.join(place, part)
            if os.path.lexists(path):
                yield path
        return
    matches = re.compile(fnmatch.translate(part)).match
    for place in places:
        yield from (os.path.join(place, name) for name, _ in _names(place) if matches(name))


def _below(place: str, *, directories: bool) -> Iterator[str]:
    """Yield ``place`` and the directories below it, links not followed; files too unless ``directories``."""
    yield place
    pending = [place]
    while pending:
        here = pending.pop()
        for name, is_directory in _names(here):
            path = os.path.join(here, name)
            if is_directory:
                pending.append(path)
            if is_directory or not directories:
                yield path


def _names(place: str) -> list[tuple[str, bool]]:
    """Return the names in a directory, sorted, and whether each is a directory; none if it cannot be listed."""
    try:
        fd = open_to_look(os.fsencode(os.path.realpath(place)))
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        return []
    finally:
        os.close(fd)


def _excluded(path: str, name: str, patterns: tuple[str, ...]) -> bool:
    return any(
        fnmatch.fnmatchcase(path, os.path.expanduser(pattern))
        if "/" in pattern
        else fnmatch.fnmatchcase(name, pattern)
        for pattern in patterns
    )


def _outermost(paths: list[bytes]) -> Iterator[bytes]:
    """Yield those of the sorted paths that lie in no other one."""
    # Sorted by components, so that what lies in a directory comes right after it ("a-b" sorts between "a" and "a/b").
    last: bytes | None = None
    for path in sorted(paths, key=lambda item: item.split(b"/")):
        if last is None or not path.startswith(last + b"/"):
            last = path
            yield path
