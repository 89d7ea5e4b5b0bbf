"""The tar that goes to an engine: decoded ahead, but not far, and not any more once nobody takes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import zstandard

from cachekit.archive.format import FRAME_SIZE
from cachekit.archive.read import Archive, decode_frame
from cachekit.images import outgoing
from cachekit.images.outgoing import tar_of
from tests.images.test_stream import Item, members, opened, write

FRAMES = 12


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """An entry of a dozen frames; the last one ends the tar."""
    path = tmp_path_factory.mktemp("outgoing") / "entry"
    write(path, members([Item(b"large", bytes((FRAMES - 1) * FRAME_SIZE))]))
    with opened(path) as found:
        assert found.index.frame_count == FRAMES
        yield found


@pytest.mark.parametrize("threads", [1, 3])
def test_the_frames_in_order(archive: Archive, threads: int) -> None:
    """What comes is the tar of the entry, a frame at a time."""
    with zstandard.ZstdDecompressor().stream_reader(
        b"".join(bytes(archive.frame(number)) for number in range(FRAMES)), read_across_frames=True
    ) as raw:
        whole = raw.read()
    pieces = list(tar_of(archive, threads))
    assert len(pieces) == FRAMES
    assert b"".join(pieces) == whole


@pytest.mark.parametrize("threads", [1, 3])
def test_not_far_ahead(archive: Archive, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that takes nothing has two frames decoded for it, and one for each thread; they are held, not more."""
    begun: list[int] = []
    ready = threading.Semaphore(0)

    def decode(archive: Archive, number: int, here: threading.local) -> bytes:
        begun.append(number)
        data = decode_frame(archive, number, here)
        ready.release()
        return data

    monkeypatch.setattr(outgoing, "decode_frame", decode)
    tar = tar_of(archive, threads)
    for taken in range(1, 4):
        next(tar)
        for _ in range(threads + 3 if taken == 1 else 1):
            assert ready.acquire(timeout=20)
        assert not ready.acquire(timeout=0.1)
        assert sorted(begun) == list(range(taken + threads + 2))
    tar.close()  # type: ignore[attr-defined]


def test_nothing_more_is_decoded_for_nobody(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the connection breaks, frames that no thread has begun are left, and no thread outlives it."""
    begun: list[int] = []
    go_on = threading.Event()

    def decode(archive: Archive, number: int, here: threading.local) -> bytes:
        begun.append(number)
        assert number == 0 or go_on.wait(20)
        return decode_frame(archive, number, here)

    monkeypatch.setattr(outgoing, "decode_frame", decode)
    before = threading.active_count()
    tar = tar_of(archive, 1)
    next(tar)
    timer = threading.Timer(0.3, go_on.set)
    timer.start()
    tar.close()  # type: ignore[attr-defined]
    timer.join()
    assert begun in ([0], [0, 1])
    assert threading.active_count() == before
