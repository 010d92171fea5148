"""Azure OpenAI: one call, what counts as an answer, what a refusal means."""
