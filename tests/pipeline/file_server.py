"""An HTTP server whose answers a test prescribes, and which remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Answer:
    """How one request is answered; the default is as a good server would."""

    status: int = 200
    location: str = ""  # of a redirect
    cut_after: int | None = None  # bytes of the body, then the connection is closed
    ranges: bool = True
    shift: int = 0  # a range is served from so many bytes further on than was asked
    length: int | None = None  # what Content-Length claims


@dataclass
class Asked:
    """A request, and how many bytes of body it was answered with."""

    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclass
class FileServer:
    """Files by path; `answers` are used up one by one, then the default holds."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def answer(self, path: str) -> Answer:
        queue = self.answers.get(path, [])
        missing = Answer(status=404)
        return queue.pop(0) if queue else Answer() if path in self.files else missing


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server on a free port of this machine, for the length of the block."""
    script = FileServer()

    class Handler(_Handler):
        server_script = script

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_script: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        script = self.server_script
        asked = Asked(self.path, dict(self.headers.items()))
        script.asked.append(asked)
        answer = script.answer(self.path)
        if answer.status != 200:
            self.send_response(answer.status)
            if answer.location:
                self.send_header("Location", answer.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send_file(script, asked, answer)

    def _send_file(self, script: FileServer, asked: Asked, answer: Answer) -> None:
        body = script.files[self.path]
        etag = script.etags.get(self.path, "")
        start = self._start(answer, etag)
        if start is not None and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if start is None else 206)
        if start is not None:
            start += answer.shift
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if etag:
            self.send_header("ETag", etag)
        piece = body[start or 0 :]
        self.send_header("Content-Length", str(answer.length or len(piece)))
        self.end_headers()
        if answer.cut_after is not None:
            piece = piece[: answer.cut_after]
            self.close_connection = True
        asked.sent = len(piece)
        self.wfile.write(piece)

    def _start(self, answer: Answer, etag: str) -> int | None:
        wanted = self.headers.get("Range")
        if not answer.ranges or wanted is None:
            return None
        if self.headers.get("If-Range", etag) != etag:
            return None
        return int(wanted.removeprefix("bytes=").removesuffix("-"))
