"""Loads over a plain pair of sockets: an engine that answers early, hangs up, takes nothing, or says odd things."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from cachekit.engine import streams
from cachekit.engine.address import Address
from cachekit.engine.outcome import EngineRefused, EngineUnavailable
from cachekit.engine.streams import Export, Load

PLACE = Address("/run/there.sock")
LOADED = {"stream": "Loaded image: a:1\n"}
FULL = {"error": "it is full"}


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of the connection that is made: cachekit's and the engine's."""
    ours, engines = socket.socketpair()
    monkeypatch.setattr(streams, "connected", lambda path, limit: ours)
    with ours, engines:
        yield ours, engines


@pytest.fixture
def engine(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    """The engine's end."""
    return pair[1]


def load(stall: float = 5) -> Load:
    """Return a load over the pair."""
    return Load(PLACE, "/images/load", stall)


def answer(*lines: object, status: int = 200, length: int | None = None) -> bytes:
    """Return an answer of lines, JSON or bytes; `length`: what it says that its length is."""
    body = b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\r\n" for one in lines)
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


def loaded(engine: socket.socket, answer: bytes) -> list[str]:
    """Load a tar of one byte, answered so; then the engine hangs up."""
    engine.sendall(answer)
    engine.shutdown(socket.SHUT_WR)
    with load() as tar:
        tar.write(b"x")
        return tar.finish()


def test_an_engine_that_is_gone_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    """A connection that breaks with the first bytes is told as that, and closed."""
    pair[1].close()
    with pytest.raises(EngineUnavailable, match="the connection to the engine broke"), load():
        pass
    assert pair[0].fileno() == -1


def test_an_export_whose_engine_is_gone_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    """The same with a question."""
    pair[1].close()
    with (
        pytest.raises(EngineUnavailable, match="the connection to the engine broke"),
        Export(PLACE, "/images/get", 5),
    ):
        pass
    assert pair[0].fileno() == -1


def test_an_empty_piece_is_no_end(engine: socket.socket) -> None:
    """A chunk without bytes would be the end of the tar, so none is sent."""
    engine.sendall(answer(LOADED))
    with load() as tar:
        for piece in (b"", b"x", b"", b"y" * 17, b""):
            tar.write(piece)
        tar.finish()
    head, _, sent = engine.recv(10_000, socket.MSG_WAITALL).partition(b"\r\n\r\n")
    assert head.endswith(b"\r\nTransfer-Encoding: chunked")
    assert sent == b"1\r\nx\r\n11\r\n" + b"y" * 17 + b"\r\n0\r\n\r\n"


def test_an_engine_that_takes_nothing(engine: socket.socket) -> None:
    """An engine that stops taking the tar is given up after the time limit."""
    with pytest.raises(EngineUnavailable, match=r"took nothing for 0\.2 s"), load(0.2) as tar:
        tar.write(bytes(32 << 20))


def test_an_engine_that_does_not_take_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    """Whatever it says: a tar whose end it has not taken is not loaded."""
    pair[1].sendall(answer(LOADED))
    with load(0.2) as tar:
        pair[0].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while pair[0].send(bytes(4096)):
                pass
        pair[0].settimeout(0.2)
        with pytest.raises(EngineUnavailable, match=r"silent for 0\.2 s"):
            tar.finish()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (answer(LOADED, FULL), "it is full"),
        (answer({"message": "it is full"}, status=500), "it is full"),
        (answer(LOADED), "stopped reading in the middle"),
    ],
)
def test_an_answer_in_the_middle(engine: socket.socket, said: bytes, told: str) -> None:
    """An engine that answers before it has the tar has not loaded it, whether or not it says why."""
    with load() as tar:
        engine.sendall(said)
        engine.close()
        with pytest.raises(EngineRefused, match=told):
            tar.write(b"x")


def test_an_answer_before_the_end(engine: socket.socket) -> None:
    """An engine may have answered and left when only the end of the request is to come: its word counts."""
    with load() as tar:
        tar.write(b"x")
        engine.sendall(answer(LOADED))
        engine.close()
        assert tar.finish() == ["Loaded image: a:1"]


def test_a_failure_before_the_end(engine: socket.socket) -> None:
    """So does its complaint."""
    with load() as tar:
        tar.write(b"x")
        engine.sendall(answer(LOADED, FULL))
        engine.close()
        with pytest.raises(EngineRefused, match="it is full"):
            tar.finish()


@pytest.mark.parametrize("when", ["while it is sent", "before the end", "after the end"])
def test_an_engine_that_hangs_up(engine: socket.socket, when: str) -> None:
    """Without a word nothing is loaded, and it is told as what it is."""
    with load() as tar:
        if when != "while it is sent":
            tar.write(b"x")
        if when == "after the end":
            engine.shutdown(socket.SHUT_WR)
        else:
            engine.close()
        with pytest.raises(EngineUnavailable, match="hung up without an answer"):
            tar.write(b"x") if when == "while it is sent" else tar.finish()


def test_what_is_no_engine(engine: socket.socket) -> None:
    """Something else that listens there is told by its place."""
    with pytest.raises(EngineUnavailable, match=f"what answers at {PLACE} is no engine"):
        loaded(engine, b"SSH-2.0-OpenSSH\r\n")


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "said",
    [answer(LOADED, length=100), answer(length=1), CHUNKED + b"5\r\n{}\r\n", CHUNKED + b"50\r\n{}"],
)
def test_an_answer_that_breaks_off(engine: socket.socket, said: bytes) -> None:
    """What is missing may be the failure: half an answer is none, however good it sounds."""
    with pytest.raises(EngineUnavailable, match=r"breaks off|broke off"):
        loaded(engine, said)


def test_a_refusal_that_breaks_off(engine: socket.socket) -> None:
    """A status that refuses needs no more words."""
    with pytest.raises(EngineRefused, match="it is full"):
        loaded(engine, answer({"message": "it is full"}, status=500, length=1000))


@pytest.mark.parametrize("said", [answer(b"plain", FULL), CHUNKED + b"7\r\nplain\r\n\r\n1\r\nx\r\n0\r\n\r\n"])
def test_an_answer_that_does_not_end(
    engine: socket.socket, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """An answer is read up to a bound, and one behind which more is said is not taken for a success."""
    monkeypatch.setattr(streams, "_LONGEST_ANSWER", len(b"plain\r\n"))
    with pytest.raises(EngineUnavailable, match="does not end"):
        loaded(engine, said)


def test_the_longest_answer(engine: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is just as long is taken."""
    monkeypatch.setattr(streams, "_LONGEST_ANSWER", len(b"plain\r\n"))
    assert loaded(engine, answer(b"plain")) == ["plain"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"plain", ["plain"]),
        (b"\xff plain", ["\ufffd plain"]),
        (b"[" * 3000, ["[" * 3000]),
        ({"stream": "  one\n"}, ["one"]),
        ({"stream": " \n"}, []),
        ({"stream": 5}, []),
        ({"stream": "No Error here"}, ["No Error here"]),
        ({"error": None, "errorDetail": "text", "stream": "one"}, ["one"]),
        ({"error": 5}, []),
        ({"errorDetail": {"message": ["x"]}}, []),
        (["error", "x"], []),
        (5, []),
        (b"", []),
    ],
)
def test_what_is_no_failure(engine: socket.socket, line: object, said: list[str]) -> None:
    """Words are told, and what is neither words nor a failure is passed over."""
    assert loaded(engine, answer(LOADED, line)) == ["Loaded image: a:1", *said]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (FULL, "it is full"),
        ({"errorDetail": {"message": "it is full"}}, "it is full"),
        ({"error": "it is\nfull", "errorDetail": {"message": "other"}}, "it is full"),
        ({"error": "x" * 600}, "x" * 500),
        ({"stream": " Error unpacking\nimage\n"}, "Error unpacking image"),
        (b"\t Error: it is full", "Error: it is full"),
        (b"Error" + b"x" * 600, "Error" + "x" * 495),
    ],
)
def test_what_is_a_failure(engine: socket.socket, line: object, told: str) -> None:
    """A failure is told in one line that is not too long, wherever it stands."""
    with pytest.raises(EngineRefused) as caught:
        loaded(engine, answer(LOADED, line, b"plain"))
    assert (caught.value.status, caught.value.message) == (200, told)
