"""One file over HTTP: resumed where it broke off, checked, and put in its place in one step."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from pipeline.disk import disk_errors, ensure_room
from pipeline.types import ModelError

BLOCK = 1024 * 1024  # bytes read at most at a time, and between two reports
SILENCE_S = 60.0  # a connection that says nothing for so long is given up
_WORTH_ANOTHER_TRY = frozenset({408, 425, 429})  # besides 5xx

Report = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a broken connection is tried again without progress, and how long between.

    The wait doubles each time, from `wait_s` seconds: 1, 2, 4, 8 by default.
    """

    attempts: int = 5
    wait_s: float = 1.0


PATIENCE = Patience()


class Refused(ModelError):
    """The server wants to know who asks (401), or will not give it to who does (403)."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"access to {url} is refused (HTTP {status})")
        self.status = status


class Unreachable(ModelError):
    """The server could not be reached, or broke off again and again."""

    def __init__(self, url: str, why: str, *, answered: bool = False) -> None:
        super().__init__(f"{url} could not be had: {why}")
        self.answered = answered  # though not with the file


class _Broken(Exception):
    """The transfer broke off in a way that another try may mend."""

    def __init__(self, why: str, *, answered: bool = True) -> None:
        super().__init__(why)
        self.answered = answered


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    token: str | None = None,
    report: Report | None = None,
    patience: Patience = PATIENCE,
) -> str:
    """Fetches `url` into the file `target` and returns its sha256.

    What has come so far lies beside it in `target.part`, where the next call goes on. `size` in
    bytes and `sha256` are checked where they are given. `token` is sent to the host of `url` and,
    over redirects, to no other. `report` is called with (bytes so far, bytes in all or None).

    Raises Refused on 401 and 403, Unreachable when no try succeeded, DiskFull, and ModelError when
    the file is not there (404) or is not the one expected; then nothing of it is kept.
    """
    part = _Part(target)
    report = report or (lambda _done, _total: None)
    request = _Request(url, token, size, resume_blindly=sha256 is not None)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if size is None or part.size != size:
            _persist(request, part, report, patience)
        found = _checked(part, url, size, sha256)
        part.publish()
    return found


@dataclass(frozen=True, slots=True)
class _Request:
    url: str
    token: str | None
    size: int | None
    resume_blindly: bool  # without a validator; a mix of two versions is told by its hash


class _Part:
    """The unfinished file, and the validator (RFC 9110: ETag or date) of what it is a part of."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.etag")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        return self._note.read_text(encoding="utf-8") if self._note.exists() else ""

    @validator.setter
    def validator(self, text: str) -> None:
        self._note.write_text(text, encoding="utf-8")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def publish(self) -> None:
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(self.target)
        self._note.unlink(missing_ok=True)


def _persist(request: _Request, part: _Part, report: Report, patience: Patience) -> None:
    """Receives the file over as many connections as it takes."""
    failures = 0
    while True:
        before = part.size
        try:
            return _receive(request, part, report)
        except _Broken as error:
            failures = 1 if part.size > before else failures + 1
            if failures >= patience.attempts:
                raise Unreachable(request.url, str(error), answered=error.answered) from error
            time.sleep(patience.wait_s * 2 ** (failures - 1))


def _receive(request: _Request, part: _Part, report: Report) -> None:
    """One connection: the whole file, or the rest of it. Raises _Broken when it ends early."""
    offset = part.size if part.validator or request.resume_blindly else 0
    with _opened(request, part, offset) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            offset = 0  # the server knows no ranges, or the file has changed
        elif not _starts_at(response, offset):
            part.discard()
            raise _Broken("the server sent another part than was asked for")
        total = None if response.length is None else offset + response.length
        if request.size is not None and total not in (None, request.size):
            part.discard()
            raise ModelError(
                f"{request.url} has {total} bytes; {request.size} are expected: it is another file"
            )
        ensure_room(part.target, response.length or 0)
        part.validator = _validator(response.headers)
        done = _write(_blocks(response), part, offset, lambda done: report(done, total))
    if total is not None and done < total:
        raise _Broken(f"the connection broke off after {done} of {total} bytes")


def _opened(request: _Request, part: _Part, offset: int) -> http.client.HTTPResponse:
    """The answer, once its headers are there. Raises what the failure is sorted into."""
    try:
        return _open(request, offset, part.validator)
    except urllib.error.HTTPError as error:
        error.close()
        raise _sorted_status(request.url, error.code, part) from error
    except (OSError, http.client.HTTPException) as error:
        raise _sorted_failure(request.url, error) from error


def _open(request: _Request, offset: int, validator: str) -> http.client.HTTPResponse:
    # identity: a compressed answer would have other lengths and offsets than the file
    headers = {"User-Agent": "emiliad", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:
            headers["If-Range"] = validator
    if request.token:
        headers["Authorization"] = f"Bearer {request.token}"
    opener = urllib.request.build_opener(RedirectsWithoutToken)
    asked = urllib.request.Request(request.url, headers=headers)
    response: http.client.HTTPResponse = opener.open(asked, timeout=SILENCE_S)
    return response


class RedirectsWithoutToken(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but takes the token along only within its host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if (old.scheme, new.scheme) == ("https", "http"):
            raise urllib.error.URLError(f"it redirects to {new.netloc} without encryption")
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            following.remove_header("Authorization")
        return following


def _starts_at(response: http.client.HTTPResponse, offset: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _validator(headers: Message) -> str:
    """What If-Range may be given: a strong ETag or, failing that, the date of the last change."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(_reason(error)) from error
        if not block:
            return
        yield block


def _write(blocks: Iterator[bytes], part: _Part, offset: int, report: Callable[[int], None]) -> int:
    done = reported = offset
    with part.path.open("ab" if offset else "wb") as file:
        report(done)
        for block in blocks:
            file.write(block)
            done += len(block)
            if done >= reported + BLOCK:
                report(done)
                reported = done
    report(done)
    return done


def _sorted_status(url: str, status: int, part: _Part) -> Exception:
    """The error for an HTTP status: one that another try may mend, or one that it cannot."""
    if status in (401, 403):
        return Refused(url, status)
    if status in (404, 410):
        return ModelError(f"there is no {url} (HTTP {status})")
    if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
        part.discard()
        return _Broken("the server has less than what had come")
    if status in _WORTH_ANOTHER_TRY or status >= http.client.INTERNAL_SERVER_ERROR:
        return _Broken(f"HTTP {status}")
    return ModelError(f"{url} answers HTTP {status}")


def _sorted_failure(url: str, error: Exception) -> Exception:
    """Likewise, for a connection that did not come about."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else None
    if isinstance(reason, ssl.SSLCertVerificationError | str):
        return Unreachable(url, _reason(error))
    return _Broken(_reason(error), answered=False)


def _reason(error: Exception) -> str:
    why = error.reason if isinstance(error, urllib.error.URLError) else error
    said = why.strerror if isinstance(why, OSError) else str(why)
    return said or str(why) or type(why).__name__


def _checked(part: _Part, url: str, size: int | None, sha256: str | None) -> str:
    """The sha256 of what has come. Raises ModelError, and drops it, when it is another file."""
    with part.path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if size is not None and part.size != size:
        wrong = f"{part.size} bytes; {size} are expected"
    elif sha256 is not None and found != sha256:
        wrong = f"the sha256 {found}; {sha256} is expected"
    else:
        return found
    part.discard()
    raise ModelError(f"what came from {url} has {wrong}: it was removed")
