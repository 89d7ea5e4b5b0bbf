"""The files that init proposes, as text: cachekit.toml new or extended, and a snippet for the CI. Pure."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Sequence

from cachekit.errors import InvalidRequest
from cachekit.init.known import snippet
from cachekit.init.model import Ci, FileChange, Listing, Proposal, ProposedCache

__all__ = ["CONFIGURATION", "configuration", "diff", "snippets", "tables"]

CONFIGURATION = "cachekit.toml"
_HEAD = (
    "# The caches of this repository: `cachekit restore --all` before a build, `cachekit save --all` after it.\n"
    "# `cachekit config check` shows every fault of this file.\n"
)
_ESCAPED = re.compile(r'[\\"\x00-\x1f\x7f]')


def quoted(text: str) -> str:
    """Return a basic string of TOML."""
    return (
        '"'
        + _ESCAPED.sub(lambda m: f"\\u{ord(m[0]):04X}" if m[0] < " " or m[0] == "\x7f" else "\\" + m[0], text)
        + '"'
    )


def tables(caches: Iterable[ProposedCache], prefix: str = "caches") -> str:
    """Return caches as tables of a configuration."""
    parts = []
    for cache in caches:
        lines = [f"[{prefix}.{cache.name}]", f"# {cache.source}"]
        if cache.never:
            lines.append(f"# Not cached: {cache.never}.")
        lines.append(f"key = {quoted(cache.key)}")
        for name, values in (
            ("restore-keys", cache.restore_keys),
            ("paths", cache.paths),
            ("excludes", cache.excludes),
        ):
            if values:
                lines.append(f"{name} = [{', '.join(map(quoted, values))}]")
        if cache.kind is not None:
            lines.append(f"kind = {quoted(cache.kind)}")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def configuration(
    old: str | None, caches: Sequence[ProposedCache]
) -> tuple[FileChange | None, list[ProposedCache]]:
    """Return how cachekit.toml would change, None if it would not, and the caches that are added.

    ``old`` is what it says now: its caches stay as they are. One of another name with all of a proposed one's paths is
    the same cache. Raises InvalidRequest for a file that is no TOML.
    """
    if old is None:
        if not caches:
            return None, []
        return FileChange(CONFIGURATION, None, f"{_HEAD}\n{tables(caches)}"), list(caches)
    added = missing(old, caches, CONFIGURATION)
    if not added:
        return None, []
    gap = "" if not old or old.endswith("\n\n") else "\n" if old.endswith("\n") else "\n\n"
    new = old + gap + tables(added)
    try:
        tomllib.loads(new)
    except tomllib.TOMLDecodeError:
        # Such as caches = {...}, which no further table can extend.
        raise InvalidRequest(
            "the configuration is written in a way that cannot be extended at its end",
            path=CONFIGURATION,
            hint="add these by hand:\n" + tables(added),
        ) from None
    return FileChange(CONFIGURATION, old, new), added


def missing(
    old: str, caches: Sequence[ProposedCache], path: str, *, project: bool = False
) -> list[ProposedCache]:
    """Return the caches that a configuration has not. Raises InvalidRequest for a file that is no TOML."""
    try:
        values = tomllib.loads(old)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(
            f"the configuration is no TOML: {error}",
            path=path,
            hint="cachekit config check shows every fault of it",
        ) from None
    if project:
        tool = values.get("tool")
        values = tool.get("cachekit", {}) if isinstance(tool, dict) else {}
    known = values.get("caches")
    known = known if isinstance(known, dict) else {}
    held = [
        {path for path in table["paths"] if isinstance(path, str)}
        for table in known.values()
        if isinstance(table, dict) and isinstance(table.get("paths"), list)
    ]
    return [
        cache
        for cache in caches
        if cache.name not in known and not any(set(cache.paths) <= paths for paths in held)
    ]


def snippets(ci: Ci, listing: Listing, proposal: Proposal) -> tuple[dict[str, str], list[str]]:
    """Return the files for a CI (path -> text), and what is left to do by hand."""
    files = set(listing.files)
    if ci == "github":
        path = ".github/workflows/cachekit.yml"
        return {path: _with_build(snippet("github.yml"), proposal.builds)}, [
            f"replace OWNER and the commit in {path}; or move its steps into a workflow of yours"
        ]
    if ci == "gitlab":
        return {".gitlab/cachekit.yml": _with_build(snippet("gitlab.yml"), proposal.builds)}, [
            "in .gitlab-ci.yml write 'include: {local: .gitlab/cachekit.yml}', and in the job 'extends: .cachekit'"
        ]
    if ci == "jenkins":
        text = _with_build(snippet("Jenkinsfile"), proposal.builds)
        if "Jenkinsfile" in files and "// For: agents that keep the store" not in listing.texts.get(
            "Jenkinsfile", ""
        ):
            return {"Jenkinsfile.cachekit": text}, [
                "there is a Jenkinsfile: move the stage and the post step of Jenkinsfile.cachekit into it"
            ]
        return {"Jenkinsfile": text}, []
    if ci == "systemd":
        return {f"ci/{name}": snippet(name) for name in ("cachekit-clean.service", "cachekit-clean.timer")}, [
            "put both into /etc/systemd/system of the runner's machine; systemctl enable --now cachekit-clean.timer"
        ]
    return {"ci/cachekit.crontab": snippet("crontab")}, [
        "as the runner's user on its machine: crontab ci/cachekit.crontab (it replaces the crontab that is there)"
    ]


def _with_build(text: str, builds: Sequence[str]) -> str:
    """Put a repository's own commands in the place of the snippet's build."""
    if not builds:
        return text
    match = re.search(r"^( *)(- |sh ')?make('?)$", text, re.MULTILINE)
    assert match is not None
    indent, before, after = match[1], match[2] or "", match[3]
    lines = []
    for command in builds:
        if before == "- ":
            command = (
                "'" + command.replace("'", "''") + "'"
                if re.search(r": | #|^[\[{*&!|>%@`\"'(]", command)
                else command
            )
        elif after:
            command = command.replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"{indent}{before}{command}{after}")
    return text[: match.start()] + "\n".join(lines) + text[match.end() :]


def diff(change: FileChange) -> str:
    """Return the change as a unified diff, empty if there is none."""
    old, new = (change.old or "").splitlines(keepends=True), change.new.splitlines(keepends=True)
    name = "/dev/null" if change.old is None else f"a/{change.path}"
    text = ""
    for line in difflib.unified_diff(old, new, name, f"b/{change.path}"):
        text += line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
    return text
