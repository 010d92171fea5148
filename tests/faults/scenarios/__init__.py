"""All scenarios; a file for each group.

A new one is a `Scenario` whose `inject` disturbs a `Stage`: it starts workers, sets faults, and calls
`note_end_of_fault` when the disturbance is over. The runner finishes the batch and checks the ledger. What takes
longer than half a minute, or differs from another in its sink only, has `in_subset=False`.
"""

from tests.faults.scenarios import blob, entra, machine, openai, processes, producer, service_bus, stops

SCENARIOS = (
    *processes.SCENARIOS,
    *stops.SCENARIOS,
    *machine.SCENARIOS,
    *producer.SCENARIOS,
    *service_bus.SCENARIOS,
    *entra.SCENARIOS,
    *openai.SCENARIOS,
    *blob.SCENARIOS,
)
