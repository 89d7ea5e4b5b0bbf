"""Certificates as docker's documentation makes them, and an engine's socket behind a port, with or without TLS.

The port stands for an engine elsewhere: `docker:dind` beside a GitLab job is reached like that.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def certificates(place: Path) -> Path:
    """Make `place` with a CA, and `server` and `client` below it: each a directory as $DOCKER_CERT_PATH names one."""
    place.mkdir()
    _openssl(
        place,
        "req",
        "-x509",
        *_KEY,
        "-days",
        "2",
        "-subj",
        "/CN=ca",
        "-keyout",
        "ca-key.pem",
        "-out",
        "ca.pem",
    )
    for name, extension in (
        ("server", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ("client", "extendedKeyUsage=clientAuth"),
    ):
        (place / name).mkdir()
        shutil.copy(place / "ca.pem", place / name)
        (place / "extensions").write_text(extension)
        _openssl(
            place,
            "req",
            "-new",
            *_KEY,
            "-subj",
            f"/CN={name}",
            "-keyout",
            f"{name}/key.pem",
            "-out",
            "request",
        )
        signed = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-extfile", "extensions")
        _openssl(place, "x509", "-req", "-in", "request", *signed, "-days", "2", "-out", f"{name}/cert.pem")
    return place


def _openssl(place: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True, timeout=30)


@contextmanager
def behind_port(path: Path, certificates: Path | None = None) -> Iterator[int]:
    """Serve the unix socket at `path` on a port, which is given; with TLS for clients of the CA, if it is given."""
    context = None
    if certificates is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server/cert.pem", certificates / "server/key.pem")
        context.load_verify_locations(certificates / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads: list[threading.Thread] = []

        def serve() -> None:
            while True:
                try:
                    raw, _ = listener.accept()
                except OSError:  # closed: the end
                    return
                thread = threading.Thread(target=_carry, args=(raw, path, context))
                threads.append(thread)
                thread.start()

        accepting = threading.Thread(target=serve)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join(30)


def _carry(raw: socket.socket, path: Path, context: ssl.SSLContext | None) -> None:
    """Carry bytes both ways until one side ends."""
    with raw, contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        client = raw if context is None else stack.enter_context(context.wrap_socket(raw, server_side=True))
        engine = stack.enter_context(socket.socket(socket.AF_UNIX))
        engine.connect(str(path))
        back = threading.Thread(target=_copy, args=(engine, client))
        back.start()
        _copy(client, engine)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy one way; at its end the target hears of no more, as if it had been spoken to itself."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR if isinstance(source, ssl.SSLSocket) else socket.SHUT_RDWR)
