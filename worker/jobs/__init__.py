"""The contract on the wire: jobs, results, claim checks, replays, and what becomes of a message."""
