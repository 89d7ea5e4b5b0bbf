"""Which tools a job needs, so that their rules are left out: said with --keep, or inferred from the job's own files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from cachekit.clean.model import Rule

__all__ = ["job_files", "kept"]

_MAX_BYTES = 1 << 20
#: What says which commands a job runs, by name in the checkout.
_FILES = (
    ".gitlab-ci.yml",
    "Jenkinsfile",
    ".circleci/config.yml",
    ".buildkite/pipeline.yml",
    "Makefile",
    "package.json",
    "tox.ini",
    "noxfile.py",
    "justfile",
)


def job_files(workspace: bytes, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the texts that say what the job runs, by name; empty before the checkout.

    On GitHub only the running workflow's file counts, if it is known ($GITHUB_WORKFLOW_REF is
    owner/repo/.github/workflows/x.yml@ref); else all of them.
    """
    names = list(_FILES)
    ref = environ.get("GITHUB_WORKFLOW_REF", "")
    match = re.search(r"/(\.github/workflows/[^/@]+\.ya?ml)@", ref)
    folder = os.path.join(workspace, b".github/workflows")
    if match:
        names.insert(0, match[1])
    else:
        try:
            names[:0] = sorted(f".github/workflows/{os.fsdecode(name)}" for name in os.listdir(folder))
        except OSError:
            pass
    texts = {}
    for name in names:
        try:
            with open(os.path.join(workspace, os.fsencode(name)), "rb") as file:
                texts[name] = file.read(_MAX_BYTES).decode("utf-8", "replace")
        except OSError:
            continue
    return texts


def kept(rule: Rule, keep: Sequence[str], texts: Mapping[str, str]) -> str | None:
    """Return why a rule is left out for a tool's sake, None if it is not.

    ``keep``: rule ids, tools or categories. Inferred: a tool of the rule that is named as a word in one of the job's
    files (``setup-dotnet`` names dotnet). Whether it is on PATH does not matter: the job may put it there.
    """
    for name in keep:
        if name in {rule.id, rule.category} or name in rule.tools:
            return f"--keep {name}"
    for tool in rule.tools:
        word = re.compile(rf"(?<![A-Za-z0-9_.]){re.escape(tool)}(?![A-Za-z0-9_])")
        for name, text in texts.items():
            if word.search(text):
                return f"{tool} is named in {name}"
    return None
