"""The rig's bucket on an S3 server: daemons there, looked at with another client than theirs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.emiliad.rig import Bucket
from tests.emiliad.weed import Server


class S3Bucket(Bucket):
    """As `Bucket`; `endpoint` is where the daemons take the server to be."""

    def __init__(self, root: Path, server: Server, endpoint: str | None = None) -> None:
        super().__init__(root, server.environment(endpoint))
        self.server = server
        self.client = server.client()

    def put_audio(self, name: str, content: bytes = b"audio", language: str = "en") -> Path:
        """Drops a raw file into the bucket; the path is its key."""
        key = f"raw_audio/{language}/{name}"
        self.client.put_object(Bucket=self.server.bucket, Key=key, Body=content)
        return Path(key)

    def keys(self, prefix: str = "") -> list[str]:
        """All keys under a prefix."""
        return [key for key, _ in self._listed(prefix)]

    def body(self, key: str) -> bytes:
        """An object's content."""
        answer = self.client.get_object(Bucket=self.server.bucket, Key=key)
        return bytes(answer["Body"].read())

    def tasks(self, state: str) -> dict[str, dict[str, Any]]:
        """The queue's objects in `state`, by episode."""
        prefix = f"tasks/processing_{state}/"
        return {
            key.removeprefix(prefix).removesuffix(".task"): json.loads(self.body(key))
            for key in self.keys(prefix)
        }

    def verify_settled(self, scratch: str = "scratch") -> None:
        """What must hold when nothing is left to do: no lease, no pack, no probe, no scratch."""
        assert self.tasks("in_progress").keys() <= self.tasks("failed").keys()
        assert self.tasks("todo").keys() == self.tasks("failed").keys()
        assert self.keys("tasks/processing_outputs/") == []
        assert self.keys("tasks/probes/") == []
        assert list((self.root / scratch).glob("owner-*/tasks/*")) == []
        for episode, record in self.tasks("completed").items():
            self.verify_outputs(episode, record)

    def verify_outputs(self, episode: str, record: Mapping[str, Any]) -> None:
        """The published outputs are those of the committed attempt, whole."""
        prefix = f"processed/{record['language'] or 'unknown'}/{episode}/"
        found = {
            key.removeprefix(prefix): hashlib.md5(self.body(key)).hexdigest()
            for key in self.keys(prefix)
        }
        assert found == {name: facts["md5"] for name, facts in record["outputs"].items()}
        rows = json.loads(self.body(f"{prefix}all_segments.json"))
        assert len(rows) == record["segments"]

    def _listed(self, prefix: str) -> Iterator[tuple[str, int]]:
        pages = self.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.server.bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                yield item["Key"], item["Size"]
