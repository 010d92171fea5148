"""What tests share: worlds, real processes, benches of fakes, examples of every value."""
