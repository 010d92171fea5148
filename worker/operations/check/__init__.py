"""`aoai-worker check`: what must be true, and the command that fixes what is not."""
