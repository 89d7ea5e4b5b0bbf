"""HTTP with an engine, with one deadline for a whole exchange, however slowly the other side trickles."""

from __future__ import annotations

import http.client
import io
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable
from typing import cast

from cachekit.engine.address import Address
from cachekit.engine.outcome import Answer, EngineUnavailable

__all__ = ["connected", "exchange"]

#: An engine with 10,000 images lists them in about 10 MB; more than this is not a list that anybody needs.
_LARGEST_ANSWER = 64 << 20


def exchange(
    address: Address,
    method: str,
    target: str,
    *,
    timeout: float,
    body: bytes | Iterable[bytes] = b"",
    kind: str = "",
) -> Answer:
    """Send one request over a connection of its own and return the whole answer, all within ``timeout`` seconds.

    ``kind`` is the content type of ``body``. Raises EngineUnavailable.
    """
    deadline = time.monotonic() + timeout
    connection = _Connection(address, deadline)
    headers = {"Connection": "close"} | ({"Content-Type": kind} if kind else {})
    try:
        connection.request(method, target, body=body or None, headers=headers)
        response = connection.getresponse()
        pieces = []
        size = 0
        while piece := response.read(1 << 20):
            size += len(piece)
            if size > _LARGEST_ANSWER:
                raise EngineUnavailable("no-answer", f"the engine's answer is over {_LARGEST_ANSWER} bytes")
            pieces.append(piece)
        if response.length:  # reading in pieces, http.client takes an early end for the end
            raise EngineUnavailable("no-answer", "the engine's answer breaks off")
        return Answer(response.status, b"".join(pieces))
    except TimeoutError:
        raise EngineUnavailable("no-answer", f"the engine did not answer within {timeout:g} s") from None
    except http.client.IncompleteRead:
        raise EngineUnavailable("no-answer", "the engine's answer breaks off") from None
    except http.client.HTTPException as error:
        raise EngineUnavailable(
            "no-answer", f"what answers at {address} is no engine ({type(error).__name__})"
        ) from None
    except OSError as error:
        raise EngineUnavailable(
            "no-answer", f"the connection to the engine broke ({error.strerror or error})"
        ) from None
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP to an engine; whatever it waits for ends at ``deadline``."""

    def __init__(self, address: Address, deadline: float) -> None:
        super().__init__("localhost")
        self._address, self._deadline = address, deadline

    def connect(self) -> None:
        # http.client needs of a socket what _Socket has: sendall, makefile and close.
        self.sock = cast(
            "socket.socket", _Socket(connected(self._address, deadline=self._deadline), self._deadline)
        )


def connected(address: Address, timeout: float = 0.0, *, deadline: float | None = None) -> socket.socket:
    """Connect within ``timeout`` seconds or until ``deadline``, or raise EngineUnavailable saying why not."""
    if deadline is None:
        deadline = time.monotonic() + timeout
    return _to_port(address, deadline) if address.remote else _to_socket(address.path, deadline)


def _to_socket(path: str, deadline: float) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        while True:
            try:
                raw.settimeout(_left(deadline))
                raw.connect(path)
                return raw
            except BlockingIOError:  # so many wait already that the kernel takes no more
                time.sleep(min(0.05, _left(deadline)))
    except (FileNotFoundError, NotADirectoryError):
        reason = EngineUnavailable("no-engine", f"no engine: {path} does not exist")
    except PermissionError:
        reason = EngineUnavailable(
            "no-permission", f"no permission to use {path} (is the user in its group?)"
        )
    except ConnectionRefusedError:
        listens = "nobody listens on" if _is_socket(path) else "this is no socket:"
        reason = EngineUnavailable("no-engine", f"no engine: {listens} {path}")
    except TimeoutError:
        reason = EngineUnavailable("no-answer", "the engine takes no connection in time")
    except (OSError, ValueError) as error:  # a path that is too long for a socket's address, or with a NUL
        reason = EngineUnavailable("no-engine", f"no engine at {path}: {error}")
    raw.close()
    raise reason


def _to_port(address: Address, deadline: float) -> socket.socket:
    try:
        raw = socket.create_connection((address.host, address.port), _left(deadline))
    except socket.gaierror as error:
        reason = EngineUnavailable(
            "no-engine", f"no engine: no host of {address} is known ({error.strerror})"
        )
    except ConnectionRefusedError:
        reason = EngineUnavailable("no-engine", f"no engine: nobody listens on {address}")
    except TimeoutError:
        reason = EngineUnavailable("no-answer", f"no connection to {address} in time")
    except (OSError, ValueError) as error:
        reason = EngineUnavailable("no-engine", f"no engine at {address}: {error}")
    else:
        return raw if address.certificates is None else _secured(raw, address, deadline)
    raise reason


def _secured(raw: socket.socket, address: Address, deadline: float) -> socket.socket:
    """Return the connection with TLS around it, as docker's command makes it. Raises EngineUnavailable."""
    import ssl  # only here: it costs 15 ms

    place = cast("str", address.certificates)
    try:
        context = ssl.create_default_context(cafile=os.path.join(place, "ca.pem"))
        # What docker's own images make for themselves lacks extensions that the newest Pythons ask for.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not address.verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if os.path.exists(os.path.join(place, "cert.pem")):
            context.load_cert_chain(os.path.join(place, "cert.pem"), os.path.join(place, "key.pem"))
        raw.settimeout(_left(deadline))
        return context.wrap_socket(raw, server_hostname=address.host)
    except TimeoutError:
        reason = EngineUnavailable("no-answer", f"no connection to {address} in time")
    except ssl.SSLCertVerificationError as error:
        reason = EngineUnavailable(
            "no-answer",
            f"{address} is not who it should be: {error.verify_message}",
            f"{place}/ca.pem has to be that of the engine, and the engine has to be named as in its certificate",
        )
    except ssl.SSLError as error:
        reason = EngineUnavailable(
            "no-answer",
            f"no TLS with {address}: {error.reason or error}",
            "unset DOCKER_TLS_VERIFY if the engine speaks none (port 2375); else look at the files in "
            + place,
        )
    except OSError as error:
        why = error.strerror or str(error)
        reason = EngineUnavailable(
            "no-engine",
            f"no certificates for {address} in {place}: {why}",
            "say in $DOCKER_CERT_PATH where ca.pem, cert.pem and key.pem are (/certs/client in docker:dind)",
        )
    raw.close()
    raise reason


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _left(deadline: float) -> float:
    """Return the seconds until ``deadline``. Raises TimeoutError."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Socket:
    """A socket whose every call has only what is left of the whole exchange's time."""

    def __init__(self, raw: socket.socket, deadline: float) -> None:
        self._raw, self._deadline = raw, deadline
        self._users = 1  # closed when the last of them is done: TLS has no second descriptor to give away

    def sendall(self, data: bytes) -> None:
        self._raw.settimeout(_left(self._deadline))  # Python holds all of one sendall to it
        self._raw.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        self._users += 1
        return io.BufferedReader(_Reader(self._raw, self._deadline, self.close), 1 << 16)

    def close(self) -> None:
        self._users -= 1
        if not self._users:
            self._raw.close()


class _Reader(io.RawIOBase):
    """What comes over the socket. It may be read after the connection let go of that."""

    def __init__(self, raw: socket.socket, deadline: float, release: Callable[[], None]) -> None:
        self._raw, self._deadline, self._release = raw, deadline, release

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self._raw.settimeout(_left(self._deadline))
        return self._raw.recv_into(buffer)

    def close(self) -> None:
        if not self.closed:
            self._release()
        super().close()
