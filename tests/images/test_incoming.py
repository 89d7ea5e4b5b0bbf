"""What an engine's archive claims of itself, and when an engine's image is the one that was saved."""

from __future__ import annotations

import io

import pytest

from cachekit.images.incoming import is_same, members_of
from tests.support.images import Part, tar_of_parts

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("part", "claim"),
    [
        (Part(f"blobs/sha256/{HEX}", b"x"), f"sha256:{HEX}"),
        (Part(f"blobs/sha256/{HEX}"), f"sha256:{HEX}"),
        (Part("blobs/sha256/" + "\u00e4" * 32, b"x"), "sha256:" + "\ufffd" * 64),
        (Part(f"blobs/sha256/{HEX}", directory=True), ""),
        (Part(f"blobs/sha256/{HEX}", link="../x"), ""),
        (Part(f"blobs/sha256/{HEX[1:]}", b"x"), ""),
        (Part(f"blobs/sha256/{HEX}0", b"x"), ""),
        (Part(f"Blobs/sha256/{HEX}", b"x"), ""),
        (Part("blobs/sha256", directory=True), ""),
        (Part("x" * (len("blobs/sha256/") + 64), b"x"), ""),
    ],
)
def test_what_a_name_claims(part: Part, claim: str) -> None:
    """A file that lies where a blob does claims to be it; nothing else does."""
    (member,) = members_of(io.BytesIO(tar_of_parts([part])))
    assert (member.name.decode(), member.claim, member.size) == (part.name, claim, len(part.content))


@pytest.mark.parametrize(
    ("ids", "diff_ids", "engine_id", "engine_diff_ids", "same"),
    [
        (["a"], ["1"], "a", ["1"], True),
        (["a", "b"], ["1"], "b", ["1", "2"], True),
        (["a"], ["1", "2"], "c", ["1", "2"], True),
        (["a"], ["1", "2"], "c", ["2", "1"], False),
        (["a"], ["1", "2"], "c", ["1"], False),
        (["a"], [], "a", [], True),
        (["a"], [], "c", [], False),
    ],
)
def test_the_same_image(
    ids: list[str], diff_ids: list[str], engine_id: str, engine_diff_ids: list[str], *, same: bool
) -> None:
    """One of its ids makes it the same, or all its layers in order; no layers on either side prove nothing."""
    assert is_same(ids, diff_ids, engine_id, engine_diff_ids) is same
