"""The proxy that loses, delays and breaks answers, as `ops.rig.fault_proxy` has it."""

from ops.rig.fault_proxy import Exchange, Fault, FaultProxy, Rule

__all__ = ["Exchange", "Fault", "FaultProxy", "Rule"]
