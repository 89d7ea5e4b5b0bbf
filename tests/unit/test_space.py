"""The question before every first byte: does it fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.cache.space import require
from cachekit.errors import NoSpace
from cachekit.system.space import FreeSpace

SIZES = st.integers(0, 1 << 50)


@given(have=SIZES, need=SIZES, kept=SIZES)
def test_bytes(have: int, need: int, kept: int) -> None:
    """It is refused exactly if need and what is kept free do not fit, and the three numbers add up."""
    free = FreeSpace(have, None, 4096, 1)
    if need + kept <= have:
        require(free, need, 10**9, min_free=kept, what="save", path="/x")
        return
    with pytest.raises(NoSpace) as caught:
        require(free, need, 0, min_free=kept, what="save", path="/x")
    fields = caught.value.fields
    assert (fields["need"], fields["have"], fields["unit"]) == (need, have, "bytes")
    assert fields["short_by"] == need + kept - have
    assert fields.get("min_free", 0) == kept
    assert caught.value.path == "/x"


@given(have=st.integers(0, 10**9), need=st.integers(0, 10**9))
def test_inodes(have: int, need: int) -> None:
    """Inodes are refused in the same way, where the filesystem counts them."""
    free = FreeSpace(1 << 40, have, 4096, 1)
    if need <= have:
        require(free, 0, need, min_free=0, what="restore", path="/x")
        return
    with pytest.raises(NoSpace) as caught:
        require(free, 0, need, min_free=0, what="restore", path="/x")
    assert caught.value.fields["unit"] == "inodes"
    assert caught.value.fields["short_by"] == need - have
    assert "inodes" in caught.value.message


def test_message() -> None:
    """The message reads: what for, need, what is kept, have, short by."""
    with pytest.raises(NoSpace) as caught:
        require(FreeSpace(1 << 20, None, 4096, 1), 3 << 20, 0, min_free=1 << 20, what="save", path="/x")
    assert caught.value.message == (
        "not enough space to save: need 3.0 MiB and keep 1.0 MiB free, have 1.0 MiB, short by 3.0 MiB"
    )
