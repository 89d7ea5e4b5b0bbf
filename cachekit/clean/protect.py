"""What is never cleaned, whatever a plan says. On resolved paths; pure but for looking at what is there.

Two ways to be protected: by a table of places that no plan may name (with the depth to which it reaches), and by what
this run needs: mount points, the workspace, the current directory, the store, the interpreter, what is to be saved.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Protection", "interpreter_places", "literal_prefix", "refuse_pattern"]

#: The place itself and everything below it.
_WHOLE = (
    "/bin /boot /dev /etc /lib /lib32 /lib64 /libx32 /proc /run /sbin /sys "
    "/usr/bin /usr/include /usr/lib /usr/lib32 /usr/lib64 /usr/libexec /usr/libx32 /usr/sbin /usr/src "
    "/usr/local/bin /usr/local/etc /usr/local/lib /usr/local/sbin "
    "/var/lib/apt/extended_states /var/lib/containerd /var/lib/docker /var/lib/dpkg /var/lib/kubelet /var/lib/rpm "
    "/var/lib/systemd /var/spool /var/mail"
).split()
#: The place itself and its direct children: /home/somebody, /var/lib/postgresql, /usr/share is a child of /usr.
_CHILDREN = "/ /home /media /mnt /root /snap /srv /usr /usr/local /var /var/lib".split()
#: The place itself; its children may be named.
_SELF = (
    "/opt /tmp /usr/share /usr/local/share /var/cache /var/crash /var/log /var/tmp /var/lib/apt/lists".split()
)
#: Below a home directory, whole.
_HOME = ".aws .azure .config .docker .gnupg .kube .local/share/keyrings .netrc .ssh".split()
#: What a plan may name although the table says no: large, known, and nothing of the system needs them. One pattern
#: matches one component.
_EXCEPT = (
    "/etc/skel/.ghcup",
    "/usr/lib/google-cloud-sdk",
    "/usr/lib/jvm/temurin-*",
    "/usr/local/.ghcup",
    "/usr/local/aws-cli",
    "/usr/local/aws-sam-cli",
    "/usr/local/julia*",
    "/usr/local/lib/android",
    "/usr/local/lib/heroku",
    "/usr/local/lib/node_modules",
    "/var/lib/docker/containers/*/*-json.log",
    "/var/lib/docker/tmp/GetImageBlob*",
    "/var/lib/docker/tmp/docker-export-*",
    "/var/lib/docker/tmp/docker-import-*",
    "/var/lib/systemd/coredump/*",
)
#: Here a pattern would sweep over what the system is made of.
_SYSTEM = frozenset("/ /root /usr /usr/local /var /var/lib".split())
_SIGN = re.compile(r"[*?\[]")


def _inside(path: bytes, place: bytes) -> bool:
    """Return True if ``path`` is ``place`` or lies below it."""
    return path == place or path.startswith(place.rstrip(b"/") + b"/")


def literal_prefix(pattern: str) -> str:
    """Return the directory above a pattern's first component that has a sign; its parent if it has none."""
    parts = pattern.split("/")
    fixed = next((n for n, part in enumerate(parts) if _SIGN.search(part)), len(parts) - 1)
    return "/".join(parts[:fixed]) or "/"


def _matches(path: str, pattern: str) -> bool:
    mine, theirs = path.split("/"), pattern.split("/")
    return len(mine) == len(theirs) and all(map(fnmatch.fnmatchcase, mine, theirs))


def _excepted(path: str) -> bool:
    """Return True for what is in the list of exceptions, or inside of it."""
    parts = path.split("/")
    return any(_matches("/".join(parts[: pattern.count("/") + 1]), pattern) for pattern in _EXCEPT)


def _by_table(path: str) -> str | None:
    if _excepted(path):
        return None
    for place in _WHOLE:
        if path == place or path.startswith(place + "/"):
            return f"{place} is never cleaned"
    if path in _CHILDREN or path in _SELF:
        return f"{path} itself is never cleaned"
    parent = path.rpartition("/")[0] or "/"
    if parent in _CHILDREN:
        return f"what lies directly in {parent} is never cleaned"
    if ".git" in path.split("/"):
        return "a .git is never cleaned"
    return None


def refuse_pattern(pattern: str) -> str | None:
    """Return why no plan may have ``pattern``, an absolute one without ``$NAME`` or ``~``; None if it may.

    What the pattern may match is seen when it is expanded; here only what stands in it.
    """
    path = "/" + "/".join(part for part in pattern.split("/") if part and part != ".")
    if any(_matches(path, excepted) or _matches(excepted, path) for excepted in _EXCEPT):
        return None
    if _SIGN.search(path) and literal_prefix(path) in _SYSTEM:
        return f"a pattern for what lies in {literal_prefix(path)} would match the system"
    for home in ("/home/*", "/root"):
        for name in _HOME:
            if _matches("/".join(path.split("/")[: (home + "/" + name).count("/") + 1]), f"{home}/{name}"):
                return f"~/{name} is never cleaned"
    # Each sign stands for some name: what it may not be is seen when the pattern is expanded.
    return _by_table("/".join("x" if _SIGN.search(part) else part for part in path.split("/")) or "/")


@dataclass(slots=True)
class Protection:
    """What is protected in this run. All paths absolute with links resolved.

    ``mounts``: where something is mounted. ``homes``: home directories. ``around``: neither these nor what contains
    them (the workspace, the current directory); what lies inside may go. ``whole``: nor anything inside (the store,
    the interpreter, what is to be saved), each with what it is.
    """

    mounts: frozenset[bytes] = frozenset()
    homes: frozenset[bytes] = frozenset()
    around: dict[bytes, str] = field(default_factory=dict)
    whole: dict[bytes, str] = field(default_factory=dict)

    def refuse(self, path: bytes) -> str | None:
        """Return why ``path`` may not be removed, None if it may."""
        if not path.startswith(b"/") or b".." in path.split(b"/") or path != os.path.normpath(path):
            return "it is no absolute, plain path"
        reason = _by_table(os.fsdecode(path))
        if reason:
            return reason
        if path in self.mounts:
            return "it is a mount point"
        for home in self.homes:
            if _inside(home, path):
                return "it is or contains a home directory"
            for name in _HOME:
                if _inside(path, home + b"/" + name.encode()):
                    return f"~/{name} is never cleaned"
        for place, what in self.around.items():
            if _inside(place, path):
                return f"it is or contains {what}"
        return self.needed(path)

    def needed(self, path: bytes) -> str | None:
        """Return why this run needs ``path``: it contains, or belongs to, what is protected whole."""
        for place, what in self.whole.items():
            if _inside(place, path):
                return f"it is or contains {what}"
            if _inside(path, place):
                return f"it belongs to {what}"
        return None

    def add(self, places: Iterable[bytes | str], what: str, *, whole: bool) -> None:
        """Protect places that exist, by the path given and by the one with links resolved; an empty one is none."""
        table = self.whole if whole else self.around
        for place in places:
            raw = os.fsencode(place)
            for path in (os.path.abspath(raw), os.path.realpath(raw)) if raw else ():
                if path != b"/":
                    table.setdefault(path, what)


def interpreter_places() -> list[str]:
    """Return the directories that the running interpreter and cachekit itself need."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return [
        *_roots_of_python(),
        package,
        *(entry for entry in sys.path if os.path.isdir(entry) and _sited(entry)),
    ]


def _roots_of_python() -> list[str]:
    # /usr as prefix protects nothing that the table does not, and would forbid /usr/share/swift.
    prefixes = {
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        os.path.dirname(os.path.realpath(sys.executable)),
    }
    return sorted(
        prefix
        for prefix in prefixes
        if prefix not in {"/usr", "/usr/local", "/", "/usr/bin", "/usr/local/bin"}
    )


def _sited(entry: str) -> bool:
    return os.path.basename(entry.rstrip("/")) in {"site-packages", "dist-packages"}
