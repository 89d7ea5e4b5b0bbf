"""A few forked worker processes that compress or extract while the parent keeps order.

Forked, not spawned and not threads: a fork has the parent's plan, index and open descriptors without any pickling, and
the per-file work (open, read, stat) is Python code that one interpreter lock would serialise. The parent never blocks
on a worker's pipe, so the two cannot wait for each other.

Messages are built-in values (marshal). A worker ends when its pipe does: when the parent is killed, no worker lives on.
"""

from __future__ import annotations

import contextlib
import gc
import marshal
import os
import selectors
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from cachekit.errors import CachekitError

__all__ = ["Handler", "InlinePool", "Pool", "WorkerDied", "open_pool", "pack_message", "worker_count"]

_LENGTH = struct.Struct("<IB")
_REPLY, _ERROR = 0, 1
_STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Handler(Protocol):
    """What runs in a worker: gets one message, gives any number of replies."""

    def handle(self, message: Any) -> Iterable[Any]:
        """Work on one message. An exception ends the whole pool and is raised in the parent."""
        ...


class WorkerDied(RuntimeError):
    """A worker ended without saying why (killed, out of memory)."""


class Pool(Protocol):
    """Workers numbered from 0. Messages to one worker are handled in the order in which they were sent."""

    count: int

    def send(self, worker: int, message: Any) -> None:
        """Queue a message for a worker; never blocks."""
        ...

    def send_packed(self, worker: int, message: bytes) -> None:
        """The same for a message that ``pack_message`` has made."""
        ...

    def poll(self, *, wait: bool) -> list[tuple[int, Any]]:
        """Return the replies that are there as (worker, reply); with ``wait``, at least one.

        Raises what a worker raised, or WorkerDied.
        """
        ...

    def close(self) -> None:
        """End all workers; idempotent. Work in progress is lost."""
        ...


def pack_message(message: Any) -> bytes:
    """Return a message as bytes: a queue of these takes a quarter of the memory of the values."""
    return marshal.dumps(message)


def worker_count() -> int:
    """Return CACHEKIT_WORKERS, else the number of usable processors, 1 to 4."""
    with contextlib.suppress(ValueError, KeyError):
        return max(1, min(64, int(os.environ["CACHEKIT_WORKERS"])))
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, min(4, len(affinity(0)) if affinity else os.cpu_count() or 1))


def open_pool(make_handler: Callable[[], Handler], count: int) -> Pool:
    """Return a pool of ``count`` forked workers; 0 means to work in this process (for tiny jobs: a fork costs 3 ms)."""
    return ForkPool(make_handler, count) if count > 0 else InlinePool(make_handler)


class InlinePool:
    """The same interface without processes: messages are handled when replies are asked for."""

    def __init__(self, make_handler: Callable[[], Handler]) -> None:
        self.count = 1
        self._handler = make_handler()
        self._queue: deque[Any] = deque()

    def send(self, worker: int, message: Any) -> None:
        self._queue.append(message)

    def send_packed(self, worker: int, message: bytes) -> None:
        self._queue.append(marshal.loads(message))  # noqa: S302 - made by pack_message in this process

    def poll(self, *, wait: bool) -> list[tuple[int, Any]]:
        if not self._queue:
            return []
        return [(0, reply) for reply in self._handler.handle(self._queue.popleft())]

    def close(self) -> None:
        self._queue.clear()


class _Peer:
    """The parent's end of one worker."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.incoming = bytearray()
        self.outgoing: deque[memoryview] = deque()


class ForkPool:
    """See the module."""

    def __init__(self, make_handler: Callable[[], Handler], count: int) -> None:
        self.count = count
        self._peers: list[_Peer] = []
        self._selector = selectors.DefaultSelector()
        # Objects that exist now are never collected in a child, so their pages stay shared with the parent.
        gc.freeze()
        # A signal to the whole process group must not find a child that would still clean up as its parent does.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            for number in range(count):
                ours, theirs = socket.socketpair()
                try:
                    pid = os.fork()
                except OSError:
                    ours.close()
                    theirs.close()
                    raise
                if pid == 0:
                    ours.close()
                    for peer in self._peers:
                        peer.channel.close()
                    _serve(make_handler, theirs, mask)
                theirs.close()
                ours.setblocking(False)
                peer = _Peer(pid, ours)
                self._peers.append(peer)
                self._selector.register(ours, selectors.EVENT_READ, number)
        except BaseException:
            self.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def send(self, worker: int, message: Any) -> None:
        self.send_packed(worker, marshal.dumps(message))

    def send_packed(self, worker: int, message: bytes) -> None:
        peer = self._peers[worker]
        peer.outgoing.append(memoryview(_LENGTH.pack(len(message), _REPLY)))
        peer.outgoing.append(memoryview(message))
        self._flush(worker)

    def _flush(self, worker: int) -> None:
        peer = self._peers[worker]
        while peer.outgoing:
            try:
                sent = peer.channel.send(peer.outgoing[0])
            except BlockingIOError:
                break
            except (BrokenPipeError, ConnectionResetError):
                peer.outgoing.clear()  # its end is seen, and explained, when reading
                break
            if sent < len(peer.outgoing[0]):
                peer.outgoing[0] = peer.outgoing[0][sent:]
            else:
                peer.outgoing.popleft()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.outgoing else 0)
        self._selector.modify(peer.channel, events, worker)

    def poll(self, *, wait: bool) -> list[tuple[int, Any]]:
        replies: list[tuple[int, Any]] = []
        while True:
            for selected, mask in self._selector.select(None if wait and not replies else 0):
                worker: int = selected.data
                if mask & selectors.EVENT_WRITE:
                    self._flush(worker)
                if mask & selectors.EVENT_READ:
                    replies.extend((worker, reply) for reply in self._receive(self._peers[worker]))
            if replies or not wait:
                return replies

    def _receive(self, peer: _Peer) -> Iterable[Any]:
        try:
            data = peer.channel.recv(1 << 20)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            raise WorkerDied(self._obituary(peer))
        buffer = peer.incoming
        buffer += data
        while len(buffer) >= _LENGTH.size:
            length, kind = _LENGTH.unpack_from(buffer)
            if len(buffer) < _LENGTH.size + length:
                break
            body = bytes(buffer[_LENGTH.size : _LENGTH.size + length])
            del buffer[: _LENGTH.size + length]
            if kind == _ERROR:
                import pickle

                raise pickle.loads(body)  # noqa: S301 - from our own child, over a private socket pair
            yield marshal.loads(body)  # noqa: S302 - as above

    def _obituary(self, peer: _Peer) -> str:
        _, status = os.waitpid(peer.pid, 0)
        peer.pid = 0
        code = os.waitstatus_to_exitcode(status)
        return (
            f"a worker process was killed by signal {-code}"
            if code < 0
            else f"a worker process ended with {code}"
        )

    def close(self) -> None:
        for peer in self._peers:
            with contextlib.suppress(KeyError):
                self._selector.unregister(peer.channel)
            peer.channel.close()
            if peer.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(peer.pid, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(peer.pid, 0)
        self._peers.clear()
        self._selector.close()
        gc.unfreeze()


def _serve(
    make_handler: Callable[[], Handler], channel: socket.socket, mask: set[signal.Signals | int]
) -> None:
    """The worker's life; never returns. ``mask``: the signals that are blocked only for the fork are not in it."""
    code = 1
    try:
        # Control-C reaches the whole process group: the parent decides, and ends the workers by closing the pipe.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.disable()
        handler = make_handler()
        stream = channel.makefile("rb", buffering=1 << 16)
        while head := stream.read(_LENGTH.size):
            length, _ = _LENGTH.unpack(head)
            body = stream.read(length)
            if len(body) < length:
                break
            for reply in handler.handle(marshal.loads(body)):  # noqa: S302 - from our own parent
                data = marshal.dumps(reply)
                channel.sendall(_LENGTH.pack(len(data), _REPLY) + data)
        code = 0
    except (CachekitError, OSError, MemoryError) as error:
        with contextlib.suppress(OSError):
            import pickle

            data = pickle.dumps(error)
            channel.sendall(_LENGTH.pack(len(data), _ERROR) + data)
            channel.shutdown(socket.SHUT_WR)
    except BaseException as error:  # noqa: BLE001 - the parent must learn of it, whatever it is
        with contextlib.suppress(Exception):
            import pickle

            data = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
            channel.sendall(_LENGTH.pack(len(data), _ERROR) + data)
    finally:
        os._exit(code)
