"""An S3 server that takes conditional writes lightly: what emiliad must refuse to run on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class CarelessServer(ThreadingHTTPServer):
    """Objects in memory. `ignores` names the headers of conditions that it does not look at;
    `racy`: it looks, and then takes its time before it writes; `salt` makes its etags no MD5."""

    daemon_threads = True

    def __init__(self, *, ignores: tuple[str, ...] = (), racy: bool = False, salt: bytes = b""):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.ignores = ignores
        self.racy = racy
        self.salt = salt
        self.lock = threading.RLock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[CarelessServer]:
        """Serves for the length of a block."""
        thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()

    def etag(self, key: str) -> str | None:
        if key not in self.objects:
            return None
        return md5(self.salt + self.objects[key]).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CarelessServer

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            met = self._conditions_met()
            if not self.server.racy:
                self._write(met, body)
        if self.server.racy:
            time.sleep(0.1)
            self._write(met, body)
        if met:
            self._answer(200, ETag=f'"{self.server.etag(self._key)}"')
        else:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")

    def do_GET(self) -> None:
        if "list-type" in self.path:
            self._answer(200, self._listing())
        elif self._key in self.server.objects:
            self._read()
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _read(self) -> None:
        """All of the object, or a range, whatever its condition."""
        body = self.server.objects[self._key]
        etag = f'"{self.server.etag(self._key)}"'
        if "Range" not in self.headers:
            self._answer(200, body, ETag=etag)
            return
        first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
        part = body[first : last + 1]
        shown = {"ETag": etag, "Content-Range": f"bytes {first}-{last}/{len(body)}"}
        self._answer(206, part, **shown)

    def do_DELETE(self) -> None:
        self.server.objects.pop(self._key, None)
        self._answer(204)

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).split("/", 2)[2]

    def _conditions_met(self) -> bool:
        heeded = {name: self.headers.get(name) for name in ("If-None-Match", "If-Match")}
        for name in self.server.ignores:
            heeded[name] = None
        found = self.server.etag(self._key)
        if heeded["If-None-Match"] and found is not None:
            return False
        return heeded["If-Match"] in (None, f'"{found}"')

    def _write(self, met: bool, body: bytes) -> None:
        if met:
            self.server.objects[self._key] = body

    def _listing(self) -> bytes:
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size>"
            f'<ETag>"{self.server.etag(key)}"</ETag></Contents>'
            for key, body in sorted(self.server.objects.items())
            if key.startswith(prefix)
        )
        return (
            f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode()
        )

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""
