"""Looking at a repository: which files are there, and what the few hold that tell more than their names."""

from __future__ import annotations

import os
import stat

from cachekit.init.model import Listing

__all__ = ["MAX_DEPTH", "look"]

#: Directories below the root that are looked into; lock files of a monorepo are rarely deeper.
MAX_DEPTH = 4
_MAX_FILES = 200_000
_MAX_TEXT = 1 << 20
#: Directories that hold what somebody else wrote, or what a build made.
_NOT_OURS = frozenset(
    ".git .hg .svn node_modules bower_components vendor third_party target build dist out .venv venv .tox .nox "
    "__pycache__ .gradle .terraform .cache site-packages".split()
)
#: Files that are read, by name; and CI files by directory.
_READ = frozenset(
    "yarn.lock Cargo.lock package.json pyproject.toml CMakeLists.txt CMakePresets.json Makefile Dockerfile meson.build "
    "Justfile justfile Taskfile.yml docker-bake.hcl docker-bake.json .gitlab-ci.yml Jenkinsfile config.toml "
    "config".split()
)


def look(root: str) -> Listing:
    """List the repository at ``root``. Links to directories are not followed. Raises OSError for the root itself."""
    files: list[str] = []
    texts: dict[str, str] = {}
    stack = [("", 0)]
    while stack and len(files) < _MAX_FILES:
        below, depth = stack.pop()
        place = os.path.join(root, below) if below else root
        try:
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda entry: entry.name, reverse=True)
        except OSError:
            if not below:
                raise
            continue  # not ours to read: what is in it is none of the build's business
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _NOT_OURS and depth < MAX_DEPTH:
                    stack.append((name, depth + 1))
            elif entry.is_file():
                files.append(name)
                if _tells_more(name):
                    texts[name] = _read(os.path.join(root, name))
    for name in (".git/config",):
        if os.path.isfile(os.path.join(root, name)):
            texts[name] = _read(os.path.join(root, name))
    return Listing(tuple(sorted(files)), texts)


def _tells_more(name: str) -> bool:
    directory, _, own = name.rpartition("/")
    if "cachekit" in own:
        return False  # what init wrote itself tells nothing of the tools
    if own in {"config.toml", "config"}:
        return directory == ".cargo" or directory.endswith("/.cargo")
    ci = directory in {".github/workflows", ".gitlab", ".gitlab/ci", "ci", ".ci"}
    return own in _READ or own.startswith("Dockerfile") or (ci and own.endswith((".yml", ".yaml", ".sh")))


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return os.read(fd, _MAX_TEXT).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
