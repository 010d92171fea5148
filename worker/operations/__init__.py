"""What an operator runs: `check` and the commands for dead letters."""
