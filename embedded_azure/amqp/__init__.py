"""AMQP 1.0, the server's side: types, performatives, frames, messages and the protocol engine.

Pure Python on asyncio. It knows nothing of Service Bus, which is `embedded_azure.servicebus`. Read `codec.py`,
`performatives.py`, `frames.py` and `messages.py` for the bytes, then `connection.py`, `session.py` and
`links.py` for the protocol. References such as "2.7.5" are to the OASIS AMQP 1.0 standard, parts 1 to 3.
"""
