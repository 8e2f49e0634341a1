"""Real S3 servers for tests, as `ops.rig.weed` starts them."""

from ops.rig.weed import ACCESS_KEY, READER, READER_SECRET, SECRET_KEY, Server, moto, weed

__all__ = ["ACCESS_KEY", "READER", "READER_SECRET", "SECRET_KEY", "Server", "moto", "weed"]
