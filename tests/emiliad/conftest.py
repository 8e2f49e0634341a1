"""Real S3 servers, started when the first test asks for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.emiliad.weed import Server, moto, weed


@pytest.fixture(scope="session")
def weed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """SeaweedFS for the whole session; tests take a bucket of their own."""
    with weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """moto for the whole session."""
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture
def weed_bucket(weed_server: Server) -> Server:
    """A new bucket on SeaweedFS."""
    return weed_server.with_bucket()
