"""emiliad: one daemon per node turns raw audio on an object store into speech-dataset segments."""
