"""Which trees the user means: roots, targets and exclude patterns. Pure but for globbing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cachekit.errors import InvalidRequest, NothingMatched
from cachekit.model import ROOT_PREFIX, RootName, Target

__all__ = [
    "Roots",
    "anchored",
    "compile_patterns",
    "drop_nested",
    "find_roots",
    "match_targets",
    "targets_of",
]


@dataclass(frozen=True, slots=True)
class Roots:
    """The absolute directories that the three roots stand for, as bytes without a trailing slash (but ``/``)."""

    root: bytes
    home: bytes

    def directory(self, name: RootName) -> bytes:
        return {"root": self.root, "home": self.home, "abs": b"/"}[name]

    def path_of(self, target: Target) -> bytes:
        """Return the absolute path of a target on this machine."""
        base = self.directory(target.root)
        return base if target.path == b"." else os.path.join(base, target.path)


def find_roots(root: str | None) -> Roots:
    """Return the roots: ``root`` (default the current directory) with links resolved, and the user's home."""
    try:
        base = os.path.abspath(root or os.getcwd())
    except FileNotFoundError:
        raise InvalidRequest(
            "the current directory does not exist any more", hint="change to another one, or pass --root"
        ) from None
    home = os.path.expanduser("~")
    return Roots(
        os.fsencode(os.path.realpath(base)), os.fsencode(home if os.path.isabs(home) else "/nonexistent")
    )


_MAGIC = re.compile(r"[*?\[]")


def _inside(path: bytes, directory: bytes) -> bytes | None:
    """Return ``path`` relative to ``directory``, ``b"."`` for itself, None if it is elsewhere."""
    if path == directory:
        return b"."
    prefix = directory if directory.endswith(b"/") else directory + b"/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def to_target(path: str, roots: Roots) -> Target:
    """Return the target that a path argument means: under ``root`` if it lies there, else ``home``, else ``abs``.

    ``~`` is the home directory; a relative path is relative to ``root``. Nothing needs to exist.
    """
    if not path or "\0" in path:
        raise InvalidRequest(
            "a path is empty or has a NUL byte", found=ascii(path), hint="is a variable in it not set?"
        )
    absolute = os.path.normpath(os.path.join(os.fsdecode(roots.root), os.path.expanduser(path)))
    # POSIX leaves exactly two leading slashes alone; here they mean the same as one.
    raw = os.fsencode("/" + absolute.lstrip("/"))
    places: tuple[tuple[RootName, bytes], ...] = (("root", roots.root), ("home", roots.home), ("abs", b"/"))
    for name, directory in places:
        inside = _inside(raw, directory)
        if inside is None and name == "root":
            # The user may have written the root through a symlink, as $PWD often is.
            inside = _inside(
                os.path.join(os.path.realpath(os.path.dirname(raw)), os.path.basename(raw)), directory
            )
        if inside is not None:
            return Target(name, inside)
    raise AssertionError("every absolute path is below /")


def targets_of(
    paths: Iterable[str], roots: Roots, excluded: Callable[[bytes], bool] | None = None
) -> list[Target]:
    """Return the targets that existing path arguments and globs match, sorted, none inside another.

    A path that exists is taken literally, whatever characters it has. What a glob matches is left out if ``excluded``
    says so of it or of a directory above it, relative to its root. Raises NothingMatched when one matches nothing.
    """
    found: list[Target] = []
    for path in paths:
        literal = to_target(path, roots)
        if os.path.lexists(roots.path_of(literal)):
            found.append(literal)
            continue
        matches: list[str] = []
        if _MAGIC.search(path):
            import glob

            matches = glob.glob(
                os.path.expanduser(path),
                root_dir=os.fsdecode(roots.root),
                recursive=True,
                include_hidden=True,
            )
        if not matches:
            raise NothingMatched(
                f"the pattern {path!r} matches nothing"
                if _MAGIC.search(path)
                else f"there is no {path!r} to save",
                path=os.fsdecode(roots.path_of(literal)),
                hint="did the step that makes it run before this one? Relative paths begin at --root (default: the "
                "current directory)",
            )
        kept = [to_target(match, roots) for match in matches]
        if excluded is not None:
            kept = [target for target in kept if not _left_out(target.path, excluded)]
        if not kept:
            raise NothingMatched(
                f"all that the pattern {path!r} matches is excluded",
                path=os.fsdecode(roots.path_of(literal)),
                hint="look at --exclude, or at excludes in the configuration",
            )
        found.extend(kept)
    return drop_nested(found)


def _left_out(path: bytes, excluded: Callable[[bytes], bool]) -> bool:
    parts = path.split(b"/")
    return any(excluded(b"/".join(parts[: end + 1])) for end in range(len(parts)))


def anchored(patterns: Iterable[str], roots: Roots) -> list[str]:
    """Return exclude patterns with those that begin with ``~/`` or ``/`` relative to the root that they lie below.

    As path arguments are. One that lies below neither the root nor the home directory stays as it is.
    """
    return [_anchored(pattern, roots) for pattern in patterns]


def _anchored(pattern: str, roots: Roots) -> str:
    if not pattern.startswith(("~/", "/")):
        return pattern
    place = os.path.expanduser(pattern) if pattern.startswith("~/") else pattern
    magic = _MAGIC.search(place)
    directory, _, rest = place[: magic.start() if magic else len(place)].rpartition("/")
    rest += place[magic.start() :] if magic else ""
    for root in (roots.root, roots.home):
        # The root may have been written through a link, as $PWD often is.
        for above in (os.path.normpath(directory or "/"), os.path.realpath(directory or "/")):
            inside = _inside(os.fsencode(os.path.join(above, rest)), root)
            if inside is not None:
                return "./" + os.fsdecode(
                    inside
                )  # with a slash, so that it is this place and not a name anywhere
    return pattern


def drop_nested(targets: Iterable[Target]) -> list[Target]:
    """Return the targets in canonical order without those that lie inside another one."""
    kept: list[Target] = []
    order = list(ROOT_PREFIX)
    for target in sorted(set(targets), key=lambda t: (order.index(t.root), t.path.split(b"/"))):
        if not any(
            target.root == other.root and (other.path == b"." or _inside(target.path, other.path))
            for other in kept
        ):
            kept.append(target)
    return kept


def match_targets(
    paths: Iterable[str], roots: Roots, available: Iterable[Target]
) -> tuple[set[Target], list[str]]:
    """Return which of an entry's targets the path arguments name, and the arguments that name none.

    Patterns are matched against the names in the entry, for on a fresh checkout there is nothing on disk to match.
    """
    available = list(available)
    named: set[Target] = set()
    unknown: list[str] = []
    for path in paths:
        wanted = to_target(path, roots)
        hits = {target for target in available if target == wanted}
        if not hits and _MAGIC.search(path):
            matches = compile_patterns([os.fsdecode(wanted.path)], anywhere=False)
            hits = {t for t in available if t.root == wanted.root and matches(t.path)}
        if hits:
            named |= hits
        else:
            unknown.append(path)
    return named, unknown


#: ``[abc]``, ``[a-z]``, ``[!abc]``; a ``]`` that comes first is a character like others.
_CLASS = re.compile(r"\[([!^]?)(\][^\]]*|[^\]]+)\]")


def _one_of(inner: str, *, negated: bool) -> str:
    """Return a regular expression for a character class; never a slash, and an empty range matches nothing."""
    ranges = []
    position = 0
    while position < len(inner):
        first = last = ord(inner[position])
        if inner[position + 1 : position + 2] == "-" and position + 2 < len(inner):
            last = ord(inner[position + 2])
            position += 2
        position += 1
        if first <= last:
            ranges.append(rf"\U{first:08x}-\U{last:08x}")
    if negated:
        return "[^/" + "".join(ranges) + "]"
    return "(?!/)[" + "".join(ranges) + "]" if ranges else "(?!)"


def _translate(pattern: str) -> str:
    """Return a regular expression for a glob: ``*`` and ``?`` stay within a component, ``**`` does not."""
    out = ""
    position = 0
    while position < len(pattern):
        if pattern.startswith("**/", position):
            out += "(?:[^/]+/)*"
            position += 3
        elif pattern.startswith("**", position):
            out += ".*"
            position += 2
        elif pattern[position] == "*":
            out += "[^/]*"
            position += 1
        elif pattern[position] == "?":
            out += "[^/]"
            position += 1
        elif match := _CLASS.match(pattern, position):
            out += _one_of(match[2], negated=bool(match[1]))
            position = match.end()
        else:
            out += re.escape(pattern[position])
            position += 1
    return out


def compile_patterns(patterns: Iterable[str], *, anywhere: bool = True) -> Callable[[bytes], bool]:
    """Return a predicate on paths relative to a root.

    A pattern without a slash matches a name at any depth (``*.log``), one with a slash the whole relative path
    (``node_modules/*/test``); a trailing slash is ignored. With ``anywhere=False`` always the whole path.
    """
    expressions = []
    for pattern in patterns:
        name = pattern.rstrip("/")
        body = _translate(name.removeprefix("./").lstrip("/"))
        expressions.append(body if "/" in name or not anywhere else "(?:.*/)?" + body)
    if not expressions:
        return lambda _path: False
    # Characters, not bytes, as in the shell and in glob: one "?" stands for one "\u00e9".
    compiled = re.compile("|".join(f"(?:{expression})" for expression in expressions), re.DOTALL)
    decode = os.fsdecode
    return lambda path: compiled.fullmatch(decode(path)) is not None
