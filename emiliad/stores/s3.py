"""R2 and other S3 servers as a store: each method is one request, or a transfer of several."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from typing import Any

from emiliad.errors import InvalidKey, NotFound, PreconditionFailed, StoreUnusable
from emiliad.patience import Patience
from emiliad.store import PAGE, Object, ObjectInfo, Observe, Page, Transferred
from emiliad.stores import transfers
from emiliad.stores.answers import Request
from emiliad.stores.connection import Connection
from emiliad.stores.r2 import R2
from emiliad.stores.transfers import Part, Receive

_KEY_BYTES = 1024  # of UTF-8, that a key may have
_CHUNK = 256 * 1024  # bytes taken from a connection at a time
# Putting an object together takes a server longer than other requests: as long as this many bytes.
_COMPLETING_BYTES = 32 * transfers.MIB
_ONCE = Patience(tries=1)


@dataclass(frozen=True, slots=True)
class Sizes:
    """From which sizes files are transferred in parts, in bytes; S3 wants 5 MiB at least."""

    part: int = transfers.PART_BYTES
    single: int = transfers.SINGLE_BYTES


class S3Store:
    """The bucket `where`, by at most `concurrency` requests at a time.

    A request that takes longer than `limit_s` is given up, those with bodies of more than a few
    kilobytes after their time at the slowest rate that is borne. `observe` hears of each request:
    its operation and result (`OPERATIONS`, `RESULTS`) and its seconds; `transferred` of bytes of
    bodies, with the direction `in` or `out`.
    """

    def __init__(
        self,
        where: R2,
        *,
        concurrency: int = 64,
        limit_s: float = 15.0,
        sizes: Sizes | None = None,
        observe: Observe | None = None,
        transferred: Transferred | None = None,
    ) -> None:
        self._where = where
        self._sizes = sizes or Sizes()
        self._transferred = transferred or (lambda direction, size: None)
        self._connection = Connection(
            where,
            concurrency=concurrency,
            limit_s=limit_s,
            observe=observe or (lambda operation, result, seconds: None),
        )

    async def get(self, key: str) -> Object:
        async def read(client: Any) -> Object:
            answer = await client.get_object(**self._names(key))
            async with answer["Body"] as stream:
                body: bytes = await stream.read()
            self._transferred("in", len(body))
            return Object(body, self._etag(answer))

        return await self._connection.send("get", Request("read objects", key), read)

    async def head(self, key: str) -> ObjectInfo:
        async def look(client: Any) -> ObjectInfo:
            answer = await client.head_object(**self._names(key))
            return ObjectInfo(key, answer["ContentLength"], self._etag(answer))

        return await self._connection.send("head", Request("read objects", key), look)

    async def put(
        self, key: str, body: bytes, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        if if_match is not None:
            condition["IfMatch"] = f'"{if_match}"'
        digest = md5(body, usedforsecurity=False).digest()

        async def write(client: Any) -> str:
            answer = await client.put_object(
                **self._names(key), Body=body, ContentMD5=_base64(digest), **condition
            )
            self._transferred("out", len(body))
            return self._etag(answer)

        request = Request("write objects", key, conditional=bool(condition))
        return await self._connection.send("put", request, write, size=len(body))

    async def delete(self, key: str) -> None:
        async def remove(client: Any) -> None:
            await client.delete_object(**self._names(key))

        with suppress(NotFound):  # as some servers answer
            await self._connection.send("delete", Request("delete objects", key), remove)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncGenerator[Page, None]:
        wanted = {"Bucket": self._where.bucket, "Prefix": prefix, "MaxKeys": PAGE}
        if start_after:
            wanted["StartAfter"] = start_after

        async def read(client: Any) -> dict[str, Any]:
            return dict(await client.list_objects_v2(**wanted))

        while True:
            answer = await self._connection.send("list", Request("list objects", prefix), read)
            if "IsTruncated" not in answer:  # any web page would be a list of nothing
                raise self._stranger("a list")
            page = [
                ObjectInfo(item["Key"], item["Size"], item["ETag"].strip('"'))
                for item in answer.get("Contents", ())
            ]
            if page:
                yield page
            if not answer["IsTruncated"]:
                return
            wanted["ContinuationToken"] = answer["NextContinuationToken"]

    async def upload(self, key: str, path: Path) -> str:
        return await self.upload_parts(key, path, _ONCE)

    async def download(self, key: str, path: Path) -> ObjectInfo:
        return await self.download_parts(key, path, _ONCE)

    async def upload_parts(self, key: str, path: Path, patience: Patience) -> str:
        """`upload`, with each of its requests repeated by itself."""
        part, single = self._sizes.part, self._sizes.single
        return await transfers.upload(
            self, key, path, patience, part_bytes=part, single_bytes=single
        )

    async def download_parts(self, key: str, path: Path, patience: Patience) -> ObjectInfo:
        """`download`, with each of its requests repeated by itself."""
        return await transfers.download(self, key, path, patience, part_bytes=self._sizes.part)

    async def aclose(self) -> None:
        await self._connection.aclose()

    async def read_range(
        self, key: str, start: int, stop: int, etag: str | None, receive: Receive
    ) -> ObjectInfo:
        """As in `transfers.Client`."""
        condition = {} if etag is None else {"IfMatch": f'"{etag}"'}

        async def read(client: Any) -> ObjectInfo:
            answer = await client.get_object(
                **self._names(key), Range=f"bytes={start}-{stop - 1}", **condition
            )
            info = ObjectInfo(key, self._whole_size(answer, start), self._etag(answer))
            stream = answer["Body"]
            async with stream:
                if etag not in (None, info.etag):
                    raise PreconditionFailed(f"{key!r} was replaced")
                while chunk := await stream.read(_CHUNK):
                    self._transferred("in", len(chunk))
                    await receive(info, chunk)
            return info

        request = Request("read objects", key)
        try:
            return await self._connection.send("download", request, read, size=stop - start)
        except PreconditionFailed:
            if etag is not None:
                raise
            return await self.head(key)

    async def put_file(self, key: str, whole: Part) -> str:
        """As in `transfers.Client`."""

        async def write(client: Any) -> str:
            with whole.open() as body:
                answer = await client.put_object(
                    **self._names(key), Body=body, ContentMD5=_base64(whole.md5)
                )
            self._transferred("out", whole.size)
            return self._etag(answer)

        request = Request("write objects", key)
        return await self._connection.send("upload", request, write, size=whole.size)

    async def begin_upload(self, key: str) -> str:
        """As in `transfers.Client`."""

        async def begin(client: Any) -> str:
            return str((await client.create_multipart_upload(**self._names(key)))["UploadId"])

        return await self._connection.send("create_multipart", Request("write objects", key), begin)

    async def put_part(self, key: str, upload: str, number: int, part: Part) -> str:
        """As in `transfers.Client`."""

        async def write(client: Any) -> str:
            with part.open() as body:
                answer = await client.upload_part(
                    **self._names(key),
                    UploadId=upload,
                    PartNumber=number,
                    Body=body,
                    ContentMD5=_base64(part.md5),
                )
            self._transferred("out", part.size)
            return self._etag(answer)

        request = Request("write objects", key)
        return await self._connection.send("upload_part", request, write, size=part.size)

    async def complete_upload(self, key: str, upload: str, etags: Sequence[str]) -> str:
        """As in `transfers.Client`."""
        parts = [{"PartNumber": n, "ETag": f'"{etag}"'} for n, etag in enumerate(etags, start=1)]

        async def complete(client: Any) -> str:
            answer = await client.complete_multipart_upload(
                **self._names(key), UploadId=upload, MultipartUpload={"Parts": parts}
            )
            return self._etag(answer)

        request = Request("write objects", key)
        return await self._connection.send(
            "complete_multipart", request, complete, size=_COMPLETING_BYTES
        )

    async def abort_upload(self, key: str, upload: str) -> None:
        """As in `transfers.Client`."""

        async def abort(client: Any) -> None:
            await client.abort_multipart_upload(**self._names(key), UploadId=upload)

        await self._connection.send("abort_multipart", Request("write objects", key), abort)

    def _names(self, key: str) -> dict[str, str]:
        """The object as requests name it. Raises InvalidKey if no object can have this name."""
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            raise InvalidKey(f"{key!r} is not valid UTF-8") from None
        if not 0 < size <= _KEY_BYTES:
            raise InvalidKey(f"{key!r:.100} has {size} bytes; a key has 1 to {_KEY_BYTES}")
        return {"Bucket": self._where.bucket, "Key": key}

    def _etag(self, answer: Mapping[str, Any]) -> str:
        if "ETag" not in answer:
            raise self._stranger("an etag")
        return str(answer["ETag"]).strip('"')

    def _stranger(self, lacking: str) -> StoreUnusable:
        return StoreUnusable(
            f"{self._where.endpoint_url} is no S3 server: it answers without {lacking}; "
            "check R2_ENDPOINT_URL"
        )

    def _whole_size(self, answer: Mapping[str, Any], start: int) -> int:
        """The size of the object of which `answer` holds the bytes from `start` on."""
        if "ContentRange" in answer:
            return int(answer["ContentRange"].rpartition("/")[2])
        if start:
            raise StoreUnusable(f"{self._where.endpoint_url} ignores that a part is asked for")
        return int(answer["ContentLength"])


def _base64(digest: bytes) -> str:
    return b64encode(digest).decode()
