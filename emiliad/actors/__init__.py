"""The daemon's moving parts: each actor is one module with one public `run`."""
