"""From a repository's listing to caches: pure. Which tools it uses, what their keys follow, what to say."""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase

from cachekit.init.known import tools
from cachekit.init.model import Ci, Listing, Proposal, ProposedCache, Tool

__all__ = ["guess_ci", "propose"]

#: So many lock files are named in a key one by one; more become a glob.
_MOST_NAMED = 6
#: What a name in {hash:...} cannot hold.
_SPECIAL = re.compile("[,{}\x00-\x1f\x7f-\x9f\ud800-\udfff*?\\[\\]\\\\]|^!|^\\s|\\s$")


def propose(listing: Listing, variables: Collection[str] = (), ci: Ci | None = None) -> Proposal:
    """Return the caches for a repository. ``variables``: names that are set in this environment."""
    caches, builds, notes = [], [], []
    covered: set[str] = set()
    for tool in tools():
        locks = _locks(tool, listing)
        if not _used(tool, listing, locks):
            if tool.without_lock and (note := _missing(tool, listing, covered)):
                notes.append(note)
            continue
        covered.update(_directory(lock) for lock in locks)
        caches.append(_cache(tool, listing, locks))
        if tool.build:
            builds.append(_build(tool, locks))
        notes += _moved(tool, listing, variables)
    if any(file == ".pnp.cjs" or file.startswith(".yarn/cache/") for file in listing.files):
        notes.append(
            "yarn-berry: .yarn/cache is in the repository; if it is committed, that cache is not needed"
        )
    if not caches and listing.named("pyproject.toml"):
        notes.append(
            "pip: pyproject.toml without a lock file: a key could not follow what is installed; lock it (uv lock)"
        )
    if any(cache.kind == "oci" for cache in caches) and not _mentioned(listing, "docker/setup-buildx-action"):
        notes.append(
            "buildx: the engine's own builder may not export a cache; before the build run "
            "docker buildx create --use (in GitHub Actions docker/setup-buildx-action)"
        )
    if any(_is_dockerfile(file) for file in listing.files) and not any(c.name == "buildx" for c in caches):
        notes.append(
            "there is a Dockerfile: to cache its layers build with --cache-to "
            "type=local,dest=$HOME/.cache/buildx,mode=max and run this again; whole images: cachekit image save"
        )
    return Proposal(ci or guess_ci(listing), tuple(caches), tuple(builds), tuple(notes))


def guess_ci(listing: Listing) -> Ci | None:
    """Return the CI that a repository's own files tell of, else that of its remote; None if neither does."""
    files = set(listing.files)
    if any(file.startswith(".github/workflows/") for file in files):
        return "github"
    if ".gitlab-ci.yml" in files:
        return "gitlab"
    if "Jenkinsfile" in files:
        return "jenkins"
    remote = listing.texts.get(".git/config", "")
    if re.search(r"url\s*=.*github", remote):
        return "github"
    if re.search(r"url\s*=.*gitlab", remote):
        return "gitlab"
    return None


def _mentioned(listing: Listing, word: str) -> bool:
    return any(word in text for text in listing.texts.values())


def _moved(tool: Tool, listing: Listing, variables: Collection[str]) -> list[str]:
    """Return what to say of a cache that may be elsewhere: by a variable here, by what CI files set or use."""
    says = f" ({tool.ask} says where)" if tool.ask else ""
    elsewhere = f"so its cache may be elsewhere than {tool.paths[0]}{says}"
    notes = [
        f"{tool.name}: ${variable} is set here, {elsewhere}"
        for variable in tool.variables
        if variable in variables
    ]
    for word in (*tool.variables, *tool.moved_by):
        exact = re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])")
        file = next((file for file in sorted(listing.texts) if exact.search(listing.texts[file])), None)
        if file is not None:
            notes.append(f"{tool.name}: {file} has {word}, {elsewhere}")
    return notes


def _directory(file: str) -> str:
    return file.rpartition("/")[0]


def _is_dockerfile(file: str) -> bool:
    return file.rpartition("/")[2].startswith(("Dockerfile", "Containerfile"))


def _locks(tool: Tool, listing: Listing) -> list[str]:
    found = [file for file in listing.files if file.rpartition("/")[2] in tool.locks]
    if tool.lock_pattern:
        found += [
            file
            for file in listing.files
            if file not in found and fnmatchcase(file.rpartition("/")[2], tool.lock_pattern)
        ]
    if tool.lock_with is not None:
        found = [file for file in found if tool.lock_with in listing.texts.get(file, "")]
    if tool.lock_without is not None:
        found = [file for file in found if tool.lock_without not in listing.texts.get(file, "")]
    return sorted(found)


def _used(tool: Tool, listing: Listing, locks: list[str]) -> bool:
    if tool.mentions:
        if tool.needs_dockerfile and not any(map(_is_dockerfile, listing.files)):
            return False
        words = [re.compile(rf"(?<![a-z]){re.escape(word)}(?![a-z])") for word in tool.mentions]
        return any(word.search(text) for text in listing.texts.values() for word in words)
    if tool.needs:
        return any(listing.named(name) for name in tool.needs)
    return bool(locks)


def _missing(tool: Tool, listing: Listing, covered: set[str]) -> str | None:
    """Return what to say of manifests without a lock file in their directory or above; None if there is none."""
    alone = [
        file
        for name in tool.manifests
        for file in listing.named(name)
        if not any(_above(place, _directory(file)) for place in covered | _other_locks(tool, listing))
    ]
    if not alone:
        return None
    return f"{tool.name}: {alone[0]} has no lock file, so a key cannot follow what is installed: {tool.without_lock}"


def _other_locks(tool: Tool, listing: Listing) -> set[str]:
    """Return where other tools have lock files for the same manifests: package.json may be pnpm's or yarn's."""
    if tool.name != "npm":
        return set()
    return {
        _directory(file)
        for name in ("pnpm-lock.yaml", "yarn.lock", "bun.lockb", "bun.lock")
        for file in listing.named(name)
    }


def _above(place: str, directory: str) -> bool:
    return place in {"", directory} or directory.startswith(place + "/")


def _cache(tool: Tool, listing: Listing, locks: list[str]) -> ProposedCache:
    paths = list(tool.paths)
    for also in tool.also:
        by_file = also.file is not None and bool(listing.named(also.file))
        by_text = also.lock_text is not None and any(
            also.lock_text in listing.texts.get(f, "") for f in locks
        )
        if by_file or by_text:
            paths.append(also.path)
    what = f"{{hash:{_hashed(tool, locks)}}}" if locks else "{commit}"
    return ProposedCache(
        tool.name,
        f"{tool.name}-{what}",
        (f"{tool.name}-",),
        tuple(paths),
        tool.excludes,
        tool.kind,
        tuple(locks),
        tool.never,
        tool.source,
    )


def _hashed(tool: Tool, locks: list[str]) -> str:
    """Return the inside of {hash:...} for lock files: their names, or globs if they are many or have odd names."""
    if len(locks) <= _MOST_NAMED and not any(_SPECIAL.search(lock) for lock in locks):
        return ",".join(locks)
    names = sorted({lock.rpartition("/")[2] for lock in locks})
    if tool.lock_pattern and any(fnmatchcase(name, tool.lock_pattern) for name in names):
        names = [name for name in names if not fnmatchcase(name, tool.lock_pattern)] + [tool.lock_pattern]
    return ",".join([f"**/{name}" for name in names] + ["!node_modules", "!.venv"])


def _build(tool: Tool, locks: list[str]) -> str:
    """Return the tool's command, in the directory of its only lock file, or of the build above all, if not the root."""
    assert tool.build is not None
    places = {_directory(lock) for lock in locks}
    if tool.name == "pip":
        name = min(locks, key=lambda lock: (lock.count("/"), len(lock)))
        if re.fullmatch(r"[A-Za-z0-9._/-]+", name) and not name.startswith("-"):
            return f"pip install -r {name}"
        return tool.build
    if tool.needs:
        places = {_directory(lock) for lock in locks if lock.rpartition("/")[2] in tool.needs}
        places = {place for place in places if all(_above(place, other) for other in places)}
    if len(places) != 1 or "" in places:
        return tool.build
    (place,) = places
    return (
        f"(cd {place} && {tool.build})"
        if re.fullmatch(r"[A-Za-z0-9._/][A-Za-z0-9._/-]*", place)
        else tool.build
    )
