"""The comparison with the original's algorithm: ours is better, or as the user's rule has it."""

from __future__ import annotations

from ops.bench.autokick import measure


def test_ours_is_better_in_every_column() -> None:
    """Mode all kills as many as the original, for that is the rule; mode needed kills one."""
    original, everything, needed = map(measure, ("original", "all", "needed"))
    for ours in (everything, needed):
        assert ours.fill_s < original.fill_s / 50
        assert ours.waits_s < original.waits_s
        assert ours.idle_node_min < original.idle_node_min / 20
        assert ours.hopeless_node_h < original.hopeless_node_h / 5
        assert ours.hopeless_again_node_h < original.hopeless_again_node_h / 5
    assert (original.killed, everything.killed, needed.killed) == (20, 20, 1)
