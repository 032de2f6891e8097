"""Fleets: a run told in the seconds, joules and bytes of devices that differ in speed, network and power."""
