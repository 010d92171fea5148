"""The embedded Service Bus: a broker of pure state (broker.py) and the AMQP side that serves it."""
