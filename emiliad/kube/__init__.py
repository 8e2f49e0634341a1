"""The API server's side of the autokicker: watches, the lease, writes, events."""
