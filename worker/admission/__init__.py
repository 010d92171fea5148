"""What may be received, and which deployment takes a job now: slots, gates, budgets, quarantine."""
