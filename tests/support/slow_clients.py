"""A client that sends a part of something and waits (slow loris)."""

import asyncio
import contextlib

from tests.support.patience import PATIENCE

HALF_A_HEAD = b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Slow: "
WHOLE = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
HALF_A_BODY = b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx"


async def wait_for_close(port: int, *parts: bytes) -> bytes:
    """What came until the server closed. After the first part the others are sent when something has come.

    Raises TimeoutError where the server keeps the connection.
    """
    received = b""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for number, part in enumerate(parts):
                if number:
                    received += await reader.read(65_536)
                writer.write(part)
            while chunk := await reader.read(65_536):
                received += chunk
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
    return received
