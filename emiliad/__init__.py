"""emiliad: one daemon per node turns raw audio on an object store into speech-dataset segments."""

__version__ = "0.1.0"  # as in pyproject.toml
