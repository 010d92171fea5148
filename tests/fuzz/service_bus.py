"""`make fuzz`: libFuzzer looks for bytes that the embedded Service Bus answers with an exception of its own.

What it finds is written to a file `crash-*`, whose bytes belong into tests/embedded/test_garbage.py
as an example.
"""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # in .venv-fuzz only

with atheris.instrument_imports(include=["embedded_azure"]):
    from embedded_azure.amqp.codec import Int, Long
    from embedded_azure.amqp.frames import PROTOCOL_AMQP, PROTOCOL_SASL
    from embedded_azure.amqp.messages import encode_message
    from embedded_azure.amqp.performatives import Begin, Detach, Open, SaslInit, encode_composite
    from tests.support.garbage import FEEDS
    from tests.support.raw_client import Keys

FEED = tuple(FEEDS.values())
KEYS = Keys()
LOOP = asyncio.new_event_loop()


def feed(data: bytes) -> None:
    """The first byte says which way the rest is fed."""
    if data:
        LOOP.run_until_complete(_feed(data))


async def _feed(data: bytes) -> None:
    bus = KEYS.service()
    FEED[data[0] % len(FEED)](bus, KEYS, data[1:])
    await bus.close()


def seeds() -> Iterator[bytes]:
    """What is valid, so that the fuzzer need not find out the formats first."""
    peek = {"from-sequence-number": Long(0), "message-count": Int(1)}
    token = {"operation": "put-token", "name": "sb://localhost/jobs", "type": "jwt"}
    detach, begin = (
        encode_composite(Detach(handle=1)),
        encode_composite(Begin(next_outgoing_id=0, incoming_window=1, outgoing_window=1)),
    )
    valid = {
        "feed_socket": PROTOCOL_SASL + PROTOCOL_AMQP,
        "feed_sasl": encode_composite(SaslInit(mechanism="ANONYMOUS")),
        "feed_open": encode_composite(Open(container_id="c")),
        "feed_frames": bytes([len(detach)]) + detach + bytes([len(begin)]) + begin,
        "feed_message": encode_message(application_properties={"a": "b"}, value="x"),
        "feed_management": encode_message(
            application_properties={"operation": "com.microsoft:peek-message"}, value=peek
        ),
        "feed_token": encode_message(application_properties=token, value="a.b.c"),
        "feed_administration": _QUEUE,
        "feed_faults": b'{"kind": "refuse", "on": "send", "count": 1}',
    }
    for name, data in valid.items():
        yield bytes([list(FEEDS).index(name)]) + data


_QUEUE = b"""<entry xmlns="http://www.w3.org/2005/Atom"><content type="application/xml"><QueueDescription
 xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"><LockDuration>PT1M</LockDuration>
<MaxDeliveryCount>3</MaxDeliveryCount></QueueDescription></content></entry>"""


if __name__ == "__main__":
    for number, seed in enumerate(seeds()):
        (Path(sys.argv[-1]) / f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, feed)
    atheris.Fuzz()
