"""One store for machines of several platforms: a process under `setarch` is a runner of another architecture."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.capabilities import requires
from tests.support.processes import clean_environment
from tests.support.trees import make_tree

HERE, OTHER = "linux64", "linux32"


class Runners:
    """Two runners with one store and a checkout each."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for name in (HERE, OTHER):
            make_tree(place, {name: {"t": {"a": name.encode()}}})
        make_tree(place, {"home": {"run": {}, "tmp": {}}})

    def __call__(self, runner: str, *arguments: str, code: int = 0) -> Any:
        """Run the command line on a runner; return its JSON."""
        command = [
            sys.executable,
            "-m",
            "cachekit",
            *arguments,
            "--store",
            str(self.place / "store"),
            "--json",
        ]
        done = subprocess.run(
            ["setarch", runner, *command],
            cwd=self.place / runner,
            env=clean_environment(self.place / "home") | {"CACHEKIT_WORKERS": "1"},
            capture_output=True,
            check=False,
            timeout=50,
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def content(self, runner: str) -> bytes:
        """Read what a restore wrote."""
        return (self.place / runner / "t" / "a").read_bytes()

    def forget(self, runner: str) -> None:
        """Remove a runner's tree."""
        shutil.rmtree(self.place / runner / "t")


@pytest.fixture
def runners(tmp_path: Path) -> Runners:
    """Two runners."""
    return Runners(tmp_path)


@requires("second_platform")
def test_one_key_two_entries(runners: Runners) -> None:
    """The same key saved on two platforms gives two entries; each runner gets its own, ls and verify show both."""
    first, second = (runners(runner, "save", "--key", "k", "t") for runner in (HERE, OTHER))
    assert [first["status"], second["status"]] == ["saved", "saved"]
    assert first["entry"] != second["entry"]
    assert first["platform"] != second["platform"]
    for runner in (HERE, OTHER):
        runners.forget(runner)
        assert runners(runner, "restore", "--key", "k", "t")["status"] == "exact"
        assert runners.content(runner) == runner.encode()
        assert runners(runner, "save", "--key", "k", "t")["status"] == "exists"
    listed = runners(HERE, "ls")
    assert sorted((line["key"], line["platform"]) for line in listed) == sorted(
        ("k", report["platform"]) for report in (first, second)
    )
    assert len(runners(HERE, "verify", "k")["archives"]) == 2


@requires("second_platform")
def test_a_miss_says_why(runners: Runners) -> None:
    """A miss because of the platform says so, for the key and for a restore key, in restore and in explain."""
    saved = runners(HERE, "save", "--key", "k-1", "t")
    runners.forget(OTHER)
    for wanted in (["--key", "k-1"], ["--key", "k-2", "--restore-key", "k-"]):
        missed = runners(OTHER, "restore", *wanted, "t")
        assert missed["status"] == "miss"
        assert [line["entry"] for line in missed["tried"]] == [saved["entry"]]
        assert f"it was made for {saved['platform']}" in missed["tried"][0]["reason"]
        lines = runners(OTHER, "explain", *wanted, "t")["lines"]
        assert (lines[-1]["verdict"], lines[-1]["platform"]) == ("platform", saved["platform"])
    assert runners(OTHER, "restore", "--key", "k-1", "t", "--any-platform")["status"] == "exact"
    assert runners.content(OTHER) == HERE.encode()


@requires("second_platform")
def test_restore_keys_stay_on_the_platform(runners: Runners) -> None:
    """A newer entry of another platform does not hide an older one of this platform."""
    runners(HERE, "save", "--key", "k-1", "t")
    runners(OTHER, "save", "--key", "k-2", "t")
    runners.forget(HERE)
    assert runners(HERE, "restore", "--key", "k-3", "--restore-key", "k-", "t")["matched_key"] == "k-1"
    assert runners.content(HERE) == HERE.encode()
