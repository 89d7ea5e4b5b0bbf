"""Images out of an engine and into it, as a tar that is streamed over a connection; nothing is kept on disk.

Time limits are for stalls: the whole may take as long as it takes. An engine is silent while it copies an image to its
temporary directory (the classic image store, before the first byte) and while it unpacks one (after the last).
"""

from __future__ import annotations

import http.client
import io
import json
import socket
from collections.abc import Iterator
from typing import Self, cast

from cachekit.engine.address import Address
from cachekit.engine.outcome import EngineRefused, EngineUnavailable, complaint
from cachekit.engine.transport import connected

__all__ = ["STALL_SECONDS", "Export", "Load"]

#: How long an engine may be silent. Copying 40 GB of image at 100 MB/s takes less.
STALL_SECONDS = 600.0
#: The longest answer to a load that is read: a line or two for each image.
_LONGEST_ANSWER = 16 << 20


class _Connection(http.client.HTTPConnection):
    """HTTP on which every single wait ends after ``stall`` seconds."""

    def __init__(self, address: Address, stall: float) -> None:
        super().__init__("localhost")
        self._address, self._stall = address, stall

    def connect(self) -> None:
        self.sock = connected(self._address, min(self._stall, 10.0))
        self.sock.settimeout(self._stall)


class Export:
    """The tar of some images while it comes. Use as a context manager; ``readinto`` until it gives 0.

    0 means that the answer ended as HTTP ends. An engine that fails after its first byte ends it like that, too, with
    its complaint as the last bytes: whoever reads the tar finds no end of it, and ``last_words`` tells what was said.
    """

    def __init__(self, address: Address, target: str, stall: float = STALL_SECONDS) -> None:
        self._connection = _Connection(address, stall)
        self._address, self._target, self._stall = address, target, stall
        self._tail = b""

    def __enter__(self) -> Self:
        """Ask, and wait for the answer to begin. Raises EngineRefused, EngineUnavailable."""
        try:
            with _Trouble(self._address, self._stall):
                self._connection.request("GET", self._target, headers={"Connection": "close"})
                self._answer = self._connection.getresponse()
                if (status := self._answer.status) != 200:
                    with self._answer:  # not the connection's any more, which was told to close
                        raise EngineRefused(status, complaint(status, self._answer.read(1 << 20)))
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()
        self._connection.close()

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer's beginning; 0 at the end. Raises EngineUnavailable if the answer breaks off or stalls."""
        with _Trouble(self._address, self._stall):
            count = self._answer.readinto(buffer)
            if (
                not count and len(buffer) and self._answer.length
            ):  # http.client takes an early end for the end
                raise EngineUnavailable("no-answer", "the engine broke off in the middle of the image")
        self._tail = (self._tail + bytes(buffer[max(0, count - 4096) : count]))[-4096:]
        return count

    @property
    def last_words(self) -> str:
        """The complaint that an engine put behind what it had sent; empty if there is none."""
        _, brace, text = self._tail.rpartition(b'{"error')
        try:
            said = json.loads(brace + text.strip(b"\0\r\n ")) if brace else {}
        except (ValueError, RecursionError):
            return ""
        message, detail = said.get("error"), said.get("errorDetail")
        if not isinstance(message, str) and isinstance(detail, dict):
            message = detail.get("message")
        return " ".join(message.split())[:500] if isinstance(message, str) else ""


class Load:
    """A tar of images on its way into an engine. Use as a context manager: ``write`` it, then ``finish``.

    Leaving the block without ``finish`` breaks the connection in the middle of the body, without HTTP's mark of its
    end: an engine takes a tar whose end is missing, but not a request whose end is.
    """

    def __init__(self, address: Address, target: str, stall: float = STALL_SECONDS) -> None:
        self._address, self._target, self._stall = address, target, stall

    def __enter__(self) -> Self:
        """Connect and announce a tar. Raises EngineUnavailable."""
        self._socket = connected(self._address, min(self._stall, 10.0))
        self._socket.settimeout(self._stall)
        try:
            with _Trouble(self._address, self._stall):
                self._socket.sendall(
                    f"POST {self._target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                    "Content-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n".encode("ascii")
                )
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def write(self, data: bytes) -> None:
        """Send more of the tar. Raises EngineRefused if the engine has answered already, else EngineUnavailable."""
        if not data:
            return
        try:
            self._socket.sendall(b"%x\r\n" % len(data))
            self._socket.sendall(data)
            self._socket.sendall(b"\r\n")
        except TimeoutError:
            raise EngineUnavailable("no-answer", f"the engine took nothing for {self._stall:g} s") from None
        except OSError:
            # It has seen enough, or is gone: what it said before it hung up is still there to be read.
            self._raise_answer()

    def _raise_answer(self) -> None:
        status, lines = self._read()
        if status != 200:
            raise EngineRefused(status, complaint(status, b"\n".join(lines)))
        raise EngineRefused(
            status, _failure(lines) or "the engine stopped reading in the middle of the image"
        )

    def finish(self) -> list[str]:
        """End the tar in order and return what the engine said, line by line, when it is done with it.

        Raises EngineRefused if it says that something failed, be it by its status or, with success as status, by words.
        """
        with _Trouble(self._address, self._stall):
            try:
                self._socket.sendall(b"0\r\n\r\n")
            except TimeoutError:
                raise  # what it says after that is not said of a whole tar
            except OSError:
                pass  # as in write; an engine may answer at the tar's end already
        status, lines = self._read()
        if status != 200:
            raise EngineRefused(status, complaint(status, b"\n".join(lines)))
        if failure := _failure(lines):
            raise EngineRefused(status, failure)
        return [text.strip() for _, text in _said(lines) if text.strip()]

    def _read(self) -> tuple[int, list[bytes]]:
        answer = http.client.HTTPResponse(cast("socket.socket", _Readable(self._socket)), method="POST")
        with _Trouble(self._address, self._stall):
            answer.begin()
            body = answer.read(_LONGEST_ANSWER + 1)
        # A failure may be told in what is not there; http.client takes an early end for the end.
        if answer.status == 200 and (answer.length or len(body) > _LONGEST_ANSWER):
            raise EngineUnavailable("no-answer", "the engine's answer breaks off, or does not end")
        return answer.status, body.splitlines()


class _Readable:
    """As much of a socket as HTTPResponse asks for; it survives the reset that comes before what was said."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._raw), 1 << 16)


class _Reader(io.RawIOBase):
    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        try:
            return self._raw.recv_into(buffer)
        except (
            ConnectionResetError
        ):  # said once when the other side left bytes of ours unread; then come its own
            return self._raw.recv_into(buffer)


class _Trouble:
    """Turn what http.client and sockets raise into EngineUnavailable."""

    def __init__(self, address: Address, stall: float) -> None:
        self._address, self._stall = address, stall

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, TimeoutError):
            raise EngineUnavailable("no-answer", f"the engine was silent for {self._stall:g} s") from None
        if isinstance(error, http.client.IncompleteRead):
            raise EngineUnavailable("no-answer", "the engine broke off in the middle of the image") from None
        if isinstance(error, http.client.RemoteDisconnected):
            raise EngineUnavailable("no-answer", "the engine hung up without an answer") from None
        if isinstance(error, http.client.HTTPException):
            raise EngineUnavailable(
                "no-answer", f"what answers at {self._address} is no engine ({type(error).__name__})"
            ) from None
        if isinstance(error, OSError):
            raise EngineUnavailable(
                "no-answer", f"the connection to the engine broke ({error.strerror or error})"
            ) from None


def _said(lines: list[bytes]) -> Iterator[tuple[str, str]]:
    """Yield (error, text) of each line: engines write JSON objects, some of them plain text in between."""
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = {"stream": line.decode("utf-8", "replace")}
        if isinstance(value, dict):
            detail, text = value.get("errorDetail"), value.get("stream")
            error = value.get("error") or (detail.get("message") if isinstance(detail, dict) else None)
            yield error if isinstance(error, str) else "", text if isinstance(text, str) else ""


def _failure(lines: list[bytes]) -> str:
    """Return the first complaint among what was said; empty if there is none."""
    for error, text in _said(lines):
        if error:
            return " ".join(error.split())[:500]
        # Docker 28 says "Loaded image", then this, and calls it a success.
        if text.strip().startswith("Error"):
            return " ".join(text.split())[:500]
    return ""
