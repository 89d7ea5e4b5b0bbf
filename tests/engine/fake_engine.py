"""An engine that answers what a test wants: right, wrong, late, in drops, or not at all."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

from cachekit.engine.client import Engine

Answer: TypeAlias = "tuple[int, Any] | Callable[[Any], None]"
"""A status and a body (bytes as they are, else JSON), or a function that is given the handler and writes itself."""


class FakeEngine:
    """Answers by "METHOD /path" without the version; a list of answers is used up one by one, its last one stays."""

    def __init__(self, path: Path, api: str) -> None:
        self.path = path
        self.answers: dict[str, Answer | list[Answer]] = {
            "GET /version": (200, {"ApiVersion": api, "MinAPIVersion": "1.24", "Version": "fake"}),
            "GET /info": (200, {"ID": "fake", "DockerRootDir": "/nowhere", "Driver": "overlay2"}),
            "GET /containers/json": (200, []),
            "GET /images/json": (200, []),
            "GET /volumes": (200, {"Volumes": []}),
        }
        self.requests: list[tuple[str, dict[str, list[str]]]] = []

    def asked(self, what: str) -> list[dict[str, list[str]]]:
        """Return the queries of all requests for "METHOD /path"."""
        return [query for name, query in self.requests if name == what]

    def connect(self, timeout: float = 5) -> Engine:
        """Connect a client to it."""
        return Engine.connect(timeout, environment={"DOCKER_HOST": f"unix://{self.path}"})

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Write the answer to a request."""
        parts = urlsplit(handler.path)
        path = parts.path.partition("/v1.")[2].partition("/")[2]
        name = f"{handler.command} {'/' + path if path else parts.path}"
        self.requests.append((name, parse_qs(parts.query)))
        found = self.answers.get(name, (404, {"message": f"no route for {name}"}))
        if isinstance(found, list):
            found = found.pop(0) if len(found) > 1 else found[0]
        if callable(found):
            found(handler)
            return
        status, body = found
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients hang up on purpose."""


@contextmanager
def fake_engine(
    directory: Path, api: str = "1.45", make: Callable[[Path, str], FakeEngine] = FakeEngine
) -> Iterator[FakeEngine]:
    """Serve a fake engine on a socket in `directory`; `make` gives one of another kind."""
    fake = make(directory / "fake.sock", api)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.answer(self)

        do_POST = do_DELETE = do_GET  # noqa: N815 - the server's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the server's name
            """Say nothing."""

    with _Server(str(fake.path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
