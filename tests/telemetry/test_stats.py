"""Statistics: what is counted, what is measured, what is unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cachekit.telemetry.stats import gather
from tests.support.in_process import Here
from tests.support.shelf import Shelf


@pytest.fixture
def here(tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in this process, with its store below a private home."""
    monkeypatch.chdir(tmp_path)
    return Here(tmp_path, clean_surroundings)


@pytest.fixture
def shelf(here: Here) -> Shelf:
    """The store of `here`, made."""
    made = Shelf(here.store)
    made.store.prepare()
    return made


def event(kind: str, status: str, key: str = "k-1", **more: Any) -> dict[str, Any]:
    """Make an event as it is read."""
    plain = {"v": 1, "event": kind, "namespace": "default", "status": status, "key": key, "cache": "k"}
    return {"time": 1000.0, "bytes": 0, "content": 0, "files": 0, "seconds": 0.0, **plain, **more}


def test_rates() -> None:
    """Each restore is one of exact, partial, miss, refused or error; saves are counted apart."""
    stats = gather(
        [
            event("restore", "exact", content=100, seconds=2.0),
            event("restore", "partial", content=50, seconds=1.0),
            *[event("restore", "miss")] * 4,
            event("restore", "refused"),
            event("restore", "unreadable"),
            event("restore", "error"),
            event("restore", "something new"),
            event("save", "saved", bytes=10, seconds=3.0),
            event("save", "reused", bytes=10),
            event("save", "exists"),
            event("save", "error"),
            event("refusal", "damaged"),
        ]
    )
    (cache,) = stats.caches
    assert (cache.restores, cache.exact, cache.partial, cache.miss, cache.refused, cache.errors) == (
        10,
        1,
        1,
        4,
        2,
        2,
    )
    assert cache.rate(cache.miss) == 0.4
    assert (cache.restored_bytes, cache.restore_seconds) == (150, 3.0)
    assert (cache.saves, cache.saves_existing, cache.save_errors, cache.saved_bytes) == (2, 1, 1, 10)
    assert stats.refusals == {"damaged": 1}


def test_caches_of_two_namespaces_are_two() -> None:
    """The same name in another namespace is another cache."""
    stats = gather([event("restore", "exact"), event("restore", "miss", namespace="shop")])
    assert [(c.namespace, c.exact, c.miss) for c in stats.caches] == [("default", 1, 0), ("shop", 0, 1)]


def test_seconds_saved_are_measured() -> None:
    """A miss and a save of one job tell how long a key takes; each exact hit of that key saved that, less its own."""
    stats = gather(
        [
            event("restore", "exact", seconds=10.0, job="later", time=5000.0),  # in any order
            event("restore", "miss", time=1000.0, job="a"),
            event("save", "saved", time=1320.0, seconds=20.0, job="a"),
            event("restore", "exact", seconds=400.0, time=6000.0),  # slower than making it: saved nothing
            event("restore", "exact", "k-2", seconds=1.0, time=6000.0),  # nobody knows
            event("restore", "partial", "k-1", seconds=1.0),
        ]
    )
    (cache,) = stats.caches
    assert (cache.hits_measured, cache.seconds_saved) == (2, 290.0)


@pytest.mark.parametrize(
    "others",
    [
        [event("restore", "miss", time=1000.0, job="a"), event("save", "saved", time=1300.0, job="b")],
        [event("restore", "miss", time=1000.0), event("save", "saved", time=1300.0)],
        [event("restore", "miss", time=1000.0, job="a"), event("save", "saved", "k-2", time=1300.0, job="a")],
        [event("restore", "miss", time=1500.0, job="a"), event("save", "saved", time=1300.0, job="a")],
        [event("restore", "miss", time=1000.0, job="a"), event("save", "exists", time=1300.0, job="a")],
    ],
)
def test_seconds_saved_are_not_guessed(others: list[dict[str, Any]]) -> None:
    """Other jobs, no job, other keys, a save before the miss, a save that made nothing: unknown."""
    (cache,) = gather([*others, event("restore", "exact", time=9000.0)]).caches
    assert (cache.hits_measured, cache.seconds_saved) == (0, 0.0)


def test_locks_and_evictions() -> None:
    """Waits, timeouts and evictions are summed over all."""
    stats = gather(
        [
            event("lock-wait", "got", seconds=3.0),
            event("lock-wait", "timeout", seconds=5.0),
            event("eviction", "max-size", bytes=10),
            event("eviction", "max-size", bytes=5),
            event("eviction", "expired", bytes=1),
        ]
    )
    assert (stats.lock_waits, stats.lock_wait_seconds, stats.lock_timeouts) == (2, 8.0, 1)
    assert (stats.evictions, stats.evicted_bytes) == (3, 16)
    assert stats.evictions_by_reason == {"max-size": 2, "expired": 1}
    assert stats.caches == []


def test_an_empty_ledger(here: Here, shelf: Shelf) -> None:
    """Without a store, and without events, the command says so and exits 0."""
    assert "no events" in here("stats", "--store", here.root / "nowhere").expect().stdout
    done = here("stats", "--json").expect().json()
    assert done["stats"]["events"] == 0
    assert done["sizes"] == [
        {"namespace": "default", "entries": 0, "bytes": 0, "quarantined": 0, "quarantine_bytes": 0}
    ]


def test_the_command(here: Here, shelf: Shelf) -> None:
    """Real commands give their rates, the size by namespace, and a cache's name that cannot give orders."""
    (here.root / "tree").mkdir()
    (here.root / "tree" / "a").write_bytes(b"x" * 1000)
    here.save("npm-1", "tree")
    here.restore("npm-1")
    here.restore("npm-2")
    here("restore", "--key", "::set-output-1").expect()
    Shelf(here.store, "shop/ci").put("k-1", b"x" * 9000)
    done = here("stats", "--since", "1h", "--json").expect().json()
    caches = {cache["cache"]: cache for cache in done["stats"]["caches"]}
    assert (caches["npm"]["exact_rate"], caches["npm"]["miss_rate"]) == (0.5, 0.5)
    assert caches["npm"]["restored_bytes"] == 1000
    assert caches["npm"]["seconds_saved"] is None
    assert {one["namespace"]: one["entries"] for one in done["sizes"]} == {"default": 1, "shop/ci": 1}
    text = here("stats").expect().stdout
    assert "50%" in text
    assert "unknown" in text
    assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]
    only = here("stats", "--namespace=shop/ci", "--json").expect().json()
    assert [one["namespace"] for one in only["sizes"]] == ["shop/ci"]
    assert only["stats"]["events"] == 0
    here("stats", "--since=soon").expect(2)


def test_a_namespace_speaks_for_itself_only(here: Here, shelf: Shelf) -> None:
    """Events that claim another namespace count where they lie."""
    other = Shelf(here.store, "pr")
    other.store.prepare()
    (other.folder("events") / "x-2099-01.jsonl").write_text(
        json.dumps(event("restore", "miss", namespace="default", time=4e9)) + "\n"
    )
    (cache,) = here("stats", "--json").expect().json()["stats"]["caches"]
    assert cache["namespace"] == "pr"


def test_damaged_and_huge_ledgers(here: Here, shelf: Shelf) -> None:
    """100,000 lines are read, every hundredth damaged: counted, told, exit 0."""
    line = json.dumps(event("restore", "exact", content=7))
    text = "".join(f"{line if number % 100 else line[:-9]}\n" for number in range(100_000))
    (shelf.folder("events") / "x-2026-01.jsonl").write_text(text)
    done = here("stats", "--json").expect()
    assert done.json()["damaged_lines"] == 1000
    assert done.json()["stats"]["caches"][0]["exact"] == 99_000
    assert "1000 damaged lines" in done.stderr
