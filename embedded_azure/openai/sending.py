"""How an answer goes out: whole or in pieces, at what pace, and where it breaks when a fault wants it to."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from aiohttp import web

from embedded_azure.http_faults import BodyFault, ConnectionFault, disconnect, hang, send_broken, write_slowly
from embedded_azure.openai.streams import Piece

# Written at once when nothing keeps a stream from going on: enough to be cheap, little enough to be a stream.
_BATCH = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A response of status 200. `fault` breaks its body."""

    body: bytes
    headers: Mapping[str, str]
    fault: BodyFault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a stream ends instead of with its `rest`. `fail` has `last` sent."""

    how: Literal["cut", "hang", "malformed", "slow", "fail"]
    rest: Sequence[Piece]
    bytes_per_second: float = 200.0
    last: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """A response of status 200 in server-sent events, a token every so many seconds."""

    pieces: Iterable[Piece]
    headers: Mapping[str, str]
    seconds_per_token: float = 0.0
    ending: Ending | None = None


class Writer(Protocol):
    """Where a stream goes."""

    async def write(self, data: bytes) -> None: ...


Reply = Whole | Streamed | ConnectionFault


def break_off(pieces: Iterable[Piece], after: int) -> tuple[list[Piece], list[Piece]]:
    """`pieces` in two, where so many tokens are through; the last piece is always in the second part."""
    whole = list(pieces)
    through = 0
    for number, piece in enumerate(whole):
        through += piece.tokens
        if through > after:
            return whole[:number], whole[number:]
    return whole[:-1], whole[-1:]


async def send_stream(request: web.Request, reply: Streamed, headers: Mapping[str, str]) -> web.StreamResponse:
    """Send `reply` to its end, which may be its client's giving up."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8", **headers})
    await response.prepare(request)
    await send_paced(reply, response)
    if reply.ending is not None:
        await _end(request, response, reply.ending)
    return response


async def send_whole(request: web.Request, reply: Whole, headers: Mapping[str, str]) -> web.StreamResponse:
    headers = {"Content-Type": "application/json", **headers}
    if reply.fault is not None:
        return await send_broken(request, headers, reply.body, reply.fault)
    return web.Response(body=reply.body, headers=headers)


async def send_paced(reply: Streamed, response: Writer) -> None:
    """Send the pieces, each when it is due; those that are due together at once."""
    clock = asyncio.get_running_loop().time
    due = clock()
    waiting = bytearray()
    for piece in reply.pieces:
        due += piece.tokens * reply.seconds_per_token
        if waiting and (due > clock() or len(waiting) > _BATCH):
            await response.write(bytes(waiting))
            waiting.clear()
        if due > clock():
            await asyncio.sleep(due - clock())
        waiting += piece.data
    if waiting:
        await response.write(bytes(waiting))


async def _end(request: web.Request, response: web.StreamResponse, ending: Ending) -> None:
    match ending.how:
        case "fail":
            await response.write(ending.last)
        case "malformed":
            await response.write(b'data: {"id": "chatcmpl-\n\n')
        case "slow":
            await write_slowly(response, b"".join(piece.data for piece in ending.rest), ending.bytes_per_second)
        case "hang":
            await hang()
        case "cut":
            disconnect(request)
