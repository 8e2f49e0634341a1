"""The S3 server of the daemon's tests serves here too."""

from tests.emiliad.conftest import weed_server

__all__ = ["weed_server"]
