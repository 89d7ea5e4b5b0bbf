"""A directory store against a dict: whatever is done in whatever order, it serves what the dict says."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cachekit.archive.read import open_archive
from cachekit.cache.prune import PruneRequest, prune
from cachekit.model import Platform
from cachekit.retention.budget import Budget
from cachekit.trust import ANYONE
from tests.contracts.store import ELSEWHERE, HERE
from tests.support.shelf import Shelf, damage

SPACES = st.sampled_from(["default", "shop/ci"])
KEYS = st.sampled_from(["npm-1", "npm-2", "npm-x-1", "pip-1", "a/b", "ü"])
PLATFORMS = st.sampled_from([HERE, ELSEWHERE])
PREFIXES = st.sampled_from(["", "npm-", "npm-x", "n", "a/", "a_", "ü", "none"])

Id = tuple[str, str, Platform]


@dataclass
class Model:
    """What the dict knows of an entry; times are turns."""

    content: bytes
    made: int
    used: int
    damaged: bool = False


class StoreAndDict(RuleBasedStateMachine):
    """The store and the dict, and all that is done to both."""

    @initialize(first=st.lists(st.tuples(SPACES, KEYS, PLATFORMS), min_size=3, max_size=10))
    def begin(self, first: list[Id]) -> None:
        """Make a store with some entries: what is interesting happens between several."""
        self.base = Path(tempfile.mkdtemp(prefix="cachekit-stateful-"))
        self.known: dict[Id, Model] = {}
        self.pinned: set[Id] = set()
        self.turn = 0
        for space, key, platform in first:
            self.save(space, key, platform, b"first", force=False)

    def teardown(self) -> None:
        """Remove the store."""
        shutil.rmtree(self.base)

    def shelf(self, space: str) -> Shelf:
        """The store's namespace."""
        return Shelf(self.base / "store", space)

    def days(self) -> float:
        """Days ago of this turn: later turns are nearer to now, and no two are the same."""
        self.turn += 1
        return 2 - self.turn / 1000

    def served(self) -> dict[Id, Model]:
        """What can be served."""
        return {one: model for one, model in self.known.items() if not model.damaged}

    @rule(space=SPACES, key=KEYS, platform=PLATFORMS, content=st.binary(max_size=40), force=st.booleans())
    def save(self, space: str, key: str, platform: Platform, content: bytes, force: bool) -> None:
        """Save, or replace."""
        one, days = (space, key, platform), self.days()
        outcome = self.shelf(space).put(key, content, used_days=days, platform=platform, force=force)
        if one in self.known and not force:
            assert outcome == "exists"
            return
        assert outcome == "published"
        self.known[one] = Model(content, self.turn, self.turn)

    @rule(space=SPACES, key=KEYS, platform=PLATFORMS)
    def find_exact(self, space: str, key: str, platform: Platform) -> None:
        """Find by the key itself, which is a use."""
        shelf = self.shelf(space)
        found = shelf.store.look(shelf.name(key, platform))
        model = self.known.get((space, key, platform))
        if model is None:
            assert found is None
        elif model.damaged:
            assert found is not None
            assert found.seal is None
        else:
            assert found is not None
            assert found.seal is not None
            assert shelf.content(key, platform) == model.content
            shelf.age(key, self.days(), platform)
            model.used = self.turn

    @rule(space=SPACES, prefix=PREFIXES, platform=st.one_of(st.none(), PLATFORMS))
    def find_by_prefix(self, space: str, prefix: str, platform: Platform | None) -> None:
        """Find by a prefix, newest first."""
        found = self.shelf(space).store.candidates(prefix, None if platform is None else str(platform))
        whole = [(c.seal.key, str(c.seal.platform)) for c in found if c.seal is not None]
        expected = [
            (model.made, key, str(made_on))
            for (where, key, made_on), model in self.served().items()
            if where == space and key.startswith(prefix) and platform in {None, made_on}
        ]
        assert whole == [(key, made_on) for _, key, made_on in sorted(expected, reverse=True)]

    @rule(space=SPACES, key=KEYS, platform=PLATFORMS)
    def pin(self, space: str, key: str, platform: Platform) -> None:
        """Pin."""
        shelf = self.shelf(space)
        shelf.store.prepare()
        one = (space, key, platform)
        assert shelf.store.pin(shelf.name(key, platform)) == (one in self.known)
        if one in self.known:
            self.pinned.add(one)

    @rule(space=SPACES, key=KEYS, platform=PLATFORMS)
    def unpin(self, space: str, key: str, platform: Platform) -> None:
        """Unpin."""
        shelf, one = self.shelf(space), (space, key, platform)
        assert shelf.store.unpin(shelf.name(key, platform)) == (one in self.pinned)
        self.pinned.discard(one)

    @rule(space=SPACES, key=KEYS, platform=PLATFORMS)
    def break_one(self, space: str, key: str, platform: Platform) -> None:
        """Damage an entry."""
        model = self.known.get((space, key, platform))
        if model is not None and not model.damaged:
            damage(self.shelf(space).path(key, platform))
            model.damaged = True

    @rule(space=SPACES, key=KEYS, platform=PLATFORMS)
    def set_aside(self, space: str, key: str, platform: Platform) -> None:
        """Set a damaged entry aside, as a restore that finds it does."""
        one, shelf = (space, key, platform), self.shelf(space)
        if one in self.known and self.known[one].damaged:
            path = shelf.store.entry_path(shelf.name(key, platform))
            with open_archive(path, ANYONE) as archive:
                identity = archive.identity
            assert shelf.store.set_aside(path, identity)
            assert any(name.startswith(shelf.name(key, platform)) for name in shelf.names("quarantine"))
            del self.known[one]

    @rule(over=st.integers(0, 4), keep_last=st.integers(0, 1), dry_run=st.sampled_from([False] * 3 + [True]))
    def prune(self, over: int, keep_last: int, dry_run: bool) -> None:
        """Prune to a number of entries; damaged ones are set aside."""
        most = max(0, len(self.served()) - over)
        budget = Budget(max_entries=most, keep_last=keep_last)
        report = prune(PruneRequest(str(self.base / "store"), budget, dry_run=dry_run))
        assert not report.warnings
        assert not report.failed
        if dry_run:
            return
        gone = self.expected_to_go(most, keep_last)
        for one in gone | {one for one, model in self.known.items() if model.damaged}:
            del self.known[one]
        left = len(self.known)
        assert [s.short_by for s in report.short] == ([left - most] if left > most else [])

    def expected_to_go(self, most: int, keep_last: int) -> set[Id]:
        """Which entries a prune removes: said once more, in another way."""
        served = self.served()
        newest: dict[object, Id] = {}
        for one in sorted(served, key=lambda one: served[one].made):
            newest[one[0], one[1].rpartition("-")[0] or one[1], one[2]] = one
        last = set(newest.values())
        kept = {one for one in served if one in self.pinned or (keep_last and one in last)}
        may_go = sorted(set(served) - kept, key=lambda one: (one in last, served[one].used))
        return set(may_go[: max(0, len(served) - most)])

    @invariant()
    def the_same(self) -> None:
        """The store serves exactly what the dict has, with its contents, and nothing temporary is left."""
        for space in ("default", "shop/ci"):
            shelf = self.shelf(space)
            there = {
                (space, c.seal.key, c.seal.platform) for c in shelf.store.entries() if c.seal is not None
            }
            assert there == {one for one in self.served() if one[0] == space}
            assert shelf.names("tmp") == []
            pins = {shelf.name(key, platform) for where, key, platform in self.pinned if where == space}
            assert shelf.store.pins() == pins
        for (space, key, platform), model in self.served().items():
            assert self.shelf(space).content(key, platform) == model.content


StoreAndDict.TestCase.settings = hypothesis.settings(max_examples=12, stateful_step_count=30, deadline=None)
TestStoreAndDict = StoreAndDict.TestCase
