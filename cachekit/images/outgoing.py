"""An entry's frames as the tar that they hold: each checked again, decoded from that very buffer, and handed on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import local

from cachekit.archive.read import Archive, decode_frame

__all__ = ["tar_of"]

#: Frames that are decoded before they are wanted, besides one a thread.
_AHEAD = 2


def tar_of(archive: Archive, threads: int) -> Iterator[bytes]:
    """Yield the tar of an entry, a frame at a time; threads check and decode ahead. Raises Damaged, Unreadable."""
    here = local()

    def decoded(frame: int) -> bytes:
        return decode_frame(archive, frame, here)

    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[Future[bytes]] = deque()
        try:
            for frame in range(archive.index.frame_count):
                waiting.append(pool.submit(decoded, frame))
                if len(waiting) > threads + _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
