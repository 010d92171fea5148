"""Faults of HTTP itself, for every service of the embedded Azure that speaks it: connections and bodies that break.

`faults.py` says how faults are set. A service asks for these two kinds and lets this module carry them out.
"""

import asyncio
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field

from embedded_azure.faults import Fault

_TICK = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionFault(Fault):
    """What happens to the connection instead of an answer: `reset` it, `close` it, or `hang` before the headers,
    until the client gives up."""

    kind: Literal["connection"] = "connection"
    how: Literal["reset", "close", "hang"] = "reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyFault(Fault):
    """What happens to the body of the next answers that come with status 200, `after` so many of its bytes: `cut`
    closes the connection, `hang` sends nothing more, `malformed` ends it early as if it were whole, `slow` sends
    the rest at `bytes_per_second`. After the headers at the earliest, before the last byte at the latest.
    """

    kind: Literal["body"] = "body"
    how: Literal["cut", "hang", "malformed", "slow"] = "cut"
    after: Annotated[int, Field(ge=0)] = 16
    bytes_per_second: Annotated[int, Field(ge=1)] = 200


async def break_connection(request: web.Request, fault: ConnectionFault) -> web.StreamResponse:
    """Carry `fault` out. Returns a response that nobody receives."""
    if fault.how == "hang":
        await hang()
    disconnect(request, reset=fault.how == "reset")
    return web.Response(status=503)


async def send_broken(
    request: web.Request, headers: Mapping[str, str], body: bytes, fault: BodyFault
) -> web.StreamResponse:
    """A response of status 200 with `body`, broken as `fault` asks."""
    kept = min(fault.after, max(0, len(body) - 1))
    if fault.how == "malformed":
        return web.Response(body=body[:kept], headers=headers)
    response = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[:kept])
    if fault.how == "slow":
        await write_slowly(response, body[kept:], fault.bytes_per_second)
        return response
    if fault.how == "hang":
        await hang()
    disconnect(request)
    return response


async def write_slowly(response: web.StreamResponse, data: bytes, bytes_per_second: float) -> None:
    step = max(1, int(bytes_per_second * _TICK))
    for start in range(0, len(data), step):
        part = data[start : start + step]
        await asyncio.sleep(len(part) / bytes_per_second)
        await response.write(part)


async def hang() -> None:
    """Wait until cancelled, which the server does when the client gives up or the process stops."""
    await asyncio.get_running_loop().create_future()


def disconnect(request: web.Request, *, reset: bool = False) -> None:
    """Close the connection at once, in the midst of whatever was being sent. `reset`: by RST rather than FIN."""
    transport = request.transport
    if transport is None:
        return
    if reset and (connection := transport.get_extra_info("socket")) is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
