"""`cachekit explain`: whatever it says is what restore does; and why an entry is passed over."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.cache.explain import explain
from cachekit.cache.restore import RestoreRequest, restore
from cachekit.errors import CachekitError
from cachekit.model import Platform
from cachekit.store.directory import DirectoryStore, file_name_of
from tests.support.archives import Entry
from tests.support.in_process import Here, cut
from tests.support.snapshots import unchanged
from tests.support.trees import make_tree

KEYS = ["n-1", "n-2", "n-2-x", "m-1"]
FATES = ["whole", "whole", "cut", "tail", "flipped", "foreign", "empty", "misfiled", "denied"]
OTHER = Platform("linux", "riscv64", "musl")


@pytest.fixture
def filled(here: Here) -> Here:
    """A store with an entry of each key, made in an order that is not theirs."""
    make_tree(here.root, {"t": {"a": b"1" * 5000}})
    for key in (KEYS[1], KEYS[0], KEYS[3], KEYS[2]):
        here.save(key, "t")
    shutil.rmtree("t")
    return here


def meet(store: Path, path: Path, fate: str) -> None:
    """Let an entry meet its fate."""
    raw = path.read_bytes()
    if fate == "cut":
        cut(path)
    elif fate == "tail":
        path.write_bytes(raw[:-1])
    elif fate == "flipped":
        path.write_bytes(bytes([*raw[:40], raw[40] ^ 1, *raw[41:]]))
    elif fate == "empty":
        path.write_bytes(b"")
    elif fate == "misfiled":
        path.rename(path.with_name("n-9" + path.name[path.name.rindex("-") :]))
    elif fate == "foreign":
        entry = Entry.read(path)
        entry.facts.platform = OTHER
        path.unlink()
        path.with_name(file_name_of(entry.facts)).write_bytes(entry.seal())
    elif fate == "denied":
        cut(path)
        from cachekit.store.denials import deny

        assert deny(os.fsencode(path))


@settings(max_examples=40)
@given(
    fates=st.tuples(*[st.sampled_from(FATES)] * len(KEYS)),
    key=st.sampled_from([*KEYS, "n-3"]),
    restore_keys=st.lists(st.sampled_from(["n-", "n-2", "m", "n-1", "x"]), max_size=3),
    paths=st.sampled_from([[], ["t"], ["other"]]),
    any_platform=st.booleans(),
)
def test_explain_is_what_restore_does(
    tmp_path_factory: pytest.TempPathFactory,
    template: Path,
    fates: tuple[str, ...],
    key: str,
    restore_keys: list[str],
    paths: list[str],
    any_platform: bool,
) -> None:
    """In any store, for any request: the same status and entry, or the same error, and nothing is changed before."""
    place = tmp_path_factory.mktemp("one")
    store = place / "store"
    shutil.copytree(template, store)
    for name, fate in zip(KEYS, fates, strict=True):
        found = next(c for c in DirectoryStore(str(store)).entries() if c.seal and c.seal.key == name)
        meet(store, Path(os.fsdecode(found.path)), fate)
    (place / "root").mkdir()
    request = RestoreRequest(
        key, str(store), restore_keys, paths, str(place / "root"), any_platform=any_platform
    )
    with unchanged(store), unchanged(place / "root"):
        said = explain(request)
    assert len({line.entry for line in said.lines}) <= len(said.lines)
    if said.error is not None:
        with pytest.raises(CachekitError) as caught:
            restore(request)
        assert (said.status, said.error) == (None, caught.value.as_dict())
        return
    done = restore(request)
    assert (said.status, said.entry, said.matched_key) == (done.status, done.entry, done.matched_key)
    passed_over = [line["entry"] for line in done.tried if line["verdict"] != "miss"]
    assert passed_over == [
        line.entry
        for line in said.lines
        if line.verdict not in {"taken", "absent", "platform", "not-tried", "quarantined"}
    ]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with whole entries, to be copied."""
    from cachekit.cache.save import SaveRequest, save

    place = tmp_path_factory.mktemp("template")
    make_tree(place, {"t": {"a": b"1" * 5000}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHEKIT_STATE_DIR", str(place / "state"))
        patch.setenv("CACHEKIT_LOCK_DIR", str(place / "locks"))
        (place / "locks").mkdir()
        for key in (KEYS[1], KEYS[0], KEYS[3], KEYS[2]):
            save(SaveRequest(key, ["t"], str(place / "store"), root=str(place)))
    return place / "store"


def verdicts(here: Here, *arguments: str) -> dict[str, str]:
    """Explain, and return the verdict on each entry by its key (or the beginning of its file name)."""
    report = here("explain", "--json", *arguments).expect().json()
    return {line["key"] or line["entry"].rpartition("-")[0]: line["verdict"] for line in report["lines"]}


def test_reasons(filled: Here) -> None:
    """Each candidate has its verdict: taken, older, damaged, set aside, of another platform."""
    assert verdicts(filled, "--key", "n-3", "--restore-key", "n-") == {
        "n-3": "absent",
        "n-2-x": "taken",
        "n-1": "not-tried",
        "n-2": "not-tried",
    }
    text = filled("explain", "--key", "n-3", "--restore-key", "n-").expect().stdout
    assert text.startswith("would restore n-2-x (partial)\n")
    assert "older than the one that is taken" in text
    cut(filled.entry("n-2-x"))
    assert verdicts(filled, "--key", "n-3", "--restore-key", "n-")["n-2-x"] == "damaged"
    filled.restore("n-2-x")
    assert verdicts(filled, "--key", "n-2-x")["n-2-x"] == "quarantined"
    meet(filled.store, filled.entry("n-1"), "foreign")
    report = filled("explain", "--key", "n-1", "--json").expect().json()
    assert report["status"] == "miss"
    assert [line["verdict"] for line in report["lines"]] == ["absent", "platform"]
    assert "--any-platform takes it" in report["lines"][1]["reason"]
    assert verdicts(filled, "--key", "n-1", "--any-platform") == {"n-1": "taken"}


def test_targets(filled: Here) -> None:
    """A path that the entry does not hold ends a restore, and explain says so with its exit code; itself it is 0."""
    done = filled("explain", "--key", "n-1", "other").expect(0)
    assert "exit code 8" in done.stdout
    filled("restore", "--key", "n-1", "other").expect(8)
    found = verdicts(filled, "--key", "new", "--restore-key", "n-1", "other")
    assert found["n-1"] == "other-paths"
    assert (
        filled("restore", "--key", "new", "--restore-key", "n-1", "--json", "other").expect().json()["status"]
        == "miss"
    )


def test_scope(filled: Here) -> None:
    """With a scope its entries come first, then those of the namespace, each named."""
    make_tree(filled.root, {"t": {"a": b"2"}})
    filled.save("n-1", "t", "--scope", "pr-1")
    scoped = filled("explain", "--key", "n-1", "--scope", "pr-1", "--json").expect().json()
    assert [(line["namespace"], line["verdict"]) for line in scoped["lines"]] == [("default/@pr-1", "taken")]
    other = filled("explain", "--key", "m-1", "--scope", "pr-1", "--json").expect().json()
    assert [(line["namespace"], line["verdict"]) for line in other["lines"]] == [
        ("default/@pr-1", "absent"),
        ("default", "taken"),
    ]


def test_denied_and_names(filled: Here) -> None:
    """An entry on the deny list is told as refused; a cache of the configuration is explained by its name."""
    cut(filled.entry("n-1"))
    filled.restore("n-1", "--read-only")
    Path("cachekit.toml").write_text('[caches.n]\nkey = "n-1"\nrestore-keys = ["m"]\npaths = ["t"]\n')
    report = filled("explain", "n", "--json").expect().json()
    assert (report["cache"], report["status"], report["matched_key"]) == ("n", "partial", "m-1")
    assert "before" in report["lines"][0]["reason"]


def test_hostile_names(filled: Here) -> None:
    """What is shown to people has no control characters and no orders to a runner."""
    text = filled("explain", "--key", "::set-output name=a::b").expect().stdout
    assert "\n::" not in text
