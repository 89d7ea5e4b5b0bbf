"""What a path, a pattern or an exclusion in a plan file must look like. Nothing is looked up on the disk."""

from __future__ import annotations

import re

from cachekit.clean.protect import refuse_pattern

__all__ = ["directory_fault", "exclude_fault", "pattern_fault"]

#: Message and hint, None if there is nothing against it.
Fault = tuple[str, str] | None

_SIGNS = re.compile(r"[*?\[]")
_ONLY_SIGNS = re.compile(r"\.?[*?]+")
_VARIABLE = re.compile(r"\$(?:[A-Za-z_][A-Za-z0-9_]*|\{[A-Za-z_][A-Za-z0-9_]*\})")
_HOMES = {"~", "$HOME", "${HOME}"}
_START = "begin it with /, ~/ or $NAME/"
#: Not all that is protected (protect.py), but what needs the plainest words.
_SYSTEM = frozenset(
    "bin boot dev etc home lib lib32 lib64 media mnt opt proc root run sbin snap srv sys tmp usr var".split()
)
_MAX_LENGTH = 1000


def pattern_fault(pattern: str) -> Fault:
    """Return what is wrong with a pattern of ``paths``."""
    fault = directory_fault(pattern, signs=True)
    if fault is not None:
        return fault
    parts = pattern.split("/")
    for part in parts:
        if "**" in part and part != "**":
            return "** stands for whole directories and is a component of its own", "write /**/"
        if "[" in _closed(part):
            return "a [ has no ]", "a [ that means itself is written [[]"
    if len(parts) == 1:
        return "this is the whole directory", f"name what is in it: {pattern}/..."
    if parts[0] in _HOMES:
        if all(_ONLY_SIGNS.fullmatch(part) for part in parts[1:]):
            return "this would be everything in the home directory", "name the directory in it"
        pattern = "/home/anybody/" + "/".join(parts[1:])
    elif parts[0]:
        return None  # what $NAME means is known when it is cleaned, and checked then
    elif _SIGNS.search(parts[1]):
        return (
            "its first directory must not have a sign: it would match the system",
            "write /tmp/..., /opt/...",
        )
    elif len(parts) == 2 and parts[1] in _SYSTEM:
        return f"{pattern} is a directory of the system", "name what is in it"
    elif parts[1] in _SYSTEM - {"tmp"} and all(_ONLY_SIGNS.fullmatch(part) for part in parts[2:]):
        return f"this would be everything in /{parts[1]}", "name the directory in it"
    elif parts[1] == "home" and (len(parts) == 3 or all(_ONLY_SIGNS.fullmatch(part) for part in parts[3:])):
        return "this would be a whole home directory", "name the directory in it"
    reason = refuse_pattern(pattern)
    return (reason, "no plan can clean that") if reason else None


def directory_fault(path: str, *, signs: bool = False) -> Fault:
    """Return what is wrong with an absolute path, one without signs unless ``signs``."""
    if not path.isprintable():
        return "it contains a control character", "write ? for it"
    if len(path) > _MAX_LENGTH:
        return f"it is longer than {_MAX_LENGTH} characters", ""
    parts = path.split("/")
    if parts[0].startswith("$"):
        if not _VARIABLE.fullmatch(parts[0]):
            return "a variable is the whole first component", "write $NAME/..."
    elif parts[0] not in {"", "~"}:
        hint = "~user is not known: write ~/ or /home/user/" if path.startswith("~") else _START
        return "it is not an absolute path", hint
    if parts == ["", ""]:
        return "this is the whole machine", "name a directory"
    if parts[-1] == "":
        return "it ends with a slash", f"write {path.rstrip('/')}"
    if ".." in parts[1:]:
        return "it contains ..", "write the directory that is meant"
    if "." in parts[1:] or "" in parts[1:]:
        return "it contains an empty component or a single dot", "write it without"
    if any("$" in _VARIABLE.sub("", part) for part in parts[1:]):
        return "a $ without a name", "write $NAME or ${NAME}"
    if not signs and _SIGNS.search(path):
        return "a directory has no signs (* ? [])", "write it out"
    return None


def exclude_fault(pattern: str) -> Fault:
    """Return what is wrong with an item of ``exclude``: a name, or a path, both with signs."""
    if "/" in pattern:
        return directory_fault(pattern, signs=True)
    if not pattern.isprintable():
        return "it contains a control character", "write ? for it"
    if "[" in _closed(pattern):
        return "a [ has no ]", "a [ that means itself is written [[]"
    return None


def _closed(part: str) -> str:
    """Return a component without its character classes."""
    return re.sub(r"\[!?\]?[^\]]*\]", "", part)
