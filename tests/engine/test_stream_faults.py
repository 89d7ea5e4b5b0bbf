"""Exports that break off, loads that are answered early: what looks like an end and is none."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from cachekit.engine import streams, transport
from cachekit.engine.address import Address
from cachekit.engine.outcome import EngineRefused, EngineUnavailable
from tests.engine.fake_engine import FakeEngine

DATA = bytes(range(256)) * 2000


def exporting(
    fake: FakeEngine, answer: Callable[[Any], None], *, stall: float = 5, piece: int = 50_000
) -> bytes:
    """Read an export that is answered so, and the last words, in pieces of at most `piece` bytes."""
    fake.answers["GET /images/get"] = answer
    buffer = memoryview(bytearray(piece))
    found = bytearray()
    with fake.connect().export(["a:1"], stall=stall) as stream:
        while count := stream.readinto(buffer):
            found += buffer[:count]
        found += stream.last_words.encode()
    return bytes(found)


def chunked(handler: Any, data: bytes = DATA, *, end: bool = True) -> None:
    """Answer with chunks, and with the last one that ends them unless `end` is False."""
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for offset in range(0, len(data), 7000):
        piece = data[offset : offset + 7000]
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    if end:
        handler.wfile.write(b"0\r\n\r\n")
    handler.close_connection = True


def sized(handler: Any, length: int) -> None:
    """Answer with a length, and fewer bytes if it is more than there are."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(DATA[:length])
    handler.close_connection = True


def test_whole_exports(fake: FakeEngine) -> None:
    """In chunks or with a length, what an engine sends comes out."""
    assert exporting(fake, chunked) == DATA
    assert exporting(fake, lambda handler: sized(handler, len(DATA))) == DATA


def test_an_export_that_is_refused(fake: FakeEngine) -> None:
    """An engine that has not what is asked for says so by its status: no byte of it is taken for a tar."""
    fake.answers["GET /images/get"] = (404, {"message": "no such image"})
    with pytest.raises(EngineRefused, match="no such image"), fake.connect().export(["a:1"]):
        pass


def test_nothing_is_left_open(fake: FakeEngine) -> None:
    """An export or a load that is left in the middle, or refused, leaves no descriptor."""
    fake.answers["GET /images/get"] = lambda handler: sized(handler, len(DATA))
    fake.answers["POST /images/load"] = lambda handler: handler.rfile.read()
    engine = fake.connect()
    before = len(ours())
    with engine.export(["a:1"]) as stream:
        stream.readinto(memoryview(bytearray(10)))
        assert stream.readinto(memoryview(bytearray())) == 0
        assert len(ours()) > before
    assert len(ours()) == before
    with engine.load() as load:
        load.write(b"")
        load.write(b"x")
    assert len(ours()) == before


def ours() -> list[str]:
    """Return the sockets of this process that are connected to nothing of its own name: clients."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            name = socket.socket(fileno=os.dup(int(fd)))
        except OSError:
            continue
        with name:
            if name.family == socket.AF_UNIX and name.type == socket.SOCK_STREAM and not name.getsockname():
                found.append(fd)
    return found


@pytest.mark.parametrize("stall", [0.3, 20])
def test_the_time_limit_is_for_each_wait(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, stall: float
) -> None:
    """A connection is made in at most ten seconds; each wait after that may take as long as it was told."""
    made: list[tuple[float, socket.socket]] = []

    def connected(address: Address, limit: float) -> socket.socket:
        made.append((limit, transport.connected(address, limit)))
        return made[-1][1]

    monkeypatch.setattr(streams, "connected", connected)
    fake.answers["GET /images/get"] = lambda handler: sized(handler, len(DATA))
    engine = fake.connect()
    with engine.export(["a:1"], stall=stall), engine.load(stall=stall):
        assert [(limit, raw.gettimeout()) for limit, raw in made] == [(min(stall, 10), stall)] * 2


def test_a_refusal_that_does_not_end(fake: FakeEngine) -> None:
    """What an engine says is wrong is read up to a bound, so that it cannot fill the memory; then it is hung up."""

    def endless(handler: Any) -> None:
        handler.send_response(500)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        for _ in range(512):
            handler.wfile.write(bytes(1 << 16))

    fake.answers["GET /images/get"] = endless
    export = fake.connect().export(["a:1"])
    before = len(ours())
    with pytest.raises(EngineRefused, match="status 500"), export:
        pass
    assert len(ours()) == before


def test_chunks_without_their_end(fake: FakeEngine) -> None:
    """Without the last chunk an export is broken off, though all of it may be there."""
    with pytest.raises(EngineUnavailable, match="broke off"):
        exporting(fake, lambda handler: chunked(handler, end=False))


def test_a_length_that_is_not_kept(fake: FakeEngine) -> None:
    """Fewer bytes than announced are an export that was broken off."""
    with pytest.raises(EngineUnavailable, match="broke off"):
        exporting(fake, lambda handler: sized(handler, len(DATA) + 1))


def test_a_silent_engine(fake: FakeEngine) -> None:
    """An engine that says nothing for too long is given up, before the first byte and after it."""

    def silent(handler: Any) -> None:
        chunked(handler, end=False)
        time.sleep(3)

    with pytest.raises(EngineUnavailable, match="silent"):
        exporting(fake, lambda handler: time.sleep(3), stall=0.3)
    with pytest.raises(EngineUnavailable, match="silent"):
        exporting(fake, silent, stall=0.3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (b'{"error":"no space left on device"}\r\n', "no space left on device"),
        (b'{"errorDetail":{"message":"it broke"},"error":"it broke"}', "it broke"),
        (b'{"errorDetail":{"message":"only here"}}', "only here"),
        (b'{"errorDetail":"text"}', ""),
        (b'{"error":5}', ""),
        (b'{"error', ""),
        (b"", ""),
        (b'{"error":' + b"[" * 3000, ""),
        (b'{"error":"it broke"}' + bytes(900), "it broke"),
        (b'{"error":"it broke"}' + bytes(4096), ""),
        (b'{"error":"a content"} {"error":"it broke"}', "it broke"),
        (b'{"error":"it broke","errorDetail":{"message":"less to the point"}}', "it broke"),
        (b'{"error":"it\\n broke"}', "it broke"),
        (json.dumps({"error": "x" * 600}).encode(), "x" * 500),
        (b"1" * 4096, ""),
    ],
)
@pytest.mark.parametrize("piece", [100, 50_000])
def test_the_last_words(fake: FakeEngine, words: bytes, told: str, piece: int) -> None:
    """What an engine complains of behind the data is told; whatever else is there, or lies farther back, is not."""
    data = DATA[: 10 * piece] + words
    found = exporting(fake, lambda handler: chunked(handler, data), piece=piece)
    assert found[len(data) :] == told.encode()


def loading(fake: FakeEngine, answer: Any, data: bytes = DATA, *, stall: float = 5) -> list[str]:
    """Load, answered so."""
    fake.answers["POST /images/load"] = answer
    with fake.connect().load(stall=stall) as stream:
        for offset in range(0, len(data), 10_000):
            stream.write(data[offset : offset + 10_000])
        return stream.finish()


def body(handler: Any) -> bytes:
    """Read the chunks of a request."""
    found = b""
    while size := int(handler.rfile.readline(), 16):
        found += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return found


def answered(*lines: object, status: int = 200, read: bool = True) -> Callable[[Any], None]:
    """Answer a load with lines of JSON or text, after it was read."""

    def answer(handler: Any) -> None:
        if read:
            assert body(handler) == DATA
        data = b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\r\n" for line in lines
        )
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = True

    return answer


def test_a_load(fake: FakeEngine) -> None:
    """What the engine says is told, line by line, JSON or not."""
    said = loading(fake, answered({"stream": "Loaded image: a:1\n"}, b"plain"))
    assert said == ["Loaded image: a:1", "plain"]


@pytest.mark.parametrize(
    "answer",
    [
        answered({"error": "it is full"}),
        answered({"stream": "Loaded image: a:1\n"}, {"errorDetail": {}, "error": "it is full"}),
        answered({"stream": "Loaded image: a:1\n"}, {"stream": "Error unpacking image a:1: it is full\n"}),
        answered(b"Error: it is full"),
        answered({"message": "it is full"}, status=500),
        answered({"message": "it is full"}, status=400, read=False),
    ],
)
def test_every_way_to_fail(fake: FakeEngine, answer: Callable[[Any], None]) -> None:
    """An error in the status, in a line or in words behind a success is a refusal with its own sentence."""
    with pytest.raises(EngineRefused, match="it is full"):
        loading(fake, answer)


def test_an_early_answer(fake: FakeEngine) -> None:
    """An engine that answers and hangs up in the middle of a large image is heard all the same."""
    with pytest.raises(EngineRefused, match="it is full"):
        loading(fake, answered({"error": "it is full"}, read=False), DATA * 200)


def test_an_engine_that_goes_away(fake: FakeEngine) -> None:
    """An engine that hangs up without a word, or says nothing for too long, has not loaded."""

    def gone(handler: Any) -> None:
        handler.close_connection = True

    with pytest.raises(EngineUnavailable, match="hung up"):
        loading(fake, gone, DATA * 200)

    def silent(handler: Any) -> None:
        body(handler)
        time.sleep(3)

    with pytest.raises(EngineUnavailable, match="silent"):
        loading(fake, silent, stall=0.3)


def test_leaving_in_the_middle(fake: FakeEngine) -> None:
    """A load that is left before its end has no last chunk: the engine sees a request that broke off."""
    seen = []

    def watch(handler: Any) -> None:
        seen.append(handler.rfile.read())
        handler.close_connection = True

    fake.answers["POST /images/load"] = watch
    with fake.connect().load() as stream:
        stream.write(DATA)
    deadline = time.monotonic() + 10
    while not seen and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen[0].endswith(DATA[-100:] + b"\r\n")
    assert not seen[0].endswith(b"0\r\n\r\n")
