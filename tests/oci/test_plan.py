"""The plan of `oci gc`, without a disk."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from cachekit.oci.graph import walk
from cachekit.oci.layout import BlobFile
from cachekit.oci.plan import plan_collection

_NAMES = st.sampled_from([f"sha256:{number:064x}" for number in range(1, 13)])


@given(
    manifests=st.lists(st.lists(_NAMES, max_size=4), max_size=5),
    orphans=st.dictionaries(_NAMES, st.integers(0, 100), max_size=12),
    keep=st.none() | st.integers(1, 4),
    most=st.none() | st.integers(0, 500),
    grace=st.integers(0, 50),
)
def test_the_plan(
    manifests: list[list[str]],
    orphans: dict[str, int],
    keep: int | None,
    most: int | None,
    grace: int,
) -> None:
    """Whatever is there: nothing that a remaining reference needs goes, all else that is old goes, one stays."""
    documents = {
        f"sha256:{100 + number:064x}": json.dumps(
            {
                "config": {"digest": "sha256:" + "f" * 64, "size": 1},
                "layers": [{"digest": one, "size": 10} for one in layers],
            }
        ).encode()
        for number, layers in enumerate(manifests)
    }
    media = "application/vnd.oci.image.manifest.v1+json"
    index = {"manifests": [{"digest": d, "size": len(b), "mediaType": media} for d, b in documents.items()]}
    graph = walk(json.dumps(index).encode(), lambda digest, size: documents.get(digest))
    files = {digest: BlobFile(digest, 10, 1000 - age, 1) for digest, age in orphans.items()}
    files |= {digest: BlobFile(digest, 10, 0, 1) for blob in manifests for digest in blob}
    files |= {digest: BlobFile(digest, len(data), 0, 1) for digest, data in documents.items()}
    plan = plan_collection(graph, files, [], now_ns=1000, grace_ns=grace, keep_tags=keep, max_size=most)
    alive = [number for number in range(len(manifests)) if number not in plan.dropped]
    assert plan.dropped == list(range(len(plan.dropped)))
    if manifests:
        assert alive
    needed = {digest for number in alive for digest in manifests[number]}
    needed |= {digest for number, digest in enumerate(documents) if number in alive}
    removed = {line.name for line in plan.removed}
    assert not removed & needed
    left = set(files) - removed
    for digest in left - needed:
        assert digest not in graph.blobs
        assert 1000 - files[digest].mtime_ns < grace
    if keep is not None:
        assert len(alive) <= keep
    assert plan.remaining == sum(files[digest].size for digest in needed if digest in files)
    if most is not None and not plan.short_by:
        assert plan.remaining <= most
    if most is not None and plan.short_by:
        assert len(alive) <= 1
