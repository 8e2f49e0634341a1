"""When to yield and when to fill: the autokicker's decisions, without a clock and without I/O."""
