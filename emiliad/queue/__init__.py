"""The queue on the object store: tasks, leases, commits, and how to look at them."""
