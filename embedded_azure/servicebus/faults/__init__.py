"""Faults on demand: what is refused, lost, slowed down or cut."""
