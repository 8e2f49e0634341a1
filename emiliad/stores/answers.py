"""What an S3 server's refusal means, in emiliad's errors and in a sentence that helps.

    412, 416, or 404 to a conditional write        PreconditionFailed
    404 NoSuchKey                                  NotFound
    409, 429                                       Throttled: nothing was written
    408, 5xx, a body that arrived damaged          Ambiguous: it may have been applied
    401, 403, NoSuchBucket, redirects, 501         StoreUnusable

503 SlowDown counts as ambiguous as well: it promises that nothing was written, but it comes from
whatever stands in front of the store, and a wrong promise would turn a won commit into a lost one.
"""

from __future__ import annotations

from dataclasses import dataclass

from emiliad.errors import (
    Ambiguous,
    InvalidKey,
    NotFound,
    PreconditionFailed,
    StoreError,
    StoreUnusable,
    Throttled,
)
from emiliad.stores.r2 import R2

_MISSING = frozenset({"NoSuchKey", "NoSuchUpload", "404"})  # a HEAD has no body to name the code
_WRONG_KEYS = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "NotSignedUp",
        "SignatureDoesNotMatch",
        "Unauthorized",
    }
)
_WRONG_CLOCK = frozenset({"RequestTimeTooSkewed", "RequestExpired", "ExpiredRequest"})
_DAMAGED = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "InvalidDigest"})
_NO_NAME = frozenset({"KeyTooLongError", "InvalidObjectName", "InvalidURI"})
_MESSAGE_CHARS = 200


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer with an error: its HTTP status, and code and message of its body."""

    status: int
    code: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for; `verb` says in a word what the keys must be allowed to do."""

    verb: str
    key: str
    conditional: bool = False


def explain(refusal: Refusal, request: Request, where: R2) -> StoreError:
    """The error to raise."""
    place = f"the bucket {where.bucket} at {where.endpoint_url}"
    match refusal.status, refusal.code:
        case _, "NoSuchBucket":
            return StoreUnusable(
                f"there is no bucket {where.bucket} at {where.endpoint_url}: "
                "check R2_BUCKET (or STORE_URL) and R2_ENDPOINT_URL"
            )
        case ((412 | 416), _):  # 416: it is too short for the range
            return PreconditionFailed(f"{request.key!r} is not in the state that was asked for")
        case 404, code if code in _MISSING and request.conditional:
            return PreconditionFailed(f"{request.key!r} has no object")
        case 404, code if code in _MISSING:
            return NotFound(f"there is no object {request.key!r} in {place}")
        case ((409 | 429), code):
            return Throttled(f"{place} is busy: {refusal.status} {code}")
        case _, code if code in _WRONG_CLOCK:
            return StoreUnusable(
                f"{where.endpoint_url} refuses requests of this time of day: "
                "set this machine's clock"
            )
        case status, code if status == 401 or code in _WRONG_KEYS or _about_keys(refusal):
            return StoreUnusable(
                f"{where.endpoint_url} refuses the keys: "
                f"check R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY ({status} {code})"
            )
        case 403, code:
            return StoreUnusable(
                f"{where.endpoint_url} does not let these keys {request.verb} in the bucket "
                f"{where.bucket}: check the bucket's name, and that the token may read and write "
                f"objects there (403 {code})"
            )
        case status, code if status == 408 or code in _DAMAGED:
            return Ambiguous(f"{request.key!r} did not arrive whole at {place}: {status} {code}")
        case _, code if code in _NO_NAME:
            return InvalidKey(f"{request.key!r} cannot be a key in {place} ({code})")
        case status, code if status in (404, 405, 501) or 300 <= status < 400:
            return StoreUnusable(
                f"{where.endpoint_url} is no S3 server: it answers {status} {code}; "
                "check R2_ENDPOINT_URL"
            )
        case status, code if status >= 500:
            return Ambiguous(f"{place} is in trouble: {status} {code}")
        case status, code:
            said = _scrubbed(refusal.message, where)
            return StoreError(f"{place} refuses {request.key!r}: {status} {code} {said}")


def _about_keys(refusal: Refusal) -> bool:
    """R2 calls an access key of the wrong length an invalid argument."""
    return refusal.code == "InvalidArgument" and "access key" in refusal.message.lower()


def _scrubbed(message: str, where: R2) -> str:
    for secret in (where.secret_access_key, where.access_key_id):
        message = message.replace(secret, "***") if secret else message
    return message[:_MESSAGE_CHARS]
