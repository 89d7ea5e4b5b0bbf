"""`python -m benchmarks oci`: verifying an OCI layout against `sha256sum` over the same blobs."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.filesystem import need
from benchmarks.measure import BenchmarkError, Run, Series, Subject, environment, interleave, run
from benchmarks.table import Row, compared
from benchmarks.trees import log

#: At least 1.5 times as fast.
TARGET = 1 / 1.5
_MIB = 1 << 20
#: Sizes of layers in MiB, as a build of an application has them: few are large, many are small.
_LAYERS = (220, 130, 90, 60, 40, *(20,) * 8, *(5,) * 16, *(1,) * 24)
_OCI = "application/vnd.oci.image."


def _pieces(size: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    while size > 0:
        yield rng.randbytes(min(size, _MIB))
        size -= _MIB


def _blob(blobs: Path, pieces: Iterator[bytes], media_type: str) -> dict[str, object]:
    digest, size, temporary = hashlib.sha256(), 0, blobs / "new"
    with open(temporary, "wb") as file:
        for piece in pieces:
            digest.update(piece)
            size += file.write(piece)
    temporary.rename(blobs / digest.hexdigest())
    return {"mediaType": _OCI + media_type, "digest": f"sha256:{digest.hexdigest()}", "size": size}


def _make(path: Path, scale: float) -> list[str]:
    """Make a layout with one image; return the paths of its blobs."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = [
        _blob(blobs, _pieces(max(1, int(mib * scale * _MIB)), number), "layer.v1.tar+gzip")
        for number, mib in enumerate(_LAYERS)
    ]
    config = _blob(blobs, iter([b"{}"]), "config.v1+json")
    document = {"schemaVersion": 2, "config": config, "layers": layers}
    manifest = _blob(blobs, iter([json.dumps(document).encode()]), "manifest.v1+json")
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    return sorted(str(blob) for blob in blobs.iterdir())


def measure(
    workdir: Path, rounds: int, scale: float
) -> tuple[list[Row], dict[tuple[str, str], list[Series]]]:
    """The row, and the runs by (command, tree)."""
    total = int(sum(_LAYERS) * scale * _MIB)
    need(workdir, total)
    log("making the layout")
    layout = workdir / "layout"
    blobs = _make(layout, scale)
    log("oci verify against sha256sum")

    def check(done: Run) -> None:
        if done.report.get("ok") is not True or done.report.get("blobs") != len(blobs):
            raise BenchmarkError(f"not all of {len(blobs)} blobs were verified: {dict(done.report)}")

    argv = [sys.executable, "-m", "cachekit", "oci", "verify", str(layout), "--json"]
    mine, other = interleave(
        [
            Subject("oci verify", lambda: run(argv, env=environment(f"{workdir}/env")), check=check),
            Subject("sha256sum", lambda: run(["sha256sum", *blobs])),
        ],
        rounds,
    )
    tree = f"layout of {total / 1e6:.0f} MB"
    return [compared("oci verify", tree, mine, other, TARGET)], {("oci verify", tree): [mine, other]}
