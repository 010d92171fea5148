"""What AMQP links do with the broker: sending, receiving, sessions, management requests, tokens."""
