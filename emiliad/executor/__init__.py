"""The subprocess that holds the models (`child`) and its supervisor (`host`)."""
