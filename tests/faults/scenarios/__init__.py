"""All scenarios; a file for each group."""

from tests.faults.scenarios import machine, processes, producer, stops

SCENARIOS = (*processes.SCENARIOS, *stops.SCENARIOS, *machine.SCENARIOS, *producer.SCENARIOS)
