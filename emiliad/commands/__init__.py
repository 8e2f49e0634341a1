"""What the commands do; `emiliad.cli` says how they are called."""
