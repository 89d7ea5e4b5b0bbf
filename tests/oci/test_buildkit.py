"""BuildKit's own caches: verified, damaged, collected beside builds, and used again."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from cachekit.oci.collect import CollectRequest, collect
from cachekit.oci.verify import verify_layout
from tests.oci.builds import Builder
from tests.support.capabilities import requires
from tests.support.cli import Cli
from tests.support.layouts import MadeLayout

pytestmark = [requires("docker"), pytest.mark.xdist_group("engines"), pytest.mark.timeout(180)]


def layers(cache: Path) -> list[Path]:
    """Return the blobs that are layers, the largest first."""
    return sorted(cache.glob("blobs/sha256/*"), key=lambda path: path.stat().st_size, reverse=True)


def cached(log: str) -> int:
    """Return how many steps of a build came from the cache."""
    return log.count(" CACHED\n")


def test_a_real_cache_is_whole_and_grows(builder: Builder, tmp_path: Path) -> None:
    """What BuildKit exports is whole; what further exports leave behind is found and removed, and nothing else."""
    cache = tmp_path / "cache"
    for seed in range(3):
        builder.change(seed)
        builder.build(to=cache)
    report = verify_layout(str(cache))
    assert report.ok, report.faults
    assert report.kind == "buildkit-cache"
    assert len(report.unreferenced) >= 4
    done = collect(CollectRequest(str(cache), grace=0, settle=0))
    assert {line.name for line in done.removed} == {digest for digest, _ in report.unreferenced}
    after = verify_layout(str(cache))
    assert after.ok
    assert after.blobs == report.blobs
    assert after.unreferenced == []
    builder.forget()
    assert cached(builder.build(source=cache)) == 3


def test_a_build_after_a_collection_hits_and_exports_again(builder: Builder, tmp_path: Path) -> None:
    """After a collection a build imports the cache, and exports to it; the next collection has little to do."""
    cache = tmp_path / "cache"
    builder.build(to=cache)
    builder.change(5)
    builder.build(to=cache)
    collect(CollectRequest(str(cache), grace=0, settle=0))
    builder.forget()
    log = builder.build(source=cache, to=cache)
    assert cached(log) == 3
    assert verify_layout(str(cache)).ok


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_bad_layer_fails_the_build_and_is_found_before(
    builder: Builder, tmp_path: Path, damage: str
) -> None:
    """A flipped, cut or missing layer fails BuildKit's build; verify finds it and says so."""
    cache = tmp_path / "cache"
    builder.build(to=cache)
    layer = layers(cache)[0]
    layer.chmod(0o644)
    if damage == "flipped":
        data = bytearray(layer.read_bytes())
        data[len(data) // 2] ^= 1
        layer.write_bytes(data)
    elif damage == "cut":
        os.truncate(layer, 1000)
    else:
        layer.unlink()
    report = verify_layout(str(cache))
    assert not report.ok
    assert [fault.digest for fault in report.faults] == [f"sha256:{layer.name}"]
    assert "fails" in report.faults[0].consequence
    builder.forget()
    builder.change(7)  # the damaged layer is needed, not only named
    assert builder.run(source=cache).returncode != 0 or cached(builder.build(source=cache)) < 3


def test_two_exporters_under_the_lock(builder: Builder, cli: Cli) -> None:
    """Two builds that export to one directory at once both succeed under oci lock, and the cache is whole."""
    cache = cli.cwd / "cache"
    environment = builder.host.environment
    command = builder.command(to=cache)
    first = cli.start("oci", "lock", "cache", "--", *command, env=environment)
    second = cli.start("oci", "lock", "cache", "--", *command, env=environment)
    with first, second:
        assert first.wait(60).code == 0
        assert second.wait(60).code == 0
    assert verify_layout(str(cache)).ok


def test_collecting_beside_builds_that_know_of_no_lock(builder: Builder, tmp_path: Path) -> None:
    """Collections beside builds without the lock: every build succeeds, and the cache is whole after each."""
    cache = tmp_path / "cache"
    builder.build(to=cache)
    ended = threading.Event()
    done = []

    def collecting() -> None:
        while not ended.is_set():
            done.append(collect(CollectRequest(str(cache), grace=0, settle=0.5)).status)

    thread = threading.Thread(target=collecting)
    thread.start()
    try:
        for seed in (1, 2, 1, 3, 2):  # what was exported before, and collected since, is exported again
            builder.change(seed)
            builder.build(to=cache)
    finally:
        ended.set()
        thread.join(30)
    assert "done" in done
    report = verify_layout(str(cache))
    assert report.ok, report.faults
    builder.forget()
    assert cached(builder.build(source=cache)) == 3


def test_verify_beside_exports(builder: Builder, tmp_path: Path) -> None:
    """A cache that is being written is never called damaged."""
    cache = tmp_path / "cache"
    builder.build(to=cache)
    ended = threading.Event()
    wrong = []

    def verifying() -> None:
        while not ended.is_set():
            report = verify_layout(str(cache))
            if not report.ok:
                wrong.append(report.faults)

    thread = threading.Thread(target=verifying)
    thread.start()
    try:
        for seed in range(10, 14):
            builder.change(seed)
            builder.build(to=cache)
    finally:
        ended.set()
        thread.join(30)
    assert wrong == []


def test_a_client_that_is_killed_leaves_an_unfinished_blob(builder: Builder, tmp_path: Path) -> None:
    """What a killed export leaves is no fault, is listed, and goes once it is older than the grace time."""
    cache = tmp_path / "cache"
    builder.build(to=cache)
    builder.change(20, 60_000_000)
    command = subprocess.Popen(
        builder.command(to=cache),
        env=builder.host.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while command.poll() is None and not any((cache / "ingest").iterdir()):
            pass
    finally:
        command.kill()
        command.wait()
    report = verify_layout(str(cache))
    assert report.ok, report.faults
    if report.ingest:  # it may have ended before the kill
        assert collect(CollectRequest(str(cache), settle=0)).status in {"busy", "done"}
        assert verify_layout(str(cache)).ingest == report.ingest
        for path in [*(cache / "ingest").rglob("*")]:
            MadeLayout.age(path, 3600)
        collect(CollectRequest(str(cache), settle=0))
    after = verify_layout(str(cache))
    assert after.ok
    assert after.ingest == []


def test_a_cache_of_kind_oci(builder: Builder, cli: Cli) -> None:
    """A real cache is saved, restored elsewhere and hit; one with a bad layer is neither saved nor restored."""
    cache = cli.cwd / "cache"
    builder.build(to=cache)
    cli("save", "--kind=oci", "--key=whole", "cache").expect(0)
    layer = layers(cache)[0]
    layer.chmod(0o644)
    layer.write_bytes(bytes(layer.stat().st_size))
    refused = cli("save", "--kind=oci", "--key=bad", "cache").expect(4)
    assert "was not saved" in refused.stderr
    cli("save", "--key=bad", "cache").expect(0)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in cache.rglob("*"))
    report = cli("restore", "--kind=oci", "--key=bad", "--json", "cache").expect(0).json()
    assert report["status"] == "refused"
    assert report["tried"][0]["verdict"] == "wrong-content"
    assert sorted((path.name, path.stat().st_mtime_ns) for path in cache.rglob("*")) == before
    cli("restore", "--kind=oci", "--key=bad", "--strict", "cache").expect(3)  # set aside: it is a miss now
    cli("restore", "--kind=oci", "--key=whole", "--replace", "cache").expect(0)
    builder.forget()
    assert cached(builder.build(source=cache)) == 3
