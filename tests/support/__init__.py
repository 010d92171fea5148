"""What tests share: configs, real processes, benches of fakes, examples of every value."""
