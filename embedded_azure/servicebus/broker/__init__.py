"""The broker: queues, topics, sessions and rules as pure state, without I/O."""
