"""Whatever a repository holds, what init proposes for it is a configuration that cachekit takes."""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cachekit.cache.config.file import examine
from cachekit.init.known import tools
from cachekit.init.model import CIS, Listing
from cachekit.init.propose import propose
from cachekit.init.text import configuration, diff, missing, quoted, snippets, tables

_OWN = sorted(
    {name for tool in tools() for name in (*tool.locks, *tool.manifests, *tool.needs)} | {"Dockerfile"}
)
_PARTS = st.text(st.characters(blacklist_characters="/\0"), min_size=1, max_size=8).filter(
    lambda part: part not in {".", ".."}
)
FILES = st.builds(
    lambda parts, own: "/".join([*parts, own]), st.lists(_PARTS, max_size=3), st.sampled_from(_OWN)
)
LISTINGS = st.builds(
    lambda files, texts: Listing(tuple(sorted(files)), dict(zip(sorted(files), texts, strict=False))),
    st.frozensets(FILES, max_size=12),
    st.lists(
        st.sampled_from(
            ["", "__metadata:\n", "ccache", "sccache x", "docker buildx build", 'source = "git+x"']
        ),
        max_size=12,
    ),
)


def faults(text: str) -> list[str]:
    """Return what a configuration's check says of a text."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "cachekit.toml")
        path.write_text(text, encoding="utf-8")
        return [problem.message for problem in examine(str(path))[1]]


@given(LISTINGS)
def test_the_configuration_is_right(listing: Listing) -> None:
    """It has no fault, whatever the names of directories; and nothing is left to add to it."""
    caches = propose(listing).caches
    change, added = configuration(None, caches)
    assert added == list(caches)
    if change is not None:
        assert faults(change.new) == []
        assert configuration(change.new, caches) == (None, [])
        assert missing(f"[tool.x]\n{tables(caches, 'tool.cachekit.caches')}", caches, "x", project=True) == []


@given(LISTINGS, LISTINGS)
def test_extending(first: Listing, second: Listing) -> None:
    """What one repository's configuration lacks for another is added without changing a byte of it."""
    old, _ = configuration(None, propose(first).caches)
    before = old.new if old is not None else "# empty\n"
    change, _ = configuration(before, propose(second).caches)
    after = before if change is None else change.new
    assert after.startswith(before)
    assert faults(after) == []


@given(LISTINGS, st.sampled_from(CIS))
def test_snippets(listing: Listing, ci: str) -> None:
    """A snippet keeps its lines around the build, and a diff of it has only additions."""
    proposal = propose(listing, (), ci)  # type: ignore[arg-type]
    files, _ = snippets(ci, listing, proposal)  # type: ignore[arg-type]
    for text in files.values():
        assert "\0" not in text
        assert text.endswith("\n")
        if ci in {"github", "gitlab", "jenkins"}:
            assert text.count("cachekit restore --all") == 1


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_quoted(text: str) -> None:
    """Any text survives being written as TOML."""
    assert tomllib.loads(f"x = {quoted(text)}") == {"x": text}


@given(st.text(st.sampled_from("ab\n")), st.text(st.sampled_from("ab\n")))
def test_a_diff_tells_every_line(old: str, new: str) -> None:
    """The lines that a diff adds and keeps are those of the new text."""
    from cachekit.init.model import FileChange

    text = diff(FileChange("f", old, new))
    assert (text == "") is (old == new)
    removed = [line[1:] for line in text.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert set(removed) <= set(old.splitlines())
