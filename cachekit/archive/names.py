"""Which trees the user means: roots, targets and exclude patterns. Pure but for globbing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cachekit.errors import InvalidRequest, NothingMatched
from cachekit.model import ROOT_PREFIX, RootName, Target

__all__ = ["Roots", "compile_patterns", "drop_nested", "find_roots", "match_targets", "targets_of"]


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
    base = os.path.abspath(root or os.getcwd())
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
        raise InvalidRequest("a path is empty or has a NUL byte", found=ascii(path))
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


def targets_of(paths: Iterable[str], roots: Roots) -> list[Target]:
    """Return the targets that existing path arguments and globs match, sorted, none inside another.

    A path that exists is taken literally, whatever characters it has. Raises NothingMatched when one matches nothing.
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
                f"nothing is there to save at {path!r}", path=path, found=os.fsdecode(roots.path_of(literal))
            )
        found.extend(to_target(match, roots) for match in matches)
    return drop_nested(found)


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


def _translate(pattern: bytes) -> bytes:
    """Return a regular expression for a glob: ``*`` and ``?`` stay within a component, ``**`` does not."""
    out = b""
    position = 0
    while position < len(pattern):
        rest = pattern[position:]
        if rest.startswith(b"**/"):
            out += rb"(?:[^/]+/)*"
            position += 3
        elif rest.startswith(b"**"):
            out += rb".*"
            position += 2
        elif rest[:1] == b"*":
            out += rb"[^/]*"
            position += 1
        elif rest[:1] == b"?":
            out += rb"[^/]"
            position += 1
        elif rest[:1] == b"[" and (end := pattern.find(b"]", position + 2)) > 0:
            inner = pattern[position + 1 : end].replace(b"\\", b"\\\\")
            out += b"[" + (b"^" + inner[1:] if inner[:1] in {b"!", b"^"} else inner) + b"]"
            position = end + 1
        else:
            out += re.escape(rest[:1])
            position += 1
    return out


def compile_patterns(patterns: Iterable[str], *, anywhere: bool = True) -> Callable[[bytes], bool]:
    """Return a predicate on paths relative to a root.

    A pattern without a slash matches a name at any depth (``*.log``), one with a slash the whole relative path
    (``node_modules/*/test``); a trailing slash is ignored. With ``anywhere=False`` always the whole path.
    """
    expressions = []
    for pattern in patterns:
        raw = os.fsencode(pattern).rstrip(b"/")
        body = _translate(raw.removeprefix(b"./").lstrip(b"/"))
        expressions.append(body if b"/" in raw or not anywhere else rb"(?:.*/)?" + body)
    if not expressions:
        return lambda _path: False
    try:
        compiled = re.compile(b"|".join(b"(?:" + e + b")" for e in expressions), re.DOTALL)
    except re.error as error:
        raise InvalidRequest(f"a pattern cannot be used: {error}", found=list(patterns)) from None
    return lambda path: compiled.fullmatch(path) is not None
